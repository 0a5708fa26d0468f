//! The archive of `docker save` before Docker 25, of `podman save` and of `skopeo copy docker-archive:`.
//!
//! `manifest.json` names the config and the layers of each image; there is no manifest of a registry. One is made from them,
//! with the layers as they are. They are usually uncompressed, and stay so: their digests are then those in the config, which
//! verify them, and they are the same at every import. The output of a compressor depends on its version.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use serde::{Deserialize, Serialize};

use super::image_name::ImageName;
use super::layout::{NamedImage, Naming, SourceImages, read_list};
use super::manifests::SourceContent;
use super::report::Report;
use super::tree::{Part, Tree};
use crate::oci::{Algorithm, Digest, Manifest, media_type};

/// The file that lists the images.
pub(super) const LIST: &str = "manifest.json";
const CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";
const LAYER_TYPE: &str = "application/vnd.docker.image.rootfs.diff.tar";
const GZIP_LAYER_TYPE: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Largest number of layers of an image. Docker allows 127.
const MAX_LAYERS: usize = 1000;

/// The content of an archive, with the manifests that were made for it.
#[derive(Debug)]
pub(super) struct DockerArchive {
    tree: Arc<Tree>,
    manifests: HashMap<Digest, Bytes>,
    /// The names of the files by their expected digests.
    files: HashMap<Digest, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ImageJson {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    /// `null` for an image without layers.
    #[serde(default)]
    layers: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct ConfigJson {
    rootfs: RootFsJson,
}

#[derive(Deserialize)]
struct RootFsJson {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

/// In the order in which Docker writes the fields, so that the bytes are the same at every import.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ManifestJson {
    schema_version: u32,
    media_type: &'static str,
    config: DescriptorJson,
    layers: Vec<DescriptorJson>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescriptorJson {
    media_type: &'static str,
    size: u64,
    digest: String,
}

impl DockerArchive {
    /// Makes the manifests of all images. Images that are damaged are reported.
    ///
    /// # Errors
    /// If the list cannot be read.
    pub(super) fn read(tree: Arc<Tree>, report: &mut Report<'_>) -> Result<(Self, SourceImages), String> {
        let (text, saved) = read_list(&tree, LIST)?;
        let list: Vec<ImageJson> =
            serde_json::from_slice(&text).map_err(|error| format!("{LIST} is not that of docker save: {error}"))?;
        let mut archive = Self { tree, manifests: HashMap::new(), files: HashMap::new() };
        let mut images = Vec::new();
        for image in list {
            let names = image.repo_tags.clone().unwrap_or_default();
            let shown = names.first().cloned().unwrap_or_else(|| image.config.clone());
            let digest = match archive.add(&image) {
                Ok(digest) => digest,
                Err(reason) => {
                    report.failed("image", shown, reason);
                    continue;
                }
            };
            if names.is_empty() {
                images.push(NamedImage { digest: digest.clone(), name: Naming::Nothing });
            }
            for name in names {
                match ImageName::parse(&name) {
                    Some(parsed) => images.push(NamedImage { digest: digest.clone(), name: Naming::Full(parsed) }),
                    None => report.failed("image", name, "its tag is not valid"),
                }
            }
        }
        Ok((archive, SourceImages { images, saved }))
    }

    /// Makes the manifest of an image, and returns its digest.
    fn add(&mut self, image: &ImageJson) -> Result<Digest, String> {
        let named = |name: &str, error: &dyn std::fmt::Display| format!("{name}: {error}");
        let file = |name: &str| {
            let part = self.tree.file(name).map_err(|error| named(name, &error))?;
            part.ok_or_else(|| format!("{name} is not in the source"))
        };
        let layer_files = image.layers.as_deref().unwrap_or_default();
        if layer_files.len() > MAX_LAYERS {
            return Err(format!("it has more than {MAX_LAYERS} layers"));
        }
        let part = file(&image.config)?;
        let config = part.read(Manifest::MAX_LENGTH).map_err(|error| named(&image.config, &error))?;
        let parsed: ConfigJson = serde_json::from_slice(&config).map_err(|error| named(&image.config, &error))?;
        let diff_ids = parsed.rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() != layer_files.len() {
            return Err(format!("its config names {} layers, and {LIST} {}", diff_ids.len(), layer_files.len()));
        }
        let config_digest = Digest::of(Algorithm::Sha256, &config);
        let mut files = vec![(config_digest.clone(), image.config.clone())];
        let mut layers = Vec::new();
        for (name, diff_id) in layer_files.iter().zip(diff_ids) {
            let part = file(name)?;
            let begin = part.begin(ZSTD.len()).map_err(|error| named(name, &error))?;
            let (media_type, digest) = if begin.starts_with(&GZIP) {
                (GZIP_LAYER_TYPE, hash(&part).map_err(|error| named(name, &error))?)
            } else if begin.starts_with(&ZSTD) {
                return Err(format!("{name} is compressed with zstd, which Docker's manifests cannot say"));
            } else {
                (LAYER_TYPE, diff_id.parse().map_err(|error| named(&image.config, &error))?)
            };
            if let Some(other) = self.files.get(&digest).filter(|other| *other != name)
                && file(other)?.length() != part.length()
            {
                return Err(format!("{name} and {other} should be the same layer, and have different lengths"));
            }
            layers.push(DescriptorJson { media_type, size: part.length(), digest: digest.to_string() });
            files.push((digest, name.clone()));
        }
        let config =
            DescriptorJson { media_type: CONFIG_TYPE, size: config.len() as u64, digest: config_digest.to_string() };
        let manifest = ManifestJson { schema_version: 2, media_type: media_type::DOCKER_MANIFEST, config, layers };
        let bytes: Bytes = serde_json::to_vec(&manifest).map_err(|error| error.to_string())?.into();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        for (digest, name) in files {
            self.files.entry(digest).or_insert(name);
        }
        self.manifests.insert(digest.clone(), bytes);
        Ok(digest)
    }
}

impl SourceContent for DockerArchive {
    fn manifest(&self, digest: &Digest) -> io::Result<Option<Bytes>> {
        Ok(self.manifests.get(digest).cloned())
    }

    fn blob(&self, digest: &Digest) -> io::Result<Option<Part>> {
        self.files.get(digest).map_or(Ok(None), |name| self.tree.file(name))
    }
}

/// The digest of a file.
fn hash(part: &Part) -> io::Result<Digest> {
    let mut hasher = Algorithm::Sha256.hasher();
    let mut chunks = std::pin::pin!(part.clone().stream());
    // The stream reads where it is polled, so it is always ready.
    while let Some(Some(chunk)) = chunks.next().now_or_never() {
        hasher.update(&chunk?);
    }
    Ok(hasher.finish())
}
