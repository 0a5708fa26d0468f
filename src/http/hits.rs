//! Hits of manifests: answered from memory and from header lines that are prepared once for each manifest.
//!
//! Most requests of an HTTP/1.1 connection are such hits, and building a `Request` and a `Response` would be most of
//! their cost. The rules are those of the handlers: the gate gives the permission, and the store and the miss engine
//! say what can be served. This module answers only requests that it understands completely. All others, among them
//! every request that fails, are left to `dispatch`.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, StatusCode};

use super::fields::{content_type, names_tag};
use super::{App, REGISTRY, Site, host};
use crate::access::{Authorized, Principal, Pull, Pulling};
use crate::oci::{Reference, Scope};
use crate::resolve::{RequestedRepo, Rule};
use crate::store::StoredManifest;
use crate::telemetry::{InFlight, RequestTrace};

/// The handler in metrics.
const HANDLER: &str = "manifest";
/// Longest `ns` in bytes that is understood here.
const MAX_NS_BYTES: usize = 255;
/// Request headers that change nothing in the response to a hit, in lower case.
const WITHOUT_EFFECT: [&str; 6] =
    ["accept", "user-agent", "accept-encoding", "accept-language", "cache-control", "pragma"];
const API_VERSION_LINE: &[u8] = b"docker-distribution-api-version: registry/2.0\r\n";

/// A GET or HEAD without a body, over HTTP/1.1, as it was received.
pub(super) struct ReceivedRequest<'a> {
    pub(super) is_head: bool,
    /// Path and query.
    pub(super) target: &'a str,
    pub(super) fields: &'a [httparse::Header<'a>],
}

/// A manifest that is in memory and may be served.
pub(super) struct Hit<'s, 'r> {
    app: &'s App,
    access: Authorized<Pull>,
    manifest: Arc<StoredManifest>,
    started: Instant,
    /// The same time by the wall clock. Clocks are read seldom, as that is a part of the cost of a hit.
    now: SystemTime,
    target: Target<'r>,
    fields: Fields<'r>,
    is_head: bool,
    unchanged: bool,
}

/// A response whose headers are written. It counts the request when it is dropped: when the response has been sent or
/// abandoned.
pub(super) struct HitResponse<'s> {
    app: &'s App,
    manifest: Arc<StoredManifest>,
    started: Instant,
    /// When the response had been sent; `None` if it was not.
    ended: Option<Instant>,
    is_head: bool,
    unchanged: bool,
    _in_flight: InFlight,
}

/// The parts of a request target.
struct Target<'r> {
    name: &'r str,
    reference: &'r str,
    ns: Option<&'r str>,
}

/// What the headers of a request say.
#[derive(Default)]
struct Fields<'r> {
    host: Option<&'r str>,
    /// The id of the request that the response returns.
    id: Option<&'r [u8]>,
    is_last: bool,
    is_conditional: bool,
    /// The token in `Authorization`.
    token: Option<&'r str>,
}

impl Site {
    /// The hit that a request is; `None` if it is something else or must be answered in another way.
    pub(super) fn hit<'r>(&self, request: &ReceivedRequest<'r>) -> Option<Hit<'_, 'r>> {
        let app = &*self.app;
        if self.leaves_hits || RequestTrace::is_wanted_for_hits() {
            return None;
        }
        let (started, now) = (Instant::now(), SystemTime::now());
        let target = Target::parse(request.target)?;
        let fields = Fields::of(request.fields)?;
        // A certificate of the connection can only give further rights, and `dispatch` knows it.
        let principal = match fields.token {
            None => Principal::Anonymous,
            Some(token) => app.gate.bearer(token)?,
        };
        let requested = RequestedRepo { ns: target.ns, host: fields.host, prefix: None, name: target.name };
        let access = match app.gate.pull(&principal, requested, |name| app.store.is_local(name)).ok()? {
            Pulling::Allowed(access) => access,
            Pulling::IfPublic(pull) => {
                let is_public = app.puller.is_known_public(pull.repo());
                pull.if_public(is_public).ok()?
            }
        };
        let (repo, reference) = (access.repo(), target.reference.parse().ok()?);
        let manifest = match (&repo.scope, &reference) {
            (Scope::Local, Reference::Digest(digest)) => app.store.cached_manifest(repo, digest)?,
            (Scope::Local, Reference::Tag(tag)) => {
                app.store.cached_manifest(repo, &app.store.cached_tag(repo, tag)?.digest)?
            }
            (Scope::Upstream(_), reference) => app.puller.cached(repo, reference, now)?,
        };
        manifest.prepared(header_lines)?;
        let unchanged = fields.is_conditional && names_manifest(request.fields, &manifest);
        Some(Hit { app, access, manifest, started, now, target, fields, is_head: request.is_head, unchanged })
    }
}

impl<'s> Hit<'s, '_> {
    /// When the request was received.
    pub(super) fn now(&self) -> SystemTime {
        self.now
    }

    /// Whether the client closes the connection after the response.
    pub(super) fn is_last(&self) -> bool {
        self.fields.is_last
    }

    /// Begins the response: writes the status line and the header lines, except those of the connection.
    pub(super) fn respond(self, out: &mut BytesMut) -> HitResponse<'s> {
        let Self { app, access, manifest, started, now: _, target, fields, is_head, unchanged } = self;
        let in_flight = app.metrics.http_started(HANDLER);
        if let Scope::Upstream(upstream) = &access.repo().scope {
            if !is_head {
                let bytes = if unchanged { 0 } else { manifest.bytes.len() as u64 };
                app.metrics.manifest_hit(upstream, bytes, started.elapsed().as_secs_f64());
            }
            app.store.note_served(&manifest);
        }
        if let Some(lines) = manifest.prepared(header_lines) {
            if unchanged {
                out.put_slice(b"HTTP/1.1 304 Not Modified\r\n");
                out.put_slice(&lines[lines.len() - digest_lines_len(&manifest)..]);
            } else {
                out.put_slice(b"HTTP/1.1 200 OK\r\n");
                out.put_slice(lines);
            }
        }
        if let (Some(ns), Rule::Namespace | Rule::OwnNamespace) = (target.ns, access.rule()) {
            put_line(out, "oci-namespace", ns.as_bytes());
        }
        out.put_slice(API_VERSION_LINE);
        if let Some(id) = fields.id {
            put_line(out, "x-request-id", id);
        }
        HitResponse { app, manifest, started, ended: None, is_head, unchanged, _in_flight: in_flight }
    }
}

impl HitResponse<'_> {
    pub(super) fn body(&self) -> &[u8] {
        if self.is_head || self.unchanged { &[] } else { &self.manifest.bytes }
    }

    /// The response has been sent. Returns the present time.
    pub(super) fn end(mut self) -> Instant {
        *self.ended.insert(Instant::now())
    }
}

impl Drop for HitResponse<'_> {
    fn drop(&mut self) {
        let method = if self.is_head { Method::HEAD } else { Method::GET };
        let code = if self.unchanged { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
        let took = self.ended.unwrap_or_else(Instant::now).saturating_duration_since(self.started);
        self.app.metrics.http_finished(HANDLER, &method, code, took.as_secs_f64());
    }
}

impl<'r> Target<'r> {
    /// `/v2/<name>/manifests/<reference>`, possibly with `?ns=<host>`. Name and reference are not checked yet.
    fn parse(target: &'r str) -> Option<Self> {
        let (path, ns) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.strip_prefix("ns=").filter(|ns| is_host(ns))?)),
            None => (target, None),
        };
        let (parent, reference) = path.strip_prefix(REGISTRY)?.rsplit_once('/')?;
        Some(Self { name: parent.strip_suffix("/manifests")?, reference, ns })
    }
}

/// Whether the value of a query parameter is a host with an optional port, without characters to decode.
fn is_host(value: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
    (1..=MAX_NS_BYTES).contains(&value.len()) && value.bytes().all(is_plain)
}

impl<'r> Fields<'r> {
    /// `None` if there is a field that is not understood here, or not exactly one valid host.
    fn of(fields: &[httparse::Header<'r>]) -> Option<Self> {
        let mut read = Self::default();
        for &httparse::Header { name, value } in fields {
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            if is("host") {
                if read.host.is_some() || !host::is_valid(value) {
                    return None;
                }
                read.host = Some(str::from_utf8(value).ok()?);
            } else if is("connection") {
                match value {
                    close if close.eq_ignore_ascii_case(b"close") => read.is_last = true,
                    keep if keep.eq_ignore_ascii_case(b"keep-alive") => {}
                    _ => return None,
                }
            } else if is("authorization") {
                let (scheme, token) = str::from_utf8(value).ok()?.split_once(' ')?;
                if read.token.is_some() || !scheme.eq_ignore_ascii_case("bearer") {
                    return None;
                }
                read.token = Some(token.trim());
            } else if is("if-none-match") {
                read.is_conditional = true;
            } else if is("x-request-id") && read.id.is_none() && RequestTrace::is_acceptable(value) {
                read.id = Some(value);
            } else if !WITHOUT_EFFECT.iter().any(|other| is(other)) {
                return None;
            }
        }
        read.host.map(|_| read)
    }
}

/// Whether the client has the manifest. Several lines of `If-None-Match` are one list.
fn names_manifest(fields: &[httparse::Header<'_>], manifest: &StoredManifest) -> bool {
    let mut lines = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("if-none-match"));
    lines.any(|line| names_tag(line.value, &manifest.quoted_digest))
}

/// The header lines of each response with a manifest. Those that a 304 has as well are at the end.
fn header_lines(manifest: &StoredManifest) -> Bytes {
    let mut lines = BytesMut::new();
    put_line(&mut lines, "content-length", manifest.bytes.len().to_string().as_bytes());
    if let Some(media_type) = content_type(&manifest.media_type) {
        put_line(&mut lines, "content-type", media_type.as_bytes());
    }
    let quoted = &manifest.quoted_digest;
    put_line(&mut lines, DIGEST_NAMES[0], &quoted[1..quoted.len() - 1]);
    put_line(&mut lines, DIGEST_NAMES[1], quoted);
    lines.freeze()
}

/// The headers of the digest and of the entity tag.
const DIGEST_NAMES: [&str; 2] = ["docker-content-digest", "etag"];

/// Length in bytes of the lines with the digest and the entity tag, which is the digest in quotes.
fn digest_lines_len(manifest: &StoredManifest) -> usize {
    let quoted = manifest.quoted_digest.len();
    let line = |name: &str, value: usize| name.len() + ": ".len() + value + "\r\n".len();
    line(DIGEST_NAMES[0], quoted - 2) + line(DIGEST_NAMES[1], quoted)
}

fn put_line(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Digest, Manifest, media_type};

    #[test]
    fn the_longest_header_lines_are_kept() {
        let typed = |length| format!("application/{}", "x".repeat(length));
        let longest = (0..1000).rev().map(typed).find(|media_type| media_type::of_manifest(media_type).is_some());
        let bytes = Bytes::from(vec![b' '; Manifest::MAX_PUSHED_LENGTH as usize]);
        let digest = Digest::of(Algorithm::Sha512, &bytes);
        let manifest = StoredManifest::new(digest, longest.unwrap(), bytes, &Manifest::default());
        let first = manifest.prepared(header_lines).expect("they are kept").as_ptr();
        assert_eq!(manifest.prepared(|_| unreachable!("they were made before")).unwrap().as_ptr(), first);
        let of_304 = &manifest.prepared(header_lines).unwrap()[..];
        let of_304 = &of_304[of_304.len() - digest_lines_len(&manifest)..];
        let digest = &manifest.digest;
        assert_eq!(of_304, format!("docker-content-digest: {digest}\r\netag: \"{digest}\"\r\n").as_bytes());
    }

    #[test]
    fn only_plain_targets_of_manifests_are_understood() {
        let parse = |target| Target::parse(target).map(|Target { name, reference, ns }| (name, reference, ns));
        assert_eq!(parse("/v2/a/b/manifests/v1"), Some(("a/b", "v1", None)));
        assert_eq!(
            parse("/v2/a/manifests/sha256:00?ns=h.example:5000"),
            Some(("a", "sha256:00", Some("h.example:5000")))
        );
        assert_eq!(parse("/v2/a/manifests/manifests/v1"), Some(("a/manifests", "v1", None)));
        for other in [
            "/",
            "/v2/",
            "/v2/manifests/v2",
            "/v2/a/manifests",
            "/v2/a/blobs/sha256:00",
            "/docker.io/v2/a/manifests/v1",
            "/v2/a/manifests/v1?",
            "/v2/a/manifests/v1?ns=",
            "/v2/a/manifests/v1?ns=a&ns=b",
            "/v2/a/manifests/v1?ns=docker%2Eio",
            "/v2/a/manifests/v1?ns=a+b",
            "/v2/a/manifests/v1?tag=x",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_field_that_is_not_understood_is_left_to_the_handlers() {
        let host = httparse::Header { name: "HOST", value: b"registry:5000" };
        let with = |name, value| Fields::of(&[host, httparse::Header { name, value }]).is_some();
        assert!(with("Accept", b"\xff") && with("user-agent", b"x") && with("Connection", b"Keep-Alive"));
        assert!(with("Authorization", b"bearer x.y.z"));
        assert!(with("If-None-Match", b"*") && with("X-Request-Id", b"1"));
        for (name, value) in [
            ("Authorization", &b"Basic ZTpw"[..]),
            ("Authorization", b"Bearer"),
            ("Via", b"1.1 a"),
            ("Range", b"bytes=0-1"),
            ("Content-Length", b"0"),
            ("Transfer-Encoding", b"chunked"),
            ("Upgrade", b"h2c"),
            ("Expect", b"100-continue"),
            ("Connection", b"keep-alive, close"),
            ("Host", b"registry"),
            ("X-Request-Id", b"two words"),
            ("X-Forwarded-For", b"10.0.0.1"),
            ("Hos", b"registry"),
        ] {
            assert!(!with(name, value), "{name}");
        }
        assert!(Fields::of(&[]).is_none());
        assert!(Fields::of(&[httparse::Header { name: "Host", value: b"a b" }]).is_none());
    }
}
