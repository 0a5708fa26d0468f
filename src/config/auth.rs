//! `[auth]`: where users and their passwords are, and who may do what.
//!
//! Without this table there are no users, and every client may do everything that is switched on. With it, only what a
//! rule allows is allowed. Rules are additive: their order has no meaning, and no rule takes a right away.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::access_pattern::AccessPattern;
use super::identity::{GROUP_PREFIX, Member};
use super::issuer::IssuerConfig;

/// `[auth]`
#[derive(Clone, Debug, PartialEq)]
pub struct AuthConfig {
    /// The users and the hashes of their passwords, as `htpasswd -B` writes them. Read again when it changes. `None`: there are
    /// no users, and only other identities can log in.
    pub htpasswd: Option<PathBuf>,
    /// Files with keys: the first signs tokens, and all verify them. None: a key that is made once and kept in the data folder.
    pub token_key_files: Vec<PathBuf>,
    /// How long a token is valid.
    pub token_lifetime: Duration,
    /// The members of each group.
    pub groups: BTreeMap<String, Vec<Member>>,
    /// Sorted by name.
    pub issuers: Vec<IssuerConfig>,
    /// At least one.
    pub rules: Vec<AccessRule>,
    /// Whether the only rule comes from the settings of `registry:2`, where every user may do everything.
    pub is_of_registry_2: bool,
}

/// `[[auth.rule]]`: everyone in `who` may do everything in `may` with every repository in `on`.
#[derive(Clone, Debug)]
pub struct AccessRule {
    pub who: Vec<Subject>,
    pub on: Vec<AccessPattern>,
    pub may: Rights,
    /// Whether the rule is also about repositories that are private at their upstream, and that only the credentials of this
    /// server open.
    pub private: bool,
    /// Where the rule is written, for people: `roadstead.toml:12`.
    pub place: String,
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Everybody, logged in or not.
    Anonymous,
    /// Every user, and every other identity.
    Authenticated,
    Member(Member),
    /// The members of a group in `[auth.groups]`.
    Group(String),
}

/// Something that a rule allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    Pull,
    Push,
    Delete,
    /// The operator's requests. No request needs it yet.
    Admin,
    /// `/metrics`, if `metrics.auth` is set.
    Metrics,
}

/// A set of rights.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Rights(u8);

// === impl AuthConfig ===

impl AuthConfig {
    /// How long a token is valid unless configured. Several clients do not renew a token while they push one image.
    pub const TOKEN_LIFETIME: Duration = Duration::from_secs(15 * 60);
    /// Clients take 60 s for the shortest lifetime.
    pub const MIN_TOKEN_LIFETIME: Duration = Duration::from_secs(60);
    pub const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
}

// === impl AccessRule ===

/// Where a rule is written does not change what it means.
impl PartialEq for AccessRule {
    fn eq(&self, other: &Self) -> bool {
        let parts = |rule: &Self| (rule.may, rule.private);
        self.who == other.who && self.on == other.on && parts(self) == parts(other)
    }
}

// === impl Subject ===

impl Subject {
    pub const ANONYMOUS: &'static str = "anonymous";
    pub const AUTHENTICATED: &'static str = "authenticated";

    #[cfg(test)]
    pub(crate) fn for_test(text: &str) -> Self {
        Self::parse(text).unwrap()
    }

    /// # Errors
    /// The message for a text that is none.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let group = text.strip_prefix(GROUP_PREFIX).and_then(|rest| rest.strip_prefix(':'));
        match (text, group) {
            (Self::ANONYMOUS, _) => Ok(Self::Anonymous),
            (Self::AUTHENTICATED, _) => Ok(Self::Authenticated),
            (_, Some(group)) if !group.is_empty() && !group.contains(':') => Ok(Self::Group(group.to_owned())),
            (_, Some(group)) if !group.is_empty() => Member::parse(text).map(Self::Member),
            (_, None) if text.contains(':') || is_user_name(text) => Member::parse(text).map(Self::Member),
            _ => Err(format!(
                "\"{text}\" is neither a user nor a group; write \"anonymous\" (everyone), \"authenticated\" (every user), \
                 the name of a user, \"group:NAME\", or an identity such as \"github:acme/*\""
            )),
        }
    }

    /// The member, if the subject is one by name.
    pub(super) fn member(&self) -> Option<&Member> {
        match self {
            Self::Member(member) => Some(member),
            Self::Anonymous | Self::Authenticated | Self::Group(_) => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str(Self::ANONYMOUS),
            Self::Authenticated => f.write_str(Self::AUTHENTICATED),
            Self::Member(member) => member.fmt(f),
            Self::Group(name) => write!(f, "{GROUP_PREFIX}:{name}"),
        }
    }
}

/// Whether this can be the name of a user: not empty, without a colon, which ends it in a login, and printable.
pub fn is_user_name(text: &str) -> bool {
    /// Longest name in bytes, so that a token is short.
    const MAX_BYTES: usize = 255;
    let is_allowed = |c: char| c != ':' && !c.is_control() && !c.is_whitespace();
    (1..=MAX_BYTES).contains(&text.len())
        && text.chars().all(is_allowed)
        && ![Subject::ANONYMOUS, Subject::AUTHENTICATED].contains(&text)
}

// === impl Right ===

impl Right {
    pub const ALL: [Self; 5] = [Self::Pull, Self::Push, Self::Delete, Self::Admin, Self::Metrics];

    /// The name in the configuration and in the scope of a token.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
            Self::Admin => "admin",
            Self::Metrics => "metrics",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|right| right.as_str() == text)
    }
}

// === impl Rights ===

impl Rights {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self((1 << Right::ALL.len()) - 1);

    pub fn contains(self, right: Right) -> bool {
        self.0 & Self::from(right).0 != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether both have a right in common.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub fn iter(self) -> impl Iterator<Item = Right> {
        Right::ALL.into_iter().filter(move |right| self.contains(*right))
    }
}

impl From<Right> for Rights {
    fn from(right: Right) -> Self {
        Self(1 << right as u8)
    }
}

impl FromIterator<Right> for Rights {
    fn from_iter<I: IntoIterator<Item = Right>>(rights: I) -> Self {
        rights.into_iter().fold(Self::NONE, |all, right| Self(all.0 | Self::from(right).0))
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_everyone_users_identities_and_groups() {
        assert_eq!(Subject::parse("anonymous"), Ok(Subject::Anonymous));
        assert_eq!(Subject::parse("authenticated"), Ok(Subject::Authenticated));
        assert_eq!(Subject::parse("group:dev"), Ok(Subject::Group("dev".to_owned())));
        for name in ["ann", "ann@example.com", "Ann", "jürgen", "a/b", "-"] {
            assert_eq!(Subject::parse(name), Ok(Subject::Member(Member::User(name.to_owned()))));
        }
        let identities = Member::parse("github:acme/*").unwrap();
        assert_eq!(Subject::parse("github:acme/*"), Ok(Subject::Member(identities)));
        for other in ["", "group:", "github:", "a b", "a\nb", ":"] {
            assert!(Subject::parse(other).is_err(), "{other:?}");
        }
        assert!(!is_user_name("anonymous") && !is_user_name(&"a".repeat(256)));
    }

    #[test]
    fn rights_are_a_set() {
        let some: Rights = [Right::Pull, Right::Metrics, Right::Pull].into_iter().collect();
        assert!(some.contains(Right::Pull) && !some.contains(Right::Push) && !some.is_empty());
        assert_eq!(some.iter().collect::<Vec<_>>(), [Right::Pull, Right::Metrics]);
        assert_eq!(Rights::ALL.iter().count(), 5);
        assert!(some.intersects(Right::Pull.into()) && !some.intersects(Right::Push.into()));
        assert!(Right::ALL.iter().all(|right| Right::parse(right.as_str()) == Some(*right)));
    }
}
