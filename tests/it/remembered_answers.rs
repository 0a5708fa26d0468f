//! The answers of an upstream are remembered for an outage, also after a restart: absences, referrers and lists of
//! tags.

use serde_json::json;

use crate::freshness::{REPO, TAG, upstream_with};
use crate::support::image::OCI_INDEX;
use crate::support::{Content, Image, Reply, TestServer};

async fn server_of(upstream: &crate::support::Upstream, cache: &str) -> TestServer {
    let builder = TestServer::builder().upstream("docker.io", upstream).default_upstream("docker.io");
    builder.config(&format!("[cache]\nnegative_ttl = \"0s\"\n{cache}")).start().await
}

#[tokio::test]
async fn a_confirmed_absence_stays_404_in_an_outage_and_after_a_restart() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let mut server = server_of(&upstream, "").await;
    let hex = image.digest().strip_prefix("sha256:").unwrap();
    let unknown = Image::new(77, &[5]);
    let absent = [
        format!("manifests/sha256-{hex}.sig"),
        format!("manifests/sha256-{hex}"),
        format!("manifests/{}", unknown.digest()),
        format!("blobs/{}", unknown.layers[0].digest),
    ]
    .map(|path| format!("/v2/{REPO}/{path}"));
    server.get(TAG).await;
    for path in &absent {
        assert_eq!(server.get(path).await.status, 404, "{path}");
    }
    upstream.go_down().await;
    for what in ["in the outage", "after a restart"] {
        for path in &absent {
            let (get, head) = (server.get(path).await, server.head(path).await);
            assert_eq!((get.status, head.status), (404, 404), "{what}: {path}: {}", get.text());
        }
        let never_asked = server.get(&format!("/v2/{REPO}/manifests/never-asked")).await;
        assert_eq!(never_asked.status, 503, "{what}: an outage is no absence");
        server.restart().await;
    }
}

#[tokio::test]
async fn an_absence_is_forgotten_when_the_content_appears_or_after_stale_if_error() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = server_of(&upstream, "").await;
    server.get(TAG).await;
    let path = format!("/v2/{REPO}/manifests/later");
    assert_eq!(server.get(&path).await.status, 404);
    upstream.tag(REPO, "later", image.digest());
    assert_eq!(server.get(&path).await.status, 200);
    assert_eq!(server.head(&path).await.status, 200);
    let note = std::fs::read_dir(server.data_dir().join("notes")).unwrap().next().unwrap().unwrap().path();
    assert!(!std::fs::read_to_string(note).unwrap().contains("later"));

    let forgetful = server_of(&upstream, "stale_if_error = \"0s\"").await;
    forgetful.get(TAG).await;
    let path = format!("/v2/{REPO}/manifests/none");
    assert_eq!(forgetful.get(&path).await.status, 404);
    upstream.go_down().await;
    assert_eq!(forgetful.get(&path).await.status, 503);
}

#[tokio::test]
async fn the_last_answer_of_the_upstream_counts_in_an_outage() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = server_of(&upstream, "tag_ttl = \"0s\"").await;
    assert_eq!(server.get(TAG).await.status, 200);
    upstream.remove_tag(REPO, "1");
    assert_eq!(server.get(TAG).await.status, 404);
    upstream.go_down().await;
    assert_eq!(server.get(TAG).await.status, 404, "it was removed after it was cached");
    upstream.come_back().await;
    server.until_available("docker.io").await;
    upstream.tag(REPO, "1", image.digest());
    assert_eq!(server.get(TAG).await.status, 200);
    upstream.go_down().await;
    let stale = server.get(TAG).await;
    assert_eq!((stale.status, &stale.body), (200, &image.manifest.bytes), "and it has come back");
    assert!(stale.header("warning").starts_with("299"));
}

#[tokio::test]
async fn a_repository_without_cached_content_has_no_note() {
    let upstream = upstream_with(&Image::new(1, &[10])).await;
    let server = server_of(&upstream, "").await;
    for n in 0..3 {
        assert_eq!(server.get(&format!("/v2/library/none{n}/manifests/1")).await.status, 404);
    }
    assert_eq!(std::fs::read_dir(server.data_dir().join("notes")).unwrap().count(), 0);
}

#[tokio::test]
async fn referrers_are_200_in_an_outage_with_what_is_known() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let mut server = server_of(&upstream, "tag_ttl = \"0s\"").await;
    let known = format!("/v2/{REPO}/referrers/{}", image.digest());
    let signature = json!({"mediaType": "application/x", "digest": Image::new(9, &[]).digest(), "size": 7});
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [signature]});
    upstream.always("GET", &known, Reply::status(200).body(index.to_string()));
    server.get(TAG).await;
    assert_eq!(server.get(&known).await.json()["manifests"], json!([signature]));
    upstream.go_down().await;
    let never_asked = format!("/v2/{REPO}/referrers/{}", image.config.digest);
    for what in ["in the outage", "after a restart"] {
        for (path, expected) in [(&known, json!([signature])), (&never_asked, json!([]))] {
            let answer = server.get(path).await;
            assert_eq!((answer.status, &answer.json()["manifests"]), (200, &expected), "{what}: {path}");
            assert!(answer.header("warning").starts_with("299"), "{what}: {path}");
            assert_eq!(answer.header("content-type"), OCI_INDEX);
        }
        server.restart().await;
    }
}

#[tokio::test]
async fn a_refused_referrers_api_counts_as_missing() {
    let image = Image::new(1, &[10]);
    let index = Content::json(
        OCI_INDEX,
        &json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": "application/x", "digest": Image::new(9, &[]).digest(), "size": 7}]}),
    );
    for status in [400, 401, 403, 404, 405, 406, 501] {
        let upstream = upstream_with(&image).await;
        let server = server_of(&upstream, "").await;
        let path = format!("/v2/{REPO}/referrers/{}", image.digest());
        upstream.always("GET", &path, Reply::error(status, "UNSUPPORTED"));
        let without_tag = server.get(&path).await;
        assert_eq!((without_tag.status, &without_tag.json()["manifests"]), (200, &json!([])), "{status}");
        assert_eq!(without_tag.header("warning"), "", "{status}");
        let upstream = upstream_with(&image).await;
        upstream.always("GET", &path, Reply::error(status, "UNSUPPORTED"));
        upstream.add_manifest(REPO, &index);
        upstream.tag(REPO, &image.digest().replace(':', "-"), &index.digest);
        let with_tag = server_of(&upstream, "").await.get(&path).await;
        assert_eq!(with_tag.json()["manifests"].as_array().map(Vec::len), Some(1), "{status}");
    }
}
