//! Turns to receive and parse large documents. They bound the memory that many large documents take at once.
//!
//! A turn is a slot (`slots`), so repositories take turns, and one repository never has all of them. A document begins
//! without a turn, and needs one only when many bytes have arrived. If the rest then arrives slowly, it gives way to
//! documents that wait.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::slots::{Slots, Turn};
use crate::oci::{RepoId, Scope};

/// A document needs a turn when more bytes than this have arrived.
pub const LARGE_DOCUMENT_BYTES: usize = 256 << 10;
/// A document gives way to one that waits if fewer than `MIN_PROGRESS_BYTES` arrive within this time.
const PROGRESS_PERIOD: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(2) };
const MIN_PROGRESS_BYTES: usize = 64 << 10;

/// The turns of one kind of document.
#[derive(Clone, Debug)]
pub struct LargeDocuments {
    slots: Slots,
}

/// The permission to receive and parse one large document. Drop ends it.
#[derive(Debug)]
pub struct DocumentTurn {
    slots: Slots,
    scope: Scope,
    _turn: Turn,
}

impl LargeDocuments {
    /// Allows `max` turns at once.
    pub fn new(max: usize) -> Self {
        Self { slots: Slots::new(max, []) }
    }

    /// Allows `max` turns at once for each of these scopes.
    pub(super) fn for_each(max: usize, scopes: impl IntoIterator<Item = Scope>) -> Self {
        Self { slots: Slots::new(usize::MAX, scopes.into_iter().map(|scope| (scope, max))) }
    }

    /// Waits for a turn; `None` at the deadline.
    pub async fn turn(&self, repo: &RepoId, deadline: Instant) -> Option<DocumentTurn> {
        // All turns are alike, as slots for small blobs are.
        let mut turn = self.slots.request(repo, Some(0));
        timeout_at(deadline, turn.wait()).await.ok()?;
        Some(DocumentTurn { slots: self.slots.clone(), scope: repo.scope.clone(), _turn: turn })
    }
}

impl DocumentTurn {
    /// Runs `rest`, which receives the rest of the document and keeps the number of its bytes in `received`. Returns
    /// `None` if the document gave way.
    pub async fn receive<T>(&self, received: &AtomicUsize, rest: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = rest => Some(done),
            () = self.must_give_way(received) => None,
        }
    }

    async fn must_give_way(&self, received: &AtomicUsize) {
        let mut before = received.load(Ordering::Relaxed);
        loop {
            sleep(PROGRESS_PERIOD).await;
            let now = received.load(Ordering::Relaxed);
            if now.saturating_sub(before) < MIN_PROGRESS_BYTES && self.slots.waiting_for(&self.scope) > 0 {
                return;
            }
            before = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn repo(scope: &Scope, name: &str) -> RepoId {
        RepoId::new(scope.clone(), name.parse().unwrap())
    }

    async fn turns(documents: &LargeDocuments, repo: &RepoId, count: usize) -> Vec<DocumentTurn> {
        let mut turns = Vec::new();
        for _ in 0..count {
            turns.extend(documents.turn(repo, Instant::now() + PROGRESS_PERIOD).await);
        }
        turns
    }

    #[tokio::test]
    async fn one_repository_leaves_a_turn_for_another_one() {
        let (a, b) = (Scope::Upstream("a.io".into()), Scope::Upstream("b.io".into()));
        let documents = LargeDocuments::for_each(4, [a.clone(), b.clone()]);
        let slow = turns(&documents, &repo(&a, "slow"), 8).await;
        assert_eq!(slow.len(), 3);
        assert_eq!(turns(&documents, &repo(&a, "good"), 1).await.len(), 1);
        assert_eq!(turns(&documents, &repo(&b, "good"), 1).await.len(), 1);
        let pushed = LargeDocuments::new(16);
        let slow = turns(&pushed, &repo(&Scope::Local, "slow"), 20).await;
        assert_eq!(slow.len(), 12);
        assert_eq!(turns(&pushed, &repo(&Scope::Local, "good"), 1).await.len(), 1);
    }

    #[tokio::test]
    async fn a_slow_document_gives_way_only_if_another_one_waits() {
        let documents = LargeDocuments::new(1);
        let (slow, good) = (repo(&Scope::Local, "slow"), repo(&Scope::Local, "good"));
        let later = || Instant::now() + 200 * PROGRESS_PERIOD;
        let turn = documents.turn(&slow, later()).await.unwrap();
        let received = AtomicUsize::new(0);
        let alone = turn.receive(&received, sleep(5 * PROGRESS_PERIOD)).await;
        assert!(alone.is_some(), "no document waits");
        let waiting = documents.turn(&good, later());
        let (gave_way, granted) = tokio::join!(
            async {
                let gave_way = turn.receive(&received, pending::<()>()).await.is_none();
                drop(turn);
                gave_way
            },
            waiting
        );
        assert!(gave_way && granted.is_some());
    }

    #[tokio::test]
    async fn a_document_with_progress_keeps_its_turn() {
        let documents = LargeDocuments::new(1);
        let (busy, other) = (repo(&Scope::Local, "busy"), repo(&Scope::Local, "other"));
        let turn = documents.turn(&busy, Instant::now()).await.unwrap();
        let received = AtomicUsize::new(0);
        let rest = async {
            for _ in 0..50 {
                sleep(PROGRESS_PERIOD / 5).await;
                received.fetch_add(MIN_PROGRESS_BYTES, Ordering::Relaxed);
            }
        };
        let deadline = Instant::now() + 5 * PROGRESS_PERIOD;
        let (done, granted) = tokio::join!(turn.receive(&received, rest), documents.turn(&other, deadline));
        assert!(done.is_some() && granted.is_none());
    }
}
