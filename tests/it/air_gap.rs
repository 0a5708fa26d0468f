//! Requests of clusters to a registry that they know under another name: `ns` of k3d and k3s, and networks without the
//! internet.

use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Conn, Image, TestServer, Upstream};

/// The statuses of a pull by tag and digests, as containerd asks.
async fn pulled(server: &TestServer, host: &str, repo: &str, image: &Image, ns: &str) -> Vec<u16> {
    let ns = ns.replace(':', "%3A");
    let mut statuses = Vec::new();
    for (method, content) in [
        ("HEAD", "manifests/v1".to_owned()),
        ("GET", format!("manifests/{}", image.digest())),
        ("GET", format!("blobs/{}", image.layers[0].digest)),
        ("GET", format!("blobs/{}", image.config.digest.replace(':', "%3A"))),
    ] {
        let request = format!("{method} /v2/{repo}/{content}?ns={ns} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        statuses.push(Conn::ask(server.addr(), &request).await.unwrap().status);
    }
    statuses
}

const ALL: [u16; 4] = [200; 4];
const NONE: [u16; 4] = [404; 4];

#[tokio::test]
async fn our_host_by_another_port_is_this_server() {
    let hub = Upstream::start().await;
    let builder = TestServer::builder().upstream("docker.io", &hub).default_upstream("docker.io");
    let server = builder.config("[server]\nnames = [\"cache.example:8443\"]").start().await;
    let image = Image::new(1, &[100]);
    server.client().push_image(&server.url(""), "mynginx", "v1", &image).await;
    for (host, ns, expected) in [
        ("k3d-reg:5000", "k3d-reg:59813", ALL),
        ("k3d-reg.localhost:5000", "k3d-reg.localhost:12345", ALL),
        ("10.0.0.5:5000", "10.0.0.5:32000", ALL),
        ("reg.example:5000", "reg.example", ALL),
        ("REG.example", "reg.EXAMPLE:443", ALL),
        ("10.0.0.5:5000", "cache.example:5000", ALL),
        ("[fd00::1]:5000", "[fd00::1]:32000", ALL),
        ("k3d-reg:5000", "k3d-reg2:5000", NONE),
        ("k3d-reg:5000", "other.example", NONE),
        ("k3d-reg:5000", "docker.io", NONE),
    ] {
        assert_eq!(pulled(&server, host, "mynginx", &image, ns).await, expected, "{host} {ns}");
    }
}

#[tokio::test]
async fn a_server_without_upstreams_serves_pushed_images_for_every_registry() {
    let server = TestServer::builder().start().await;
    let image = Image::new(1, &[100]);
    server.client().push_image(&server.url(""), "rancher/mirrored-pause", "v1", &image).await;
    for ns in ["docker.io", "registry.k8s.io", "mycustomreg.example.com:5000", "quay.io"] {
        assert_eq!(pulled(&server, "10.0.0.1:5000", "rancher/mirrored-pause", &image, ns).await, ALL, "{ns}");
        assert_eq!(pulled(&server, "10.0.0.1:5000", "rancher/other", &image, ns).await, NONE, "{ns}");
    }
    let answer = server.get(&format!("/v2/rancher/mirrored-pause/manifests/v1?ns={}", "a".repeat(9000))).await;
    assert_eq!((answer.status, answer.header("oci-namespace")), (200, ""));
}

#[tokio::test]
async fn names_under_namespaces_are_local_for_docker_io_and_unknown_registries() {
    let (hub, quay) = (Upstream::start().await, Upstream::start().await);
    let [public, pushed, of_quay] = [1, 2, 3].map(|seed| Image::new(seed, &[100]));
    for repo in ["rancher/pause", "library/alpine"] {
        hub.add_image(repo, "v1", &public);
    }
    quay.add_image("rancher/pause", "v1", &of_quay);
    let builder = TestServer::builder().upstream("docker.io", &hub).upstream("quay.io", &quay);
    let builder = builder.default_upstream("docker.io").config("[local]\nnamespaces = [\"rancher/**\"]");
    let server = builder.start().await;
    server.client().push_image(&server.url(""), "rancher/pause", "v1", &pushed).await;
    for (ns, repo, image) in [
        ("docker.io", "rancher/pause", &pushed),
        ("registry.example", "rancher/pause", &pushed),
        ("quay.io", "rancher/pause", &of_quay),
        ("docker.io", "library/alpine", &public),
    ] {
        assert_eq!(pulled(&server, "cache", repo, image, ns).await, ALL, "{ns} {repo}");
    }
    assert_eq!(server.get("/v2/rancher/none/manifests/v1?ns=docker.io").await.status, 404);
    assert_eq!(hub.count("GET", "/v2/rancher/none/manifests/v1"), 0, "the upstream is not asked for it");
    assert_eq!(server.get("/v2/library/alpine/manifests/v1?ns=registry.example").await.status, 404);
}

#[tokio::test]
async fn a_local_repository_hidden_by_ns_is_named_with_its_remedy() {
    let hub = Upstream::start().await;
    let server = ServerProcess::start(Settings::new().upstream("quay.io", &hub));
    let image = Image::new(1, &[100]);
    Client::new().push_image(&server.url(""), "team/app", "v1", &image).await;
    for _ in 0..3 {
        let answer = Client::new().get(&server.url("/v2/team/app/manifests/v1?ns=registry.example:5000")).await;
        assert_eq!((answer.status, answer.error_code().as_str()), (404, "NAME_UNKNOWN"));
        assert!(answer.text().contains("add it to server.names"), "{}", answer.text());
    }
    let other = Client::new().get(&server.url("/v2/team/none/manifests/v1?ns=registry.example:5000")).await;
    assert!(other.status == 404 && !other.text().contains("server.names"), "{}", other.text());
    let log = server.log();
    let warnings = log.lines().filter(|line| line.contains("WARN") && line.contains("server.names"));
    assert_eq!(warnings.count(), 1, "{log}");
    assert_eq!(Client::new().get(&server.url("/v2/team/app/manifests/v1?ns=docker.io")).await.status, 200);
    assert_eq!(hub.total(), 0);
}

#[tokio::test]
async fn a_ping_below_a_mirror_path_is_answered() {
    let server = TestServer::builder().start().await;
    for path in ["/v2/", "/v2/docker.io/v2/", "/v2/docker.io/v2", "/docker.io/v2/", "/v2/quay.io/v2/"] {
        for method in ["GET", "HEAD"] {
            let answer = server.send(method, path, &[], "").await;
            assert_eq!(
                (answer.status, answer.header("docker-distribution-api-version")),
                (200, "registry/2.0"),
                "{path}"
            );
        }
    }
}
