//! Upstream transfers that break off: the fill resumes, and clients keep receiving bytes.

use crate::scene::{HELD_BACK_TAIL_BYTES, KIB, MIB, REPO, Scene, blob, blob_path};
use crate::support::{Conn, Ended, Reply, TestServer, Upstream};

const BIG: usize = 4 * MIB;
const QUICK: &str = "[upstream.\"docker.io\"]\nidle_timeout = \"300ms\"";

/// Failures of a transfer, each in the middle of the blob.
fn breaks(size: usize) -> [(&'static str, Reply); 3] {
    let half = size as u64 / 2;
    [
        ("cut", Reply::normal().cut_after(half)),
        ("reset", Reply::normal().reset_after(half)),
        ("silent", Reply::normal().silent_after(half)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_transfer_resumes_unnoticed() {
    for size in [KIB, HELD_BACK_TAIL_BYTES, HELD_BACK_TAIL_BYTES + 1, BIG] {
        for (what, reply) in breaks(size) {
            let scene = Scene::configured(size, QUICK).await;
            scene.upstream.script("GET", &scene.path(), [reply]);
            let path = scene.path();
            let clients = (0..8).map(|_| scene.server.get_whole(&path));
            for (status, body) in futures_util::future::join_all(clients).await {
                assert_eq!(status, 200, "{what} of {size}");
                assert!(body == scene.bytes(), "{what} of {size}");
            }
            scene.settle().await;
            assert_eq!(scene.fetches(), 2, "{what} of {size}");
            let ranges: Vec<_> = scene.upstream.requests().iter().map(|seen| seen.header("range").to_owned()).collect();
            assert!(ranges[1].starts_with("bytes=") && ranges[1].ends_with(&format!("-{}", size - 1)), "{ranges:?}");
            let twice = scene.upstream.requests()[1].header("if-range").to_owned();
            assert_eq!(twice, format!("\"{}\"", scene.blob.digest), "{what} of {size}");
            assert_eq!(scene.server.metric("roadstead_fill_resumes_total", &[]).await, 1.0, "{what} of {size}");
            assert_eq!(scene.server.metric("roadstead_digest_mismatches_total", &[]).await, 0.0, "{what} of {size}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_resumes_as_long_as_it_progresses() {
    let scene = Scene::with_blob(BIG).await;
    let piece = BIG as u64 / 16;
    scene.upstream.script("GET", &scene.path(), (0..12).map(|_| Reply::normal().cut_after(piece)));
    let (status, body) = scene.server.get_whole(&scene.path()).await;
    assert!(status == 200 && body == scene.bytes());
    assert_eq!(scene.fetches(), 13);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_below_min_rate_is_restarted() {
    let slow = || Reply::normal().pace(16 * KIB as u64);
    for (min_rate, goes_on) in [("64KiB", true), ("0", false)] {
        let keys = format!("idle_timeout = \"3s\"\nmin_rate = {min_rate:?}");
        let scene = Scene::configured(128 * KIB, &format!("[upstream.\"docker.io\"]\n{keys}")).await;
        // At this rate the transfer would take eight seconds, without ever being idle.
        scene.upstream.script("GET", &scene.path(), [slow()]);
        let mut client = Conn::get(scene.server.addr(), &scene.path()).await;
        client.take(1).await;
        if goes_on {
            assert!(client.rest().await.0 == scene.bytes()[1..]);
            assert!(scene.fetches() >= 2);
            assert!(scene.server.metric("roadstead_fill_resumes_total", &[]).await >= 1.0);
        } else {
            tokio::time::sleep(std::time::Duration::from_millis(4500)).await;
            assert_eq!(scene.fetches(), 1, "a slow transfer above min_rate is not restarted");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_during_a_resume_is_awaited_once() {
    let scene = Scene::with_blob(BIG).await;
    let limited = || Reply::error(429, "TOOMANYREQUESTS").header("Retry-After", "1");
    scene.upstream.script("GET", &scene.path(), [Reply::normal().cut_after(MIB as u64), limited()]);
    let (status, body) = scene.server.get_whole(&scene.path()).await;
    assert!(status == 200 && body == scene.bytes());
    assert_eq!(scene.fetches(), 3);

    let scene = Scene::with_blob(BIG).await;
    scene.upstream.script("GET", &scene.path(), [Reply::normal().cut_after(MIB as u64), limited(), limited()]);
    let mut client = Conn::get(scene.server.addr(), &scene.path()).await;
    assert_ne!(client.rest().await.1, Ended::Complete);
    scene.settle().await;
    assert_eq!(scene.fetches(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_without_progress_is_replaced_by_the_next() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let content = blob(1, BIG);
    let path = blob_path(REPO, &content);
    for upstream in [&first, &second] {
        upstream.add_blob(REPO, &content);
    }
    // The first URL always responds, but makes no more progress.
    first.script("GET", &path, [Reply::normal().cut_after(MIB as u64)]);
    first.always("GET", &path, Reply::normal().cut_after(0));
    let urls = format!("[upstream.\"docker.io\"]\nurl = [{:?}, {:?}]", first.url(""), second.url(""));
    let server = TestServer::builder().default_upstream("docker.io").config(&urls).start().await;
    let (status, body) = server.get_whole(&path).await;
    assert!(status == 200 && body == content.bytes);
    assert_eq!((first.count("GET", &path), second.count("GET", &path)), (2, 1));
    let resumed = second.requests()[0].header("range").to_owned();
    assert_eq!(resumed, format!("bytes={MIB}-{}", BIG - 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_without_progress_ends_and_cuts_its_client() {
    let scene = Scene::with_blob(BIG).await;
    scene.upstream.script("GET", &scene.path(), [Reply::normal().cut_after(MIB as u64)]);
    scene.upstream.always("GET", &scene.path(), Reply::normal().cut_after(0));
    let mut client = Conn::get(scene.server.addr(), &scene.path()).await;
    assert_ne!(client.rest().await.1, Ended::Complete);
    scene.settle().await;
    assert!(!scene.is_stored());
    assert!(scene.fetches() <= 8, "{}", scene.fetches());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_without_range_support_is_compared_with_the_spool() {
    let scene = Scene::with_blob(BIG).await;
    let half = BIG as u64 / 2;
    scene.upstream.script("GET", &scene.path(), [Reply::normal().cut_after(half), Reply::normal().ignore_range()]);
    let (status, body) = scene.server.get_whole(&scene.path()).await;
    assert!(status == 200 && body == scene.bytes());
    scene.settle().await;
    assert!(scene.is_stored());
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_content_cuts_followers_and_restarts_the_fill() {
    let scene = Scene::with_blob(BIG).await;
    let half = BIG as u64 / 2;
    let changed = Reply::normal().ignore_range().flip(MIB as u64);
    scene.upstream.script("GET", &scene.path(), [Reply::normal().cut_after(half), changed]);
    let mut client = Conn::get(scene.server.addr(), &scene.path()).await;
    assert_ne!(client.rest().await.1, Ended::Complete);
    scene.settle().await;
    let (status, body) = scene.server.get_whole(&scene.path()).await;
    assert!(status == 200 && body == scene.bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_without_bytes_gets_the_new_generation() {
    for size in [1, KIB, HELD_BACK_TAIL_BYTES - 1] {
        for bad in [Reply::normal().flip(0), Reply::normal().declare_length(size as u64 + 1)] {
            let scene = Scene::with_blob(size).await;
            scene.upstream.script("GET", &scene.path(), [bad]);
            let (status, body) = scene.server.get_whole(&scene.path()).await;
            assert_eq!((status, &body), (200, scene.bytes()), "{size}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_generation_of_another_length_cuts_the_response() {
    let scene = Scene::with_blob(BIG).await;
    // The first generation announces too small a length and wrong bytes.
    let short = scene.bytes().slice(..MIB);
    scene.upstream.script("GET", &scene.path(), [Reply::normal().body(short).flip(0)]);
    let mut client = Conn::get(scene.server.addr(), &scene.path()).await;
    let (body, ended) = client.rest().await;
    assert!(ended != Ended::Complete || body == scene.bytes(), "{} bytes", body.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_url_resumes_where_the_first_failed() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let content = blob(1, BIG);
    for upstream in [&first, &second] {
        upstream.add_blob(REPO, &content);
    }
    let urls = format!("[upstream.\"docker.io\"]\nurl = [{:?}, {:?}]", first.url(""), second.url(""));
    let builder = TestServer::builder().default_upstream("docker.io").config(&urls);
    let server = builder.start().await;
    let path = blob_path(REPO, &content);
    let gate = crate::support::Gate::new();
    first.script("GET", &path, [Reply::normal().wait_after(MIB as u64, &gate)]);
    let mut client = Conn::get(server.addr(), &path).await;
    client.take(KIB).await;
    first.go_down().await;
    let (rest, ended) = client.rest().await;
    assert_eq!(ended, Ended::Complete);
    assert!(rest == content.bytes[KIB..]);
    assert_eq!((first.count("GET", &path), second.count("GET", &path)), (1, 1));
}

impl TestServer {
    /// Status and body of a GET whose body must be complete.
    async fn get_whole(&self, path: &str) -> (u16, bytes::Bytes) {
        let mut client = Conn::get(self.addr(), path).await;
        let (body, ended) = client.rest().await;
        assert_eq!(ended, Ended::Complete, "{path}");
        (client.status, body)
    }
}
