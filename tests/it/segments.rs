//! Fills with several transfers: ranges far ahead, and `upstream.connections`. Every byte is requested once.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use tokio::time::timeout;

use crate::scene::{HELD_BACK_TAIL_BYTES, MIB, REPO, Scene, blob_path, settle, until};
use crate::support::raw::Conn;
use crate::support::script::Gate;
use crate::support::{Content, Image, Reply, TestServer, Upstream};

const PIECE: usize = 8 * MIB;
/// Bytes that may be on their way when a transfer is cut: the buffers of both sockets.
const MAX_WASTED_BYTES: u64 = 16 * MIB as u64;

/// The ranges that the upstream was asked for; a request for the complete blob is one of `0..size`.
fn requested(upstream: &Upstream, size: usize) -> Vec<Range<usize>> {
    let blob_requests =
        upstream.requests().into_iter().filter(|seen| seen.method == "GET" && seen.path.contains("/blobs/"));
    let range = |header: &str| {
        let (start, last) = header.strip_prefix("bytes=")?.split_once('-')?;
        Some(start.parse().ok()?..last.parse::<usize>().ok()? + 1)
    };
    blob_requests.map(|seen| range(seen.header("range")).unwrap_or(0..size)).collect()
}

/// Whether the ranges cover `0..size` and no byte twice.
fn cover_once(mut ranges: Vec<Range<usize>>, size: usize) -> bool {
    ranges.sort_by_key(|range| range.start);
    let mut position = 0;
    for range in ranges {
        if range.start != position {
            return false;
        }
        position = range.end;
    }
    position == size
}

async fn read_range(server: &TestServer, path: &str, range: Range<usize>, bytes: &[u8]) {
    let header = format!("bytes={}-{}", range.start, range.end - 1);
    let part = server.get_with(path, &[("Range", &header)]).await;
    assert_eq!(part.status, 206, "{header}: {}", part.text());
    assert!(part.body == bytes[range], "{header}");
}

/// An image whose manifest was pulled, so that the length of its layer is known.
async fn image_of(size: usize, config: &str) -> (Upstream, TestServer, Content) {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[size]);
    upstream.add_image(REPO, "v1", &image);
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server = builder.config(config).start().await;
    assert_eq!(server.get(&format!("/v2/{REPO}/manifests/v1")).await.status, 200);
    upstream.forget();
    (upstream, server, image.layers[0].clone())
}

/// As containerd does it: an open-ended range for each part, closed when its bytes have arrived. `workers` parts at a
/// time.
async fn pull_in_parts(server: &TestServer, path: &str, size: usize, part: usize, workers: usize) -> Vec<u8> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let worker = async || {
        let mut read = Vec::new();
        loop {
            let start = part * next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            if start >= size {
                return read;
            }
            let range = format!("bytes={start}-");
            let mut client = Conn::get_with(server.addr(), path, &[("Range", &range)]).await;
            assert_eq!(client.status, 206, "{range}");
            read.push((start, client.take(part.min(size - start)).await));
        }
    };
    let mut parts: Vec<_> = join_all((0..workers).map(|_| worker())).await.into_iter().flatten().collect();
    parts.sort_by_key(|(start, _)| *start);
    parts.into_iter().flat_map(|(_, bytes)| bytes.to_vec()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_parts_of_several_nodes_cost_each_byte_once() {
    let size = 44 * MIB + 17;
    for (nodes, part) in [(1, PIECE), (4, PIECE), (2, 3 * MIB), (2, 11 * MIB)] {
        let (upstream, server, layer) = image_of(size, "").await;
        let path = blob_path(REPO, &layer);
        let pulls = (0..nodes).map(|_| pull_in_parts(&server, &path, size, part, 6));
        for read in join_all(pulls).await {
            assert!(read == layer.bytes, "{nodes} nodes");
        }
        settle(&server).await;
        let ranges = requested(&upstream, size);
        assert!(cover_once(ranges.clone(), size), "{nodes} nodes, parts of {part}: {ranges:?}");
        assert_eq!(upstream.bytes_sent(), size as u64, "{nodes} nodes");
        assert_eq!(server.metric("roadstead_fill_resumes_total", &[("upstream", "docker.io")]).await, 0.0);
        assert!(server.get(&path).await.body == layer.bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_far_range_during_a_pull_cuts_one_transfer_once() {
    let size = 60 * MIB;
    let scene = Scene::with_blob(size).await;
    let (path, bytes) = (scene.path(), scene.bytes().clone());
    let gate = Gate::new();
    // Slower than the server, so that few bytes are on their way.
    let paced = Reply::normal().wait_after(MIB as u64, &gate).pace(30 * MIB as u64);
    scene.upstream.script("GET", &path, [paced]);
    let whole = async { assert!(scene.server.get(&path).await.body == bytes) };
    let ranges = async {
        gate.reached(1).await;
        for start in [20, 40, 30, 52] {
            read_range(&scene.server, &path, start * MIB..start * MIB + 1000, &bytes).await;
        }
        gate.open();
    };
    tokio::join!(whole, ranges);
    scene.settle().await;
    // The first request was for all of the blob, and its transfer was cut at the first segment.
    let mut ranges = requested(&scene.upstream, size);
    assert_eq!(ranges.remove(0), 0..size);
    ranges.push(0..20 * MIB);
    assert!(cover_once(ranges.clone(), size), "{ranges:?}");
    let sent = scene.upstream.bytes_sent();
    assert!(sent <= size as u64 + MAX_WASTED_BYTES, "{sent} bytes");
    assert!(scene.is_stored());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_footer_is_answered_at_once_and_a_larger_end_after_verification() {
    let size = 40 * MIB;
    let scene = Scene::with_blob(size).await;
    let (path, bytes) = (scene.path(), scene.bytes().clone());
    let gate = Gate::new();
    scene.upstream.script("GET", &path, [Reply::normal().wait_after(MIB as u64, &gate)]);
    read_range(&scene.server, &path, size - 51..size, &bytes).await;
    read_range(&scene.server, &path, size - MIB..size, &bytes).await;
    let end = format!("bytes={}-", size - 2 * MIB);
    let mut waiting = Conn::get_with(scene.server.addr(), &path, &[("Range", &end)]).await;
    let before_tail = 2 * MIB - HELD_BACK_TAIL_BYTES;
    assert!(waiting.take(before_tail).await == bytes[size - 2 * MIB..size - HELD_BACK_TAIL_BYTES]);
    // The tail is not verified.
    assert!(timeout(Duration::from_millis(100), waiting.take(1)).await.is_err());
    gate.open();
    let (rest, _) = waiting.rest().await;
    assert!(rest == bytes[size - HELD_BACK_TAIL_BYTES..]);
    scene.settle().await;
    assert!(scene.is_stored());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_refuses_a_part_is_asked_by_one_transfer() {
    let size = 40 * MIB;
    let refusals = [
        ("the complete blob", Reply::normal().ignore_range()),
        ("429", Reply::error(429, "TOOMANYREQUESTS")),
        ("503", Reply::error(503, "UNAVAILABLE")),
        ("403", Reply::status(403)),
        ("another total", Reply::normal().header("Content-Range", "bytes 31457280-32505855/41943041")),
        ("another range", Reply::normal().header("Content-Range", "bytes 31457281-32505855/41943040")),
        ("no total", Reply::normal().header("Content-Range", "bytes 31457280-32505855/*")),
        ("a closed connection", Reply::hang_up()),
    ];
    for (what, refusal) in refusals {
        let scene = Scene::with_blob(size).await;
        let (path, bytes) = (scene.path(), scene.bytes().clone());
        let gate = Gate::new();
        scene.upstream.script("GET", &path, [Reply::normal().wait_after(MIB as u64, &gate), refusal]);
        let far = 30 * MIB..31 * MIB;
        let read = read_range(&scene.server, &path, far.clone(), &bytes);
        let open = async {
            until("the part was refused", async || scene.fetches() >= 2).await;
            gate.open();
        };
        tokio::join!(read, open);
        scene.settle().await;
        // The first transfer goes on where the refused part begins, as nothing else receives it.
        assert_eq!(scene.fetches(), 2, "{what}: {:?}", requested(&scene.upstream, size));
        assert!(scene.is_stored(), "{what}");
        assert!(scene.server.get(&path).await.body == bytes, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_interrupted_is_completed() {
    let size = 40 * MIB;
    for (what, reply) in [
        ("cut", Reply::normal().cut_after(300_000)),
        ("reset", Reply::normal().reset_after(300_000)),
        ("cut at once", Reply::normal().cut_after(0)),
        ("silent", Reply::normal().silent_after(300_000)),
    ] {
        let scene = Scene::configured(size, "[upstream.\"docker.io\"]\nidle_timeout = \"1s\"").await;
        let (path, bytes) = (scene.path(), scene.bytes().clone());
        scene.upstream.script("GET", &path, [Reply::normal().pace(4 * MIB as u64), reply]);
        read_range(&scene.server, &path, 30 * MIB..33 * MIB, &bytes).await;
        assert!(scene.server.get(&path).await.body == bytes, "{what}");
        scene.settle().await;
        assert!(scene.is_stored(), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_of_a_blob_are_never_mixed_into_a_stored_one() {
    let size = 40 * MIB;
    for etags in [["\"1\"", "\"2\""], ["", ""], ["\"1\"", "\"1\""]] {
        let scene = Scene::with_blob(size).await;
        let (path, bytes) = (scene.path(), scene.bytes().clone());
        let gate = Gate::new();
        let reply = |etag: &str| match etag {
            "" => Reply::normal(),
            etag => Reply::normal().header("ETag", etag),
        };
        scene.upstream.script("GET", &path, [reply(etags[0]).wait_after(MIB as u64, &gate), reply(etags[1]).flip(100)]);
        // The bytes of the range are not verified; its client must do that.
        let range = format!("bytes={}-{}", 30 * MIB, 30 * MIB + 1999);
        let part = scene.server.get_with(&path, &[("Range", &range)]).await;
        assert!(part.status == 206 && part.body.len() == 2000);
        let whole = async {
            let answer =
                scene.server.client().try_send("GET", &scene.server.url(&path), &[], bytes::Bytes::new()).await;
            // A client that has received bytes of the first attempt gets an error, never wrong bytes.
            assert!(answer.is_err() || answer.unwrap().body == bytes, "{etags:?}");
        };
        let open = async {
            tokio::task::yield_now().await;
            gate.open();
        };
        tokio::join!(whole, open);
        scene.settle().await;
        assert!(scene.server.get(&path).await.body == bytes, "{etags:?}");
        assert!(scene.is_stored());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_connections_receive_a_large_blob_in_pieces() {
    let size = 70 * MIB + 1;
    let (upstream, server, layer) = image_of(size, "[upstream.\"docker.io\"]\nconnections = 4").await;
    let path = blob_path(REPO, &layer);
    let gate = Gate::new();
    upstream.always("GET", &path, Reply::normal().wait_after(MIB as u64, &gate));
    let open = async {
        gate.reached(4).await;
        assert_eq!(upstream.count("GET", &path), 4);
        gate.open();
    };
    let (whole, ()) = tokio::join!(server.get(&path), open);
    assert!(whole.body == layer.bytes);
    settle(&server).await;
    let ranges = requested(&upstream, size);
    assert!(cover_once(ranges.clone(), size), "{ranges:?}");
    assert!(ranges.iter().all(|range| range.len() <= PIECE));
    assert_eq!(upstream.bytes_sent(), size as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn further_connections_use_free_slots_only() {
    let size = 40 * MIB;
    let config = "[upstream.\"docker.io\"]\nconnections = 4\nmax_fills = 1";
    let (upstream, server, layer) = image_of(size, config).await;
    let path = blob_path(REPO, &layer);
    assert!(server.get(&path).await.body == layer.bytes);
    settle(&server).await;
    assert!(cover_once(requested(&upstream, size), size));
    assert_eq!(server.metric("roadstead_fill_segments_total", &[("upstream", "docker.io")]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_that_follow_each_other_are_not_interruptions() {
    let size = 40 * MIB;
    let (upstream, server, layer) = image_of(size, "").await;
    let path = blob_path(REPO, &layer);
    // A range of the end divides the blob into pieces, which one client reads in order.
    read_range(&server, &path, size - 1000..size, &layer.bytes).await;
    read_range(&server, &path, 0..size, &layer.bytes).await;
    settle(&server).await;
    assert!(cover_once(requested(&upstream, size), size));
    assert_eq!(server.metric("roadstead_fill_resumes_total", &[("upstream", "docker.io")]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_far_range_of_an_upstream_without_ranges_is_answered_before_the_end() {
    let size = 40 * MIB;
    let scene = Scene::with_blob(size).await;
    let (path, bytes) = (scene.path(), scene.bytes().clone());
    let (start, end) = (Gate::new(), Gate::new());
    let whole = Reply::normal().ignore_range().wait_after(MIB as u64, &start).wait_after(35 * MIB as u64, &end);
    scene.upstream.always("GET", &path, whole);
    let range = read_range(&scene.server, &path, 30 * MIB..30 * MIB + 1000, &bytes);
    let open = async {
        until("the range was refused", async || scene.fetches() == 2).await;
        start.open();
    };
    tokio::join!(range, open);
    end.open();
    scene.settle().await;
    assert!(scene.is_stored());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_random_ranges_reads_the_right_bytes() {
    let size = 50 * MIB + 4321;
    for connections in [1, 3] {
        let config = format!("[upstream.\"docker.io\"]\nconnections = {connections}");
        let (upstream, server, layer) = image_of(size, &config).await;
        let (path, bytes) = (blob_path(REPO, &layer), layer.bytes.clone());
        upstream.always("GET", &path, Reply::normal().pace(30 * MIB as u64));
        let clients = (0..12).map(|seed| {
            let (server, path, bytes) = (&server, &path, &bytes);
            async move {
                let mut rng = Rng::with_seed(seed);
                for _ in 0..15 {
                    let start = rng.usize(..size);
                    let length = [10, 5000, 300_000, 3 * MIB][rng.usize(..4)];
                    read_range(server, path, start..(start + length).min(size), bytes).await;
                }
            }
        });
        let whole = async { assert!(server.get(&path).await.body == bytes) };
        tokio::join!(join_all(clients), whole);
        settle(&server).await;
        assert!(server.get(&path).await.body == bytes);
        let (sent, allowed) = (upstream.bytes_sent(), size as u64 + MAX_WASTED_BYTES);
        assert!(sent <= allowed, "{connections} connections: {sent} bytes for {size}");
    }
}

/// Replies to a range with `refusal`, and to a request for the complete blob as usual.
fn refuse_ranges(upstream: &Upstream, path: &str, refusal: &Reply) {
    let (path, refusal) = (path.to_owned(), refusal.clone());
    upstream.behave(move |seen| {
        (seen.method == "GET" && seen.path == path && !seen.header("range").is_empty()).then(|| refusal.clone())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_fails_at_ranges_is_asked_for_the_complete_blob() {
    let size = 40 * MIB;
    let refusals = [
        ("404", Reply::error(404, "BLOB_UNKNOWN")),
        ("500", Reply::error(500, "UNKNOWN")),
        ("501", Reply::error(501, "UNSUPPORTED")),
        ("a closed connection", Reply::hang_up()),
        ("nothing", Reply::never()),
    ];
    for connections in [1, 4] {
        for (what, refusal) in &refusals {
            let config = format!("[upstream.\"docker.io\"]\nconnections = {connections}\nheader_timeout = \"1s\"");
            let (upstream, server, layer) = image_of(size, &config).await;
            let path = blob_path(REPO, &layer);
            refuse_ranges(&upstream, &path, refusal);
            if connections == 1 {
                // The fill is started by a range.
                read_range(&server, &path, 0..1000, &layer.bytes).await;
            }
            assert!(server.get(&path).await.body == layer.bytes, "{what}, {connections}");
            settle(&server).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_connections_pauses_neither_the_pull_nor_the_upstream() {
    let size = 40 * MIB;
    let (upstream, server, layer) = image_of(size, "[upstream.\"docker.io\"]\nconnections = 4").await;
    let path = blob_path(REPO, &layer);
    let (gate, is_limited) = (Gate::new(), Arc::new(AtomicBool::new(true)));
    upstream.script("GET", &path, [Reply::normal().wait_after(MIB as u64, &gate)]);
    let limits = is_limited.clone();
    upstream.behave(move |seen| {
        let limited = || Reply::error(429, "TOOMANYREQUESTS").header("Retry-After", "600");
        let is_further = seen.header("range").starts_with("bytes=") && !seen.header("range").starts_with("bytes=0-");
        (is_further && limits.load(Ordering::SeqCst)).then(limited)
    });
    let open = async {
        until("another connection was refused", async || upstream.count("GET", &path) >= 2).await;
        is_limited.store(false, Ordering::SeqCst);
        gate.open();
    };
    let (whole, ()) = tokio::join!(server.get(&path), open);
    assert!(whole.body == layer.bytes);
    // Other content of the upstream is fetched as before.
    let other = Image::new(2, &[1000]);
    upstream.add_image(REPO, "v2", &other);
    assert_eq!(server.get(&format!("/v2/{REPO}/manifests/v2")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_stalls_holds_up_no_pull() {
    let size = 40 * MIB;
    let config = "[upstream.\"docker.io\"]\nconnections = 2\nidle_timeout = \"600s\"";
    let (upstream, server, layer) = image_of(size, config).await;
    let path = blob_path(REPO, &layer);
    let never = Gate::new();
    upstream.script("GET", &path, [Reply::normal(), Reply::normal().wait_after(MIB as u64, &never)]);
    let whole = timeout(Duration::from_secs(90), server.get(&path)).await;
    assert!(whole.expect("the pull ends before the stalled transfer does").body == layer.bytes);
    never.open();
    settle(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_gets_the_slot_of_a_part_of_another_blob() {
    let size = 40 * MIB;
    let config = "[upstream.\"docker.io\"]\nmax_fills = 4";
    let (upstream, server, layer) = image_of(size, config).await;
    let path = blob_path(REPO, &layer);
    let never = Gate::new();
    upstream.always("GET", &path, Reply::normal().wait_after(100_000, &never));
    // It takes the only slot beside the first transfer that its repository may have.
    let range = format!("bytes={}-{}", 18 * MIB, 19 * MIB);
    let reader = Conn::get_with(server.addr(), &path, &[("Range", &range)]).await;
    assert_eq!(reader.status, 206);
    until("the range is requested", async || upstream.count("GET", &path) == 2).await;
    let other = Image::new(2, &[3 * MIB]);
    upstream.add_image(REPO, "v2", &other);
    for content in other.blobs() {
        assert!(server.get(&blob_path(REPO, content)).await.body == content.bytes);
    }
    never.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_answer_to_the_second_request_is_no_end_of_the_pull() {
    let size = 40 * MIB;
    for (what, answer) in [
        ("another total", Reply::normal().header("Content-Range", "bytes 8388608-16777215/41943041")),
        ("another range", Reply::normal().header("Content-Range", "bytes 8388609-16777215/41943040")),
        ("no range", Reply::normal().without("Content-Range")),
    ] {
        let (upstream, server, layer) = image_of(size, "").await;
        let path = blob_path(REPO, &layer);
        let gate = Gate::new();
        upstream.script("GET", &path, [Reply::normal().wait_after(MIB as u64, &gate), answer]);
        // The fill is started by a range, so it asks for a piece first.
        let first = read_range(&server, &path, 0..1000, &layer.bytes);
        let whole = async { assert!(server.get(&path).await.body == layer.bytes, "{what}") };
        let open = async {
            gate.reached(1).await;
            gate.open();
        };
        tokio::join!(first, whole, open);
        settle(&server).await;
        assert_eq!(
            server.metric("roadstead_digest_mismatches_total", &[("upstream", "docker.io")]).await,
            0.0,
            "{what}"
        );
    }
}
