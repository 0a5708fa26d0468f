//! One request, taken apart, and the permissions that it gets from the gate.

use std::sync::OnceLock;
use std::time::Instant;

use axum::response::Response;
use futures_util::future::{Either, ready};
use http::header::{HOST, IF_NONE_MATCH};
use http::request::Parts;
use http::{HeaderName, Method, Version};

use super::App;
use super::error::ApiError;
use super::fields::{insert, names_tag};
use super::host;
use super::query::Query;
use super::records::{LoginReport, PendingChange};
use crate::access::{
    AccessError, Action, Authorized, Caller, Catalog, Delete, Peer, Principal, Pull, Pulling, Push, Sender,
};
use crate::config::Right;
use crate::oci::{Digest, Endpoint, Reference, ReferenceError, RepoId, Route};
use crate::pull::PullRequest;
use crate::resolve::{RequestedRepo, Rule};
use crate::telemetry::{ContentKind, RequestTrace};
use crate::upstream::Hops;

const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// One request.
pub(super) struct Call<'a> {
    pub(super) parts: Parts,
    pub(super) query: Query,
    pub(super) route: Route,
    peer: &'a Peer,
    sender: Sender,
    /// Its id and span.
    trace: &'a RequestTrace,
    /// The servers that it has passed (`Via`).
    hops: Hops,
    /// What it may change, from the permission on.
    change: OnceLock<Box<PendingChange>>,
}

impl<'a> Call<'a> {
    pub(super) fn new(parts: Parts, route: Route, peer: &'a Peer, sender: Sender, trace: &'a RequestTrace) -> Self {
        let (query, hops) = (Query::of(&parts.uri), Hops::of(&parts.headers));
        Self { parts, query, route, peer, sender, trace, hops, change: OnceLock::new() }
    }

    /// Who sent it, as far as its connection and its headers say.
    pub(super) fn caller(&self) -> Caller<'_> {
        Caller::new(self.peer, &self.parts.headers)
    }

    pub(super) fn sender(&self) -> &Sender {
        &self.sender
    }

    pub(super) fn trace(&self) -> &RequestTrace {
        self.trace
    }

    /// The record of what it may have changed.
    pub(super) fn take_change(&mut self) -> Option<Box<PendingChange>> {
        self.change.take()
    }

    pub(super) fn method(&self) -> &Method {
        &self.parts.method
    }

    pub(super) fn is_head(&self) -> bool {
        self.parts.method == Method::HEAD
    }

    /// The value of a header, if it is text.
    pub(super) fn header(&self, name: HeaderName) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }

    /// Whether the client has the content of this entity tag: an `If-None-Match` names it, by weak comparison (RFC
    /// 9110, section 13.1.2). Several lines of it are one list.
    pub(super) fn has_already(&self, etag: &[u8]) -> bool {
        self.parts.headers.get_all(IF_NONE_MATCH).iter().any(|line| names_tag(line.as_bytes(), etag))
    }

    /// Whether the request has passed the server of this name in `Via`.
    pub(super) fn has_passed(&self, via: &str) -> bool {
        self.hops.contains(via)
    }

    /// The miss engine, on behalf of this request.
    pub(super) fn puller(&'a self, app: &'a App) -> PullRequest<'a> {
        app.puller.on_behalf_of(self.trace, &self.hops)
    }

    /// When the headers of the request had arrived.
    pub(super) fn started(&self) -> Instant {
        self.trace.started()
    }

    /// Whether the response must have a length: a body without one that fails looks complete to an HTTP/1.0 client.
    pub(super) fn needs_length(&self) -> bool {
        self.parts.version < Version::HTTP_11
    }

    /// What the request says about the repository that it means.
    pub(super) fn requested(&self) -> RequestedRepo<'_> {
        // The host that a trusted proxy was asked for takes precedence over the one that it asks for. Then that of an absolute
        // target, or `:authority` (RFC 9112, section 3.2.2).
        let forwarded = self.caller().forwarded_host().filter(|host| host::is_valid(host.as_bytes()));
        let authority = || self.parts.uri.authority().map(|authority| authority.as_str());
        RequestedRepo {
            ns: self.query.get("ns"),
            host: forwarded.or_else(authority).or_else(|| self.header(HOST)),
            prefix: self.route.prefix.as_deref(),
            name: &self.route.name,
        }
    }

    /// Who sent the request. Takes long for a password that was not verified lately.
    async fn principal(&self, app: &App) -> Result<Principal, AccessError> {
        let _report = LoginReport::of_call(app, self);
        // Boxed, so that the rare case does not make the future of every request larger.
        Ok(Box::pin(app.gate.authenticate(&self.sender)).await?)
    }

    /// Whether the API may be used.
    pub(super) async fn may_ping(&self, app: &App) -> Result<(), ApiError> {
        let _report = LoginReport::of_call(app, self);
        Ok(app.gate.ping(&self.sender, self.requested()).await?)
    }

    /// Permission to read from the repository that the request means. What everybody may read does not depend on a
    /// password: clients of a mirror send the one for another registry.
    pub(super) fn may_pull(&self, app: &App) -> impl Future<Output = Result<Authorized<Pull>, ApiError>> + Send {
        if let Sender::Known(principal) = &self.sender {
            match self.pulling(app, principal) {
                Ok(Pulling::Allowed(access)) => return Either::Left(ready(Ok(access))),
                Err(error) => return Either::Left(ready(Err(error.into()))),
                Ok(Pulling::IfPublic(_)) => {}
            }
        }
        // Boxed, so that the rare cases do not make the future of every request larger.
        Either::Right(Box::pin(async move {
            if let Sender::Known(principal) = &self.sender {
                return self.may_pull_as(app, principal).await;
            }
            let refused = match self.may_pull_as(app, &Principal::Anonymous).await {
                Ok(access) => return Ok(access),
                Err(error) => error,
            };
            match (self.principal(app).await, refused) {
                (Ok(principal), _) => self.may_pull_as(app, &principal).await,
                (Err(error), ApiError::Access(_)) => Err(error.into()),
                // The login may be one for another registry.
                (Err(_), error) => Err(error),
            }
        }))
    }

    async fn may_pull_as(&self, app: &App, principal: &Principal) -> Result<Authorized<Pull>, ApiError> {
        let pull = match self.pulling(app, principal)? {
            Pulling::Allowed(access) => return Ok(access),
            Pulling::IfPublic(pull) => pull,
        };
        let (wanted, kind) = self.wanted_manifest()?;
        let is_public = match self.puller(app).is_public(pull.repo(), wanted).await {
            Ok(is_public) => is_public,
            // A user may be allowed to see what the upstream hides.
            Err(error) if error.is_not_found() && principal.user().is_none() => false,
            Err(error) => return Err(ApiError::Pull { kind, error }),
        };
        Ok(pull.if_public(is_public)?)
    }

    fn pulling(&self, app: &App, principal: &Principal) -> Result<Pulling, AccessError> {
        app.gate.pull(principal, self.requested(), |name| app.store.is_local(name))
    }

    /// The manifest that a read asks its repository for, if it does, and what its errors are about.
    fn wanted_manifest(&self) -> Result<(Option<Reference>, ContentKind), ApiError> {
        Ok(match &self.route.endpoint {
            Endpoint::Manifest(reference) => {
                let reference = reference.parse().map_err(|error| match error {
                    // No manifest can have such a tag.
                    ReferenceError::Tag(_) => ApiError::Unknown(ContentKind::Manifest),
                    error => ApiError::Reference(error),
                })?;
                (Some(reference), ContentKind::Manifest)
            }
            Endpoint::Blob(digest) => {
                digest.parse::<Digest>()?;
                (None, ContentKind::Blob)
            }
            _ => (None, ContentKind::Manifest),
        })
    }

    /// Permission to read metrics.
    pub(super) async fn may_read_metrics(&self, app: &App) -> Result<(), ApiError> {
        if app.gate.metrics(&Principal::Anonymous).is_ok() {
            return Ok(());
        }
        Ok(app.gate.metrics(&self.principal(app).await?)?)
    }

    /// Permission to list repositories.
    pub(super) async fn may_list(&self, app: &App) -> Result<Authorized<Catalog>, ApiError> {
        Ok(app.gate.catalog(&self.principal(app).await?)?)
    }

    /// Permission to push to the repository that the request means. A name that is cached from the default upstream
    /// cannot become local: a mirror client asks for such a name without an upstream, and must not get what was
    /// pushed instead.
    pub(super) async fn may_push(&self, app: &App) -> Result<Authorized<Push>, ApiError> {
        let access = self.may_push_as(app, &self.principal(app).await?).await?;
        self.expect_change(app, &access, Right::Push);
        Ok(access)
    }

    /// Whether the sender may push there, for reads that may be the beginning of a push. No password is verified for that:
    /// clients of a mirror send the one for another registry.
    pub(super) async fn may_begin_push(&self, app: &App) -> bool {
        match &self.sender {
            Sender::Known(principal) => self.may_push_as(app, principal).await.is_ok(),
            Sender::Password(_) | Sender::Unusable => false,
        }
    }

    async fn may_push_as(&self, app: &App, principal: &Principal) -> Result<Authorized<Push>, ApiError> {
        let access = app.gate.push(principal, self.requested())?;
        let name = &access.repo().name;
        if !app.store.is_local(name)
            && let Some(mirrored) = app.gate.routes().default_repository(name)
            && app.store.repository_exists(&mirrored).await?
        {
            return Err(ApiError::NameTaken(name.to_string(), mirrored.scope.as_str().to_owned()));
        }
        Ok(access)
    }

    /// Permission to delete from the repository that the request means.
    pub(super) async fn may_delete(&self, app: &App) -> Result<Authorized<Delete>, ApiError> {
        let principal = self.principal(app).await?;
        let access = app.gate.delete(&principal, self.requested(), |name| app.store.is_local(name))?;
        self.expect_change(app, &access, Right::Delete);
        Ok(access)
    }

    /// Begins the record of a change.
    fn expect_change<A: Action<Object = RepoId>>(&self, app: &App, access: &Authorized<A>, right: Right) {
        if let Some(change) = PendingChange::of(app, self, access.principal(), right, access.repo()) {
            // There is one permission for each request.
            let _ = self.change.set(Box::new(change));
        }
    }

    /// Returns the `ns` of the request (distribution-spec, "Registry Proxying").
    pub(super) fn echo_namespace(&self, response: &mut Response, rule: Rule) {
        if let (Some(ns), Rule::Namespace | Rule::OwnNamespace) = (self.query.get("ns"), rule) {
            insert(response.headers_mut(), OCI_NAMESPACE, ns.to_owned());
        }
    }
}
