//! A delete takes effect with its response, whatever was in memory, and removes nothing else.

use serde_json::{Value, json};

use crate::operator::roadstead;
use crate::support::artifact::{about, empty};
use crate::support::{Content, Image, TestServer};

const REPO: &str = "team/app";

struct Scene {
    server: TestServer,
    image: Image,
    signature: Content,
}

impl Scene {
    /// An image under three tags in one repository and one tag in another, and a signature of it.
    async fn start() -> Self {
        let scene = Self::empty().await;
        scene.push_all().await;
        let client = scene.server.client();
        client.push_image(&scene.server.url(""), "team/other", "v1", &scene.image).await;
        scene
    }

    async fn empty() -> Self {
        let image = Image::new(1, &[1000]);
        let signature = about(&image.manifest, "a/signature", &json!({}));
        Self { server: TestServer::builder().start().await, image, signature }
    }

    async fn push_all(&self) {
        let (client, base) = (self.server.client(), self.server.url(""));
        client.push_image(&base, REPO, "v1", &self.image).await;
        for tag in ["v2", "v3"] {
            client.push_manifest(&base, REPO, tag, &self.image.manifest).await;
        }
        client.push_blob(&base, REPO, &empty()).await;
        client.push_manifest(&base, REPO, &self.signature.digest, &self.signature).await;
    }

    async fn delete(&self, what: &str) -> u16 {
        self.server.delete(&format!("/v2/{REPO}/{what}")).await.status
    }

    /// Reads the state in every way, twice each: once possibly from disk, once from memory.
    async fn look(&self) -> Value {
        let mut seen = Vec::new();
        for _ in 0..2 {
            let (image, layer) = (self.image.digest(), &self.image.layers[0].digest);
            let mut found = Vec::new();
            for what in [
                "manifests/v1",
                "manifests/v2",
                "manifests/v3",
                &format!("manifests/{image}"),
                &format!("blobs/{layer}"),
            ] {
                let path = format!("/v2/{REPO}/{what}");
                let (get, head) = (self.server.get(&path).await.status, self.server.head(&path).await.status);
                assert_eq!(get, head, "{what}");
                let unchanged = self.server.get_with(&path, &[("If-None-Match", "*")]).await.status;
                assert_eq!(unchanged, if get == 200 { 304 } else { 404 }, "{what}");
                found.push(get == 200);
            }
            let tags = self.server.get(&format!("/v2/{REPO}/tags/list")).await.json()["tags"].clone();
            let referrers = self.server.get(&format!("/v2/{REPO}/referrers/{image}")).await.json();
            let referrers = referrers["manifests"].as_array().map(Vec::len);
            seen.push(json!({"found": found, "tags": tags, "referrers": referrers}));
        }
        assert_eq!(seen[0], seen[1], "disk and memory agree");
        seen.swap_remove(0)
    }
}

fn seen(found: [bool; 5], tags: &[&str], referrers: usize) -> Value {
    json!({"found": found, "tags": tags, "referrers": referrers})
}

#[tokio::test]
async fn each_delete_is_visible_at_once_and_removes_nothing_else() {
    let scene = Scene::start().await;
    let (image, layer) = (scene.image.digest().to_owned(), scene.image.layers[0].digest.clone());
    assert_eq!(scene.look().await, seen([true; 5], &["v1", "v2", "v3"], 1));
    assert_eq!(scene.delete("manifests/v2").await, 202);
    assert_eq!(scene.look().await, seen([true, false, true, true, true], &["v1", "v3"], 1));
    assert_eq!(scene.delete(&format!("manifests/{}", scene.signature.digest)).await, 202);
    assert_eq!(scene.look().await, seen([true, false, true, true, true], &["v1", "v3"], 0));
    assert_eq!(scene.delete(&format!("blobs/{layer}")).await, 202);
    assert_eq!(scene.look().await, seen([true, false, true, true, false], &["v1", "v3"], 0));
    assert_eq!(scene.delete(&format!("manifests/{image}")).await, 202);
    assert_eq!(scene.look().await, seen([false; 5], &[], 0));
    for what in [format!("manifests/{image}"), "manifests/v1".to_owned(), format!("blobs/{layer}")] {
        assert_eq!(scene.delete(&what).await, 404, "{what}");
        let other = format!("/v2/team/other/{what}");
        assert_eq!(scene.server.get(&other).await.status, 200, "{other}");
    }
    // The name stays local and accepts the same pushes again.
    assert_eq!(scene.server.get("/v2/_catalog").await.json()["repositories"], json!([REPO, "team/other"]));
    scene.push_all().await;
    assert_eq!(scene.look().await, seen([true; 5], &["v1", "v2", "v3"], 1));
}

#[tokio::test]
async fn a_deleted_manifest_is_not_served_as_a_blob() {
    let scene = Scene::start().await;
    let blob = format!("blobs/{}", scene.image.digest());
    let path = format!("/v2/{REPO}/{blob}");
    // containerd also requests manifests as blobs.
    assert_eq!(scene.server.get(&path).await.body, scene.image.manifest.bytes);
    assert_eq!(scene.delete(&format!("manifests/{}", scene.image.digest())).await, 202);
    assert_eq!((scene.server.get(&path).await.status, scene.delete(&blob).await), (404, 404));
}

#[tokio::test]
async fn a_manifest_cannot_refer_to_deleted_content() {
    let scene = Scene::start().await;
    let layer = &scene.image.layers[0];
    assert_eq!(scene.delete(&format!("blobs/{}", layer.digest)).await, 202);
    let path = format!("/v2/{REPO}/manifests/v4");
    let headers = [("Content-Type", scene.image.manifest.media_type.as_str())];
    let refused = scene.server.send("PUT", &path, &headers, scene.image.manifest.bytes.clone()).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (400, "MANIFEST_BLOB_UNKNOWN"));
    assert_eq!(refused.json()["errors"][0]["detail"]["missing"], json!([layer.digest]));
    scene.server.client().push_blob(&scene.server.url(""), REPO, layer).await;
    let pushed = scene.server.send("PUT", &path, &headers, scene.image.manifest.bytes.clone()).await;
    assert_eq!(pushed.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_see_a_delete_atomically() {
    let scene = Scene::start().await;
    let path = format!("/v2/{REPO}/manifests/v1");
    for _ in 0..10 {
        let readers = (0..8).map(|_| scene.server.get(&path));
        let (answers, deleted) = tokio::join!(futures_util::future::join_all(readers), scene.delete("manifests/v1"));
        assert_eq!(deleted, 202);
        for answer in answers {
            assert!(answer.status == 404 || answer.body == scene.image.manifest.bytes, "{}", answer.status);
        }
        assert_eq!(scene.server.get(&path).await.status, 404, "no concurrent reader has cached it again");
        scene.server.client().push_manifest(&scene.server.url(""), REPO, "v1", &scene.image.manifest).await;
        assert_eq!(scene.server.get(&path).await.status, 200);
    }
}

#[tokio::test]
async fn a_download_completes_after_its_blob_is_deleted() {
    let scene = Scene::empty().await;
    let content = crate::scene::blob(7, 4 << 20);
    scene.server.client().push_blob(&scene.server.url(""), REPO, &content).await;
    let path = format!("/v2/{REPO}/blobs/{}", content.digest);
    let mut reader = crate::support::Conn::get(scene.server.addr(), &path).await;
    let first = reader.take(1000).await;
    assert_eq!(scene.delete(&format!("blobs/{}", content.digest)).await, 202);
    assert_eq!(scene.server.get(&path).await.status, 404);
    let (rest, ended) = reader.rest().await;
    assert_eq!(ended, crate::support::Ended::Complete);
    assert!([&first[..], &rest].concat() == content.bytes);
}

/// The catalogue, and the status of the list of tags of each repository.
async fn listed(server: &TestServer, repositories: &[&str]) -> (Value, Vec<u16>) {
    let mut statuses = Vec::new();
    for repo in repositories {
        statuses.push(server.get(&format!("/v2/{repo}/tags/list")).await.status);
    }
    (server.get("/v2/_catalog").await.json()["repositories"].clone(), statuses)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_leaves_with_its_last_content_and_its_neighbours_stay() {
    let mut server = TestServer::builder().config("[delete]\nenabled = true").start().await;
    let names = ["team", "team/gone", "team/gone/below"];
    let images = [1, 2, 3].map(|seed| Image::new(seed, &[100]));
    for (name, image) in names.iter().zip(&images) {
        server.client().push_image(&server.url(""), name, "v1", image).await;
    }
    let gone = &images[1];
    assert_eq!(server.delete("/v2/team/gone/manifests/v1").await.status, 202);
    assert_eq!(server.delete(&format!("/v2/team/gone/manifests/{}", gone.digest())).await.status, 202);
    assert_eq!(listed(&server, &names).await, (json!(names), vec![200, 200, 200]), "its blobs are still there");
    for blob in gone.blobs() {
        assert_eq!(server.delete(&format!("/v2/team/gone/blobs/{}", blob.digest)).await.status, 202);
    }
    let left = (json!(["team", "team/gone/below"]), vec![200, 404, 200]);
    assert_eq!(listed(&server, &names).await, left);
    server.restart().await;
    assert_eq!(listed(&server, &names).await, left);
    for (name, image) in names.iter().zip(&images) {
        if *name != "team/gone" {
            assert_eq!(server.get(&format!("/v2/{name}/manifests/v1")).await.body, image.manifest.bytes);
        }
    }
    server.client().push_image(&server.url(""), "team/gone", "v2", gone).await;
    assert_eq!(listed(&server, &names).await, (json!(names), vec![200, 200, 200]));
    assert_eq!(server.get("/v2/team/gone/manifests/v2").await.body, gone.manifest.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_collector_removes_repositories_that_are_empty() {
    let now = "[gc]\ninterval = \"0s\"\nafter_start = \"0s\"\ngrace = \"0s\"\nunreferenced_after = \"0s\"";
    let server = TestServer::builder().config(&format!("[delete]\nenabled = true\n{now}")).start().await;
    let image = Image::new(1, &[100]);
    for name in ["team/a", "team/b"] {
        server.client().push_image(&server.url(""), name, "v1", &image).await;
    }
    // As an earlier version left it after an upload that was cancelled.
    std::fs::create_dir_all(server.data_dir().join("repositories/local/team/empty/_blobs")).unwrap();
    assert_eq!(server.delete(&format!("/v2/team/a/manifests/{}", image.digest())).await.status, 202);
    assert!(roadstead(server.data_dir(), &["gc"]).await.code == 0);
    assert_eq!(listed(&server, &["team/a", "team/b"]).await, (json!(["team/b"]), vec![404, 200]));
    assert!(!server.data_dir().join("repositories/local/team/empty").exists());
    assert!(!server.data_dir().join("repositories/local/team/a").exists());
}
