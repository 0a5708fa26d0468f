//! Artifacts and unusual images.

use serde_json::{Value, json};

use super::folder::Folder;
use crate::support::artifact::about;
use crate::support::image::{OCI_INDEX, OCI_MANIFEST};
use crate::support::{Client, Content, Image, Index, random_bytes};

/// The image with one additional layer of zero bytes.
pub fn with_empty_layer(image: &Image) -> Image {
    let config: Value = serde_json::from_slice(&image.config.bytes).expect("a config");
    let empty = Content::new("application/vnd.oci.image.layer.v1.tar", "");
    let mut diff_ids: Vec<String> = serde_json::from_value(config["rootfs"]["diff_ids"].clone()).expect("digests");
    diff_ids.push(empty.digest.clone());
    let layers = [&image.layers[..], &[empty]].concat();
    Image::with_diff_ids(&image.platform, layers, &diff_ids)
}

/// A chart as pushed by `helm push`: a config of its own type, and the packed chart as the only layer.
pub fn chart() -> Image {
    let about = json!({"name": "app", "version": "1.2.3", "apiVersion": "v2"});
    let config = Content::json("application/vnd.cncf.helm.config.v1+json", &about);
    let layer = Content::new("application/vnd.cncf.helm.chart.content.v1.tar+gzip", random_bytes(3, 5000));
    let manifest = json!({
        "schemaVersion": 2,
        "config": config.descriptor(),
        "layers": [layer.descriptor()],
        "annotations": {"org.opencontainers.image.title": "app", "org.opencontainers.image.version": "1.2.3"},
    });
    Image { platform: String::new(), manifest: Content::json(OCI_MANIFEST, &manifest), config, layers: vec![layer] }
}

/// A signature of the subject, with its own config and layer.
pub fn signature(subject: &Content) -> Image {
    let config = crate::support::artifact::empty();
    let manifest = about(subject, "application/vnd.example.signature", &json!({"by": "a test"}));
    Image { platform: String::new(), manifest, layers: vec![config.clone()], config }
}

/// The image in an index as built by `buildx`: with an attestation for the platform unknown/unknown.
pub fn attested(image: &Image) -> Index {
    let statement =
        Content::json("application/vnd.in-toto+json", &json!({"predicateType": "https://slsa.dev/provenance/v1"}));
    let attestation = Image::with_diff_ids("unknown/unknown", vec![statement.clone()], &[statement.digest]);
    let mut index = Index::of(vec![image.clone(), attestation]);
    let mut manifest: Value = serde_json::from_slice(&index.manifest.bytes).expect("an index");
    let about =
        json!({"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image.digest()});
    manifest["manifests"][1]["annotations"] = about;
    index.manifest = Content::json(OCI_INDEX, &manifest);
    index
}

/// Writes the image as skopeo does, and returns the name of this source for skopeo.
pub fn write_dir(folder: &Folder, image: &Image) -> String {
    folder.write("image/version", "Directory Transport Version: 1.1\n");
    std::fs::write(folder.at("image/manifest.json"), &image.manifest.bytes).expect("the file can be written");
    for blob in image.blobs() {
        let name = blob.digest.trim_start_matches("sha256:");
        std::fs::write(folder.at(&format!("image/{name}")), &blob.bytes).expect("the file can be written");
    }
    format!("dir:{}", folder.at("image"))
}

/// Checks that manifest and blobs of the image are served unchanged. `base` ends with the repository.
pub async fn assert_holds(base: &str, image: &Image) {
    let client = Client::new();
    let Content { digest, bytes, media_type } = &image.manifest;
    let got = client.get(&format!("{base}/manifests/{digest}")).await;
    assert_eq!((got.status, &got.body, got.header("content-type")), (200, bytes, media_type.as_str()));
    for Content { digest, bytes, .. } in image.blobs() {
        let got = client.get(&format!("{base}/blobs/{digest}")).await;
        assert!(got.status == 200 && got.body == bytes, "{digest}: {}", got.status);
    }
}

/// The digests of the manifests that an index under this URL lists, in order.
pub async fn listed(url: &str) -> Vec<String> {
    let index = Client::new().get(url).await.json();
    let digests = index["manifests"].as_array().expect("an index").iter().map(|entry| entry["digest"].as_str());
    digests.map(|digest| digest.expect("a digest").to_owned()).collect()
}
