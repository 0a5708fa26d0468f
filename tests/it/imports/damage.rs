//! Sources that are damaged or hostile. Everything else of them is imported.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use super::tree::{RegistryFolder, hex, layout};
use super::{assert_served, import, left_out, numbers, start, status};
use crate::operator::roadstead;
use crate::support::image::OCI_MANIFEST;
use crate::support::settings::Settings;
use crate::support::{Content, Image, Index, random_bytes};

#[tokio::test(flavor = "multi_thread")]
async fn damaged_content_is_named_and_left_with_every_tag_that_needs_it() {
    let source = RegistryFolder::new();
    let good = Image::new(1, &[3000, 200]);
    source.image("app", "good", &good);
    // The damaged images share a layer with the good one.
    let [corrupt, missing, unlinked, linked] = [10, 20, 30, 40].map(|seed| {
        let own = Image::new(seed, &[400]).layers;
        Image::for_platform("linux/amd64", [&own[..], &good.layers[..1]].concat())
    });
    for (tag, image) in [("corrupt", &corrupt), ("missing", &missing), ("unlinked", &unlinked), ("linked", &linked)] {
        source.image("app", tag, image);
    }
    fs::write(source.data(&corrupt.layers[0].digest), random_bytes(99, 400)).unwrap();
    fs::remove_file(source.data(&missing.layers[0].digest)).unwrap();
    fs::remove_file(source.at(&format!("repositories/app/_layers/sha256/{}/link", hex(&unlinked.layers[0].digest))))
        .unwrap();
    // A link out of the folder, to a file with the right content.
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), &linked.layers[0].bytes).unwrap();
    fs::remove_file(source.data(&linked.layers[0].digest)).unwrap();
    symlink(outside.path(), source.data(&linked.layers[0].digest)).unwrap();
    let index = Index::of(vec![good.clone(), corrupt.clone()]);
    source.index("app", "index", &index);
    fs::write(source.data(&corrupt.layers[0].digest), random_bytes(99, 400)).unwrap();

    let server = start(Settings::new()).await;
    for round in 0..2 {
        let output = import(&server, &[source.path()]).await;
        assert_eq!(output.code, 1, "{output:?}");
        let left = left_out(&output, true);
        let is_left = |name: &str, reason: &str| left.iter().any(|(left, why)| left == name && why.contains(reason));
        for (image, tag) in [(&corrupt, "corrupt"), (&missing, "missing"), (&unlinked, "unlinked"), (&linked, "linked")]
        {
            assert!(is_left(&format!("app@{}", image.digest()), &image.layers[0].digest), "{tag}: {left:?}");
            assert!(is_left(&format!("app:{tag}"), "left out"), "{tag}: {left:?}");
            assert_eq!(status(&server, &format!("/v2/app/manifests/{tag}")).await, 404);
            assert_eq!(status(&server, &format!("/v2/app/blobs/{}", image.layers[0].digest)).await, 404, "{tag}");
        }
        assert!(is_left(&format!("app@{}", corrupt.layers[0].digest), "corrupt"), "{left:?}");
        assert!(is_left("app:index", "left out"), "{left:?}");
        assert_served(&server.url("/v2/app"), "good", &good).await;
        assert_eq!(numbers(&output, ["manifests"]), [1 - round], "{output:?}");
    }
    // Once the source is repaired, the rest follows.
    fs::write(source.data(&corrupt.layers[0].digest), &corrupt.layers[0].bytes).unwrap();
    let output = import(&server, &[source.path()]).await;
    assert_eq!(numbers(&output, ["manifests", "tags"]), [2, 2], "{output:?}");
    assert_served(&server.url("/v2/app"), "corrupt", &corrupt).await;
    let scrubbed = roadstead(&server.data_dir(), &["scrub"]).await;
    assert_eq!(scrubbed.code, 0, "{scrubbed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_manifests_links_and_folders_are_named() {
    let source = RegistryFolder::new();
    let good = Image::new(1, &[300]);
    source.image("app", "good", &good);
    let schema_1 = br#"{"schemaVersion":1,"name":"app","fsLayers":[],"history":[]}"#;
    let schema_1 = Content::new("application/json", schema_1.as_slice());
    let huge = Content::new(OCI_MANIFEST, vec![b' '; 9 << 20]);
    let garbage = Content::new(OCI_MANIFEST, "{not json");
    let corrupt = Image::new(3, &[300]);
    source.image("app", "corrupt", &corrupt);
    fs::write(source.data(corrupt.digest()), "{}").unwrap();
    for (tag, manifest) in [("schema1", &schema_1), ("huge", &huge), ("garbage", &garbage)] {
        source.manifest("app", manifest);
        source.tag("app", tag, &manifest.digest);
    }
    source.write("repositories/app/_manifests/tags/broken/current/link", b"../../../etc/passwd");
    source.write(
        &format!("repositories/app/_manifests/revisions/sha256/{}/link", "b".repeat(64)),
        good.digest().as_bytes(),
    );
    source.write("repositories/app/_manifests/revisions/sha256/short/link", b"sha256:00");
    source.write("repositories/app/_manifests/tags/-bad/current/link", good.digest().as_bytes());
    symlink("/etc", source.at("repositories/outside")).unwrap();

    let server = start(Settings::new()).await;
    let output = import(&server, &[source.path()]).await;
    let left = left_out(&output, true);
    for (name, reason) in [
        (format!("app@{}", schema_1.digest), "schema version 1"),
        (format!("app@{}", huge.digest), "at most"),
        (format!("app@{}", garbage.digest), "JSON"),
        (format!("app@{}", corrupt.digest()), "corrupt"),
        ("app:broken".to_owned(), "no digest"),
        ("app:-bad".to_owned(), "not a valid tag"),
        ("app@sha256:short".to_owned(), "no digest"),
        (format!("app@sha256:{}", "b".repeat(64)), "another digest"),
        ("app:schema1".to_owned(), "left out"),
        ("outside".to_owned(), "cannot be read"),
    ] {
        assert!(left.iter().any(|(left, why)| *left == name && why.contains(reason)), "{name}: {left:?}");
    }
    assert_eq!((output.code, numbers(&output, ["manifests", "tags"])), (1, [1, 1]), "{output:?}");
    assert_served(&server.url("/v2/app"), "good", &good).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_which_the_source_has_some_images_is_imported() {
    let index = Index::new(5, &["linux/amd64", "linux/arm64"], &[300]);
    let (registry, folder) = (RegistryFolder::new(), tempfile::tempdir().unwrap());
    registry.index("sparse", "v1", &index);
    let absent = index.images[1].digest();
    fs::remove_file(registry.at(&format!("repositories/sparse/_manifests/revisions/sha256/{}/link", hex(absent))))
        .unwrap();
    let present: Vec<&Content> = index.images[0].blobs().chain([&index.images[0].manifest, &index.manifest]).collect();
    let name = json!({"io.containerd.image.name": "docker.io/team/sparse:v1"});
    layout(folder.path(), &present, &[(&index.manifest, name)]);
    let server = start(Settings::new()).await;
    for (path, repository) in [(registry.path(), "sparse"), (folder.path().to_str().unwrap(), "team/sparse")] {
        let output = import(&server, &[path]).await;
        assert_eq!((output.code, numbers(&output, ["sparse_indexes", "tags"])), (0, [1, 1]), "{output:?}");
        assert_eq!(status(&server, &format!("/v2/{repository}/manifests/v1")).await, 200);
        assert_served(&server.url(&format!("/v2/{repository}")), index.images[0].digest(), &index.images[0]).await;
    }
}
