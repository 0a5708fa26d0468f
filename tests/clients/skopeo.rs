//! skopeo copies complete indexes and verifies every digest.

use super::folder::Folder;
use super::program::{find, run};
use super::registry::Registry;
use super::{busybox, roadstead, shapes};
use crate::support::image::digest_of;
use crate::support::{Client, Content, Index};

fn skopeo(args: &[&str]) -> String {
    run(&find("skopeo", "skopeo"), args, &[])
}

/// Checks that every manifest and blob is served unchanged. `base` ends with the repository.
async fn assert_holds(base: &str, index: &Index) {
    let client = Client::new();
    let manifests = index.images.iter().map(|image| &image.manifest);
    for Content { digest, bytes, media_type } in manifests.chain([&index.manifest]) {
        let url = format!("{base}/manifests/{digest}");
        let got = client.get_with(&url, &[("Accept", media_type)]).await;
        assert_eq!((got.status, &got.body), (200, bytes), "{digest}");
        assert_eq!(got.header("content-type"), media_type);
    }
    for Content { digest, bytes, .. } in index.images.iter().flat_map(|image| image.blobs()) {
        let got = client.get(&format!("{base}/blobs/{digest}")).await;
        assert!(got.status == 200 && got.body == bytes, "{digest}: {}", got.status);
    }
}

#[tokio::test]
async fn skopeo_copies_an_index_and_keeps_every_digest() {
    let github = Registry::start();
    let index = busybox::index("for three platforms");
    github.push_index("team/multi", "v1", &index).await;
    let roadstead = roadstead(&[("ghcr.io", &github)]);
    let through = format!("docker://{}/ghcr.io/team/multi:v1", roadstead.host());
    let into = format!("docker://{}/copies/multi:v1", roadstead.host());
    skopeo(&["copy", "--all", "--src-tls-verify=false", "--dest-tls-verify=false", &through, &into]);

    let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &into]);
    assert_eq!(digest_of(raw.as_bytes()), index.digest());
    assert_holds(&roadstead.url("/v2/ghcr.io/team/multi"), &index).await;
    assert_holds(&roadstead.url("/v2/copies/multi"), &index).await;

    let folder = Folder::new();
    let out = format!("oci:{}:v1", folder.at("layout"));
    skopeo(&["copy", "--all", "--src-tls-verify=false", &into, &out]);
    let layout = std::fs::read_to_string(folder.at("layout/index.json")).unwrap();
    assert!(layout.contains(index.digest()), "{layout}");
}

#[tokio::test]
async fn skopeo_lists_mirrored_and_pushed_tags() {
    let github = Registry::start();
    let image = busybox::image("tagged twice");
    github.push("team/tool", "v1", &image).await;
    github.push("team/tool", "v2", &image).await;
    let roadstead = roadstead(&[("ghcr.io", &github)]);
    Client::new().push_image(&roadstead.url(""), "team/tool", "v3", &image).await;
    for (repository, tags) in [("ghcr.io/team/tool", vec!["v1", "v2"]), ("team/tool", vec!["v3"])] {
        let repository = format!("docker://{}/{repository}", roadstead.host());
        let list = skopeo(&["list-tags", "--tls-verify=false", &repository]);
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        assert_eq!(list["Tags"], serde_json::json!(tags));
    }
}

#[tokio::test]
async fn skopeo_copies_artifacts_to_a_folder_and_back() {
    let roadstead = roadstead(&[]);
    let subject = busybox::image("signed");
    let client = Client::new();
    for (name, image) in [
        ("empty-layer", shapes::with_empty_layer(&subject)),
        ("chart", shapes::chart()),
        ("signature", shapes::signature(&subject.manifest)),
    ] {
        client.push_image(&roadstead.url(""), &format!("team/{name}"), "v1", &image).await;
        let folder = Folder::new();
        let host = roadstead.host();
        let (from, to) = (format!("docker://{host}/team/{name}:v1"), format!("docker://{host}/copies/{name}:v1"));
        // `dir:` keeps every manifest unchanged, whatever its type.
        let kept = format!("dir:{}", folder.at("kept"));
        skopeo(&["copy", "--preserve-digests", "--src-tls-verify=false", &from, &kept]);
        skopeo(&["copy", "--preserve-digests", "--dest-tls-verify=false", &kept, &to]);
        shapes::assert_holds(&roadstead.url(&format!("/v2/copies/{name}")), &image).await;
    }
    let referrers = roadstead.url(&format!("/v2/copies/signature/referrers/{}", subject.digest()));
    let signature = shapes::signature(&subject.manifest);
    assert_eq!(shapes::listed(&referrers).await, [signature.digest()], "the subject need not exist");
}
