//! The headers of every response, and every error that the distribution specification defines.

use bytes::Bytes;
use serde_json::Value;

use crate::scene::pushed_and_mirrored;
use crate::support::artifact::{about, empty};
use crate::support::image::{OCI_INDEX, OCI_MANIFEST};
use crate::support::{Answer, Image, Reply, digest_of};

/// Replaces `{digest}`, `{layer}` and the like in a row of a table by the values of the scene.
fn fill_in(text: &str, image: &Image) -> String {
    let layer = &image.layers[0];
    text.replace("{digest}", image.digest())
        .replace("{length}", &image.manifest.bytes.len().to_string())
        .replace("{layer}", &layer.digest)
        .replace("{none}", &digest_of(b"stored nowhere"))
}

#[tokio::test]
async fn every_response_has_the_required_headers() {
    let (_upstream, server, image) = pushed_and_mirrored().await;
    const MANIFEST: &str =
        "content-type: {type}; docker-content-digest: {digest}; etag: \"{digest}\"; content-length: {length}";
    const BLOB: &str = "content-type: application/octet-stream; docker-content-digest: {layer}; etag: \"{layer}\"; \
        content-length: 1000; accept-ranges: bytes; cache-control: max-age=31536000, immutable";
    for repo in ["team/app", "org/app", "docker.io/org/app"] {
        for (path, expected) in [
            ("manifests/v1", MANIFEST),
            ("manifests/{digest}", MANIFEST),
            ("blobs/{layer}", BLOB),
            ("tags/list", "content-type: application/json"),
            ("referrers/{digest}", "content-type: application/vnd.oci.image.index.v1+json"),
        ] {
            let path = format!("/v2/{repo}/{}", fill_in(path, &image));
            let expected = fill_in(&expected.replace("{type}", OCI_MANIFEST), &image);
            let get = server.get(&path).await;
            let head = server.head(&path).await;
            assert_eq!(get.header("content-length"), get.body.len().to_string(), "{path}");
            for (answer, what) in [(&get, "GET"), (&head, "HEAD")] {
                assert_eq!(answer.status, 200, "{what} {path}");
                assert_headers(answer, &expected, &format!("{what} {path}"));
                assert_headers(answer, &format!("content-length: {}", get.body.len()), &format!("{what} {path}"));
                assert_eq!(answer.header("content-encoding"), "", "{path}");
            }
            let etag = get.header("etag");
            if !etag.is_empty() {
                for condition in [etag, &format!("W/{etag}"), &format!("\"x\", {etag}"), "*"] {
                    let unchanged = server.get_with(&path, &[("If-None-Match", condition)]).await;
                    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0), "{path} {condition}");
                    assert_headers(&unchanged, &format!("etag: {etag}"), &path);
                }
                assert_eq!(server.get_with(&path, &[("If-None-Match", "\"x\"")]).await.status, 200, "{path}");
            }
        }
    }
    for path in ["/v2/", "/v2", "/v2/_catalog"] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_headers(&answer, "content-type: application/json", path);
    }
    assert_eq!(server.get("/v2/").await.text(), "{}");
    for (path, ns) in [("/v2/org/app/manifests/v1?ns=docker.io", "docker.io"), ("/v2/org/app/manifests/v1", "")] {
        assert_eq!(server.get(path).await.header("oci-namespace"), ns);
    }
}

fn assert_headers(answer: &Answer, expected: &str, what: &str) {
    assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0", "{what}");
    for (name, value) in expected.split("; ").map(|header| header.split_once(": ").expect("a header")) {
        assert_eq!(answer.header(name), value, "{what}: {name}");
    }
}

#[tokio::test]
async fn every_push_response_names_the_next_location() {
    let (_upstream, server, image) = pushed_and_mirrored().await;
    let base = "/v2/team/app/blobs/uploads/";
    let started = server.send("POST", base, &[], "").await;
    let location = started.header("location").to_owned();
    let id = started.header("docker-upload-uuid").to_owned();
    assert_eq!(location, format!("{base}{id}"), "relative");
    let session = |range: &str| format!("location: {location}; docker-upload-uuid: {id}; range: {range}");
    assert_eq!(started.status, 202);
    assert_headers(&started, &format!("{}; content-length: 0", session("0-0")), "POST");
    let bytes = Bytes::from_static(b"0123456789");
    for (method, body, status) in [("PATCH", bytes.clone(), 202), ("GET", Bytes::new(), 204)] {
        let answer = server.send(method, &location, &[], body).await;
        assert_eq!(answer.status, status);
        assert_headers(&answer, &session("0-9"), method);
    }
    let refused = server.send("PATCH", &location, &[("Content-Range", "0-9")], bytes.clone()).await;
    assert_eq!(refused.status, 416);
    assert_headers(&refused, &format!("location: {location}; range: 0-9"), "416");
    let digest = digest_of(&bytes);
    let created = format!("location: /v2/team/app/blobs/{digest}; docker-content-digest: {digest}; content-length: 0");
    let answer = server.send("PUT", &format!("{location}?digest={digest}"), &[], "").await;
    assert_eq!(answer.status, 201);
    assert_headers(&answer, &created, "PUT");
    for query in [format!("digest={digest}"), format!("mount={digest}&from=team/app")] {
        let answer = server.send("POST", &format!("{base}?{query}"), &[], bytes.clone()).await;
        assert_eq!(answer.status, 201);
        assert_headers(&answer, &created, &query);
        assert_eq!(server.get(answer.header("location")).await.body, bytes);
    }
    let kind = [("Content-Type", OCI_MANIFEST)];
    for reference in ["v2", image.digest()] {
        let path = format!("/v2/team/app/manifests/{reference}");
        let answer = server.send("PUT", &path, &kind, image.manifest.bytes.clone()).await;
        assert_eq!((answer.status, answer.header("oci-subject")), (201, ""));
        assert_headers(&answer, &format!("location: {path}; docker-content-digest: {}", image.digest()), reference);
    }
    server.client().push_blob(&server.url(""), "team/app", &empty()).await;
    let about = about(&image.manifest, "a/b", &Value::Null);
    let answer = server.client().push_manifest(&server.url(""), "team/app", "about", &about).await;
    assert_headers(&answer, &format!("oci-subject: {}", image.digest()), "about");
    let cancelled = server.send("POST", base, &[], "").await.header("location").to_owned();
    for (path, status) in [(&*cancelled, 204), ("/v2/team/app/manifests/v2", 202)] {
        let answer = server.delete(path).await;
        assert_eq!(answer.status, status);
        assert_headers(&answer, "docker-distribution-api-version: registry/2.0", path);
    }
}

#[tokio::test]
async fn every_error_of_the_specification_has_its_status_and_code() {
    let (upstream, server, image) = pushed_and_mirrored().await;
    let open =
        || async { server.send("POST", "/v2/team/app/blobs/uploads/", &[], "").await.header("location").to_owned() };
    let session = open().await;
    let uploads = "/v2/team/app/blobs/uploads/";
    upstream.always("*", "/v2/org/busy/*", Reply::error(429, "TOOMANYREQUESTS").header("Retry-After", "7"));
    upstream.always("*", "/v2/org/broken/*", Reply::error(503, "UNAVAILABLE").header("Retry-After", "30"));
    let huge = "x".repeat((4 << 20) + 1);
    let missing = format!(r#"{{"schemaVersion":2,"layers":[{{"digest":"{}","size":1}}]}}"#, digest_of(b"no"));
    for (method, path, header, body, status, code) in [
        ("GET", "/v2/team/app/blobs/{none}", "", "", 404, "BLOB_UNKNOWN"),
        ("DELETE", "/v2/team/app/blobs/{none}", "", "", 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/org/app/blobs/{none}", "", "", 404, "BLOB_UNKNOWN"),
        ("PATCH", &session, "Content-Range: 5-9", "12345", 416, "BLOB_UPLOAD_INVALID"),
        ("PUT", &format!("{session}?digest={{layer}}"), "Content-Range: 5-9", "12345", 416, "BLOB_UPLOAD_INVALID"),
        ("PATCH", &session, "Content-Range: x", "12345", 400, "BLOB_UPLOAD_INVALID"),
        ("PATCH", &session, "Content-Range: 0-9", "12345", 400, "SIZE_INVALID"),
        ("GET", &format!("{uploads}none"), "", "", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("PUT", &format!("{uploads}none?digest={{none}}"), "", "", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("DELETE", &format!("{uploads}none"), "", "", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("GET", "/v2/team/app/blobs/sha256:bad", "", "", 400, "DIGEST_INVALID"),
        ("GET", "/v2/team/app/manifests/sha256:bad", "", "", 400, "DIGEST_INVALID"),
        ("GET", "/v2/team/app/referrers/sha256:bad", "", "", 400, "DIGEST_INVALID"),
        ("POST", &format!("{uploads}?digest={{layer}}"), "", "other", 400, "DIGEST_INVALID"),
        ("PUT", "/v2/team/app/manifests/{none}", "", "{\"layers\":[]}", 400, "DIGEST_INVALID"),
        ("PUT", "/v2/team/app/manifests/x", "", &missing, 400, "MANIFEST_BLOB_UNKNOWN"),
        ("PUT", "/v2/team/app/manifests/x", "", "no JSON", 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/team/app/manifests/x", "Content-Type: a/b", r#"{"mediaType":"c/d"}"#, 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/team/app/manifests/x", "", &huge, 413, "SIZE_INVALID"),
        ("GET", "/v2/team/app/manifests/none", "", "", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/team/app/manifests/{none}", "", "", 404, "MANIFEST_UNKNOWN"),
        ("DELETE", "/v2/team/app/manifests/none", "", "", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/org/app/manifests/none", "", "", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/Team/app/manifests/v1", "", "", 400, "NAME_INVALID"),
        ("POST", "/v2/Team/blobs/uploads/", "", "", 400, "NAME_INVALID"),
        ("GET", "/v2/team/none/tags/list", "", "", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/quay.io/x/manifests/v1", "", "", 404, "NAME_UNKNOWN"),
        ("POST", "/v2/library/app/blobs/uploads/", "", "", 403, "DENIED"),
        ("POST", "/v2/docker.io/org/app/blobs/uploads/", "", "", 403, "DENIED"),
        ("DELETE", "/v2/org/app/manifests/v1", "", "", 405, "UNSUPPORTED"),
        ("POST", "/v2/team/app/tags/list", "", "", 405, "UNSUPPORTED"),
        ("GET", "/v2/team/app/unknown", "", "", 404, "UNSUPPORTED"),
        ("PUT", &session, "", "", 400, "UNSUPPORTED"),
        ("GET", "/v2/org/broken/manifests/v1", "", "", 503, "UNAVAILABLE"),
        ("GET", "/v2/org/busy/manifests/v1", "", "", 429, "TOOMANYREQUESTS"),
        ("GET", "/v2/team/app/blobs/{layer}", "Range: bytes=1000-", "", 416, "RANGE_INVALID"),
        ("GET", "/v2/team/app/tags/list?n=-1", "", "", 400, "PAGINATION_NUMBER_INVALID"),
    ] {
        let path = fill_in(path, &image);
        let header: Vec<_> = header.split_once(": ").into_iter().collect();
        let answer = server.send(method, &path, &header, body.to_owned()).await;
        assert_eq!((answer.status, answer.error_code().as_str()), (status, code), "{method} {path}: {}", answer.text());
        assert_headers(&answer, "content-type: application/json", &path);
        let errors = answer.json();
        assert_eq!(errors.as_object().unwrap().keys().collect::<Vec<_>>(), ["errors"]);
        assert!(errors["errors"][0]["message"].as_str().is_some_and(|message| !message.is_empty()), "{errors}");
        let retry_after = match status {
            429 => "7",
            503 => "30",
            _ => "",
        };
        assert_eq!(answer.header("retry-after"), retry_after);
        if method == "GET" {
            let head = server.send("HEAD", &path, &header, "").await;
            // Range does not apply to HEAD. A HEAD of an unknown name is 404 whatever the upstream says: clients begin a first
            // push with it.
            let expected = match status {
                416 => 200,
                429 | 503 => 404,
                status => status,
            };
            assert_eq!((head.status, head.body.len()), (expected, 0), "HEAD {path}");
        }
    }
    assert_eq!(server.get(&session).await.header("range"), "0-0", "errors leave the session unchanged");
    let tags = (0..65).map(|n| format!("tag=t{n}")).collect::<Vec<_>>().join("&");
    let path = format!("/v2/team/app/manifests/{}?{tags}", image.digest());
    let answer = server.send("PUT", &path, &[("Content-Type", OCI_MANIFEST)], image.manifest.bytes.clone()).await;
    assert_eq!((answer.status, answer.error_code().as_str()), (414, "UNSUPPORTED"));
    assert_eq!(server.get("/v2/team/app/tags/list").await.json()["tags"], serde_json::json!(["v1"]));
}

#[tokio::test]
async fn a_manifest_of_exactly_4_mib_is_stored_unchanged() {
    let (_upstream, server, image) = pushed_and_mirrored().await;
    let padded = |length: usize| {
        let head = format!("{{\n \"schemaVersion\" : 2,\"manifests\":[{}],\"x\":\"", image.manifest.descriptor());
        format!(
            "{head}{}\"}}\n",
            "\u{e9}".repeat((length - head.len() - 3) / 2) + &" ".repeat((length - head.len() - 3) % 2)
        )
    };
    let limit = 4 << 20;
    for (length, status) in [(limit + 1, 413), (limit, 201), (limit - 1, 201)] {
        let body = padded(length);
        assert_eq!(body.len(), length);
        for body in [body.clone().into(), crate::support::client::chunked(&Bytes::from(body.clone()), 100_000)] {
            let kind = [("Content-Type", "application/vnd.oci.image.index.v1+json; charset=utf-8")];
            let url = server.url("/v2/team/app/manifests/large");
            match server.client().try_send("PUT", &url, &kind, body).await {
                Ok(answer) => assert_eq!(answer.status, status, "{length}"),
                // The server may refuse and close before the client has sent everything.
                Err(error) => assert!(status == 413 && !error.is_timeout(), "{error:?}"),
            }
        }
        if status == 201 {
            let got = server.get("/v2/team/app/manifests/large").await;
            assert_eq!((got.header("content-type"), got.body == body.as_bytes()), (OCI_INDEX, true));
            assert_eq!(got.header("docker-content-digest"), digest_of(body.as_bytes()));
        } else {
            assert_eq!(server.get("/v2/team/app/manifests/large").await.status, 404);
        }
    }
}
