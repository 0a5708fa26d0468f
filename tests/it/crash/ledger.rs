//! What the server has acknowledged, and which requests were unanswered when it was killed.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::support::Content;

/// A name in a repository: a blob, a manifest or a tag.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub repo: String,
    pub kind: &'static str,
    pub reference: String,
}

impl Name {
    pub fn blob(repo: &str, digest: &str) -> Self {
        Self { repo: repo.to_owned(), kind: "blobs", reference: digest.to_owned() }
    }

    pub fn manifest(repo: &str, reference: &str) -> Self {
        Self { repo: repo.to_owned(), kind: "manifests", reference: reference.to_owned() }
    }

    pub fn path(&self) -> String {
        format!("/v2/{}/{}/{}", self.repo, self.kind, self.reference)
    }
}

/// The digest that a name stands for; `None` if it does not exist.
pub type Target = Option<String>;

#[derive(Clone, Debug, Default)]
struct NameState {
    acknowledged: Target,
    /// Requested, without a response yet.
    requested: Option<Target>,
}

/// An open upload.
#[derive(Clone, Debug)]
pub struct Session {
    pub location: String,
    pub repo: String,
    pub content: Content,
    /// Bytes that the server has confirmed, and bytes that the client has sent.
    pub confirmed: usize,
    pub sent: usize,
    /// The client has sent the request that ends it.
    pub ending: bool,
}

#[derive(Default)]
pub struct Ledger {
    states: Mutex<BTreeMap<Name, NameState>>,
    sessions: Mutex<BTreeMap<String, Session>>,
}

impl Ledger {
    /// The last acknowledged state.
    pub fn target(&self, name: &Name) -> Target {
        self.states.lock().get(name).and_then(|state| state.acknowledged.clone())
    }

    pub fn names(&self) -> Vec<Name> {
        self.states.lock().keys().cloned().collect()
    }

    /// The tags of a repository that point to this digest.
    pub fn tags_of(&self, repo: &str, digest: &str) -> Vec<Name> {
        let states = self.states.lock();
        let target = states.iter().filter(|(name, state)| {
            name.repo == repo && name.kind == "manifests" && state.acknowledged.as_deref() == Some(digest)
        });
        target.map(|(name, _)| name.clone()).collect()
    }

    /// Notes a request that changes these names.
    pub fn note_request(&self, names: &[Name], becomes: Option<&str>) {
        let mut states = self.states.lock();
        for name in names {
            states.entry(name.clone()).or_default().requested = Some(becomes.map(str::to_owned));
        }
    }

    /// Notes that the requested change was acknowledged.
    pub fn note_acknowledged(&self, names: &[Name]) {
        let mut states = self.states.lock();
        for name in names {
            let state = states.entry(name.clone()).or_default();
            state.acknowledged = state.requested.take().unwrap_or_default();
        }
    }

    /// Compares with the state after a restart, which must be the acknowledged or the requested one.
    pub fn check(&self, name: &Name, found: &Target) {
        let mut states = self.states.lock();
        let state = states.entry(name.clone()).or_default();
        let right = *found == state.acknowledged || state.requested.as_ref() == Some(found);
        assert!(right, "{} is {found:?}, and should be {state:?}", name.path());
        *state = NameState { acknowledged: found.clone(), requested: None };
    }

    pub fn sessions(&self) -> Vec<Session> {
        self.sessions.lock().values().cloned().collect()
    }

    pub fn keep(&self, session: &Session) {
        self.sessions.lock().insert(session.location.clone(), session.clone());
    }

    pub fn forget(&self, session: &Session) {
        self.sessions.lock().remove(&session.location);
    }
}
