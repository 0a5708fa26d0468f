//! `roadstead gc`, on a running server and offline.

use std::fs;
use std::time::{Duration, SystemTime};

use crate::operator::{CommandOutput, roadstead, roadstead_with};
use crate::scene::{KIB, REPO, is_stored};
use crate::support::{Image, TestServer, Upstream};

/// The background collector never runs. Unreachable content is due at once.
const NO_GRACE: &str = "[gc]\ninterval = \"0s\"\nafter_start = \"0s\"\ngrace = \"0s\"\nunreferenced_after = \"0s\"";
const NO_GRACE_OFFLINE: [(&str, &str); 2] = [("ROADSTEAD_GC__GRACE", "0s"), ("ROADSTEAD_GC__UNREFERENCED_AFTER", "0s")];

/// A server with two pushed images, one of which was deleted.
async fn with_a_deleted_image(gc: &str) -> (TestServer, Image) {
    let server = TestServer::builder().config(gc).start().await;
    let (deleted, kept) = (Image::new(1, &[10 * KIB]), Image::new(2, &[10 * KIB]));
    server.client().push_image(&server.url(""), "team/a", "v1", &deleted).await;
    server.client().push_image(&server.url(""), "team/a", "v2", &kept).await;
    assert_eq!(server.delete(&format!("/v2/team/a/manifests/{}", deleted.manifest.digest)).await.status, 202);
    (server, deleted)
}

fn done(output: &CommandOutput) -> serde_json::Value {
    assert_eq!(output.code, 0, "{output:?}");
    output.events().pop().expect("the last event reports the result")
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_frees_deleted_content_on_a_running_server() {
    let (server, deleted) = with_a_deleted_image(NO_GRACE).await;
    let data = server.data_dir();
    let dry = done(&roadstead(data, &["gc", "--dry-run", "--output", "json"]).await);
    assert_eq!((&dry["event"], &dry["removed"]), (&"done".into(), &false.into()));
    // The manifest. Its layer and config are no longer referenced, and follow once no link names them.
    assert_eq!((&dry["collected"]["files"], &dry["collected"]["members"]), (&1.into(), &2.into()), "{dry}");
    assert!(is_stored(data, &deleted.manifest), "a dry run removes nothing");
    let first = done(&roadstead(data, &["gc", "--output", "json"]).await);
    assert_eq!((&first["collected"], &first["removed"]), (&dry["collected"], &true.into()));
    let second = roadstead(data, &["gc"]).await;
    assert!(second.out.starts_with("removed: 2 files ("), "{}", second.out);
    for content in deleted.layers.iter().chain([&deleted.config, &deleted.manifest]) {
        assert!(!is_stored(data, content));
    }
    let third = roadstead(data, &["gc"]).await;
    let nothing = "removed: 0 files (0 B), 0 blobs of repositories that no manifest refers to, 0 untagged manifests; \
                   0 more are unreferenced and wait for their grace period\n\
                   unneeded names of mirrored repositories: 0 tags, 0 links, 0 repositories\n";
    assert_eq!(third.out, nothing);
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_works_offline_after_a_clean_stop_or_a_crash() {
    for clean in [true, false] {
        let (mut server, deleted) = with_a_deleted_image("").await;
        server.stop_running().await;
        let data = server.data_dir();
        if !clean {
            fs::remove_dir_all(data.join("index")).unwrap();
        }
        for _ in 0..2 {
            assert_eq!(roadstead_with(data, &["gc"], &NO_GRACE_OFFLINE).await.code, 0);
        }
        assert!(!is_stored(data, &deleted.layers[0]) && !is_stored(data, &deleted.manifest));
        assert_eq!(roadstead(data, &["scrub"]).await.code, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_removes_nothing_before_after_start() {
    let (server, deleted) = with_a_deleted_image("[gc]\ngrace = \"0s\"").await;
    let output = roadstead(server.data_dir(), &["gc"]).await;
    assert!(
        output
            .out
            .ends_with("nothing was removed: the server has not run for gc.after_start yet; run gc again later\n")
    );
    assert!(is_stored(server.data_dir(), &deleted.manifest));
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_removes_dangling_names_and_empty_folders() {
    let upstream = Upstream::start().await;
    let (gone, kept) = (Image::new(1, &[10 * KIB]), Image::new(2, &[10 * KIB]));
    upstream.add_image("org/gone", "v1", &gone);
    upstream.add_image(REPO, "v1", &kept);
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server = builder.config(NO_GRACE).start().await;
    for repo in ["org/gone", REPO] {
        assert_eq!(server.get(&format!("/v2/{repo}/manifests/v1")).await.status, 200);
    }
    let repositories = server.data_dir().join("repositories/docker.io");
    // The state long after an eviction: the content is gone, and the links are old.
    let hex = gone.manifest.digest.strip_prefix("sha256:").unwrap();
    fs::remove_file(server.data_dir().join("blobs/sha256").join(&hex[..2]).join(hex)).unwrap();
    for repo in ["org/gone", REPO] {
        for link in fs::read_dir(repositories.join(repo).join("_blobs/sha256")).unwrap() {
            let link = fs::File::options().write(true).open(link.unwrap().path()).unwrap();
            link.set_modified(SystemTime::now() - Duration::from_secs(2 * 60 * 60)).unwrap();
        }
    }
    let swept = done(&roadstead(server.data_dir(), &["gc", "--output", "json"]).await);
    assert!(!repositories.join("org").exists(), "{swept}");
    assert_eq!((&swept["swept"]["repositories"], &swept["swept"]["links"]), (&1.into(), &3.into()), "{swept}");
    assert!(repositories.join(REPO).join("_tags/v1").exists(), "its layers are not stored, but referenced");
    assert_eq!(server.get(&format!("/v2/{REPO}/manifests/v1")).await.body, kept.manifest.bytes);
    let again = server.get("/v2/org/gone/manifests/v1").await;
    assert_eq!((again.status, again.body), (200, gone.manifest.bytes));
}
