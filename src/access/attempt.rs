//! What became of the credentials of a request, for the audit log and for metrics.

use parking_lot::Mutex;

/// A kind of credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Password,
    /// A token of the token endpoint.
    Token,
    /// A token of an issuer, in the place of a password.
    Oidc,
    Certificate,
    MachineToken,
    /// None.
    Anonymous,
}

/// What became of credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    Accepted,
    Refused,
    /// They were not looked at, because too many wrong ones came from this client.
    Throttled,
    /// They were not looked at, because too many are being verified.
    Busy,
    /// The keys of the issuer of a token cannot be had.
    Unavailable,
    /// The client left before the result was known.
    Abandoned,
}

/// A login and its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub how: How,
    /// The user who is meant, if there is such a user. Other names are not kept: people type their password as their name.
    pub who: Option<Box<str>>,
    pub result: AttemptResult,
    /// Whether the result was known before.
    pub is_remembered: bool,
}

/// Where the verification of a login notes its result. It is no part of the login, so all notes are equal.
#[derive(Default)]
pub(super) struct AttemptNote(Mutex<Option<Attempt>>);

// === impl How ===

impl How {
    pub const ALL: [Self; 6] =
        [Self::Password, Self::Token, Self::Oidc, Self::Certificate, Self::MachineToken, Self::Anonymous];

    /// The name in the audit log, and the value of the metric label `how`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Token => "token",
            Self::Oidc => "oidc",
            Self::Certificate => "cert",
            Self::MachineToken => "machine_token",
            Self::Anonymous => "anonymous",
        }
    }
}

// === impl AttemptResult ===

impl AttemptResult {
    pub const ALL: [Self; 6] =
        [Self::Accepted, Self::Refused, Self::Throttled, Self::Busy, Self::Unavailable, Self::Abandoned];

    /// The outcome in the audit log, and the value of the metric label `result`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Throttled => "throttled",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
            Self::Abandoned => "abandoned",
        }
    }
}

// === impl AttemptNote ===

impl AttemptNote {
    /// Begins an attempt, which is abandoned unless it ends.
    pub(super) fn begin(&self, how: How, who: Option<Box<str>>) {
        *self.0.lock() = Some(Attempt { how, who, result: AttemptResult::Abandoned, is_remembered: false });
    }

    /// The result is one that was known before.
    pub(super) fn is_remembered(&self) {
        if let Some(attempt) = &mut *self.0.lock() {
            attempt.is_remembered = true;
        }
    }

    pub(super) fn end(&self, result: AttemptResult) {
        if let Some(attempt) = &mut *self.0.lock() {
            attempt.result = result;
        }
    }

    /// The credentials are accepted, as those of this identity.
    pub(super) fn accept(&self, who: &str) {
        if let Some(attempt) = &mut *self.0.lock() {
            (attempt.who, attempt.result) = (Some(who.into()), AttemptResult::Accepted);
        }
    }

    /// `None` if nothing was verified.
    pub(super) fn get(&self) -> Option<Attempt> {
        self.0.lock().clone()
    }
}

impl Clone for AttemptNote {
    fn clone(&self) -> Self {
        Self(Mutex::new(self.get()))
    }
}

impl PartialEq for AttemptNote {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for AttemptNote {}
