//! A data folder that cannot be written: pulls bypass the store, pushes are refused with the cause, and the server
//! recovers by itself.
//!
//! Errors of each kind are tested beside the store (`store::faults`). Here a file is in the place of `spool/`, which
//! has the same effect for every user, and the limit of file sizes is low.

use std::path::Path;

use crate::scene::{KIB, MIB, REPO, blob, blob_path, is_stored, until};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Image, TestServer, Upstream};

fn break_spool(data: &Path) {
    let spool = data.join("spool");
    std::fs::remove_dir_all(&spool).unwrap();
    std::fs::write(spool, "").unwrap();
}

fn mend_spool(data: &Path) {
    std::fs::remove_file(data.join("spool")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_bypass_a_folder_that_cannot_be_written() {
    let upstream = Upstream::start().await;
    let (before, new) = (Image::new(1, &[200 * KIB]), Image::new(2, &[200 * KIB, 10]));
    upstream.add_image(REPO, "v1", &before);
    upstream.add_image(REPO, "v2", &new);
    upstream.add_image("library/other", "v1", &before);
    let server = TestServer::mirror_of(&upstream).await;
    let pull = async |repo: &str, tag: &str, image: &Image| {
        let manifest = server.get(&format!("/v2/{repo}/manifests/{tag}")).await;
        assert_eq!((manifest.status, &manifest.body), (200, &image.manifest.bytes), "{repo}:{tag}");
        let by_digest = server.get(&format!("/v2/{repo}/manifests/{}", image.manifest.digest)).await;
        assert_eq!(by_digest.body, image.manifest.bytes, "{repo}:{tag}");
        for blob in image.blobs() {
            let path = blob_path(repo, blob);
            // A HEAD in a repository of which nothing is stored is the first request of a push.
            if repo == REPO {
                assert_eq!(server.head(&path).await.status, 200, "{path}");
            }
            assert_eq!(server.get(&path).await.body, blob.bytes, "{path}");
        }
    };
    pull(REPO, "v1", &before).await;
    crate::scene::settle(&server).await;
    break_spool(server.data_dir());

    upstream.forget();
    pull(REPO, "v1", &before).await;
    assert_eq!(upstream.total(), 0, "what is stored is served");
    for _ in 0..2 {
        pull(REPO, "v2", &new).await;
    }
    pull("library/other", "v1", &before).await;
    let part = server.get_with(&blob_path(REPO, &new.layers[0]), &[("Range", "bytes=1000-1999")]).await;
    assert_eq!((part.status, &part.body[..]), (206, &new.layers[0].bytes[1000..2000]));
    let ready = server.get("/readyz").await;
    assert_eq!((ready.status, &ready.json()["storage"]), (503, &"cannot_be_written".into()));
    assert!(server.metric("roadstead_no_room_total", &[]).await > 0.0);
    assert_eq!(server.metric("roadstead_cache_results_total", &[("result", "error")]).await, 0.0);
    // From now on a blob costs one request for each pull: no fill is tried first.
    upstream.forget();
    for _ in 0..3 {
        assert_eq!(server.get(&blob_path(REPO, &new.layers[0])).await.body, new.layers[0].bytes);
    }
    assert_eq!(upstream.count("GET", &blob_path(REPO, &new.layers[0])), 3);

    mend_spool(server.data_dir());
    until("content is stored again", async || {
        pull(REPO, "v2", &new).await;
        is_stored(server.data_dir(), &new.layers[0])
    })
    .await;
    until("the server is ready", async || server.get("/readyz").await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_push_names_the_cause_and_no_path() {
    let upstream = Upstream::start().await;
    let server = TestServer::mirror_of(&upstream).await;
    let image = Image::new(1, &[1000]);
    server.client().push_image(&server.url(""), "team/app", "v1", &image).await;
    break_spool(server.data_dir());
    let headers = [("Content-Type", image.manifest.media_type.as_str())];
    let refused = server.send("PUT", "/v2/team/app/manifests/v2", &headers, image.manifest.bytes.clone()).await;
    assert_eq!(refused.status, 500);
    assert!(refused.text().contains("storage failed; look for disk errors"), "{}", refused.text());
    assert!(!refused.text().contains(server.data_dir().to_str().unwrap()), "{}", refused.text());
    mend_spool(server.data_dir());
    until("the push is taken", async || {
        server.send("PUT", "/v2/team/app/manifests/v2", &headers, image.manifest.bytes.clone()).await.status == 201
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_blobs_bypass_the_store_at_a_file_size_limit() {
    let upstream = Upstream::start().await;
    let (small, large) = (blob(1, 100 * KIB), blob(2, 9 * MIB));
    upstream.add_blob(REPO, &small);
    upstream.add_blob(REPO, &large);
    let settings = Settings::new().upstream("docker.io", &upstream).default_upstream("docker.io");
    let process = ServerProcess::start_with_small_files(settings, 8 * MIB as u64);
    let (client, base) = (Client::new(), process.url(""));
    for blob in [&large, &small, &large] {
        let pulled = client.get(&format!("{base}{}", blob_path(REPO, blob))).await;
        assert_eq!((pulled.status, pulled.body == blob.bytes), (200, true));
    }
    until("the small blob is stored", async || is_stored(&process.data_dir(), &small)).await;
    assert!(!is_stored(&process.data_dir(), &large));
    let location = client.send("POST", &format!("{base}/v2/team/app/blobs/uploads/"), &[], "").await;
    let session = format!("{base}{}?digest={}", location.header("location"), large.digest);
    let refused = client.send("PUT", &session, &[], large.bytes.clone()).await;
    assert_eq!(refused.status, 507);
    assert!(refused.text().contains("ulimit -f"), "{}", refused.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_without_room_names_min_free() {
    let upstream = Upstream::start().await;
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server = builder.config("[cache]\nmin_free = \"4000TiB\"").start().await;
    let content = blob(1, 10);
    let location = server.send("POST", "/v2/team/app/blobs/uploads/", &[], "").await;
    let session = format!("{}?digest={}", location.header("location"), content.digest);
    let refused = server.send("PUT", &session, &[], content.bytes.clone()).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (507, "UNAVAILABLE"));
    assert!(refused.text().contains("lower cache.min_free"), "{}", refused.text());
}
