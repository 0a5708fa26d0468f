//! The answers of an upstream are remembered for an outage, also after a restart: absences, referrers and lists of
//! tags.

use serde_json::{Value, json};

use crate::freshness::{REPO, TAG, upstream_with};
use crate::support::image::OCI_INDEX;
use crate::support::{Content, Image, Reply, TestServer};

/// A referrer, and an upstream's list of it.
fn one_referrer() -> (Value, Reply) {
    let signature = json!({"mediaType": "application/x", "digest": Image::new(9, &[]).digest(), "size": 7});
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [signature]});
    (signature, Reply::status(200).body(index.to_string()))
}

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
    let (signature, list_of_it) = one_referrer();
    upstream.always("GET", &known, list_of_it.clone());
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

/// A firewall or proxy in front of a registry refuses requests for its own reasons.
#[tokio::test]
async fn a_refusal_by_something_in_front_of_the_registry_is_no_absence() {
    let image = Image::new(1, &[10]);
    let referrers = format!("/v2/{REPO}/referrers/{}", image.digest());
    let list = format!("/v2/docker.io/{REPO}/tags/list");
    let (signature, list_of_it) = one_referrer();
    let basic = [("WWW-Authenticate", "Basic realm=\"proxy\"")];
    for (what, reply) in [
        ("a page", Reply::status(403).header("Content-Type", "text/html").body("<html>you have been blocked")),
        ("nothing", Reply::status(403)),
        ("a proxy that wants a password", Reply::status(401).header(basic[0].0, basic[0].1)),
        ("an answer of no registry", Reply::status(403).body("{\"message\":\"Forbidden\"}")),
    ] {
        let upstream = upstream_with(&image).await;
        upstream.always("GET", &referrers, list_of_it.clone());
        let mut server = server_of(&upstream, "tag_ttl = \"0s\"").await;
        server.get(TAG).await;
        for path in [&referrers, &list] {
            assert_eq!(server.get(path).await.status, 200, "{what}");
        }
        upstream.end_scripts();
        upstream.always("*", "/v2/*", reply);
        for when in ["at once", "in the outage after it", "after a restart"] {
            for path in [TAG, &referrers, &list] {
                let answer = server.get(path).await;
                assert_eq!(answer.status, 200, "{what}, {when}: {path}: {}", answer.text());
                assert!(answer.header("warning").starts_with("299"), "{what}, {when}: {path}");
            }
            assert_eq!(server.get(&referrers).await.json()["manifests"], json!([signature]), "{what}, {when}");
            let unknown = server.get(&format!("/v2/{REPO}/manifests/other")).await;
            assert!((502..=504).contains(&unknown.status), "{what}, {when}: {}", unknown.text());
            if when == "at once" {
                upstream.go_down().await;
            } else {
                server.restart().await;
            }
        }
    }
}

#[tokio::test]
async fn the_denial_of_a_registry_is_404_and_not_remembered() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = server_of(&upstream, "").await;
    server.get(TAG).await;
    let path = format!("/v2/{REPO}/manifests/private");
    upstream.always("*", &path, Reply::error(403, "DENIED"));
    assert_eq!(server.get(&path).await.status, 404);
    upstream.go_down().await;
    assert_eq!(server.get(&path).await.status, 503, "it was never said to be absent");
}

#[tokio::test]
async fn known_referrers_survive_every_refusal() {
    let image = Image::new(1, &[10]);
    let referrers = format!("/v2/{REPO}/referrers/{}", image.digest());
    let fallback = format!("/v2/{REPO}/manifests/{}", image.digest().replace(':', "-"));
    let (signature, list_of_it) = one_referrer();
    let broken = Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", "Bearer service=\"x\"");
    let refusals = [400, 401, 403, 405, 408, 421, 451, 500].map(|status| Reply::error(status, "DENIED"));
    for reply in refusals.into_iter().chain([broken]) {
        let what = format!("{reply:?}");
        let upstream = upstream_with(&image).await;
        let server = server_of(&upstream, "tag_ttl = \"0s\"").await;
        server.get(TAG).await;
        assert_eq!(server.get(&fallback).await.status, 404);
        upstream.always("GET", &referrers, list_of_it.clone());
        assert_eq!(server.get(&referrers).await.json()["manifests"], json!([signature]));
        upstream.end_scripts();
        upstream.always("*", "/v2/*", reply);
        let answer = server.get(&referrers).await;
        assert_eq!(answer.json()["manifests"], json!([signature]), "{what}");
        assert!(answer.header("warning").starts_with("299"), "{what}");
        upstream.go_down().await;
        assert_eq!(server.get(&referrers).await.json()["manifests"], json!([signature]), "{what}, and then an outage");
    }
}

#[tokio::test]
async fn what_was_said_before_the_image_was_cached_is_kept() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let mut server = server_of(&upstream, "").await;
    let signature = format!("/v2/{REPO}/manifests/{}.sig", image.digest().replace(':', "-"));
    let list = format!("/v2/docker.io/{REPO}/tags/list");
    assert_eq!(server.get(&signature).await.status, 404);
    assert_eq!(server.get(&list).await.json()["tags"], json!(["1"]));
    assert_eq!(server.get(&format!("/v2/{REPO}/manifests/{}", image.digest())).await.status, 200);
    upstream.go_down().await;
    for _ in 0..2 {
        assert_eq!(server.get(&signature).await.status, 404);
        assert_eq!(server.get(&list).await.json()["tags"], json!(["1"]));
        server.restart().await;
    }
}

#[tokio::test]
async fn with_denied_credentials_everything_beside_a_stale_image_is_served_too() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let credentials = "[upstream.\"docker.io\"]\nusername = \"u\"\npassword = \"p\"";
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server =
        builder.config(&format!("[cache]\nnegative_ttl = \"0s\"\ntag_ttl = \"0s\"\n{credentials}")).start().await;
    let paths = [
        (TAG.to_owned(), 200),
        (format!("/v2/docker.io/{REPO}/tags/list"), 200),
        (format!("/v2/{REPO}/referrers/{}", image.digest()), 200),
        (format!("/v2/{REPO}/manifests/{}.sig", image.digest().replace(':', "-")), 404),
    ];
    for (path, status) in &paths {
        assert_eq!(server.get(path).await.status, *status, "{path}");
    }
    upstream.always("*", "/v2/*", Reply::error(403, "DENIED"));
    for (path, status) in &paths {
        let answer = server.get(path).await;
        assert_eq!(answer.status, *status, "{path}: {}", answer.text());
    }
}

#[tokio::test]
async fn an_incomplete_list_is_completed_with_the_cached_tags() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    for tag in ["2", "3", "4", "5"] {
        upstream.tag(REPO, tag, image.digest());
    }
    let server = server_of(&upstream, "").await;
    let list = format!("/v2/docker.io/{REPO}/tags/list");
    assert_eq!(server.get(&format!("/v2/{REPO}/manifests/5")).await.status, 200);
    assert_eq!(server.get(&format!("{list}?n=2")).await.json()["tags"], json!(["1", "2"]));
    for reply in
        [Reply::status(200).body("{\"errors\":[]}"), Reply::status(200).body("{}"), Reply::error(500, "UNKNOWN")]
    {
        upstream.always("GET", &format!("/v2/{REPO}/tags/list"), reply);
        let answer = server.get(&list).await;
        assert_eq!(answer.json()["tags"], json!(["1", "2", "5"]));
        assert!(answer.header("warning").starts_with("299"));
        upstream.end_scripts();
    }
}

#[tokio::test]
async fn storage_that_lacks_what_the_registry_redirects_to_is_no_absence() {
    let image = Image::new(1, &[10]);
    let (upstream, storage) = (upstream_with(&image).await, crate::support::Upstream::start().await);
    storage.behave(|_| Some(Reply::status(404).body("<Error><Code>NoSuchKey</Code></Error>")));
    let server = server_of(&upstream, "tag_ttl = \"0s\"").await;
    server.get(TAG).await;
    let blob = format!("/v2/{REPO}/blobs/{}", image.layers[0].digest);
    upstream.always("*", "/v2/*", Reply::redirect(&storage.url("/signed")));
    let answer = server.get(&blob).await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    let stale = server.get(TAG).await;
    assert_eq!((stale.status, stale.header("warning").is_empty()), (200, false));
    upstream.end_scripts();
    crate::scene::until("the blob is served", async || server.get(&blob).await.status == 200).await;
}
