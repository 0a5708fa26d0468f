//! Invalid input gets the code of the specification and a JSON body, never a 5xx, and creates no file.

use bytes::Bytes;
use serde_json::Value;

use crate::disk::{blob_file, files_below, wait_until_idle};
use crate::scene::pushed_and_mirrored;
use crate::support::image::OCI_MANIFEST;
use crate::support::{Conn, Image, TestServer, Upstream};

/// A server with a pushed image and the same image cached.
async fn scene() -> (Upstream, TestServer, Image) {
    let (upstream, server, image) = pushed_and_mirrored().await;
    server.get("/v2/org/app/manifests/v1").await;
    for blob in image.blobs() {
        server.get(&format!("/v2/org/app/blobs/{}", blob.digest)).await;
    }
    wait_until_idle(server.data_dir()).await;
    (upstream, server, image)
}

/// Status and error code of the response to a request line that is sent unchanged.
async fn ask(server: &TestServer, method: &str, target: &str, headers: &str) -> (u16, String) {
    let request = format!("{method} {target} HTTP/1.1\r\nHost: registry\r\n{headers}\r\n");
    let mut conn =
        Conn::ask(server.addr(), &request).await.unwrap_or_else(|error| panic!("{method} {target}: {error}"));
    let (status, version) = (conn.status, conn.header("docker-distribution-api-version").to_owned());
    let (body, _) = conn.rest().await;
    assert_eq!(version, "registry/2.0", "{method} {target}");
    if method == "HEAD" || status < 400 {
        return (status, String::new());
    }
    assert_eq!(conn.header("content-type"), "application/json", "{method} {target}");
    let body: Value = serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{method} {target}: not JSON: {body:?}"));
    let error = &body["errors"][0];
    let message = error["message"].as_str().expect("a message");
    let data = server.data_dir().to_str().expect("a plain path");
    assert!(!message.is_empty() && !message.contains(data) && !message.contains(".rs"), "{message}");
    (status, error["code"].as_str().expect("a code").to_owned())
}

async fn assert_all(server: &TestServer, requests: impl IntoIterator<Item = (&str, String)>, status: u16, code: &str) {
    for (method, target) in requests {
        let answer = ask(server, method, &target, "").await;
        let code = if method == "HEAD" { "" } else { code };
        assert_eq!(answer, (status, code.to_owned()), "{method} {target}");
    }
}

#[tokio::test]
async fn invalid_names_are_refused_without_a_trace() {
    let (upstream, server, image) = scene().await;
    let before = files_below(server.data_dir());
    upstream.forget();
    let digest = image.digest();
    let long = "a".repeat(256);
    for name in [
        "UPPER/app",
        "a_-b/c",
        ".hidden/app",
        "team/_tags",
        "_catalog",
        "a..b/c",
        "-a/b",
        "a-/b",
        "team/app;x",
        "a@b/c",
        "team/app/_manifests/sha256",
        "a:b",
        "\u{e4}/b",
        "~root/x",
        "a$b/c",
        &long,
    ] {
        // A first component that looks like a host means an unconfigured registry.
        let host = name.split('/').next().is_some_and(|first| first.contains(['.', ':'])) && name.contains('/');
        let (status, code) = if host { (404, "NAME_UNKNOWN") } else { (400, "NAME_INVALID") };
        let reads = ["manifests/v1", "tags/list", &format!("manifests/{digest}"), &format!("blobs/{digest}")];
        let reads = reads.map(|rest| ("GET", format!("/v2/{name}/{rest}")));
        assert_all(&server, reads, status, code).await;
        let writes = [("POST", "blobs/uploads/"), ("PUT", "manifests/v1")];
        let writes = writes.map(|(method, rest)| (method, format!("/v2/{name}/{rest}")));
        assert_all(&server, writes, 400, "NAME_INVALID").await;
    }
    for repo in ["team/app", "org/app"] {
        for tag in [".x", "-x", "a b".replace(' ', "+").as_str(), "v1~", "v1@x", &"t".repeat(129), "\u{fc}"] {
            let reads = ["GET", "HEAD"].map(|method| (method, format!("/v2/{repo}/manifests/{tag}")));
            assert_all(&server, reads, 404, "MANIFEST_UNKNOWN").await;
        }
        let hex = "a".repeat(64);
        for digest in [
            "sha256:",
            "sha256:xyz",
            ":",
            &format!("sha256:{}", &hex[1..]),
            &format!("sha256:{hex}a"),
            &format!("sha256:{}", hex.to_uppercase()),
            &format!("sha512:{hex}"),
            &format!("md5:{hex}"),
            &format!("SHA256:{hex}"),
            &format!("blake3:{hex}"),
            &format!("sha256:sha256:{hex}"),
            &format!("v1@sha256:{hex}"),
        ] {
            let digests = ["blobs", "manifests"].map(|kind| format!("/v2/{repo}/{kind}/{digest}"));
            let requests = digests.into_iter().flat_map(|path| [("GET", path.clone()), ("HEAD", path)]);
            assert_all(&server, requests, 400, "DIGEST_INVALID").await;
        }
        assert_all(&server, [("GET", format!("/v2/{repo}/blobs/latest"))], 400, "DIGEST_INVALID").await;
    }
    for id in ["x", "00000000-0000-0000-0000-000000000000", "%00", "..", "a"] {
        let (status, code) =
            if matches!(id, "%00" | "..") { (400, "NAME_INVALID") } else { (404, "BLOB_UPLOAD_UNKNOWN") };
        let requests = ["GET", "PATCH", "DELETE"].map(|method| (method, format!("/v2/team/app/blobs/uploads/{id}")));
        assert_all(&server, requests, status, code).await;
    }
    for (query, code) in [
        ("digest=sha256:12", "DIGEST_INVALID"),
        ("digest=", "DIGEST_INVALID"),
        ("digest=..%2f..%2fetc", "DIGEST_INVALID"),
        ("mount=x&from=team/app", "DIGEST_INVALID"),
        ("digest-algorithm=md5", "DIGEST_INVALID"),
    ] {
        assert_all(&server, [("POST", format!("/v2/team/app/blobs/uploads/?{query}"))], 400, code).await;
    }
    for ns in ["%ff%00", "docker.io%0d%0aX-Evil:1", "../local", "docker.io/..", "user@docker.io", "http://docker.io"] {
        assert_all(&server, [("GET", format!("/v2/org/app/tags/list?ns={ns}"))], 404, "NAME_UNKNOWN").await;
    }
    assert_eq!(files_below(server.data_dir()), before);
    assert_eq!(upstream.total(), 0);
}

#[tokio::test]
async fn missing_and_unsupported_resources_have_their_codes() {
    let (_upstream, server, image) = scene().await;
    let digest = image.digest();
    for (path, allowed) in [
        ("/v2/".to_owned(), "GET HEAD"),
        ("/v2/_catalog".to_owned(), "GET HEAD"),
        ("/v2/team/app/tags/list".to_owned(), "GET HEAD"),
        ("/v2/team/app/manifests/v1".to_owned(), "GET HEAD PUT DELETE"),
        (format!("/v2/team/app/blobs/{digest}"), "GET HEAD DELETE"),
        ("/v2/team/app/blobs/uploads/".to_owned(), "POST"),
        ("/v2/team/app/blobs/uploads/x".to_owned(), "GET HEAD PATCH PUT DELETE"),
    ] {
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW", "get"] {
            if !allowed.split(' ').any(|allowed| allowed == method) {
                let expected = if method == "HEAD" { "" } else { "UNSUPPORTED" };
                assert_eq!(ask(&server, method, &path, "").await, (405, expected.to_owned()), "{method} {path}");
                let answer = server.send(method, &path, &[], "").await;
                assert_eq!(answer.header("allow"), allowed.replace(' ', ", "), "{method} {path}");
            }
        }
    }
    for path in
        ["/v3/", "/v2/team/app", "/v2/manifests/v1", "/x/y/v2/", "/v2/team/app/manifests/v1/", "/v1/_ping", "/etc"]
    {
        assert_eq!(ask(&server, "GET", path, "").await, (404, "UNSUPPORTED".to_owned()), "{path}");
    }
}

#[tokio::test]
async fn malformed_headers_are_ignored_or_refused() {
    let (_upstream, server, image) = scene().await;
    let manifest = "/v2/team/app/manifests/v1";
    for headers in [
        "Accept: \u{1F40B}, */*; q=x\r\n",
        "If-None-Match: \u{e4}\r\n",
        "If-None-Match: ,,\"\r\n",
        "Via: ,\r\n",
        "Via: 1.1\r\n",
        "Authorization: Basic !!!\r\n",
        "Range: bytes=0-1\r\n",
        "Content-Length: 0\r\n",
        "X-Forwarded-Host: evil.example\r\n",
    ] {
        assert_eq!(ask(&server, "GET", manifest, headers).await.0, 200, "{headers}");
    }
    let location = server.client().start_upload(&server.url(""), "team/app").await.replace(&server.url(""), "");
    for range in ["", "a-b", "5", "bytes 5", "99999999999999999999-1", "0-99999999999999999999", "-", "1-0", "\u{e4}-1"]
    {
        let answer =
            ask(&server, "PATCH", &location, &format!("Content-Range: {range}\r\nContent-Length: 0\r\n")).await;
        // A header value that is not text is ignored.
        let expected = if range.is_ascii() { (400, "BLOB_UPLOAD_INVALID".to_owned()) } else { (202, String::new()) };
        assert_eq!(answer, expected, "Content-Range: {range:?}");
    }
    for kind in ["nonsense", "\u{e4}/x", "a/b/c", "", "application/json; x=\"", &format!("a/{}", "x".repeat(400))] {
        let path = format!("/v2/team/app/manifests/{}", image.digest());
        let bytes = image.manifest.bytes.clone();
        let headers = format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", bytes.len());
        let request = format!("PUT {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n{}", String::from_utf8_lossy(&bytes));
        let conn = Conn::ask(server.addr(), &request).await.unwrap();
        assert!(matches!(conn.status, 201 | 400), "{kind}: {}", conn.status);
    }
    // Whatever type it was pushed with, it is served with one that clients can read.
    assert!(server.get(manifest).await.header("content-type").starts_with("application/"));
    let wrong = server.send("PUT", manifest, &[("Content-Type", OCI_MANIFEST)], Bytes::from_static(b"\0\0")).await;
    assert_eq!((wrong.status, wrong.error_code().as_str()), (400, "MANIFEST_INVALID"));
}

#[tokio::test]
async fn a_malformed_range_is_ignored() {
    let (_upstream, server, image) = scene().await;
    let layer = &image.layers[0];
    for repo in ["team/app", "org/app"] {
        let path = format!("/v2/{repo}/blobs/{}", layer.digest);
        for range in [
            "",
            "bytes",
            "bytes=",
            "bytes=a-b",
            "bytes=5",
            "bytes=--5",
            "bytes 0-5",
            "items=0-5",
            "0-5",
            "bytes=0-1,x",
            "bytes=+1-5",
            "bytes=0x1-0x2",
        ] {
            let answer = server.get_with(&path, &[("Range", range)]).await;
            assert!(answer.status == 200 && answer.body == layer.bytes, "{repo} {range}: {}", answer.status);
        }
        for (range, first, last) in [
            ("bytes=0-0", 0, 0),
            ("bytes=990-", 990, 999),
            ("bytes=-10", 990, 999),
            ("bytes=5-99999999999999999999", 5, 999),
        ] {
            let answer = server.get_with(&path, &[("Range", range)]).await;
            assert_eq!((answer.status, &answer.body[..]), (206, &layer.bytes[first..=last]), "{repo} {range}");
            assert_eq!(answer.header("content-range"), format!("bytes {first}-{last}/1000"));
        }
        for range in ["bytes=1000-", "bytes=99999999999999999999-", "bytes=-0"] {
            let answer = server.get_with(&path, &[("Range", range)]).await;
            assert_eq!((answer.status, answer.error_code().as_str()), (416, "RANGE_INVALID"), "{repo} {range}");
            assert_eq!(answer.header("content-range"), "bytes */1000");
        }
        let etag = format!("\"{}\"", layer.digest);
        for (condition, status) in [(etag.as_str(), 206), ("\"other\"", 200), ("Sat, 01 Jan 2000 00:00:00 GMT", 200)] {
            let headers = [("Range", "bytes=0-9"), ("If-Range", condition)];
            assert_eq!(server.get_with(&path, &headers).await.status, status, "{repo} {condition}");
        }
    }
}

#[tokio::test]
async fn an_internal_error_reveals_no_path() {
    let (_upstream, server, image) = scene().await;
    let tags = server.data_dir().join("repositories/local/team/app/_tags");
    std::fs::create_dir(tags.join("broken")).unwrap();
    // A folder in place of a tag's file.
    assert_eq!(ask(&server, "GET", "/v2/team/app/manifests/broken", "").await, (404, "MANIFEST_UNKNOWN".to_owned()));
    let uploads = server.data_dir().join("uploads");
    std::fs::remove_dir_all(&uploads).unwrap();
    // A file in place of a folder: a missing folder would be created again.
    std::fs::write(&uploads, "").unwrap();
    let post = "Content-Length: 0\r\n";
    assert_eq!(ask(&server, "POST", "/v2/team/app/blobs/uploads/", post).await, (500, "UNKNOWN".to_owned()));
    std::fs::remove_file(&uploads).unwrap();
    std::fs::create_dir(&uploads).unwrap();
    // A folder in place of a blob's file.
    let file = blob_file(server.data_dir(), &image.layers[0].digest);
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let blob = format!("/v2/team/app/blobs/{}", image.layers[0].digest);
    assert_eq!(ask(&server, "GET", &blob, "").await, (404, "BLOB_UNKNOWN".to_owned()));
    assert_eq!(ask(&server, "GET", "/v2/team/app/manifests/v1", "").await.0, 200, "the next request succeeds");
}
