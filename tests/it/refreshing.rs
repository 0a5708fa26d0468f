//! `stale_while_revalidate`: a recently expired tag is served at once, and revalidated in the background.

use std::time::Duration;

use futures_util::future::join_all;

use crate::freshness::{REPO, TAG, mirror, take_requests, upstream_with};
use crate::scene::until;
use crate::support::{Gate, Image, Reply};

const OPTION: &str = "tag_ttl = \"200ms\"\nstale_while_revalidate = \"1h\"";
const PAST_TTL: Duration = Duration::from_millis(250);

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_runs_once_in_the_background() {
    let [old, new] = [1, 2].map(|seed| Image::new(seed, &[10]));
    let upstream = upstream_with(&old).await;
    let server = mirror(&upstream, OPTION).await;
    server.get(TAG).await;
    take_requests(&upstream);
    upstream.add_image(REPO, "1", &new);
    let gate = Gate::new();
    upstream.always("HEAD", TAG, Reply::normal().wait_before_head(&gate));
    tokio::time::sleep(PAST_TTL).await;
    for answer in join_all((0..20).map(|_| server.get(TAG))).await {
        assert_eq!((answer.status, &answer.body), (200, &old.manifest.bytes), "while the upstream is silent");
        assert_eq!(answer.header("warning"), "");
    }
    gate.reached(1).await;
    assert_eq!(take_requests(&upstream), ["HEAD manifests/1"]);
    gate.open();
    until("the new manifest is served", async || server.get(TAG).await.body == new.manifest.bytes).await;
    let metrics = server.metrics().await;
    let sum = |name: &str, result: &str| match result {
        "" => metrics.sum(name, &[("type", "manifest")]),
        result => metrics.sum(name, &[("type", "manifest"), ("result", result)]),
    };
    assert!(sum("roadstead_cache_results_total", "refreshing") >= 20.0);
    assert_eq!(sum("roadstead_cache_results_total", "miss"), 1.0);
    let (hits, misses) = (sum("registry_proxy_hits_total", ""), sum("registry_proxy_misses_total", ""));
    assert_eq!((misses, hits + misses), (1.0, sum("registry_proxy_requests_total", "")));
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_is_off_by_default_and_for_zero_ttl() {
    for cache in ["tag_ttl = \"200ms\"", "tag_ttl = \"0s\"\nstale_while_revalidate = \"1h\""] {
        let [old, new] = [1, 2].map(|seed| Image::new(seed, &[10]));
        let upstream = upstream_with(&old).await;
        let server = mirror(&upstream, cache).await;
        server.get(TAG).await;
        upstream.add_image(REPO, "1", &new);
        tokio::time::sleep(PAST_TTL).await;
        assert_eq!(server.get(TAG).await.body, new.manifest.bytes, "{cache}");
        assert_eq!(server.metric("roadstead_cache_results_total", &[("result", "refreshing")]).await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_stale_while_revalidate_the_upstream_is_awaited() {
    let [old, new] = [1, 2].map(|seed| Image::new(seed, &[10]));
    let upstream = upstream_with(&old).await;
    let server = mirror(&upstream, "tag_ttl = \"100ms\"\nstale_while_revalidate = \"100ms\"").await;
    server.get(TAG).await;
    upstream.add_image(REPO, "1", &new);
    tokio::time::sleep(PAST_TTL).await;
    assert_eq!(server.get(TAG).await.body, new.manifest.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_cancels_the_refresh() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, &format!("answer_within = \"100s\"\n{OPTION}")).await;
    server.get(TAG).await;
    let gate = Gate::new();
    upstream.always("HEAD", TAG, Reply::normal().wait_before_head(&gate));
    tokio::time::sleep(PAST_TTL).await;
    assert_eq!(server.get(TAG).await.status, 200);
    gate.reached(1).await;
    tokio::time::timeout(Duration::from_secs(60), server.stop()).await.expect("the stop does not wait for the refresh");
}
