//! OCI layouts and archives of docker save.

use serde_json::{Value, json};

use super::tree::{docker_archive, layout, tar, write};
use super::{assert_served, import, left_out, numbers, start, status, summary};
use crate::support::artifact::{about, empty};
use crate::support::image::{DOCKER_MANIFEST, digest_of};
use crate::support::settings::Settings;
use crate::support::{Client, Content, Image, Upstream, random_bytes};

const NAME: &str = "io.containerd.image.name";
const REF: &str = "org.opencontainers.image.ref.name";

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_is_imported_by_its_names_with_its_signatures() {
    let folder = tempfile::tempdir().unwrap();
    let [named, tagged, official] = [1, 2, 3].map(|seed| Image::new(seed, &[500]));
    let signature = about(&named.manifest, "application/vnd.example.signature", &json!({}));
    let lonely = about(&Image::new(9, &[1]).manifest, "application/vnd.example.signature", &json!({}));
    let empty = empty();
    let mut content = vec![&signature, &lonely, &empty];
    for image in [&named, &tagged, &official] {
        content.extend(image.blobs().chain([&image.manifest]));
    }
    let listed = [
        (&named.manifest, json!({NAME: "docker.io/rancher/pause:3.6", REF: "3.6"})),
        (&official.manifest, json!({REF: "docker.io/library/busybox:1"})),
        (&tagged.manifest, json!({REF: "v1"})),
        (&signature, Value::Null),
        (&lonely, Value::Null),
    ];
    layout(&folder.path().join("layout"), &content, &listed);
    let as_folder = folder.path().join("layout");
    let as_file = tar(&as_folder, &folder.path().join("layout.tar"));
    for source in [&as_folder, &as_file] {
        let server = start(Settings::new()).await;
        let output = import(&server, &[source.to_str().unwrap()]).await;
        assert_eq!((output.code, summary(&output)["source"].as_str()), (1, Some("OCI layout")), "{output:?}");
        assert_served(&server.url("/v2/rancher/pause"), "3.6", &named).await;
        for name in ["busybox", "library/busybox"] {
            assert_served(&server.url(&format!("/v2/{name}")), "1", &official).await;
        }
        let referrers = server.url(&format!("/v2/rancher/pause/referrers/{}", named.digest()));
        assert_eq!(Client::new().get(&referrers).await.json()["manifests"][0]["digest"], signature.digest);
        let left = left_out(&output, true);
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(left.iter().all(|(_, reason)| reason.contains("--repository")), "{left:?}");
        // With a repository, nothing is left.
        let output = import(&server, &[source.to_str().unwrap(), "--repository", "team/all"]).await;
        assert_eq!((output.code, numbers(&output, ["tags", "failed"])), (0, [3, 0]), "{output:?}");
        assert_served(&server.url("/v2/team/all"), "v1", &tagged).await;
        assert_eq!(status(&server, &format!("/v2/team/all/manifests/{}", lonely.digest)).await, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_an_upstream_are_cached_on_demand() {
    let (folder, upstream) = (tempfile::tempdir().unwrap(), Upstream::start().await);
    let [docker, github] = [1, 2].map(|seed| Image::new(seed, &[500]));
    let content: Vec<_> = [&docker, &github].into_iter().flat_map(|it| it.blobs().chain([&it.manifest])).collect();
    let listed = [
        (&docker.manifest, json!({NAME: "docker.io/rancher/pause:3.6"})),
        (&github.manifest, json!({NAME: "ghcr.io/org/app:v1"})),
    ];
    layout(folder.path(), &content, &listed);
    upstream.go_down().await;
    let settings = Settings::new().upstream("docker.io", &upstream).upstream("ghcr.io", &upstream);
    let server = start(settings.default_upstream("docker.io")).await;
    let path = folder.path().to_str().unwrap();

    let output = import(&server, &[path]).await;
    assert_eq!((output.code, numbers(&output, ["repositories", "hidden_images"])), (1, [1, 1]), "{output:?}");
    let left = left_out(&output, true);
    assert!(left.len() == 1 && left[0].1.contains("--proxied ghcr.io"), "{left:?}");
    assert_served(&server.url("/v2/rancher/pause"), "3.6", &docker).await;
    assert_ne!(status(&server, "/v2/rancher/pause/manifests/3.6?ns=docker.io").await, 200);

    for (upstream, url) in [("ghcr.io", "/v2/ghcr.io/org/app"), ("docker.io", "/v2/docker.io/rancher/pause")] {
        let output = import(&server, &[path, "--proxied", upstream]).await;
        assert_eq!((output.code, numbers(&output, ["failed", "hidden_images"])), (1, [1, 0]), "{output:?}");
        let (tag, image) = if upstream == "ghcr.io" { ("v1", &github) } else { ("3.6", &docker) };
        assert_served(&server.url(url), tag, image).await;
    }
    assert_eq!(status(&server, "/v2/rancher/pause/manifests/3.6?ns=docker.io").await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_docker_archive_gets_the_same_manifest_at_every_import() {
    let folder = tempfile::tempdir().unwrap();
    let layers = [random_bytes(1, 5000), random_bytes(2, 300), random_bytes(1, 5000)];
    let layers: Vec<&[u8]> = layers.iter().map(|layer| &layer[..]).collect();
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest_of(layer)).collect();
    let config = json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string();
    let archive = docker_archive(folder.path(), &["team/app:v1", "team/app:latest"], config.as_bytes(), &layers);
    let mut digests = Vec::new();
    for source in [archive, folder.path().join("saved.tar")] {
        let server = start(Settings::new()).await;
        let output = import(&server, &[source.to_str().unwrap()]).await;
        assert_eq!((output.code, numbers(&output, ["tags", "blobs"])), (0, [2, 3]), "{output:?}");
        let got = Client::new().get(&server.url("/v2/team/app/manifests/latest")).await;
        assert_eq!(got.header("content-type"), DOCKER_MANIFEST);
        let manifest = got.json();
        assert_eq!(manifest["config"]["digest"], digest_of(config.as_bytes()));
        for (layer, bytes) in manifest["layers"].as_array().unwrap().iter().zip(&layers) {
            let url = server.url(&format!("/v2/team/app/blobs/{}", layer["digest"].as_str().unwrap()));
            assert!(Client::new().get(&url).await.body == *bytes);
            assert_eq!(layer["mediaType"], "application/vnd.docker.image.rootfs.diff.tar");
        }
        digests.push(got.header("docker-content-digest").to_owned());
    }
    assert_eq!(digests[0], digests[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_docker_archive_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let layer = random_bytes(1, 5000);
    let config = |diff_ids: &[String]| json!({"rootfs": {"diff_ids": diff_ids}}).to_string();
    let server = start(Settings::new()).await;
    let wrong = config(&[digest_of(b"other")]);
    let none = config(&[]);
    for (name, config, said) in
        [("wrong", wrong.as_str(), "corrupt"), ("none", &none, "names 0 layers"), ("text", "x", "c0ffee")]
    {
        let at = folder.path().join(name);
        let archive = docker_archive(&at, &["team/app:v1"], config.as_bytes(), &[&layer]);
        let output = import(&server, &[archive.to_str().unwrap()]).await;
        let left = left_out(&output, true);
        assert!(output.code == 1 && left.iter().any(|(_, reason)| reason.contains(said)), "{name}: {output:?}");
    }
    // Paths of the list that leave the archive name nothing.
    let list = json!([{"Config": "../../../etc/passwd", "RepoTags": ["a:b"], "Layers": ["/etc/passwd"]}]);
    write(&folder.path().join("out/manifest.json"), list.to_string().as_bytes());
    let output = import(&server, &[folder.path().join("out").to_str().unwrap()]).await;
    assert!(output.code == 1 && left_out(&output, true)[0].1.contains("not in the source"), "{output:?}");
    // What was copied for images that are left waits for the collector, so the repository exists and is empty.
    assert_eq!(
        Client::new().get(&server.url("/v2/team/app/tags/list")).await.text().trim(),
        r#"{"name":"team/app","tags":[]}"#
    );
    let cut = std::fs::read(folder.path().join("wrong/saved.tar")).unwrap();
    write(&folder.path().join("cut.tar"), &cut[..cut.len() / 2 + 100]);
    let output = import(&server, &[folder.path().join("cut.tar").to_str().unwrap()]).await;
    assert!(output.code == 1, "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unusual_lists_are_understood_or_named() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(Settings::new()).await;
    let scratch = folder.path().join("scratch");
    write(&scratch.join("config.json"), br#"{"rootfs":{"type":"layers","diff_ids":null}}"#);
    write(
        &scratch.join("manifest.json"),
        br#"[{"Config":"config.json","RepoTags":["team/scratch:v1"],"Layers":null}]"#,
    );
    let output = import(&server, &[scratch.to_str().unwrap()]).await;
    assert_eq!((output.code, status(&server, "/v2/team/scratch/manifests/v1").await), (0, 200), "{output:?}");

    let long = "a".repeat(3 << 20);
    write(&folder.path().join("long/index.json"), format!(r#"{{"manifests":[{{"digest":"{long}"}}]}}"#).as_bytes());
    write(&folder.path().join("empty/index.json"), br#"{"schemaVersion":2,"manifests":null}"#);
    write(&folder.path().join("text/index.json"), b"[1");
    for (name, code, failed) in [("long", 1, 1), ("empty", 0, 0), ("text", 1, 1)] {
        let output = import(&server, &[folder.path().join(name).to_str().unwrap()]).await;
        assert_eq!((output.code, numbers(&output, ["failed"])), (code, [failed]), "{name}: {:.900}", output.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_layers_of_an_archive_keep_their_bytes() {
    let folder = tempfile::tempdir().unwrap();
    // As crane and kaniko write them. The content after the first bytes does not matter.
    let layer = [&b"\x1f\x8b\x08"[..], &random_bytes(1, 2000)].concat();
    let config = json!({"rootfs": {"diff_ids": [digest_of(b"the uncompressed layer")]}}).to_string();
    let archive = docker_archive(folder.path(), &["team/app:v1"], config.as_bytes(), &[&layer]);
    let server = start(Settings::new()).await;
    let output = import(&server, &[archive.to_str().unwrap()]).await;
    assert_eq!(output.code, 0, "{output:?}");
    let manifest = Client::new().get(&server.url("/v2/team/app/manifests/v1")).await.json();
    let layer = Content::new("application/vnd.docker.image.rootfs.diff.tar.gzip", layer);
    assert_eq!(manifest["layers"][0], layer.descriptor());
}

#[tokio::test]
async fn a_layer_with_two_files_is_never_published_with_the_wrong_length() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("saved");
    let (good, bad) = (random_bytes(1, 50), random_bytes(2, 70));
    let image = |name: &str, layer: &str| json!({"Config": format!("{name}.json"), "RepoTags": [format!("team/{name}:1")], "Layers": [layer]});
    for name in ["one", "two"] {
        let config = json!({"author": name, "rootfs": {"diff_ids": [digest_of(&good)]}});
        write(&at.join(format!("{name}.json")), config.to_string().as_bytes());
    }
    write(&at.join("good.tar"), &good);
    write(&at.join("bad.tar"), &bad);
    for layers in [["bad.tar", "good.tar"], ["good.tar", "bad.tar"]] {
        let server = start(Settings::new()).await;
        let list = json!([image("one", layers[0]), image("two", layers[1])]);
        write(&at.join("manifest.json"), list.to_string().as_bytes());
        let output = import(&server, &[at.to_str().unwrap()]).await;
        assert_eq!(output.code, 1, "{output:?}");
        for (name, layer) in ["one", "two"].into_iter().zip(layers) {
            let manifest = Client::new().get(&server.url(&format!("/v2/team/{name}/manifests/1"))).await;
            assert!(manifest.status == 404 || layer == "good.tar", "{name}: {}", manifest.text());
        }
    }
}
