//! Followers that come late, read slowly or leave. Each reads the file of the fill independently.

use std::time::Duration;

use crate::scene::{HELD_BACK_TAIL_BYTES, KIB, MIB, Scene};
use crate::support::{Conn, Ended, Gate, Reply};

#[tokio::test(flavor = "multi_thread")]
async fn a_late_follower_gets_the_blob_from_its_start() {
    let scene = Scene::with_blob(2 * MIB).await;
    let gate = Gate::new();
    let half = MIB as u64;
    scene.upstream.script("GET", &scene.path(), [Reply::normal().wait_after(half, &gate)]);
    let mut first = Conn::get(scene.server.addr(), &scene.path()).await;
    let read = first.take(MIB - HELD_BACK_TAIL_BYTES).await;
    assert!(read == scene.bytes()[..MIB - HELD_BACK_TAIL_BYTES]);
    let mut late = Conn::get(scene.server.addr(), &scene.path()).await;
    assert!(late.take(MIB - HELD_BACK_TAIL_BYTES).await == read);
    gate.open();
    assert_eq!(late.rest().await.1, Ended::Complete);
    assert_eq!(first.rest().await.1, Ended::Complete);
    assert_eq!(scene.fetches(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_held_back_tail_waits_for_verification() {
    let scene = Scene::with_blob(MIB).await;
    let gate = Gate::new();
    // All bytes but the last have arrived: followers may read up to 64 KiB before the end.
    scene.upstream.script("GET", &scene.path(), [Reply::normal().wait_after(MIB as u64 - 1, &gate)]);
    let mut client = Conn::get(scene.server.addr(), &scene.path()).await;
    assert!(client.take(MIB - HELD_BACK_TAIL_BYTES).await == scene.bytes()[..MIB - HELD_BACK_TAIL_BYTES]);
    let more = tokio::time::timeout(Duration::from_millis(200), client.take(1)).await;
    assert!(more.is_err(), "a byte of the held-back tail arrived before verification");
    gate.open();
    assert_eq!(client.rest().await.1, Ended::Complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_follower_is_not_cut_and_delays_no_other() {
    let scene = Scene::with_blob(32 * MIB).await;
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", scene.path());
    let mut slow = Conn::ask_with_small_buffer(scene.server.addr(), &request).await.unwrap();
    slow.take(KIB).await;
    // The fill and a fast client end while the slow client has read almost nothing.
    assert!(scene.server.get(&scene.path()).await.body == scene.bytes());
    scene.settle().await;
    let (rest, ended) = slow.rest().await;
    assert_eq!(ended, Ended::Complete);
    assert!(rest == scene.bytes()[KIB..]);
    assert_eq!(scene.fetches(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_followers_do_not_disturb_the_others() {
    let scene = Scene::with_blob(4 * MIB).await;
    let gate = Gate::new();
    scene.upstream.script("GET", &scene.path(), [Reply::normal().wait_after(MIB as u64, &gate)]);
    let mut stays = Conn::get(scene.server.addr(), &scene.path()).await;
    for _ in 0..10 {
        let mut leaves = Conn::get(scene.server.addr(), &scene.path()).await;
        leaves.take(KIB).await;
    }
    gate.open();
    let (body, ended) = stays.rest().await;
    assert!(body == scene.bytes() && ended == Ended::Complete);
    assert_eq!(scene.fetches(), 1);
    scene.settle().await;
}
