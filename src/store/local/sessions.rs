//! The push sessions of a data folder: which sessions a request uses, and which session is removed when there are too
//! many.
//!
//! The number and the bytes of idle sessions, which no request uses, are bounded. Without bounds, abandoned uploads
//! would evict the cache and then make other pushes fail. Beyond the bounds, sessions are removed (*give way*) in this
//! order:
//!
//! 1. Those that have been idle for ten minutes, because they are probably abandoned; the longest idle first.
//! 2. Those of a repository that has more than a quarter of the bound, so that one client does not end the uploads of
//!    others.
//! 3. All others.
//!
//! In the last two groups, empty sessions go first, then those of the repository that has the most, then the longest
//! idle. A session that was used within the last two seconds does not give way, because clients pause between two
//! requests. A new push waits until such a session is older or is used again.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use uuid::Uuid;

use super::growing_file::{Checkpoint, GrowingFile};
use crate::oci::RepoId;
use crate::store::fs;
use crate::store::settings::UploadBounds;

/// Shortest time without a request after which a session may give way.
const MIN_IDLE_TIME: Duration = Duration::from_secs(2);
/// Time without a request after which a session is probably abandoned.
const ABANDONED_IDLE_TIME: Duration = Duration::from_secs(10 * 60);
/// A repository dominates if it has more than this part of a bound.
const DOMINANT_PART: u64 = 4;

/// The sessions by id.
#[derive(Debug)]
pub(super) struct Sessions {
    bounds: UploadBounds,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// The sessions that this process has used.
    open: HashMap<Uuid, Arc<Session>>,
    /// The sessions that no request uses, also those of an earlier process.
    idle: HashMap<Uuid, IdleSession>,
}

#[derive(Clone, Debug)]
struct IdleSession {
    /// `None`: the description of an earlier process's session cannot be read.
    repo: Option<RepoId>,
    bytes: u64,
    since: Instant,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) repo: RepoId,
    pub(super) file: Arc<GrowingFile>,
    folder: PathBuf,
    /// Whether a request or its unfinished write uses the session. Changed under the lock of the table.
    busy: Mutex<bool>,
}

/// Keeps a session busy. A request holds it. A write holds it too, because a write continues after its request ends.
#[derive(Debug)]
pub(super) struct BusySession {
    sessions: Arc<Sessions>,
    id: Uuid,
    session: Arc<Session>,
    /// The state that the session returns to, if its last chunk does not arrive.
    undo: Mutex<Option<Checkpoint>>,
}

/// Why a session cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unavailable {
    Unknown,
    Busy,
}

/// Whether a new push may begin, or the step that must happen first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Admitted,
    /// This session must be removed.
    Remove(Uuid),
    /// Wait this long: then a session is old enough to give way, unless it is used again.
    Wait(Duration),
}

// === impl Session ===

impl Session {
    pub(super) fn new(repo: RepoId, folder: &Path, file: GrowingFile) -> Arc<Self> {
        Arc::new(Self { repo, file: Arc::new(file), folder: folder.to_owned(), busy: Mutex::new(false) })
    }
}

/// The length that a session returns to after a crash, if its last chunk does not arrive. The file exists while that
/// chunk is received.
pub(super) fn undo_path(folder: &Path) -> PathBuf {
    folder.join("undo")
}

// === impl Sessions ===

impl Sessions {
    pub(super) fn new(bounds: UploadBounds) -> Self {
        Self { bounds, table: Mutex::default() }
    }

    /// Adds a session of an earlier process that has been idle for `idle`.
    pub(super) fn found(&self, id: Uuid, repo: Option<RepoId>, bytes: u64, idle: Duration) {
        let now = Instant::now();
        let since = now.checked_sub(idle).unwrap_or(now);
        self.table.lock().idle.insert(id, IdleSession { repo, bytes, since });
    }

    pub(super) fn get(&self, id: Uuid) -> Option<Arc<Session>> {
        self.table.lock().open.get(&id).cloned()
    }

    /// Adds a session, unless another request has added it. Returns the known session.
    pub(super) fn insert(&self, id: Uuid, session: Arc<Session>) -> Arc<Session> {
        self.table.lock().open.entry(id).or_insert(session).clone()
    }

    /// Marks a session as busy for one request.
    pub(super) fn acquire(self: &Arc<Self>, id: Uuid, session: &Arc<Session>) -> Result<BusySession, Unavailable> {
        let mut table = self.table.lock();
        // Another request may have finished it since it was looked up.
        if !table.open.contains_key(&id) {
            return Err(Unavailable::Unknown);
        }
        if std::mem::replace(&mut *session.busy.lock(), true) {
            return Err(Unavailable::Busy);
        }
        table.idle.remove(&id);
        Ok(BusySession { sessions: self.clone(), id, session: session.clone(), undo: Mutex::default() })
    }

    /// Removes a session that ends. Returns whether it was known.
    pub(super) fn remove(&self, id: Uuid) -> bool {
        let mut table = self.table.lock();
        table.idle.remove(&id);
        table.open.remove(&id).is_some()
    }

    pub(super) fn is_open(&self, id: Uuid) -> bool {
        self.table.lock().open.contains_key(&id)
    }

    /// Removes a session that no request uses. False if a request uses it.
    pub(super) fn remove_idle(&self, id: Uuid) -> bool {
        let mut table = self.table.lock();
        if table.open.get(&id).is_some_and(|session| *session.busy.lock()) {
            return false;
        }
        table.idle.remove(&id);
        table.open.remove(&id);
        true
    }

    /// Whether the idle sessions are within their bounds, or the step that brings them nearer.
    pub(super) fn admission(&self, now: Instant) -> Admission {
        let table = self.table.lock();
        let bytes: u64 = table.idle.values().map(|idle| idle.bytes).sum();
        let too_many = table.idle.len() >= self.bounds.max_count;
        if !too_many && bytes <= self.bounds.max_bytes {
            return Admission::Admitted;
        }
        match table.first_to_give_way(now, self.bounds, too_many) {
            None => Admission::Admitted,
            Some((id, idle)) => match MIN_IDLE_TIME.checked_sub(now.saturating_duration_since(idle.since)) {
                Some(wait) if !wait.is_zero() => Admission::Wait(wait),
                _ => Admission::Remove(id),
            },
        }
    }

    fn release(&self, busy: &BusySession) {
        let mut table = self.table.lock();
        if table.open.contains_key(&busy.id) {
            let (repo, bytes) = (Some(busy.session.repo.clone()), busy.session.file.len());
            let idle = IdleSession { repo, bytes, since: Instant::now() };
            table.idle.insert(busy.id, idle);
        }
        *busy.session.busy.lock() = false;
    }
}

// === impl Table ===

impl Table {
    /// The idle session that gives way next. `too_many`: their number exceeds its bound, and not only their bytes.
    fn first_to_give_way(&self, now: Instant, bounds: UploadBounds, too_many: bool) -> Option<(Uuid, &IdleSession)> {
        let bound = if too_many { bounds.max_count as u64 } else { bounds.max_bytes };
        // What a session contributes to the exceeded bound. If only the bytes exceed theirs, an empty session does not
        // matter.
        let weight = |idle: &IdleSession| if too_many { 1 } else { idle.bytes };
        let mut weights: HashMap<&RepoId, u64> = HashMap::new();
        for idle in self.idle.values() {
            if let Some(repo) = &idle.repo {
                *weights.entry(repo).or_default() += weight(idle);
            }
        }
        let rank = |idle: &IdleSession| {
            if now.saturating_duration_since(idle.since) >= ABANDONED_IDLE_TIME {
                return (0, false, Reverse(0), idle.since);
            }
            let of_repo = idle.repo.as_ref().and_then(|repo| weights.get(repo).copied()).unwrap_or_default();
            let group = if of_repo > bound / DOMINANT_PART { 1 } else { 2 };
            (group, idle.bytes > 0, Reverse(of_repo), idle.since)
        };
        let candidates = self.idle.iter().filter(|(_, idle)| weight(idle) > 0);
        candidates.min_by_key(|(_, idle)| rank(idle)).map(|(id, idle)| (*id, idle))
    }
}

// === impl BusySession ===

impl BusySession {
    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// From now on the session returns to its present length when it is released, also after a crash. Blocks.
    pub(super) fn begin_last_chunk(&self) -> io::Result<()> {
        let checkpoint = self.session.file.checkpoint();
        fs::write(&undo_path(&self.session.folder), format!("{}\n", checkpoint.length()))?;
        *self.undo.lock() = Some(checkpoint);
        Ok(())
    }
}

impl Drop for BusySession {
    fn drop(&mut self) {
        if let Some(checkpoint) = self.undo.lock().take() {
            self.session.file.restore(checkpoint);
            let _ = fs::remove_file(&undo_path(&self.session.folder));
        }
        self.sessions.clone().release(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Scope;

    /// The repository, bytes and seconds without a request of a session.
    type Idle = (&'static str, u64, u64);

    fn sessions(max_bytes: u64, max_count: usize, idle: &[Idle]) -> (Sessions, Vec<Uuid>) {
        let sessions = Sessions::new(UploadBounds { max_bytes, max_count });
        let ids = idle.iter().map(|(repo, bytes, seconds)| {
            let (id, repo) = (Uuid::new_v4(), RepoId::new(Scope::Local, repo.parse().unwrap()));
            sessions.found(id, Some(repo), *bytes, Duration::from_secs(*seconds));
            id
        });
        let ids = ids.collect();
        (sessions, ids)
    }

    #[test]
    fn the_longest_idle_session_gives_way_and_a_recent_one_is_waited_for() {
        let now = Instant::now();
        let (within, _) = sessions(100, 4, &[("a", 50, 9), ("a", 50, 1), ("a", 0, 20)]);
        assert_eq!(within.admission(now), Admission::Admitted);
        let (bytes, ids) = sessions(100, 9, &[("a", 50, 9), ("a", 51, 8), ("a", 0, 20)]);
        assert_eq!(bytes.admission(now), Admission::Remove(ids[0]), "an empty one stays");
        let (count, ids) = sessions(100, 3, &[("a", 50, 9), ("a", 5, 8), ("a", 0, 20)]);
        assert_eq!(count.admission(now), Admission::Remove(ids[2]));
        assert!(count.remove_idle(ids[2]));
        assert_eq!(count.admission(now), Admission::Admitted);
        let (recent, ids) = sessions(100, 9, &[("a", 101, 0)]);
        assert!(matches!(recent.admission(now), Admission::Wait(wait) if wait <= MIN_IDLE_TIME));
        assert_eq!(recent.admission(now + 2 * MIN_IDLE_TIME), Admission::Remove(ids[0]));
    }

    #[test]
    fn many_sessions_of_one_client_do_not_end_those_of_others() {
        let now = Instant::now();
        // What the client with many sessions does, all sessions, and the one that gives way. The first is that of another
        // client, and idle for longest.
        let table: [(&str, u64, &[Idle], usize); 7] = [
            ("empty ones", 900, &[("a", 5, 9), ("evil", 0, 4), ("evil", 0, 5), ("evil", 0, 3)], 2),
            (
                "with bytes, and the other is empty",
                900,
                &[("a", 0, 9), ("evil", 1, 4), ("evil", 1, 5), ("evil", 1, 3)],
                2,
            ),
            ("some with bytes", 900, &[("a", 5, 9), ("evil", 1, 5), ("evil", 1, 4), ("evil", 0, 3)], 3),
            ("many bytes", 100, &[("a", 5, 9), ("a", 5, 8), ("evil", 95, 3)], 2),
            ("many bytes in several", 100, &[("a", 5, 9), ("evil", 50, 5), ("evil", 50, 6)], 2),
            ("an abandoned one", 900, &[("a", 5, 9), ("evil", 1, 4), ("b", 9, 700), ("evil", 0, 3)], 2),
            ("a repository for each", 900, &[("a", 5, 9), ("evil1", 0, 4), ("evil2", 0, 5), ("evil3", 0, 3)], 2),
        ];
        for (what, max_bytes, idle, gives_way) in table {
            let (sessions, ids) = sessions(max_bytes, 4, idle);
            assert_eq!(sessions.admission(now), Admission::Remove(ids[gives_way]), "{what}");
        }
        let (recent, _) = sessions(900, 4, &[("a", 5, 9), ("evil", 0, 0), ("evil", 0, 0), ("evil", 0, 0)]);
        assert!(matches!(recent.admission(now), Admission::Wait(_)), "the one of the other client stays");
    }
}
