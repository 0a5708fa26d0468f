//! `roadstead scrub`: damage is found, reported, and with `--repair` moved to quarantine and healed.

use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::disk::{blob_file, files_below};
use crate::operator::{CommandOutput, roadstead};
use crate::scene::{settle, until};
use crate::support::{Conn, Ended, Gate, Image, Reply, TestServer, Upstream};

/// One pushed and one pulled image.
struct Scene {
    upstream: Upstream,
    server: TestServer,
    pushed: Image,
    cached: Image,
}

impl Scene {
    async fn new() -> Self {
        let upstream = Upstream::start().await;
        let (pushed, cached) = (Image::new(1, &[40_000]), Image::new(2, &[3_000_000]));
        upstream.add_image("library/app", "v1", &cached);
        let server = TestServer::mirror_of(&upstream).await;
        server.client().push_image(&server.url(""), "team/app", "v1", &pushed).await;
        server.get("/v2/library/app/manifests/v1").await;
        let scene = Self { upstream, server, pushed, cached };
        for blob in scene.cached.blobs() {
            assert_eq!(scene.server.get(&format!("/v2/library/app/blobs/{}", blob.digest)).await.body, blob.bytes);
        }
        settle(&scene.server).await;
        scene
    }

    fn data(&self) -> &Path {
        self.server.data_dir()
    }

    /// Flips one bit in a blob's file.
    fn alter(&self, digest: &str) {
        let file = std::fs::File::options().read(true).write(true).open(blob_file(self.data(), digest)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 100).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 100).unwrap();
        file.sync_all().unwrap();
    }

    async fn scrub(&self, args: &[&str]) -> CommandOutput {
        roadstead(self.data(), &[&["scrub", "--output", "json"], args].concat()).await
    }

    fn quarantined(&self) -> usize {
        files_below(&self.data().join("quarantine")).len()
    }
}

/// Findings as `problem class`, in order.
fn problems(events: &[Value]) -> Vec<String> {
    let found = events.iter().filter(|event| event["event"] == "found");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut problems: Vec<_> = found.map(|it| format!("{} {}", text(&it["problem"]), text(&it["class"]))).collect();
    problems.sort();
    problems
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intact_store_is_read_completely_and_reported_intact() {
    let mut scene = Scene::new().await;
    let bytes: usize = [&scene.pushed, &scene.cached]
        .iter()
        .flat_map(|image| image.blobs().chain([&image.manifest]))
        .map(|it| it.bytes.len())
        .sum();
    for running in [true, false] {
        if !running {
            scene.server.stop_running().await;
        }
        let output = scene.scrub(&[]).await;
        let done = json!({"event": "done", "names": 8, "blobs": 6, "bytes": bytes, "damaged_cached": 0, "damaged_pushed": 0,
                          "incomplete": 0, "quarantined": 0, "complete": true});
        assert_eq!((output.code, output.events()), (0, vec![done]), "running: {running}");
    }
    let text = roadstead(scene.data(), &["scrub"]).await;
    assert_eq!((text.out.as_str(), text.err.as_str()), ("read 8 names and 6 blobs (3.0 MB); nothing is damaged\n", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_blobs_are_reported_and_moved_only_by_repair() {
    for running in [true, false] {
        let mut scene = Scene::new().await;
        let (pushed, cached) = (scene.pushed.layers[0].clone(), scene.cached.layers[0].clone());
        scene.alter(&pushed.digest);
        let cut = std::fs::File::options().write(true).open(blob_file(scene.data(), &cached.digest)).unwrap();
        cut.set_len(70_000).unwrap();
        if !running {
            scene.server.stop_running().await;
        }
        let output = scene.scrub(&[]).await;
        assert_eq!(
            (output.code, problems(&output.events())),
            (1, vec!["digest pushed".to_owned(), "length cached".to_owned()])
        );
        assert_eq!(scene.quarantined(), 0);

        let text = roadstead(scene.data(), &["scrub", "--repair"]).await;
        assert_eq!(text.code, 1);
        let lost = format!(
            "pushed {} damaged: wrong digest; in team/app; moved to quarantine/; LOST unless it is pushed again",
            pushed.digest
        );
        let again = format!("cached {} damaged: wrong length; moved to quarantine/", cached.digest);
        for line in [&lost, &again] {
            assert!(text.out.lines().any(|found| found == line), "{line} is not in\n{}", text.out);
        }
        assert!(text.out.ends_with("; damaged: 1 cached, 1 pushed; 2 moved to quarantine/\n"), "{}", text.out);
        assert_eq!(scene.quarantined(), 2);

        // Cached content is fetched again, pushed content returns with a push.
        if !running {
            scene.server.restart().await;
        }
        let output = scene.scrub(&["--repair"]).await;
        assert_eq!((output.code, problems(&output.events())), (1, vec!["missing pushed".to_owned()]));
        assert_eq!(scene.server.get(&format!("/v2/library/app/blobs/{}", cached.digest)).await.body, cached.bytes);
        settle(&scene.server).await;
        assert_eq!(scene.server.get(&format!("/v2/team/app/blobs/{}", pushed.digest)).await.status, 404);
        scene.server.client().push_image(&scene.server.url(""), "team/app", "v1", &scene.pushed).await;
        assert_eq!(scene.scrub(&[]).await.code, 0);
        assert_eq!(scene.upstream.count("GET", &format!("/v2/library/app/blobs/{}", cached.digest)), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_names_are_damage_but_deleted_content_is_not() {
    let mut scene = Scene::new().await;
    let server = &scene.server;
    let base = server.url("");
    let (kept, gone) = (Image::new(3, &[1000]), Image::new(4, &[1000]));
    server.client().push_image(&base, "team/app", "kept", &kept).await;
    server.client().push_image(&base, "team/app", "gone", &gone).await;
    assert_eq!(server.delete(&format!("/v2/team/app/blobs/{}", gone.layers[0].digest)).await.status, 202);
    scene.server.stop_running().await;
    let local = scene.data().join("repositories/local/team/app");
    std::fs::write(local.join("_tags/v1"), "digest sha2").unwrap();
    // A tag whose manifest was deleted during a backup counts as absent.
    let link = kept.manifest.digest.strip_prefix("sha256:").unwrap();
    std::fs::remove_file(local.join("_manifests/sha256").join(link)).unwrap();
    let cached = scene.cached.manifest.digest.strip_prefix("sha256:").unwrap();
    let mirrored = scene.data().join("repositories/docker.io/library/app");
    std::fs::write(mirrored.join("_manifests/sha256").join(cached), [0xff; 5]).unwrap();

    let output = scene.scrub(&[]).await;
    let expected = ["dangling pushed", "incomplete pushed", "name cached", "name pushed"];
    assert_eq!((output.code, problems(&output.events())), (1, expected.map(str::to_owned).to_vec()), "{output:?}");
    let output = scene.scrub(&["--repair"]).await;
    assert_eq!((output.code, scene.quarantined()), (1, 2));
    let output = scene.scrub(&[]).await;
    assert_eq!(
        (output.code, problems(&output.events())),
        (0, vec!["dangling pushed".to_owned(), "incomplete pushed".to_owned()])
    );

    scene.server.restart().await;
    assert_eq!(scene.server.get("/v2/team/app/tags/list").await.json()["tags"], json!(["gone", "kept"]));
    let pulled = scene.server.get("/v2/library/app/manifests/v1").await;
    assert_eq!(pulled.body, scene.cached.manifest.bytes, "fetched again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_that_cannot_run_reports_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let none = folder.path().join("none");
    let output = roadstead(&none, &["scrub"]).await;
    assert_eq!(
        (output.code, output.err),
        (2, format!("roadstead: there is no data folder {}; name it with --data or storage.path\n", none.display()))
    );
    assert!(!none.exists());
}

/// The saved position of the background scrub.
fn place(server: &TestServer) -> String {
    std::fs::read_to_string(server.data_dir().join("scrub")).unwrap_or_default()
}

async fn scrubbed(server: &TestServer) -> f64 {
    server.metric("roadstead_scrub_blobs_total", &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_background_scrub_finds_and_heals_corruption() {
    let mut scene = Scene::new().await;
    let (pushed, cached) = (scene.pushed.layers[0].clone(), scene.cached.layers[0].clone());
    scene.alter(&pushed.digest);
    scene.alter(&cached.digest);
    scene.server.restart_with("[scrub]\ninterval = \"100s\"").await;
    let server = &scene.server;
    until("a pass has ended", async || server.metric("roadstead_scrub_completed_timestamp_seconds", &[]).await > 0.0)
        .await;
    let metrics = server.metrics().await;
    let damaged = |class| metrics.sum("roadstead_scrub_damaged_total", &[("class", class)]);
    assert_eq!((damaged("cached"), damaged("pushed")), (1.0, 1.0));
    assert_eq!(metrics.sum("roadstead_scrub_blobs_total", &[]), 6.0);
    assert_eq!(scene.quarantined(), 2);
    assert_eq!(server.get(&format!("/v2/library/app/blobs/{}", cached.digest)).await.body, cached.bytes);
    assert!(place(server).contains("\ncompleted "), "{}", place(server));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_pass_resumes_after_a_restart() {
    let mut server = TestServer::builder().start().await;
    let image = Image::new(1, &[600_000; 4]);
    server.client().push_image(&server.url(""), "team/app", "v1", &image).await;
    server.restart_with("[scrub]\ninterval = \"100s\"\nrate = \"500KiB\"").await;
    until("the pass has started", async || scrubbed(&server).await > 0.0).await;
    let before = scrubbed(&server).await;
    server.stop_running().await;
    assert!(place(&server).contains("\nafter sha256:") && !place(&server).contains("completed"), "{}", place(&server));
    server.restart_with("[scrub]\nrate = \"1GiB\"").await;
    until("the pass has ended", async || place(&server).contains("completed")).await;
    let after = scrubbed(&server).await;
    // One more may have been read between the metric and the stop.
    assert!(before + after == 6.0 || before + after == 5.0, "{before} + {after}");
    assert!(after < 6.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_background_scrub_pauses_during_transfers() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[400_000]);
    upstream.add_image("library/app", "v1", &image);
    let path = format!("/v2/library/app/blobs/{}", image.layers[0].digest);
    let gate = Gate::new();
    upstream.script("GET", &path, [Reply::normal().wait_after(200_000, &gate)]);
    let mut server = TestServer::mirror_of(&upstream).await;
    server.client().push_image(&server.url(""), "team/app", "v1", &Image::new(2, &[1000])).await;
    // The scrub starts after two seconds, during the transfer.
    server.restart_with("[scrub]\ninterval = \"200s\"").await;
    let mut slow = Conn::get(server.addr(), &path).await;
    slow.take(1000).await;
    until("the pass has started", async || !place(&server).is_empty()).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(scrubbed(&server).await, 0.0);
    gate.open();
    assert_eq!(slow.rest().await.1, Ended::Complete);
    drop(slow);
    until("the scrub continues", async || scrubbed(&server).await > 0.0).await;
}
