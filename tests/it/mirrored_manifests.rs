//! Mirrored manifests: served unchanged or not at all. Requests that loop are refused.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use crate::disk::{blob_file, wait_until_idle};
use crate::freshness::{REPO, TAG, mirror, take_requests, upstream_with};
use crate::support::daemon::free_port;
use crate::support::image::{DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use crate::support::{Content, Image, Index, Reply, TestServer, Upstream};

const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Valid JSON with formatting that no serialiser would produce.
fn unusual_json(kind: &str, extra: &str) -> Vec<u8> {
    format!("\n{{ \"b\":1e3 ,\"mediaType\" : \"{kind}\",\t\"schemaVersion\":2,\"unknown\":{{}}{extra}}}\n\n")
        .into_bytes()
}

fn sha512_of(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    let hex: String = sha2::Sha512::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha512:{hex}")
}

#[tokio::test]
async fn manifests_are_served_unchanged_with_their_media_type() {
    let upstream = Upstream::start().await;
    let server = TestServer::mirror_of(&upstream).await;
    let mut cases = Vec::new();
    for kind in [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST, "application/vnd.example+json"] {
        cases.push(Content::new(kind, unusual_json(kind, "")));
    }
    let image = Image::docker(3, &[10]);
    cases.push(image.manifest);
    cases.push(Index::new(4, &["linux/amd64", "linux/arm64"], &[10]).manifest);
    let bytes = unusual_json(OCI_MANIFEST, ",\"sha\":512");
    cases.push(Content { media_type: OCI_MANIFEST.to_owned(), digest: sha512_of(&bytes), bytes: bytes.into() });
    for (n, content) in cases.iter().enumerate() {
        upstream.add_manifest(REPO, content);
        upstream.tag(REPO, &format!("t{n}"), &content.digest);
        for reference in [format!("t{n}"), content.digest.clone()] {
            let answer = server.get(&format!("/v2/{REPO}/manifests/{reference}")).await;
            assert_eq!((answer.status, &answer.body), (200, &content.bytes), "{reference}");
            assert_eq!(answer.header("content-type"), content.media_type);
            assert_eq!(answer.header("docker-content-digest"), content.digest);
            assert_eq!(answer.header("content-length"), content.bytes.len().to_string());
            assert_eq!(answer.header("content-encoding"), "");
        }
    }
    assert_eq!(take_requests(&upstream).len(), cases.len());
}

#[tokio::test]
async fn a_generic_content_type_is_replaced_by_the_media_type() {
    let upstream = Upstream::start().await;
    let server = TestServer::mirror_of(&upstream).await;
    let child = Image::new(1, &[10]).manifest.descriptor();
    for (n, content_type) in
        ["text/plain; charset=utf-8", "application/json", "application/octet-stream", "nonsense", ""]
            .into_iter()
            .enumerate()
    {
        let index = json!({"schemaVersion": 2, "manifests": [&child], "annotations": {"n": n.to_string()}});
        for (content, kind) in
            [(Image::new(n as u64, &[9]).manifest, OCI_MANIFEST), (Content::json("", &index), OCI_INDEX)]
        {
            upstream.add_manifest(REPO, &content);
            let path = format!("/v2/{REPO}/manifests/{}", content.digest);
            let reply = Reply::normal().without("Content-Type");
            upstream.always(
                "*",
                &path,
                if content_type.is_empty() { reply } else { reply.header("Content-Type", content_type) },
            );
            let answer = server.get(&path).await;
            assert_eq!((answer.status, answer.header("content-type")), (200, kind), "{content_type}");
            assert_eq!(answer.body, content.bytes);
        }
    }
}

#[tokio::test]
async fn the_digest_decides_and_not_a_header() {
    let [image, other] = [1, 2].map(|seed| Image::new(seed, &[10]));
    let upstream = upstream_with(&image).await;
    let digest = &format!("/v2/{REPO}/manifests/{}", image.digest());
    for (what, path, reply, mismatches) in [
        ("a body that is corrupt once, by tag", TAG, Reply::normal().flip(9), 1.0),
        (
            "a header with the digest of nothing",
            TAG,
            Reply::normal().header("Docker-Content-Digest", other.digest()),
            1.0,
        ),
        ("a label without a coding, by tag", TAG, Reply::normal().claims_gzip(), 0.0),
        ("a label without a coding, by digest", digest.as_str(), Reply::normal().claims_gzip(), 0.0),
        ("two labels", digest.as_str(), Reply::normal().header("Content-Encoding", "aws-chunked, x-gzip"), 0.0),
        (
            "the header of another digest",
            digest.as_str(),
            Reply::normal().header("Docker-Content-Digest", other.digest()),
            0.0,
        ),
        ("an invalid digest", TAG, Reply::normal().header("Docker-Content-Digest", "sha256:x"), 0.0),
    ] {
        let server = mirror(&upstream, "").await;
        upstream.script("GET", path, [reply]);
        let answer = server.get(path).await;
        assert_eq!((answer.status, &answer.body), (200, &image.manifest.bytes), "{what}: {}", answer.text());
        assert_eq!(answer.header("docker-content-digest"), image.digest(), "{what}");
        assert_eq!(answer.header("content-encoding"), "", "{what}");
        upstream.end_scripts();
        assert_eq!(server.get(digest).await.body, image.manifest.bytes, "{what}");
        assert_eq!(server.metric("roadstead_digest_mismatches_total", &[]).await, mismatches, "{what}");
    }
}

#[tokio::test]
async fn an_inconsistent_manifest_is_502_and_not_stored() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let digest = &format!("/v2/{REPO}/manifests/{}", image.digest());
    let server = mirror(&upstream, "").await;
    let filler = "x".repeat(8 << 20);
    let huge = Reply::normal().without_digest().body(unusual_json(OCI_MANIFEST, &format!(",\"f\":\"{filler}\"")));
    let other = Image::new(2, &[10]).manifest;
    let unusual = |body: &'static str| Reply::normal().without_digest().body(body);
    for (what, path, reply) in [
        ("corrupt, by digest", digest.as_str(), Reply::normal().flip(9)),
        ("another one, by digest", digest, Reply::normal().body(other.bytes.clone())),
        ("another one, with its own digest", digest, {
            Reply::normal().body(other.bytes.clone()).header("Docker-Content-Digest", &other.digest)
        }),
        ("over 8 MiB", TAG, huge.clone()),
        ("over 8 MiB, chunked", TAG, huge.chunked()),
        ("cut short", TAG, Reply::normal().cut_after(20)),
        ("not JSON", TAG, unusual("<html>welcome to the hotel</html>")),
        ("an array", TAG, unusual("[]")),
        ("an error", TAG, unusual(r#"{"errors":[{"code":"DENIED","message":"no"}]}"#)),
        ("a status", TAG, unusual(r#"{"message":"please log in","status":200}"#)),
        ("an empty object", TAG, unusual("{}")),
        ("schema 1", TAG, unusual("{\"schemaVersion\":1}")),
        ("a part", TAG, Reply::status(206).header("Content-Range", "bytes 0-1/9").body("{}")),
    ] {
        upstream.script("GET", path, [reply]);
        let answer = server.get(path).await;
        assert_eq!((answer.status, answer.error_code().as_str()), (502, "UNAVAILABLE"), "{what}: {}", answer.text());
        upstream.end_scripts();
        for content in [image.digest(), &other.digest] {
            assert!(!blob_file(server.data_dir(), content).exists(), "{what}");
        }
    }
    wait_until_idle(server.data_dir()).await;
    assert_eq!(server.metric("roadstead_digest_mismatches_total", &[("upstream", "docker.io")]).await, 3.0);
    assert_eq!(server.get(TAG).await.body, image.manifest.bytes);
    assert_eq!(server.get(digest).await.body, image.manifest.bytes);
}

#[tokio::test]
async fn an_error_with_status_200_replaces_no_cached_tag() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, "tag_ttl = \"0s\"").await;
    assert_eq!(server.get(TAG).await.body, image.manifest.bytes);
    for body in [
        r#"{"errors":[{"code":"UNAVAILABLE","message":"no","detail":{"manifests":[]}}]}"#,
        r#"{"error":"service unavailable"}"#,
        r#"{"title":"Bad gateway","status":502,"mediaType":"application/problem+json"}"#,
        "{}",
    ] {
        let reply = Reply::status(200).without_digest().header("Content-Type", "application/json").body(body);
        upstream.always("HEAD", TAG, reply.clone());
        upstream.always("GET", TAG, reply);
        let answer = server.get(TAG).await;
        assert_eq!((answer.status, &answer.body), (200, &image.manifest.bytes), "{body}");
        assert!(answer.header("warning").starts_with("299"), "{body}");
        upstream.end_scripts();
    }
}

/// Transforming proxies send other statuses with the right bytes.
#[tokio::test]
async fn a_status_like_200_does_not_hide_the_right_content() {
    for status in [203_u16, 206, 226, 201] {
        let image = Image::new(u64::from(status), &[300_000]);
        let upstream = upstream_with(&image).await;
        let layer = &image.layers[0];
        let reply = |content: &Content| {
            let last = content.bytes.len() - 1;
            let reply = Reply::status(status).header("Content-Type", &content.media_type).body(content.bytes.clone());
            match status {
                206 => reply.header("Content-Range", &format!("bytes 0-{last}/{}", last + 1)),
                _ => reply,
            }
        };
        let (digest, blob) =
            (format!("/v2/{REPO}/manifests/{}", image.digest()), format!("/v2/{REPO}/blobs/{}", layer.digest));
        for (path, content) in [(TAG, &image.manifest), (&digest, &image.manifest), (&blob, layer)] {
            for method in ["HEAD", "GET"] {
                upstream.always(method, path, reply(content));
            }
            // Without an upstream in the path, the HEAD of an unknown blob may belong to a push and is 404.
            let methods = if *path == *blob { &["GET"][..] } else { &["HEAD", "GET"] };
            for method in methods {
                let server = mirror(&upstream, "").await;
                let answer = if *method == "HEAD" { server.head(path).await } else { server.get(path).await };
                assert_eq!(answer.status, 200, "{status} {method} {path}: {}", answer.text());
                assert_eq!(answer.header("content-range"), "");
                if *method == "GET" {
                    assert_eq!(answer.body, content.bytes, "{status} {path}");
                }
            }
        }
        // The digest decides for these statuses too.
        upstream.end_scripts();
        upstream.always("GET", &digest, reply(&Image::new(77, &[10]).manifest));
        assert_eq!(mirror(&upstream, "").await.get(&digest).await.status, 502, "{status}");
    }
}

#[tokio::test]
async fn manifests_up_to_8_mib_are_served() {
    let filler = "x".repeat((8 << 20) - 200);
    let big = Content::new(OCI_MANIFEST, unusual_json(OCI_MANIFEST, &format!(",\"f\":\"{filler}\"")));
    let upstream = Upstream::start().await;
    upstream.add_manifest(REPO, &big);
    upstream.tag(REPO, "1", &big.digest);
    let mut server = TestServer::mirror_of(&upstream).await;
    assert_eq!(server.get(TAG).await.body, big.bytes);
    server.restart().await;
    assert_eq!(server.get(TAG).await.body, big.bytes);
}

#[tokio::test]
async fn a_served_manifest_makes_its_blobs_readable() {
    let image = Image::new(1, &[300]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, "").await;
    server.get(TAG).await;
    server.get(&format!("/v2/{REPO}/blobs/{}", image.layers[0].digest)).await;
    take_requests(&upstream);
    upstream.go_down().await;
    // Its config is not stored; the manifest has its length.
    let config = format!("/v2/{REPO}/blobs/{}", image.config.digest);
    assert_eq!(server.head(&config).await.header("content-length"), image.config.bytes.len().to_string());
    assert_eq!(server.get(&config).await.status, 503);
    assert_eq!(server.get(&format!("/v2/{REPO}/blobs/{}", image.layers[0].digest)).await.body, image.layers[0].bytes);
}

#[tokio::test]
async fn a_request_with_our_via_is_refused() {
    let upstream = upstream_with(&Image::new(1, &[10])).await;
    let server = mirror(&upstream, "").await;
    server.get("/v2/docker.io/library/busybox/tags/list").await;
    let own = upstream.requests()[0].header("via").to_owned();
    take_requests(&upstream);
    let blob = format!("/v2/{REPO}/blobs/{}", Content::new(OCI_CONFIG, "x").digest);
    for via in [own.clone(), format!("1.1 proxy.corp, {own}"), format!("{own}, HTTP/2 other (comment)")] {
        for path in [TAG, &blob, "/v2/library/busybox/tags/list"] {
            let answer = server.get_with(path, &[("Via", &via)]).await;
            assert_eq!((answer.status, answer.error_code().as_str()), (508, "UNAVAILABLE"), "{via} {path}");
        }
    }
    assert_eq!(take_requests(&upstream), [""; 0]);
    for via in ["1.1 roadstead-0123456789abcdef0123456789abcdef", "1.1 proxy.corp"] {
        assert_eq!(server.get_with(TAG, &[("Via", via)]).await.status, 200, "{via}");
    }
}

#[tokio::test]
async fn a_server_that_is_its_own_upstream_answers_508() {
    let port = free_port();
    let own = format!("http://127.0.0.1:{port}");
    let config = format!("[server]\nlisten = \"127.0.0.1:{port}\"\n[cache]\nanswer_within = \"120s\"");
    let builder = TestServer::builder().upstream_url("docker.io", &own).default_upstream("docker.io");
    let server = builder.config(&config).start().await;
    let digest = Image::new(1, &[10]).manifest.digest;
    for path in ["manifests/1", &format!("manifests/{digest}"), &format!("blobs/{digest}")] {
        let path = format!("/v2/{REPO}/{path}");
        let answer = timeout(Duration::from_secs(60), server.get(&path))
            .await
            .expect("a response before any configured deadline");
        assert_eq!(answer.status, 508, "{path}: {}", answer.text());
    }
}

/// What Docker's own parser reads is passed on byte for byte, also from the disk.
#[tokio::test]
async fn manifests_with_faults_that_clients_accept_are_passed_on() {
    let upstream = Upstream::start().await;
    let mut server = TestServer::mirror_of(&upstream).await;
    let layer = Image::new(1, &[10]).layers[0].clone();
    upstream.add_blob(REPO, &layer);
    let (digest, size) = (&layer.digest, layer.bytes.len());
    let good = format!(r#"{{"mediaType":"x/y","digest":"{digest}","size":{size}}}"#);
    let bodies = [
        format!(r#"{{"schemaVersion":2,"mediaType":null,"config":{{}},"layers":[{good}]}}"#),
        format!(r#"{{"schemaVersion":2,"layers":[],"layers":[{good}],"schemaVersion":2}}"#),
        format!(r#"{{"schemaVersion":2,"layers":[{{"digest":"{digest}","size":{size}.0}}]}}"#),
        format!(r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"x/y","size":1}},{good}]}}"#),
        format!(r#"{{"schemaVersion":2,"layers":[null,{good}],"subject":null,"annotations":null}}"#),
        format!(r#"{{"SchemaVersion":2,"Layers":[{{"Digest":"{digest}","Size":{size}}}]}}"#),
        format!(r#"{{"schemaVersion":2,"layers":[{good}],"config":{{"digest":"","size":-1}}}}"#),
        format!(r#"{{"schemaVersion":1,"mediaType":"{OCI_MANIFEST}","layers":[{good}]}}"#),
        format!(r#"{{"schemaVersion":1,"config":{good}}}"#),
        format!(r#"{{"layers":[{good}]}}"#),
        format!(r#"{{"blobs":[{good}]}}"#),
        r#"{"schemaVersion":2,"manifests":[]}"#.to_owned(),
        format!(r#"{{"schemaVersion":2,"layers":[{good}{}]}}"#, r#",{"digest":""}"#.repeat(50_000)),
    ];
    for (n, body) in bodies.iter().enumerate() {
        let content = Content::new(OCI_MANIFEST, body.clone().into_bytes());
        upstream.add_manifest(REPO, &content);
        upstream.tag(REPO, &format!("t{n}"), &content.digest);
    }
    for _ in 0..2 {
        for (n, body) in bodies.iter().enumerate() {
            let by_tag = server.get(&format!("/v2/{REPO}/manifests/t{n}")).await;
            assert_eq!((by_tag.status, &by_tag.body[..]), (200, body.as_bytes()), "{n}");
            let path = format!("/v2/{REPO}/manifests/{}", Content::new("", body.clone().into_bytes()).digest);
            assert_eq!(server.get(&path).await.status, 200, "{n}");
        }
        server.restart().await;
    }
    assert_eq!(server.get(&format!("/v2/{REPO}/blobs/{digest}")).await.body, layer.bytes);
}

#[tokio::test]
async fn a_manifest_of_thousands_of_layers_makes_all_of_them_readable() {
    let files: Vec<Content> = (0..4200).map(|n| Content::new("a/b", format!("file {n}"))).collect();
    let layers: Vec<_> = files.iter().map(Content::descriptor).collect();
    let manifest = Content::json(OCI_MANIFEST, &json!({"schemaVersion": 2, "layers": layers}));
    let upstream = Upstream::start().await;
    upstream.add_manifest(REPO, &manifest);
    upstream.tag(REPO, "1", &manifest.digest);
    let server = TestServer::mirror_of(&upstream).await;
    assert_eq!(server.get(TAG).await.body, manifest.bytes);
    for n in [0, 4095, 4096, 4199] {
        upstream.add_blob(REPO, &files[n]);
        assert_eq!(server.get(&format!("/v2/{REPO}/blobs/{}", files[n].digest)).await.body, files[n].bytes, "{n}");
    }
}

#[tokio::test]
async fn a_manifest_is_passed_on_with_a_type_that_no_browser_shows() {
    let upstream = Upstream::start().await;
    let mut server = TestServer::mirror_of(&upstream).await;
    let long = format!("application/{}", "x".repeat(5000));
    for (n, kind) in ["text/html", "image/svg+xml", "", "application/x\\r\\nSet-Cookie: a=b", &long].iter().enumerate()
    {
        for (m, header) in [Some("text/html; charset=utf-8"), Some("image/svg+xml"), None].into_iter().enumerate() {
            let body = format!(r#"{{"mediaType":"{kind}","layers":[],"n":{n},"m":{m}}}"#);
            let content = Content::new(OCI_MANIFEST, body.into_bytes());
            upstream.add_manifest(REPO, &content);
            let path = format!("/v2/{REPO}/manifests/{}", content.digest);
            let reply = Reply::normal().without("Content-Type");
            upstream.always("*", &path, header.map_or(reply.clone(), |header| reply.header("Content-Type", header)));
            for _ in 0..2 {
                let answer = server.get(&path).await;
                let found = (answer.status, answer.header("content-type"), &answer.body);
                assert_eq!(found, (200, OCI_MANIFEST, &content.bytes), "{kind:.20} {header:?}");
            }
        }
        server.restart().await;
    }
}
