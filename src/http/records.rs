//! What the audit log and the metrics of logins say about requests.
//!
//! The permission for a change is the beginning of its record ([`PendingChange`]), so no handler can forget it. The record is
//! written when the result is known, or when the client leaves before that: the change may have been made all the same.

use std::borrow::Cow;

use axum::response::Response;
use http::header::USER_AGENT;
use http::{HeaderName, Method, StatusCode};

use super::call::Call;
use super::error::ApiError;
use super::operation::{Operation, RareOperation};
use super::{App, CONTENT_DIGEST};
use crate::access::{AccessError, AttemptResult, Caller, How, Peer, Principal, Sender, VerifiedCertificate};
use crate::audit::{Audit, Event, Record};
use crate::config::{Right, Subject};
use crate::oci::{Digest, RepoId};
use crate::telemetry::RequestTrace;

const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");

/// A change that a request may make, from its permission on. Its record is written when this is dropped.
pub(super) struct PendingChange {
    audit: Audit,
    record: Record<'static>,
    /// The further tags that a push has set.
    tags: Vec<String>,
    /// `None`: nothing was changed.
    outcome: Option<&'static str>,
}

/// Reports a login when it is dropped: also if the client has left before its result was known.
pub(super) struct LoginReport<'a> {
    app: &'a App,
    caller: Caller<'a>,
    trace: &'a RequestTrace,
    sender: &'a Sender,
    /// Whether a token is issued, so that a login counts although its password is remembered.
    is_for_token: bool,
}

/// A record that says who sent a request.
fn record_of(event: Event, caller: Caller<'_>, trace: &RequestTrace) -> Record<'static> {
    let agent = caller.headers().get(USER_AGENT).map(|agent| String::from_utf8_lossy(agent.as_bytes()).into_owned());
    Record {
        client: caller.address(),
        agent: agent.map(Cow::Owned),
        request_id: Some(trace.id().to_owned().into()),
        ..Record::new(event)
    }
}

// === impl PendingChange ===

impl PendingChange {
    /// `None` if the request does not change what others see, or nothing is recorded.
    pub(super) fn of(app: &App, call: &Call<'_>, principal: &Principal, right: Right, repo: &RepoId) -> Option<Self> {
        if !app.audit.is_on() {
            return None;
        }
        use RareOperation as Rare;
        let Some(Operation::Rare(operation)) = Operation::of(call.method(), &call.route.endpoint) else { return None };
        let (event, reference, digest) = match operation {
            Rare::PutManifest(reference) => (Event::Push, Some(reference), None),
            Rare::DeleteManifest(reference) => (Event::Delete, Some(reference), None),
            Rare::DeleteBlob(digest) => (Event::Delete, None, Some(digest)),
            Rare::FinishUpload(_) => (Event::Push, None, call.query.get("digest")),
            Rare::StartUpload => (Event::Push, None, Some(call.query.get("mount").or(call.query.get("digest"))?)),
            _ => return None,
        };
        let digest = digest.or(reference.filter(|reference| reference.parse::<Digest>().is_ok()));
        let owned = |text: &str| Cow::Owned(text.to_owned());
        let record = Record {
            who: Some(owned(name(principal))),
            how: Some(call.sender().how(principal).as_str()),
            scope: Some(owned(repo.scope.as_str())),
            repository: Some(owned(repo.name.as_str())),
            reference: reference.map(owned),
            digest: digest.map(owned),
            rule: app.gate.rule_for(principal, right, repo).map(Cow::Owned),
            ..record_of(event, call.caller(), call.trace())
        };
        Some(Self { audit: app.audit.clone(), record, tags: Vec::new(), outcome: Some("abandoned") })
    }

    /// The result is known. A request that was refused has changed nothing.
    pub(super) fn conclude(mut self, answered: &Result<Response, ApiError>) {
        let expected = if self.record.event == Event::Delete { StatusCode::ACCEPTED } else { StatusCode::CREATED };
        self.outcome = match answered {
            Ok(response) if response.status() == expected => {
                let text =
                    |name: HeaderName| response.headers().get_all(name).iter().filter_map(|value| value.to_str().ok());
                if let Some(digest) = text(CONTENT_DIGEST).next() {
                    self.record.digest = Some(Cow::Owned(digest.to_owned()));
                }
                self.tags = text(OCI_TAG).map(str::to_owned).collect();
                Some("done")
            }
            Err(error) if error.is_of_server() => Some("failed"),
            _ => None,
        };
    }
}

impl Drop for PendingChange {
    fn drop(&mut self) {
        let Some(outcome) = self.outcome else { return };
        self.record.outcome = Some(outcome.into());
        self.audit.write(&self.record);
        for tag in self.tags.drain(..) {
            self.record.event = Event::Tag;
            self.record.reference = Some(tag.into());
            self.audit.write(&self.record);
        }
    }
}

// === impl LoginReport ===

impl<'a> LoginReport<'a> {
    pub(super) fn of_call(app: &'a App, call: &'a Call<'_>) -> Self {
        Self { app, caller: call.caller(), trace: call.trace(), sender: call.sender(), is_for_token: false }
    }

    pub(super) fn of_token(app: &'a App, caller: Caller<'a>, trace: &'a RequestTrace, sender: &'a Sender) -> Self {
        Self { app, caller, trace, sender, is_for_token: true }
    }
}

impl Drop for LoginReport<'_> {
    fn drop(&mut self) {
        let Some(attempt) = self.sender.attempt() else { return };
        let is_accepted = attempt.result == AttemptResult::Accepted;
        // Clients repeat a login with every request, right or wrong.
        if attempt.is_remembered && !(is_accepted && self.is_for_token) {
            return;
        }
        self.app.metrics.auth_attempt(attempt.how.as_str(), attempt.result.as_str());
        let event = if is_accepted { Event::Login } else { Event::LoginFailed };
        let (who, client) = (attempt.who.as_deref().unwrap_or_default().to_owned(), self.caller.address());
        self.app.audit.write_limited(event, client, &who, || Record {
            who: attempt.who.map(|who| Cow::Owned(who.into())),
            how: Some(attempt.how.as_str()),
            outcome: Some(attempt.result.as_str().into()),
            ..record_of(event, self.caller, self.trace)
        });
    }
}

/// Records a handshake with a client certificate. One that is accepted and has no name is no login.
pub(super) fn certificate(app: &App, peer: &Peer, result: AttemptResult) {
    let identity = peer.certificate.as_ref().and_then(VerifiedCertificate::identity);
    let is_accepted = result == AttemptResult::Accepted;
    if !app.gate.has_users() || (is_accepted && identity.is_none()) {
        return;
    }
    app.metrics.auth_attempt(How::Certificate.as_str(), result.as_str());
    let event = if is_accepted { Event::Login } else { Event::LoginFailed };
    let client = peer.address.map(|address| address.ip());
    let who = identity.map(|user| user.name().to_owned());
    let about = who.clone().unwrap_or_default();
    app.audit.write_limited(event, client, &about, || Record {
        who: who.map(Cow::Owned),
        how: Some(How::Certificate.as_str()),
        client,
        outcome: Some(result.as_str().into()),
        ..Record::new(event)
    });
}

/// Records the result of a request, as far as it matters. Called once for each request that was authenticated.
pub(super) fn conclude(app: &App, call: &mut Call<'_>, answered: &Result<Response, ApiError>) {
    if let Some(change) = call.take_change() {
        change.conclude(answered);
    }
    match answered {
        Err(ApiError::Access(AccessError::Denied)) => denied_on_repository(app, call),
        Ok(response) if app.audit.has_pulls() && response.status().is_success() => pulled(app, call),
        _ => {}
    }
}

fn denied_on_repository(app: &App, call: &Call<'_>) {
    let (right, reference) = match Operation::of(call.method(), &call.route.endpoint) {
        Some(Operation::ReadManifest(reference) | Operation::ReadBlob(reference)) => (Right::Pull, Some(reference)),
        Some(Operation::Rare(operation)) => match operation {
            RareOperation::ListReferrers(subject) => (Right::Pull, Some(subject)),
            RareOperation::PutManifest(reference) => (Right::Push, Some(reference)),
            RareOperation::DeleteManifest(reference) | RareOperation::DeleteBlob(reference) => {
                (Right::Delete, Some(reference))
            }
            RareOperation::ListRepositories | RareOperation::ListTags | RareOperation::NameMethods => {
                (Right::Pull, None)
            }
            RareOperation::StartUpload
            | RareOperation::AppendToUpload(_)
            | RareOperation::FinishUpload(_)
            | RareOperation::UploadStatus(_)
            | RareOperation::CancelUpload(_) => (Right::Push, None),
        },
        Some(Operation::Ping) | None => (Right::Pull, None),
    };
    denied(app, call, right, reference);
}

/// Records that a user may not do this.
pub(super) fn denied(app: &App, call: &Call<'_>, right: Right, reference: Option<&str>) {
    app.metrics.auth_denied(right.as_str());
    let who = sender_name(call.sender()).to_string();
    app.audit.write_limited(Event::Denied, call.caller().address(), &who, || {
        let outcome = Some(format!("may not {}", right.as_str()).into());
        let reference = reference.map(|reference| Cow::Owned(reference.to_owned()));
        let of_sender = match right {
            Right::Metrics | Right::Admin => of_sender(call, Event::Denied),
            Right::Pull | Right::Push | Right::Delete => of_repository(app, call, Event::Denied),
        };
        Record { outcome, reference, ..of_sender }
    });
}

fn pulled(app: &App, call: &Call<'_>) {
    let (Some(Operation::ReadManifest(reference) | Operation::ReadBlob(reference)), false) =
        (Operation::of(call.method(), &call.route.endpoint), *call.method() == Method::HEAD)
    else {
        return;
    };
    let is_digest = reference.parse::<Digest>().is_ok();
    let reference = Some(Cow::Owned(reference.to_owned()));
    let (reference, digest) = if is_digest { (None, reference) } else { (reference, None) };
    app.audit.write(&Record {
        reference,
        digest,
        outcome: Some("done".into()),
        ..of_repository(app, call, Event::Pull)
    });
}

/// A record about the repository that a request means.
fn of_repository(app: &App, call: &Call<'_>, event: Event) -> Record<'static> {
    let target = app.gate.routes().resolve(call.requested(), |name| app.store.is_local(name));
    let repo = target.ok().map(|target| target.repo);
    Record {
        scope: repo.as_ref().map(|repo| Cow::Owned(repo.scope.as_str().to_owned())),
        repository: Some(Cow::Owned(repo.map_or_else(|| call.route.name.clone(), |repo| repo.name.to_string()))),
        ..of_sender(call, event)
    }
}

/// A record that says who sent a request, as far as that was verified.
fn of_sender(call: &Call<'_>, event: Event) -> Record<'static> {
    let who = sender_name(call.sender());
    let how = if who == Subject::ANONYMOUS { How::Anonymous } else { call.sender().kind() };
    Record { who: Some(who), how: Some(how.as_str()), ..record_of(event, call.caller(), call.trace()) }
}

fn name(principal: &Principal) -> &str {
    principal.user().map_or(Subject::ANONYMOUS, |user| user.name())
}

/// Who has sent a request, as far as that was verified.
fn sender_name(sender: &Sender) -> Cow<'static, str> {
    match sender {
        Sender::Known(principal) => Cow::Owned(name(principal).to_owned()),
        Sender::Password(_) | Sender::Unusable => {
            let accepted = sender.attempt().filter(|attempt| attempt.result == AttemptResult::Accepted);
            accepted
                .and_then(|attempt| attempt.who)
                .map_or(Cow::Borrowed(Subject::ANONYMOUS), |who| Cow::Owned(who.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::response::IntoResponse;

    use super::*;
    use crate::config::Config;
    use crate::telemetry::Metrics;

    /// The lines of a change that ends in this way.
    fn lines(event: Event, end: impl FnOnce(PendingChange)) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("audit.log");
        let config = Config::from_toml(&format!("[audit]\nfile = {file:?}"), "test").unwrap();
        let (audit, flush) = Audit::open(&config, &Arc::new(Metrics::new(&[]))).unwrap();
        let record = Record::new(event);
        end(PendingChange { audit, record, tags: Vec::new(), outcome: Some("abandoned") });
        drop(flush);
        std::fs::read_to_string(file).unwrap().lines().map(|line| line[line.find(",").unwrap()..].to_owned()).collect()
    }

    #[test]
    fn a_change_is_recorded_unless_nothing_was_changed() {
        let conclude = |event, answered: Result<Response, ApiError>| lines(event, |change| change.conclude(&answered));
        let (push, delete) = (",\"event\":\"push\"", ",\"event\":\"delete\"");
        assert_eq!(lines(Event::Push, drop), [format!("{push},\"outcome\":\"abandoned\"}}")]);
        let tagged = (StatusCode::CREATED, [(CONTENT_DIGEST, "sha256:00"), (OCI_TAG, "a")]).into_response();
        let expected = [
            format!("{push},\"digest\":\"sha256:00\",\"outcome\":\"done\"}}"),
            ",\"event\":\"tag\",\"reference\":\"a\",\"digest\":\"sha256:00\",\"outcome\":\"done\"}".to_owned(),
        ];
        assert_eq!(conclude(Event::Push, Ok(tagged)), expected);
        let done = format!("{delete},\"outcome\":\"done\"}}");
        assert_eq!(conclude(Event::Delete, Ok(StatusCode::ACCEPTED.into_response())), [done]);
        assert_eq!(conclude(Event::Push, Err(ApiError::Panic)), [format!("{push},\"outcome\":\"failed\"}}")]);
        // An upload has begun, and a mistake of the client.
        assert_eq!(conclude(Event::Push, Ok(StatusCode::ACCEPTED.into_response())), [""; 0]);
        assert_eq!(conclude(Event::Push, Err(ApiError::Body)), [""; 0]);
    }
}
