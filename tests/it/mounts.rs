//! Mounts without `from`, and the independence of a mount from its source. `rights` tests which mounts are allowed.

use bytes::Bytes;
use serde_json::json;

use crate::scene::blob;
use crate::support::{Answer, Content, Image, TestServer, Upstream};

async fn mount(server: &TestServer, to: &str, content: &Content, from: &str) -> Answer {
    let from = if from.is_empty() { String::new() } else { format!("&from={from}") };
    let path = format!("/v2/{to}/blobs/uploads/?mount={}{from}", content.digest);
    server.send("POST", &path, &[], Bytes::new()).await
}

fn assert_mounted(answer: &Answer, repo: &str, content: &Content) {
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(answer.header("location"), format!("/v2/{repo}/blobs/{}", content.digest));
    assert_eq!(answer.header("docker-content-digest"), content.digest);
}

/// Checks that the response opened a session instead of a mount, and that the session accepts the content.
async fn assert_opened_instead(server: &TestServer, answer: &Answer, repo: &str, content: &Content) {
    assert_eq!((answer.status, answer.header("range")), (202, "0-0"), "{}", answer.text());
    assert_eq!(server.head(&format!("/v2/{repo}/blobs/{}", content.digest)).await.status, 404);
    let path = format!("{}?digest={}", answer.header("location"), content.digest);
    assert_eq!(server.send("PUT", &path, &[], content.bytes.clone()).await.status, 201);
}

#[tokio::test]
async fn a_mount_creates_its_target_repository() {
    let server = TestServer::builder().start().await;
    let image = Image::new(1, &[1000]);
    server.client().push_image(&server.url(""), "team/from", "v1", &image).await;
    for content in image.blobs() {
        assert_mounted(&mount(&server, "team/new", content, "team/from").await, "team/new", content);
        assert_eq!(server.get(&format!("/v2/team/new/blobs/{}", content.digest)).await.body, content.bytes);
    }
    assert_eq!(server.get("/v2/team/new/tags/list").await.json()["tags"], json!([]));
    server.client().push_manifest(&server.url(""), "team/new", "v1", &image.manifest).await;
    assert_eq!(server.get("/v2/team/new/manifests/v1").await.body, image.manifest.bytes);
}

#[tokio::test]
async fn a_mount_without_from_finds_pushed_content_only() {
    let upstream = Upstream::start().await;
    let [pushed, cached, unknown] = [1, 2, 3].map(|seed| blob(seed, 1000));
    upstream.add_blob("org/app", &cached);
    let mut server = TestServer::mirror_of(&upstream).await;
    server.client().push_blob(&server.url(""), "team/from", &pushed).await;
    assert_eq!(server.get(&format!("/v2/org/app/blobs/{}", cached.digest)).await.status, 200);
    upstream.forget();
    assert_mounted(&mount(&server, "team/to", &pushed, "").await, "team/to", &pushed);
    for content in [&cached, &unknown] {
        let answer = mount(&server, "team/to", content, "").await;
        assert_opened_instead(&server, &answer, "team/to", content).await;
        assert_mounted(&mount(&server, "team/again", content, "").await, "team/again", content);
    }
    assert_eq!(upstream.total(), 0, "a mount sends no upstream request");
    server.restart().await;
    for content in [&pushed, &cached, &unknown] {
        assert_mounted(&mount(&server, "team/later", content, "").await, "team/later", content);
    }
}

#[tokio::test]
async fn deleted_content_is_not_mounted_from_its_source() {
    let server = TestServer::builder().start().await;
    let content = blob(1, 1000);
    server.client().push_blob(&server.url(""), "team/from", &content).await;
    let delete = async |repo: &str| server.delete(&format!("/v2/{repo}/blobs/{}", content.digest)).await.status;
    assert_mounted(&mount(&server, "team/kept", &content, "team/from").await, "team/kept", &content);
    assert_eq!(delete("team/from").await, 202);
    // Not from the repository that deleted it, but from one that still has it.
    let answer = mount(&server, "team/a", &content, "team/from").await;
    assert_eq!(answer.status, 202);
    assert_eq!(server.delete(answer.header("location")).await.status, 204);
    assert_mounted(&mount(&server, "team/a", &content, "team/kept").await, "team/a", &content);
    assert_mounted(&mount(&server, "team/b", &content, "").await, "team/b", &content);
    for repo in ["team/kept", "team/a", "team/b"] {
        assert_eq!(delete(repo).await, 202, "{repo}");
    }
    let answer = mount(&server, "team/c", &content, "").await;
    assert_opened_instead(&server, &answer, "team/c", &content).await;
}

#[tokio::test]
async fn a_repeated_mount_changes_nothing() {
    let server = TestServer::builder().start().await;
    let content = blob(1, 1000);
    server.client().push_blob(&server.url(""), "team/app", &content).await;
    for from in ["team/app", ""] {
        assert_mounted(&mount(&server, "team/app", &content, from).await, "team/app", &content);
    }
    let path = format!("/v2/team/app/blobs/{}", content.digest);
    assert_eq!(server.get(&path).await.body, content.bytes);
    assert_eq!((server.delete(&path).await.status, server.get(&path).await.status), (202, 404));
}

#[tokio::test]
async fn a_mount_with_a_body_is_a_push() {
    let server = TestServer::builder().start().await;
    let content = blob(1, 1000);
    let digest = &content.digest;
    let path = format!("/v2/team/app/blobs/uploads/?mount={digest}&from=team/none&digest={digest}");
    assert_mounted(&server.send("POST", &path, &[], content.bytes.clone()).await, "team/app", &content);
    assert_eq!(server.get(&format!("/v2/team/app/blobs/{digest}")).await.body, content.bytes);
}
