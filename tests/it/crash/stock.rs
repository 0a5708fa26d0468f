//! The content of the crash tests. It is little and shared by all clients, so that the same bytes are pushed, cached,
//! deleted and evicted at once.

use std::collections::HashMap;

use bytes::Bytes;
use fastrand::Rng;

use crate::scene::{KIB, REPO, blob_path};
use crate::support::image::OCI_LAYER;
use crate::support::{Content, Image, Reply, Upstream, random_bytes};

pub struct Stock {
    pushed: Vec<Image>,
    mirrored: Vec<(String, Content)>,
    bytes: HashMap<String, Bytes>,
}

impl Stock {
    /// Adds the mirrored content to the upstream, which sends some of it slowly.
    pub fn new(upstream: &Upstream, rng: &mut Rng) -> Self {
        let layer = |rng: &mut Rng, most: usize| Content::new(OCI_LAYER, random_bytes(rng.u64(..), rng.usize(2..most)));
        let layers: Vec<Content> = (0..12).map(|_| layer(rng, 150 * KIB)).collect();
        let mut image = |own: usize| {
            let own: Vec<Content> = (0..own).map(|_| layer(rng, 120 * KIB)).collect();
            let shared = rng.choose_multiple(layers.iter(), 2).into_iter().cloned();
            Image::for_platform("linux/amd64", own.into_iter().chain(shared).collect())
        };
        let pushed: Vec<Image> = (0..8).map(|_| image(1)).collect();
        let upstreams: Vec<Image> = (0..12).map(|_| image(2)).collect();
        let mut mirrored = Vec::new();
        let mut bytes = HashMap::new();
        for (n, image) in upstreams.iter().enumerate() {
            let tag = format!("v{n}");
            upstream.add_image(REPO, &tag, image);
            mirrored.push((format!("/v2/{REPO}/manifests/{tag}"), image.manifest.clone()));
            for blob in image.blobs() {
                mirrored.push((blob_path(REPO, blob), blob.clone()));
            }
            upstream.always("GET", &blob_path(REPO, &image.layers[0]), Reply::normal().pace(500_000));
        }
        for image in &pushed {
            for content in image.blobs().chain([&image.manifest]) {
                bytes.insert(content.digest.clone(), content.bytes.clone());
            }
        }
        Self { pushed, mirrored, bytes }
    }

    pub fn image(&self, rng: &mut Rng) -> &Image {
        rng.choice(&self.pushed).expect("the list is not empty")
    }

    /// A path and the content that it must return.
    pub fn mirrored(&self, rng: &mut Rng) -> &(String, Content) {
        rng.choice(&self.mirrored).expect("the list is not empty")
    }

    /// The bytes of a pushed digest.
    pub fn bytes(&self, digest: &str) -> &Bytes {
        &self.bytes[digest]
    }
}
