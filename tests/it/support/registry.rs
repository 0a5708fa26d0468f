//! The contents of the scripted upstream, and the responses of a well-behaved registry.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use serde_json::json;

use super::image::Content;
use super::wire::{Answer, Seen};

#[derive(Default)]
pub(super) struct Repository {
    pub(super) manifests: HashMap<String, Content>,
    pub(super) blobs: HashMap<String, Bytes>,
    pub(super) tags: BTreeMap<String, String>,
}

pub(super) type Repositories = HashMap<String, Repository>;

/// The parts of `/v2/<name>/<kind>/<reference>`; `None` for any other path.
pub(super) fn split(path: &str) -> Option<(&str, &str, &str)> {
    let rest = path.strip_prefix("/v2/")?;
    let mut parts = rest.rsplitn(3, '/');
    let (reference, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
    Some((name, kind, reference))
}

pub(super) fn error(status: u16, code: &str) -> Answer {
    let body = json!({"errors": [{"code": code, "message": code.to_lowercase(), "detail": null}]});
    Answer { status, headers: vec![header("Content-Type", "application/json")], body: body.to_string().into() }
}

pub(super) fn json(value: &serde_json::Value) -> Answer {
    Answer { status: 200, headers: vec![header("Content-Type", "application/json")], body: value.to_string().into() }
}

pub(super) fn answer(seen: &Seen, repositories: &Repositories, ignore_range: bool) -> Answer {
    if seen.method != "GET" && seen.method != "HEAD" {
        return error(405, "UNSUPPORTED");
    }
    if seen.path == "/v2/" {
        return json(&json!({}));
    }
    let Some((name, kind, reference)) = split(&seen.path) else {
        return error(404, "UNSUPPORTED");
    };
    let repository = repositories.get(name);
    match kind {
        "manifests" => {
            repository.map_or_else(|| error(404, "NAME_UNKNOWN"), |repository| manifest(repository, reference, seen))
        }
        "blobs" => match repository.and_then(|repository| repository.blobs.get(reference)) {
            Some(bytes) => blob(reference, bytes, seen, ignore_range),
            None => error(404, "BLOB_UNKNOWN"),
        },
        "tags" => repository.map_or_else(|| error(404, "NAME_UNKNOWN"), |repository| tags(name, repository, seen)),
        _ => error(404, "UNSUPPORTED"),
    }
}

fn manifest(repository: &Repository, reference: &str, seen: &Seen) -> Answer {
    let digest = repository.tags.get(reference).map_or(reference, String::as_str);
    let Some(content) = repository.manifests.get(digest) else {
        return error(404, "MANIFEST_UNKNOWN");
    };
    let mut answer = Answer {
        status: 200,
        headers: vec![
            header("Content-Type", &content.media_type),
            header("Docker-Content-Digest", digest),
            header("ETag", &format!("\"{digest}\"")),
        ],
        body: content.bytes.clone(),
    };
    if seen.header("if-none-match").contains(digest) {
        answer.status = 304;
    }
    answer
}

fn blob(digest: &str, bytes: &Bytes, seen: &Seen, ignore_range: bool) -> Answer {
    let mut headers = vec![
        header("Content-Type", "application/octet-stream"),
        header("Docker-Content-Digest", digest),
        header("ETag", &format!("\"{digest}\"")),
        header("Accept-Ranges", "bytes"),
    ];
    let total = bytes.len();
    let requested = seen.header("range");
    if ignore_range || requested.is_empty() {
        return Answer { status: 200, headers, body: bytes.clone() };
    }
    match range(requested, total) {
        Some((first, last)) => {
            let content_range = format!("bytes {first}-{last}/{total}");
            headers.push(header("Content-Range", &content_range));
            Answer { status: 206, headers, body: bytes.slice(first..=last) }
        }
        None => {
            let mut answer = error(416, "RANGE_INVALID");
            let content_range = format!("bytes */{total}");
            answer.headers.push(header("Content-Range", &content_range));
            answer
        }
    }
}

/// First and last offset of one range; `None` if it is not satisfiable.
fn range(requested: &str, total: usize) -> Option<(usize, usize)> {
    let (first, last) = requested.strip_prefix("bytes=")?.split_once('-')?;
    let end = total.checked_sub(1)?;
    match (first.parse::<usize>(), last.parse::<usize>()) {
        (Ok(first), Ok(last)) if first <= last && first <= end => Some((first, last.min(end))),
        (Ok(first), Err(_)) if first <= end => Some((first, end)),
        (Err(_), Ok(suffix)) if suffix > 0 => Some((total.saturating_sub(suffix), end)),
        _ => None,
    }
}

fn tags(name: &str, repository: &Repository, seen: &Seen) -> Answer {
    let query: HashMap<_, _> = url::form_urlencoded::parse(seen.query.as_bytes()).collect();
    let n = query.get("n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    let last = query.get("last").map_or("", |last| last.as_ref());
    let after: Vec<&String> = repository.tags.keys().filter(|tag| tag.as_str() > last).collect();
    let page: Vec<&String> = after.iter().copied().take(n).collect();
    let mut answer = json(&json!({"name": name, "tags": page}));
    if let (true, Some(last)) = (page.len() < after.len(), page.last()) {
        let link = format!("</v2/{name}/tags/list?last={last}&n={n}>; rel=\"next\"");
        answer.headers.push(header("Link", &link));
    }
    answer
}

pub(super) fn header(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}
