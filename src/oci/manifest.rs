//! Manifest references (image-spec, manifest.md and image-index.md; Docker image manifest version 2, schema 2).
//!
//! Only the fields that the registry acts on are parsed. The manifest's bytes are stored and served unchanged.

use serde::Deserialize;

use super::{Digest, media_type};

/// The references of one image manifest, image index or artifact manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The manifest's own `mediaType` field, if present.
    pub media_type: Option<String>,
    /// Config, layers, artifact blobs and child manifests, in document order. References with an unsupported digest
    /// algorithm are in `unsupported` instead.
    pub children: Vec<Child>,
    /// References whose digest could not be parsed, as they appear in the manifest.
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
    pub size: u64,
    /// The `mediaType` of the descriptor; empty if absent.
    pub media_type: String,
    /// Whether the descriptor is in an index's `manifests` list, and so names a manifest rather than a blob.
    pub is_manifest: bool,
    /// Whether the registry may lack the content: true for non-distributable (foreign) layers.
    pub optional: bool,
}

/// Why bytes are not accepted as a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest is not a JSON object, or a field has the wrong type")]
    Shape,
    #[error("the manifest's mediaType is {found}, but its Content-Type is {declared}")]
    MediaType { found: String, declared: String },
    #[error("the manifest has more than {} references", Manifest::MAX_CHILDREN)]
    TooMany,
    #[error("manifests of schema version 1 are not supported")]
    SchemaVersion,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    /// Blobs of an OCI artifact manifest (`application/vnd.oci.artifact.manifest.v1+json`), which was removed before
    /// image-spec 1.1.
    blobs: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
}

// === impl Manifest ===

impl Manifest {
    /// Largest manifest accepted from an upstream, in bytes. No larger manifest is ever served.
    pub const MAX_LENGTH: u64 = 8 << 20;
    /// Largest manifest accepted in a push, in bytes (distribution-spec, "Pushing Manifests", asks for at least 4 MB).
    pub const MAX_PUSHED_LENGTH: u64 = 4 << 20;

    /// Largest number of references of one manifest. Real indexes have a few hundred; each reference costs one link
    /// file in its repository.
    pub const MAX_CHILDREN: usize = 4096;

    /// Parses a manifest of any kind.
    ///
    /// # Errors
    /// [`ManifestError::Shape`] if the bytes are not a JSON object or a used field has the wrong type,
    /// [`ManifestError::SchemaVersion`] for schema version 1, [`ManifestError::TooMany`] for more than
    /// [`Self::MAX_CHILDREN`] references.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        // serde also accepts a JSON array for a struct.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(ManifestError::Shape);
        }
        let document: ManifestDocument = serde_json::from_slice(bytes).map_err(|_| ManifestError::Shape)?;
        if document.schema_version == Some(1) {
            return Err(ManifestError::SchemaVersion);
        }
        let mut manifest = Self {
            media_type: document.media_type,
            subject: document.subject.and_then(|subject| subject.digest.parse().ok()),
            ..Self::default()
        };
        let blobs = document.config.into_iter().chain(document.layers.into_iter().flatten());
        for descriptor in blobs.chain(document.blobs.into_iter().flatten()) {
            manifest.add(descriptor, false);
        }
        for descriptor in document.manifests.into_iter().flatten() {
            manifest.add(descriptor, true);
        }
        if manifest.children.len() + manifest.unsupported.len() > Self::MAX_CHILDREN {
            return Err(ManifestError::TooMany);
        }
        Ok(manifest)
    }

    /// Parses a manifest and checks that its `mediaType` field, if present, equals `declared`, the `Content-Type` it
    /// was sent with.
    ///
    /// # Errors
    /// Those of [`Manifest::parse`], and [`ManifestError::MediaType`] if the types differ.
    pub fn parse_as(bytes: &[u8], declared: &str) -> Result<Self, ManifestError> {
        let manifest = Self::parse(bytes)?;
        match &manifest.media_type {
            Some(found) if found != declared => {
                Err(ManifestError::MediaType { found: found.clone(), declared: declared.to_owned() })
            }
            _ => Ok(manifest),
        }
    }

    /// The media type to serve if neither the client nor the upstream declared one: the `mediaType` field, otherwise
    /// the index type if there are child manifests, otherwise the image manifest type.
    pub fn guess_media_type(&self) -> String {
        match &self.media_type {
            Some(found) => found.clone(),
            None if self.children.iter().any(|child| child.is_manifest) => media_type::OCI_INDEX.to_owned(),
            None => media_type::OCI_MANIFEST.to_owned(),
        }
    }

    fn add(&mut self, descriptor: Descriptor, is_manifest: bool) {
        match descriptor.digest.parse() {
            Ok(digest) => self.children.push(Child {
                digest,
                size: descriptor.size,
                is_manifest,
                optional: !is_manifest && media_type::is_nondistributable(&descriptor.media_type),
                media_type: descriptor.media_type,
            }),
            Err(_) => self.unsupported.push(descriptor.digest),
        }
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
        let manifest = Manifest::parse_as(json.as_bytes(), media_type::OCI_MANIFEST).unwrap();
        assert_eq!(manifest.children.len(), 2);
        assert_eq!((manifest.children[0].size, manifest.children[0].optional), (3, false));
        assert!(manifest.children[1].optional);
        assert_eq!(manifest.subject, Some(digest("s")));
        assert!(matches!(
            Manifest::parse_as(json.as_bytes(), media_type::DOCKER_MANIFEST),
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
        for bytes in [
            "",
            "x",
            "[]",
            "1",
            "null",
            r#"{"layers":1}"#,
            r#"{"config":{"size":1}}"#,
            r#"{"config":{"digest":"a","size":-1}}"#,
        ] {
            assert_eq!(Manifest::parse(bytes.as_bytes()), Err(ManifestError::Shape), "{bytes}");
        }
        assert_eq!(Manifest::parse(br#"{"schemaVersion":1}"#), Err(ManifestError::SchemaVersion));
    }

    prop_compose! {
        fn children()(
            content in any::<[u8; 4]>(),
            size in any::<u64>(),
            long in any::<bool>(),
            is_manifest in any::<bool>(),
            media_type in prop_oneof![
                "[a-z]{1,9}/[a-z.+]{1,20}",
                Just("application/vnd.oci.image.layer.nondistributable.v1.tar".to_owned()),
            ],
        ) -> Child {
            let algorithm = if long { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let optional = !is_manifest && media_type::is_nondistributable(&media_type);
            Child { digest: Digest::of(algorithm, &content), size, media_type, is_manifest, optional }
        }
    }

    fn descriptor(child: &Child) -> serde_json::Value {
        serde_json::json!({"mediaType": child.media_type, "digest": child.digest.to_string(), "size": child.size})
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
        }
    }
}
