//! Content under sha512 digests: pushes, mounts, referrers and mirroring.

use bytes::Bytes;
use serde_json::json;

use crate::disk::wait_until_idle;
use crate::scene::blob;
use crate::support::artifact::{about, by_sha512, empty};
use crate::support::image::{OCI_CONFIG, OCI_MANIFEST};
use crate::support::push::absolute;
use crate::support::{Answer, Content, TestServer, Upstream};

const REPO: &str = "team/app";

/// An image all of whose digests are sha512.
fn image() -> (Content, Vec<Content>) {
    let config = by_sha512(&Content::json(OCI_CONFIG, &json!({"architecture": "amd64", "os": "linux"})));
    let layers = [by_sha512(&blob(1, 200_000)), by_sha512(&blob(2, 0))];
    let descriptors: Vec<_> = layers.iter().map(Content::descriptor).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.descriptor(), "layers": descriptors,
    });
    (by_sha512(&Content::json(OCI_MANIFEST, &manifest)), [&[config], &layers[..]].concat())
}

fn path(repo: &str, kind: &str, content: &Content) -> String {
    format!("/v2/{repo}/{kind}/{}", content.digest)
}

fn assert_is(answer: &Answer, content: &Content) {
    assert_eq!((answer.status, &answer.body), (200, &content.bytes));
    assert_eq!(answer.header("docker-content-digest"), content.digest);
    assert_eq!(answer.header("etag"), format!("\"{}\"", content.digest));
}

#[tokio::test]
async fn an_image_of_sha512_digests_is_pushed_tagged_mounted_and_deleted() {
    let mut server = TestServer::builder().start().await;
    let (base, (manifest, blobs)) = (server.url(""), image());
    let uploads = server.url(&format!("/v2/{REPO}/blobs/uploads/"));
    for (content, announce) in blobs.iter().zip(["", "?digest-algorithm=sha512", "?digest-algorithm=sha256"]) {
        let started = server.client().send("POST", &format!("{uploads}{announce}"), &[], "").await;
        let location = absolute(&base, started.header("location"));
        // With and without announcement, in two chunks: the hash must cover both.
        let half = content.bytes.len() / 2;
        server.client().send("PATCH", &location, &[], content.bytes.slice(..half)).await;
        let url = format!("{location}?digest={}", content.digest);
        let answer = server.client().send("PUT", &url, &[], content.bytes.slice(half..)).await;
        assert_eq!((answer.status, answer.header("docker-content-digest")), (201, content.digest.as_str()));
        assert_is(&server.get(&path(REPO, "blobs", content)).await, content);
    }
    let wrong = format!("{uploads}?digest={}", blobs[0].digest);
    let refused = server.client().send("POST", &wrong, &[], Bytes::from_static(b"other")).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (400, "DIGEST_INVALID"));
    let reference = format!("{}?tag=v1&tag=v2", manifest.digest);
    let answer = server.client().push_manifest(&base, REPO, &reference, &manifest).await;
    assert_eq!(answer.header("docker-content-digest"), manifest.digest);
    assert_eq!(answer.header("location"), path(REPO, "manifests", &manifest));
    server.restart().await;
    for reference in ["v1", "v2", &manifest.digest] {
        let by_tag = server.get(&format!("/v2/{REPO}/manifests/{reference}")).await;
        assert_is(&by_tag, &manifest);
        assert_eq!(by_tag.header("content-type"), OCI_MANIFEST);
    }
    let part = server.get_with(&path(REPO, "blobs", &blobs[1]), &[("Range", "bytes=-10")]).await;
    assert_eq!((part.status, &part.body[..]), (206, &blobs[1].bytes[199_990..]));
    let mount = format!("/v2/team/other/blobs/uploads/?mount={}&from={REPO}", blobs[1].digest);
    assert_eq!(server.send("POST", &mount, &[], "").await.status, 201);
    assert_is(&server.get(&path("team/other", "blobs", &blobs[1])).await, &blobs[1]);
    assert_eq!(server.delete(&path(REPO, "manifests", &manifest)).await.status, 202);
    assert_eq!(server.get(&format!("/v2/{REPO}/manifests/v1")).await.status, 404);
    assert_eq!(server.delete(&path(REPO, "blobs", &blobs[1])).await.status, 202);
    assert_is(&server.get(&path("team/other", "blobs", &blobs[1])).await, &blobs[1]);
    wait_until_idle(server.data_dir()).await;
}

#[tokio::test]
async fn a_session_resumes_after_a_restart_with_either_algorithm() {
    let mut server = TestServer::builder().start().await;
    let short = blob(3, 300_000);
    for (content, announce) in [(by_sha512(&short), "?digest-algorithm=sha512"), (by_sha512(&short), ""), (short, "")] {
        let path = format!("/v2/{REPO}/blobs/uploads/{announce}");
        let location = server.send("POST", &path, &[], "").await.header("location").to_owned();
        for part in [0..100_000, 100_000..200_000] {
            let range = format!("{}-{}", part.start, part.end - 1);
            let sent = server.send("PATCH", &location, &[("Content-Range", &range)], content.bytes.slice(part)).await;
            assert_eq!(sent.status, 202, "{}", sent.text());
            server.restart().await;
        }
        let path = format!("{location}?digest={}", content.digest);
        assert_eq!(server.send("PUT", &path, &[], content.bytes.slice(200_000..)).await.status, 201);
        assert_is(&server.get(&path_of(&content)).await, &content);
        assert_eq!(server.delete(&path_of(&content)).await.status, 202);
    }
}

fn path_of(content: &Content) -> String {
    path(REPO, "blobs", content)
}

#[tokio::test]
async fn one_manifest_under_two_digests_is_two_manifests() {
    let server = TestServer::builder().start().await;
    let base = server.url("");
    let short = Content::json(OCI_MANIFEST, &json!({"schemaVersion": 2, "layers": []}));
    let long = by_sha512(&short);
    for manifest in [&short, &long] {
        server.client().push_manifest(&base, REPO, &manifest.digest, manifest).await;
    }
    // A push by tag does not name an algorithm, so the server chooses.
    let tagged = server.client().push_manifest(&base, REPO, "v1", &short).await;
    assert_eq!(tagged.header("docker-content-digest"), short.digest);
    assert_eq!(server.delete(&path(REPO, "manifests", &long)).await.status, 202);
    assert_eq!(server.get(&path(REPO, "manifests", &long)).await.status, 404);
    assert_is(&server.get(&format!("/v2/{REPO}/manifests/v1")).await, &short);
}

#[tokio::test]
async fn a_sha512_subject_has_referrers_by_both_algorithms() {
    let server = TestServer::builder().start().await;
    let (base, (subject, _)) = (server.url(""), image());
    server.client().push_blob(&base, REPO, &empty()).await;
    let referrers =
        [about(&subject, "a/b", &json!({"n": "1"})), by_sha512(&about(&subject, "a/b", &json!({"n": "2"})))];
    for referrer in &referrers {
        let answer = server.client().push_manifest(&base, REPO, &referrer.digest, referrer).await;
        assert_eq!(answer.header("oci-subject"), subject.digest);
    }
    let list = async || {
        let answer = server.get(&path(REPO, "referrers", &subject)).await;
        let index = answer.json();
        let digests = index["manifests"].as_array().unwrap().iter().map(|found| found["digest"].as_str().unwrap());
        digests.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(list().await, referrers.each_ref().map(|referrer| referrer.digest.clone()));
    server.delete(&path(REPO, "manifests", &referrers[1])).await;
    assert_eq!(list().await, [referrers[0].digest.clone()]);
}

#[tokio::test]
async fn a_mirror_verifies_sha512_content() {
    const MIRRORED: &str = "org/app";
    let (manifest, blobs) = image();
    let upstream = Upstream::start().await;
    upstream.add_manifest(MIRRORED, &manifest);
    upstream.tag(MIRRORED, "v1", &manifest.digest);
    blobs.iter().for_each(|content| upstream.add_blob(MIRRORED, content));
    let bad = by_sha512(&blob(9, 100_000));
    upstream.add_blob(MIRRORED, &Content { bytes: blob(10, 100_000).bytes, ..bad.clone() });
    let server = TestServer::mirror_of(&upstream).await;
    for _ in 0..2 {
        for reference in ["v1", &manifest.digest] {
            assert_is(&server.get(&format!("/v2/{MIRRORED}/manifests/{reference}")).await, &manifest);
        }
        for content in &blobs {
            assert_is(&server.get(&path(MIRRORED, "blobs", content)).await, content);
        }
        wait_until_idle(server.data_dir()).await;
    }
    for content in &blobs {
        assert_eq!(upstream.count("GET", &path(MIRRORED, "blobs", content)), 1);
    }
    let url = server.url(&path(MIRRORED, "blobs", &bad));
    let answer = server.client().try_send("GET", &url, &[], "").await;
    let refused = answer.map_or_else(|error| !error.is_timeout(), |answer| answer.status == 502);
    assert!(refused, "a wrong blob is never complete");
}
