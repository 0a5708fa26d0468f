//! Whose rights a request to an upstream uses: the first of the upstream's rules that is for the repository says where
//! the credentials come from, and each source keeps what it gave until that is too old or the file has changed.
//!
//! What comes from here ends up in an `Authorization` or at a token server, and nowhere else: no message, log line or
//! `Debug` output carries a secret, nor what a program said.

mod docker;
mod keyring;
mod password;
mod program;
mod renewed;
mod watched;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::HeaderValue;

use crate::config::Secret;

pub(super) use keyring::Keyring;

/// The user name by which Docker's own credential files say that the password is a refresh token.
const IDENTITY_TOKEN_USER: &str = "<token>";

/// Why there are no credentials where there should be some. Carries no secret.
type Failure = Arc<str>;

/// What a source gives: `None` where it has nothing for this host, which is asked anonymously then.
type Found = Option<Arc<Credentials>>;

/// One account at an upstream.
pub(super) struct Credentials {
    pub(super) account: Account,
    pub(super) username: String,
    pub(super) password: Secret,
    /// `Basic …` or, for a token that needs no token server, `Bearer …`; marked sensitive.
    pub(super) authorization: HeaderValue,
    pub(super) is_bearer: bool,
}

/// Which account, without saying what it is: other credentials have another. Meaningful within one run of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Account(Option<u64>);

// === impl Account ===

impl Account {
    pub(super) const ANONYMOUS: Self = Self(None);

    fn of(username: &str, password: &str) -> Self {
        /// Keyed afresh by every process, so that an id says nothing about a password.
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self(Some(KEY.hash_one((username, password))))
    }
}

// === impl Credentials ===

impl Credentials {
    /// `None` for what cannot stand in a header.
    fn new(username: &str, password: &str) -> Option<Self> {
        let encoded = BASE64_STANDARD.encode(format!("{username}:{password}"));
        Self::with(username, password, format!("Basic {encoded}"), false)
    }

    /// A refresh token, to be exchanged at a token server.
    fn identity(token: &str) -> Option<Self> {
        Self::new(IDENTITY_TOKEN_USER, token)
    }

    /// A token that the registry itself takes.
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

    pub(super) fn is_identity_token(&self) -> bool {
        self.username == IDENTITY_TOKEN_USER
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}
