//! The folder of a registry that was pushed to.

use serde_json::json;

use super::tree::RegistryFolder;
use super::{assert_served, begin, import, left_out, numbers, start, status, summary};
use crate::operator::roadstead;
use crate::support::artifact::{about, empty};
use crate::support::settings::Settings;
use crate::support::{Client, Image, Index};

/// Two repositories that share a layer, an index, a signature, and what an import leaves.
fn source() -> (RegistryFolder, [Image; 2], Index) {
    let source = RegistryFolder::new();
    let (docker, oci) = (Image::docker(1, &[3000, 100]), Image::new(1, &[3000]));
    let index = Index::new(5, &["linux/amd64", "linux/arm64"], &[700]);
    source.image("app", "v1", &docker);
    source.tag("app", "latest", docker.digest());
    source.image("team/deep/er/tool", "v2", &oci);
    source.index("team/deep", "multi", &index);
    let signature = about(&index.manifest, "application/vnd.example.signature", &json!({"by": "a test"}));
    source.blob("team/deep", &empty());
    source.manifest("team/deep", &signature);
    // What is left: a blob without a manifest, an upload, a deleted manifest with its tag, an empty repository, other files.
    source.blob("app", &Image::new(77, &[500]).config);
    source.write("repositories/app/_uploads/0b9ec9b8/data", b"begun");
    source.write(&format!("repositories/app/_manifests/revisions/sha256/{}/other", "a".repeat(64)), b"");
    source.tag("app", "dangling", &format!("sha256:{}", "a".repeat(64)));
    source.write("repositories/empty/_uploads/1/data", b"");
    source.write("repositories/README", b"no repository");
    (source, [docker, oci], index)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_takes_over_pushed_content() {
    let (source, [docker, oci], index) = source();
    let before = source.state();
    let server = start(Settings::new()).await;
    let output = import(&server, &[source.path()]).await;
    assert_eq!(output.code, 0, "{output:?}");
    let counted = numbers(&output, ["repositories", "manifests", "tags", "blobs", "failed"]);
    // The two images of the index share no blob with each other; the two images share the first layer.
    assert_eq!(counted, [3, 6, 4, 9, 0], "{output:?}");
    let left = ["unreferenced_blobs", "uploads", "deleted_manifests", "dangling_tags", "empty_repositories"];
    assert_eq!(numbers(&output, left), [1, 2, 1, 1, 1], "{output:?}");

    for tag in ["v1", "latest"] {
        assert_served(&server.url("/v2/app"), tag, &docker).await;
    }
    assert_served(&server.url("/v2/team/deep/er/tool"), "v2", &oci).await;
    for image in &index.images {
        assert_served(&server.url("/v2/team/deep"), image.digest(), image).await;
    }
    let client = Client::new();
    let got = client.get(&server.url("/v2/team/deep/manifests/multi")).await;
    assert_eq!((got.status, got.body), (200, index.manifest.bytes.clone()));
    let referrers = client.get(&server.url(&format!("/v2/team/deep/referrers/{}", index.digest()))).await.json();
    assert_eq!(referrers["manifests"].as_array().unwrap().len(), 1);
    let catalog = client.get(&server.url("/v2/_catalog")).await.json();
    assert_eq!(catalog["repositories"], json!(["app", "team/deep", "team/deep/er/tool"]));
    assert_eq!(status(&server, "/v2/app/manifests/dangling").await, 404);
    assert_eq!(source.state(), before, "the source is unchanged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_import_copies_nothing() {
    let (source, [docker, _], _) = source();
    let mut server = start(Settings::new()).await;
    tokio::task::block_in_place(|| server.stop());
    let copied = ["manifests", "tags", "blobs", "bytes"];
    let first = import(&server, &[source.path()]).await;
    assert!(first.code == 0 && numbers(&first, copied)[3] > 0, "{first:?}");
    let again = import(&server, &[source.path()]).await;
    assert_eq!((again.code, numbers(&again, copied)), (0, [0; 4]), "{again:?}");
    assert_eq!(numbers(&again, ["known_manifests", "known_tags"]), [6, 4]);
    begin(&mut server).await;
    let online = import(&server, &[source.path()]).await;
    assert_eq!((online.code, numbers(&online, copied)), (0, [0; 4]), "{online:?}");
    assert_served(&server.url("/v2/app"), "v1", &docker).await;
    let scrubbed = roadstead(&server.data_dir(), &["scrub"]).await;
    assert_eq!(scrubbed.code, 0, "{scrubbed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_is_created_but_not_by_a_dry_run() {
    let (source, [docker, _], _) = source();
    let mut server = start(Settings::new()).await;
    tokio::task::block_in_place(|| server.stop());
    std::fs::remove_dir_all(server.data_dir()).unwrap();
    let dry = import(&server, &[source.path(), "--dry-run"]).await;
    let planned = numbers(&dry, ["manifests", "tags", "blobs", "bytes"]);
    assert!(dry.code == 0 && planned[0] == 6 && !server.data_dir().exists(), "{dry:?}");
    let output = import(&server, &[source.path()]).await;
    assert_eq!((output.code, numbers(&output, ["manifests", "tags", "blobs", "bytes"])), (0, planned), "{output:?}");
    let dry = import(&server, &[source.path(), "--dry-run"]).await;
    assert_eq!(numbers(&dry, ["manifests", "tags", "blobs", "known_manifests"]), [0, 0, 0, 6], "{dry:?}");
    begin(&mut server).await;
    assert_served(&server.url("/v2/app"), "v1", &docker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_the_volume_of_the_old_registry_imports_from_it() {
    let (source, [docker, _], _) = source();
    let server = start(Settings::new()).await;
    let data = server.data_dir();
    let copied = std::process::Command::new("cp").arg("-a").arg(source.at("../../../docker")).arg(&data).status();
    assert!(copied.unwrap().success());
    let output = import(&server, &[data.to_str().unwrap()]).await;
    assert_eq!((output.code, numbers(&output, ["manifests", "tags"])), (0, [6, 4]), "{output:?}");
    std::fs::remove_dir_all(data.join("docker")).unwrap();
    assert_served(&server.url("/v2/app"), "v1", &docker).await;
    let scrubbed = roadstead(&data, &["scrub"]).await;
    assert_eq!(scrubbed.code, 0, "{scrubbed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved_in_the_source_moves_here() {
    let source = RegistryFolder::new();
    let [old, new] = [1, 2].map(|seed| Image::new(seed, &[100]));
    source.image("app", "v1", &old);
    let server = start(Settings::new()).await;
    assert_eq!(import(&server, &[source.path()]).await.code, 0);
    // Times of tags are in whole seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    source.image("app", "v1", &new);
    let output = import(&server, &[source.path()]).await;
    assert_eq!((output.code, numbers(&output, ["tags", "kept_tags"])), (0, [1, 0]), "{output:?}");
    assert_served(&server.url("/v2/app"), "v1", &new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_was_pushed_here_stays() {
    let source = RegistryFolder::new();
    let [old, new] = [1, 2].map(|seed| Image::new(seed, &[100]));
    source.image("app", "v1", &old);
    source.tag("app", "old", old.digest());
    let server = start(Settings::new()).await;
    Client::new().push_image(&server.url(""), "app", "v1", &new).await;
    let output = import(&server, &[source.path()]).await;
    assert_eq!((output.code, numbers(&output, ["tags", "kept_tags"])), (0, [1, 1]), "{output:?}");
    let left = left_out(&output, false);
    assert!(left.len() == 1 && left[0].0 == "app:v1" && left[0].1.contains(old.digest()), "{left:?}");
    assert_served(&server.url("/v2/app"), "v1", &new).await;
    assert_served(&server.url("/v2/app"), "old", &old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_could_not_be_pushed_are_left_with_a_remedy() {
    let source = RegistryFolder::new();
    let image = Image::new(1, &[100]);
    for name in ["library/app", "docker.io/team/app", "team/app", "Upper/case"] {
        source.image(name, "v1", &image);
    }
    let settings = Settings::new().upstream_url("docker.io", "http://127.0.0.1:1").default_upstream("docker.io");
    let server = start(settings).await;
    let output = import(&server, &[source.path()]).await;
    assert_eq!((output.code, numbers(&output, ["repositories", "failed"])), (1, [1, 3]), "{output:?}");
    for (name, remedy) in
        [("library/app", "[local]"), ("docker.io/team/app", "builtin_upstreams"), ("Upper/case", "lower")]
    {
        let left = left_out(&output, true);
        assert!(left.iter().any(|(left, reason)| left == name && reason.contains(remedy)), "{name}: {left:?}");
    }
    assert_served(&server.url("/v2/team/app"), "v1", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_source_is_refused_in_one_line() {
    let server = start(Settings::new()).await;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("text"), "no tar file").unwrap();
    std::fs::write(at("images.tar.gz"), b"\x1f\x8b\x08rest").unwrap();
    std::fs::write(at("images.tar.zst"), b"\x28\xb5\x2f\xfdrest").unwrap();
    std::fs::create_dir(at("empty")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RWXU).unwrap();
    for (path, said) in [
        ("missing", "cannot read"),
        ("pipe", "not a file or a folder"),
        ("text", "docker/registry/v2"),
        ("images.tar.gz", "`gunzip`"),
        ("images.tar.zst", "`zstd -d`"),
        ("empty", "index.json"),
    ] {
        let output = import(&server, &[&at(path)]).await;
        let is_line = output.err.trim_end().lines().count() == 1;
        assert!(output.code == 1 && is_line && output.err.contains(said), "{path}: {output:?}");
    }
    let source = RegistryFolder::new();
    for args in [["--repository", "a"], ["--proxied", "no.example"]] {
        let output = import(&server, &[source.path(), args[0], args[1]]).await;
        assert!(output.code == 1 && output.err.contains(args[0]), "{output:?}");
    }
    let output = import(&server, &[source.path()]).await;
    assert_eq!(
        (output.code, summary(&output)["source"].as_str()),
        (0, Some("registry")),
        "an empty one is none of them"
    );
}
