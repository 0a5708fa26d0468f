//! Who may do what: the one gate that every request passes before it acts.
//!
//! The order is parse, authenticate, resolve, authorize, act. `http` makes a [`Caller`] of each request. The [`Gate`]
//! authenticates it, finds out which repository is meant, and makes an [`Authorized`] value. A handler gets the repository
//! from that value alone, and only the gate can make one, so no handler can act without it.
//!
//! A request is turned away for different reasons, and they stay different: it is *unauthenticated* (401), *denied* (403),
//! the operation is *switched off* (405), or the name is not one that it may be used with (403, 404).
//!
//! With `[auth]` there are users: `htpasswd` and `passwords` know who they are, and `oidc` knows the identities of issuers,
//! and `machine_tokens` those that this server makes.
//! `tokens` are what clients send instead of a password, `throttle` bounds guesses, and the `policy` says what the rules
//! allow.

mod account;
mod attempt;
mod authenticate;
mod caller;
mod credentials;
mod forwarded;
mod gate;
mod htpasswd;
mod machine_tokens;
mod oidc;
mod password_hash;
mod passwords;
mod patterns;
mod policy;
mod principal;
mod rules;
mod throttle;
mod token_request;
mod tokens;

pub use attempt::{Attempt, AttemptResult, How};
pub use authenticate::{AuthFileError, IssuedToken, Login, LoginError, Sender, Unauthenticated};
pub use caller::{Caller, Peer, VerifiedCertificate};
pub use forwarded::TrustedProxies;
pub use gate::{
    AccessError, Action, Authorized, Catalog, Delete, Gate, Pull, PullIfPublic, Pulling, Push, SwitchedOff,
};
pub use htpasswd::{LineError, PasswordError, hash_password};
pub use machine_tokens::{MachineToken, MachineTokenError, MachineTokenRefused, MachineTokens, TokenFile};
pub use oidc::{IssuerFileError, TokenRefused};
pub use passwords::{PasswordLogin, UserFileError};
pub use policy::Policy;
pub use principal::{Principal, Session, User};
pub use rules::Rules;
pub use token_request::{RequestedScopes, TokenRequest};
