//! What a manifest refers to (image-spec, manifest.md and image-index.md; docker manifest v2 schema 2).
//!
//! Only what the registry acts on is read; the bytes themselves are kept and served exactly as they came.

use serde::Deserialize;

use super::{Digest, media_type};

/// The references of one manifest, image or index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The `mediaType` field, if it has one.
    pub media_type: Option<String>,
    /// Config, layers and child manifests, in order. References under an algorithm this registry does not store are left out.
    pub children: Vec<Child>,
    /// References left out of `children`, as text.
    pub unsupported: Vec<String>,
    /// The manifest that this one is about; it need not exist.
    pub subject: Option<Digest>,
}

/// A descriptor in a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    pub digest: Digest,
    /// Bytes, as the descriptor says.
    pub size: u64,
    pub media_type: String,
    /// Listed by an index: it is a manifest, not a blob.
    pub is_manifest: bool,
    /// May be absent: a foreign layer.
    pub optional: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest is not a JSON object of a known shape")]
    Shape,
    #[error("the manifest's mediaType is {found}, but it was sent as {declared}")]
    MediaType { found: String, declared: String },
    #[error("a manifest refers to at most {} others", Manifest::MAX_CHILDREN)]
    TooMany,
    #[error("a manifest of schema version 1 is not supported")]
    SchemaVersion,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    /// Of the short-lived OCI artifact manifest.
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
    /// The largest manifest that is taken from an upstream, and so the largest that is ever served, in bytes.
    pub const MAX_LENGTH: u64 = 8 << 20;
    /// The largest manifest that can be pushed, in bytes (distribution-spec, "Pushing manifests": at least 4 MB).
    pub const MAX_PUSHED_LENGTH: u64 = 4 << 20;

    /// The most references of one manifest. Real indexes have some hundreds; each costs a name in its repository.
    pub const MAX_CHILDREN: usize = 4096;

    /// Reads the references of a manifest.
    ///
    /// # Errors
    /// [`ManifestError::Shape`] for what is not a JSON object of a known shape, [`ManifestError::SchemaVersion`] for schema 1.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        // serde would read a struct from a JSON array, too.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(ManifestError::Shape);
        }
        let document: Document = serde_json::from_slice(bytes).map_err(|_| ManifestError::Shape)?;
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

    /// As [`Manifest::parse`], and its `mediaType` field must agree with the type it was sent as.
    pub fn parse_as(bytes: &[u8], declared: &str) -> Result<Self, ManifestError> {
        let manifest = Self::parse(bytes)?;
        match &manifest.media_type {
            Some(found) if found != declared => {
                Err(ManifestError::MediaType { found: found.clone(), declared: declared.to_owned() })
            }
            _ => Ok(manifest),
        }
    }

    /// The type to serve these bytes as when nobody said: the `mediaType` field, else what the shape suggests.
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
    fn an_image_refers_to_its_config_and_layers() {
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
    fn an_index_refers_to_manifests_even_of_unknown_algorithms() {
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
    fn what_is_no_manifest_is_refused() {
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
        fn every_reference_is_found_in_its_order(
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
