//! Generated images: seeded random layers, a config and a manifest, with their digests.
//!
//! The same seed makes the same image, so that two upstreams can hold the same bytes and a test can generate an image
//! again instead of keeping it.

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// `len` bytes that look random and are the same for the same seed. 64 MiB take well under 0.1 s.
pub fn random_bytes(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes.into()
}

/// `sha256:<hex>` of the bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Bytes with the digest and media type of their descriptor.
#[derive(Clone, Debug)]
pub struct Content {
    pub media_type: String,
    pub digest: String,
    pub bytes: Bytes,
}

impl Content {
    pub fn new(media_type: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { media_type: media_type.to_owned(), digest: digest_of(&bytes), bytes }
    }

    pub fn json(media_type: &str, value: &Value) -> Self {
        Self::new(media_type, value.to_string().into_bytes())
    }

    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// One image for one platform.
#[derive(Clone, Debug)]
pub struct Image {
    pub platform: String,
    pub manifest: Content,
    pub config: Content,
    pub layers: Vec<Content>,
}

impl Image {
    /// An OCI image for linux/amd64 with one random layer per given size.
    pub fn new(seed: u64, layer_sizes: &[usize]) -> Self {
        Self::for_platform("linux/amd64", random_layers(OCI_LAYER, seed, layer_sizes))
    }

    /// The same with Docker's media types.
    pub fn docker(seed: u64, layer_sizes: &[usize]) -> Self {
        let layers = random_layers(DOCKER_LAYER, seed, layer_sizes);
        Self::build("linux/amd64", DOCKER_MANIFEST, DOCKER_CONFIG, layers, &[])
    }

    /// An OCI image of the caller's uncompressed layers, which serve as their own `diff_ids`.
    pub fn for_platform(platform: &str, layers: Vec<Content>) -> Self {
        Self::build(platform, OCI_MANIFEST, OCI_CONFIG, layers, &[])
    }

    /// An OCI image of compressed layers: `diff_ids` are the digests of the uncompressed ones.
    pub fn with_diff_ids(platform: &str, layers: Vec<Content>, diff_ids: &[String]) -> Self {
        Self::build(platform, OCI_MANIFEST, OCI_CONFIG, layers, diff_ids)
    }

    fn build(
        platform: &str,
        manifest_type: &str,
        config_type: &str,
        layers: Vec<Content>,
        diff_ids: &[String],
    ) -> Self {
        let (os, architecture) = platform.split_once('/').expect("a platform is os/arch");
        let diff_ids: Vec<&str> = if diff_ids.is_empty() {
            layers.iter().map(|layer| layer.digest.as_str()).collect()
        } else {
            diff_ids.iter().map(String::as_str).collect()
        };
        let config = Content::json(
            config_type,
            &json!({
                "architecture": architecture,
                "os": os,
                "config": {"Cmd": ["/bin/sh"]},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }),
        );
        let manifest = Content::json(
            manifest_type,
            &json!({
                "schemaVersion": 2,
                "mediaType": manifest_type,
                "config": config.descriptor(),
                "layers": layers.iter().map(Content::descriptor).collect::<Vec<_>>(),
            }),
        );
        Self { platform: platform.to_owned(), manifest, config, layers }
    }

    /// The config and the layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Content> {
        std::iter::once(&self.config).chain(&self.layers)
    }

    pub fn digest(&self) -> &str {
        &self.manifest.digest
    }
}

/// An image index: one image per platform.
#[derive(Clone, Debug)]
pub struct Index {
    pub manifest: Content,
    pub images: Vec<Image>,
}

impl Index {
    /// One random image per platform, `os/arch`, all with layers of these sizes.
    pub fn new(seed: u64, platforms: &[&str], layer_sizes: &[usize]) -> Self {
        let images = platforms.iter().zip(0..).map(|(platform, n)| {
            let layers = random_layers(OCI_LAYER, seed + 1000 * n, layer_sizes);
            Image::for_platform(platform, layers)
        });
        Self::of(images.collect())
    }

    pub fn of(images: Vec<Image>) -> Self {
        let entries = images.iter().map(|image| {
            let (os, architecture) = image.platform.split_once('/').expect("os/arch");
            let mut entry = image.manifest.descriptor();
            entry["platform"] = json!({"os": os, "architecture": architecture});
            entry
        });
        let manifest = Content::json(
            OCI_INDEX,
            &json!({
                "schemaVersion": 2,
                "mediaType": OCI_INDEX,
                "manifests": entries.collect::<Vec<_>>(),
            }),
        );
        Self { manifest, images }
    }

    pub fn digest(&self) -> &str {
        &self.manifest.digest
    }
}

/// One random layer per size, each with its own seed.
pub fn random_layers(media_type: &str, seed: u64, sizes: &[usize]) -> Vec<Content> {
    let seeds = seed..;
    let layers = sizes.iter().zip(seeds);
    layers.map(|(&size, seed)| Content::new(media_type, random_bytes(seed, size))).collect()
}
