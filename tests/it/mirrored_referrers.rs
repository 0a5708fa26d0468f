//! Referrers through a mirror: from the upstream's API or its fallback tag, cached briefly, and stale in an outage.

use serde_json::{Value, json};

use crate::support::artifact::{about, by_sha512, fallback_tag};
use crate::support::image::OCI_INDEX;
use crate::support::push::next_page;
use crate::support::{Content, Image, Reply, TestServer, Upstream};

const REPO: &str = "org/app";
const SBOM: &str = "application/vnd.example.sbom";

fn path(subject: &Content) -> String {
    format!("/v2/{REPO}/referrers/{}", subject.digest)
}

fn referrers(subject: &Content, count: u32) -> Vec<Content> {
    let kind = |n| if n == 0 { "application/vnd.example.first" } else { SBOM };
    (0..count).map(|n| about(subject, kind(n), &json!({"n": n.to_string()}))).collect()
}

/// The descriptor in the upstream's list.
fn described(referrer: &Content) -> Value {
    let manifest: Value = serde_json::from_slice(&referrer.bytes).unwrap();
    let mut descriptor = referrer.descriptor();
    for field in ["artifactType", "annotations"] {
        descriptor[field] = manifest[field].clone();
    }
    descriptor
}

fn index_of(referrers: &[Content]) -> Content {
    let manifests: Vec<Value> = referrers.iter().map(described).collect();
    Content::json(OCI_INDEX, &json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}))
}

fn listing(referrers: &[Content]) -> Reply {
    Reply::status(200).header("Content-Type", OCI_INDEX).body(index_of(referrers).bytes)
}

async fn scene(toml: &str) -> (Upstream, TestServer, Content) {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[10]);
    upstream.add_image(REPO, "v1", &image);
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    (upstream, builder.config(toml).start().await, image.manifest)
}

/// The listed descriptors, sorted, and whether the response has a `Warning`.
async fn list(server: &TestServer, path: &str) -> (Vec<Value>, bool) {
    let answer = server.get(path).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, OCI_INDEX), "{}", answer.text());
    let warning = answer.header("warning");
    assert!(warning.is_empty() || warning.starts_with("299 - \""), "{warning}");
    (answer.json()["manifests"].as_array().unwrap().clone(), !warning.is_empty())
}

fn sorted(referrers: &[Content]) -> Vec<Value> {
    let mut described: Vec<Value> = referrers.iter().map(described).collect();
    described.sort_by_key(|referrer| referrer["digest"].to_string());
    described
}

#[tokio::test]
async fn the_upstream_list_is_fetched_once_and_cached() {
    let (upstream, server, subject) = scene("").await;
    let found = referrers(&subject, 3);
    let path = path(&subject);
    upstream.always("GET", &path, listing(&found));
    let (first, second) = tokio::join!(list(&server, &path), list(&server, &path));
    assert_eq!(first, (sorted(&found), false));
    assert_eq!(second, first);
    let filtered = format!("{path}?artifactType={SBOM}");
    let answer = server.get(&filtered).await;
    assert_eq!(answer.header("oci-filters-applied"), "artifactType");
    assert_eq!(answer.json()["manifests"].as_array().unwrap().len(), 2);
    for path in [path.replace("/v2/", "/v2/docker.io/"), format!("{path}?ns=docker.io")] {
        assert_eq!(list(&server, &path).await, first, "{path}");
    }
    assert_eq!(upstream.count("GET", &path), 1);
    assert_eq!(upstream.total(), 1, "nothing else was requested");
}

#[tokio::test]
async fn every_page_of_the_upstream_list_is_read() {
    let (upstream, server, subject) = scene("").await;
    let found = referrers(&subject, 450);
    let pages = found.chunks(200).collect::<Vec<_>>();
    let linked = |page: usize, target: &str| listing(pages[page]).header("Link", &format!("<{target}>; rel=\"next\""));
    let absolute = upstream.url(&format!("{}?last=b", path(&subject)));
    let relative = format!("{}?n=200&last=a", path(&subject));
    upstream.script("GET", &path(&subject), [linked(0, &relative), linked(1, &absolute), listing(pages[2])]);
    let mut listed = Vec::new();
    let mut next = Some(path(&subject));
    while let Some(path) = next {
        listed.extend(list(&server, &path).await.0);
        next = next_page(&server.get(&path).await);
    }
    assert_eq!(listed, sorted(&found));
    let queries: Vec<String> = upstream.requests().into_iter().map(|seen| seen.query).collect();
    assert_eq!(queries, ["", "n=200&last=a", "last=b"]);
}

#[tokio::test]
async fn without_a_referrers_api_the_fallback_tag_is_read() {
    let (upstream, server, subject) = scene("").await;
    for subject in [subject.clone(), by_sha512(&subject)] {
        let found = referrers(&subject, 2);
        let index = index_of(&found);
        upstream.add_manifest(REPO, &index);
        upstream.tag(REPO, &fallback_tag(&subject), &index.digest);
        upstream.forget();
        for _ in 0..3 {
            assert_eq!(list(&server, &path(&subject)).await, (sorted(&found), false));
        }
        let tag = format!("/v2/{REPO}/manifests/{}", fallback_tag(&subject));
        assert_eq!((upstream.count("GET", &path(&subject)), upstream.count("GET", &tag)), (1, 1));
    }
}

#[tokio::test]
async fn without_api_and_fallback_tag_the_list_is_empty() {
    let (upstream, server, subject) = scene("").await;
    for _ in 0..3 {
        assert_eq!(list(&server, &path(&subject)).await, (Vec::new(), false));
    }
    assert_eq!(upstream.total(), 2, "one request each for the API and the tag");
    let bad = server.get(&format!("/v2/{REPO}/referrers/sha256:12")).await;
    assert_eq!((bad.status, bad.error_code().as_str()), (400, "DIGEST_INVALID"));
    assert_eq!(upstream.total(), 2);
}

/// What Docker's own parser reads is passed on, also from the disk.
#[tokio::test]
async fn unusual_entries_are_passed_on_with_all_their_fields() {
    let (upstream, server, subject) = scene("[cache]\ntag_ttl = \"0s\"").await;
    let digest = subject.digest.as_str();
    for entry in [
        json!({"digest": digest, "size": 5}),
        json!({"mediaType": OCI_INDEX, "digest": digest}),
        json!({"mediaType": OCI_INDEX, "digest": digest, "size": 2.0}),
        json!({"mediaType": OCI_INDEX, "digest": digest, "size": -1}),
        json!({"mediaType": OCI_INDEX, "digest": digest, "size": 5, "annotations": {"a": null}}),
        json!({"mediaType": OCI_INDEX, "Digest": digest, "size": 5}),
        json!({"digest": digest, "size": 5, "platform": {"os": "linux", "architecture": "arm64"}, "data": "aGVsbG8="}),
        json!({"mediaType": OCI_INDEX, "digest": format!("sha384:{}", "0".repeat(96)), "size": 5}),
    ] {
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        upstream.always("GET", &path(&subject), Reply::status(200).body(index.to_string()));
        let wanted = (vec![entry], false);
        assert_eq!(list(&server, &path(&subject)).await, wanted);
        // An error with status 200 empties no list.
        upstream.end_scripts();
        let error = json!({"errors": [{"code": "UNAVAILABLE", "message": "later"}]});
        upstream.always("GET", &path(&subject), Reply::status(200).body(error.to_string()));
        assert_eq!(list(&server, &path(&subject)).await, (wanted.0, true));
        upstream.end_scripts();
    }
}

#[tokio::test]
async fn an_expired_list_is_revalidated_or_served_stale() {
    let (upstream, server, subject) = scene("[cache]\ntag_ttl = \"0s\"").await;
    let found = referrers(&subject, 2);
    upstream.always("GET", &path(&subject), listing(&found[..1]));
    assert_eq!(list(&server, &path(&subject)).await.0, sorted(&found[..1]));
    upstream.end_scripts();
    upstream.always("GET", &path(&subject), listing(&found));
    assert_eq!(list(&server, &path(&subject)).await, (sorted(&found), false));
    let limited = Reply::error(429, "TOOMANYREQUESTS").header("Retry-After", "0");
    for trouble in [Reply::error(500, "UNKNOWN"), limited, Reply::status(200).body("no")] {
        upstream.end_scripts();
        upstream.always("GET", &path(&subject), trouble);
        assert_eq!(list(&server, &path(&subject)).await, (sorted(&found), true));
    }
    upstream.go_down().await;
    assert_eq!(list(&server, &path(&subject)).await, (sorted(&found), true));
    let unknown = Content::new(OCI_INDEX, "never requested before");
    // Docker 29 would give up the pull of a cached image at an error.
    assert_eq!(list(&server, &path(&unknown)).await, (vec![], true), "nothing is known, and the response says so");
    upstream.end_scripts();
    upstream.come_back().await;
    server.until_available("docker.io").await;
    upstream.always("GET", &path(&subject), listing(&found));
    assert_eq!(list(&server, &path(&subject)).await, (sorted(&found), false));
}

#[tokio::test]
async fn a_stale_list_does_not_wait_for_a_silent_upstream() {
    let slow =
        "[cache]\ntag_ttl = \"0s\"\nanswer_within = \"600s\"\n[upstream.\"docker.io\"]\nheader_timeout = \"600s\"";
    let (upstream, server, subject) = scene(slow).await;
    let found = referrers(&subject, 1);
    upstream.script("GET", &path(&subject), [listing(&found), Reply::never()]);
    list(&server, &path(&subject)).await;
    // Every other deadline is ten minutes.
    let listed =
        tokio::time::timeout(std::time::Duration::from_secs(120), async { list(&server, &path(&subject)).await });
    assert_eq!(listed.await.expect("a response without the upstream"), (sorted(&found), true));
}

#[tokio::test]
async fn referrers_of_a_local_repository_never_ask_upstream() {
    let (upstream, server, _) = scene("").await;
    let image = Image::new(2, &[10]);
    server.client().push_image(&server.url(""), "team/app", "v1", &image).await;
    upstream.forget();
    let answer = server.get(&format!("/v2/team/app/referrers/{}", image.digest())).await;
    assert_eq!((answer.status, answer.json()["manifests"].clone()), (200, json!([])));
    assert_eq!(upstream.total(), 0);
}
