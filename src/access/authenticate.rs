//! Authentication: from a [`Caller`] to a [`Principal`].
//!
//! It has two steps. [`Login::identify`] is cheap: it looks at the headers and verifies tokens. What it cannot decide is a
//! password, which takes a core for tens of milliseconds, and is verified by [`Login::authenticate`] where the answer
//! depends on it. A client of a mirror repeats the login for another registry with every pull, so a read that everybody
//! may do does not depend on it.
//!
//! Whether a connection needs a client certificate is decided before, in `http::tls`.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::account::Account;
use super::attempt::{Attempt, AttemptResult, How};
use super::caller::Caller;
use super::credentials::{Credentials, SeveralCredentials};
use super::machine_tokens::{MachineTokenError, MachineTokenRefused, MachineTokens};
use super::oidc::{IssuerFileError, Issuers, NotVerified, TokenRefused};
use super::passwords::{LoginRefused, PasswordLogin, Passwords, UserFileError};
use super::policy::Policy;
use super::principal::{Principal, User};
use super::token_request::TokenRequest;
use super::tokens::{MIN_SECRET_BYTES, Tokens};
use crate::config::{AuthConfig, TOKEN_PREFIX};
use crate::file;

/// After this time, there may be a turn for a login.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(2);

/// Bytes of groups that a token may have. A token of 8 KiB is too large for some clients.
const MAX_GROUPS_BYTES: usize = 2 << 10;

/// Users and other identities, and how they prove who they are.
pub struct Login {
    /// `None`: there are no users.
    passwords: Option<Arc<Passwords>>,
    issuers: Arc<Issuers>,
    machine_tokens: Arc<MachineTokens>,
    tokens: Tokens,
}

/// The sender of a request, as far as it is known without verifying a password.
#[derive(Debug, PartialEq, Eq)]
pub enum Sender {
    Known(Principal),
    /// The user of this login, if the password is right. A token of an issuer is a password. Boxed, so that the rare case does not make every request larger.
    Password(Box<PasswordLogin>),
    /// The credentials are no user's. A read that everybody may do is answered all the same.
    Unusable,
}

/// Why a caller is not accepted. A client may try again with other credentials (401, RFC 9110, section 15.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    #[error("authentication required; log in to this registry")]
    Required,
    #[error("the credentials are not valid; log in to this registry again")]
    Invalid,
    #[error("the OIDC token in the place of the password is refused: {0}")]
    TokenRefused(#[from] TokenRefused),
    #[error("the machine token in the place of the password is refused: {0}")]
    MachineTokenRefused(#[from] MachineTokenRefused),
    #[error("the token is not valid, or not any more; log in to this registry again")]
    InvalidToken,
    #[error("the token is not good for this; log in to this registry, or request a token with this scope")]
    InsufficientScope,
}

/// Why the credentials of a request are not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    #[error(transparent)]
    Unauthenticated(#[from] Unauthenticated),
    #[error("too many logins with wrong passwords came from this address; try again in {} s", .retry_after.as_secs())]
    TooManyAttempts { retry_after: Duration },
    #[error("too many logins at once; try again in {} s", .retry_after.as_secs())]
    TooManyAtOnce { retry_after: Duration },
    #[error(
        "the keys of the issuer of this OIDC token cannot be had now, so it cannot be verified; try again in {} s",
        .retry_after.as_secs().max(1)
    )]
    IssuerUnavailable { retry_after: Duration },
    #[error("the request has more than one Authorization header; send one")]
    SeveralCredentials,
}

/// A file of `[auth]` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthFileError {
    #[error("cannot use the users of auth.htpasswd: {0}")]
    Users(#[from] UserFileError),
    #[error(transparent)]
    MachineTokens(#[from] MachineTokenError),
    #[error("cannot use auth.issuer.{issuer}.{error}")]
    Issuer { issuer: String, error: IssuerFileError },
    #[error("cannot use the key of auth.token_key_file: cannot read {}: {error}", path.display())]
    ReadKey { path: PathBuf, error: std::io::Error },
    #[error(
        "cannot use the key of auth.token_key_file: {} has {bytes} bytes, fewer than {MIN_SECRET_BYTES}; make one with \
         `openssl rand -base64 48`",
        path.display()
    )]
    ShortKey { path: PathBuf, bytes: usize },
}

/// A token, as its client gets it.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedToken {
    pub token: String,
    pub lifetime: Duration,
}

/// The identity of the certificate of a connection.
fn by_certificate(caller: Caller<'_>) -> Option<Principal> {
    let identity = caller.peer().certificate.as_ref()?.identity()?;
    Some(Principal::of_password(identity.clone()))
}

// === impl Sender ===

impl Sender {
    /// What became of the password; `None` if there is none, or it was not verified.
    pub fn attempt(&self) -> Option<Attempt> {
        match self {
            Self::Password(login) => login.attempt(),
            Self::Known(_) | Self::Unusable => None,
        }
    }

    /// The kind of the credentials.
    pub fn kind(&self) -> How {
        match self {
            Self::Password(login) => login.attempt().map_or(How::Password, |attempt| attempt.how),
            Self::Known(principal) if principal.is_certificate() => How::Certificate,
            Self::Known(Principal::User(_)) => How::Token,
            Self::Known(Principal::Anonymous | Principal::AnonymousToken) | Self::Unusable => How::Anonymous,
        }
    }

    /// The kind of the credentials that make the sender this principal.
    pub fn how(&self, principal: &Principal) -> How {
        principal.user().map_or(How::Anonymous, |_| self.kind())
    }
}

// === impl Login ===

impl Login {
    /// Reads the files, which blocks. `secret` is the key for tokens if no file has one.
    pub fn load(config: &AuthConfig, secret: &[u8], machine_tokens: Arc<MachineTokens>) -> Result<Self, AuthFileError> {
        let secrets = config.token_key_files.iter().map(|path| {
            let content = file::read(path).map_err(|error| AuthFileError::ReadKey { path: path.clone(), error })?;
            let secret = content.trim_ascii();
            match secret.len() {
                bytes if bytes < MIN_SECRET_BYTES => Err(AuthFileError::ShortKey { path: path.clone(), bytes }),
                _ => Ok(secret.to_vec()),
            }
        });
        let secrets = secrets.collect::<Result<Vec<_>, _>>()?;
        let (secret, older) = secrets.split_first().map_or((secret, &[][..]), |(first, older)| (&first[..], older));
        let passwords = config.htpasswd.as_deref().map(Passwords::load).transpose()?;
        Ok(Self {
            passwords: passwords.map(Arc::new),
            issuers: Arc::new(Issuers::load(&config.issuers)?),
            machine_tokens,
            tokens: Tokens::new(secret, config.token_lifetime).or_signed_with(older),
        })
    }

    /// Reads the files as for a start, which blocks.
    ///
    /// # Errors
    /// If one of them would prevent it.
    pub fn check(config: &AuthConfig) -> Result<(), AuthFileError> {
        Self::load(config, &[], Arc::new(MachineTokens::none())).map(drop)
    }

    /// The machine tokens, to make and revoke some.
    pub fn machine_tokens(&self) -> Arc<MachineTokens> {
        self.machine_tokens.clone()
    }

    /// Follows the files, and fetches the keys of issuers when they are needed, until it is dropped.
    pub fn follow(&self) -> impl Future<Output = ()> + Send + 'static {
        let (passwords, issuers, machine_tokens) =
            (self.passwords.clone(), self.issuers.clone(), self.machine_tokens.clone());
        async move {
            let users = async {
                if let Some(passwords) = passwords {
                    passwords.follow().await;
                }
            };
            tokio::join!(users, issuers.follow(), machine_tokens.follow());
        }
    }

    /// Who sent a request, as far as that is cheap to know.
    ///
    /// # Errors
    /// For a token that is not valid, and for more than one header with credentials.
    pub(super) fn identify(&self, caller: Caller<'_>) -> Result<Sender, LoginError> {
        match Credentials::of(caller)? {
            Credentials::None => Ok(Self::without_credentials(caller)),
            Credentials::Password(login) => Ok(Sender::Password(Box::new(login))),
            Credentials::Token(token) => Ok(Sender::Known(match self.bearer(token)? {
                // The token is for nobody, and the connection says who it is.
                Principal::AnonymousToken => by_certificate(caller).unwrap_or(Principal::AnonymousToken),
                principal => principal,
            })),
            Credentials::Unusable => Ok(Sender::Unusable),
        }
    }

    /// Who sent a request without credentials: the identity of the certificate, if there is one.
    pub(super) fn without_credentials(caller: Caller<'_>) -> Sender {
        Sender::Known(by_certificate(caller).unwrap_or(Principal::Anonymous))
    }

    /// Who the bearer of a token is. The token may be for nobody.
    pub(super) fn bearer(&self, token: &str) -> Result<Principal, Unauthenticated> {
        let verified = self.tokens.verify(token, SystemTime::now()).ok_or(Unauthenticated::InvalidToken)?;
        let Some(subject) = &verified.subject else { return Ok(Principal::AnonymousToken) };
        match self.account(&subject.user) {
            Some(account) if self.tokens.is_of(subject, &account) => {
                Ok(Principal::of_token(account.user, verified.acts))
            }
            _ => Err(Unauthenticated::InvalidToken),
        }
    }

    /// The account of the user of a token, as it is now.
    fn account(&self, user: &Arc<User>) -> Option<Account> {
        match user.as_identity() {
            None => self.passwords.as_ref()?.account(user.name()),
            Some((TOKEN_PREFIX, name)) => self.machine_tokens.account(name, SystemTime::now()),
            Some((prefix, _)) => {
                let credential = self.issuers.credential(prefix)?;
                Some(Account { user: user.clone(), credential })
            }
        }
    }

    /// Who has sent this login.
    async fn verify(&self, login: &PasswordLogin) -> Result<Account, LoginError> {
        if let Some(verified) = self.machine_tokens.verify(&login.password, SystemTime::now()) {
            login.attempt.begin(How::MachineToken, None);
            match &verified {
                Ok(account) => login.attempt.accept(account.user.name()),
                Err(_) => login.attempt.end(AttemptResult::Refused),
            }
            return Ok(verified.map_err(Unauthenticated::from)?);
        }
        if let Some(verified) = self.issuers.verify(&login.password, &login.attempt).await {
            return Ok(verified?);
        }
        match &self.passwords {
            Some(passwords) => Ok(passwords.verify(login).await?),
            None => {
                login.attempt.begin(How::Password, None);
                login.attempt.end(AttemptResult::Refused);
                Err(Unauthenticated::Invalid.into())
            }
        }
    }

    /// Who sent a request.
    ///
    /// # Errors
    /// If its credentials are not accepted.
    pub(super) async fn authenticate(&self, sender: &Sender) -> Result<Principal, LoginError> {
        match sender {
            Sender::Known(principal) => Ok(principal.clone()),
            Sender::Unusable => Err(Unauthenticated::Invalid.into()),
            Sender::Password(login) => Ok(Principal::of_password(self.verify(login).await?.user)),
        }
    }

    /// A token for the sender of a request to the token endpoint.
    ///
    /// Clients of a mirror offer it the login for another registry, and fail if that is refused. So a request for nothing
    /// but pulls then gets an anonymous token, if everybody may pull something. Known and unknown users get the same.
    ///
    /// # Errors
    /// If nobody is meant and may do nothing, or the credentials are not accepted.
    pub(super) async fn token(&self, policy: &Policy, request: &TokenRequest) -> Result<IssuedToken, LoginError> {
        let acts = request.scopes.acts();
        let for_nobody = || Ok(self.issue(None, acts));
        let verified = match &request.sender {
            Sender::Known(_) if policy.everybody_may_do_something() => return for_nobody(),
            // Its connection says who it is: the identity of a certificate is never in a token.
            Sender::Known(principal) if principal.is_certificate() => return for_nobody(),
            Sender::Known(_) => return Err(Unauthenticated::Required.into()),
            Sender::Password(login) => self.verify(login).await,
            Sender::Unusable => Err(Unauthenticated::Invalid.into()),
        };
        match verified {
            Ok(account) => Ok(self.issue(Some(&with_groups_of(policy, account)), acts)),
            Err(_) if request.scopes.are_for_pulls() && policy.everybody_may_pull() => for_nobody(),
            Err(error) => Err(error),
        }
    }

    fn issue(&self, account: Option<&Account>, acts: crate::config::Rights) -> IssuedToken {
        let token = self.tokens.issue(account, acts, SystemTime::now());
        IssuedToken { token, lifetime: self.tokens.lifetime() }
    }
}

/// The account with those groups alone that rules name, so that its token is short.
fn with_groups_of(policy: &Policy, account: Account) -> Account {
    let Some((issuer, _)) = account.user.as_identity().filter(|_| !account.user.groups().is_empty()) else {
        return account;
    };
    let named = account.user.groups().iter().filter(|group| policy.names_group(issuer, group));
    let mut left = MAX_GROUPS_BYTES;
    let fits = |group: &&String| {
        left = left.saturating_sub(group.len());
        left > 0
    };
    let groups = named.take_while(fits).cloned().collect();
    Account { user: Arc::new(User::new(account.user.name()).with_groups(groups)), ..account }
}

/// Shows no key.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

// === impl LoginError ===

impl From<SeveralCredentials> for LoginError {
    fn from(SeveralCredentials: SeveralCredentials) -> Self {
        Self::SeveralCredentials
    }
}

impl From<NotVerified> for LoginError {
    fn from(not_verified: NotVerified) -> Self {
        match not_verified {
            NotVerified::Refused(refused) => Unauthenticated::TokenRefused(refused).into(),
            NotVerified::Unavailable { retry_after } => Self::IssuerUnavailable { retry_after },
        }
    }
}

impl From<LoginRefused> for LoginError {
    fn from(refused: LoginRefused) -> Self {
        match refused {
            LoginRefused::Wrong => Unauthenticated::Invalid.into(),
            LoginRefused::TooMany { retry_after } => Self::TooManyAttempts { retry_after },
            LoginRefused::Busy => Self::TooManyAtOnce { retry_after: BUSY_RETRY_AFTER },
        }
    }
}
