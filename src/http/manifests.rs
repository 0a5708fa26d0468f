//! Manifests: GET and HEAD (end-3 of the distribution-spec), PUT (end-7) and DELETE (end-9).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION, WARNING};
use http::{HeaderName, HeaderValue, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout, timeout_at};

use super::body::Counter;
use super::error::{ApiError, MAX_NAMED_REFERENCES};
use super::fields::insert;
use super::fields::{FIELDS, content_type, insert_digest};
use super::{App, CONTENT_DIGEST, Call, Outcome, STALE};
use crate::access::{Authorized, Delete, Pull, Push};
use crate::oci::{
    Algorithm, Child, Digest, Manifest, ManifestError, Reference, ReferenceError, RepoId, Tag, media_type,
};
use crate::pull::{DocumentTurn, LARGE_DOCUMENT_BYTES, LargeDocuments, PullError, Served};
use crate::resolve::Rule;
use crate::store::{NewManifest, StoredManifest};
use crate::tasks::on_bytes;
use crate::telemetry::{CacheResult, ContentKind};

const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
/// How long a first push waits for the default upstream to say whether it has an image of that name.
const FIRST_PUSH_TIMEOUT: Duration = Duration::from_secs(4);
/// Tags that one push may set (distribution-spec: 414 for too many). Each is a header line of the response, and some clients,
/// among them hyper and Python, accept at most 100 of those.
const MAX_TAGS: usize = 64;

/// Largest number of large manifests that are received and checked at the same time.
const MAX_LARGE_MANIFESTS: usize = 16;
/// How long a client waits for its turn, and how long it may then take to send the rest.
const LARGE_MANIFEST_TURN_TIMEOUT: Duration = Duration::from_secs(20);
const LARGE_MANIFEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The turns of large pushed manifests.
pub fn large_manifests() -> LargeDocuments {
    LargeDocuments::new(MAX_LARGE_MANIFESTS)
}

/// GET and HEAD.
pub(super) async fn get(
    app: &Arc<App>,
    call: &Call<'_>,
    access: Authorized<Pull>,
    reference: &str,
) -> Result<Response, ApiError> {
    let repo = access.repo();
    let reference = match reference.parse() {
        Ok(reference) => reference,
        // No manifest can have such a tag.
        Err(ReferenceError::Tag(_)) => return Err(ApiError::Unknown(ContentKind::Manifest)),
        Err(error) => return Err(ApiError::Reference(error)),
    };
    let mut outcome = Outcome::of(app, call, repo, ContentKind::Manifest);
    let found = if repo.scope.is_local() {
        local(app, repo, &reference).await?
    } else {
        match mirrored(app, call, &access, &reference).await {
            Ok(served) => served,
            Err(error) => {
                outcome.failed(&error);
                return Err(ApiError::Pull { kind: ContentKind::Manifest, error });
            }
        }
    };
    outcome.answered(found.result);
    if !repo.scope.is_local() {
        app.store.note_served(&found.manifest);
    }
    let mut response = respond(call, &found.manifest);
    if let (Counter(Some((metrics, upstream))), StatusCode::OK) = (outcome.counter(), response.status()) {
        metrics.pushed_bytes(ContentKind::Manifest, &upstream, found.manifest.bytes.len() as u64);
    }
    if found.stale {
        response.headers_mut().insert(WARNING, STALE);
    }
    call.echo_namespace(&mut response, access.rule());
    Ok(response)
}

async fn local(app: &App, repo: &RepoId, reference: &Reference) -> Result<Served, ApiError> {
    let digest = match reference {
        Reference::Digest(digest) => Some(digest.clone()),
        Reference::Tag(tag) => app.store.tag(repo, tag).await?.map(|record| record.digest),
    };
    let manifest = match digest {
        Some(digest) => app.store.manifest(repo, &digest).await?,
        None => None,
    };
    let manifest = manifest.ok_or(ApiError::Unknown(ContentKind::Manifest))?;
    Ok(Served::new(manifest, CacheResult::Hit))
}

async fn mirrored(
    app: &App,
    call: &Call<'_>,
    access: &Authorized<Pull>,
    reference: &Reference,
) -> Result<Served, PullError> {
    let (puller, repo) = (call.puller(app), access.repo());
    let asked = async {
        match reference {
            Reference::Digest(digest) => puller.manifest(repo, digest).await,
            Reference::Tag(tag) => puller.tag(repo, tag).await,
        }
    };
    // A first push begins with a HEAD that names no upstream. A failure of the default upstream must not fail it, nor a
    // denial, which is Docker Hub's response to credentials where there is no such repository. Nor does it wait for the full
    // deadline; the request to the upstream goes on without it.
    if access.rule() == Rule::Default && call.is_head() && call.may_begin_push(app).await {
        return timeout(FIRST_PUSH_TIMEOUT, asked)
            .await
            .unwrap_or(Err(PullError::NotFound))
            .or(Err(PullError::NotFound));
    }
    let served = asked.await?;
    if served.result == CacheResult::Miss && !app.gate.has_users() {
        // Boxed, so that the rare case does not make the future of every request larger.
        Box::pin(puller.warn_if_private(repo, Some(reference.clone()))).await;
    }
    Ok(served)
}

fn respond(call: &Call<'_>, manifest: &StoredManifest) -> Response {
    let unchanged = call.has_already(&manifest.quoted_digest);
    let mut response = if unchanged {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let body = if call.is_head() { Body::empty() } else { Body::from(manifest.bytes.clone()) };
        Response::new(body)
    };
    let headers = response.headers_mut();
    headers.reserve(FIELDS);
    if !unchanged {
        headers.insert(CONTENT_LENGTH, manifest.bytes.len().into());
        if let Some(media_type) = content_type(&manifest.media_type) {
            headers.insert(CONTENT_TYPE, media_type);
        }
    }
    insert_digest(headers, &manifest.quoted_digest);
    response
}

/// PUT of a manifest (distribution-spec, "Pushing manifests"). Checks in this order: reference, media type, content,
/// digest, everything that the manifest refers to.
pub(super) async fn put(
    app: &Arc<App>,
    call: &Call<'_>,
    access: Authorized<Push>,
    reference: &str,
    body: Body,
) -> Result<Response, ApiError> {
    let repo = access.repo();
    let reference: Reference = reference.parse().map_err(ApiError::Reference)?;
    let tags = tags_to_set(call, &reference)?;
    let (bytes, _turn) = read(app, call, repo, body).await?;
    let declared = declared_media_type(call)?;
    let (named, as_declared) = (reference.clone(), declared.clone());
    let (digest, manifest) = on_bytes(bytes.clone(), move |bytes| {
        let algorithm = match &named {
            Reference::Tag(_) => Algorithm::Sha256,
            Reference::Digest(digest) => digest.algorithm(),
        };
        (Digest::of(algorithm, bytes), Manifest::parse_pushed(bytes, as_declared.as_deref()))
    })
    .await
    .ok_or(ApiError::Panic)?;
    let manifest = manifest?;
    if let Reference::Digest(expected) = &reference
        && *expected != digest
    {
        return Err(ApiError::DigestMismatch { expected: expected.clone(), found: digest });
    }
    require_references(app, repo, &manifest).await?;
    let media_type = declared.unwrap_or_else(|| manifest.guess_media_type());
    let new = NewManifest { digest: digest.clone(), media_type, bytes, manifest };
    let subject = new.manifest.subject.clone();
    let tags_of_query = if matches!(reference, Reference::Digest(_)) { tags.clone() } else { Vec::new() };
    let names: Vec<String> = tags.iter().map(ToString::to_string).collect();
    app.store.put_manifest(repo, new, tags).await?;
    tracing::info!(%repo, %digest, tags = names.join(","), "pushed {repo}:{} ({digest})", names.join(","));
    let mut response = StatusCode::CREATED.into_response();
    let headers = response.headers_mut();
    insert(headers, LOCATION, format!("/v2/{}/manifests/{reference}", repo.name));
    insert(headers, CONTENT_DIGEST, digest.to_string());
    if let Some(subject) = subject {
        insert(headers, OCI_SUBJECT, subject.to_string());
    }
    for tag in tags_of_query {
        if let Ok(tag) = HeaderValue::try_from(tag.as_str()) {
            headers.append(OCI_TAG, tag);
        }
    }
    Ok(response)
}

/// The media type in `Content-Type`; `None` if there is no such header. Its rules are those of the `mediaType` field.
fn declared_media_type(call: &Call<'_>) -> Result<Option<String>, ApiError> {
    let Some(value) = call.parts.headers.get(CONTENT_TYPE) else { return Ok(None) };
    let declared = value.to_str().ok().and_then(media_type::of_manifest);
    declared.map(Some).ok_or(ApiError::Manifest(ManifestError::InvalidMediaType))
}

/// The tag of the path; for a push by digest, the tags of the query.
fn tags_to_set(call: &Call<'_>, reference: &Reference) -> Result<Vec<Tag>, ApiError> {
    match reference {
        Reference::Tag(tag) => Ok(vec![tag.clone()]),
        Reference::Digest(_) => {
            let tags = call.query.all("tag").take(MAX_TAGS + 1).map(str::parse);
            let tags: Vec<Tag> =
                tags.collect::<Result<_, _>>().map_err(|error| ApiError::Reference(ReferenceError::Tag(error)))?;
            if tags.len() > MAX_TAGS { Err(ApiError::TooManyTags { max: MAX_TAGS }) } else { Ok(tags) }
        }
    }
}

/// Receives the body. A large body waits for a turn, which the result holds. So many large manifests do not fill the
/// memory.
async fn read(
    app: &App,
    call: &Call<'_>,
    repo: &RepoId,
    mut body: Body,
) -> Result<(Bytes, Option<DocumentTurn>), ApiError> {
    let limit = Manifest::MAX_PUSHED_LENGTH;
    let announced = call.header(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(ApiError::ManifestTooLarge { limit });
    }
    let mut bytes = BytesMut::new();
    if receive(app, &mut body, &mut bytes, LARGE_DOCUMENT_BYTES, None).await? {
        return Ok((bytes.freeze(), None));
    }
    let turn = app.large_manifests.turn(repo, Instant::now() + LARGE_MANIFEST_TURN_TIMEOUT).await;
    let turn = turn.ok_or(ApiError::TooManyManifests)?;
    let deadline = Some(Instant::now() + LARGE_MANIFEST_TIMEOUT);
    // Allocated at once, because a growing buffer leaves freed buffers of half its size to the allocator.
    bytes.reserve((announced.unwrap_or(0) as usize).saturating_sub(bytes.len()));
    let received = AtomicUsize::new(bytes.len());
    let rest = async {
        let mut has_ended = false;
        while !has_ended {
            let enough = bytes.len();
            has_ended = receive(app, &mut body, &mut bytes, enough, deadline).await?;
            received.store(bytes.len(), Ordering::Relaxed);
        }
        Ok(())
    };
    turn.receive(&received, rest).await.unwrap_or(Err(ApiError::TooManyManifests))?;
    Ok((bytes.freeze(), Some(turn)))
}

/// Appends to `bytes` until there are more than `enough` or the body ends. Returns whether it has ended.
async fn receive(
    app: &App,
    body: &mut Body,
    bytes: &mut BytesMut,
    enough: usize,
    deadline: Option<Instant>,
) -> Result<bool, ApiError> {
    let limit = Manifest::MAX_PUSHED_LENGTH;
    while bytes.len() <= enough {
        let Some(frame) = next_frame(app, body, deadline).await? else { return Ok(true) };
        let Ok(data) = frame.into_data() else { continue };
        if (bytes.len() + data.len()) as u64 > limit {
            return Err(ApiError::ManifestTooLarge { limit });
        }
        bytes.extend_from_slice(&data);
    }
    Ok(false)
}

async fn next_frame(app: &App, body: &mut Body, deadline: Option<Instant>) -> Result<Option<Frame<Bytes>>, ApiError> {
    let progress = Instant::now() + app.progress_timeout;
    let until = deadline.map_or(progress, |deadline| deadline.min(progress));
    let frame = timeout_at(until, body.frame()).await.map_err(|_| ApiError::Body)?;
    frame.transpose().map_err(|_| ApiError::Body)
}

/// Everything that a manifest refers to must be in its repository, except a subject and layers that are fetched elsewhere.
async fn require_references(app: &App, repo: &RepoId, manifest: &Manifest) -> Result<(), ApiError> {
    let mut missing = manifest.unsupported.clone();
    let mut checked = HashSet::new();
    for child in manifest.children.iter().filter(|child| !child.optional) {
        // No more than the error names, because a manifest may refer to tens of thousands of blobs.
        if missing.len() >= MAX_NAMED_REFERENCES {
            break;
        }
        if checked.insert(&child.digest) && !is_present(app, repo, child).await? {
            missing.push(child.digest.to_string());
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(ApiError::MissingReferences(missing)) }
}

/// Whether the repository has what a manifest refers to. An entry of an index may be a blob, as in BuildKit's cache.
async fn is_present(app: &App, repo: &RepoId, child: &Child) -> Result<bool, ApiError> {
    if child.is_manifest && app.store.manifest(repo, &child.digest).await?.is_some() {
        return Ok(true);
    }
    Ok(child.may_be_blob && super::blobs::is_stored(app, repo, &child.digest).await?)
}

/// DELETE by digest removes the manifest and its tags; by tag, only the tag.
pub(super) async fn delete(app: &Arc<App>, access: Authorized<Delete>, reference: &str) -> Result<Response, ApiError> {
    let repo = access.repo();
    let existed = match reference.parse().map_err(ApiError::Reference)? {
        Reference::Tag(tag) => app.store.delete_tag(repo, &tag).await?,
        Reference::Digest(digest) => app.store.delete_manifest(repo, &digest).await?,
    };
    if existed { Ok(StatusCode::ACCEPTED.into_response()) } else { Err(ApiError::Unknown(ContentKind::Manifest)) }
}
