//! `explain`: explains an image name or a request, from the configuration and the files of the data folder.
//!
//! It works with a running server and without one. Only the server knows confirmations of tags that are not yet
//! written to their files, and the state of an upstream's circuit.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::Control;
use super::explain_query::{ExplainQuery, QueryTarget};
use crate::access::{Policy, Principal};
use crate::config::{Config, Right};
use crate::housekeeping::bounds;
use crate::oci::{Digest, Manifest, Reference, RepoId, RepoName, Scope, Tag};
use crate::pull::TagFreshness;
use crate::resolve::{Routes, Rule, Target};
use crate::store::{Bounds, StoreError, TagRecord, View};
use crate::upstream::BreakerState;

/// Maximum depth of indexes within indexes.
const MAX_INDEX_DEPTH: usize = 3;
/// Maximum number of manifests that are read. Each is read once, because indexes may share children.
const MAX_MANIFESTS: usize = 500;

/// The request of `POST /v1/explain`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// An image name or a request.
    pub image: String,
    /// The user whose rights are explained, or `anonymous`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_user: Option<String>,
}

/// The response of `POST /v1/explain`, and the output of `explain --output json`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// The full name of the image or of the requested content.
    pub image: String,
    /// Path of the data folder.
    pub data: String,
    pub data_exists: bool,
    /// The bounds of the cache. `None` for a read-only folder, where nothing is cached.
    pub bounds: Option<ExplainedBounds>,
    /// The rule that selected the repository, as text.
    pub rule: String,
    /// `local`, or the name of the upstream.
    pub scope: String,
    pub repository: String,
    /// The URLs of the upstream, in the order in which they are tried.
    pub urls: Vec<String>,
    /// Whether requests to the upstream have credentials. `None` if that depends on Docker's file.
    pub credentials: Option<bool>,
    /// The state of the upstream's circuit breaker. Only a running server knows it.
    pub breaker: Option<BreakerState>,
    pub kind: RequestKind,
    pub tag: Option<TagState>,
    /// The manifest with everything that it refers to, or the blob.
    pub manifest: Option<ContentNode>,
    /// The requests to the upstream that a complete pull would cause now, such as `GET manifests/v1`.
    pub upstream_requests: Vec<String>,
    /// What the user may do, if the request names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<ExplainedAccess>,
}

/// What a user may do with the repository, by the rules of `[auth]`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExplainedAccess {
    /// The user, or `anonymous`.
    pub user: String,
    /// Without users, everyone may do everything, and there are no rules.
    pub has_users: bool,
    /// One for each right that the repository has.
    pub rights: Vec<ExplainedRight>,
}

/// A right, and the rule that gives it.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExplainedRight {
    pub right: String,
    /// The place of a rule that allows it: file and line. `None`: no rule does.
    pub rule: Option<String>,
    /// The rule is about public repositories only, and this server has credentials for the upstream.
    #[serde(default)]
    pub only_if_public: bool,
}

/// The bounds of the cache, in bytes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ExplainedBounds {
    /// Bytes that cached content may take.
    pub max_size: u64,
    /// Bytes that stay free on the disk.
    pub min_free: u64,
}

/// The kind of the requested content. An explanation does not contain lists, because only a running server caches
/// mirrored lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestKind {
    Image,
    Blob,
    Tags,
    Referrers,
}

/// The manifest that a tag points to.
#[derive(Debug, Serialize, Deserialize)]
pub struct TagState {
    pub digest: String,
    /// Seconds since the upstream confirmed the tag; for a local tag, since its push.
    pub confirmed_seconds_ago: u64,
    /// Whether the tag is served without a request to the upstream.
    pub fresh: bool,
}

/// A manifest or blob, and its children.
#[derive(Debug, Serialize, Deserialize)]
pub struct ContentNode {
    pub digest: String,
    pub media_type: String,
    /// Length in bytes.
    pub size: u64,
    /// Whether the content is stored.
    #[serde(rename = "here")]
    pub stored: bool,
    pub children: Vec<ContentNode>,
}

impl From<&QueryTarget> for RequestKind {
    fn from(target: &QueryTarget) -> Self {
        match target {
            QueryTarget::Image(_) => Self::Image,
            QueryTarget::Blob(_) => Self::Blob,
            QueryTarget::Tags => Self::Tags,
            QueryTarget::Referrers(_) => Self::Referrers,
        }
    }
}

/// The sources of an explanation.
pub struct ExplainSources<'a> {
    pub config: &'a Config,
    pub routes: &'a Routes,
    pub view: &'a View,
    /// The running server; `None` in a command without a running server.
    pub server: Option<&'a Control>,
}

impl ExplainSources<'_> {
    /// Returns the record of a tag. The server's memory may have a later confirmation than the file.
    fn tag(&self, repo: &RepoId, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
        match self.server.and_then(|server| server.store.cached_tag(repo, tag)) {
            Some(record) => Ok(Some(record)),
            None => self.view.tag(repo, tag),
        }
    }

    /// Returns the rules in force, or those that a server would have.
    fn policy(&self) -> Option<Arc<Policy>> {
        match self.server {
            Some(server) => server.reloader.policy(),
            None => self.config.auth.as_ref().map(|auth| Arc::new(Policy::new(auth))),
        }
    }

    /// Returns the bounds in force, or those that a server would have.
    fn bounds(&self) -> Option<ExplainedBounds> {
        let Config { storage, cache, .. } = self.config;
        let in_force = self.server.map(|server| server.store.bounds());
        let Bounds { max_size, min_free } = in_force.unwrap_or_else(|| bounds(cache, &storage.path));
        (!storage.read_only).then_some(ExplainedBounds { max_size, min_free })
    }

    /// Returns the age limits of a repository's tags. Only a running server knows whether few pulls are left at its
    /// upstream.
    fn freshness(&self, repo: &RepoId) -> TagFreshness {
        let in_force = self.server.and_then(|server| server.puller.tag_freshness(repo));
        in_force.unwrap_or_else(|| TagFreshness::new(&self.config.cache, false))
    }
}

/// Explains an image name or a request.
///
/// # Errors
/// A text that describes the error in the name, the request or the files.
pub fn explain(sources: &ExplainSources<'_>, request: &ExplainRequest) -> Result<Explanation, String> {
    let query = ExplainQuery::parse(&request.image, sources.routes)?;
    if let Some(user) = &request.as_user
        && (user.is_empty() || user.starts_with("group:"))
    {
        return Err(format!("\"{user}\" is no user; name a user or an identity, such as a member of the group"));
    }
    let policy = sources.policy();
    let principal = request.as_user.as_deref().map(Principal::named);
    // A local repository does not exist for a user who may do nothing with it.
    let may_know = |name: &RepoName| match (&policy, &principal) {
        (Some(policy), Some(principal)) => policy.allows_something(principal, &RepoId::local(name.clone())),
        _ => true,
    };
    let target = sources.routes.resolve(query.requested_repo(), |name| may_know(name) && sources.view.is_local(name));
    let target = target.map_err(|error| error.to_string())?;
    let access = request.as_user.as_ref().zip(principal.as_ref());
    let upstream = sources.config.upstream(target.repo.scope.as_str());
    let has_credentials = upstream.is_some_and(|upstream| !upstream.credentials.is_empty());
    let access = access
        .map(|(user, principal)| explain_access(policy.as_deref(), user, principal, &target.repo, has_credentials));
    let explained = gather(sources, target, &query.target).map_err(|error| error.to_string())?;
    Ok(Explanation { access, ..explained })
}

/// `has_credentials`: for the upstream of the repository, so that it may be a private one.
fn explain_access(
    policy: Option<&Policy>,
    user: &str,
    principal: &Principal,
    repo: &RepoId,
    has_credentials: bool,
) -> ExplainedAccess {
    // Mirrored repositories can only be read.
    let rights = [Right::Pull, Right::Push, Right::Delete];
    let rights = if repo.scope.is_local() { &rights[..] } else { &rights[..1] };
    let explain = |right: &Right| {
        let private = policy.and_then(|policy| policy.private_allowed_by(principal, repo)).filter(|_| has_credentials);
        let rule = private.or_else(|| policy?.allowed_by(principal, *right, repo));
        ExplainedRight {
            right: right.as_str().to_owned(),
            only_if_public: has_credentials && rule.is_some() && private.is_none(),
            rule: rule.map(str::to_owned),
        }
    };
    ExplainedAccess { user: user.to_owned(), has_users: policy.is_some(), rights: rights.iter().map(explain).collect() }
}

fn gather(sources: &ExplainSources<'_>, target: Target, asked_for: &QueryTarget) -> Result<Explanation, StoreError> {
    let (config, view) = (sources.config, sources.view);
    let Target { repo, rule } = target;
    let upstream = match &repo.scope {
        Scope::Upstream(name) => config.upstream(name),
        Scope::Local => None,
    };
    let (tag, content) = match asked_for {
        QueryTarget::Image(Reference::Digest(digest)) => (None, image_node(view, &repo, digest)?),
        QueryTarget::Image(Reference::Tag(tag)) => match sources.tag(&repo, tag)? {
            Some(record) => {
                (Some(tag_state(&record, &repo, sources.freshness(&repo))), image_node(view, &repo, &record.digest)?)
            }
            None => (None, None),
        },
        QueryTarget::Blob(digest) => (None, blob_node(view, &repo, digest)?),
        QueryTarget::Tags | QueryTarget::Referrers(_) => (None, None),
    };
    let mut explained = Explanation {
        image: asked_for.full_name(&repo),
        data: config.storage.path.display().to_string(),
        data_exists: config.storage.path.is_dir(),
        bounds: sources.bounds(),
        rule: describe(rule).to_owned(),
        scope: repo.scope.as_str().to_owned(),
        repository: repo.name.to_string(),
        urls: upstream.map(|upstream| upstream.urls.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        credentials: upstream.map_or(Some(false), |upstream| upstream.has_credentials_for(repo.name.as_str())),
        breaker: sources
            .server
            .zip(upstream)
            .and_then(|(server, upstream)| server.puller.breaker_state(&upstream.name)),
        kind: asked_for.into(),
        tag,
        manifest: content,
        upstream_requests: Vec::new(),
        access: None,
    };
    if !repo.scope.is_local() {
        explained.upstream_requests = requests(&explained, asked_for);
    }
    Ok(explained)
}

fn tag_state(record: &TagRecord, repo: &RepoId, freshness: TagFreshness) -> TagState {
    let now = SystemTime::now();
    let age = now.duration_since(record.confirmed).unwrap_or_default();
    let fresh = repo.scope.is_local() || freshness.is_fresh(record.confirmed, now);
    TagState { digest: record.digest.to_string(), confirmed_seconds_ago: age.as_secs(), fresh }
}

fn image_node(view: &View, repo: &RepoId, digest: &Digest) -> Result<Option<ContentNode>, StoreError> {
    manifest_node(view, repo, digest, MAX_INDEX_DEPTH, &mut HashSet::new())
}

/// Returns the node of a blob that may be read in the repository without a request to the upstream.
fn blob_node(view: &View, repo: &RepoId, digest: &Digest) -> Result<Option<ContentNode>, StoreError> {
    if !view.may_read(repo, digest)? {
        return Ok(None);
    }
    let length = view.content_length(digest)?;
    let (digest, media_type) = (digest.to_string(), "application/octet-stream".to_owned());
    Ok(Some(ContentNode {
        digest,
        media_type,
        size: length.unwrap_or(0),
        stored: length.is_some(),
        children: Vec::new(),
    }))
}

fn describe(rule: Rule) -> &'static str {
    match rule {
        Rule::Namespace => "the request names a configured upstream (ns)",
        Rule::OwnNamespace => "the request names this server (ns)",
        Rule::Host => "the request's host names a configured upstream",
        Rule::Path => "the name begins with a configured upstream",
        Rule::Local => "a local repository of this name, or a name that is local by configuration",
        Rule::Default => "no upstream in the name and no local repository: the default upstream",
        Rule::NoDefault => "no upstream in the name and no default upstream: local",
    }
}

fn manifest_node(
    view: &View,
    repo: &RepoId,
    digest: &Digest,
    depth: usize,
    seen: &mut HashSet<Digest>,
) -> Result<Option<ContentNode>, StoreError> {
    let is_repeated = seen.len() >= MAX_MANIFESTS || !seen.insert(digest.clone());
    let Some((media_type, content)) = view.manifest(repo, digest)? else { return Ok(None) };
    let stored = content.is_some();
    let bytes = content.unwrap_or_default();
    let mut children = Vec::new();
    let references = Manifest::parse(&bytes).map(|manifest| manifest.children).unwrap_or_default();
    for child in references.into_iter().filter(|_| !is_repeated) {
        let node = match child.is_manifest && depth > 0 {
            true => manifest_node(view, repo, &child.digest, depth - 1, seen)?,
            false => None,
        };
        let length = view.content_length(&child.digest)?;
        children.push(node.unwrap_or(ContentNode {
            digest: child.digest.to_string(),
            media_type: child.media_type.to_string(),
            size: length.or(child.size).unwrap_or(0),
            stored: length.is_some(),
            children: Vec::new(),
        }));
    }
    Ok(Some(ContentNode { digest: digest.to_string(), media_type, size: bytes.len() as u64, stored, children }))
}

fn requests(explained: &Explanation, asked_for: &QueryTarget) -> Vec<String> {
    let mut requests = Vec::new();
    match (asked_for, &explained.tag, &explained.manifest) {
        (QueryTarget::Image(Reference::Tag(tag)), None, _) => requests.push(format!("GET manifests/{tag}")),
        (QueryTarget::Image(Reference::Tag(tag)), Some(known), _) if !known.fresh => {
            requests.push(format!("HEAD manifests/{tag}"));
        }
        (QueryTarget::Image(Reference::Digest(digest)), _, None) => requests.push(format!("GET manifests/{digest}")),
        // If another repository has the content, a HEAD asks the upstream whether this repository has it, too.
        (QueryTarget::Blob(digest), _, None) => requests.push(format!("HEAD or GET blobs/{digest}")),
        (QueryTarget::Tags, ..) => requests.push("GET tags/list".to_owned()),
        (QueryTarget::Referrers(digest), ..) => requests.push(format!("GET referrers/{digest}")),
        _ => {}
    }
    if let Some(node) = &explained.manifest {
        missing(node, matches!(asked_for, QueryTarget::Image(_)), &mut requests);
    }
    requests
}

fn missing(node: &ContentNode, is_manifest: bool, requests: &mut Vec<String>) {
    if !node.stored {
        requests.push(format!("GET {}/{}", if is_manifest { "manifests" } else { "blobs" }, node.digest));
    }
    let index = crate::oci::media_type::is_index(&node.media_type);
    for child in &node.children {
        missing(child, index, requests);
    }
}
