//! Whom a request comes from, as far as it has been verified.

use std::fmt;
use std::sync::Arc;

use crate::config::{CERTIFICATE_PREFIX, Right, Rights, Subject};
use crate::oci::RepoName;

/// The authenticated sender of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A caller without credentials, or whose credentials are not looked at because there are no users.
    Anonymous,
    /// The bearer of a token for no user. Its client can ask for another one.
    AnonymousToken,
    /// A user.
    User(Session),
}

/// A user as authenticated by one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    user: Arc<User>,
    /// What the credentials are good for, whatever the user may do: everything, for a password.
    acts: Rights,
}

/// A user of the password file, or an identity that something else vouches for, `PREFIX:VALUE` (see `config::identity`).
#[derive(PartialEq, Eq)]
pub struct User {
    name: Box<str>,
    /// Whether the name can be a component of a repository's name (`{user}`). No identity with a prefix can.
    is_component: bool,
    /// Length of the prefix in bytes; `None` for a user of the file.
    prefix: Option<usize>,
    /// What the issuer of an identity calls its groups.
    groups: Vec<String>,
}

// === impl Principal ===

impl Principal {
    /// A user or an identity of this name, or everyone for `anonymous`, to explain what the rules allow.
    pub fn named(name: &str) -> Self {
        match name {
            Subject::ANONYMOUS => Self::Anonymous,
            name => Self::of_password(Arc::new(User::new(name))),
        }
    }

    /// A user who has sent the password, or proven an identity otherwise.
    pub fn of_password(user: Arc<User>) -> Self {
        Self::User(Session { user, acts: Rights::ALL })
    }

    /// A user with a token that was asked for with these actions.
    pub fn of_token(user: Arc<User>, acts: Rights) -> Self {
        Self::User(Session { user, acts })
    }

    /// The user, if it is one.
    pub fn user(&self) -> Option<&User> {
        match self {
            Self::Anonymous | Self::AnonymousToken => None,
            Self::User(session) => Some(&session.user),
        }
    }

    /// Whether it is known by the certificate of its connection. No token is ever issued to it.
    pub fn is_certificate(&self) -> bool {
        self.user().and_then(User::as_identity).is_some_and(|(prefix, _)| prefix == CERTIFICATE_PREFIX)
    }

    /// Whether the credentials are good for an action.
    pub fn acts(&self, right: Right) -> bool {
        match self {
            Self::Anonymous | Self::AnonymousToken => true,
            Self::User(session) => session.acts.contains(right),
        }
    }
}

// === impl User ===

impl User {
    /// A user of the file, or with a colon in the name, an identity with its prefix.
    pub fn new(name: &str) -> Self {
        let prefix = name.find(':');
        let is_component = prefix.is_none() && name.parse::<RepoName>().is_ok_and(|name| name.is_single());
        Self { name: name.into(), is_component, prefix, groups: Vec::new() }
    }

    /// An identity. The prefix has no colon.
    pub fn identity(prefix: &str, value: &str) -> Self {
        Self::new(&format!("{prefix}:{value}"))
    }

    /// The same with groups that its issuer has named.
    pub fn with_groups(self, groups: Vec<String>) -> Self {
        Self { groups, ..self }
    }

    /// The groups that the issuer of an identity has named; none for a user of the file.
    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// The name; with its prefix, if it has one.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The prefix and the value of an identity; `None` for a user of the file.
    pub fn as_identity(&self) -> Option<(&str, &str)> {
        self.prefix.map(|length| (&self.name[..length], &self.name[length + 1..]))
    }

    /// The name, if it can be a component of a repository's name.
    pub(super) fn as_component(&self) -> Option<&str> {
        self.is_component.then_some(&*self.name)
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}
