//! A source in memory that follows a script, for tests.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::super::error::PullError;
use super::{BlobSource, FetchRequest, MinRate, Sent, SourceId, Transfer};
use crate::oci::{ByteRange, Digest, RepoId, Scope};
use crate::upstream::{CredentialId, UpstreamError};

pub(in crate::pull) const NAME: &str = "source.example";

/// Answers each request with the next part of the script; after its end with an error.
#[derive(Debug)]
pub(in crate::pull) struct ScriptedSource {
    id: SourceId,
    name: Arc<str>,
    answers: Mutex<VecDeque<Answer>>,
    connections: usize,
    pub(in crate::pull) requests: Mutex<Vec<FetchRequest>>,
}

#[derive(Debug)]
pub(in crate::pull) struct Answer {
    sent: Sent,
    strong_etag: Option<String>,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Send(Bytes),
    /// Waits for a permit.
    Wait(Arc<Semaphore>),
    Interrupt,
}

impl ScriptedSource {
    pub(in crate::pull) fn new(repository: &str, answers: impl IntoIterator<Item = Answer>) -> Arc<Self> {
        let name: Arc<str> = NAME.into();
        let repo = RepoId::new(Scope::Upstream(name.clone()), repository.parse().unwrap());
        let id = SourceId { repo, credential: CredentialId::ANONYMOUS };
        let answers = Mutex::new(answers.into_iter().collect());
        Arc::new(Self { id, name, answers, connections: 1, requests: Mutex::default() })
    }
}

impl Answer {
    pub(in crate::pull) fn complete(length: usize) -> Self {
        Self { sent: Sent::Complete { length: Some(length as u64) }, strong_etag: None, steps: Vec::new() }
    }

    pub(in crate::pull) fn part(start: usize, end: usize, total: usize) -> Self {
        let range = ByteRange { start: start as u64, end: end as u64 };
        Self { sent: Sent::Part { range, total: Some(total as u64) }, strong_etag: None, steps: Vec::new() }
    }

    pub(in crate::pull) fn etag(self, etag: &str) -> Self {
        Self { strong_etag: Some(etag.to_owned()), ..self }
    }

    pub(in crate::pull) fn send(self, bytes: &[u8]) -> Self {
        self.then(Step::Send(Bytes::copy_from_slice(bytes)))
    }

    pub(in crate::pull) fn wait(self, gate: &Arc<Semaphore>) -> Self {
        self.then(Step::Wait(gate.clone()))
    }

    pub(in crate::pull) fn interrupt(self) -> Self {
        self.then(Step::Interrupt)
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

impl BlobSource for ScriptedSource {
    fn id(&self) -> &SourceId {
        &self.id
    }

    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn open(&self, request: FetchRequest, _deadline: Instant) -> BoxFuture<'_, Result<Transfer, PullError>> {
        self.requests.lock().push(request);
        let Some(Answer { sent, strong_etag, steps }) = self.answers.lock().pop_front() else {
            return Box::pin(ready(Err(PullError::NotFound)));
        };
        let bytes = stream::iter(steps).filter_map(|step| async move {
            match step {
                Step::Send(bytes) => Some(Ok(bytes)),
                Step::Wait(gate) => {
                    gate.acquire().await.unwrap().forget();
                    None
                }
                Step::Interrupt => {
                    let cause = "on purpose".into();
                    Some(Err(UpstreamError::Interrupted { upstream: NAME.into(), cause }.into()))
                }
            }
        });
        Box::pin(ready(Ok(Transfer { sent, digest: None, strong_etag, next_url: 1, bytes: bytes.boxed() })))
    }

    fn length<'a>(&'a self, _digest: &'a Digest, _deadline: Instant) -> BoxFuture<'a, Option<u64>> {
        Box::pin(ready(None))
    }

    fn min_rate(&self) -> MinRate {
        MinRate::default()
    }

    fn connections(&self) -> usize {
        self.connections
    }

    fn serves_ranges(&self) -> bool {
        true
    }

    fn note_ignored_range(&self) {}
}
