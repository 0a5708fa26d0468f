//! The order of eviction: a segmented LRU over bytes, in memory. It decides and does no I/O.
//!
//! New content is on *probation*. Content that is used again later than [`SAME_USE_SECONDS`] after it was stored is
//! *protected*; protected content takes up to four fifths of the capacity. If many nodes pull many images once, only content
//! on probation is evicted. *Pinned* content has its own list and is not evicted. The children of a manifest that was just
//! served are *shielded*. Shielded content takes up to half of the capacity. If it takes more, the oldest shields end.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use crate::oci::Digest;
use crate::store::clock::Time;
use crate::store::records::LastUse;

/// Uses within this time of the first one count as the same use, because many nodes pull an image at once.
pub const SAME_USE_SECONDS: u32 = 10 * 60;
/// How long the children of a served manifest are shielded from eviction.
pub const SHIELD_SECONDS: u32 = 10 * 60;
/// A last-use time is saved if it is at least ten minutes newer than the saved one.
const SAVE_STEP_SECONDS: u32 = 10 * 60;
/// Maximum number of children of served manifests that wait for storage and a shield.
const MAX_AWAITED: usize = 20_000;
/// The end of a list.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment {
    Probation,
    Protected,
    Pinned,
}

/// One piece of content, in one of the lists.
#[derive(Debug)]
struct Node {
    digest: Digest,
    size: u64,
    /// When it was stored; 0 after it was demoted from protected.
    entered: Time,
    used: Time,
    /// The last use that was saved.
    saved: Time,
    /// 0: not shielded.
    shielded_until: Time,
    older: u32,
    newer: u32,
    segment: Segment,
    /// Whether it is in the queue of last uses to save.
    unsaved: bool,
}

#[derive(Clone, Copy, Debug)]
struct List {
    oldest: u32,
    newest: u32,
    bytes: u64,
}

/// The cached content in its order of eviction.
#[derive(Debug)]
pub struct EvictionOrder {
    nodes: Vec<Node>,
    /// Unused places in `nodes`.
    free: Vec<u32>,
    /// The place of each digest in `nodes`.
    places: HashTable<u32>,
    hasher: RandomState,
    lists: [List; 3],
    max_protected_bytes: u64,
    max_shielded_bytes: u64,
    /// Ends of shields with the nodes, the oldest first. A prolonged shield has two entries; the later one counts.
    shields: VecDeque<(Time, u32)>,
    shielded_bytes: u64,
    /// Children of served manifests that are not stored yet, and until when they are shielded.
    awaited: HashMap<Digest, Time>,
    pinned: HashSet<Digest>,
    /// Nodes whose last use is to be saved.
    unsaved: VecDeque<u32>,
}

impl EvictionOrder {
    /// The empty order of a cache of `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            places: HashTable::new(),
            hasher: RandomState::new(),
            lists: [List { oldest: NONE, newest: NONE, bytes: 0 }; 3],
            max_protected_bytes: capacity / 5 * 4,
            max_shielded_bytes: capacity / 2,
            shields: VecDeque::new(),
            shielded_bytes: 0,
            awaited: HashMap::new(),
            pinned: HashSet::new(),
            unsaved: VecDeque::new(),
        }
    }

    /// Allocates memory for `records` more pieces of content, so that later inserts copy nothing.
    pub fn reserve(&mut self, records: usize) {
        self.nodes.reserve_exact(records);
        let (nodes, hasher) = (&self.nodes, &self.hasher);
        self.places.reserve(records, |&place| hash_of(nodes, hasher, place));
    }

    /// Bytes of all content, pinned content included.
    pub fn bytes(&self) -> u64 {
        self.lists.iter().map(|list| list.bytes).sum()
    }

    /// Bytes that could be evicted now.
    pub fn evictable(&mut self, now: Time) -> u64 {
        self.lapse(now);
        let listed = self.list(Segment::Probation).bytes + self.list(Segment::Protected).bytes;
        listed.saturating_sub(self.shielded_bytes)
    }

    /// Adds content as used at `now`. Content that is already in the order only counts as used.
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

    /// Adds content from the previous run at the old end. Call it from most to least recently used. Content that is already in
    /// the order stays as it is.
    pub fn restore(&mut self, size: u64, added: Time, last: LastUse) {
        if self.find(&last.digest).is_some() {
            return;
        }
        let fits = self.list(Segment::Protected).bytes + size <= self.max_protected_bytes;
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

    /// Adds a node that is in no list yet.
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

    /// Removes content that was deleted or is no longer cached. Returns its size, if it was in the order.
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

    /// Notes a use at `now`.
    pub fn touch(&mut self, digest: &Digest, now: Time) {
        let Some(place) = self.find(digest) else { return };
        let node = &mut self.nodes[place as usize];
        node.used = now.max(node.used);
        if node.used.saturating_sub(node.saved) >= SAVE_STEP_SECONDS && !node.unsaved {
            node.unsaved = true;
            self.unsaved.push_back(place);
        }
        let segment = match node.segment {
            Segment::Probation if now.saturating_sub(node.entered) >= SAME_USE_SECONDS => Segment::Protected,
            segment => segment,
        };
        self.unlink(place);
        self.link(place, segment);
        self.demote();
    }

    /// Shields a child for [`SHIELD_SECONDS`] after its manifest was served at `now`, even if the child is not stored yet.
    pub fn shield(&mut self, digest: &Digest, now: Time) {
        let until = now.saturating_add(SHIELD_SECONDS);
        let Some(place) = self.find(digest) else { return self.await_content(digest, until, now) };
        let node = &mut self.nodes[place as usize];
        if node.segment == Segment::Pinned || node.shielded_until >= until {
            return;
        }
        if node.shielded_until == 0 {
            self.shielded_bytes += node.size;
        }
        node.shielded_until = until;
        self.shields.push_back((until, place));
        self.lapse(now);
    }

    fn await_content(&mut self, digest: &Digest, until: Time, now: Time) {
        if self.awaited.len() >= MAX_AWAITED {
            self.awaited.retain(|_, until| *until > now);
        }
        if self.awaited.len() < MAX_AWAITED {
            self.awaited.insert(digest.clone(), until);
        }
    }

    /// Replaces the set of pinned content, stored or not.
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

    /// Whether the digest is pinned, stored or not.
    pub fn is_pinned(&self, digest: &Digest) -> bool {
        self.pinned.contains(digest)
    }

    /// Returns the content to evict first to free `bytes`, at most `limit` pieces. It stays in the order until it is removed.
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

    /// Ends the shields of at most `limit` pieces of content, the oldest first.
    pub fn end_oldest_shields(&mut self, limit: usize) {
        for _ in 0..limit {
            let Some((until, place)) = self.shields.pop_front() else { return };
            self.end_shield(until, place);
        }
    }

    /// Takes last-use times that have changed since they were saved, at most `limit`. They count as saved from now on.
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

    /// Ends the shields whose time is over. While too many bytes are shielded, ends the oldest shields, too.
    fn lapse(&mut self, now: Time) {
        while let Some(&(until, place)) = self.shields.front() {
            if until > now && self.shielded_bytes <= self.max_shielded_bytes {
                break;
            }
            self.shields.pop_front();
            self.end_shield(until, place);
        }
    }

    /// The shield may have been prolonged since, or the place may hold other content now.
    fn end_shield(&mut self, until: Time, place: u32) {
        if self.nodes[place as usize].shielded_until == until {
            self.unshield(place);
        }
    }

    fn unshield(&mut self, place: u32) {
        let node = &mut self.nodes[place as usize];
        if std::mem::take(&mut node.shielded_until) != 0 {
            self.shielded_bytes -= node.size;
        }
    }

    /// Puts the least recently used protected content back on probation while there is too much of it.
    fn demote(&mut self) {
        while self.list(Segment::Protected).bytes > self.max_protected_bytes {
            let place = self.list(Segment::Protected).oldest;
            self.unlink(place);
            // 0, so that the next use protects it again at once.
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

    /// Links a node as the newest of a segment.
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

    /// Links a node as the oldest of a segment.
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

    fn with(capacity: u64, n: impl IntoIterator<Item = u32>) -> EvictionOrder {
        let mut order = EvictionOrder::new(capacity);
        for n in n {
            order.insert(&digest(n), 10, n);
        }
        order
    }

    /// Everything in the order in which it would be evicted.
    fn victims(order: &mut EvictionOrder, now: Time) -> Vec<Digest> {
        order.victims(u64::MAX, usize::MAX, now)
    }

    fn digests(n: impl IntoIterator<Item = u32>) -> Vec<Digest> {
        n.into_iter().map(digest).collect()
    }

    #[test]
    fn the_least_recently_used_is_evicted_first_and_no_more_than_needed() {
        let mut order = with(1000, 0..5);
        order.touch(&digest(0), 6);
        assert_eq!(order.victims(25, 100, 7), digests([1, 2, 3]));
        assert_eq!(order.victims(25, 2, 7), digests([1, 2]));
        assert_eq!(order.remove(&digest(1)), Some(10));
        assert_eq!(order.remove(&digest(1)), None);
        assert_eq!(victims(&mut order, 7), digests([2, 3, 4, 0]));
        assert_eq!(order.bytes(), 40);
    }

    #[test]
    fn one_pass_over_many_images_spares_content_used_daily() {
        let mut order = with(100, 0..4);
        for n in 0..4 {
            order.touch(&digest(n), DAY);
        }
        for n in 100..1000 {
            order.insert(&digest(n), 10, DAY + n);
            // Many nodes pull it at once: still one use.
            order.touch(&digest(n), DAY + n + 5);
            for victim in order.victims(order.bytes().saturating_sub(100), 10, DAY + n + 5) {
                order.remove(&victim);
            }
        }
        let left = victims(&mut order, 2 * DAY);
        assert!(digests(0..4).iter().all(|daily| left.contains(daily)), "{left:?}");
    }

    #[test]
    fn protected_content_takes_at_most_four_fifths() {
        let mut order = with(100, 0..10);
        for n in 0..10 {
            order.touch(&digest(n), DAY + n);
        }
        assert_eq!(order.list(Segment::Protected).bytes, 80);
        assert_eq!(victims(&mut order, DAY)[..3], digests([0, 1, 2]), "content on probation first, then by last use");
        order.touch(&digest(0), DAY + 20);
        assert_eq!(
            victims(&mut order, DAY)[..3],
            digests([1, 2, 3]),
            "0 is protected again, and 2 is on probation instead"
        );
    }

    #[test]
    fn a_shield_lasts_ten_minutes_and_covers_at_most_half() {
        let mut order = with(100, 0..8);
        for n in 0..4 {
            order.shield(&digest(n), 10);
        }
        assert_eq!(order.evictable(11), 40);
        assert_eq!(victims(&mut order, 11), digests(4..8));
        order.shield(&digest(0), 300);
        assert_eq!(victims(&mut order, 10 + SHIELD_SECONDS), digests(1..8), "0 was served again in between");
        assert_eq!(victims(&mut order, 300 + SHIELD_SECONDS), digests(0..8));
        for n in 0..8 {
            order.shield(&digest(n), 1000 + n);
        }
        assert_eq!(victims(&mut order, 1010), digests(0..3), "five of eight are half of the capacity");
        for n in 3..8 {
            order.remove(&digest(n));
        }
        assert_eq!((order.shielded_bytes, order.evictable(1010)), (0, 30));
        order.insert(&digest(50), 10, 1020);
        assert_eq!(victims(&mut order, 1020), digests([0, 1, 2, 50]), "a reused place has no shield");
    }

    #[test]
    fn content_stored_after_its_manifest_was_served_is_shielded() {
        let mut order = with(100, 0..2);
        order.shield(&digest(8), 5);
        order.shield(&digest(9), 5);
        order.insert(&digest(8), 10, 100);
        order.insert(&digest(9), 10, 5 + SHIELD_SECONDS);
        assert_eq!(victims(&mut order, 101), digests([0, 1, 9]), "9 was stored too late");
        assert_eq!(victims(&mut order, 100 + SHIELD_SECONDS), digests([0, 1, 8, 9]));
    }

    #[test]
    fn pinned_content_is_never_evicted_even_if_stored_later() {
        let mut order = with(100, 0..3);
        order.shield(&digest(1), 5);
        order.pin(HashSet::from([digest(1), digest(9)]));
        order.insert(&digest(9), 10, 5);
        order.touch(&digest(9), DAY);
        assert_eq!(victims(&mut order, DAY), digests([0, 2]));
        assert_eq!(order.evictable(6), 20);
        order.pin(HashSet::from([digest(9)]));
        assert_eq!(victims(&mut order, DAY), digests([0, 2, 1]));
    }

    #[test]
    fn last_uses_are_saved_when_moved_and_restored_in_order() {
        let mut order = with(1000, 0..3);
        order.touch(&digest(0), 10);
        assert!(order.take_unsaved(10).is_empty(), "it moved by less than a step");
        order.touch(&digest(2), 1000);
        order.touch(&digest(1), 2000);
        order.touch(&digest(2), 3000);
        assert_eq!(order.take_unsaved(1).len(), 1);
        order.remove(&digest(1));
        assert!(order.take_unsaved(10).is_empty(), "removed content has no last use");
        let mut restored = EvictionOrder::new(1000);
        restored.insert(&digest(7), 10, 5000);
        for (n, at, protected) in [(2, 3000, true), (7, 200, false), (1, 20, false), (0, 10, false)] {
            restored.restore(10, 0, LastUse { digest: digest(n), at, protected });
        }
        assert_eq!(victims(&mut restored, 5000), digests([0, 1, 7, 2]));
    }
}
