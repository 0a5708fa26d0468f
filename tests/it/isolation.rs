//! If one repository of an upstream, or one upstream, misbehaves, the others are served as usual.

use std::time::Duration;

use crate::scene::{blob, blob_path, until};
use crate::support::{Image, Reply, TestServer, Upstream};

const BAD: &str = "org/bad";
/// Requests for the bad repository at the same time: more than an upstream has slots.
const BAD_BLOBS: u64 = 40;
const BAD_TAGS: u64 = 12;

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
    let short = "header_timeout = \"1s\"\nidle_timeout = \"1s\"";
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
    until("the bad repository was asked for", async || asked(misbehaving, BAD) >= 20).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_repository_does_not_harm_the_others() {
    for (what, trouble) in troubles() {
        others_are_served_as_without_it(what, trouble, "docker.io").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_upstream_does_not_harm_the_others() {
    for (what, trouble) in troubles() {
        others_are_served_as_without_it(what, trouble, "bad.example").await;
    }
}
