//! Descriptors of referrers, the manifests that name another manifest as their `subject` (distribution-spec, "Listing
//! Referrers").

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeOwned, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::digest::is_digest_grammar;
use super::{Digest, DigestError, media_type};

/// Longest digest in bytes of a descriptor that is passed on.
const MAX_DIGEST_BYTES: usize = 255;

/// One descriptor in a list of referrers. A mirror passes it on with all its fields, also with those that it does not
/// know or that have an unusual value. As in Go's clients, names of fields match in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrer {
    /// The digest of the manifest, which may have an unsupported algorithm.
    pub digest: String,
    /// The artifact type, which clients can filter by.
    pub artifact_type: Option<String>,
    /// The descriptor as JSON.
    json: Box<str>,
}

/// The response body of the referrers endpoint: an image index.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReferrerIndex {
    /// 2 in an index of this server.
    pub schema_version: u32,
    /// The type of an OCI image index.
    pub media_type: String,
    /// The referrers.
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
    Ok(serde_json::from_value(Value::deserialize(deserializer)?).ok())
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
        let mut fields = Map::new();
        fields.insert("mediaType".to_owned(), media_type.into());
        fields.insert("digest".to_owned(), digest.to_string().into());
        fields.insert("size".to_owned(), bytes.len().into());
        if let Some(kind) = artifact_type {
            fields.insert("artifactType".to_owned(), kind.into());
        }
        if let Some(annotations) = document.annotations {
            fields.insert("annotations".to_owned(), annotations.into_iter().collect());
        }
        Self::described_by(fields)
    }

    /// A descriptor with these fields. `None` without a digest.
    fn described_by(fields: Map<String, Value>) -> Option<Self> {
        let text = |wanted: &str| {
            let in_any_case =
                || fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value);
            fields.get(wanted).or_else(in_any_case)?.as_str().map(str::to_owned)
        };
        let digest = text("digest").filter(|digest| is_digest(digest))?;
        let artifact_type = text("artifactType");
        Some(Self { digest, artifact_type, json: Value::Object(fields).to_string().into() })
    }

    /// The bytes of this descriptor in JSON.
    pub fn weight(&self) -> usize {
        self.json.len()
    }

    /// Whether the descriptor passes the filter `artifactType=<wanted>`. `None` passes everything.
    pub fn is_of_type(&self, wanted: Option<&str>) -> bool {
        wanted.is_none_or(|wanted| self.artifact_type.as_deref() == Some(wanted))
    }
}

/// Whether this is a valid digest, or may be one of an algorithm that is not supported here.
fn is_digest(text: &str) -> bool {
    match text.parse::<Digest>() {
        Ok(_) => true,
        Err(DigestError::Algorithm) => text.len() <= MAX_DIGEST_BYTES && is_digest_grammar(text),
        Err(DigestError::Shape | DigestError::Encoded) => false,
    }
}

impl Serialize for Referrer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields: Value = serde_json::from_str(&self.json).map_err(S::Error::custom)?;
        fields.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Referrer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = Map::deserialize(deserializer)?;
        Self::described_by(fields).ok_or_else(|| D::Error::custom("a descriptor without a digest"))
    }
}

/// The referrers in an index. `None` if no field says that it is one, as in an error that is sent with status 200.
struct IndexDocument(Option<Vec<Referrer>>);

impl<'de> Deserialize<'de> for IndexDocument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(IndexVisitor)
    }
}

struct IndexVisitor;

impl<'de> Visitor<'de> for IndexVisitor {
    type Value = IndexDocument;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an index")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<IndexDocument, A::Error> {
        let (mut found, mut is_index) = (Vec::new(), false);
        while let Some(name) = map.next_key::<String>()? {
            is_index |= ["manifests", "schemaVersion", "mediaType"].iter().any(|own| own.eq_ignore_ascii_case(&name));
            if name.eq_ignore_ascii_case("manifests") {
                found.extend(map.next_value::<ListedReferrers>()?.0);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(IndexDocument(is_index.then_some(found)))
    }
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
        while let Some(entry) = list.next_element::<Value>()? {
            let Value::Object(fields) = entry else { continue };
            found.extend(Referrer::described_by(fields));
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

impl ReferrerIndex {
    /// Reads an index sent by an upstream. Entries without a digest are skipped, and an index without a list is
    /// empty.
    ///
    /// `None` if `bytes` is not a JSON object with a field of an index.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let document: IndexDocument = serde_json::from_str(&String::from_utf8_lossy(bytes)).ok()?;
        document.0.map(Self::new)
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

    #[test]
    fn entries_that_clients_read_are_kept_with_all_their_fields() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        for entry in [
            format!(r#"{{"digest":"{digest}","size":5}}"#),
            format!(r#"{{"mediaType":"m/t","digest":"{digest}"}}"#),
            format!(r#"{{"mediaType":null,"digest":"{digest}","size":null,"artifactType":null}}"#),
            format!(r#"{{"digest":"{digest}","size":2.0}}"#),
            format!(r#"{{"digest":"{digest}","size":-1}}"#),
            format!(r#"{{"digest":"{digest}","annotations":{{"a":null,"b":1}}}}"#),
            format!(r#"{{"Digest":"{digest}","Size":1,"ARTIFACTTYPE":"a/b"}}"#),
            format!(r#"{{"digest":"{digest}","platform":{{"os":"linux"}},"data":"aGVsbG8=","urls":["u"],"x":[1]}}"#),
            format!(r#"{{"digest":"sha384:{}","size":1}}"#, "0".repeat(96)),
            r#"{"digest":"blake3+b64u:Zm9v-_=","size":1}"#.to_owned(),
        ] {
            for list in ["manifests", "Manifests"] {
                let index = format!(r#"{{"schemaVersion":2,"{list}":[null,7,{{"size":1}},{entry},{{"digest":"x"}}]}}"#);
                let read = ReferrerIndex::read(index.as_bytes()).unwrap();
                let wanted: Value = serde_json::from_str(&entry).unwrap();
                assert_eq!(serde_json::to_value(&read).unwrap()["manifests"], serde_json::json!([wanted]), "{entry}");
                // The form on the disk keeps them as well.
                let kept: Vec<Referrer> =
                    serde_json::from_slice(&serde_json::to_vec(&read.manifests).unwrap()).unwrap();
                assert_eq!(kept, read.manifests);
            }
        }
        let upper = format!(r#"{{"manifests":[{{"Digest":"{digest}","ArtifactType":"a/b"}}]}}"#);
        assert!(ReferrerIndex::read(upper.as_bytes()).unwrap().manifests[0].is_of_type(Some("a/b")));
        for no_index in ["", "[]", "[[]]", "1", "null", "{\"manifests\":[}", "{}", "{\"errors\":[]}"] {
            assert!(ReferrerIndex::read(no_index.as_bytes()).is_none(), "{no_index}");
        }
    }

    proptest! {
        #[test]
        fn index_reads_back(
            content in prop::collection::vec(any::<[u8; 8]>(), 0..4),
            kind in prop::option::of(".{0,20}"),
            annotations in prop::option::of(prop::collection::btree_map(".{0,9}", ".{0,9}", 0..4)),
        ) {
            let json = serde_json::json!({"artifactType": kind, "annotations": annotations}).to_string();
            let described = content.iter().map(|content| {
                Referrer::of(&Digest::of(Algorithm::Sha512, content), "m/t", json.as_bytes()).unwrap()
            });
            let index = ReferrerIndex::new(described.collect());
            let json = serde_json::to_vec(&index).unwrap();
            prop_assert_eq!(ReferrerIndex::read(&json).unwrap().manifests, index.manifests);
        }

        #[test]
        fn descriptor_repeats_the_manifests_own_fields(
            kind in prop::option::of(".{0,20}"),
            annotations in prop::option::of(prop::collection::btree_map(".{0,9}", ".{0,9}", 0..4)),
        ) {
            let json = serde_json::json!({"artifactType": kind, "annotations": annotations}).to_string();
            let digest = Digest::of(Algorithm::Sha512, b"x");
            let found = Referrer::of(&digest, "m/t", json.as_bytes()).unwrap();
            let kind = kind.filter(|kind| !kind.is_empty());
            let mut expected = serde_json::json!({"mediaType": "m/t", "digest": digest.to_string(), "size": json.len()});
            if let Some(kind) = &kind {
                expected["artifactType"] = kind.as_str().into();
            }
            if let Some(annotations) = &annotations {
                expected["annotations"] = serde_json::json!(annotations);
            }
            prop_assert_eq!(serde_json::to_value(&found).unwrap(), expected);
            prop_assert_eq!(found.artifact_type, kind);
        }

        #[test]
        fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[{}\\[\\]\":,a-z0-9]{0,60}") {
            for bytes in [&bytes[..], text.as_bytes()] {
                let _ = Referrer::of(&Digest::of(Algorithm::Sha256, b"x"), "m/t", bytes);
                let _ = ReferrerIndex::read(bytes);
            }
        }
    }
}
