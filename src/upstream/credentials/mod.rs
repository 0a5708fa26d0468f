//! Credentials for requests to upstreams. The first rule of the upstream that is for the repository names the source. A
//! source keeps its result until that expires or the file changes.
//!
//! To add a kind of source: a variant of `config::credentials::CredentialSource`, its keys in `config::layer`,
//! `config::build_credentials` and `config::show`, and a variant of `Source` in `keyring`.
//!
//! Secrets are sent only in an `Authorization` header or to a token server. No error, log line or `Debug` output
//! contains a secret or the output of a program.

mod docker;
mod keyring;
mod password;
mod program;
mod renewed;
mod watched;

use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::HeaderValue;

use crate::config::Secret;

pub(super) use keyring::Keyring;

/// The user name that marks a password as a refresh token, as in Docker's files and helpers.
const IDENTITY_TOKEN_USER: &str = "<token>";

/// Why a source failed. Contains no secret.
type FailureReason = Arc<str>;

/// The result of a source. `None`: it has no credentials for the host, and requests are anonymous.
type SourceResult = Option<Arc<Credentials>>;

/// The credentials of one account at an upstream.
pub(super) struct Credentials {
    pub(super) account: Account,
    pub(super) username: String,
    pub(super) password: Secret,
    /// `Basic …` or, for a token that needs no token server, `Bearer …`; marked sensitive.
    pub(super) authorization: HeaderValue,
    pub(super) is_bearer: bool,
}

/// Identifies an account within this process without revealing it. Other credentials have another value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Account(Option<u64>);

/// Identifies a login of Docker's file within this process, without revealing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Login(u64);

/// A random key per process, so that a hash reveals nothing about a password.
static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

// === impl Account ===

impl Account {
    /// No account.
    pub(super) const ANONYMOUS: Self = Self(None);

    fn of(username: &str, password: &str) -> Self {
        Self(Some(KEY.hash_one((username, password))))
    }
}

// === impl Login ===

impl Login {
    /// The login that consists of these identities, one for each URL of the upstream.
    fn of(identities: impl Iterator<Item = impl Hash>) -> Self {
        Self(KEY.hash_one((true, identities.collect::<Vec<_>>())))
    }

    /// The login of a repository while the file is not known.
    fn unknown(repository: &str) -> Self {
        Self(KEY.hash_one((false, repository)))
    }
}

// === impl Credentials ===

impl Credentials {
    /// A user name and password. `None` if they cannot be sent in a header.
    fn new(username: &str, password: &str) -> Option<Self> {
        let encoded = BASE64_STANDARD.encode(format!("{username}:{password}"));
        Self::with(username, password, format!("Basic {encoded}"), false)
    }

    /// A refresh token, which a token server exchanges for a token.
    fn identity(token: &str) -> Option<Self> {
        Self::new(IDENTITY_TOKEN_USER, token)
    }

    /// A token that the registry itself accepts.
    fn bearer(token: &str) -> Option<Self> {
        Self::with("", token, format!("Bearer {token}"), true)
    }

    fn with(username: &str, password: &str, authorization: String, is_bearer: bool) -> Option<Self> {
        let mut authorization = HeaderValue::try_from(authorization).ok()?;
        authorization.set_sensitive(true);
        Some(Self {
            account: Account::of(username, password),
            username: username.to_owned(),
            password: Secret::from(password.to_owned()),
            authorization,
            is_bearer,
        })
    }

    /// Whether the password is a refresh token.
    pub(super) fn is_identity_token(&self) -> bool {
        self.username == IDENTITY_TOKEN_USER
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}
