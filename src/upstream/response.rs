//! An upstream's response: its headers, and its body as a stream.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, WARNING};
use tokio::time::{Instant, timeout, timeout_at};

use super::error::UpstreamError;
use super::in_flight::InFlightRequest;
use super::{Kind, Upstream};
use crate::oci::STALE_WARNING;
use crate::telemetry::{ContentKind, Metrics};

/// A usable response: 200, 206 (only if a range was requested) or 304 (only with `if_none_match`).
#[derive(Debug)]
pub struct UpstreamResponse {
    /// 200, 206 or 304.
    pub status: StatusCode,
    /// The headers as sent.
    pub headers: HeaderMap,
    /// The body; empty for HEAD and 304.
    pub body: UpstreamBody,
    /// The `skip_urls` of a request that tries the URL after the one that answered.
    pub next_url: usize,
}

/// The body of a response. Dropping it closes the connection or resets the stream.
pub struct UpstreamBody {
    pub(super) upstream: Arc<str>,
    pub(super) kind: Kind,
    /// Time limit for the next bytes.
    pub(super) idle_timeout: Duration,
    pub(super) metrics: Arc<Metrics>,
    /// `None`: there is no body, or it has ended.
    pub(super) response: Option<reqwest::Response>,
    /// Counts the request as in progress until the body is dropped.
    pub(super) in_flight: Option<InFlightRequest>,
}

// === impl UpstreamResponse ===

impl UpstreamResponse {
    /// The `Content-Length` header. For a HEAD request, the length that the body of a GET would have.
    pub fn content_length(&self) -> Option<u64> {
        content_length(&self.headers)
    }

    /// The `Content-Range` header: first and last byte, both inclusive, and the complete length unless it is `*` (RFC
    /// 9110, section 14.4).
    pub fn content_range(&self) -> Option<(u64, u64, Option<u64>)> {
        content_range(&self.headers)
    }

    /// The `Docker-Content-Digest` header. Some registries omit it, and it proves nothing.
    pub fn docker_content_digest(&self) -> Option<&str> {
        text(&self.headers, &HeaderName::from_static("docker-content-digest"))
    }

    /// The `Content-Type` header without parameters.
    pub fn content_type(&self) -> Option<&str> {
        let (media_type, _) =
            text(&self.headers, &CONTENT_TYPE).map(|value| value.split_once(';').unwrap_or((value, "")))?;
        Some(media_type.trim())
    }

    /// Whether the content is a page for a browser, such as a login page.
    pub fn is_page(&self) -> bool {
        let pages = ["text/html", "application/xhtml+xml"];
        self.content_type().is_some_and(|found| pages.iter().any(|page| found.eq_ignore_ascii_case(page)))
    }

    /// Whether another Roadstead served this from its cache because its own upstream failed. Other warnings with code
    /// 299 are ignored, as registries use it for any notice.
    pub fn is_stale(&self) -> bool {
        self.headers.get_all(WARNING).iter().any(|warning| warning == STALE_WARNING)
    }

    /// The `ETag` header.
    pub fn etag(&self) -> Option<&str> {
        text(&self.headers, &ETAG)
    }
}

// === impl UpstreamBody ===

impl UpstreamBody {
    /// The next bytes; `None` at the regular end (by length, last chunk or end of stream).
    ///
    /// # Errors
    /// `Timeout` if no bytes come for `idle_timeout`, `Interrupted` if the connection ends early. The body has ended
    /// then.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let Some(response) = &mut self.response else {
            return Ok(None);
        };
        let next = match timeout(self.idle_timeout, response.chunk()).await {
            Ok(Ok(next)) => Ok(next),
            Ok(Err(error)) => Err(UpstreamError::interrupted(&self.upstream, error)),
            Err(_) => Err(UpstreamError::timeout(&self.upstream, "no data in the middle of a body")),
        };
        match &next {
            Ok(Some(bytes)) => self.count(bytes.len()),
            _ => self.response = None,
        }
        next
    }

    /// An empty body.
    pub fn empty(upstream: &Upstream) -> Self {
        upstream.remote.body(Kind::Blob, None)
    }

    /// The complete body, at most `limit` bytes.
    ///
    /// # Errors
    /// Those of [`chunk`](Self::chunk), `BadResponse` if the body is longer, and `Timeout` if it is not complete at
    /// `deadline`: a slow body may never reach `idle_timeout`.
    pub async fn collect(self, limit: usize, deadline: Instant) -> Result<Bytes, UpstreamError> {
        let late = self.is_too_slow();
        timeout_at(deadline, self.collect_all(limit)).await.unwrap_or(Err(late))
    }

    async fn collect_all(mut self, limit: usize) -> Result<Bytes, UpstreamError> {
        // Allocated at once, because a growing buffer leaves freed buffers of half its size to the allocator.
        let mut body = BytesMut::with_capacity(self.announced_length(limit)?);
        self.receive(&mut body, limit, limit).await?;
        Ok(body.freeze())
    }

    /// The length in the headers; zero if there is none.
    ///
    /// # Errors
    /// `BadResponse` if it is more than `limit` bytes.
    pub fn announced_length(&self, limit: usize) -> Result<usize, UpstreamError> {
        let announced = self.response.as_ref().and_then(|response| content_length(response.headers())).unwrap_or(0);
        if announced > limit as u64 { Err(self.is_too_long(limit)) } else { Ok(announced as usize) }
    }

    /// Appends to `body` until it has more than `enough` bytes or the body ends. Returns whether it has ended.
    ///
    /// # Errors
    /// Those of [`chunk`](Self::chunk), and `BadResponse` if `body` would have more than `limit` bytes.
    pub async fn receive(&mut self, body: &mut BytesMut, enough: usize, limit: usize) -> Result<bool, UpstreamError> {
        while body.len() <= enough {
            let Some(bytes) = self.chunk().await? else { return Ok(true) };
            if body.len() + bytes.len() > limit {
                return Err(self.is_too_long(limit));
            }
            body.extend_from_slice(&bytes);
        }
        Ok(false)
    }

    fn is_too_long(&self, limit: usize) -> UpstreamError {
        UpstreamError::bad(&self.upstream, format!("a {} over {limit} bytes", self.kind.as_str()))
    }

    /// The error of a body that is not complete in time.
    pub fn is_too_slow(&self) -> UpstreamError {
        UpstreamError::timeout(&self.upstream, "the body is too slow")
    }

    /// The error of a large document that had no turn in time.
    pub fn has_no_turn(&self) -> UpstreamError {
        UpstreamError::timeout(&self.upstream, "too many large manifests")
    }

    fn count(&self, bytes: usize) {
        let kind = match self.kind {
            Kind::Blob => ContentKind::Blob,
            Kind::Manifest => ContentKind::Manifest,
            Kind::Tags | Kind::Referrers => return,
        };
        self.metrics.pulled_bytes(kind, &self.upstream, bytes as u64);
    }
}

impl fmt::Debug for UpstreamBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamBody")
            .field("upstream", &self.upstream)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// Reads a complete body; `None` if it is longer than `limit` bytes. Has no timeout of its own.
pub(super) async fn read_limited(
    response: &mut reqwest::Response,
    limit: usize,
) -> Result<Option<Bytes>, reqwest::Error> {
    let mut body = BytesMut::new();
    while let Some(bytes) = response.chunk().await? {
        if body.len() + bytes.len() > limit {
            return Ok(None);
        }
        body.extend_from_slice(&bytes);
    }
    Ok(Some(body.freeze()))
}

/// The `Content-Length` header.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    number(text(headers, &CONTENT_LENGTH)?)
}

fn content_range(headers: &HeaderMap) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = split_content_range(headers)?;
    let (start, end) = range.split_once('-')?;
    let (start, end) = (number(start)?, number(end)?);
    let total = if total == "*" { None } else { Some(number(total)?) };
    (start <= end && total.is_none_or(|total| end < total)).then_some((start, end, total))
}

/// Whether `Content-Range` covers the complete content.
pub(super) fn has_complete_range(headers: &HeaderMap) -> bool {
    content_range(headers).is_some_and(|(start, end, total)| start == 0 && total == Some(end + 1))
}

/// The complete length in `Content-Range`: of `bytes 0-0/123`, or of `bytes */0` for empty content.
pub(super) fn content_range_total(headers: &HeaderMap) -> Option<u64> {
    number(split_content_range(headers)?.1)
}

fn split_content_range(headers: &HeaderMap) -> Option<(&str, &str)> {
    let (unit, range) = text(headers, &CONTENT_RANGE)?.trim().split_once(' ')?;
    unit.eq_ignore_ascii_case("bytes").then(|| range.trim().split_once('/')).flatten()
}

/// Parses digits only; `parse` alone would accept a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn response(name: HeaderName, value: &'static str) -> UpstreamResponse {
        let headers = HeaderMap::from_iter([(name, HeaderValue::from_static(value))]);
        let body = UpstreamBody {
            upstream: "r".into(),
            kind: Kind::Blob,
            idle_timeout: Duration::ZERO,
            metrics: Arc::new(Metrics::new(&[])),
            response: None,
            in_flight: None,
        };
        UpstreamResponse { status: StatusCode::OK, headers, body, next_url: 0 }
    }

    #[test]
    fn content_range_is_parsed_or_absent() {
        let table = [
            ("bytes 0-9/10", Some((0, 9, Some(10)))),
            ("Bytes 5-9/*", Some((5, 9, None))),
            ("bytes 0-10/10", None),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("bytes +0-9/10", None),
            ("lines 0-9/10", None),
            ("0-9/10", None),
            ("", None),
        ];
        for (value, expected) in table {
            assert_eq!(response(CONTENT_RANGE, value).content_range(), expected, "{value:?}");
        }
        assert_eq!(content_range_total(&response(CONTENT_RANGE, "bytes */0").headers), Some(0));
    }

    #[test]
    fn content_type_loses_its_parameters() {
        let response = response(CONTENT_TYPE, "application/json ; charset=utf-8");
        assert_eq!(response.content_type(), Some("application/json"));
    }
}
