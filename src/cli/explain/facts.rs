//! What there is to say about an image.

use std::collections::HashSet;
use std::time::SystemTime;

use serde::Serialize;

use crate::config::Config;
use crate::oci::{Digest, Manifest, Reference, RepoId, Scope};
use crate::resolve::{Rule, Target};
use crate::store::{StoreError, View};

/// How deep indexes within indexes are followed.
const DEPTH: usize = 3;
/// Manifests that are looked into; each once, for indexes may share children.
const MOST: usize = 500;

#[derive(Debug, Serialize)]
pub(super) struct Facts {
    pub(super) image: String,
    /// Where was looked.
    pub(super) data: String,
    /// Whether there is such a folder.
    pub(super) data_exists: bool,
    /// Which rule decided, in words.
    pub(super) rule: &'static str,
    /// `local`, or the upstream.
    pub(super) scope: String,
    pub(super) repository: String,
    /// Where the upstream is asked, in order.
    pub(super) urls: Vec<String>,
    pub(super) credentials: bool,
    pub(super) tag: Option<TagFacts>,
    pub(super) manifest: Option<Node>,
    /// What a pull of everything that belongs to it would ask the upstream, now.
    pub(super) upstream_requests: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct TagFacts {
    pub(super) digest: String,
    /// Since the file of the tag says that it was confirmed; for a local tag, since its push.
    pub(super) confirmed_seconds_ago: u64,
    pub(super) fresh: bool,
}

/// A manifest or blob and what it refers to.
#[derive(Debug, Serialize)]
pub(super) struct Node {
    pub(super) digest: String,
    pub(super) media_type: String,
    /// Bytes.
    pub(super) size: u64,
    pub(super) here: bool,
    pub(super) children: Vec<Node>,
}

pub(super) fn gather(config: &Config, view: &View, target: Target, reference: Reference) -> Result<Facts, StoreError> {
    let Target { repo, rule } = target;
    let upstream = match &repo.scope {
        Scope::Upstream(name) => config.upstream(name),
        Scope::Local => None,
    };
    let (tag, digest) = match &reference {
        Reference::Digest(digest) => (None, Some(digest.clone())),
        Reference::Tag(tag) => match view.tag(&repo, tag)? {
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
        rule: in_words(rule),
        scope: repo.scope.as_str().to_owned(),
        repository: repo.name.to_string(),
        urls: upstream.map(|upstream| upstream.urls.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        credentials: upstream.is_some_and(|upstream| upstream.username.is_some()),
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
