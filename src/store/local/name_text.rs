//! The text of name files: small, readable with `cat`, and recognizably incomplete when a crash cut it short.

use std::time::{Duration, UNIX_EPOCH};

use crate::store::records::{Member, TagRecord};

impl TagRecord {
    /// One `key value` line for each field.
    pub(in crate::store) fn to_text(&self) -> String {
        let confirmed = self.confirmed.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        format!("digest {}\nmedia-type {}\nconfirmed {confirmed}\n", self.digest, self.media_type)
    }

    /// `None` for any other text, an incomplete record included.
    pub(in crate::store) fn from_text(text: &str) -> Option<Self> {
        let confirmed = field(text, "confirmed")?.parse().ok()?;
        Some(Self {
            digest: field(text, "digest")?.parse().ok()?,
            media_type: field(text, "media-type")?.into(),
            confirmed: UNIX_EPOCH.checked_add(Duration::from_secs(confirmed))?,
        })
    }
}

impl Member {
    /// Links of older versions have no line `proof`. They count as proven.
    pub(super) fn to_text(self) -> String {
        let size = self.size.map(|size| format!("size {size}\n")).unwrap_or_default();
        if self.proven { size } else { format!("proof none\n{size}") }
    }

    pub(super) fn from_text(text: &str) -> Self {
        Self {
            size: field(text, "size").and_then(|size| size.parse().ok()),
            proven: field(text, "proof").is_none_or(|proof| proof != "none"),
        }
    }
}

/// The text of a manifest link.
pub(super) fn manifest_link_text(media_type: &str) -> String {
    format!("media-type {media_type}\n")
}

/// The media type in the text of a manifest link; `None` for any other text.
pub(in crate::store) fn manifest_link_media_type(text: &str) -> Option<&str> {
    field(text, "media-type")
}

/// The value of a field. A line without its line end was cut short by a crash and does not count.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'))
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Digest};

    #[test]
    fn a_link_keeps_its_size_and_whether_it_is_proven() {
        for (size, proven) in [(None, true), (None, false), (Some(7), true), (Some(7), false)] {
            let member = Member { size, proven };
            assert_eq!(Member::from_text(&member.to_text()), member);
        }
        assert_eq!(Member::from_text("size 7\n"), Member { size: Some(7), proven: true }, "an older link");
    }

    #[test]
    fn a_tag_record_survives_its_text_and_an_incomplete_one_does_not_parse() {
        let record = TagRecord {
            digest: Digest::of(Algorithm::Sha256, b"m"),
            media_type: "application/x".into(),
            confirmed: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        };
        let text = record.to_text();
        assert_eq!(TagRecord::from_text(&text), Some(record));
        for cut in 0..text.len() {
            assert_eq!(TagRecord::from_text(&text[..cut]), None, "{cut}");
        }
        assert_eq!(TagRecord::from_text(&text.replace("1800000000", "18446744073709551615")), None);
    }
}
