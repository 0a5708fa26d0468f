//! Bounds the requests to one upstream that are in progress, except transfers of blobs, which need slots of their own
//! (`pull::slots`).
//!
//! The work for a request goes on when its client has left, so connections of clients do not bound it. Each request
//! takes a descriptor and memory.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};

use crate::oci::RepoName;

/// Most requests in flight to one upstream.
const MAX_REQUESTS: u64 = 256;
/// Fewest, even if the limit of descriptors is low.
const MIN_REQUESTS: u64 = 32;
/// Descriptors of the process for each request that may be in progress.
const DESCRIPTORS_PER_REQUEST: u64 = 16;

/// The requests in progress of one upstream. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    max: usize,
    by_repository: Arc<Mutex<HashMap<RepoName, usize>>>,
}

/// One request in progress, until it is dropped.
#[derive(Debug)]
pub(super) struct InFlightRequest {
    requests: InFlight,
    repository: RepoName,
}

impl Default for InFlight {
    fn default() -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let max = (descriptors / DESCRIPTORS_PER_REQUEST).clamp(MIN_REQUESTS, MAX_REQUESTS);
        Self { max: max as usize, by_repository: Arc::default() }
    }
}

impl InFlight {
    /// A further request; `None` if there are too many. One repository gets at most half of the bound.
    pub(super) fn enter(&self, repository: &RepoName) -> Option<InFlightRequest> {
        let mut by_repository = self.by_repository.lock();
        let own = by_repository.get(repository).copied().unwrap_or(0);
        let all: usize = by_repository.values().sum();
        if all >= self.max || own >= self.max / 2 {
            return None;
        }
        by_repository.insert(repository.clone(), own + 1);
        Some(InFlightRequest { requests: self.clone(), repository: repository.clone() })
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        let mut by_repository = self.requests.by_repository.lock();
        match by_repository.get_mut(&self.repository) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(by_repository.remove(&self.repository)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_repository_leaves_half_of_the_requests_to_others() {
        let requests = InFlight { max: 4, by_repository: Arc::default() };
        let [one, two, three]: [RepoName; 3] = ["a/one", "a/two", "a/three"].map(|name| name.parse().unwrap());
        let first: Vec<_> = std::iter::from_fn(|| requests.enter(&one)).collect();
        assert_eq!(first.len(), 2);
        let second: Vec<_> = std::iter::from_fn(|| requests.enter(&two)).collect();
        assert_eq!(second.len(), 2);
        assert!(requests.enter(&three).is_none());
        drop(first);
        assert!(requests.enter(&three).is_some() && requests.enter(&two).is_none());
        drop(second);
        assert!(requests.by_repository.lock().is_empty());
    }
}
