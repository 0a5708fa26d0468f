//! `explain`: what there is to say about an image, from the configuration and the files of the data folder.
//!
//! It works beside a running server and without one. The server knows more: how lately a tag was confirmed within the last
//! ten minutes, and whether an upstream is left alone at present.

use std::collections::HashSet;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::Control;
use super::wanted::{Thing, Wanted};
use crate::config::Config;
use crate::oci::{Digest, Manifest, Reference, RepoId, Scope, Tag};
use crate::pull::TagFreshness;
use crate::resolve::{Routes, Rule, Target};
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
    /// What is asked about, by its full name.
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
    pub kind: Kind,
    pub tag: Option<TagFacts>,
    /// The manifest with what it refers to, or the blob.
    pub manifest: Option<Node>,
    /// What a pull of everything that belongs to it would ask the upstream, now.
    pub upstream_requests: Vec<String>,
}

/// What a request wants. Lists are not looked into: of mirrored ones a running server alone has copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Image,
    Blob,
    Tags,
    Referrers,
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

impl From<&Thing> for Kind {
    fn from(thing: &Thing) -> Self {
        match thing {
            Thing::Image(_) => Self::Image,
            Thing::Blob(_) => Self::Blob,
            Thing::Tags => Self::Tags,
            Thing::Referrers(_) => Self::Referrers,
        }
    }
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
        match self.server.and_then(|server| server.store.cached_tag(repo, tag)) {
            Some(record) => Ok(Some(record)),
            None => self.view.tag(repo, tag),
        }
    }

    /// How old tags of a repository may be. Only a running server knows whether its upstream has few pulls left.
    fn freshness(&self, repo: &RepoId) -> TagFreshness {
        let in_force = self.server.and_then(|server| server.puller.tag_freshness(repo.scope.as_str()));
        in_force.unwrap_or_else(|| TagFreshness::new(&self.config.cache, false))
    }
}

/// All there is to say about an image or a request; the error says what is wrong with it or with the files.
pub fn explain(known: &Known<'_>, image: &str) -> Result<Facts, String> {
    let wanted = Wanted::parse(image, known.routes)?;
    let target = known.routes.resolve(wanted.asked(), |name| known.view.is_local(name));
    gather(known, target.map_err(|error| error.to_string())?, &wanted.thing).map_err(|error| error.to_string())
}

fn gather(known: &Known<'_>, target: Target, thing: &Thing) -> Result<Facts, StoreError> {
    let (config, view) = (known.config, known.view);
    let Target { repo, rule } = target;
    let upstream = match &repo.scope {
        Scope::Upstream(name) => config.upstream(name),
        Scope::Local => None,
    };
    let (tag, content) = match thing {
        Thing::Image(Reference::Digest(digest)) => (None, image_node(view, &repo, digest)?),
        Thing::Image(Reference::Tag(tag)) => match known.tag(&repo, tag)? {
            Some(record) => {
                (Some(tag_facts(&record, &repo, known.freshness(&repo))), image_node(view, &repo, &record.digest)?)
            }
            None => (None, None),
        },
        Thing::Blob(digest) => (None, blob_node(view, &repo, digest)?),
        Thing::Tags | Thing::Referrers(_) => (None, None),
    };
    let mut facts = Facts {
        image: thing.of(&repo),
        data: config.storage.path.display().to_string(),
        data_exists: config.storage.path.is_dir(),
        rule: in_words(rule).to_owned(),
        scope: repo.scope.as_str().to_owned(),
        repository: repo.name.to_string(),
        urls: upstream.map(|upstream| upstream.urls.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        credentials: upstream.map_or(Some(false), |upstream| upstream.has_credentials_for(repo.name.as_str())),
        breaker: known.server.zip(upstream).and_then(|(server, upstream)| server.puller.breaker_state(&upstream.name)),
        kind: thing.into(),
        tag,
        manifest: content,
        upstream_requests: Vec::new(),
    };
    if !repo.scope.is_local() {
        facts.upstream_requests = requests(&facts, thing);
    }
    Ok(facts)
}

fn tag_facts(record: &TagRecord, repo: &RepoId, freshness: TagFreshness) -> TagFacts {
    let now = SystemTime::now();
    let age = now.duration_since(record.confirmed).unwrap_or_default();
    let fresh = repo.scope.is_local() || freshness.is_fresh(record.confirmed, now);
    TagFacts { digest: record.digest.to_string(), confirmed_seconds_ago: age.as_secs(), fresh }
}

fn image_node(view: &View, repo: &RepoId, digest: &Digest) -> Result<Option<Node>, StoreError> {
    manifest_node(view, repo, digest, DEPTH, &mut HashSet::new())
}

/// A blob that may be read in the repository without asking anybody.
fn blob_node(view: &View, repo: &RepoId, digest: &Digest) -> Result<Option<Node>, StoreError> {
    if !view.may_read(repo, digest)? {
        return Ok(None);
    }
    let length = view.content_length(digest)?;
    let (digest, media_type) = (digest.to_string(), "application/octet-stream".to_owned());
    Ok(Some(Node { digest, media_type, size: length.unwrap_or(0), here: length.is_some(), children: Vec::new() }))
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

fn requests(facts: &Facts, thing: &Thing) -> Vec<String> {
    let mut requests = Vec::new();
    match (thing, &facts.tag, &facts.manifest) {
        (Thing::Image(Reference::Tag(tag)), None, _) => requests.push(format!("GET manifests/{tag}")),
        (Thing::Image(Reference::Tag(tag)), Some(known), _) if !known.fresh => {
            requests.push(format!("HEAD manifests/{tag}"));
        }
        (Thing::Image(Reference::Digest(digest)), _, None) => requests.push(format!("GET manifests/{digest}")),
        // Whether this repository has it is asked before bytes are that another one has fetched.
        (Thing::Blob(digest), _, None) => requests.push(format!("HEAD or GET blobs/{digest}")),
        (Thing::Tags, ..) => requests.push("GET tags/list".to_owned()),
        (Thing::Referrers(digest), ..) => requests.push(format!("GET referrers/{digest}")),
        _ => {}
    }
    if let Some(node) = &facts.manifest {
        missing(node, matches!(thing, Thing::Image(_)), &mut requests);
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
