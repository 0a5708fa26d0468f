//! The collector removes content that has been unreachable for long enough, and nothing else.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use roadstead::oci::{Algorithm, Digest, RepoId};
use roadstead::store::{CollectRules, Collected, Store};
use tempfile::TempDir;

use crate::operator::roadstead;
use crate::scene::{KIB, blob_path, is_stored, until};
use crate::support::image::{OCI_LAYER, random_bytes};
use crate::support::{Content, Image, Index, TestServer};

const IMMEDIATE_GC: &str =
    "[gc]\ninterval = \"20ms\"\nafter_start = \"0s\"\ngrace = \"0s\"\nunreferenced_after = \"0s\"";
const SECOND: Duration = Duration::from_secs(1);
const AT_ONCE: CollectRules =
    CollectRules { grace: Duration::ZERO, unreferenced_after: Duration::ZERO, untagged_after: None, remove: true };

async fn push(server: &TestServer, repo: &str, tag: &str, image: &Image) {
    server.client().push_image(&server.url(""), repo, tag, image).await;
}

async fn wait_until_collected(server: &TestServer, content: &Content) {
    until("the content is collected", async || !is_stored(server.data_dir(), content)).await;
}

async fn assert_complete(server: &TestServer, repo: &str, tag: &str, image: &Image) {
    assert_eq!(server.get(&format!("/v2/{repo}/manifests/{tag}")).await.body, image.manifest.bytes);
    for content in image.layers.iter().chain([&image.config]) {
        assert!(server.get(&blob_path(repo, content)).await.body == content.bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_content_is_collected_unless_another_name_needs_it() {
    let mut server = TestServer::builder().start().await;
    let shared = Content::new(OCI_LAYER, random_bytes(1, 50 * KIB));
    let own = Content::new(OCI_LAYER, random_bytes(2, 50 * KIB));
    let going = Image::for_platform("linux/amd64", vec![shared.clone(), own.clone()]);
    let staying = Image::for_platform("linux/amd64", vec![shared.clone()]);
    push(&server, "team/a", "v1", &going).await;
    push(&server, "team/b", "v1", &staying).await;
    assert_eq!(server.delete(&format!("/v2/team/a/manifests/{}", going.manifest.digest)).await.status, 202);
    assert!(is_stored(server.data_dir(), &own), "deletion leaves the file to the collector");
    server.restart_with(IMMEDIATE_GC).await;
    for content in [&own, &going.config, &going.manifest] {
        wait_until_collected(&server, content).await;
    }
    assert_complete(&server, "team/b", "v1", &staying).await;
    assert_eq!(server.get(&blob_path("team/a", &shared)).await.status, 404, "only team/b may read it now");
    server.restart_with("[gc]\ninterval = \"0s\"").await;
    push(&server, "team/a", "v1", &staying).await;
    assert_complete(&server, "team/a", "v1", &staying).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn untagged_manifests_stay_unless_configured() {
    let mut server = TestServer::builder().start().await;
    let [first, second] = [11, 12].map(|seed| Image::new(seed, &[20 * KIB]));
    let listed = Image::new(13, &[20 * KIB]);
    push(&server, "team/a", "v1", &first).await;
    push(&server, "team/a", "v1", &second).await;
    push(&server, "team/a", "part", &listed).await;
    let index = Index::of(vec![listed.clone()]);
    server.client().push_index(&server.url(""), "team/a", "all", &index).await;
    assert_eq!(server.delete("/v2/team/a/manifests/part").await.status, 202);
    server.restart_with(IMMEDIATE_GC).await;
    let uploaded = Image::new(14, &[20 * KIB]);
    // Once an unreferenced upload is gone, a pass has ended.
    server.client().push_blob(&server.url(""), "team/b", &uploaded.layers[0]).await;
    wait_until_collected(&server, &uploaded.layers[0]).await;
    assert!(is_stored(server.data_dir(), &first.manifest), "untagged manifests are not configured to be removed");
    server.restart_with("[gc]\nuntagged_after = \"1ms\"").await;
    wait_until_collected(&server, &first.manifest).await;
    wait_until_collected(&server, &first.layers[0]).await;
    assert_complete(&server, "team/a", "v1", &second).await;
    assert_complete(&server, "team/a", &listed.manifest.digest, &listed).await;
}

struct Scene {
    store: Store,
    repo: RepoId,
    _folder: TempDir,
}

impl Scene {
    /// A store without manifests whose index is in step with its files.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.reconcile(&AtomicBool::new(false));
        Self { store, repo: RepoId::local("team/app".parse().unwrap()), _folder: folder }
    }

    async fn upload(&self, bytes: &'static [u8]) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        let upload = self.store.create_upload(&self.repo, Algorithm::Sha256).await.unwrap();
        upload.append(vec![Bytes::from_static(bytes)]).await.unwrap();
        upload.finish(&self.repo, &digest).await.unwrap();
        digest
    }

    async fn collect(&self, rules: CollectRules) -> Collected {
        let store = self.store.clone();
        let pass = tokio::task::spawn_blocking(move || store.collect(rules, &AtomicBool::new(false), &|_| {}));
        pass.await.unwrap().unwrap()
    }

    async fn is_stored(&self, digest: &Digest) -> bool {
        self.store.blob(digest).await.unwrap().is_some()
    }
}

#[tokio::test]
async fn an_unreferenced_upload_is_collected_in_two_delayed_steps() {
    let scene = Scene::new();
    let digest = scene.upload(b"never referred to").await;
    let week = CollectRules { unreferenced_after: 7 * 24 * 3600 * SECOND, ..AT_ONCE };
    for _ in 0..2 {
        assert_eq!(scene.collect(week).await, Collected { waiting: 1, ..Collected::default() });
    }
    let dry = CollectRules { remove: false, ..AT_ONCE };
    assert_eq!(scene.collect(dry).await, Collected { members: 1, ..Collected::default() });
    assert!(scene.store.member(&scene.repo, &digest).await.unwrap().is_some(), "a dry run removes nothing");
    assert_eq!(scene.collect(AT_ONCE).await, Collected { members: 1, ..Collected::default() });
    assert!(scene.store.member(&scene.repo, &digest).await.unwrap().is_none());
    let day = CollectRules { grace: 24 * 3600 * SECOND, ..AT_ONCE };
    assert_eq!(scene.collect(day).await, Collected { waiting: 1, ..Collected::default() });
    assert_eq!(scene.collect(AT_ONCE).await, Collected { files: 1, bytes: 17, ..Collected::default() });
    assert!(!scene.is_stored(&digest).await);
    assert_eq!(scene.collect(AT_ONCE).await, Collected::default());
}

#[tokio::test]
async fn a_request_in_time_unmarks_content() {
    let scene = Scene::new();
    let (requested, forgotten) = (scene.upload(b"asked for").await, scene.upload(b"forgotten").await);
    let soon = CollectRules { unreferenced_after: SECOND, ..AT_ONCE };
    assert_eq!(scene.collect(soon).await.waiting, 2);
    tokio::time::sleep(2 * SECOND).await;
    assert!(scene.store.member(&scene.repo, &requested).await.unwrap().is_some(), "the lookup of a HEAD request");
    let collected = scene.collect(soon).await;
    assert_eq!((collected.members, collected.waiting), (1, 1));
    assert!(scene.store.member(&scene.repo, &forgotten).await.unwrap().is_none());
    assert!(scene.store.member(&scene.repo, &requested).await.unwrap().is_some());
}

#[tokio::test]
async fn an_upload_unmarks_and_marks_survive_a_clean_stop_only() {
    let scene = Scene::new();
    let digest = scene.upload(b"again").await;
    scene.collect(AT_ONCE).await;
    let later = CollectRules { grace: SECOND, ..AT_ONCE };
    assert_eq!(scene.collect(later).await.waiting, 1, "the content is marked");
    tokio::time::sleep(2 * SECOND).await;
    scene.upload(b"again").await;
    let keep = CollectRules { unreferenced_after: 60 * SECOND, ..later };
    assert_eq!(
        scene.collect(keep).await,
        Collected { waiting: 1, ..Collected::default() },
        "only its link is marked again"
    );
    assert!(scene.is_stored(&digest).await);
    // The time in which no store is open does not count.
    tokio::time::sleep(2 * SECOND).await;
    scene.store.close().await;
    let Scene { store, repo, _folder } = scene;
    drop(store);
    let again = || Scene {
        store: Store::open(_folder.path()).unwrap(),
        repo: repo.clone(),
        _folder: tempfile::tempdir().unwrap(),
    };
    let rules = CollectRules { unreferenced_after: SECOND, ..AT_ONCE };
    let clean = again();
    assert_eq!(clean.collect(CollectRules { remove: false, ..rules }).await.members, 1, "marked before the stop");
    drop(clean);
    let unclean = again();
    assert_eq!(unclean.collect(rules).await, Collected::default(), "nothing is collected before the walk");
    unclean.store.reconcile(&AtomicBool::new(false));
    assert_eq!(unclean.collect(rules).await, Collected { waiting: 1, ..Collected::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn during_a_backup_names_are_collected_but_content_stays() {
    let mut server = TestServer::builder().start().await;
    let going = Image::new(31, &[20 * KIB]);
    push(&server, "team/a", "v1", &going).await;
    assert_eq!(server.delete(&format!("/v2/team/a/manifests/{}", going.manifest.digest)).await.status, 202);
    // The lease is taken before the collector starts.
    server
        .restart_with("[gc]\nafter_start = \"1s\"\ninterval = \"20ms\"\ngrace = \"0s\"\nunreferenced_after = \"0s\"")
        .await;
    assert_eq!(roadstead(server.data_dir(), &["backup-lease"]).await.code, 0);
    let layer = &going.layers[0];
    let hex = layer.digest.strip_prefix("sha256:").unwrap();
    let link = server.data_dir().join("repositories/local/team/a/_blobs/sha256").join(hex);
    until("the link is collected", async || !link.exists()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(is_stored(server.data_dir(), layer) && is_stored(server.data_dir(), &going.manifest));
    assert_eq!(roadstead(server.data_dir(), &["backup-lease", "--release"]).await.code, 0);
    wait_until_collected(&server, layer).await;
    wait_until_collected(&server, &going.manifest).await;
}
