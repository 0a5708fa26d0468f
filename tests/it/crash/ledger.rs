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
struct Fact {
    acknowledged: Target,
    /// Requested, without a response yet.
    asked: Option<Target>,
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
    facts: Mutex<BTreeMap<Name, Fact>>,
    sessions: Mutex<BTreeMap<String, Session>>,
}

impl Ledger {
    /// The last acknowledged state.
    pub fn meaning(&self, name: &Name) -> Target {
        self.facts.lock().get(name).and_then(|fact| fact.acknowledged.clone())
    }

    pub fn names(&self) -> Vec<Name> {
        self.facts.lock().keys().cloned().collect()
    }

    /// The tags of a repository that point to this digest.
    pub fn tags_of(&self, repo: &str, digest: &str) -> Vec<Name> {
        let facts = self.facts.lock();
        let meaning = facts.iter().filter(|(name, fact)| {
            name.repo == repo && name.kind == "manifests" && fact.acknowledged.as_deref() == Some(digest)
        });
        meaning.map(|(name, _)| name.clone()).collect()
    }

    /// Notes a request that changes these names.
    pub fn asks(&self, names: &[Name], becomes: Option<&str>) {
        let mut facts = self.facts.lock();
        for name in names {
            facts.entry(name.clone()).or_default().asked = Some(becomes.map(str::to_owned));
        }
    }

    /// Notes that the requested change was acknowledged.
    pub fn acknowledged(&self, names: &[Name]) {
        let mut facts = self.facts.lock();
        for name in names {
            let fact = facts.entry(name.clone()).or_default();
            fact.acknowledged = fact.asked.take().unwrap_or_default();
        }
    }

    /// Compares with the state after a restart, which must be the acknowledged or the requested one.
    pub fn found(&self, name: &Name, found: &Target) {
        let mut facts = self.facts.lock();
        let fact = facts.entry(name.clone()).or_default();
        let right = *found == fact.acknowledged || fact.asked.as_ref() == Some(found);
        assert!(right, "{} is {found:?}, and should be {fact:?}", name.path());
        *fact = Fact { acknowledged: found.clone(), asked: None };
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
