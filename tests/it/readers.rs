//! Read access by repository and credential, lengths, and ranges.

use crate::scene::{HELD_BACK_TAIL_BYTES, KIB, MIB, REPO, Scene, blob, blob_path, settle};
use crate::support::{Conn, Ended, Gate, Image, Index, Reply, TestServer, Upstream};

const OTHER: &str = "library/other";

#[tokio::test(flavor = "multi_thread")]
async fn stored_content_needs_confirmation_for_each_upstream_repository() {
    let scene = Scene::with_blob(MIB).await;
    assert_eq!(scene.server.get(&scene.path()).await.status, 200);
    scene.settle().await;
    let other = blob_path(OTHER, &scene.blob);
    let refused = scene.server.get(&other).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (404, "BLOB_UNKNOWN"));
    assert_eq!(scene.upstream.count("HEAD", &other), 1);

    let third = blob_path("library/third", &scene.blob);
    scene.upstream.add_blob("library/third", &scene.blob);
    for _ in 0..3 {
        assert!(scene.server.get(&third).await.body == scene.bytes());
    }
    assert_eq!((scene.upstream.count("HEAD", &third), scene.upstream.count("GET", &third)), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_repository_joins_a_fill_only_after_its_own_confirmation() {
    let scene = Scene::with_blob(MIB).await;
    let gate = Gate::new();
    scene.upstream.script("GET", &scene.path(), [Reply::normal().wait_after(128 * KIB as u64, &gate)]);
    let mut first = Conn::get(scene.server.addr(), &scene.path()).await;
    first.take(1).await;

    let other = blob_path(OTHER, &scene.blob);
    assert_eq!(scene.server.get(&other).await.status, 404);
    let third = blob_path("library/third", &scene.blob);
    scene.upstream.add_blob("library/third", &scene.blob);
    let mut joined = Conn::get(scene.server.addr(), &third).await;
    assert_eq!(joined.take(1).await, scene.bytes()[..1]);
    gate.open();
    assert!(joined.rest().await.0 == scene.bytes()[1..]);
    assert!(first.rest().await.0 == scene.bytes()[1..]);
    assert_eq!((scene.upstream.count("HEAD", &third), scene.upstream.count("GET", &third)), (1, 0));
    assert_eq!(scene.fetches(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_falls_back_to_its_own_source() {
    let scene = Scene::with_blob(MIB).await;
    let third = blob_path("library/third", &scene.blob);
    scene.upstream.add_blob("library/third", &scene.blob);
    let gate = Gate::new();
    scene.upstream.always("GET", &scene.path(), Reply::error(500, "UNKNOWN").wait_before_head(&gate));
    let (own, joined, ()) = tokio::join!(
        async { scene.server.get(&scene.path()).await },
        async {
            gate.reached(1).await;
            scene.server.get(&third).await
        },
        async {
            crate::scene::until("the second repository is confirmed", async || {
                scene.upstream.count("HEAD", &third) == 1
            })
            .await;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            gate.open();
        }
    );
    assert_eq!(own.status, 502);
    assert!(joined.body == scene.bytes());
    assert_eq!(scene.upstream.count("GET", &third), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn references_of_a_served_manifest_need_no_confirmation() {
    let upstream = Upstream::start().await;
    let (image, index) = (Image::new(1, &[200 * KIB]), Index::new(2, &["linux/amd64", "linux/arm64"], &[10]));
    upstream.add_image(REPO, "v1", &image);
    upstream.add_image(OTHER, "v1", &image);
    upstream.add_index(REPO, "multi", &index);
    upstream.add_index(OTHER, "multi", &index);
    let server = TestServer::mirror_of(&upstream).await;
    for repo in [REPO, OTHER] {
        assert_eq!(server.get(&format!("/v2/{repo}/manifests/v1")).await.body, image.manifest.bytes);
        for blob in image.blobs() {
            assert!(server.get(&blob_path(repo, blob)).await.body == blob.bytes);
        }
        assert_eq!(server.get(&format!("/v2/{repo}/manifests/multi")).await.body, index.manifest.bytes);
        for image in &index.images {
            let answer = server.get(&format!("/v2/{repo}/manifests/{}", image.digest())).await;
            assert_eq!(answer.body, image.manifest.bytes);
            assert_eq!(answer.header("content-type"), image.manifest.media_type);
        }
    }
    // For the second repository, only its two tags were requested upstream.
    let requested: Vec<_> = upstream.requests().into_iter().filter(|seen| seen.path.contains(OTHER)).collect();
    assert_eq!(requested.len(), 2, "{requested:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pushed_and_mirrored_content_are_not_readable_across_scopes() {
    let scene = Scene::with_blob(100 * KIB).await;
    let pushed = blob(50, 100 * KIB);
    scene.server.client().push_blob(&scene.server.url(""), "team/app", &pushed).await;
    assert_eq!(scene.server.get(&blob_path("team/app", &pushed)).await.status, 200);
    assert_eq!(scene.server.get(&blob_path(REPO, &pushed)).await.status, 404);
    assert_eq!(scene.server.get(&blob_path("team/other", &pushed)).await.status, 404);

    assert_eq!(scene.server.get(&scene.path()).await.status, 200);
    scene.settle().await;
    assert_eq!(scene.server.get(&blob_path("team/app", &scene.blob)).await.status, 404);
    assert_eq!(scene.server.head(&blob_path("team/app", &scene.blob)).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn head_of_a_cold_blob_falls_back_to_the_manifest() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[200 * KIB, 10]);
    upstream.add_image(REPO, "v1", &image);
    let server = TestServer::mirror_of(&upstream).await;
    server.get(&format!("/v2/{REPO}/manifests/v1")).await;
    let first = blob_path(REPO, &image.layers[0]);
    for _ in 0..3 {
        let head = server.head(&first).await;
        assert_eq!((head.status, head.header("content-length")), (200, "204800"));
        assert_eq!(head.header("accept-ranges"), "bytes");
        assert_eq!(head.header("docker-content-digest"), image.layers[0].digest);
    }
    assert_eq!(upstream.count("HEAD", &first), 1);
    upstream.go_down().await;
    let second = server.head(&blob_path(REPO, &image.layers[1])).await;
    assert_eq!((second.status, second.header("content-length")), (200, "10"));
    assert_eq!(server.head(&blob_path(REPO, &blob(77, 5))).await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_far_ahead_of_the_mark_starts_a_transfer_of_its_own() {
    let size = 20 * MIB;
    let scene = Scene::with_blob(size).await;
    let gate = Gate::new();
    scene.upstream.script("GET", &scene.path(), [Reply::normal().wait_after(MIB as u64, &gate)]);
    let bytes = scene.bytes();
    let ranges = [(0, 100), (MIB - HELD_BACK_TAIL_BYTES - 100, MIB - HELD_BACK_TAIL_BYTES)];
    for (start, end) in ranges {
        let range = format!("bytes={start}-{}", end - 1);
        let near = scene.server.get_with(&scene.path(), &[("Range", &range)]).await;
        assert_eq!((near.status, near.header("content-range")), (206, &*format!("bytes {start}-{}/{size}", end - 1)));
        assert!(near.body == bytes[start..end]);
    }
    assert_eq!(scene.fetches(), 1);
    for (range, start, end) in [("bytes=-500", size - 500, size), ("bytes=15728640-15728999", 15 * MIB, 15 * MIB + 360)]
    {
        let far = scene.server.get_with(&scene.path(), &[("Range", range)]).await;
        assert_eq!((far.status, far.header("content-range")), (206, &*format!("bytes {start}-{}/{size}", end - 1)));
        assert!(far.body == bytes[start..end]);
    }
    let requested: Vec<_> = scene.upstream.requests().iter().map(|seen| seen.header("range").to_owned()).collect();
    // A small range is extended to a mebibyte.
    assert_eq!(requested, ["", "bytes=20971020-20971519", "bytes=15728640-16777215"]);
    let beyond = scene.server.get_with(&scene.path(), &[("Range", "bytes=20971520-")]).await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, "bytes */20971520"));
    // A little ahead of the mark: the request waits.
    let path = scene.path();
    let mut waiting = Conn::get_with(scene.server.addr(), &path, &[("Range", "bytes=2097152-2097161")]).await;
    assert_eq!(waiting.status, 206);
    gate.open();
    let (body, ended) = waiting.rest().await;
    assert!(body == bytes[2 * MIB..2 * MIB + 10] && ended == Ended::Complete);
    scene.settle().await;
    let requested: Vec<_> = scene.upstream.requests().iter().map(|seen| seen.header("range").to_owned()).collect();
    assert_eq!(requested[3..], ["bytes=16777216-20971019"], "every byte is requested once");
    assert_eq!(scene.server.metric("roadstead_cache_results_total", &[("result", "bypass")]).await, 0.0);
    assert!(scene.server.get(&scene.path()).await.body == bytes && scene.fetches() == 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_open_ended_ranges_share_one_fetch() {
    let scene = Scene::with_blob(4 * MIB).await;
    let addr = scene.server.addr();
    let path = &scene.path();
    let parts = (0..4).map(|part| async move {
        // Like containerd: an open-ended range, closed once the client has its part.
        let range = format!("bytes={}-", part * MIB);
        let mut client = Conn::get_with(addr, path, &[("Range", &range)]).await;
        assert_eq!(client.status, 206);
        client.take(MIB).await
    });
    let parts = futures_util::future::join_all(parts.collect::<Vec<_>>()).await;
    assert!(parts.concat() == scene.bytes()[..]);
    assert_eq!(scene.fetches(), 1);
    settle(&scene.server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_ranges_makes_far_ranges_wait() {
    let scene = Scene::with_blob(12 * MIB).await;
    let gate = Gate::new();
    scene.upstream.script(
        "GET",
        &scene.path(),
        [Reply::normal().wait_after(MIB as u64, &gate), Reply::normal().ignore_range()],
    );
    let (far, ()) =
        tokio::join!(async { scene.server.get_with(&scene.path(), &[("Range", "bytes=-10")]).await }, async {
            crate::scene::until("the range was requested", async || scene.fetches() == 2).await;
            gate.open();
        });
    assert_eq!(far.status, 206);
    assert!(far.body == scene.bytes()[12 * MIB - 10..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_and_conditions_of_a_warm_blob_follow_rfc_9110() {
    let scene = Scene::with_blob(2048).await;
    let path = scene.path();
    let bytes = scene.bytes();
    scene.server.get(&path).await;
    scene.settle().await;
    let etag = format!("\"{}\"", scene.blob.digest);
    let whole = |headers: &'static str| (headers, 200, 0, 2048);
    for (range, status, start, end) in [
        ("bytes=500-1499", 206, 500, 1500),
        ("bytes=500-", 206, 500, 2048),
        ("bytes=-500", 206, 1548, 2048),
        ("bytes=2000-5000", 206, 2000, 2048),
        whole("bytes=a-b"),
        whole("items=0-1"),
        ("bytes=5000-10000", 416, 0, 0),
        ("bytes=500-0", 416, 0, 0),
    ] {
        let answer = scene.server.get_with(&path, &[("Range", range)]).await;
        assert_eq!(answer.status, status, "{range}");
        match status {
            416 => assert_eq!(answer.header("content-range"), "bytes */2048", "{range}"),
            _ => assert!(answer.body == bytes[start..end], "{range}"),
        }
        // Range does not apply to HEAD.
        assert_eq!(scene.server.send("HEAD", &path, &[("Range", range)], "").await.header("content-length"), "2048");
    }
    let range = ("Range", "bytes=0-9");
    assert_eq!(scene.server.get_with(&path, &[range, ("If-Range", &etag)]).await.status, 206);
    assert_eq!(scene.server.get_with(&path, &[range, ("If-Range", "\"other\"")]).await.status, 200);
    let unchanged = scene.server.get_with(&path, &[("If-None-Match", &etag)]).await;
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
    assert_eq!(unchanged.header("etag"), etag);
    assert_eq!(scene.server.get_with(&path, &[("If-None-Match", "\"other\"")]).await.status, 200);
    assert_eq!(scene.fetches(), 1);
}
