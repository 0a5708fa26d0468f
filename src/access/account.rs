//! The account of a sender who has proven an identity.

use std::sync::Arc;

use super::principal::User;

/// A user or another identity, and the credential that proves it.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) user: Arc<User>,
    /// The hash of the password; for an identity without one, what else it depends on. If it changes, tokens that were
    /// issued for it are not valid any more.
    pub(super) credential: Arc<str>,
}
