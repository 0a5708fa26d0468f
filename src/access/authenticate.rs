//! Authentication: from a [`Caller`] to a [`Principal`].
//!
//! There are no users, so every caller is anonymous, whatever credentials it sends. Users, tokens and certificates get their
//! place here. Whether a connection needs a client certificate is decided before, in `http::tls`.

use super::caller::Caller;

/// The authenticated sender of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A caller without credentials, or whose credentials are not looked at because there are no users.
    Anonymous,
}

/// Why a caller is not accepted. A client may try again with other credentials (401, RFC 9110, section 15.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    #[error("authentication required; log in to this registry")]
    Required,
    #[error("the credentials are not valid; log in to this registry again")]
    Invalid,
}

/// Who sent a request.
///
/// # Errors
/// When the caller's credentials are not accepted.
pub(super) fn authenticate(_caller: Caller<'_>) -> Result<Principal, Unauthenticated> {
    Ok(Principal::Anonymous)
}
