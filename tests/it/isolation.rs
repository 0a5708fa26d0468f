//! If one repository of an upstream, one upstream or one client misbehaves, the others are served as usual.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::scene::{blob, blob_path, until};
use crate::support::image::OCI_MANIFEST;
use crate::support::{Content, Image, Reply, TestServer, Upstream};

const BAD: &str = "org/bad";
/// Requests for the bad repository at the same time: more than an upstream has slots.
const BAD_BLOBS: u64 = 40;
const BAD_TAGS: u64 = 12;
/// Servers that are tested at the same time.
const CASES_AT_ONCE: usize = 5;

fn troubles() -> Vec<(&'static str, Reply)> {
    let broken = "Bearer realm=\"https://registry.example:443:443/token\"";
    vec![
        ("500", Reply::error(500, "UNKNOWN")),
        ("503", Reply::error(503, "UNAVAILABLE")),
        ("502 with a page", Reply::status(502).body("<html>")),
        ("a closed connection", Reply::hang_up()),
        ("silence", Reply::never()),
        ("silence in the body", Reply::normal().silent_after(10)),
        ("a body that is cut", Reply::normal().cut_after(10)),
        ("a reset", Reply::normal().reset_after(10)),
        ("wrong bytes", Reply::normal().flip(20)),
        ("a body that never ends", Reply::normal().pace(20)),
        ("a broken challenge", Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", broken)),
        ("a denial", Reply::error(403, "DENIED")),
        ("a redirect to nowhere", Reply::redirect("http://127.0.0.1:1/x")),
        ("a loop", Reply::status(508)),
        ("a teapot", Reply::status(418)),
    ]
}

/// Requests for a repository.
fn asked(upstream: &Upstream, repo: &str) -> usize {
    let path = format!("/v2/{repo}/");
    upstream.requests().iter().filter(|seen| seen.path.starts_with(&path)).count()
}

/// `bad_upstream`: the name of the upstream that misbehaves. `docker.io` also has the images that must be served.
async fn others_are_served_as_without_it(what: &str, trouble: Reply, bad_upstream: &str) {
    let (upstream, elsewhere) = (Upstream::start().await, Upstream::start().await);
    let misbehaving = if bad_upstream == "docker.io" { &upstream } else { &elsewhere };
    let images: Vec<(String, Image)> = (0..4).map(|n| (format!("org/good{n}"), Image::new(n, &[70_000, 10]))).collect();
    for (repo, image) in &images {
        upstream.add_image(repo, "1", image);
    }
    let bad: Vec<_> = (0..BAD_BLOBS).map(|n| blob(100 + n, 5000)).collect();
    let broken = Image::new(99, &[10]);
    for content in &bad {
        misbehaving.add_blob(BAD, content);
    }
    for n in 0..BAD_TAGS {
        misbehaving.add_image(BAD, &n.to_string(), &broken);
    }
    misbehaving.always("*", &format!("/v2/{BAD}/*"), trouble);
    let builder = TestServer::builder().upstream("docker.io", &upstream).upstream("bad.example", &elsewhere);
    // Long enough for the good repositories on a busy machine, where a repeated request would count.
    let short = "header_timeout = \"8s\"\nidle_timeout = \"8s\"";
    let timeouts = format!("[upstream.\"docker.io\"]\n{short}\n[upstream.\"bad.example\"]\n{short}");
    let server = builder.default_upstream("docker.io").config(&timeouts).start().await;

    let bad_repo = format!("{bad_upstream}/{BAD}");
    let tags = (0..BAD_TAGS).map(|n| format!("/v2/{bad_repo}/manifests/{n}"));
    let paths: Vec<_> = tags.chain(bad.iter().map(|content| blob_path(&bad_repo, content))).collect();
    let clients: Vec<_> = paths
        .iter()
        .map(|path| {
            let (client, url) = (server.client().clone(), server.url(path));
            // Repeats its requests, as clients do.
            tokio::spawn(async move {
                loop {
                    let _ = client.try_send("GET", &url, &[], bytes::Bytes::new()).await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
        })
        .collect();
    // More failures than a circuit needs to open, if they were of different repositories.
    until("the bad repository was asked for", async || asked(misbehaving, BAD) >= 10).await;
    for (repo, image) in &images {
        let manifest = server.get(&format!("/v2/{repo}/manifests/1")).await;
        assert_eq!((manifest.status, &manifest.body), (200, &image.manifest.bytes), "{what}: {}", manifest.text());
        for content in image.blobs() {
            let answer = server.get(&blob_path(repo, content)).await;
            assert!(answer.status == 200 && answer.body == content.bytes, "{what}: {}", answer.status);
        }
        // As without the bad repository, all content was fetched once, and nothing was retried.
        assert_eq!(asked(&upstream, repo), 1 + image.blobs().count(), "{what}");
    }
    assert_eq!(server.metric("roadstead_upstream_available", &[("upstream", "docker.io")]).await, 1.0, "{what}");
    for client in clients {
        client.abort();
    }
    server.stop().await;
}

/// Tries every trouble, several at a time because many of them wait for time limits.
async fn others_are_served_in_every_trouble(bad_upstream: &str) {
    let cases =
        troubles().into_iter().map(|(what, trouble)| others_are_served_as_without_it(what, trouble, bad_upstream));
    stream::iter(cases).buffer_unordered(CASES_AT_ONCE).collect::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_repository_does_not_harm_the_others() {
    others_are_served_in_every_trouble("docker.io").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_upstream_does_not_harm_the_others() {
    others_are_served_in_every_trouble("bad.example").await;
}

/// A manifest with the config of `image`, and a filler that makes it larger than 600,000 bytes.
fn large_manifest(image: &Image) -> Content {
    let filler = "x".repeat(600_000);
    let config = image.config.descriptor();
    let value = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [], "annotations": {"a": filler}
    });
    Content::json(OCI_MANIFEST, &value)
}

/// The requests for manifests that are in flight.
async fn manifests_in_flight(server: &TestServer) -> f64 {
    server.metric("registry_http_in_flight_requests", &[("handler", "manifest")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_manifests_do_not_delay_those_of_other_repositories() {
    // The bytes that arrive before the silence, the repositories that hang, and the requests for each.
    for (arrived, repos, tags) in [(20, 1, 8), (20, 8, 1), (300_000, 1, 8), (300_000, 5, 1)] {
        let upstream = Upstream::start().await;
        let image = Image::new(1, &[10]);
        let large = large_manifest(&image);
        upstream.add_image("org/small", "1", &image);
        upstream.add_image("org/large", "1", &image);
        upstream.add_manifest("org/large", &large);
        upstream.tag("org/large", "2", &large.digest);
        upstream.always("GET", "/v2/org/small/manifests/*", Reply::normal().chunked());
        upstream.always("GET", "/v2/org/large/manifests/*", Reply::normal().chunked());
        let mut paths = Vec::new();
        for repo in (0..repos).map(|n| format!("org/bad{n}")) {
            upstream.add_manifest(&repo, &large);
            for tag in 0..tags {
                upstream.tag(&repo, &tag.to_string(), &large.digest);
                paths.push(format!("/v2/{repo}/manifests/{tag}"));
            }
            let hangs = Reply::normal().chunked().silent_after(arrived);
            upstream.always("GET", &format!("/v2/{repo}/manifests/*"), hangs);
        }
        let server = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io").start().await;
        let clients: Vec<_> = paths
            .iter()
            .map(|path| {
                let (client, url) = (server.client().clone(), server.url(path));
                tokio::spawn(async move {
                    let _ = client.try_send("GET", &url, &[], bytes::Bytes::new()).await;
                })
            })
            .collect();
        let hanging = paths.len();
        let gets =
            || upstream.requests().iter().filter(|seen| seen.method == "GET" && seen.path.contains("/bad")).count();
        until("all are asked for", async || gets() >= hanging).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let what = format!("{arrived} bytes, {repos} repositories");
        let small = server.get("/v2/org/small/manifests/1").await;
        assert_eq!((small.status, &small.body), (200, &image.manifest.bytes), "{what}: {}", small.text());
        let got = server.get("/v2/org/large/manifests/2").await;
        assert!(got.status == 200 && got.body == large.bytes, "{what}: {}", got.status);
        assert!(manifests_in_flight(&server).await >= 1.0, "{what}: they were served before the others ended");
        clients.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_pushes_of_manifests_do_not_refuse_those_of_others() {
    // The bytes that arrive before the silence, and the repositories that the 20 pushes go to.
    for (arrived, repos) in [(300_000, 1), (300_000, 20), (20, 1), (2_000_000, 3)] {
        let server = TestServer::builder().start().await;
        let image = Image::new(1, &[10]);
        server.client().push_image(&server.url(""), "team/app", "1", &image).await;
        let mut pushes = Vec::new();
        for n in 0..20 {
            let mut push = TcpStream::connect(server.addr()).await.unwrap();
            let headers = format!("Host: x\r\nContent-Type: {OCI_MANIFEST}\r\nContent-Length: 3000000");
            let request = format!("PUT /v2/team/bad{}/manifests/{n} HTTP/1.1\r\n{headers}\r\n\r\n", n % repos);
            push.write_all(request.as_bytes()).await.unwrap();
            // Not all bytes are received while the push waits for its turn.
            pushes.push(tokio::spawn(async move {
                let _ = push.write_all(&vec![b' '; arrived]).await;
                std::future::pending::<()>().await;
            }));
        }
        until("all are in flight", async || manifests_in_flight(&server).await == 20.0).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let large = large_manifest(&image);
        let headers = [("Content-Type", OCI_MANIFEST)];
        let answer = server.send("PUT", "/v2/team/app/manifests/2", &headers, large.bytes.clone()).await;
        assert_eq!(answer.status, 201, "{arrived} bytes, {repos} repositories: {}", answer.text());
        assert!(manifests_in_flight(&server).await >= 1.0, "it was stored before the others ended");
        pushes.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
