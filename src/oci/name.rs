//! Repository names (distribution-spec, "Pulling manifests", the `<name>` grammar).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest name in bytes. Many clients limit `host/name` to 255 characters; a name without a host has the same limit
/// here.
const MAX_NAME_BYTES: usize = 255;

/// A repository name: components of the form `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` joined by `/`, at most 255 bytes.
///
/// No component begins with `.` or `_`. A name is therefore a safe relative path, and cannot collide with folders such
/// as `_tags`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepoName(Arc<str>);

/// Why text is not accepted as a repository name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the repository name is empty or longer than {MAX_NAME_BYTES} characters")]
    Length,
    #[error("the repository name may contain only lower-case letters, digits, and '.', '_', '-' or '/' between them")]
    Grammar,
}

// === impl RepoName ===

impl RepoName {
    /// Largest length in bytes.
    pub const MAX_BYTES: usize = MAX_NAME_BYTES;

    /// The name as text, without a host.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parts between slashes, at least one, none of them empty.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Whether the name has one component, such as `alpine`, unlike `library/alpine`.
    pub fn is_single(&self) -> bool {
        !self.0.contains('/')
    }
}

impl FromStr for RepoName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > MAX_NAME_BYTES {
            return Err(NameError::Length);
        }
        if text.split('/').all(|component| is_component(component.as_bytes())) {
            Ok(Self(text.into()))
        } else {
            Err(NameError::Grammar)
        }
    }
}

/// Whether `text` consists of runs of `[a-z0-9]` with one separator between each two: `.`, `_`, `__` or any number of
/// `-`.
fn is_component(text: &[u8]) -> bool {
    let (Some(first), Some(last)) = (text.first(), text.last()) else {
        return false;
    };
    is_alphanumeric(*first)
        && is_alphanumeric(*last)
        && separators(text).all(|run| matches!(run, b"." | b"_" | b"__") || run.iter().all(|byte| *byte == b'-'))
}

/// The separators: each longest run of characters that are not alphanumeric.
fn separators(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.chunk_by(|a, b| is_alphanumeric(*a) == is_alphanumeric(*b)).filter(|run| !is_alphanumeric(run[0]))
}

fn is_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn valid_names_are_accepted() {
        for name in ["a", "alpine", "library/alpine", "a.b/c_d/e__f/g-h/i---j", "0/1/2", "ghcr.io/org/app"] {
            assert_eq!(name.parse::<RepoName>().unwrap().as_str(), name);
        }
        let longest = "a".repeat(255);
        assert!(longest.parse::<RepoName>().is_ok());
    }

    #[test]
    fn invalid_names_are_rejected() {
        let long = "a".repeat(256);
        for name in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a/B",
            ".",
            "..",
            "a/../b",
            ".a",
            "a.",
            "a..b",
            "a___b",
            "_tags",
            "a/_tags",
            "a._b",
            "a b",
            "a\0b",
            "ä",
            "localhost:5000/a",
            "a%2fb",
            "a_-b",
            "-a",
            "a-",
            &long,
        ] {
            assert!(name.parse::<RepoName>().is_err(), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn printed_name_parses_back(name in "[a-z0-9]{1,9}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,3}(/[a-z0-9]{1,5}){0,4}") {
            prop_assert_eq!(name.parse::<RepoName>().unwrap().to_string(), name);
        }

        #[test]
        fn no_input_panics_and_no_name_escapes_its_folder(text in ".{0,40}") {
            if let Ok(name) = text.parse::<RepoName>() {
                prop_assert!(name.components().all(|c| !c.is_empty() && !c.starts_with('.') && !c.starts_with('_')));
            }
        }
    }
}
