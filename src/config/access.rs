//! What clients may change: `[local]`, `[push]` and `[delete]`.

use std::fmt;

use globset::{GlobBuilder, GlobMatcher};

/// `[local]`: repository names that belong to this registry even if no such repository exists yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalConfig {
    /// Patterns of local names. If not empty, pushes to other names are refused.
    pub namespaces: Vec<Namespace>,
}

/// A glob pattern of repository names, such as `team/**`. `*` matches within one component, `**` any number of
/// components.
#[derive(Clone)]
pub struct Namespace {
    pattern: String,
    matcher: GlobMatcher,
}

/// `[push]`
#[derive(Clone, Debug, PartialEq)]
pub struct PushConfig {
    /// Whether clients may push.
    pub enabled: bool,
    /// Largest number of unfinished uploads that no request writes to.
    pub max_unfinished: usize,
    /// Largest size in bytes of all unfinished uploads that no request writes to. `None`: a tenth of `cache.max_size`.
    pub max_unfinished_size: Option<u64>,
}

/// `[delete]`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeleteConfig {
    /// Whether clients may delete pushed content. Off unless it is switched on, also on a loopback address, because a
    /// reverse proxy on the same machine can make that address public.
    pub enabled: bool,
}

// === impl LocalConfig ===

impl LocalConfig {
    /// Whether a repository of this name is local by configuration.
    pub fn matches(&self, repository: &str) -> bool {
        self.namespaces.iter().any(|namespace| namespace.matches(repository))
    }
}

// === impl Namespace ===

impl Namespace {
    /// Compiles a pattern. `None` if it cannot match any repository name.
    pub fn parse(pattern: &str) -> Option<Self> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/*?[]{},!".contains(c);
        if pattern.is_empty() || pattern.starts_with('/') || pattern.ends_with('/') || !pattern.chars().all(allowed) {
            return None;
        }
        let glob = GlobBuilder::new(pattern).literal_separator(true).build().ok()?;
        Some(Self { pattern: pattern.to_owned(), matcher: glob.compile_matcher() })
    }

    /// Whether the pattern matches the complete name.
    pub fn matches(&self, repository: &str) -> bool {
        self.matcher.is_match(repository)
    }

    /// The pattern as configured.
    pub fn as_str(&self) -> &str {
        &self.pattern
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pattern.fmt(f)
    }
}

impl PartialEq for Namespace {
    fn eq(&self, other: &Self) -> bool {
        self.pattern == other.pattern
    }
}

// === impl PushConfig ===

impl Default for PushConfig {
    fn default() -> Self {
        Self { enabled: true, max_unfinished: 1000, max_unfinished_size: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_star_matches_within_one_component() {
        let cases = [
            ("team/**", "team/app", true),
            ("team/**", "team/a/b", true),
            ("team/**", "team", false),
            ("team/**", "teams/app", false),
            ("team/*", "team/a/b", false),
            ("app", "app", true),
            ("**", "any/thing", true),
            ("{a,b}/*", "b/x", true),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(Namespace::parse(pattern).unwrap().matches(name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn namespaces_that_match_nothing_are_rejected() {
        for pattern in ["", "/team", "team/", "Team/**", "team:v1", "a b", "team/["] {
            assert!(Namespace::parse(pattern).is_none(), "{pattern:?}");
        }
    }
}
