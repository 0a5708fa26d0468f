//! Which cached content goes first: a segmented LRU, by bytes, in memory. It decides; it does no I/O.
//!
//! What comes in is on *probation*; what is used again later than [`CORRELATED`] after it came is *protected*, up to four
//! fifths of the capacity. One pass over many images, however many nodes make it at once, flushes probation and no more.
//! *Pinned* content is in neither list. What a manifest that was just served refers to is *shielded*, as long as all that
//! is shielded is at most half of the capacity: the oldest shields lapse first.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use crate::oci::Digest;

/// Uses within this time of the first are the same use: many nodes pull an image at once.
pub const CORRELATED: u32 = 10 * 60;
/// How long what a served manifest refers to is kept from going.
pub const SHIELD: u32 = 10 * 60;
/// A last use is written down again when it has moved by this much.
const SAVE_STEP: u32 = 10 * 60;

/// More than are pulled in [`SHIELD`] by any cluster that such a cache could serve.
const AWAITED: usize = 20_000;

const NONE: u32 = u32::MAX;

/// Seconds since 1970.
pub type Time = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment {
    Probation,
    Protected,
    Pinned,
}

/// A last use, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastUse {
    pub digest: Digest,
    pub at: Time,
    pub protected: bool,
}

#[derive(Debug)]
struct Node {
    digest: Digest,
    size: u64,
    entered: Time,
    used: Time,
    saved: Time,
    shielded_until: Time,
    older: u32,
    newer: u32,
    segment: Segment,
    unsaved: bool,
}

#[derive(Clone, Copy, Debug)]
struct List {
    oldest: u32,
    newest: u32,
    bytes: u64,
}

#[derive(Debug)]
pub struct Segments {
    nodes: Vec<Node>,
    free: Vec<u32>,
    places: HashTable<u32>,
    hasher: RandomState,
    lists: [List; 3],
    protected_most: u64,
    shielded_most: u64,
    shields: VecDeque<(Time, u32)>,
    shielded: u64,
    /// What a served manifest refers to and is not here yet, and until when it is shielded once it is.
    awaited: HashMap<Digest, Time>,
    pinned: HashSet<Digest>,
    unsaved: VecDeque<u32>,
}

impl Segments {
    /// For a cache of `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            places: HashTable::new(),
            hasher: RandomState::new(),
            lists: [List { oldest: NONE, newest: NONE, bytes: 0 }; 3],
            protected_most: capacity / 5 * 4,
            shielded_most: capacity / 2,
            shields: VecDeque::new(),
            shielded: 0,
            awaited: HashMap::new(),
            pinned: HashSet::new(),
            unsaved: VecDeque::new(),
        }
    }

    /// Makes room for what is known to come, so that nothing is copied meanwhile.
    pub fn reserve(&mut self, records: usize) {
        self.nodes.reserve_exact(records);
        let (nodes, hasher) = (&self.nodes, &self.hasher);
        self.places.reserve(records, |&place| hash_of(nodes, hasher, place));
    }

    pub fn bytes(&self) -> u64 {
        self.lists.iter().map(|list| list.bytes).sum()
    }

    /// Bytes that could go now.
    pub fn evictable(&mut self, now: Time) -> u64 {
        self.lapse(now);
        let listed = self.list(Segment::Probation).bytes + self.list(Segment::Protected).bytes;
        listed.saturating_sub(self.shielded)
    }

    /// New content, as just used at `now`. What is there already is only used.
    pub fn insert(&mut self, digest: &Digest, size: u64, now: Time) {
        match self.find(digest) {
            Some(_) => self.touch(digest, now),
            None => {
                let segment = self.segment_of(digest, false);
                let place = self.add(digest.clone(), size, now, now);
                self.link(place, segment);
                if self.awaited.remove(digest).is_some_and(|until| until > now) {
                    self.shield(digest, now);
                }
            }
        }
    }

    /// Content of an earlier run, older than everything that is here; to be called with the latest used first. What is
    /// here already stays as it is.
    pub fn restore(&mut self, size: u64, added: Time, last: LastUse) {
        if self.find(&last.digest).is_some() {
            return;
        }
        let fits = self.list(Segment::Protected).bytes + size <= self.protected_most;
        let segment = self.segment_of(&last.digest, last.protected && fits);
        let place = self.add(last.digest, size, added, last.at);
        self.link_oldest(place, segment);
    }

    fn segment_of(&self, digest: &Digest, protected: bool) -> Segment {
        match (self.pinned.contains(digest), protected) {
            (true, _) => Segment::Pinned,
            (false, true) => Segment::Protected,
            (false, false) => Segment::Probation,
        }
    }

    /// A node in no list yet.
    fn add(&mut self, digest: Digest, size: u64, entered: Time, used: Time) -> u32 {
        let hash = self.hasher.hash_one(&digest);
        let node = Node {
            digest,
            size,
            entered,
            used,
            saved: used,
            shielded_until: 0,
            older: NONE,
            newer: NONE,
            segment: Segment::Probation,
            unsaved: false,
        };
        let place = match self.free.pop() {
            Some(place) => {
                self.nodes[place as usize] = node;
                place
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        };
        let (nodes, hasher) = (&self.nodes, &self.hasher);
        self.places.insert_unique(hash, place, |&place| hash_of(nodes, hasher, place));
        place
    }

    /// Content that is gone or no longer cached; its size if it was known.
    pub fn remove(&mut self, digest: &Digest) -> Option<u64> {
        let hash = self.hasher.hash_one(digest);
        let nodes = &self.nodes;
        let place = self.places.find_entry(hash, |&place| nodes[place as usize].digest == *digest).ok()?.remove().0;
        self.unshield(place);
        self.unlink(place);
        let node = &mut self.nodes[place as usize];
        node.unsaved = false;
        self.free.push(place);
        Some(node.size)
    }

    pub fn touch(&mut self, digest: &Digest, now: Time) {
        let Some(place) = self.find(digest) else { return };
        let node = &mut self.nodes[place as usize];
        node.used = now.max(node.used);
        if node.used.saturating_sub(node.saved) >= SAVE_STEP && !node.unsaved {
            node.unsaved = true;
            self.unsaved.push_back(place);
        }
        let segment = match node.segment {
            Segment::Probation if now.saturating_sub(node.entered) >= CORRELATED => Segment::Protected,
            segment => segment,
        };
        self.unlink(place);
        self.link(place, segment);
        self.demote();
    }

    /// Keeps what a manifest served at `now` refers to from going for [`SHIELD`], also if it is yet to come.
    pub fn shield(&mut self, digest: &Digest, now: Time) {
        let until = now.saturating_add(SHIELD);
        let Some(place) = self.find(digest) else { return self.wait_for(digest, until, now) };
        let node = &mut self.nodes[place as usize];
        if node.segment == Segment::Pinned || node.shielded_until >= until {
            return;
        }
        if node.shielded_until == 0 {
            self.shielded += node.size;
        }
        node.shielded_until = until;
        self.shields.push_back((until, place));
        self.lapse(now);
    }

    fn wait_for(&mut self, digest: &Digest, until: Time, now: Time) {
        if self.awaited.len() >= AWAITED {
            self.awaited.retain(|_, until| *until > now);
        }
        if self.awaited.len() < AWAITED {
            self.awaited.insert(digest.clone(), until);
        }
    }

    /// The content that is kept whatever happens, here or not.
    pub fn pin(&mut self, pinned: HashSet<Digest>) {
        let before = std::mem::replace(&mut self.pinned, pinned);
        let changed: Vec<Digest> = before.symmetric_difference(&self.pinned).cloned().collect();
        for digest in changed {
            let Some(place) = self.find(&digest) else { continue };
            let segment = if self.pinned.contains(&digest) { Segment::Pinned } else { Segment::Probation };
            self.unshield(place);
            self.unlink(place);
            self.link(place, segment);
        }
    }

    pub fn is_pinned(&self, digest: &Digest) -> bool {
        self.pinned.contains(digest)
    }

    /// What should go first to free `bytes`, at most `limit` of it. It stays until it is removed.
    pub fn victims(&mut self, bytes: u64, limit: usize, now: Time) -> Vec<Digest> {
        self.lapse(now);
        let (mut victims, mut freed) = (Vec::new(), 0);
        for segment in [Segment::Probation, Segment::Protected] {
            let mut place = self.list(segment).oldest;
            while place != NONE && freed < bytes && victims.len() < limit {
                let node = &self.nodes[place as usize];
                if node.shielded_until == 0 {
                    victims.push(node.digest.clone());
                    freed += node.size;
                }
                place = node.newer;
            }
        }
        victims
    }

    /// Last uses that have moved since they were written down, at most `limit`.
    pub fn take_unsaved(&mut self, limit: usize) -> Vec<LastUse> {
        let mut taken = Vec::new();
        while taken.len() < limit
            && let Some(place) = self.unsaved.pop_front()
        {
            let node = &mut self.nodes[place as usize];
            if std::mem::take(&mut node.unsaved) {
                node.saved = node.used;
                let protected = node.segment == Segment::Protected;
                taken.push(LastUse { digest: node.digest.clone(), at: node.used, protected });
            }
        }
        taken
    }

    fn find(&self, digest: &Digest) -> Option<u32> {
        let hash = self.hasher.hash_one(digest);
        self.places.find(hash, |&place| self.nodes[place as usize].digest == *digest).copied()
    }

    fn list(&self, segment: Segment) -> &List {
        &self.lists[segment as usize]
    }

    /// Ends the shields whose time is over, and the oldest of too many.
    fn lapse(&mut self, now: Time) {
        while let Some(&(until, place)) = self.shields.front() {
            if until > now && self.shielded <= self.shielded_most {
                break;
            }
            self.shields.pop_front();
            // Another use may have prolonged it, or the place have been given to something else.
            if self.nodes[place as usize].shielded_until == until {
                self.unshield(place);
            }
        }
    }

    fn unshield(&mut self, place: u32) {
        let node = &mut self.nodes[place as usize];
        if std::mem::take(&mut node.shielded_until) != 0 {
            self.shielded -= node.size;
        }
    }

    /// Sends the least lately used of what is protected back on probation while there is too much of it.
    fn demote(&mut self) {
        while self.list(Segment::Protected).bytes > self.protected_most {
            let place = self.list(Segment::Protected).oldest;
            self.unlink(place);
            // The next use protects it again at once.
            self.nodes[place as usize].entered = 0;
            self.link(place, Segment::Probation);
        }
    }

    fn unlink(&mut self, place: u32) {
        let node = &self.nodes[place as usize];
        let (older, newer, segment, size) = (node.older, node.newer, node.segment, node.size);
        let list = &mut self.lists[segment as usize];
        list.bytes -= size;
        match older {
            NONE => list.oldest = newer,
            older => self.nodes[older as usize].newer = newer,
        }
        match newer {
            NONE => list.newest = older,
            newer => self.nodes[newer as usize].older = older,
        }
    }

    /// As the newest of a segment.
    fn link(&mut self, place: u32, segment: Segment) {
        let list = &mut self.lists[segment as usize];
        let older = std::mem::replace(&mut list.newest, place);
        if older == NONE {
            list.oldest = place;
        }
        let node = &mut self.nodes[place as usize];
        list.bytes += node.size;
        (node.older, node.newer, node.segment) = (older, NONE, segment);
        if older != NONE {
            self.nodes[older as usize].newer = place;
        }
    }

    fn link_oldest(&mut self, place: u32, segment: Segment) {
        let list = &mut self.lists[segment as usize];
        let newer = std::mem::replace(&mut list.oldest, place);
        if newer == NONE {
            list.newest = place;
        }
        let node = &mut self.nodes[place as usize];
        list.bytes += node.size;
        (node.older, node.newer, node.segment) = (NONE, newer, segment);
        if newer != NONE {
            self.nodes[newer as usize].older = place;
        }
    }
}

fn hash_of(nodes: &[Node], hasher: &RandomState, place: u32) -> u64 {
    hasher.hash_one(&nodes[place as usize].digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    const DAY: Time = 86_400;

    fn digest(n: u32) -> Digest {
        Digest::of(Algorithm::Sha256, &n.to_be_bytes())
    }

    fn with(capacity: u64, n: impl IntoIterator<Item = u32>) -> Segments {
        let mut segments = Segments::new(capacity);
        for n in n {
            segments.insert(&digest(n), 10, n);
        }
        segments
    }

    /// Everything in the order in which it would go.
    fn order(segments: &mut Segments, now: Time) -> Vec<Digest> {
        segments.victims(u64::MAX, usize::MAX, now)
    }

    fn digests(n: impl IntoIterator<Item = u32>) -> Vec<Digest> {
        n.into_iter().map(digest).collect()
    }

    #[test]
    fn the_least_lately_used_goes_first_and_only_as_much_as_is_asked_for() {
        let mut segments = with(1000, 0..5);
        segments.touch(&digest(0), 6);
        assert_eq!(segments.victims(25, 100, 7), digests([1, 2, 3]));
        assert_eq!(segments.victims(25, 2, 7), digests([1, 2]));
        assert_eq!(segments.remove(&digest(1)), Some(10));
        assert_eq!(segments.remove(&digest(1)), None);
        assert_eq!(order(&mut segments, 7), digests([2, 3, 4, 0]));
        assert_eq!(segments.bytes(), 40);
    }

    #[test]
    fn one_pass_over_many_does_not_flush_what_is_used_daily() {
        let mut segments = with(100, 0..4);
        for n in 0..4 {
            segments.touch(&digest(n), DAY);
        }
        for n in 100..1000 {
            segments.insert(&digest(n), 10, DAY + n);
            // Fifty nodes pull it at once: still one use.
            segments.touch(&digest(n), DAY + n + 5);
            for victim in segments.victims(segments.bytes().saturating_sub(100), 10, DAY + n + 5) {
                segments.remove(&victim);
            }
        }
        let left = order(&mut segments, 2 * DAY);
        assert!(digests(0..4).iter().all(|daily| left.contains(daily)), "{left:?}");
    }

    #[test]
    fn what_is_protected_is_at_most_four_fifths() {
        let mut segments = with(100, 0..10);
        for n in 0..10 {
            segments.touch(&digest(n), DAY + n);
        }
        assert_eq!(segments.list(Segment::Protected).bytes, 80);
        assert_eq!(
            order(&mut segments, DAY)[..3],
            digests([0, 1, 2]),
            "those on probation first, then by their last use"
        );
        segments.touch(&digest(0), DAY + 20);
        assert_eq!(order(&mut segments, DAY)[..3], digests([1, 2, 3]), "0 is protected again, and 2 has made room");
    }

    #[test]
    fn a_shield_holds_for_ten_minutes_and_for_at_most_half() {
        let mut segments = with(100, 0..8);
        for n in 0..4 {
            segments.shield(&digest(n), 10);
        }
        assert_eq!(segments.evictable(11), 40);
        assert_eq!(order(&mut segments, 11), digests(4..8));
        segments.shield(&digest(0), 300);
        assert_eq!(order(&mut segments, 10 + SHIELD), digests(1..8), "0 was served again meanwhile");
        assert_eq!(order(&mut segments, 300 + SHIELD), digests(0..8));
        for n in 0..8 {
            segments.shield(&digest(n), 1000 + n);
        }
        assert_eq!(order(&mut segments, 1010), digests(0..3), "five of eight are half of the capacity");
        for n in 3..8 {
            segments.remove(&digest(n));
        }
        assert_eq!((segments.shielded, segments.evictable(1010)), (0, 30));
        segments.insert(&digest(50), 10, 1020);
        assert_eq!(order(&mut segments, 1020), digests([0, 1, 2, 50]), "a place given anew has no shield");
    }

    #[test]
    fn what_comes_after_the_manifest_that_refers_to_it_is_shielded_too() {
        let mut segments = with(100, 0..2);
        segments.shield(&digest(8), 5);
        segments.shield(&digest(9), 5);
        segments.insert(&digest(8), 10, 100);
        segments.insert(&digest(9), 10, 5 + SHIELD);
        assert_eq!(order(&mut segments, 101), digests([0, 1, 9]), "9 came too late");
        assert_eq!(order(&mut segments, 100 + SHIELD), digests([0, 1, 8, 9]));
    }

    #[test]
    fn pinned_content_never_goes_also_when_it_comes_later() {
        let mut segments = with(100, 0..3);
        segments.shield(&digest(1), 5);
        segments.pin(HashSet::from([digest(1), digest(9)]));
        segments.insert(&digest(9), 10, 5);
        segments.touch(&digest(9), DAY);
        assert_eq!(order(&mut segments, DAY), digests([0, 2]));
        assert_eq!(segments.evictable(6), 20);
        segments.pin(HashSet::from([digest(9)]));
        assert_eq!(order(&mut segments, DAY), digests([0, 2, 1]));
    }

    #[test]
    fn last_uses_are_written_down_when_they_have_moved_and_restored_in_order() {
        let mut segments = with(1000, 0..3);
        segments.touch(&digest(0), 10);
        assert!(segments.take_unsaved(10).is_empty(), "moved by less than is worth a write");
        segments.touch(&digest(2), 1000);
        segments.touch(&digest(1), 2000);
        segments.touch(&digest(2), 3000);
        assert_eq!(segments.take_unsaved(1).len(), 1);
        segments.remove(&digest(1));
        assert!(segments.take_unsaved(10).is_empty(), "what is gone has no last use");
        let mut restored = Segments::new(1000);
        restored.insert(&digest(7), 10, 5000);
        for (n, at, protected) in [(2, 3000, true), (7, 200, false), (1, 20, false), (0, 10, false)] {
            restored.restore(10, 0, LastUse { digest: digest(n), at, protected });
        }
        assert_eq!(order(&mut restored, 5000), digests([0, 1, 7, 2]));
    }
}
