//! Tags and references (distribution-spec, "Pulling manifests", the `<reference>` grammar).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{Digest, DigestError};

/// Longest tag in bytes.
const MAX_TAG_BYTES: usize = 128;

/// A tag of the form `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`, which is a safe file name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

/// The text is not a tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the tag may contain only letters, digits, '.', '-' and '_', may not begin with '.' or '-', and has 1 to 128 characters"
)]
pub struct TagError;

/// The last component of a manifest's path: a tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    Tag(Tag),
    Digest(Digest),
}

/// Why text is neither a tag nor a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error(transparent)]
    Tag(#[from] TagError),
}

// === impl Tag ===

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, TagError> {
        let bytes = text.as_bytes();
        let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        match bytes.split_first() {
            Some((first, rest))
                if bytes.len() <= MAX_TAG_BYTES
                    && word(first)
                    && rest.iter().all(|b| word(b) || matches!(b, b'.' | b'-')) =>
            {
                Ok(Self(text.into()))
            }
            _ => Err(TagError),
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

// === impl Reference ===

impl FromStr for Reference {
    type Err = ReferenceError;

    /// A tag has no colon and a digest has one, so the colon decides which of the two errors is returned.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => fmt::Display::fmt(digest, f),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tags_are_validated() {
        let longest = "t".repeat(128);
        for tag in ["latest", "v1.2.3", "_x", "A-B.c", "3", &longest] {
            assert!(tag.parse::<Tag>().is_ok(), "{tag:?}");
        }
        let long = "t".repeat(129);
        for tag in ["", ".", "..", ".hidden", "-x", "a/b", "a:b", "a b", "ü", "a%20", &long] {
            assert!(tag.parse::<Tag>().is_err(), "{tag:?}");
        }
    }

    #[test]
    fn reference_with_a_colon_is_a_digest() {
        assert!(matches!("sha256:zz".parse::<Reference>(), Err(ReferenceError::Digest(_))));
        assert!(matches!(".x".parse::<Reference>(), Err(ReferenceError::Tag(_))));
    }

    proptest! {
        #[test]
        fn printed_tag_parses_back(text in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}") {
            prop_assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
        }

        #[test]
        fn no_input_panics(text in ".{0,200}") {
            let _ = text.parse::<Reference>();
        }
    }
}
