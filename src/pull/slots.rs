//! How many fills run at once, and whose turn it is where more are wanted.
//!
//! There is a cap for each upstream and one for all of them. Who waits does so by repository: repositories take turns, so an
//! image of a hundred layers does not keep another one waiting for more than one of them; within a repository the small
//! blobs go first, for a config is worth nothing later than its layers. A part of either cap is for small blobs alone, so
//! that no number of gigabyte layers keeps a config waiting.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::oci::{RepoId, Scope};

/// Blobs up to this many bytes are small: configs, signatures, and layers that cost less than asking for them.
const SMALL: u64 = 1 << 20;
/// One slot of this many is for small blobs.
const SMALL_SHARE: usize = 4;

/// Clones share the slots.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    all: Lane,
    upstreams: HashMap<Scope, Lane>,
    /// Repositories for which somebody waits, the one that is next first.
    order: VecDeque<RepoId>,
    queues: HashMap<RepoId, Queue>,
    tickets: u64,
}

/// A cap and what runs under it.
#[derive(Debug)]
struct Lane {
    most: usize,
    running: usize,
    /// Of those that run.
    large: usize,
}

/// Who waits for one repository, each kind in the order in which they came.
#[derive(Debug, Default)]
struct Queue {
    small: VecDeque<Ticket>,
    large: VecDeque<Ticket>,
}

#[derive(Debug)]
struct Ticket {
    number: u64,
    called: oneshot::Sender<()>,
}

/// A place in the queue, and once it was called, a slot; either is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    slots: Slots,
    repo: RepoId,
    small: bool,
    number: u64,
    /// `None` once it was called.
    call: Option<oneshot::Receiver<()>>,
}

impl Slots {
    /// At most `most` in all, and of each upstream what stands with it.
    pub(super) fn new(most: usize, upstreams: impl IntoIterator<Item = (Scope, usize)>) -> Self {
        let upstreams = upstreams.into_iter().map(|(scope, most)| (scope, Lane::new(most))).collect();
        let state =
            State { all: Lane::new(most), upstreams, order: VecDeque::new(), queues: HashMap::new(), tickets: 0 };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// A slot, or a place in the queue, for a blob of `size` bytes, if that is known.
    pub(super) fn ask(&self, repo: &RepoId, size: Option<u64>) -> Turn {
        let small = size.is_some_and(|size| size <= SMALL);
        let (called, call) = oneshot::channel();
        let mut state = self.state.lock();
        state.tickets += 1;
        let number = state.tickets;
        state.enqueue(repo, small, Ticket { number, called });
        state.call_next();
        drop(state);
        let mut turn = Turn { slots: self.clone(), repo: repo.clone(), small, number, call: Some(call) };
        turn.look();
        turn
    }

    /// How many wait for what a fill of this upstream would free by ending.
    pub(super) fn waiting_for(&self, scope: &Scope) -> usize {
        let state = self.state.lock();
        let short = state.all.is_full();
        let queues = state.queues.iter().filter(|(repo, _)| short || repo.scope == *scope);
        queues.map(|(_, queue)| queue.small.len() + queue.large.len()).sum()
    }
}

impl State {
    fn enqueue(&mut self, repo: &RepoId, small: bool, ticket: Ticket) {
        if !self.queues.contains_key(repo) {
            self.order.push_back(repo.clone());
        }
        self.queues.entry(repo.clone()).or_default().of(small).push_back(ticket);
    }

    /// Calls whoever may run now, a repository after the other.
    fn call_next(&mut self) {
        while let Some((place, small)) = self.next() {
            let Some(repo) = self.order.remove(place) else { return };
            let queue = self.queues.entry(repo.clone()).or_default();
            if let Some(ticket) = queue.of(small).pop_front() {
                // Who has left meanwhile waits for the lock, to give back what this counts.
                let _ = ticket.called.send(());
            }
            if queue.is_empty() {
                self.queues.remove(&repo);
            } else {
                self.order.push_back(repo.clone());
            }
            self.all.begin(small);
            if let Some(lane) = self.upstreams.get_mut(&repo.scope) {
                lane.begin(small);
            }
        }
    }

    /// The first place in the order from which somebody may run, and whether it is a small one.
    fn next(&self) -> Option<(usize, bool)> {
        let may_run = |repo: &RepoId, small| {
            let lane = self.upstreams.get(&repo.scope);
            self.all.has_room(small) && lane.is_none_or(|lane| lane.has_room(small))
        };
        self.order.iter().enumerate().find_map(|(place, repo)| {
            let queue = self.queues.get(repo)?;
            let small = !queue.small.is_empty() && may_run(repo, true);
            let large = !queue.large.is_empty() && may_run(repo, false);
            (small || large).then_some((place, small))
        })
    }

    /// Whether the ticket was still waiting.
    fn withdraw(&mut self, repo: &RepoId, small: bool, number: u64) -> bool {
        let Some(queue) = self.queues.get_mut(repo) else { return false };
        let waiting = queue.of(small);
        let before = waiting.len();
        waiting.retain(|ticket| ticket.number != number);
        let found = waiting.len() < before;
        if queue.is_empty() {
            self.queues.remove(repo);
            self.order.retain(|other| other != repo);
        }
        found
    }

    fn release(&mut self, scope: &Scope, small: bool) {
        self.all.end(small);
        if let Some(lane) = self.upstreams.get_mut(scope) {
            lane.end(small);
        }
        self.call_next();
    }
}

impl Lane {
    fn new(most: usize) -> Self {
        Self { most, running: 0, large: 0 }
    }

    fn is_full(&self) -> bool {
        !self.has_room(false)
    }

    fn has_room(&self, small: bool) -> bool {
        let for_small = if self.most > 1 { (self.most / SMALL_SHARE).max(1) } else { 0 };
        self.running < self.most && (small || self.large < self.most - for_small)
    }

    fn begin(&mut self, small: bool) {
        self.running += 1;
        self.large += usize::from(!small);
    }

    fn end(&mut self, small: bool) {
        self.running -= 1;
        self.large -= usize::from(!small);
    }
}

impl Queue {
    fn of(&mut self, small: bool) -> &mut VecDeque<Ticket> {
        if small { &mut self.small } else { &mut self.large }
    }

    fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_empty()
    }
}

impl Turn {
    pub(super) fn has_come(&self) -> bool {
        self.call.is_none()
    }

    /// Waits until it is this one's turn.
    pub(super) async fn come(&mut self) {
        if let Some(call) = &mut self.call {
            // The slots outlive their turns, and nobody else drops a ticket that waits.
            let _ = call.await;
            self.call = None;
        }
    }

    fn look(&mut self) {
        if self.call.as_mut().is_some_and(|call| call.try_recv().is_ok()) {
            self.call = None;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.slots.state.lock();
        if !state.withdraw(&self.repo, self.small, self.number) {
            state.release(&self.repo.scope, self.small);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: Option<u64> = Some(SMALL + 1);
    const LITTLE: Option<u64> = Some(SMALL);

    fn scope(upstream: &str) -> Scope {
        Scope::Upstream(upstream.into())
    }

    fn repo(upstream: &str, name: &str) -> RepoId {
        RepoId::new(scope(upstream), name.parse().unwrap())
    }

    fn slots(most: usize, of_each: usize) -> Slots {
        Slots::new(most, [(scope("a.io"), of_each), (scope("b.io"), of_each)])
    }

    /// Which of them have been called, by their places.
    fn called(turns: &mut [Turn]) -> Vec<usize> {
        turns.iter_mut().for_each(Turn::look);
        turns.iter().enumerate().filter(|(_, turn)| turn.has_come()).map(|(place, _)| place).collect()
    }

    /// Ends the one that runs, again and again, and notes who was called in which order.
    fn order(mut turns: Vec<(usize, Turn)>) -> Vec<usize> {
        let mut order = Vec::new();
        while !turns.is_empty() {
            turns.iter_mut().for_each(|(_, turn)| turn.look());
            let running = turns.iter().position(|(_, turn)| turn.has_come()).expect("somebody runs");
            order.push(turns.remove(running).0);
        }
        order
    }

    #[test]
    fn no_more_run_at_once_than_an_upstream_and_all_of_them_allow() {
        let slots = slots(7, 4);
        let (one, other) = (repo("a.io", "x"), repo("b.io", "x"));
        let mut turns: Vec<_> =
            [&one, &one, &one, &one, &other, &other, &other, &other].map(|repo| slots.ask(repo, LARGE)).into();
        // One of four is for small blobs: three of each upstream, six in all.
        assert_eq!(called(&mut turns), [0, 1, 2, 4, 5, 6]);
        assert_eq!((slots.waiting_for(&one.scope), slots.waiting_for(&other.scope)), (2, 2), "all are taken");
        drop(turns.remove(0));
        assert_eq!(called(&mut turns), [0, 1, 2, 3, 4, 5]);
        assert_eq!((slots.waiting_for(&one.scope), slots.waiting_for(&other.scope)), (1, 1));
    }

    #[test]
    fn repositories_take_turns_and_each_is_served_in_order() {
        let slots = slots(64, 1);
        let (x, y, z) = (repo("a.io", "x"), repo("a.io", "y"), repo("a.io", "z"));
        let asked = [&x, &x, &x, &x, &y, &y, &z];
        let turns = asked.iter().enumerate().map(|(place, repo)| (place, slots.ask(repo, LARGE))).collect();
        assert_eq!(order(turns), [0, 1, 4, 6, 2, 5, 3]);
        assert!(slots.state.lock().order.is_empty() && slots.state.lock().queues.is_empty());
    }

    #[test]
    fn small_ones_go_first_within_their_repository_and_have_slots_of_their_own() {
        let slots = slots(64, 4);
        let x = repo("a.io", "x");
        let mut layers: Vec<_> = (0..5).map(|_| slots.ask(&x, LARGE)).collect();
        assert_eq!(called(&mut layers), [0, 1, 2]);
        let mut configs = vec![slots.ask(&x, LITTLE), slots.ask(&x, LITTLE), slots.ask(&x, None)];
        assert_eq!(called(&mut configs), [0], "what is of unknown size may be large");
        drop(layers.remove(0));
        assert_eq!((called(&mut layers), called(&mut configs)), (vec![0, 1], vec![0, 1]));
    }

    #[test]
    fn a_single_slot_is_for_all() {
        let slots = slots(1, 1);
        let mut turns = vec![slots.ask(&repo("a.io", "x"), LARGE), slots.ask(&repo("b.io", "x"), LITTLE)];
        assert_eq!(called(&mut turns), [0]);
        drop(turns.remove(0));
        assert_eq!(called(&mut turns), [0]);
    }

    #[test]
    fn who_leaves_gives_up_a_place_or_a_slot_and_never_both() {
        let slots = slots(64, 1);
        let (x, y) = (repo("a.io", "x"), repo("a.io", "y"));
        let mut turns = vec![slots.ask(&x, LARGE), slots.ask(&x, LARGE), slots.ask(&y, LARGE)];
        drop(turns.remove(1));
        assert_eq!(called(&mut turns), [0]);
        drop(turns.remove(0));
        assert_eq!(called(&mut turns), [0]);
        // Called, and gone before it has looked.
        let late = slots.ask(&x, LARGE);
        drop(turns);
        drop(late);
        assert!(slots.ask(&x, LARGE).has_come());
        let state = slots.state.lock();
        assert_eq!((state.all.running, state.all.large), (0, 0));
    }

    #[tokio::test]
    async fn a_turn_comes_to_who_waits() {
        let slots = slots(64, 1);
        let (first, mut second) = (slots.ask(&repo("a.io", "x"), None), slots.ask(&repo("a.io", "y"), None));
        assert!(first.has_come() && !second.has_come());
        let ((), ()) = tokio::join!(second.come(), async { drop(first) });
        assert!(second.has_come());
    }
}
