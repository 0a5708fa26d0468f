//! Manifest references (image-spec, manifest.md and image-index.md; Docker image manifest version 2, schema 2).
//!
//! Only the fields that the registry acts on are parsed. The manifest's bytes are stored and served unchanged.

mod read;
mod value;

use std::sync::Arc;

use self::read::{Origin, ReadManifest};
use super::{Digest, media_type};

/// The references of one image manifest, image index or artifact manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The manifest's own `mediaType` field, if present.
    pub media_type: Option<String>,
    /// Config, layers, artifact blobs and child manifests, in document order. References with an unsupported digest
    /// algorithm are in `unsupported` instead.
    pub children: Vec<Child>,
    /// References with an unsupported digest algorithm, as they appear in the manifest: the first fifty.
    pub unsupported: Vec<String>,
    /// The `subject`: the manifest that this one is attached to. It need not exist.
    pub subject: Option<Digest>,
}

/// One descriptor of a manifest (image-spec, descriptor.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// The digest of the content.
    pub digest: Digest,
    /// Size in bytes, as declared by the descriptor.
    pub size: Option<u64>,
    /// The `mediaType` of the descriptor; empty if absent.
    pub media_type: Arc<str>,
    /// Whether the descriptor is in an index's `manifests` list.
    pub is_manifest: bool,
    /// Whether the content may be a blob: false for an entry of an index with the media type of a manifest. BuildKit's
    /// cache is an index of layers.
    pub may_be_blob: bool,
    /// Whether the registry may lack the content: true for non-distributable (foreign) layers.
    pub optional: bool,
}

/// Why bytes are not accepted as a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest is not a JSON object, or a field has the wrong type or appears twice")]
    Shape,
    #[error("the manifest is not UTF-8")]
    Encoding,
    #[error("a reference of the manifest has no valid digest: {0:?}")]
    Digest(String),
    #[error("the manifest's mediaType is {found}, but its Content-Type is {declared}")]
    MediaType { found: String, declared: String },
    #[error(
        "the media type of a manifest must begin with application/ and have at most 255 bytes, all of them visible"
    )]
    InvalidMediaType,
    #[error("the JSON object has no field of a manifest")]
    NoManifest,
    #[error("nothing says that this is a manifest; send its media type as Content-Type")]
    Unrecognizable,
    #[error("manifests of schema version 1 are not supported")]
    SchemaVersion,
}

// === impl Manifest ===

impl Manifest {
    /// Largest manifest accepted from an upstream, in bytes. No larger manifest is ever served.
    pub const MAX_LENGTH: u64 = 8 << 20;
    /// Largest manifest accepted in a push, in bytes (distribution-spec, "Pushing Manifests", asks for at least 4 MB).
    pub const MAX_PUSHED_LENGTH: u64 = 4 << 20;

    /// Parses a manifest of any kind that is stored. Every manifest that clients can read is accepted.
    ///
    /// # Errors
    /// [`ManifestError::Shape`] if the bytes are not a JSON object, [`ManifestError::SchemaVersion`] for schema version
    /// 1.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        Self::read(bytes, Origin::Mirror).map(|read| read.manifest)
    }

    /// Parses a manifest of any kind that an upstream sent. Every manifest that clients can read is accepted.
    ///
    /// # Errors
    /// Those of [`Manifest::parse`], and [`ManifestError::NoManifest`] for a JSON object without any field of a
    /// manifest, such as the error of a proxy that answers 200.
    pub fn parse_mirrored(bytes: &[u8]) -> Result<Self, ManifestError> {
        let read = Self::read(bytes, Origin::Mirror)?;
        if read.is_recognizable() { Ok(read.manifest) } else { Err(ManifestError::NoManifest) }
    }

    /// Parses a manifest that is pushed, with `declared` as the valid media type in its `Content-Type`, if any.
    ///
    /// # Errors
    /// Those of [`Manifest::parse`], and the other variants for faults that are accepted in an upstream's manifest.
    pub fn parse_pushed(bytes: &[u8], declared: Option<&str>) -> Result<Self, ManifestError> {
        let ReadManifest { mut manifest, has_references, .. } = Self::read(bytes, Origin::Push)?;
        if let Some(text) = &manifest.media_type {
            let found = media_type::of_manifest(text).ok_or(ManifestError::InvalidMediaType)?;
            if let Some(declared) = declared.filter(|declared| *declared != found) {
                return Err(ManifestError::MediaType { found, declared: declared.to_owned() });
            }
            manifest.media_type = Some(found);
        } else if declared.is_none() && !has_references {
            return Err(ManifestError::Unrecognizable);
        }
        Ok(manifest)
    }

    fn read(bytes: &[u8], origin: Origin) -> Result<ReadManifest, ManifestError> {
        let read = read::read(bytes, origin)?;
        let is_refused = match origin {
            Origin::Mirror => read.is_schema_1(),
            Origin::Push => read.schema_version == Some(1),
        };
        if is_refused { Err(ManifestError::SchemaVersion) } else { Ok(read) }
    }

    /// The media type to serve if neither the client nor the upstream declared a usable one: the `mediaType` field if
    /// it is valid, otherwise the index type if there are child manifests, otherwise the image manifest type.
    pub fn guess_media_type(&self) -> String {
        let own = self.media_type.as_deref().and_then(media_type::of_manifest);
        own.unwrap_or_else(|| {
            let is_index = self.children.iter().any(|child| child.is_manifest);
            if is_index { media_type::OCI_INDEX } else { media_type::OCI_MANIFEST }.to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oci::Algorithm;

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    #[test]
    fn image_children_are_config_and_layers() {
        let json = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"c","digest":"{}","size":3}},
                "layers":[{{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":"{}","size":9,"urls":["x"]}}],
                "subject":{{"mediaType":"m","digest":"{}","size":1}},"annotations":{{"a":"b"}},"unknown":[1]}}"#,
            media_type::OCI_MANIFEST,
            digest("c"),
            digest("l"),
            digest("s")
        );
        let manifest = Manifest::parse_pushed(json.as_bytes(), Some(media_type::OCI_MANIFEST)).unwrap();
        assert_eq!(manifest.children.len(), 2);
        assert_eq!((manifest.children[0].size, manifest.children[0].optional), (Some(3), false));
        assert!(manifest.children[1].optional);
        assert_eq!(manifest.subject, Some(digest("s")));
        assert!(matches!(
            Manifest::parse_pushed(json.as_bytes(), Some(media_type::DOCKER_MANIFEST)),
            Err(ManifestError::MediaType { .. })
        ));
    }

    #[test]
    fn index_children_may_lack_media_type_or_known_algorithm() {
        let json = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"digest":"{}","size":3}},{{"digest":"blake3:00","size":1}}]}}"#,
            digest("m")
        );
        let index = Manifest::parse(json.as_bytes()).unwrap();
        assert!(index.children[0].is_manifest);
        assert_eq!(index.unsupported, ["blake3:00"]);
        assert_eq!(index.guess_media_type(), media_type::OCI_INDEX);
    }

    #[test]
    fn artifact_manifest_blobs_are_children() {
        let json = format!(
            r#"{{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","artifactType":"a/b",
                "blobs":[{{"mediaType":"a/b","digest":"{}","size":3}}],"subject":{{"digest":"{}","size":1}}}}"#,
            digest("b"),
            digest("s")
        );
        let manifest = Manifest::parse(json.as_bytes()).unwrap();
        assert_eq!(manifest.children.len(), 1);
        assert_eq!((&manifest.children[0].digest, manifest.children[0].is_manifest), (&digest("b"), false));
        assert_eq!(manifest.subject, Some(digest("s")));
    }

    #[test]
    fn invalid_manifests_are_rejected() {
        for bytes in ["", "x", "[]", "1", "null", "{", "{}{}", r#"{"layers":[}"#, r#"{"a":"}"#] {
            for parsed in [Manifest::parse(bytes.as_bytes()), Manifest::parse_pushed(bytes.as_bytes(), None)] {
                assert_eq!(parsed, Err(ManifestError::Shape), "{bytes}");
            }
        }
        assert_eq!(Manifest::parse(br#"{"schemaVersion":1}"#), Err(ManifestError::SchemaVersion));
    }

    #[test]
    fn json_without_a_field_of_a_manifest_is_none() {
        for other in [
            r#"{"errors":[{"code":"DENIED","message":"x","detail":{"manifests":[],"schemaVersion":2}}]}"#,
            r#"{"error":"invalid_token"}"#,
            r#"{"message":"not found","status":404}"#,
            r#"{"mediaType":"application/problem+json","title":"x"}"#,
            r#"{"schemaVersion":null,"mediaType":7}"#,
            "{}",
        ] {
            assert_eq!(Manifest::parse_mirrored(other.as_bytes()), Err(ManifestError::NoManifest), "{other}");
            // A manifest that was pushed with a Content-Type alone stays readable.
            assert!(Manifest::parse(other.as_bytes()).is_ok(), "{other}");
        }
        let digest = digest("x");
        for manifest in [
            r#"{"schemaVersion":2}"#.to_owned(),
            r#"{"schemaVersion":2,"manifests":[]}"#.to_owned(),
            r#"{"manifests":[]}"#.to_owned(),
            format!(r#"{{"manifests":[{{"digest":"{digest}","size":1}}]}}"#),
            format!(r#"{{"config":{{"digest":"{digest}","size":1}}}}"#),
            format!(r#"{{"Layers":[{{"digest":"{digest}","size":1}}]}}"#),
            format!(r#"{{"blobs":[{{"digest":"{digest}","size":1}}]}}"#),
            format!(r#"{{"subject":{{"digest":"{digest}","size":1}}}}"#),
            format!(r#"{{"mediaType":"{}"}}"#, media_type::DOCKER_LIST),
            r#"{"mediaType":"application/vnd.oci.artifact.manifest.v1+json"}"#.to_owned(),
        ] {
            assert!(Manifest::parse_mirrored(manifest.as_bytes()).is_ok(), "{manifest}");
        }
    }

    #[test]
    fn version_1_is_ignored_in_a_manifest_of_another_schema() {
        for manifest in [
            format!(r#"{{"schemaVersion":1,"mediaType":"{}"}}"#, media_type::OCI_MANIFEST),
            format!(r#"{{"schemaVersion":1,"mediaType":"{}","manifests":[]}}"#, media_type::DOCKER_LIST),
            r#"{"schemaVersion":1,"config":{},"layers":[]}"#.to_owned(),
            r#"{"schemaVersion":1.0,"manifests":[]}"#.to_owned(),
            r#"{"schemaVersion":1,"blobs":[]}"#.to_owned(),
        ] {
            assert!(Manifest::parse_mirrored(manifest.as_bytes()).is_ok(), "{manifest}");
            let pushed = Manifest::parse_pushed(manifest.as_bytes(), None);
            assert!(pushed.is_err(), "{manifest}");
        }
        for manifest in [
            r#"{"schemaVersion":1,"name":"a","fsLayers":[],"history":[]}"#,
            r#"{"schemaVersion":1,"mediaType":"application/vnd.docker.distribution.manifest.v1+prettyjws"}"#,
        ] {
            assert_eq!(Manifest::parse_mirrored(manifest.as_bytes()), Err(ManifestError::SchemaVersion), "{manifest}");
        }
    }

    /// Each manifest is accepted from an upstream, because clients can read it, and refused in a push.
    #[test]
    fn faults_are_accepted_from_an_upstream_and_refused_in_a_push() {
        let (known, other) = (digest("a"), digest("b"));
        let layer = |digest: &Digest| format!(r#"{{"mediaType":"m","digest":"{digest}","size":1}}"#);
        for (json, expected) in [
            (r#"{"config":{}}"#.to_owned(), vec![]),
            (r#"{"config":{"size":1}}"#.to_owned(), vec![]),
            (format!(r#"{{"manifests":[{{"size":1}},{}]}}"#, layer(&known)), vec![(&known, Some(1))]),
            (format!(r#"{{"layers":[null,{}]}}"#, layer(&known)), vec![(&known, Some(1))]),
            (format!(r#"{{"layers":[7,"x",[],{}]}}"#, layer(&known)), vec![(&known, Some(1))]),
            (
                format!(r#"{{"layers":[{}],"layers":[{}]}}"#, layer(&known), layer(&other)),
                vec![(&known, Some(1)), (&other, Some(1))],
            ),
            (format!(r#"{{"config":{{"digest":"{known}","digest":"{other}"}}}}"#), vec![(&other, None)]),
            (format!(r#"{{"config":{{"digest":"{known}","size":2.0}}}}"#), vec![(&known, Some(2))]),
            (format!(r#"{{"config":{{"digest":"{known}","size":-2}}}}"#), vec![(&known, None)]),
            (format!(r#"{{"config":{{"digest":"{known}","size":"2"}}}}"#), vec![(&known, None)]),
            (format!(r#"{{"config":{{"digest":"{}"}}}}"#, known.hex()), vec![]),
            (r#"{"layers":1,"manifests":{"a":[]},"config":"x"}"#.to_owned(), vec![]),
        ] {
            let manifest = Manifest::parse(json.as_bytes()).unwrap();
            let found: Vec<_> = manifest.children.iter().map(|child| (&child.digest, child.size)).collect();
            assert_eq!(found, expected, "{json}");
            assert!(Manifest::parse_pushed(json.as_bytes(), Some(media_type::OCI_MANIFEST)).is_err(), "{json}");
        }
    }

    #[test]
    fn null_is_absent_and_names_match_in_any_case() {
        let nulls = r#""mediaType":null,"config":null,"layers":null,"subject":null"#;
        let json = format!(r#"{{{nulls},"MANIFESTS":[{{"Digest":"{}","mediaType":null}}]}}"#, digest("m"));
        for manifest in [Manifest::parse(json.as_bytes()), Manifest::parse_pushed(json.as_bytes(), None)] {
            let manifest = manifest.unwrap();
            assert_eq!((manifest.children.len(), manifest.subject), (1, None));
            assert_eq!((&*manifest.children[0].media_type, manifest.children[0].size), ("", None));
        }
    }

    #[test]
    fn bytes_that_are_no_utf_8_are_accepted_from_an_upstream_alone() {
        let json = [br#"{"annotations":{"a":""#, &b"\xff"[..], br#""},"layers":[]}"#].concat();
        assert!(Manifest::parse(&json).is_ok());
        assert_eq!(Manifest::parse_pushed(&json, None), Err(ManifestError::Encoding));
        assert!(Manifest::parse(br#"{"\ud800":1,"a":{"\ud800":"\ud800"}}"#).is_ok());
    }

    #[test]
    fn unservable_media_types_are_refused_in_a_push_and_replaced_otherwise() {
        let long = format!("application/{}", "x".repeat(300));
        for bad in ["", "text/html", r"application/x\ny", r"application/\u0007x", "application", &long] {
            let json = format!(r#"{{"mediaType":"{bad}","config":{{"digest":"{}"}}}}"#, digest("c"));
            let refused = Manifest::parse_pushed(json.as_bytes(), None);
            assert_eq!(refused, Err(ManifestError::InvalidMediaType), "{bad}");
            assert_eq!(Manifest::parse(json.as_bytes()).unwrap().guess_media_type(), media_type::OCI_MANIFEST);
        }
        for empty in ["{}", r#"{"schemaVersion":2}"#, r#"{"annotations":{}}"#] {
            assert_eq!(Manifest::parse_pushed(empty.as_bytes(), None), Err(ManifestError::Unrecognizable));
            assert!(Manifest::parse_pushed(empty.as_bytes(), Some(media_type::OCI_MANIFEST)).is_ok());
        }
    }

    #[test]
    fn reading_ends_at_the_first_invalid_digest_of_a_push() {
        for bad in [r#"{"digest":""}"#, r#"{"digest":"sha256:00"}"#, r#"{"digest":null}"#, "{}"] {
            // The rest is no JSON, and is not read.
            let json = format!(r#"{{"layers":[{bad},]"#);
            let refused = Manifest::parse_pushed(json.as_bytes(), None);
            assert!(matches!(refused, Err(ManifestError::Digest(_))), "{bad}: {refused:?}");
        }
    }

    #[test]
    fn more_than_4096_layers_are_read_and_share_their_media_type() {
        let layer =
            |n: usize| format!(r#"{{"mediaType":"application/x","digest":"{}","size":{n}}}"#, digest(&n.to_string()));
        let layers: Vec<String> = (0..5000).map(layer).collect();
        let json = format!(r#"{{"schemaVersion":2,"layers":[{}]}}"#, layers.join(","));
        for manifest in [Manifest::parse(json.as_bytes()), Manifest::parse_pushed(json.as_bytes(), None)] {
            let children = manifest.unwrap().children;
            assert_eq!((children.len(), children[4999].size), (5000, Some(4999)));
            assert!(children.iter().all(|child| Arc::ptr_eq(&child.media_type, &children[0].media_type)));
        }
    }

    #[test]
    fn index_entries_may_be_blobs_unless_typed_as_manifests() {
        let entry = |kind: &str| format!(r#"{{"mediaType":"{kind}","digest":"{}","size":1}}"#, digest(kind));
        let kinds = ["application/vnd.oci.image.layer.v1.tar", "", media_type::OCI_MANIFEST, media_type::DOCKER_LIST];
        let json = format!(r#"{{"manifests":[{}]}}"#, kinds.map(entry).join(","));
        let children = Manifest::parse_pushed(json.as_bytes(), None).unwrap().children;
        let may_be_blob: Vec<bool> = children.iter().map(|child| child.may_be_blob).collect();
        assert_eq!(may_be_blob, [true, true, false, false]);
    }

    prop_compose! {
        fn children()(
            content in any::<[u8; 4]>(),
            size in prop::option::of(any::<u64>()),
            long in any::<bool>(),
            is_manifest in any::<bool>(),
            media_type in prop_oneof![
                "[a-z]{1,9}/[a-z.+]{1,20}",
                Just("application/vnd.oci.image.layer.nondistributable.v1.tar".to_owned()),
            ],
        ) -> Child {
            let algorithm = if long { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let optional = !is_manifest && media_type::is_nondistributable(&media_type);
            let may_be_blob = !is_manifest || !media_type::MANIFESTS.contains(&&*media_type);
            let digest = Digest::of(algorithm, &content);
            Child { digest, size, media_type: media_type.into(), is_manifest, may_be_blob, optional }
        }
    }

    fn descriptor(child: &Child) -> serde_json::Value {
        serde_json::json!({"mediaType": &*child.media_type, "digest": child.digest.to_string(), "size": child.size})
    }

    proptest! {
        #[test]
        fn children_keep_document_order(
            children in prop::collection::vec(children(), 0..6),
            subject in prop::option::of(children()),
            media_type in prop::option::of("[a-z]{1,5}/[a-z]{1,5}"),
        ) {
            let of_kind = |manifests: bool| children.iter().filter(move |child| child.is_manifest == manifests);
            let json = serde_json::json!({
                "schemaVersion": 2,
                "mediaType": media_type,
                "layers": of_kind(false).map(descriptor).collect::<Vec<_>>(),
                "manifests": of_kind(true).map(descriptor).collect::<Vec<_>>(),
                "subject": subject.as_ref().map(descriptor),
                "other": [{"digest": 7}],
            });
            let manifest = Manifest::parse(json.to_string().as_bytes()).unwrap();
            let expected: Vec<Child> = of_kind(false).chain(of_kind(true)).cloned().collect();
            prop_assert_eq!(manifest.children, expected);
            prop_assert_eq!(manifest.subject, subject.map(|subject| subject.digest));
            prop_assert_eq!(manifest.media_type, media_type);
            prop_assert!(manifest.unsupported.is_empty());
        }

        #[test]
        fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::parse(&bytes);
            let _ = Manifest::parse_pushed(&bytes, None);
        }
    }
}
