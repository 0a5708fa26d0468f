//! Access by repository: pushed and cached content share bytes, but neither names nor rights.

use bytes::Bytes;

use crate::disk::blob_file;
use crate::support::{Answer, Content, Image, TestServer, Upstream};

fn assert_error(answer: &Answer, status: u16, code: &str, what: &str) {
    assert_eq!((answer.status, answer.error_code().as_str()), (status, code), "{what}: {}", answer.text());
}

/// Every kind of request that starts a push.
async fn push_attempts(server: &TestServer, repo: &str) -> Vec<Answer> {
    let image = Image::new(9, &[5]);
    let put = format!("/v2/{repo}/manifests/v1");
    let post = format!("/v2/{repo}/blobs/uploads/");
    let whole = format!("{post}?digest={}", image.config.digest);
    let kind = [("Content-Type", image.manifest.media_type.as_str())];
    vec![
        server.send("POST", &post, &[], Bytes::new()).await,
        server.send("POST", &whole, &[], image.config.bytes.clone()).await,
        server.send("PUT", &put, &kind, image.manifest.bytes.clone()).await,
    ]
}

async fn mirror(toml: &str, repo: &str, image: &Image) -> (Upstream, TestServer) {
    let upstream = Upstream::start().await;
    upstream.add_image(repo, "1", image);
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server = builder.config(toml).start().await;
    (upstream, server)
}

#[tokio::test]
async fn pushes_to_mirrored_names_are_refused() {
    let image = Image::new(1, &[10]);
    let (upstream, server) = mirror("", "org/app", &image).await;
    server.get("/v2/org/app/manifests/1").await;
    for (repo, reason) in [
        ("library/alpine", "library/"),
        ("docker.io/library/alpine", "docker.io"),
        ("docker.io/team/app", "docker.io"),
        ("registry-1.docker.io/team/app", "docker.io"),
        ("org/app", "org/app"),
    ] {
        for answer in push_attempts(&server, repo).await {
            assert_error(&answer, 403, "DENIED", repo);
            let message = answer.json()["errors"][0]["message"].as_str().unwrap().to_owned();
            assert!(message.contains(reason), "{repo}: {message}");
        }
    }
    let ns = server.send("POST", "/v2/team/app/blobs/uploads/?ns=docker.io", &[], Bytes::new()).await;
    assert_error(&ns, 403, "DENIED", "ns");
    let prefix = server.send("POST", "/docker.io/v2/team/app/blobs/uploads/", &[], Bytes::new()).await;
    assert_error(&prefix, 403, "DENIED", "prefix");
    let unknown = server.send("POST", "/v2/team/app/blobs/uploads/?ns=evil.example", &[], Bytes::new()).await;
    assert_error(&unknown, 404, "NAME_UNKNOWN", "an unknown registry");
    upstream.forget();
    // A mirror client never sends a name of one component, and team/app is unknown.
    for repo in ["alpine", "team/app", "evil.example/app"] {
        server.client().push_image(&server.url(""), repo, "1", &image).await;
        assert_eq!(server.get(&format!("/v2/{repo}/manifests/1")).await.body, image.manifest.bytes, "{repo}");
    }
    assert_eq!(upstream.total(), 0);
}

#[tokio::test]
async fn pushes_are_accepted_in_configured_namespaces_only() {
    let image = Image::new(1, &[10]);
    let (_upstream, server) = mirror("[local]\nnamespaces = [\"team/**\", \"library/own\"]", "org/app", &image).await;
    for repo in ["other/app", "alpine", "team"] {
        for answer in push_attempts(&server, repo).await {
            assert_error(&answer, 403, "DENIED", repo);
            assert!(answer.text().contains("namespaces"), "{}", answer.text());
        }
    }
    for repo in ["team/app", "team/a/b", "library/own"] {
        server.client().push_image(&server.url(""), repo, "1", &image).await;
    }
}

#[tokio::test]
async fn disabled_pushes_are_unsupported() {
    let image = Image::new(1, &[10]);
    let (_upstream, server) = mirror("[push]\nenabled = false", "org/app", &image).await;
    for answer in push_attempts(&server, "team/app").await {
        assert_error(&answer, 405, "UNSUPPORTED", "team/app");
    }
    assert_eq!(server.get("/v2/org/app/manifests/1").await.status, 200);
}

#[tokio::test]
async fn a_blob_is_mounted_only_from_readable_repositories() {
    let [pushed, cached, secret] = [1, 2, 3].map(|seed| Image::new(seed, &[1000]));
    let (upstream, server) = mirror("", "org/app", &cached).await;
    upstream.add_image("org/secret", "1", &secret);
    server.client().push_image(&server.url(""), "team/from", "1", &pushed).await;
    server.get("/v2/org/app/manifests/1").await;
    let cached_layer = &cached.layers[0];
    server.get(&format!("/v2/org/app/blobs/{}", cached_layer.digest)).await;
    upstream.forget();
    let mount = async |digest: &str, from: &str| {
        let path = format!("/v2/team/to/blobs/uploads/?mount={digest}{from}");
        server.send("POST", &path, &[], Bytes::new()).await
    };
    for (what, digest, from) in [
        ("without from, and never pushed", &cached_layer.digest, ""),
        ("from a repository without it", &pushed.layers[0].digest, "&from=team/other"),
        ("from an unknown repository", &pushed.layers[0].digest, "&from=team/none"),
        ("from a mirrored repository without it", &pushed.layers[0].digest, "&from=org/app"),
        ("cached for another repository", &cached_layer.digest, "&from=org/other"),
        ("cached, from a local repository", &cached_layer.digest, "&from=team/from"),
        ("not stored yet", &cached.config.digest, "&from=org/app"),
        ("never seen", &secret.config.digest, "&from=org/secret"),
        ("from an invalid name", &pushed.layers[0].digest, "&from=../x"),
        ("from an unknown registry", &pushed.layers[0].digest, "&from=evil.example/x"),
    ] {
        let answer = mount(digest, from).await;
        assert_eq!(answer.status, 202, "{what}");
        let location = answer.header("location").to_owned();
        assert!(location.starts_with("/v2/team/to/blobs/uploads/"), "{what}");
        assert_eq!(server.head(&format!("/v2/team/to/blobs/{digest}")).await.status, 404, "{what}");
        assert_eq!(server.delete(&location).await.status, 204);
    }
    assert_error(&mount("sha256:1", "&from=team/from").await, 400, "DIGEST_INVALID", "a bad digest");
    for (content, from) in [
        (&pushed.layers[0], "&from=team/from"),
        (&pushed.config, "&from=localhost:5000/x&from=team/from"),
        (cached_layer, "&from=org/app"),
        (cached_layer, "&from=docker.io/org/app"),
    ] {
        let answer = mount(&content.digest, from).await;
        if from.contains("localhost") {
            assert_eq!(answer.status, 202, "only the first `from` counts");
            continue;
        }
        assert_eq!((answer.status, answer.header("docker-content-digest")), (201, content.digest.as_str()), "{from}");
        let path = format!("/v2/team/to/blobs/{}", content.digest);
        assert_eq!(answer.header("location"), path);
        assert_eq!(server.get(&path).await.body, content.bytes);
    }
    assert_eq!(upstream.total(), 0, "a mount sends no upstream request");
    // A mounted blob is independent of its source.
    server.delete(&format!("/v2/team/from/blobs/{}", pushed.layers[0].digest)).await;
    assert_eq!(server.get(&format!("/v2/team/to/blobs/{}", pushed.layers[0].digest)).await.status, 200);
}

#[tokio::test]
async fn a_mount_from_anywhere_finds_pushed_content_only() {
    let [pushed, cached] = [1, 2].map(|seed| Image::new(seed, &[1000]));
    let (_upstream, server) = mirror("", "org/app", &cached).await;
    server.client().push_image(&server.url(""), "team/from", "1", &pushed).await;
    server.get("/v2/org/app/manifests/1").await;
    for (image, status) in [(&pushed, 201), (&cached, 202)] {
        let digest = &image.layers[0].digest;
        server.get(&format!("/v2/org/app/blobs/{digest}")).await;
        let path = format!("/v2/team/to/blobs/uploads/?mount={digest}");
        assert_eq!(server.send("POST", &path, &[], Bytes::new()).await.status, status);
    }
    server.delete(&format!("/v2/team/from/blobs/{}", pushed.config.digest)).await;
    let path = format!("/v2/team/to/blobs/uploads/?mount={}", pushed.config.digest);
    assert_eq!(server.send("POST", &path, &[], Bytes::new()).await.status, 202, "no repository has it any more");
}

#[tokio::test]
async fn a_blob_without_its_file_is_not_mounted() {
    let image = Image::new(1, &[1000]);
    let server = TestServer::builder().start().await;
    server.client().push_image(&server.url(""), "team/from", "1", &image).await;
    let digest = &image.layers[0].digest;
    std::fs::remove_file(blob_file(server.data_dir(), digest)).unwrap();
    let path = format!("/v2/team/to/blobs/uploads/?mount={digest}&from=team/from");
    assert_eq!(server.send("POST", &path, &[], Bytes::new()).await.status, 202);
}

#[tokio::test]
async fn pushed_content_is_readable_only_in_its_repository() {
    let [pushed, cached] = [1, 2].map(|seed| Image::new(seed, &[1000]));
    let (upstream, server) = mirror("[cache]\nnegative_ttl = \"0s\"", "org/app", &cached).await;
    server.client().push_image(&server.url(""), "team/a", "1", &pushed).await;
    server.client().push_image(&server.url(""), "team/b", "1", &Image::new(3, &[5])).await;
    let contents = |image: &Image| {
        let blobs: Vec<Content> = image.blobs().cloned().collect();
        [vec![format!("manifests/{}", image.digest())], blobs.iter().map(|b| format!("blobs/{}", b.digest)).collect()]
            .concat()
    };
    for content in contents(&pushed) {
        assert_eq!(server.get(&format!("/v2/team/b/{content}")).await.status, 404, "{content} in team/b");
        // The upstream is asked and denies it.
        let requested = upstream.total();
        assert_eq!(server.get(&format!("/v2/org/app/{content}")).await.status, 404, "{content} in org/app");
        assert!(upstream.total() > requested);
        upstream.go_down().await;
        assert_eq!(
            server.get(&format!("/v2/org/app/{content}")).await.status,
            404,
            "{content}: that it is absent is known"
        );
        upstream.come_back().await;
        server.until_available("docker.io").await;
        assert_eq!(server.get(&format!("/v2/team/a/{content}")).await.status, 200, "{content}");
    }
    // Conversely, cached content belongs to no local repository and to no other mirrored one.
    for content in contents(&cached) {
        assert_eq!(server.get(&format!("/v2/org/app/{content}")).await.status, 200);
    }
    for content in contents(&cached) {
        assert_eq!(server.get(&format!("/v2/team/a/{content}")).await.status, 404, "{content} in team/a");
        assert_eq!(server.get(&format!("/v2/org/other/{content}")).await.status, 404, "{content} in org/other");
    }
}

#[tokio::test]
async fn stored_bytes_are_readable_once_upstream_confirms() {
    let image = Image::new(1, &[1000]);
    let (upstream, server) = mirror("", "org/app", &image).await;
    server.client().push_image(&server.url(""), "team/a", "1", &image).await;
    for (content, bytes) in [
        (format!("blobs/{}", image.layers[0].digest), &image.layers[0].bytes),
        (format!("manifests/{}", image.digest()), &image.manifest.bytes),
    ] {
        for requested in ["HEAD", ""] {
            upstream.forget();
            assert_eq!(server.get(&format!("/v2/org/app/{content}")).await.body, *bytes);
            let methods: Vec<_> = upstream.requests().into_iter().map(|seen| seen.method).collect();
            assert_eq!(methods.concat(), requested, "{content}");
        }
    }
    // Deleting it upstream or here leaves the other side unchanged.
    server.delete(&format!("/v2/team/a/manifests/{}", image.digest())).await;
    assert_eq!(server.get(&format!("/v2/org/app/manifests/{}", image.digest())).await.status, 200);
}
