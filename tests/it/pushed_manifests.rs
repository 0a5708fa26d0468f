//! Pushed manifests, indexes and tags, and their deletion.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::disk::{blob_file, wait_until_idle};
use crate::operator::roadstead;
use crate::support::image::{OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use crate::support::{Answer, Conn, Content, Image, Index, TestServer, random_bytes};

const REPO: &str = "team/app";

fn manifest_path(reference: &str) -> String {
    format!("/v2/{REPO}/manifests/{reference}")
}

async fn put(server: &TestServer, reference: &str, kind: &str, bytes: impl Into<Bytes>) -> Answer {
    server.send("PUT", &manifest_path(reference), &[("Content-Type", kind)], bytes.into()).await
}

fn assert_error(answer: &Answer, status: u16, code: &str, what: &str) {
    assert_eq!((answer.status, answer.error_code().as_str()), (status, code), "{what}: {}", answer.text());
}

async fn with_image(image: &Image) -> TestServer {
    let server = TestServer::builder().start().await;
    server.client().push_image(&server.url(""), REPO, "v1", image).await;
    server
}

#[tokio::test]
async fn a_pushed_image_is_served_unchanged() {
    for image in [Image::new(1, &[1000, 10]), Image::docker(2, &[1000])] {
        let server = with_image(&image).await;
        let kind = format!("{}; charset=utf-8", image.manifest.media_type);
        let answer = put(&server, "v2", &kind, image.manifest.bytes.clone()).await;
        assert_eq!((answer.status, answer.header("docker-content-digest")), (201, image.digest()));
        assert_eq!(answer.header("location"), manifest_path("v2"));
        for reference in ["v1", "v2", image.digest()] {
            let got = server.get(&manifest_path(reference)).await;
            assert_eq!((got.status, &got.body), (200, &image.manifest.bytes));
            assert_eq!(got.header("content-type"), image.manifest.media_type);
            assert_eq!(got.header("docker-content-digest"), image.digest());
            let head = server.head(&manifest_path(reference)).await;
            assert_eq!(head.header("content-length"), image.manifest.bytes.len().to_string());
        }
        wait_until_idle(server.data_dir()).await;
    }
}

#[tokio::test]
async fn an_index_is_pushed_after_its_images() {
    let server = TestServer::builder().start().await;
    let index = Index::new(1, &["linux/amd64", "linux/arm64"], &[100]);
    let early = put(&server, "v1", OCI_INDEX, index.manifest.bytes.clone()).await;
    assert_error(&early, 400, "MANIFEST_BLOB_UNKNOWN", "no image yet");
    server.client().push_index(&server.url(""), REPO, "v1", &index).await;
    assert_eq!(server.get(&manifest_path("v1")).await.body, index.manifest.bytes);
    for image in &index.images {
        assert_eq!(server.get(&manifest_path(image.digest())).await.body, image.manifest.bytes);
    }
}

#[tokio::test]
async fn a_manifest_must_refer_to_content_of_its_repository() {
    let server = TestServer::builder().start().await;
    let (image, base) = (Image::new(1, &[100, 50]), server.url(""));
    server.client().push_blob(&base, REPO, &image.config).await;
    server.client().push_blob(&base, REPO, &image.layers[0]).await;
    server.client().push_blob(&base, "team/other", &image.layers[1]).await;
    let refused = put(&server, "v1", OCI_MANIFEST, image.manifest.bytes.clone()).await;
    assert_error(&refused, 400, "MANIFEST_BLOB_UNKNOWN", "a layer of another repository");
    assert_eq!(refused.json()["errors"][0]["detail"]["missing"], json!([image.layers[1].digest]));
    assert_eq!(server.get(&manifest_path("v1")).await.status, 404);
    server.client().push_blob(&base, REPO, &image.layers[1]).await;
    assert_eq!(put(&server, "v1", OCI_MANIFEST, image.manifest.bytes.clone()).await.status, 201);
    let absent = Content::new(OCI_LAYER, random_bytes(9, 9));
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let with = |field: &str, value: Value| {
        let mut manifest = json!({"schemaVersion": 2, "config": image.config.descriptor(), "layers": []});
        manifest[field] = value;
        Content::json(OCI_MANIFEST, &manifest).bytes
    };
    let subject = with("subject", absent.descriptor());
    assert_eq!(put(&server, "v2", OCI_MANIFEST, subject).await.status, 201, "a subject need not exist");
    let mut layer = absent.descriptor();
    layer["mediaType"] = json!(foreign);
    let foreign = with("layers", json!([layer]));
    assert_eq!(put(&server, "v3", OCI_MANIFEST, foreign).await.status, 201, "a foreign layer is elsewhere");
    let unknown = with("layers", json!([{"mediaType": OCI_LAYER, "digest": "blake3:00", "size": 1}]));
    let refused = put(&server, "v4", OCI_MANIFEST, unknown).await;
    assert_error(&refused, 400, "MANIFEST_BLOB_UNKNOWN", "an unknown algorithm");
}

#[tokio::test]
async fn an_invalid_manifest_is_refused() {
    let image = Image::new(1, &[10]);
    let server = with_image(&image).await;
    for (what, kind, body) in [
        ("another type", OCI_INDEX, image.manifest.bytes.to_vec()),
        ("empty", OCI_MANIFEST, Vec::new()),
        ("no JSON", OCI_MANIFEST, b"{".to_vec()),
        ("an array", OCI_MANIFEST, b"[]".to_vec()),
        ("schema 1", "application/json", b"{\"schemaVersion\":1}".to_vec()),
        ("an invalid layer", OCI_MANIFEST, b"{\"schemaVersion\":2,\"layers\":[7]}".to_vec()),
        ("too deep", OCI_MANIFEST, format!("{{\"a\":{}", "[".repeat(100_000)).into_bytes()),
    ] {
        assert_error(&put(&server, "v2", kind, body).await, 400, "MANIFEST_INVALID", what);
    }
    let other = Image::new(2, &[10]);
    let refused = put(&server, other.digest(), OCI_MANIFEST, image.manifest.bytes.clone()).await;
    assert_error(&refused, 400, "DIGEST_INVALID", "another digest");
    for tag in ["-x", ".x", "a..+b", &"t".repeat(129)] {
        let refused = put(&server, tag, OCI_MANIFEST, image.manifest.bytes.clone()).await;
        assert_error(&refused, 400, "MANIFEST_INVALID", tag);
    }
    assert_eq!(server.get(&format!("/v2/{REPO}/tags/list")).await.json()["tags"], json!(["v1"]));
}

#[tokio::test]
async fn a_manifest_over_4_mib_is_refused_before_it_is_read() {
    let image = Image::new(1, &[10]);
    let server = with_image(&image).await;
    let head = format!("PUT {} HTTP/1.1\r\nHost: x\r\nContent-Type: {OCI_MANIFEST}\r\n", manifest_path("v2"));
    let limit = 4 << 20;
    let mut announced =
        Conn::ask(server.addr(), &format!("{head}Content-Length: {}\r\n\r\n", limit + 1)).await.unwrap();
    let (body, _) = announced.rest().await;
    assert_eq!(announced.status, 413);
    assert!(String::from_utf8_lossy(&body).contains("SIZE_INVALID"));
    // Without an announced length: the body is read up to the limit.
    let chunk = format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{}", limit + 1, "x".repeat(limit + 1));
    assert_eq!(Conn::ask(server.addr(), &chunk).await.unwrap().status, 413);
    let mut manifest = json!({"schemaVersion": 2, "config": image.config.descriptor(), "layers": []});
    manifest["annotations"] = json!({"filler": "x".repeat(limit - 1000)});
    let large = Content::json(OCI_MANIFEST, &manifest);
    assert_eq!(put(&server, "large", OCI_MANIFEST, large.bytes.clone()).await.status, 201);
    assert_eq!(server.get(&manifest_path("large")).await.body, large.bytes);
}

#[tokio::test]
async fn a_push_by_digest_may_set_many_tags() {
    let image = Image::new(1, &[10]);
    let server = with_image(&image).await;
    let tags: Vec<String> = (0..12).map(|n| format!("t{n:02}")).collect();
    let query: String = tags.iter().map(|tag| format!("&tag={tag}")).collect();
    let reference = format!("{}?{}", image.digest(), &query[1..]);
    let answer = put(&server, &reference, OCI_MANIFEST, image.manifest.bytes.clone()).await;
    assert_eq!(answer.status, 201);
    let set: Vec<_> = answer.headers.get_all("oci-tag").iter().map(|tag| tag.to_str().unwrap().to_owned()).collect();
    assert_eq!(set, tags);
    assert_eq!(server.get(&manifest_path("t11")).await.body, image.manifest.bytes);
    let bad = put(&server, &format!("{}?tag=..", image.digest()), OCI_MANIFEST, image.manifest.bytes.clone()).await;
    assert_error(&bad, 400, "MANIFEST_INVALID", "a bad tag");
}

#[tokio::test]
async fn deleting_a_manifest_removes_its_tags_but_not_vice_versa() {
    let image = Image::new(1, &[10]);
    let mut server = with_image(&image).await;
    for tag in ["v2", "v3"] {
        put(&server, tag, OCI_MANIFEST, image.manifest.bytes.clone()).await;
    }
    assert_eq!(server.delete(&manifest_path("v2")).await.status, 202);
    assert_error(&server.get(&manifest_path("v2")).await, 404, "MANIFEST_UNKNOWN", "v2");
    assert_error(&server.delete(&manifest_path("v2")).await, 404, "MANIFEST_UNKNOWN", "v2 again");
    assert_eq!(server.get(&manifest_path(image.digest())).await.status, 200);
    assert_eq!(server.delete(&manifest_path(image.digest())).await.status, 202);
    assert_eq!(server.delete(&manifest_path(image.digest())).await.status, 404);
    for _ in 0..2 {
        for reference in ["v1", "v3", image.digest()] {
            assert_eq!(server.get(&manifest_path(reference)).await.status, 404, "{reference}");
        }
        assert_eq!(server.get(&format!("/v2/{REPO}/tags/list")).await.json()["tags"], json!([]));
        server.restart().await;
    }
    assert_eq!(put(&server, "v1", OCI_MANIFEST, image.manifest.bytes.clone()).await.status, 201);
}

#[tokio::test]
async fn a_deleted_blob_stays_in_other_repositories() {
    let image = Image::new(1, &[10]);
    let server = with_image(&image).await;
    server.client().push_image(&server.url(""), "team/other", "v1", &image).await;
    let blob = format!("blobs/{}", image.layers[0].digest);
    assert_eq!(server.delete(&format!("/v2/{REPO}/{blob}")).await.status, 202);
    assert_eq!(server.delete(&format!("/v2/{REPO}/{blob}")).await.status, 404);
    assert_error(&server.get(&format!("/v2/{REPO}/{blob}")).await, 404, "BLOB_UNKNOWN", "deleted");
    assert_eq!(server.get(&format!("/v2/team/other/{blob}")).await.body, image.layers[0].bytes);
}

#[tokio::test]
async fn deletes_are_refused_when_disabled_or_for_mirrored_content() {
    let image = Image::new(1, &[10]);
    let upstream = crate::support::Upstream::start().await;
    upstream.add_image("org/app", "v1", &image);
    let mut server = TestServer::mirror_of(&upstream).await;
    server.client().push_image(&server.url(""), REPO, "v1", &image).await;
    server.get("/v2/org/app/manifests/v1").await;
    let blob = format!("blobs/{}", image.config.digest);
    for repo in ["org/app", REPO] {
        for what in ["manifests/v1", &format!("manifests/{}", image.digest()), &blob] {
            let path = format!("/v2/{repo}/{what}");
            assert_error(&server.delete(&path).await, 405, "UNSUPPORTED", &path);
            assert_eq!(server.get(&path).await.status, 200, "{path}");
        }
        server.restart_with("[delete]\nenabled = false").await;
    }
}

#[tokio::test]
async fn a_lost_pushed_blob_is_404_until_pushed_again() {
    let image = Image::new(1, &[1000]);
    let mut server = with_image(&image).await;
    let layer = &image.layers[0];
    let blob = format!("/v2/{REPO}/blobs/{}", layer.digest);
    std::fs::remove_file(blob_file(server.data_dir(), &layer.digest)).unwrap();
    std::fs::remove_file(blob_file(server.data_dir(), image.digest())).unwrap();
    server.restart().await;
    assert_error(&server.get(&blob).await, 404, "BLOB_UNKNOWN", "lost");
    assert_eq!(server.head(&blob).await.status, 404);
    assert_error(&server.get(&manifest_path("v1")).await, 404, "MANIFEST_UNKNOWN", "lost");
    server.client().push_blob(&server.url(""), REPO, layer).await;
    put(&server, "v1", OCI_MANIFEST, image.manifest.bytes.clone()).await;
    assert_eq!(server.get(&blob).await.body, layer.bytes);
    assert_eq!(server.get(&manifest_path("v1")).await.body, image.manifest.bytes);
}

#[tokio::test]
async fn a_tag_without_its_link_does_not_exist() {
    let image = Image::new(1, &[10]);
    let mut server = with_image(&image).await;
    let hex = image.digest().replace("sha256:", "");
    let link = format!("repositories/local/{REPO}/_manifests/sha256/{hex}");
    std::fs::remove_file(server.data_dir().join(link)).unwrap();
    server.restart().await;
    for reference in ["v1", image.digest()] {
        assert_error(&server.get(&manifest_path(reference)).await, 404, "MANIFEST_UNKNOWN", reference);
    }
}

async fn put_untyped(server: &TestServer, reference: &str, bytes: impl Into<Bytes>) -> Answer {
    server.send("PUT", &manifest_path(reference), &[], bytes.into()).await
}

#[tokio::test]
async fn media_types_of_a_push_obey_the_same_rules_both_ways() {
    let image = Image::new(1, &[10]);
    let mut server = with_image(&image).await;
    let long = format!("application/{}", "x".repeat(300));
    let huge = format!("application/{}", "x".repeat(3_000_000));
    let with_type =
        |kind: &str| json!({"schemaVersion": 2, "mediaType": kind, "config": image.config.descriptor(), "layers": []});
    for kind in ["text/html", "image/svg+xml", "application", "application/", "application/a b", "", &long] {
        let untyped = json!({"schemaVersion": 2, "config": image.config.descriptor(), "layers": []}).to_string();
        assert_error(&put(&server, "v2", kind, untyped).await, 400, "MANIFEST_INVALID", kind);
        let field = with_type(kind).to_string();
        assert_error(&put_untyped(&server, "v2", field).await, 400, "MANIFEST_INVALID", kind);
    }
    for kind in
        ["application/x\ny", "application/x\r\nSet-Cookie: a=b", "application/\u{7}x", "application/\u{e9}", &huge]
    {
        let field = with_type(kind).to_string();
        assert_error(&put_untyped(&server, "v2", field).await, 400, "MANIFEST_INVALID", &format!("{kind:.40}"));
    }
    let good = put_untyped(&server, "v3", with_type(&format!("{OCI_MANIFEST}; charset=utf-8")).to_string()).await;
    assert_eq!(good.status, 201);
    server.restart().await;
    assert_eq!(server.get(&manifest_path("v3")).await.header("content-type"), OCI_MANIFEST);
    assert_eq!(server.get(&format!("/v2/{REPO}/tags/list")).await.json()["tags"], json!(["v1", "v3"]));
}

#[tokio::test]
async fn other_json_is_refused_without_a_content_type() {
    let image = Image::new(1, &[10]);
    let server = with_image(&image).await;
    for body in [
        &b"{}"[..],
        br#"{"schemaVersion":2}"#,
        br#"{"hello":"world"}"#,
        b"{\"layers\":[],\"annotations\":{\"a\":\"\xff\"}}",
        br#"{"layers":[],"layers":[]}"#,
    ] {
        assert_error(&put_untyped(&server, "v2", body).await, 400, "MANIFEST_INVALID", &String::from_utf8_lossy(body));
    }
    assert_eq!(put_untyped(&server, "v2", image.manifest.bytes.clone()).await.status, 201);
}

#[tokio::test]
async fn a_malformed_digest_is_an_invalid_manifest_and_an_unknown_blob_is_not() {
    let server = TestServer::builder().start().await;
    let short = "a".repeat(63);
    for digest in ["", "x", "sha256:", &format!("sha256:{short}"), &format!("sha256:{short}G"), "SHA256:00", "a:b:c"] {
        let body = json!({"schemaVersion": 2, "layers": [{"mediaType": OCI_LAYER, "digest": digest, "size": 1}]});
        assert_error(&put(&server, "v1", OCI_MANIFEST, body.to_string()).await, 400, "MANIFEST_INVALID", digest);
    }
    for digest in [&format!("sha256:{short}a"), "blake3:00", "sha256+b64:ab-_="] {
        let body = json!({"schemaVersion": 2, "layers": [{"mediaType": OCI_LAYER, "digest": digest, "size": 1}]});
        assert_error(&put(&server, "v1", OCI_MANIFEST, body.to_string()).await, 400, "MANIFEST_BLOB_UNKNOWN", digest);
    }
}

/// BuildKit's registry cache with `image-manifest=false`.
#[tokio::test]
async fn an_index_of_layers_is_taken_if_the_repository_has_them() {
    let rules = "[gc]\ninterval = \"0s\"\nafter_start = \"0s\"\ngrace = \"0s\"\nunreferenced_after = \"0s\"\nuntagged_after = \"1s\"";
    let server = TestServer::builder().config(rules).start().await;
    let parts = [
        Content::new(OCI_LAYER, random_bytes(1, 500)),
        Content::new("application/vnd.buildkit.cacheconfig.v0", random_bytes(2, 50)),
    ];
    let index = |entries: Vec<Value>| Content::json(OCI_INDEX, &json!({"schemaVersion": 2, "manifests": entries}));
    let cache = index(parts.iter().map(Content::descriptor).collect());
    assert_error(&put(&server, "cache", OCI_INDEX, cache.bytes.clone()).await, 400, "MANIFEST_BLOB_UNKNOWN", "nothing");
    for part in &parts {
        server.client().push_blob(&server.url(""), REPO, part).await;
    }
    assert_eq!(put(&server, "cache", OCI_INDEX, cache.bytes.clone()).await.status, 201);
    let missing = index(vec![parts[0].descriptor(), Content::new(OCI_LAYER, "absent").descriptor()]);
    assert_error(&put(&server, "v2", OCI_INDEX, missing.bytes).await, 400, "MANIFEST_BLOB_UNKNOWN", "one is missing");
    // A client would request this entry as a manifest.
    let mut image = parts[0].descriptor();
    image["mediaType"] = json!(OCI_MANIFEST);
    assert_error(
        &put(&server, "v3", OCI_INDEX, index(vec![image]).bytes).await,
        400,
        "MANIFEST_BLOB_UNKNOWN",
        "a blob",
    );
    for _ in 0..3 {
        let collected = roadstead(server.data_dir(), &["gc"]).await;
        assert!(collected.out.starts_with("removed: 0 files"), "{}", collected.out);
    }
    let scrubbed = roadstead(server.data_dir(), &["scrub"]).await;
    assert_eq!(scrubbed.code, 0, "{scrubbed:?}");
    for part in &parts {
        assert_eq!(server.get(&format!("/v2/{REPO}/blobs/{}", part.digest)).await.body, part.bytes);
    }
}

#[tokio::test]
async fn a_tag_without_its_manifest_can_be_deleted() {
    let image = Image::new(1, &[10]);
    let mut server = with_image(&image).await;
    let hex = image.digest().replace("sha256:", "");
    let names = server.data_dir().join(format!("repositories/local/{REPO}"));
    std::fs::remove_file(names.join(format!("_manifests/sha256/{hex}"))).unwrap();
    server.restart_with("[delete]\nenabled = true").await;
    assert_eq!(server.delete(&manifest_path("v1")).await.status, 202);
    assert!(!names.join("_tags/v1").exists());
    assert_error(&server.delete(&manifest_path("v1")).await, 404, "MANIFEST_UNKNOWN", "twice");
}
