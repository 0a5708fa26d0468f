//! Identities that are no users of the file, and their patterns in rules and groups.
//!
//! An identity is one string, `PREFIX:VALUE`. The prefix says who vouches for the value: an issuer of tokens by its name
//! (`github:acme/app`), the authority of client certificates (`cert:spiffe://cluster/app`), or this server, which has made
//! a machine token (`token:ci`). A user of the file has no colon in its name, so none is ever taken for the other.
//!
//! An issuer may also say in which groups an identity is. A rule names one as `group:ISSUER:VALUE`.
//!
//! In a pattern, `*` is any text without a slash, and `**` any text. Both may be empty.

use std::fmt;

use super::IssuerConfig;
use super::auth::is_user_name;
use super::suggest::nearest;

/// The prefix of identities from client certificates.
pub const CERTIFICATE_PREFIX: &str = "cert";
/// The prefix of machine tokens.
pub const TOKEN_PREFIX: &str = "token";

/// What is before the name of a group.
pub(super) const GROUP_PREFIX: &str = "group";

/// Longest identity in bytes, prefix included, so that a token with it is short. Those of Kubernetes have 341 at most.
pub const MAX_IDENTITY_BYTES: usize = 1024;

/// Whom a group, or a rule by name, is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Member {
    /// A user of the file.
    User(String),
    /// Identities of one prefix.
    Identities(IdentityPattern),
    /// Identities that an issuer says are in one of these groups.
    IssuerGroups(IdentityPattern),
}

/// A pattern of identities with one prefix, such as `github:acme/*`, or of the groups of an issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityPattern {
    text: String,
    /// Length of the prefix in bytes.
    prefix: usize,
}

// === impl Member ===

impl Member {
    /// # Errors
    /// The message for a text that is none.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((GROUP_PREFIX, group)) => match group.split_once(':') {
                Some((issuer, _)) => Ok(Self::IssuerGroups(IdentityPattern::parse(group, issuer.len())?)),
                None => Err(format!("\"{text}\" is a group, and a group cannot be in another one; write its members")),
            },
            Some((prefix, _)) => Ok(Self::Identities(IdentityPattern::parse(text, prefix.len())?)),
            None if text.contains('*') => Err(format!(
                "\"{text}\" is not the name of a user, and users have no patterns; write \"authenticated\" for everyone who is \
                 logged in, \"anonymous\" for everyone, or name a group"
            )),
            None if is_user_name(text) => Ok(Self::User(text.to_owned())),
            None => Err(format!(
                "\"{text}\" is not the name of a user; a group is a list of users and of identities, such as [\"ann\", \
                 \"bob\"] or [\"github:acme/*\"]"
            )),
        }
    }

    /// Checks that somebody vouches for such a member.
    ///
    /// # Errors
    /// The message if nobody does.
    pub(super) fn check(&self, issuers: &[IssuerConfig]) -> Result<(), String> {
        match self {
            Self::User(_) => Ok(()),
            Self::Identities(pattern) => pattern.check_prefix(&[CERTIFICATE_PREFIX, TOKEN_PREFIX], issuers),
            Self::IssuerGroups(pattern) => {
                pattern.check_prefix(&[], issuers)?;
                let issuer = issuers.iter().find(|issuer| issuer.name == pattern.prefix());
                match issuer.is_some_and(|issuer| issuer.groups_claim.is_some()) {
                    true => Ok(()),
                    false => Err(format!(
                        "\"{self}\" matches nobody, because no claim of the issuer has groups; write for example groups = \
                         \"groups\" in [auth.issuer.{}]",
                        pattern.prefix()
                    )),
                }
            }
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => f.write_str(name),
            Self::Identities(pattern) => f.write_str(&pattern.text),
            Self::IssuerGroups(pattern) => write!(f, "{GROUP_PREFIX}:{}", pattern.text),
        }
    }
}

#[cfg(test)]
impl Member {
    pub(crate) fn for_test(text: &str) -> Self {
        Self::parse(text).unwrap()
    }
}

// === impl IdentityPattern ===

impl IdentityPattern {
    fn parse(text: &str, prefix: usize) -> Result<Self, String> {
        let wrong = |reason: &str| Err(format!("\"{text}\" matches no identity: {reason}"));
        let value = &text[prefix + 1..];
        if prefix == 0 {
            return wrong("nothing is before the colon; write for example \"github:acme/*\"");
        }
        if value.is_empty() {
            return wrong("nothing is after the colon; write \"**\" there for every identity");
        }
        if text.chars().any(char::is_control) {
            return wrong("it has control characters");
        }
        if text.len() > MAX_IDENTITY_BYTES {
            return wrong("it is too long");
        }
        if value.contains("***") {
            return wrong("\"*\" is any text without a slash, and \"**\" any text; write one of them");
        }
        Ok(Self { text: text.to_owned(), prefix })
    }

    /// Checks the prefix, which is one of these or the name of an issuer.
    fn check_prefix(&self, prefixes: &[&str], issuers: &[IssuerConfig]) -> Result<(), String> {
        let issuers = issuers.iter().map(|issuer| issuer.name.as_str());
        let known: Vec<&str> = prefixes.iter().copied().chain(issuers).collect();
        let (prefix, text) = (self.prefix(), &self.text);
        if known.contains(&prefix) {
            return Ok(());
        }
        Err(match nearest(prefix, known.iter().copied()) {
            Some(meant) => format!("\"{text}\" begins with an unknown prefix; did you mean \"{meant}:\"?"),
            None => format!(
                "\"{text}\" begins with \"{prefix}\", and no issuer has this name; known are {}, and an issuer is added with \
                 [auth.issuer.{prefix}]",
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            ),
        })
    }

    pub fn prefix(&self) -> &str {
        &self.text[..self.prefix]
    }

    /// The pattern of the value.
    pub fn value(&self) -> &str {
        &self.text[self.prefix + 1..]
    }

    /// The pattern with its prefix, as configured.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it stands for one identity, which is then its text.
    pub fn is_exact(&self) -> bool {
        !self.text.contains('*')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<Member, String> {
        let issuer = |name: &str, groups: Option<&str>| IssuerConfig {
            name: name.to_owned(),
            groups_claim: groups.map(str::to_owned),
            ..IssuerConfig::for_test("https://a.example", &[])
        };
        let member = Member::parse(text)?;
        member.check(&[issuer("github", None), issuer("corp-sso", Some("groups"))])?;
        Ok(member)
    }

    #[test]
    fn members_are_users_or_identities_with_a_known_prefix() {
        for name in ["ann", "ann@example.com", "jürgen", "a/b"] {
            assert_eq!(checked(name), Ok(Member::User(name.to_owned())));
        }
        for (text, prefix, is_exact) in [
            ("github:acme/app", "github", true),
            ("github:acme/*", "github", false),
            ("github:**", "github", false),
            ("github:repo:acme/app:ref:refs/heads/main", "github", true),
            ("corp-sso:Ann Smith", "corp-sso", true),
            ("cert:spiffe://cluster/ns/*", "cert", false),
            ("token:ci", "token", true),
        ] {
            let Ok(Member::Identities(pattern)) = checked(text) else { panic!("{text}") };
            assert_eq!((pattern.prefix(), pattern.is_exact(), pattern.as_str()), (prefix, is_exact, text));
        }
        let Ok(Member::IssuerGroups(group)) = checked("group:corp-sso:/dev/*") else { panic!() };
        assert_eq!((group.prefix(), group.value()), ("corp-sso", "/dev/*"));
    }

    #[test]
    fn mistakes_are_named_with_what_would_be_right() {
        for (text, reason) in [
            ("", "is not the name of a user"),
            ("*", "users have no patterns"),
            ("ann*", "users have no patterns"),
            ("a b", "is not the name of a user"),
            ("authenticated", "is not the name of a user"),
            (":acme/*", "nothing is before the colon"),
            ("github:", "nothing is after the colon"),
            ("group:dev", "a group cannot be in another one"),
            ("group:corp-sso:", "nothing is after the colon"),
            ("group:cert:x", "no issuer has this name; known are github, corp-sso"),
            (
                "group:github:dev",
                "no claim of the issuer has groups; write for example groups = \"groups\" in [auth.issuer.github]",
            ),
            ("github:a\nb", "control characters"),
            ("github:***", "write one of them"),
            ("gitub:acme/*", "did you mean \"github:\"?"),
            (
                "keycloak:ann",
                "known are cert, token, github, corp-sso, and an issuer is added with [auth.issuer.keycloak]",
            ),
        ] {
            let error = checked(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert!(checked(&format!("github:{}", "a".repeat(MAX_IDENTITY_BYTES))).unwrap_err().contains("too long"));
    }
}
