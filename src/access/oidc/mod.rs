//! Tokens of OIDC issuers as passwords: those that CI services and clusters give to their jobs (`[auth.issuer.NAME]`).
//!
//! No client of a registry speaks OIDC. What works everywhere is `docker login` with such a token in the place of the
//! password. It is recognised by its shape and by the issuer that it claims; anything else is an ordinary password. The
//! token endpoint then gives a token of ours for it, which may outlive it: a job may push longer than its token is valid.

mod fetch;
mod issuer;
mod json;
mod keys;
#[cfg(test)]
mod test_keys;
mod token;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use moka::sync::Cache;
use ring::digest::{SHA256, digest};

pub use issuer::IssuerFileError;
pub use token::TokenRefused;

use issuer::{Claimed, Issuer};
use token::UnverifiedToken;

use super::account::Account;
use super::attempt::{AttemptNote, AttemptResult, How};
use super::authenticate::AuthFileError;
use super::principal::User;
use crate::config::IssuerConfig;

pub(super) use issuer::NotVerified;

/// Verified tokens that are remembered, for clients that send one with each request.
const MAX_VERIFIED: u64 = 10_000;
/// How long a verified token is remembered, although its key may be gone.
const REMEMBER_FOR: Duration = Duration::from_secs(5 * 60);

/// The issuers of `[auth]`.
pub(super) struct Issuers {
    issuers: Vec<Arc<Issuer>>,
    /// By the hash of the whole token.
    verified: Cache<[u8; 32], Arc<Verified>>,
}

/// A token that was verified.
struct Verified {
    user: Arc<User>,
    /// A moment after which it must be verified again.
    expires: SystemTime,
}

// === impl Issuers ===

impl Issuers {
    /// Reads the files of the issuers, which blocks.
    pub(super) fn load(issuers: &[IssuerConfig]) -> Result<Self, AuthFileError> {
        let load = |config: &IssuerConfig| match Issuer::load(config) {
            Ok(issuer) => Ok(Arc::new(issuer)),
            Err(error) => Err(AuthFileError::Issuer { issuer: config.name.clone(), error }),
        };
        let verified = Cache::builder().max_capacity(MAX_VERIFIED).time_to_live(REMEMBER_FOR).build();
        Ok(Self { issuers: issuers.iter().map(load).collect::<Result<_, _>>()?, verified })
    }

    /// Fetches keys when they are needed, and follows files, until it is dropped.
    pub(super) async fn follow(self: Arc<Self>) {
        join_all(self.issuers.iter().cloned().map(Issuer::follow)).await;
    }

    /// The account of a token; `None` if the text is not a token of a configured issuer. The result is noted in `attempt`.
    pub(super) async fn verify(&self, text: &str, attempt: &AttemptNote) -> Option<Result<Account, NotVerified>> {
        if self.issuers.is_empty() {
            return None;
        }
        let token = UnverifiedToken::parse(text)?;
        let claimed = token.issuer()?;
        let issuer = self.issuers.iter().find(|issuer| issuer.config().issuer == claimed)?;
        attempt.begin(How::Oidc, None);
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
        let verified = match self.verified.get(&key).filter(|verified| SystemTime::now() < verified.expires) {
            Some(verified) => {
                attempt.is_remembered();
                verified
            }
            None => match issuer.verify(&token).await {
                Ok(claimed) => {
                    let verified = Arc::new(claimed.of(issuer.config()));
                    self.verified.insert(key, verified.clone());
                    verified
                }
                Err(error) => {
                    attempt.end(match error {
                        NotVerified::Refused(_) => AttemptResult::Refused,
                        NotVerified::Unavailable { .. } => AttemptResult::Unavailable,
                    });
                    let issuer = &issuer.config().name;
                    tracing::debug!(issuer, ?error, "refused a token of an issuer");
                    return Some(Err(error));
                }
            },
        };
        attempt.accept(verified.user.name());
        Some(Ok(Account { user: verified.user.clone(), credential: issuer.credential().clone() }))
    }

    /// What the tokens for identities of this issuer depend on; `None` if there is none of this name.
    pub(super) fn credential(&self, name: &str) -> Option<Arc<str>> {
        self.issuers.iter().find(|issuer| issuer.config().name == name).map(|issuer| issuer.credential().clone())
    }
}

// === impl Claimed ===

impl Claimed {
    fn of(self, issuer: &IssuerConfig) -> Verified {
        let user = User::identity(&issuer.name, &self.name).with_groups(self.groups);
        Verified { user: Arc::new(user), expires: self.expires }
    }
}
