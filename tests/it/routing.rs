//! Resolution of requests to repositories, up to the upstream that is asked.

use crate::support::{Answer, Conn, Image, Reply, TestServer, Upstream};

/// docker.io, which is the default, and quay.io, each with its own images under the same names.
struct TwoUpstreams {
    hub: Upstream,
    quay: Upstream,
    server: TestServer,
    alpine: Image,
    hub_app: Image,
    quay_app: Image,
}

impl TwoUpstreams {
    async fn start() -> Self {
        Self::configured("").await
    }

    async fn configured(toml: &str) -> Self {
        let (hub, quay) = (Upstream::start().await, Upstream::start().await);
        let [alpine, hub_app, quay_app] = [1, 2, 3].map(|seed| Image::new(seed, &[100]));
        hub.add_image("library/alpine", "1", &alpine);
        hub.add_image("org/app", "1", &hub_app);
        quay.add_image("org/app", "1", &quay_app);
        let builder = TestServer::builder().upstream("docker.io", &hub).upstream("quay.io", &quay);
        let server = builder.default_upstream("docker.io").config(toml).start().await;
        Self { hub, quay, server, alpine, hub_app, quay_app }
    }

    fn requests(&self) -> usize {
        self.hub.total() + self.quay.total()
    }
}

fn assert_refused(answer: &Answer, status: u16, code: &str, what: &str) {
    assert_eq!((answer.status, answer.error_code().as_str()), (status, code), "{what}: {}", answer.text());
}

#[tokio::test]
async fn a_host_below_a_routed_domain_means_its_upstream() {
    let scene = TwoUpstreams::configured("[server]\nhost_routes = \"cache.test\"").await;
    for (host, repository, image) in [
        ("docker-io.cache.test:5000", "alpine", &scene.alpine),
        ("quay-io.cache.test", "org/app", &scene.quay_app),
        ("cache.test", "org/app", &scene.hub_app),
    ] {
        let path = format!("/v2/{repository}/manifests/1");
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let mut conn = Conn::ask(scene.server.addr(), &request).await.unwrap();
        assert_eq!(
            (conn.status, conn.take(image.manifest.bytes.len()).await),
            (200, image.manifest.bytes.clone()),
            "{host}"
        );
    }
    let before = scene.requests();
    let request = "GET /v2/org/app/manifests/1 HTTP/1.1\r\nHost: none.cache.test\r\n\r\n";
    assert_eq!(Conn::ask(scene.server.addr(), request).await.unwrap().status, 404);
    assert_eq!(scene.requests(), before, "no upstream is asked");
}

#[tokio::test]
async fn every_way_to_name_an_upstream_means_the_same_repository() {
    let scene = TwoUpstreams::start().await;
    let (alpine, hub_app, quay_app) = (&scene.alpine, &scene.hub_app, &scene.quay_app);
    for (path, image, echo) in [
        ("/v2/library/alpine/manifests/1?ns=docker.io", alpine, "docker.io"),
        ("/v2/alpine/manifests/1?ns=docker.io", alpine, "docker.io"),
        ("/v2/alpine/manifests/1?ns=index.docker.io", alpine, "index.docker.io"),
        ("/v2/org/app/manifests/1?ns=registry-1.docker.io", hub_app, "registry-1.docker.io"),
        ("/v2/org/app/manifests/1?ns=quay.io", quay_app, "quay.io"),
        ("/v2/org/app/manifests/1?ns=quay.io.", quay_app, "quay.io."),
        ("/v2/quay.io/org/app/manifests/1?ns=quay.io", quay_app, "quay.io"),
        ("/v2/quay.io/org/app/manifests/1", quay_app, ""),
        ("/quay.io/v2/org/app/manifests/1", quay_app, ""),
        ("/v2/docker.io/library/alpine/manifests/1", alpine, ""),
        ("/v2/docker.io/alpine/manifests/1", alpine, ""),
        ("/v2/index.docker.io/alpine/manifests/1", alpine, ""),
        ("/v2/docker.io/v2/library/alpine/manifests/1", alpine, ""),
        ("/docker.io/v2/library/alpine/manifests/1", alpine, ""),
        ("/v2/library/alpine/manifests/1", alpine, ""),
        ("/v2/alpine/manifests/1", alpine, ""),
        ("/v2/org/app/manifests/1", hub_app, ""),
    ] {
        let answer = scene.server.get(path).await;
        assert_eq!((answer.status, answer.header("docker-content-digest")), (200, image.digest()), "{path}");
        assert_eq!(answer.header("oci-namespace"), echo, "{path}");
    }
    // One request for each of the three repositories: content under many names is cached once.
    assert_eq!((scene.hub.total(), scene.quay.total()), (2, 1));
    let layer = &scene.quay_app.layers[0];
    let blob = scene.server.get(&format!("/v2/org/app/blobs/{}?ns=quay.io", layer.digest)).await;
    assert_eq!((blob.status, blob.header("oci-namespace")), (200, "quay.io"));
    assert_eq!(blob.body, layer.bytes);
}

#[tokio::test]
async fn an_upstream_may_be_named_by_host_and_port() {
    let upstream = Upstream::start().await;
    let image = Image::new(4, &[10]);
    upstream.add_image("team/app", "1", &image);
    let host = upstream.addr().to_string();
    let server = TestServer::builder().upstream(&host, &upstream).start().await;
    // A configured name takes precedence over the rule that loopback names are our own.
    for path in [format!("/v2/team/app/manifests/1?ns={host}"), format!("/v2/{host}/team/app/manifests/1")] {
        assert_eq!(server.get(&path).await.header("docker-content-digest"), image.digest(), "{path}");
    }
}

#[tokio::test]
async fn an_unconfigured_registry_is_never_contacted() {
    let scene = TwoUpstreams::start().await;
    let stranger = Upstream::start().await;
    stranger.add_image("org/app", "1", &scene.hub_app);
    let config = &scene.hub_app.config.digest;
    let at_stranger = stranger.addr().to_string();
    for host in ["evil.example", "evil.example:5000", "10.0.0.1", "localhost.evil.example", "", ".", "quay"] {
        for path in ["manifests/1", "tags/list", &format!("blobs/{config}"), &format!("manifests/{config}")] {
            let ns = format!("/v2/org/app/{path}?ns={host}");
            assert_refused(&scene.server.get(&ns).await, 404, "NAME_UNKNOWN", &ns);
        }
    }
    for prefix in ["/v2/evil.example", "/evil.example/v2", "/v2/localhost", "/v2/evil.example:5000", "/quay/v2"] {
        let path = format!("{prefix}/org/app/manifests/1");
        assert_refused(&scene.server.get(&path).await, 404, "NAME_UNKNOWN", &path);
    }
    // A loopback name is our own, and an address in the path is not a name. Neither leads to an upstream.
    for path in [format!("/v2/org/app/manifests/1?ns={at_stranger}"), format!("/v2/{at_stranger}/org/app/manifests/1")]
    {
        assert_eq!(scene.server.get(&path).await.status, 404, "{path}");
    }
    assert_eq!((scene.requests(), stranger.total()), (0, 0));
}

#[tokio::test]
async fn our_own_names_mean_local_repositories_only() {
    let scene = TwoUpstreams::configured("[server]\nnames = [\"cache.example\"]").await;
    let pushed = Image::new(9, &[20]);
    let base = scene.server.url("");
    scene.server.client().push_image(&base, "team/app", "1", &pushed).await;
    let own = scene.server.addr().to_string();
    for ns in ["localhost", "localhost:5000", "127.0.0.1:1", "[::1]:5000", "cache.example", "cache.example:80", &own] {
        let answer = scene.server.get(&format!("/v2/team/app/manifests/1?ns={ns}")).await;
        assert_eq!(answer.header("docker-content-digest"), pushed.digest(), "{ns}");
        assert_eq!(answer.header("oci-namespace"), ns);
        let absent = scene.server.get(&format!("/v2/org/app/manifests/1?ns={ns}")).await;
        assert_refused(&absent, 404, "MANIFEST_UNKNOWN", ns);
    }
    assert_eq!(scene.requests(), 0);
    let host = [("Host", "cache.corp:5000")];
    let answer = scene.server.get_with("/v2/team/app/manifests/1?ns=cache.corp:5000", &host).await;
    assert_eq!(answer.header("docker-content-digest"), pushed.digest());
    assert_eq!(scene.requests(), 0);
}

/// k3d pulls `k3d-reg:59813/docker.io/library/alpine` from `http://k3d-reg:5000` with `ns=k3d-reg:59813`.
#[tokio::test]
async fn a_path_that_names_an_upstream_counts_beside_our_own_name() {
    let scene = TwoUpstreams::configured("[server]\nnames = [\"cache.example\"]").await;
    let layer = &scene.alpine.layers[0];
    for ns in ["k3d-reg:59813", "k3d-reg.:1", "localhost:1", "CACHE.example:80", "cache.example."] {
        for path in ["/v2/docker.io/library/alpine", "/docker.io/v2/library/alpine", "/v2/docker.io/v2/library/alpine"]
        {
            let host = [("Host", "k3d-reg:5000")];
            let manifest = scene.server.get_with(&format!("{path}/manifests/1?ns={ns}"), &host).await;
            assert_eq!(manifest.header("docker-content-digest"), scene.alpine.digest(), "{path} {ns}");
            let blob = scene.server.get_with(&format!("{path}/blobs/{}?ns={ns}", layer.digest), &host).await;
            assert_eq!(blob.body, layer.bytes, "{path} {ns}");
        }
    }
}

#[tokio::test]
async fn a_local_repository_takes_precedence_over_the_default_upstream() {
    let scene = TwoUpstreams::start().await;
    let pushed = Image::new(9, &[20]);
    scene.server.client().push_image(&scene.server.url(""), "org/app", "1", &pushed).await;
    let digest = async |path: &str| scene.server.get(path).await.header("docker-content-digest").to_owned();
    assert_eq!(digest("/v2/org/app/manifests/1").await, pushed.digest());
    assert_eq!(scene.requests(), 0);
    assert_eq!(digest("/v2/org/app/manifests/1?ns=docker.io").await, scene.hub_app.digest());
    assert_eq!(digest("/v2/docker.io/org/app/manifests/1").await, scene.hub_app.digest());
    // It stays local when it is empty.
    scene.server.delete(&format!("/v2/org/app/manifests/{}", pushed.digest())).await;
    assert_refused(&scene.server.get("/v2/org/app/manifests/1").await, 404, "MANIFEST_UNKNOWN", "emptied");
    assert_eq!(scene.server.get("/v2/org/app/tags/list").await.json()["tags"], serde_json::json!([]));
}

#[tokio::test]
async fn names_in_local_namespaces_are_local_even_when_empty() {
    let scene = TwoUpstreams::configured("[local]\nnamespaces = [\"org/**\"]").await;
    assert_refused(&scene.server.get("/v2/org/app/manifests/1").await, 404, "MANIFEST_UNKNOWN", "org/app");
    assert_refused(&scene.server.get("/v2/org/app/tags/list").await, 404, "NAME_UNKNOWN", "org/app");
    assert_eq!(scene.requests(), 0);
    assert_eq!(scene.server.get("/v2/alpine/manifests/1").await.status, 200);
}

#[tokio::test]
async fn without_a_default_upstream_a_bare_name_is_local() {
    let scene = TwoUpstreams::configured("default_upstream = \"none\"").await;
    for path in ["manifests/1", &format!("blobs/{}", scene.alpine.config.digest), "tags/list"] {
        assert_eq!(scene.server.get(&format!("/v2/library/alpine/{path}")).await.status, 404, "{path}");
    }
    assert_eq!(scene.requests(), 0);
    assert_eq!(scene.server.get("/v2/docker.io/library/alpine/manifests/1").await.status, 200);
}

#[tokio::test]
async fn a_first_push_does_not_depend_on_the_default_upstream() {
    let scene = TwoUpstreams::start().await;
    let server = &scene.server;
    let blob = format!("/v2/team/new/blobs/{}", scene.alpine.config.digest);
    assert_eq!(server.head(&blob).await.status, 404);
    assert_refused(&server.get("/v2/team/new/tags/list").await, 404, "NAME_UNKNOWN", "tags");
    assert_eq!(scene.requests(), 0, "the repository is unknown, so no upstream is asked");
    let manifest = "/v2/team/new/manifests/1";
    for (trouble, honest) in [
        (Reply::error(500, "UNKNOWN"), 502),
        (Reply::error(503, "UNAVAILABLE"), 503),
        (Reply::error(429, "TOOMANYREQUESTS").header("Retry-After", "0"), 429),
        (Reply::hang_up(), 502),
    ] {
        server.until_available("docker.io").await;
        scene.hub.always("*", "/v2/*", trouble);
        assert_eq!(server.head(manifest).await.status, 404);
        assert_eq!(server.get(manifest).await.status, honest);
        scene.hub.end_scripts();
    }
    // A name with an explicit upstream gets that upstream's response, for GET and HEAD alike.
    server.until_available("docker.io").await;
    scene.hub.always("*", "/v2/*", Reply::error(500, "UNKNOWN"));
    assert_eq!(server.head("/v2/docker.io/team/new/manifests/1").await.status, 502);
    scene.hub.go_down().await;
    assert_eq!(server.head(manifest).await.status, 404);
    assert_eq!(server.get(manifest).await.status, 503);
    let base = server.url("");
    server.client().push_image(&base, "team/new", "1", &scene.quay_app).await;
    assert_eq!(server.get(manifest).await.header("docker-content-digest"), scene.quay_app.digest());
}

#[tokio::test]
async fn a_first_push_succeeds_with_refused_upstream_credentials() {
    let hub = Upstream::start().await;
    hub.require_basic("ann", "right");
    let builder = TestServer::builder().upstream("docker.io", &hub).default_upstream("docker.io");
    let server = builder.config("[upstream.\"docker.io\"]\nusername = \"ann\"\npassword = \"wrong\"").start().await;
    assert_eq!(server.head("/v2/team/new/manifests/1").await.status, 404);
}

#[tokio::test]
async fn ambiguous_paths_are_refused() {
    let scene = TwoUpstreams::start().await;
    for path in [
        "/v2/library%2Falpine/manifests/1",
        "/v2/library/alpine/manifests/%2531",
        "/%76%32/library%2falpine/manifests/1",
        "/v2//library/alpine/manifests/1",
        "/v2/library//alpine/manifests/1",
        "/v2/library/alpine/manifests//1",
        "//v2/library/alpine/manifests/1",
        "/v2/./library/alpine/manifests/1",
        "/v2/library/../library/alpine/manifests/1",
        "/v2/../../etc/passwd",
        "/v2/library/alpine/manifests/..",
        "/v2/library/alpine/blobs/.",
        "/v2/..%2f..%2fetc/manifests/passwd",
    ] {
        let mut conn = Conn::get(scene.server.addr(), path).await;
        let (body, _) = conn.rest().await;
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((conn.status, body["errors"][0]["code"].as_str()), (400, Some("NAME_INVALID")), "{path}");
    }
    assert_eq!(scene.requests(), 0);
    for path in ["/v2/", "/v2", "/docker.io/v2/", "/v2/?ns=docker.io"] {
        let answer = scene.server.get(path).await;
        assert_eq!((answer.status, answer.text(), answer.header("content-type")), (200, "{}", "application/json"));
    }
}

#[tokio::test]
async fn an_empty_registry_in_ns_is_named_in_the_error() {
    let upstream = Upstream::start().await;
    let server = TestServer::mirror_of(&upstream).await;
    let answer = server.get("/v2/org/app/manifests/1?ns=").await;
    assert_eq!(answer.status, 404);
    assert!(answer.text().contains("for an empty host; write a registry's host into ns"), "{}", answer.text());
}

/// Only content makes a name local. Otherwise every client could hide an image of the default upstream by opening an
/// upload.
#[tokio::test]
async fn an_upload_without_content_makes_no_name_local() {
    let mut scene = TwoUpstreams::start().await;
    let zeros = format!("sha256:{}", "0".repeat(64));
    let uploads = "/v2/org/app/blobs/uploads/";
    let assert_mirrored = async |scene: &TwoUpstreams, what: &str| {
        let answer = scene.server.get("/v2/org/app/manifests/1").await;
        assert_eq!((answer.status, answer.header("docker-content-digest")), (200, scene.hub_app.digest()), "{what}");
        assert_eq!(scene.server.get("/v2/_catalog").await.json()["repositories"], serde_json::json!([]), "{what}");
    };
    let open = scene.server.send("POST", uploads, &[], "").await;
    assert_eq!(scene.server.send("PATCH", open.header("location"), &[], "some bytes").await.status, 202);
    let cancelled = scene.server.send("POST", uploads, &[], "").await;
    assert_eq!(scene.server.delete(cancelled.header("location")).await.status, 204);
    let wrong = scene.server.send("POST", &format!("{uploads}?digest={zeros}"), &[], "x").await;
    assert_refused(&wrong, 400, "DIGEST_INVALID", "wrong digest");
    let mount = scene.server.send("POST", &format!("{uploads}?mount={zeros}&from=org/other"), &[], "").await;
    assert_eq!(mount.status, 202);
    let put = scene.server.send("PUT", &format!("{}?digest={zeros}", mount.header("location")), &[], "x").await;
    assert_refused(&put, 400, "DIGEST_INVALID", "wrong digest of a session");
    let refused = scene.server.send("PUT", "/v2/org/app/manifests/1", &[("Content-Type", "application/x")], "{").await;
    assert_refused(&refused, 400, "MANIFEST_INVALID", "a manifest that is refused");
    assert_mirrored(&scene, "at once").await;
    scene.server.restart().await;
    assert_mirrored(&scene, "after a restart").await;
}

/// Where nothing can be pushed under a name, a HEAD or a list of the default upstream is no beginning of a push.
#[tokio::test]
async fn where_no_push_is_possible_the_default_upstream_is_asked() {
    let image = Image::new(1, &[10]);
    for (repo, settings) in [
        ("org/app", "[local]\nnamespaces = [\"team/**\"]"),
        ("library/app", ""),
        ("org/app", "[push]\nenabled = false"),
    ] {
        let upstream = Upstream::start().await;
        upstream.add_image(repo, "1", &image);
        let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
        let server = builder.config(settings).start().await;
        let blob = format!("/v2/{repo}/blobs/{}", image.layers[0].digest);
        assert_eq!(server.head(&blob).await.status, 200, "{repo}, {settings}");
        assert_eq!(server.get(&format!("/v2/{repo}/tags/list")).await.status, 200, "{repo}, {settings}");
        upstream.go_down().await;
        assert_eq!(server.head(&format!("/v2/{repo}/manifests/cold")).await.status, 503, "{repo}, {settings}");
    }
}
