//! `explain`: what there is to say about an image, from the configuration and the files of the data folder.
//!
//! It works beside a running server and without one. The server knows more: how lately a tag was confirmed within the last
//! ten minutes, and whether an upstream is left alone at present.

use std::collections::HashSet;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::Control;
use crate::config::Config;
use crate::oci::{Digest, Manifest, Reference, RepoId, Scope, Tag};
use crate::resolve::{Asked, Routes, Rule, Target};
use crate::store::{StoreError, TagRecord, View};
use crate::upstream::BreakerState;

/// How deep indexes within indexes are followed.
const DEPTH: usize = 3;
/// Manifests that are looked into; each once, for indexes may share children.
const MOST: usize = 500;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    pub image: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Facts {
    pub image: String,
    /// Where was looked.
    pub data: String,
    /// Whether there is such a folder.
    pub data_exists: bool,
    /// Which rule decided, in words.
    pub rule: String,
    /// `local`, or the upstream.
    pub scope: String,
    pub repository: String,
    /// Where the upstream is asked, in order.
    pub urls: Vec<String>,
    /// `None`: if Docker's file of logins has some for it.
    pub credentials: Option<bool>,
    /// Whether the upstream is being asked, or left alone after failures. Only a running server knows.
    pub breaker: Option<BreakerState>,
    pub tag: Option<TagFacts>,
    pub manifest: Option<Node>,
    /// What a pull of everything that belongs to it would ask the upstream, now.
    pub upstream_requests: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct TagFacts {
    pub digest: String,
    /// Since the file of the tag says that it was confirmed; for a local tag, since its push.
    pub confirmed_seconds_ago: u64,
    pub fresh: bool,
}

/// A manifest or blob and what it refers to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Node {
    pub digest: String,
    pub media_type: String,
    /// Bytes.
    pub size: u64,
    pub here: bool,
    pub children: Vec<Node>,
}

/// What is known, and by whom.
pub struct Known<'a> {
    pub config: &'a Config,
    pub routes: &'a Routes,
    pub view: &'a View,
    /// The server that has the folder, if it is asked.
    pub server: Option<&'a Control>,
}

impl Known<'_> {
    /// What a tag means: what the server remembers of it is younger than its file.
    fn tag(&self, repo: &RepoId, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
        match self.server.and_then(|server| server.store.remembered_tag(repo, tag)) {
            Some(record) => Ok(Some(record)),
            None => self.view.tag(repo, tag),
        }
    }
}

/// All there is to say about an image; the error says what is wrong with its name or with the files.
pub fn explain(known: &Known<'_>, image: &str) -> Result<Facts, String> {
    let (name, reference) = parse(image, known.routes)?;
    let asked = Asked { name, ..Asked::default() };
    let target = known.routes.resolve(asked, |name| known.view.is_local(name)).map_err(|error| error.to_string())?;
    gather(known, target, reference).map_err(|error| error.to_string())
}

fn gather(known: &Known<'_>, target: Target, reference: Reference) -> Result<Facts, StoreError> {
    let (config, view) = (known.config, known.view);
    let Target { repo, rule } = target;
    let upstream = match &repo.scope {
        Scope::Upstream(name) => config.upstream(name),
        Scope::Local => None,
    };
    let (tag, digest) = match &reference {
        Reference::Digest(digest) => (None, Some(digest.clone())),
        Reference::Tag(tag) => match known.tag(&repo, tag)? {
            Some(record) => {
                let age = SystemTime::now().duration_since(record.confirmed).unwrap_or_default();
                let fresh = repo.scope.is_local() || age < config.cache.tag_ttl;
                let digest = record.digest.to_string();
                (Some(TagFacts { digest, confirmed_seconds_ago: age.as_secs(), fresh }), Some(record.digest))
            }
            None => (None, None),
        },
    };
    let manifest = match &digest {
        Some(digest) => manifest_node(view, &repo, digest, DEPTH, &mut HashSet::new())?,
        None => None,
    };
    let mut facts = Facts {
        image: image_name(&repo, &reference),
        data: config.storage.path.display().to_string(),
        data_exists: config.storage.path.is_dir(),
        rule: in_words(rule).to_owned(),
        scope: repo.scope.as_str().to_owned(),
        repository: repo.name.to_string(),
        urls: upstream.map(|upstream| upstream.urls.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        credentials: upstream.map_or(Some(false), |upstream| upstream.has_credentials_for(repo.name.as_str())),
        breaker: known.server.zip(upstream).and_then(|(server, upstream)| server.puller.breaker_state(&upstream.name)),
        tag,
        manifest,
        upstream_requests: Vec::new(),
    };
    if !repo.scope.is_local() {
        facts.upstream_requests = requests(&facts, &reference);
    }
    Ok(facts)
}

fn image_name(repo: &RepoId, reference: &Reference) -> String {
    match reference {
        Reference::Tag(tag) => format!("{repo}:{tag}"),
        Reference::Digest(digest) => format!("{repo}@{digest}"),
    }
}

fn in_words(rule: Rule) -> &'static str {
    match rule {
        Rule::Namespace => "the request names a configured upstream (ns)",
        Rule::OwnNamespace => "the request names this server (ns)",
        Rule::Host => "the request's host names a configured upstream",
        Rule::Path => "the name begins with a configured upstream",
        Rule::Local => "a local repository, or a name that is local by configuration",
        Rule::Default => "no upstream in the name and no local repository: the default upstream",
        Rule::NoDefault => "no upstream in the name, and there is no default upstream: local",
    }
}

fn manifest_node(
    view: &View,
    repo: &RepoId,
    digest: &Digest,
    depth: usize,
    seen: &mut HashSet<Digest>,
) -> Result<Option<Node>, StoreError> {
    let known = seen.len() >= MOST || !seen.insert(digest.clone());
    let Some((media_type, content)) = view.manifest(repo, digest)? else { return Ok(None) };
    let here = content.is_some();
    let bytes = content.unwrap_or_default();
    let mut children = Vec::new();
    let refers_to = Manifest::parse(&bytes).map(|manifest| manifest.children).unwrap_or_default();
    for child in refers_to.into_iter().filter(|_| !known) {
        let known = match child.is_manifest && depth > 0 {
            true => manifest_node(view, repo, &child.digest, depth - 1, seen)?,
            false => None,
        };
        let length = view.content_length(&child.digest)?;
        children.push(known.unwrap_or(Node {
            digest: child.digest.to_string(),
            media_type: child.media_type,
            size: length.unwrap_or(child.size),
            here: length.is_some(),
            children: Vec::new(),
        }));
    }
    Ok(Some(Node { digest: digest.to_string(), media_type, size: bytes.len() as u64, here, children }))
}

fn requests(facts: &Facts, reference: &Reference) -> Vec<String> {
    let mut requests = Vec::new();
    match (reference, &facts.tag) {
        (Reference::Tag(tag), None) => requests.push(format!("GET manifests/{tag}")),
        (Reference::Tag(tag), Some(known)) if !known.fresh => requests.push(format!("HEAD manifests/{tag}")),
        (Reference::Digest(digest), _) if facts.manifest.is_none() => requests.push(format!("GET manifests/{digest}")),
        _ => {}
    }
    if let Some(manifest) = &facts.manifest {
        missing(manifest, true, &mut requests);
    }
    requests
}

fn missing(node: &Node, is_manifest: bool, requests: &mut Vec<String>) {
    if !node.here {
        requests.push(format!("GET {}/{}", if is_manifest { "manifests" } else { "blobs" }, node.digest));
    }
    let index = crate::oci::media_type::is_index(&node.media_type);
    for child in &node.children {
        missing(child, index, requests);
    }
}

/// The name as it would stand in a request's path, and the reference; our own address in front is no part of the name.
fn parse<'a>(image: &'a str, routes: &Routes) -> Result<(&'a str, Reference), String> {
    let (name, reference) = match image.split_once('@') {
        Some((name, digest)) => {
            let digest: Digest = digest.parse().map_err(|error| format!("{error}"))?;
            (without_tag(name).0, Reference::Digest(digest))
        }
        None => {
            let (name, tag) = without_tag(image);
            let tag: Tag = tag.unwrap_or("latest").parse().map_err(|error| format!("{error}"))?;
            (name, Reference::Tag(tag))
        }
    };
    match name.split_once('/') {
        Some((first, rest)) if routes.upstream(first).is_none() && routes.is_own(first, None) => Ok((rest, reference)),
        _ => Ok((name, reference)),
    }
}

/// A colon after the last slash begins a tag; one before it a port.
fn without_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_as_clients_do_it() {
        let routes = Routes::new(&Config::default());
        let digest = format!("sha256:{}", "0".repeat(64));
        for (image, name, reference) in [
            ("busybox", "busybox", "latest"),
            ("ghcr.io/org/app:v1", "ghcr.io/org/app", "v1"),
            ("localhost:5000/team/app", "team/app", "latest"),
            ("localhost:5000/docker.io/library/alpine:3", "docker.io/library/alpine", "3"),
            ("host:81/a", "host:81/a", "latest"),
            (&format!("team/app:v1@{digest}"), "team/app", &digest),
        ] {
            let (found, found_reference) = parse(image, &routes).unwrap();
            assert_eq!((found, found_reference.to_string().as_str()), (name, reference), "{image}");
        }
        assert!(parse("a@sha256:x", &routes).is_err());
        assert!(parse("a:.b", &routes).is_err());
    }
}
