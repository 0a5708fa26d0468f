//! Descriptors of referrers, the manifests that name another manifest as their `subject` (distribution-spec, "Listing
//! Referrers").

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeOwned, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Digest, media_type};

/// One descriptor in a list of referrers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    /// The media type of the manifest.
    pub media_type: String,
    /// The digest of the manifest.
    pub digest: String,
    /// Size of the manifest in bytes.
    pub size: u64,
    /// The artifact type, which clients can filter by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The annotations of the manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// The response body of the referrers endpoint: an image index.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReferrerIndex {
    /// 2 in an index of this server.
    #[serde(default)]
    pub schema_version: u32,
    /// The type of an OCI image index, in an index of this server.
    #[serde(default)]
    pub media_type: String,
    /// The referrers.
    #[serde(default)]
    pub manifests: Vec<Referrer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReferrerDocument {
    #[serde(default, deserialize_with = "lenient")]
    artifact_type: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    config: Option<Config>,
    #[serde(default, deserialize_with = "lenient")]
    annotations: Option<BTreeMap<String, String>>,
}

/// Reads a field of an unexpected type as absent: the manifest was accepted without checking these fields.
fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(serde_json::from_value(serde_json::Value::deserialize(deserializer)?).ok())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    media_type: Option<String>,
}

impl Referrer {
    /// Describes the manifest `bytes`. `None` if they are not a JSON object.
    pub fn of(digest: &Digest, media_type: &str, bytes: &[u8]) -> Option<Self> {
        let document: ReferrerDocument = serde_json::from_slice(bytes).ok()?;
        // The type of an image manifest without `artifactType` is its config's media type. An index has no config.
        let config = document.config.and_then(|config| config.media_type);
        let artifact_type = document.artifact_type.filter(|kind| !kind.is_empty()).or(config);
        Some(Self {
            media_type: media_type.to_owned(),
            digest: digest.to_string(),
            size: bytes.len() as u64,
            artifact_type,
            annotations: document.annotations,
        })
    }

    /// Upper bound for the bytes of this descriptor's texts in JSON, where an escaped control character takes six
    /// bytes.
    pub fn weight(&self) -> usize {
        let annotations = self.annotations.iter().flatten().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
        let own = [self.media_type.as_str(), self.digest.as_str(), self.artifact_type.as_deref().unwrap_or_default()];
        annotations.chain(own).map(json_length).sum()
    }

    /// Whether the descriptor passes the filter `artifactType=<wanted>`. `None` passes everything.
    pub fn is_of_type(&self, wanted: Option<&str>) -> bool {
        wanted.is_none_or(|wanted| self.artifact_type.as_deref() == Some(wanted))
    }
}

#[derive(Deserialize)]
struct IndexDocument {
    #[serde(default)]
    manifests: ListedReferrers,
}

/// The valid descriptors of a list. Entries are parsed one at a time to save memory, because most entries may be
/// invalid.
#[derive(Default)]
struct ListedReferrers(Vec<Referrer>);

impl<'de> Deserialize<'de> for ListedReferrers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReferrerList)
    }
}

struct ReferrerList;

impl<'de> Visitor<'de> for ReferrerList {
    type Value = ListedReferrers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of descriptors")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ListedReferrers, A::Error> {
        let mut found = Vec::new();
        while let Some(entry) = list.next_element::<serde_json::Value>()? {
            let referrer = Referrer::deserialize(&entry).ok();
            found.extend(referrer.filter(|referrer| referrer.digest.parse::<Digest>().is_ok()));
        }
        Ok(ListedReferrers(found))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ListedReferrers, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(ListedReferrers::default())
    }

    fn visit_unit<E: Error>(self) -> Result<ListedReferrers, E> {
        Ok(ListedReferrers::default())
    }
}

fn json_length(text: &str) -> usize {
    text.len() + 5 * text.bytes().filter(|byte| byte.is_ascii_control()).count() + text.matches(['"', '\\']).count()
}

impl ReferrerIndex {
    /// Reads an index sent by an upstream. Entries that are not descriptors are skipped, and an index without a list is
    /// empty.
    ///
    /// `None` if `bytes` is not a JSON object.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        // serde also accepts a JSON array for a struct.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return None;
        }
        let document: IndexDocument = serde_json::from_slice(bytes).ok()?;
        Some(Self::new(document.manifests.0))
    }

    /// An index of these descriptors.
    pub fn new(manifests: Vec<Referrer>) -> Self {
        Self { schema_version: 2, media_type: media_type::OCI_INDEX.to_owned(), manifests }
    }
}

impl Digest {
    /// The tag under which clients store referrers in a registry without the referrers endpoint: `<alg>-<hex>`, the hex
    /// part cut at 64 characters (distribution-spec, "Referrers Tag Schema").
    pub fn referrers_tag(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(64);
        format!("{}-{hex}", self.algorithm().as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oci::{Algorithm, Tag};

    fn artifact_type(json: &str) -> Option<String> {
        Referrer::of(&Digest::of(Algorithm::Sha256, b"x"), "m/t", json.as_bytes()).unwrap().artifact_type
    }

    #[test]
    fn artifact_type_falls_back_to_the_config_type() {
        assert_eq!(artifact_type(r#"{"artifactType":"a/b","config":{"mediaType":"c/d"}}"#).as_deref(), Some("a/b"));
        assert_eq!(artifact_type(r#"{"config":{"mediaType":"c/d"}}"#).as_deref(), Some("c/d"));
        assert_eq!(artifact_type(r#"{"manifests":[]}"#), None);
    }

    #[test]
    fn referrers_tag_is_a_valid_tag_for_every_algorithm() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let tag = Digest::of(algorithm, b"x").referrers_tag();
            assert!(tag.parse::<Tag>().is_ok());
            assert_eq!(tag.len(), 6 + 1 + 64);
        }
    }

    prop_compose! {
        fn referrers()(
            media_type in ".{0,20}",
            size in any::<u64>(),
            artifact_type in prop::option::of(".{0,20}"),
            annotations in prop::option::of(prop::collection::btree_map(".{0,9}", ".{0,9}", 0..4)),
            content in any::<[u8; 8]>(),
        ) -> Referrer {
            let digest = Digest::of(Algorithm::Sha512, &content).to_string();
            Referrer { media_type, digest, size, artifact_type, annotations }
        }
    }

    proptest! {
        #[test]
        fn index_reads_back(manifests in prop::collection::vec(referrers(), 0..4)) {
            let index = ReferrerIndex::new(manifests.clone());
            let json = serde_json::to_vec(&index).unwrap();
            prop_assert_eq!(serde_json::from_slice::<ReferrerIndex>(&json).unwrap().manifests, manifests);
        }

        #[test]
        fn descriptor_repeats_the_manifests_own_fields(wanted in referrers()) {
            let json = serde_json::json!({"artifactType": wanted.artifact_type, "annotations": wanted.annotations}).to_string();
            let digest: Digest = wanted.digest.parse().unwrap();
            let found = Referrer::of(&digest, &wanted.media_type, json.as_bytes()).unwrap();
            prop_assert_eq!(&found.annotations, &wanted.annotations);
            prop_assert_eq!(found.artifact_type, wanted.artifact_type.filter(|kind| !kind.is_empty()));
            prop_assert_eq!(found.size, json.len() as u64);
        }

        #[test]
        fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[{}\\[\\]\":,a-z0-9]{0,60}") {
            for bytes in [&bytes[..], text.as_bytes()] {
                let _ = Referrer::of(&Digest::of(Algorithm::Sha256, b"x"), "m/t", bytes);
                let _ = serde_json::from_slice::<ReferrerIndex>(bytes);
            }
        }
    }
}
