//! A configured upstream as a blob source: one HTTP request per transfer.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use http::{Method, StatusCode};
use tokio::time::Instant;

use super::super::ask::{ask, request};
use super::super::error::PullError;
use super::super::proof::Proofs;
use super::{BlobSource, ByteStream, FetchRequest, MinRate, Sent, SourceId, Transfer};
use crate::oci::{ByteRange, Digest, RepoId};
use crate::upstream::{Effort, Kind, Upstream, UpstreamBody, UpstreamError, UpstreamResponse};

/// One repository of an upstream.
#[derive(Debug)]
pub(in crate::pull) struct UpstreamSource {
    upstream: Arc<Upstream>,
    id: SourceId,
    proofs: Arc<Proofs>,
}

impl UpstreamSource {
    pub(in crate::pull) fn new(upstream: &Arc<Upstream>, repo: &RepoId, proofs: &Arc<Proofs>) -> Self {
        let id = SourceId { repo: repo.clone(), credential: upstream.credential(&repo.name) };
        Self { upstream: upstream.clone(), id, proofs: proofs.clone() }
    }

    async fn fetch(&self, fetch: FetchRequest, deadline: Instant) -> Result<Transfer, PullError> {
        let mut get = request(Method::GET, Kind::Blob, &self.id.repo, format!("blobs/{}", fetch.digest));
        get.range = fetch.range.map(|range| (range.start, range.end - 1));
        get.if_range = fetch.if_range;
        get.skip_urls = fetch.skip_urls;
        get.effort = fetch.effort;
        match ask(&self.upstream, get, deadline).await {
            Ok(response) => Ok(transfer(response)),
            // The blob is shorter than the upstream said before.
            Err(PullError::Upstream(UpstreamError::Status { status: StatusCode::RANGE_NOT_SATISFIABLE, .. }))
                if fetch.range.is_some() || fetch.effort == Effort::Resume =>
            {
                Err(self.changed())
            }
            Err(error) => Err(error),
        }
    }

    fn changed(&self) -> PullError {
        PullError::Changed { upstream: self.upstream.name().clone() }
    }
}

impl BlobSource for UpstreamSource {
    fn id(&self) -> &SourceId {
        &self.id
    }

    fn name(&self) -> &Arc<str> {
        self.upstream.name()
    }

    fn open(&self, request: FetchRequest, deadline: Instant) -> BoxFuture<'_, Result<Transfer, PullError>> {
        Box::pin(self.fetch(request, deadline))
    }

    fn length<'a>(&'a self, digest: &'a Digest, deadline: Instant) -> BoxFuture<'a, Option<u64>> {
        Box::pin(self.proofs.known_length(&self.upstream, &self.id.repo, digest, deadline))
    }

    fn min_rate(&self) -> MinRate {
        MinRate { bytes_per_second: self.upstream.min_rate(), window: self.upstream.idle_timeout() }
    }

    fn connections(&self) -> usize {
        // Each connection needs a slot.
        self.upstream.connections().min(self.upstream.max_fills())
    }

    fn serves_ranges(&self) -> bool {
        self.upstream.serves_ranges()
    }

    fn note_ignored_range(&self) {
        self.upstream.note_ignored_range();
    }
}

fn transfer(response: UpstreamResponse) -> Transfer {
    let sent = if response.status == StatusCode::PARTIAL_CONTENT {
        let part = |(start, last, total): (u64, u64, Option<u64>)| {
            Some(Sent::Part { range: ByteRange { start, end: last.checked_add(1)? }, total })
        };
        response.content_range().and_then(part).unwrap_or(Sent::Unplaced)
    } else {
        Sent::Complete { length: response.content_length() }
    };
    // A weak tag does not promise equal bytes.
    let strong_etag = response.etag().filter(|etag| !etag.starts_with("W/")).map(str::to_owned);
    let digest = response.docker_content_digest().and_then(|digest| digest.parse().ok());
    let next_url = response.next_url;
    Transfer { sent, digest, strong_etag, next_url, bytes: byte_stream(response.body) }
}

fn byte_stream(body: UpstreamBody) -> ByteStream {
    let chunks = stream::try_unfold(body, |mut body| async move {
        let chunk = body.chunk().await?;
        Ok(chunk.map(|chunk| (chunk, body)))
    });
    chunks.boxed()
}
