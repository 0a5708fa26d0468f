//! Limits on concurrent fills: waiting, order, and responses to waiting clients.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::scene::{KIB, MIB, blob, blob_path, settle, until};
use crate::support::{Conn, Content, Ended, Gate, Image, Reply, TestServer, Upstream};

const APP: &str = "library/app";
const OTHER: &str = "library/other";

/// A server with `max_fills` slots for docker.io, and `cache` as the lines of `[cache]`.
async fn server_with(upstream: &Upstream, max_fills: usize, cache: &str) -> TestServer {
    let config = format!("[upstream.\"docker.io\"]\nmax_fills = {max_fills}\n[cache]\n{cache}");
    let builder = TestServer::builder().upstream("docker.io", upstream).default_upstream("docker.io");
    builder.config(&config).start().await
}

/// An image whose layers wait at the gate half-way. Its manifest is already cached.
async fn image(server: &TestServer, upstream: &Upstream, repo: &str, seed: u64, sizes: &[usize], gate: &Gate) -> Image {
    let image = Image::new(seed, sizes);
    upstream.add_image(repo, "v1", &image);
    for layer in &image.layers {
        let half = layer.bytes.len() as u64 / 2;
        upstream.always("GET", &blob_path(repo, layer), Reply::normal().wait_after(half, gate));
    }
    server.get(&format!("/v2/{repo}/manifests/v1")).await;
    image
}

async fn counts(server: &TestServer) -> (f64, f64) {
    let metrics = server.metrics().await;
    (metrics.sum("roadstead_fills_in_flight", &[]), metrics.sum("roadstead_fills_waiting", &[]))
}

async fn until_counts(server: &TestServer, wanted: (f64, f64)) {
    until(&format!("{wanted:?} fills run and wait"), async || counts(server).await == wanted).await;
}

/// Pulls to the end, in the background.
fn pull(server: &TestServer, repo: &str, content: &Content) -> tokio::task::JoinHandle<()> {
    let (addr, path, content) = (server.addr(), blob_path(repo, content), content.clone());
    tokio::spawn(async move {
        let mut client = Conn::get(addr, &path).await;
        let (body, ended) = client.rest().await;
        assert_eq!((client.status, ended), (200, Ended::Complete), "{path}");
        assert!(body == content.bytes, "{path}");
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn images_take_turns_and_configs_do_not_wait_for_layers() {
    let upstream = Upstream::start().await;
    // Two slots: one for anything, one for small blobs.
    let server = server_with(&upstream, 2, "").await;
    let gates = [Gate::new(), Gate::new()];
    let app = image(&server, &upstream, APP, 10, &[3 * MIB, 2 * MIB, 2 * MIB], &gates[0]).await;
    let other = image(&server, &upstream, OTHER, 20, &[2 * MIB], &gates[1]).await;
    let mut pulls = Vec::new();
    for (layer, waiting) in app.layers.iter().zip([0.0, 1.0, 2.0]) {
        pulls.push(pull(&server, APP, layer));
        until_counts(&server, (1.0, waiting)).await;
    }
    pulls.push(pull(&server, OTHER, &other.layers[0]));
    until_counts(&server, (1.0, 3.0)).await;
    // The slot for layers is taken, and the configs arrive at once.
    for (repo, image) in [(APP, &app), (OTHER, &other)] {
        pull(&server, repo, &image.config).await.unwrap();
    }
    gates.iter().for_each(Gate::open);
    for pull in pulls {
        pull.await.unwrap();
    }
    let gets = upstream.requests().into_iter().filter(|seen| seen.method == "GET").map(|seen| seen.path);
    let layers = [(APP, &app.layers[0]), (APP, &app.layers[1]), (OTHER, &other.layers[0]), (APP, &app.layers[2])];
    let layers = layers.map(|(repo, layer)| blob_path(repo, layer));
    let order: Vec<_> = gets.filter(|path| layers.contains(path)).collect();
    assert_eq!(order, layers, "the later image waits for only one layer of the other");
    settle(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_limit_covers_all_upstreams() {
    let upstreams = [Upstream::start().await, Upstream::start().await];
    let gate = Gate::new();
    let builder = TestServer::builder().config("[cache]\nmax_fills = 1");
    let builder = builder.upstream("a.test", &upstreams[0]).upstream("b.test", &upstreams[1]);
    let server = builder.start().await;
    let mut pulls = Vec::new();
    for (upstream, name, waiting) in [(&upstreams[0], "a.test", 0.0), (&upstreams[1], "b.test", 1.0)] {
        let content = blob(waiting as u64, MIB);
        upstream.add_blob(APP, &content);
        upstream.always("GET", &blob_path(APP, &content), Reply::normal().wait_after(0, &gate));
        pulls.push(pull(&server, &format!("{name}/{APP}"), &content));
        until_counts(&server, (1.0, waiting)).await;
    }
    assert_eq!(upstreams[1].total(), 0);
    gate.open();
    for pull in pulls {
        pull.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_wait_for_a_slot_ends_with_retry_after() {
    let upstream = Upstream::start().await;
    let server = server_with(&upstream, 1, "answer_within = \"4s\"").await;
    let gate = Gate::new();
    let app = image(&server, &upstream, APP, 10, &[2 * MIB, MIB, 10 * KIB], &gate).await;
    let mut first = Conn::get(server.addr(), &blob_path(APP, &app.layers[0])).await;
    first.take(1).await;
    // The length of this blob is unknown, and that of the others is known from the manifest.
    let unknown = blob(99, MIB);
    upstream.add_blob(APP, &unknown);
    for content in [&unknown, &app.layers[1], &app.layers[2]] {
        let answer = server.get(&blob_path(APP, content)).await;
        assert_eq!((answer.status, answer.error_code().as_str()), (503, "UNAVAILABLE"));
        assert!(answer.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0));
        // A client that leaves gives up its place.
        until_counts(&server, (1.0, 0.0)).await;
    }
    gate.open();
    assert_eq!(first.rest().await.1, Ended::Complete);
    assert_eq!(upstream.count("GET", &blob_path(APP, &unknown)), 0);
    settle(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_images_complete_through_few_slots() {
    const IMAGES: u64 = 20;
    let upstream = Upstream::start().await;
    let server = server_with(&upstream, 4, "answer_within = \"60s\"").await;
    let gate = Gate::new();
    let mut pulls = Vec::new();
    for n in 0..IMAGES {
        let (repo, sizes) = (format!("library/app-{n}"), [200 * KIB, 300 * KIB, 100 * KIB]);
        let image = image(&server, &upstream, &repo, 100 * (n + 1), &sizes, &gate).await;
        pulls.extend(image.layers.iter().map(|layer| pull(&server, &repo, layer)));
    }
    // All blobs are small, so every slot may serve them. The last slot is for a repository that runs none.
    until_counts(&server, (4.0, pulls.len() as f64 - 4.0)).await;
    gate.open();
    for pull in pulls {
        pull.await.unwrap();
        assert!(counts(&server).await.0 <= 4.0);
    }
    settle(&server).await;
    let blobs = [("kind", "blob"), ("code", "200")];
    assert_eq!(server.metric("roadstead_upstream_requests_total", &blobs).await, 3.0 * IMAGES as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_fill_ends_with_its_last_follower() {
    let upstream = Upstream::start().await;
    let server = server_with(&upstream, 1, "").await;
    let gate = Gate::new();
    let app = image(&server, &upstream, APP, 10, &[2 * MIB, 2 * MIB], &gate).await;
    let running = pull(&server, APP, &app.layers[0]);
    until_counts(&server, (1.0, 0.0)).await;
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", blob_path(APP, &app.layers[1]));
    let ask = async || {
        let mut client = TcpStream::connect(server.addr()).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        // It leaves with a reset. A client that only ends its side may wait for the response.
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        client
    };
    let [first, second] = [ask().await, ask().await];
    until_counts(&server, (1.0, 1.0)).await;
    let blobs = [("handler", "blob")];
    until("three ask", async || server.metric("registry_http_in_flight_requests", &blobs).await == 3.0).await;
    drop(first);
    until("two ask", async || server.metric("registry_http_in_flight_requests", &blobs).await == 2.0).await;
    assert_eq!(counts(&server).await, (1.0, 1.0));
    drop(second);
    until_counts(&server, (1.0, 0.0)).await;
    gate.open();
    running.await.unwrap();
    settle(&server).await;
    assert_eq!(upstream.count("GET", &blob_path(APP, &app.layers[1])), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_fill_goes_before_one_without_followers() {
    let upstream = Upstream::start().await;
    let server = server_with(&upstream, 1, "").await;
    let gate = Gate::new();
    let app = image(&server, &upstream, APP, 10, &[2 * MIB, 2 * MIB, 2 * MIB], &gate).await;
    // Without followers and without waiting fills, the fill continues; then another request comes.
    let mut leaver = Conn::get(server.addr(), &blob_path(APP, &app.layers[0])).await;
    leaver.take(1).await;
    drop(leaver);
    let blobs = [("handler", "blob")];
    until("the client has left", async || server.metric("registry_http_in_flight_requests", &blobs).await == 0.0).await;
    assert_eq!(counts(&server).await, (1.0, 0.0));
    let mut leaver = Conn::get(server.addr(), &blob_path(APP, &app.layers[1])).await;
    leaver.take(1).await;
    // Without followers while another fill waits, the fill stops at once.
    let waiting = pull(&server, APP, &app.layers[2]);
    until_counts(&server, (1.0, 1.0)).await;
    drop(leaver);
    until("the waiting fill has started", async || upstream.count("GET", &blob_path(APP, &app.layers[2])) == 1).await;
    gate.open();
    waiting.await.unwrap();
    settle(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bypasses_have_their_own_limit() {
    const CLIENTS: u64 = 12;
    let upstream = Upstream::start().await;
    let gate = Gate::new();
    let server = server_with(&upstream, 1, "max_size = \"1MiB\"\nmax_bypasses = 4\nanswer_within = \"60s\"").await;
    let mut pulls = Vec::new();
    for seed in 0..CLIENTS {
        let content = blob(seed, 2 * MIB);
        upstream.add_blob(APP, &content);
        upstream.always("GET", &blob_path(APP, &content), Reply::normal().wait_after(MIB as u64, &gate));
        pulls.push(pull(&server, APP, &content));
    }
    // One of four slots is reserved for small blobs, and one for another repository.
    let bypasses = async || {
        let metrics = server.metrics().await;
        let sum = |name| metrics.sum(name, &[]);
        (sum("roadstead_bypasses_in_flight"), sum("roadstead_bypasses_waiting"))
    };
    until("two bypasses run and ten wait", async || bypasses().await == (2.0, CLIENTS as f64 - 2.0)).await;
    let small = blob(99, 10 * KIB);
    upstream.add_blob(APP, &small);
    pull(&server, APP, &small).await.unwrap();
    // The client of another repository is served beside them.
    let other = blob(98, 2 * MIB);
    upstream.add_blob(OTHER, &other);
    pull(&server, OTHER, &other).await.unwrap();
    gate.open();
    for pull in pulls {
        pull.await.unwrap();
        assert!(bypasses().await.0 <= 4.0);
    }
    until("all have ended", async || bypasses().await == (0.0, 0.0)).await;
    settle(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bypass_that_waits_too_long_gets_retry_after() {
    let upstream = Upstream::start().await;
    let gate = Gate::new();
    let server = server_with(&upstream, 1, "max_size = \"1MiB\"\nmax_bypasses = 1\nanswer_within = \"4s\"").await;
    let (slow, other) = (blob(1, 2 * MIB), blob(2, 2 * MIB));
    for content in [&slow, &other] {
        upstream.add_blob(APP, content);
    }
    upstream.always("GET", &blob_path(APP, &slow), Reply::normal().wait_after(MIB as u64, &gate));
    let mut first = Conn::get(server.addr(), &blob_path(APP, &slow)).await;
    first.take(1).await;
    let answer = server.get(&blob_path(APP, &other)).await;
    assert_eq!((answer.status, answer.error_code().as_str()), (503, "UNAVAILABLE"));
    assert!(answer.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0));
    gate.open();
    assert_eq!(first.rest().await.1, Ended::Complete);
    pull(&server, APP, &other).await.unwrap();
    settle(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_repositories_leave_slots_for_the_layers_of_others() {
    // The lines of the two limits, and the number of repositories that hang.
    for (max_fills, cache, hanging) in [(16, "", 2), (4, "", 1), (16, "max_fills = 4", 1)] {
        let upstream = Upstream::start().await;
        let server = server_with(&upstream, max_fills, cache).await;
        let gate = Gate::new();
        let mut pulls = Vec::new();
        for n in 0..hanging {
            let (repo, sizes) = (format!("library/hanging{n}"), [MIB + 1; 16]);
            let image = image(&server, &upstream, &repo, 100 * (n + 1), &sizes, &gate).await;
            pulls.extend(image.layers.iter().map(|layer| pull(&server, &repo, layer)));
        }
        let all = pulls.len() as f64;
        until("all are asked for", async || {
            let (running, waiting) = counts(&server).await;
            running > 0.0 && running + waiting == all
        })
        .await;
        let good = Image::new(7, &[3 * MIB, 2 * MIB, 10]);
        upstream.add_image(OTHER, "v1", &good);
        server.get(&format!("/v2/{OTHER}/manifests/v1")).await;
        for content in good.blobs() {
            pull(&server, OTHER, content).await.unwrap();
        }
        gate.open();
        for pull in pulls {
            pull.await.unwrap();
        }
        settle(&server).await;
    }
}
