//! `roadstead gc`, on a running server and on a folder that nobody serves.

use std::fs;
use std::time::{Duration, SystemTime};

use crate::operator::{Said, roadstead, roadstead_with};
use crate::scene::{KIB, REPO, is_stored};
use crate::support::{Image, TestServer, Upstream};

/// The collector itself never runs; what is out of reach is due at once.
const AT_ONCE: &str = "[gc]\ninterval = \"0s\"\nafter_start = \"0s\"\ngrace = \"0s\"\nunreferenced_after = \"0s\"";
const AT_ONCE_OFFLINE: [(&str, &str); 2] = [("ROADSTEAD_GC__GRACE", "0s"), ("ROADSTEAD_GC__UNREFERENCED_AFTER", "0s")];

/// A server with one image that was pushed and deleted, and one that was not.
async fn with_a_deleted_image(gc: &str) -> (TestServer, Image) {
    let server = TestServer::builder().config(gc).start().await;
    let (deleted, kept) = (Image::new(1, &[10 * KIB]), Image::new(2, &[10 * KIB]));
    server.client().push_image(&server.url(""), "team/a", "v1", &deleted).await;
    server.client().push_image(&server.url(""), "team/a", "v2", &kept).await;
    assert_eq!(server.delete(&format!("/v2/team/a/manifests/{}", deleted.manifest.digest)).await.status, 202);
    (server, deleted)
}

fn done(said: &Said) -> serde_json::Value {
    assert_eq!(said.code, 0, "{said:?}");
    said.events().pop().expect("it says what it did")
}

#[tokio::test(flavor = "multi_thread")]
async fn it_gives_back_what_was_deleted_on_a_running_server_and_says_before_what_that_is() {
    let (server, deleted) = with_a_deleted_image(AT_ONCE).await;
    let data = server.data_dir();
    let dry = done(&roadstead(data, &["gc", "--dry-run", "--output", "json"]).await);
    assert_eq!((&dry["event"], &dry["removed"]), (&"done".into(), &false.into()));
    // Its manifest; the layer and the config have lost their reason, and go when nothing names them.
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
    let nothing = "removed: 0 files (0 B), 0 rights to uploads that nothing refers to, 0 untagged manifests; \
                   0 more are out of reach and wait\n\
                   names of upstreams that stood for nothing: 0 tags, 0 links, 0 repositories\n";
    assert_eq!(third.out, nothing);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_works_on_a_folder_that_nobody_serves_after_a_clean_stop_and_a_crash() {
    for clean in [true, false] {
        let (mut server, deleted) = with_a_deleted_image("").await;
        server.stop_running().await;
        let data = server.data_dir();
        if !clean {
            fs::remove_dir_all(data.join("index")).unwrap();
        }
        for _ in 0..2 {
            assert_eq!(roadstead_with(data, &["gc"], &AT_ONCE_OFFLINE).await.code, 0);
        }
        assert!(!is_stored(data, &deleted.layers[0]) && !is_stored(data, &deleted.manifest));
        assert_eq!(roadstead(data, &["scrub"]).await.code, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_just_begun_removes_nothing_and_says_so() {
    let (server, deleted) = with_a_deleted_image("[gc]\ngrace = \"0s\"").await;
    let said = roadstead(server.data_dir(), &["gc"]).await;
    assert!(said.out.ends_with("nothing was removed: the server has not run for long enough (gc.after_start)\n"));
    assert!(is_stored(server.data_dir(), &deleted.manifest));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_stand_for_nothing_go_with_their_folders() {
    let upstream = Upstream::start().await;
    let (gone, kept) = (Image::new(1, &[10 * KIB]), Image::new(2, &[10 * KIB]));
    upstream.add_image("org/gone", "v1", &gone);
    upstream.add_image(REPO, "v1", &kept);
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server = builder.config(AT_ONCE).start().await;
    for repo in ["org/gone", REPO] {
        assert_eq!(server.get(&format!("/v2/{repo}/manifests/v1")).await.status, 200);
    }
    let repositories = server.data_dir().join("repositories/docker.io");
    // As eviction leaves it after a while: the content is gone, and the links are not young.
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
    assert!(repositories.join(REPO).join("_tags/v1").exists(), "its layers are not here, and needed");
    assert_eq!(server.get(&format!("/v2/{REPO}/manifests/v1")).await.body, kept.manifest.bytes);
    let again = server.get("/v2/org/gone/manifests/v1").await;
    assert_eq!((again.status, again.body), (200, gone.manifest.bytes));
}
