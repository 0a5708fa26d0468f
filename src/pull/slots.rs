//! Limits the number of concurrent transfers, and selects the next one of those that wait.
//!
//! There is a cap for each upstream and one for all of them. Waiting transfers queue by repository, and repositories
//! take turns: an image of a hundred layers delays another image by one layer, not by a hundred. Within a repository
//! small blobs go first, because a client needs the config before the layers. One of every four slots is reserved for
//! small blobs, so that large layers never delay a config.
//!
//! A quarter of each cap is *withheld* from repositories that already run a transfer of the same kind. So the transfers
//! of a few repositories that hang do not take all slots, and those of another repository still run.
//!
//! An *extra* transfer fetches a part of a blob beside the first transfer of its fill. It gets a slot only if no fill of
//! its upstream waits. If a fill comes later and finds no slot, an extra transfer is *recalled*: its owner ends it soon.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::oci::{RepoId, Scope};

/// Blobs up to this size are small: configs, signatures, and layers that cost less than the request for them.
const MAX_SMALL_BYTES: u64 = 1 << 20;
/// One of every four slots is reserved for small blobs; at least one slot, if the cap is more than one.
const SLOTS_PER_SMALL_SLOT: usize = 4;

/// One of every four slots is withheld from repositories that already run a transfer of the same kind; at least one, if
/// there is more than one.
const SLOTS_PER_WITHHELD_SLOT: usize = 4;

/// Clones share the slots.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    all: Lane,
    upstreams: HashMap<Scope, Lane>,
    /// Repositories with waiting transfers; the first one is next.
    order: VecDeque<RepoId>,
    queues: HashMap<RepoId, Queue>,
    /// The running transfers of each repository that has some.
    running: HashMap<RepoId, Running>,
    /// The running extra transfers, in the order in which they began.
    extras: Vec<Extra>,
    tickets: u64,
}

/// What a slot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A fill of a small blob.
    Small,
    /// A fill of a large blob.
    Large,
    /// A part of a blob whose fill runs. It counts as large.
    Extra,
}

/// A running extra transfer.
#[derive(Debug)]
struct Extra {
    number: u64,
    repo: RepoId,
    recalled: CancellationToken,
}

/// A cap, and the running transfers that count towards it.
#[derive(Debug)]
struct Lane {
    cap: usize,
    running: Running,
}

/// A number of running transfers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Running {
    all: usize,
    /// The running transfers of large blobs, which `all` includes.
    large: usize,
}

/// The waiting transfers of one repository, each kind in order of arrival.
#[derive(Debug, Default)]
struct Queue {
    small: VecDeque<Ticket>,
    large: VecDeque<Ticket>,
    extra: VecDeque<Ticket>,
}

#[derive(Debug)]
struct Ticket {
    number: u64,
    called: oneshot::Sender<()>,
    recalled: CancellationToken,
}

/// A waiting request or a granted slot. Drop withdraws the request or releases the slot.
#[derive(Debug)]
pub(super) struct Turn {
    slots: Slots,
    repo: RepoId,
    kind: Kind,
    number: u64,
    /// Receives the slot; `None` once the slot is granted.
    call: Option<oneshot::Receiver<()>>,
    recalled: CancellationToken,
}

impl Slots {
    /// Allows at most `cap` transfers, and at most the upstream's own limit for each upstream.
    pub(super) fn new(cap: usize, upstreams: impl IntoIterator<Item = (Scope, usize)>) -> Self {
        let upstreams = upstreams.into_iter().map(|(scope, cap)| (scope, Lane::new(cap))).collect();
        let state = State {
            all: Lane::new(cap),
            upstreams,
            order: VecDeque::new(),
            queues: HashMap::new(),
            running: HashMap::new(),
            extras: Vec::new(),
            tickets: 0,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Requests a slot for a blob of `size` bytes. The turn is a slot at once if one is free. An unknown size counts as large.
    pub(super) fn request(&self, repo: &RepoId, size: Option<u64>) -> Turn {
        let is_small = size.is_some_and(|size| size <= MAX_SMALL_BYTES);
        self.enter(repo, if is_small { Kind::Small } else { Kind::Large })
    }

    /// Requests a slot for an extra transfer. Its owner must end the transfer when the turn is recalled.
    pub(super) fn request_extra(&self, repo: &RepoId) -> Turn {
        self.enter(repo, Kind::Extra)
    }

    fn enter(&self, repo: &RepoId, kind: Kind) -> Turn {
        let (called, call) = oneshot::channel();
        let recalled = CancellationToken::new();
        let mut state = self.state.lock();
        state.tickets += 1;
        let number = state.tickets;
        state.enqueue(repo, kind, Ticket { number, called, recalled: recalled.clone() });
        state.call_next();
        drop(state);
        let mut turn = Turn { slots: self.clone(), repo: repo.clone(), kind, number, call: Some(call), recalled };
        turn.poll();
        turn
    }

    /// Returns the number of waiting fills that could start when a transfer of this upstream ends.
    pub(super) fn waiting_for(&self, scope: &Scope) -> usize {
        let state = self.state.lock();
        let all_taken = state.all.has_only_withheld_slots();
        state.waiting_fills(|repo| all_taken || repo.scope == *scope)
    }
}

impl State {
    fn enqueue(&mut self, repo: &RepoId, kind: Kind, ticket: Ticket) {
        if !self.queues.contains_key(repo) {
            self.order.push_back(repo.clone());
        }
        self.queues.entry(repo.clone()).or_default().of(kind).push_back(ticket);
    }

    /// Gives free slots to waiting transfers, one repository after the other. Recalls extra transfers for the fills
    /// that find none.
    fn call_next(&mut self) {
        while let Some((place, kind)) = self.next() {
            let Some(repo) = self.order.remove(place) else { return };
            let queue = self.queues.entry(repo.clone()).or_default();
            let ticket = queue.of(kind).pop_front();
            if queue.is_empty() {
                self.queues.remove(&repo);
            } else {
                self.order.push_back(repo.clone());
            }
            let Some(Ticket { number, called, recalled }) = ticket else { return };
            if kind == Kind::Extra {
                self.extras.push(Extra { number, repo: repo.clone(), recalled });
            }
            self.all.running.begin(kind);
            if let Some(lane) = self.upstreams.get_mut(&repo.scope) {
                lane.running.begin(kind);
            }
            self.running.entry(repo).or_default().begin(kind);
            // If the receiver is being dropped, its `drop` releases the slot.
            let _ = called.send(());
        }
        self.recall_extras();
    }

    /// Returns the position of the first repository with a runnable fill and its kind; if there is none, that of the
    /// first one with a runnable extra transfer.
    fn next(&self) -> Option<(usize, Kind)> {
        let may_run = |repo: &RepoId, kind| {
            let (lane, own) = (self.upstreams.get(&repo.scope), self.running.get(repo).copied().unwrap_or_default());
            let fits = |lane: &Lane| lane.has_room(kind) && lane.admits_repository(own, kind);
            fits(&self.all) && lane.is_none_or(fits)
        };
        let first = |kinds: &[Kind]| {
            self.order.iter().enumerate().find_map(|(place, repo)| {
                let queue = self.queues.get(repo)?;
                let runnable = |kind: &&Kind| !queue.waiting(**kind).is_empty() && may_run(repo, **kind);
                kinds.iter().find(runnable).map(|kind| (place, *kind))
            })
        };
        first(&[Kind::Small, Kind::Large]).or_else(|| {
            let (place, kind) = first(&[Kind::Extra])?;
            let scope = &self.order.get(place)?.scope;
            (self.waiting_fills(|repo| repo.scope == *scope) == 0).then_some((place, kind))
        })
    }

    /// The number of waiting fills of these repositories.
    fn waiting_fills(&self, of: impl Fn(&RepoId) -> bool) -> usize {
        let queues = self.queues.iter().filter(|(repo, _)| of(repo));
        queues.map(|(_, queue)| queue.small.len() + queue.large.len()).sum()
    }

    /// Recalls an extra transfer for each waiting fill, the youngest first. Those that were recalled before and have
    /// not ended yet count.
    fn recall_extras(&self) {
        if self.extras.is_empty() {
            return;
        }
        let all_taken = self.all.has_only_withheld_slots();
        for (repo, _) in self.queues.iter().filter(|(_, queue)| queue.has_fills()) {
            let helps = |extra: &&Extra| all_taken || extra.repo.scope == repo.scope;
            let waiting = self.waiting_fills(|other| all_taken || other.scope == repo.scope);
            let recalled = self.extras.iter().filter(helps).filter(|extra| extra.recalled.is_cancelled()).count();
            let others = self.extras.iter().rev().filter(helps).filter(|extra| !extra.recalled.is_cancelled());
            others.take(waiting.saturating_sub(recalled)).for_each(|extra| extra.recalled.cancel());
        }
    }

    /// Removes a waiting ticket. Returns false if it is no longer waiting, because its slot was granted.
    fn withdraw(&mut self, repo: &RepoId, kind: Kind, number: u64) -> bool {
        let Some(queue) = self.queues.get_mut(repo) else { return false };
        let waiting = queue.of(kind);
        let before = waiting.len();
        waiting.retain(|ticket| ticket.number != number);
        let found = waiting.len() < before;
        if queue.is_empty() {
            self.queues.remove(repo);
            self.order.retain(|other| other != repo);
        }
        found
    }

    fn release(&mut self, repo: &RepoId, kind: Kind, number: u64) {
        self.extras.retain(|extra| extra.number != number);
        self.all.running.end(kind);
        if let Some(lane) = self.upstreams.get_mut(&repo.scope) {
            lane.running.end(kind);
        }
        if let Some(own) = self.running.get_mut(repo) {
            own.end(kind);
            if own.all == 0 {
                self.running.remove(repo);
            }
        }
        self.call_next();
    }
}

impl Lane {
    fn new(cap: usize) -> Self {
        Self { cap, running: Running::default() }
    }

    /// Whether a repository that runs a large transfer cannot run another one.
    fn has_only_withheld_slots(&self) -> bool {
        let Running { all, large } = self.running;
        all + withheld(self.cap) >= self.cap || large + withheld(self.large_cap()) >= self.large_cap()
    }

    fn has_room(&self, kind: Kind) -> bool {
        self.running.all < self.cap && (kind == Kind::Small || self.running.large < self.large_cap())
    }

    /// Whether a repository with these running transfers may run another one, if there is room. The first of a kind needs
    /// no more than a free slot. Further ones leave the withheld slots free.
    fn admits_repository(&self, own: Running, kind: Kind) -> bool {
        if kind == Kind::Small {
            own.all == own.large || self.running.all + withheld(self.cap) < self.cap
        } else {
            own.large == 0 || !self.has_only_withheld_slots()
        }
    }

    fn large_cap(&self) -> usize {
        let reserved = if self.cap > 1 { (self.cap / SLOTS_PER_SMALL_SLOT).max(1) } else { 0 };
        self.cap - reserved
    }
}

fn withheld(cap: usize) -> usize {
    if cap > 1 { (cap / SLOTS_PER_WITHHELD_SLOT).max(1) } else { 0 }
}

impl Running {
    fn begin(&mut self, kind: Kind) {
        self.all += 1;
        self.large += usize::from(kind != Kind::Small);
    }

    fn end(&mut self, kind: Kind) {
        self.all -= 1;
        self.large -= usize::from(kind != Kind::Small);
    }
}

impl Queue {
    fn of(&mut self, kind: Kind) -> &mut VecDeque<Ticket> {
        match kind {
            Kind::Small => &mut self.small,
            Kind::Large => &mut self.large,
            Kind::Extra => &mut self.extra,
        }
    }

    fn waiting(&self, kind: Kind) -> &VecDeque<Ticket> {
        match kind {
            Kind::Small => &self.small,
            Kind::Large => &self.large,
            Kind::Extra => &self.extra,
        }
    }

    fn has_fills(&self) -> bool {
        !(self.small.is_empty() && self.large.is_empty())
    }

    fn is_empty(&self) -> bool {
        !self.has_fills() && self.extra.is_empty()
    }
}

impl Turn {
    pub(super) fn is_slot(&self) -> bool {
        self.call.is_none()
    }

    /// Waits until the slot is granted.
    pub(super) async fn wait(&mut self) {
        if let Some(call) = &mut self.call {
            // Only this turn removes its ticket, so the sender cannot be dropped before it sends.
            let _ = call.await;
            self.call = None;
        }
    }

    /// Waits until the slot of an extra transfer is needed by a fill.
    pub(super) async fn recalled(&self) {
        self.recalled.cancelled().await;
    }

    fn poll(&mut self) {
        if self.call.as_mut().is_some_and(|call| call.try_recv().is_ok()) {
            self.call = None;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.slots.state.lock();
        if !state.withdraw(&self.repo, self.kind, self.number) {
            state.release(&self.repo, self.kind, self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: Option<u64> = Some(MAX_SMALL_BYTES + 1);
    const SMALL: Option<u64> = Some(MAX_SMALL_BYTES);

    fn scope(upstream: &str) -> Scope {
        Scope::Upstream(upstream.into())
    }

    fn repo(upstream: &str, name: &str) -> RepoId {
        RepoId::new(scope(upstream), name.parse().unwrap())
    }

    fn slots(cap: usize, cap_of_each: usize) -> Slots {
        Slots::new(cap, [(scope("a.io"), cap_of_each), (scope("b.io"), cap_of_each)])
    }

    /// Returns the positions of the turns whose slot is granted.
    fn called(turns: &mut [Turn]) -> Vec<usize> {
        turns.iter_mut().for_each(Turn::poll);
        turns.iter().enumerate().filter(|(_, turn)| turn.is_slot()).map(|(place, _)| place).collect()
    }

    /// Ends one running transfer after the other. Returns the order in which they ran.
    fn order(mut turns: Vec<(usize, Turn)>) -> Vec<usize> {
        let mut order = Vec::new();
        while !turns.is_empty() {
            turns.iter_mut().for_each(|(_, turn)| turn.poll());
            let running = turns.iter().position(|(_, turn)| turn.is_slot()).expect("one runs");
            order.push(turns.remove(running).0);
        }
        order
    }

    #[test]
    fn no_more_run_than_the_caps_of_an_upstream_and_of_all_allow() {
        let slots = slots(7, 4);
        let repos: Vec<_> =
            ["a.io", "b.io"].iter().flat_map(|up| ["w", "x", "y", "z"].map(|name| repo(up, name))).collect();
        let mut turns: Vec<_> = repos.iter().map(|repo| slots.request(repo, LARGE)).collect();
        // One slot of four is reserved for small blobs: three large ones of each upstream, six in all.
        assert_eq!(called(&mut turns), [0, 1, 2, 4, 5, 6]);
        assert_eq!(
            (slots.waiting_for(&scope("a.io")), slots.waiting_for(&scope("b.io"))),
            (2, 2),
            "all slots are taken"
        );
        drop(turns.remove(0));
        assert_eq!(called(&mut turns), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn repositories_take_turns_and_each_is_served_in_order_of_arrival() {
        let slots = slots(64, 1);
        let (x, y, z) = (repo("a.io", "x"), repo("a.io", "y"), repo("a.io", "z"));
        let asked = [&x, &x, &x, &x, &y, &y, &z];
        let turns = asked.iter().enumerate().map(|(place, repo)| (place, slots.request(repo, LARGE))).collect();
        assert_eq!(order(turns), [0, 1, 4, 6, 2, 5, 3]);
        assert!(slots.state.lock().order.is_empty() && slots.state.lock().queues.is_empty());
    }

    #[test]
    fn small_blobs_go_first_in_their_repository_and_have_reserved_slots() {
        let slots = slots(64, 4);
        let x = repo("a.io", "x");
        let mut layers: Vec<_> = (0..5).map(|_| slots.request(&x, LARGE)).collect();
        assert_eq!(called(&mut layers), [0, 1], "of three for large blobs, one is for another repository");
        let mut configs = vec![slots.request(&x, SMALL), slots.request(&x, SMALL), slots.request(&x, None)];
        assert_eq!(called(&mut configs), [0], "an unknown size counts as large");
        drop(layers.remove(0));
        assert_eq!((called(&mut layers), called(&mut configs)), (vec![0], vec![0, 1]));
    }

    #[test]
    fn one_repository_leaves_slots_for_the_others() {
        let slots = slots(64, 16);
        let (hanging, other) = (repo("a.io", "hanging"), repo("a.io", "other"));
        let mut large: Vec<_> = (0..20).map(|_| slots.request(&hanging, LARGE)).collect();
        assert_eq!(called(&mut large).len(), 9, "12 are for large blobs, and three of them for other repositories");
        let mut small: Vec<_> = (0..20).map(|_| slots.request(&hanging, SMALL)).collect();
        assert_eq!(called(&mut small).len(), 3, "12 in all");
        assert!(slots.request(&other, LARGE).is_slot());
        assert!(slots.request(&other, SMALL).is_slot());
        drop(large.remove(0));
        assert_eq!((called(&mut large).len(), called(&mut small).len()), (8, 4), "small ones go first");
    }

    #[test]
    fn hanging_repositories_leave_a_slot_for_another_one() {
        // The limit of all transfers, of each upstream, and the number of repositories that hang.
        let table = [(64, 16, 1), (64, 16, 2), (64, 16, 3), (64, 4, 1), (64, 3, 1), (64, 8, 1), (4, 16, 1), (8, 16, 1)];
        for (cap, cap_of_each, hanging) in table {
            let slots = slots(cap, cap_of_each);
            let names: Vec<_> = (0..hanging).map(|n| repo("a.io", &format!("hanging{n}"))).collect();
            let taken: Vec<_> = names.iter().flat_map(|name| (0..16).map(|_| slots.request(name, LARGE))).collect();
            let what = format!("{cap} {cap_of_each} {hanging}");
            assert!(taken.iter().any(Turn::is_slot), "{what}");
            for size in [LARGE, SMALL, None] {
                assert!(slots.request(&repo("a.io", "other"), size).is_slot(), "{what}: {size:?}");
            }
        }
    }

    #[test]
    fn hanging_small_blobs_leave_a_slot_for_another_repository() {
        for (cap, hanging) in [(2, 1), (3, 1), (4, 1), (8, 2), (16, 2), (16, 4)] {
            let slots = slots(64, cap);
            let names: Vec<_> = (0..hanging).map(|n| repo("a.io", &format!("hanging{n}"))).collect();
            let taken: Vec<_> = names.iter().flat_map(|name| (0..16).map(|_| slots.request(name, SMALL))).collect();
            assert!(taken.iter().any(Turn::is_slot));
            for size in [LARGE, SMALL] {
                assert!(slots.request(&repo("a.io", "other"), size).is_slot(), "{cap} {hanging} {size:?}");
            }
        }
    }

    #[test]
    fn a_single_slot_is_for_small_and_large_blobs() {
        let slots = slots(1, 1);
        let mut turns = vec![slots.request(&repo("a.io", "x"), LARGE), slots.request(&repo("b.io", "x"), SMALL)];
        assert_eq!(called(&mut turns), [0]);
        drop(turns.remove(0));
        assert_eq!(called(&mut turns), [0]);
    }

    #[test]
    fn a_dropped_turn_gives_back_its_place_or_its_slot_never_both() {
        let slots = slots(64, 1);
        let (x, y) = (repo("a.io", "x"), repo("a.io", "y"));
        let mut turns = vec![slots.request(&x, LARGE), slots.request(&x, LARGE), slots.request(&y, LARGE)];
        drop(turns.remove(1));
        assert_eq!(called(&mut turns), [0]);
        drop(turns.remove(0));
        assert_eq!(called(&mut turns), [0]);
        // Dropped after it was called and before it noticed.
        let late = slots.request(&x, LARGE);
        drop(turns);
        drop(late);
        assert!(slots.request(&x, LARGE).is_slot());
        let state = slots.state.lock();
        assert_eq!((state.all.running, state.running.len()), (Running::default(), 0));
    }

    #[tokio::test]
    async fn a_waiting_turn_becomes_a_slot_when_one_is_freed() {
        let slots = slots(64, 1);
        let (first, mut second) = (slots.request(&repo("a.io", "x"), None), slots.request(&repo("a.io", "y"), None));
        assert!(first.is_slot() && !second.is_slot());
        let ((), ()) = tokio::join!(second.wait(), async { drop(first) });
        assert!(second.is_slot());
    }

    #[test]
    fn extra_transfers_give_way_to_fills() {
        let slots = slots(64, 4);
        let (x, y) = (repo("a.io", "x"), repo("a.io", "y"));
        let fill = slots.request(&x, LARGE);
        let mut extras: Vec<_> = (0..3).map(|_| slots.request_extra(&x)).collect();
        assert_eq!(called(&mut extras), [0], "of three slots for large blobs, one is for another repository");
        assert_eq!(slots.waiting_for(&scope("a.io")), 0, "no fill waits");
        let mut second = vec![slots.request(&x, LARGE)];
        assert!(called(&mut second).is_empty() && slots.waiting_for(&scope("a.io")) == 1);
        assert!(extras[0].recalled.is_cancelled() && !extras[1].recalled.is_cancelled());
        drop(extras.remove(0));
        assert_eq!((called(&mut second), called(&mut extras)), (vec![0], vec![]), "the fill goes first");
        // Another repository takes what is left, and extra transfers wait for the end of a fill.
        let third = slots.request(&y, LARGE);
        assert!(third.is_slot());
        drop((fill, third));
        assert_eq!(called(&mut extras), [0]);
        assert!(!extras[0].recalled.is_cancelled());
        drop((extras, second));
        let state = slots.state.lock();
        assert!(state.extras.is_empty() && state.running.is_empty() && state.all.running == Running::default());
    }

    #[test]
    fn as_many_extra_transfers_are_recalled_as_fills_wait() {
        let slots = slots(4, 64);
        let (x, other) = (repo("a.io", "x"), repo("b.io", "y"));
        let _fill = slots.request(&x, LARGE);
        let extras: Vec<_> = (0..5).map(|_| slots.request_extra(&x)).collect();
        let running = extras.iter().filter(|extra| extra.call.is_none()).count();
        let recalled = || extras.iter().filter(|extra| extra.recalled.is_cancelled()).count();
        assert!(running >= 1 && recalled() == 0);
        // The slots of all upstreams are taken, so a fill of another upstream recalls as well.
        let waiting: Vec<_> = (0..3).map(|_| slots.request(&other, LARGE)).collect();
        let granted = waiting.iter().filter(|turn| turn.is_slot()).count();
        assert_eq!(recalled(), running.min(3 - granted));
    }
}
