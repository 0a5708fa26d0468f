//! `roadstead scrub`: what is damaged is found, said, and with `--repair` moved aside and healed.

use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::disk::{blob_file, files_below};
use crate::operator::{Said, roadstead};
use crate::support::{Image, TestServer, Upstream};

/// One image pushed and another pulled, with what each layer is.
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
        scene
    }

    fn data(&self) -> &Path {
        self.server.data_dir()
    }

    /// Turns one bit of a blob's file.
    fn alter(&self, digest: &str) {
        let file = std::fs::File::options().read(true).write(true).open(blob_file(self.data(), digest)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 100).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 100).unwrap();
        file.sync_all().unwrap();
    }

    async fn scrub(&self, args: &[&str]) -> Said {
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
async fn a_store_that_is_right_is_read_whole_and_said_to_be_right() {
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
        let said = scene.scrub(&[]).await;
        let done = json!({"event": "done", "names": 8, "blobs": 6, "bytes": bytes, "damaged_cached": 0, "damaged_pushed": 0,
                          "incomplete": 0, "quarantined": 0, "complete": true});
        assert_eq!((said.code, said.events()), (0, vec![done]), "running: {running}");
    }
    let text = roadstead(scene.data(), &["scrub"]).await;
    assert_eq!(
        (text.out.as_str(), text.err.as_str()),
        ("8 names and 6 blobs (3041.2 kB) were read; nothing is damaged\n", "")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_blobs_are_said_and_only_a_repair_moves_them_running_or_not() {
    for running in [true, false] {
        let mut scene = Scene::new().await;
        let (pushed, cached) = (scene.pushed.layers[0].clone(), scene.cached.layers[0].clone());
        scene.alter(&pushed.digest);
        let cut = std::fs::File::options().write(true).open(blob_file(scene.data(), &cached.digest)).unwrap();
        cut.set_len(70_000).unwrap();
        if !running {
            scene.server.stop_running().await;
        }
        let said = scene.scrub(&[]).await;
        assert_eq!(
            (said.code, problems(&said.events())),
            (1, vec!["digest pushed".to_owned(), "length cached".to_owned()])
        );
        assert_eq!(scene.quarantined(), 0);

        let text = roadstead(scene.data(), &["scrub", "--repair"]).await;
        assert_eq!(text.code, 1);
        let lost = format!(
            "pushed {} damaged: it is not what its digest says; in team/app; moved to quarantine/; LOST unless it is pushed again",
            pushed.digest
        );
        let again = format!("cached {} damaged: its length is wrong; moved to quarantine/", cached.digest);
        for line in [&lost, &again] {
            assert!(text.out.lines().any(|found| found == line), "{line} is not in\n{}", text.out);
        }
        assert!(text.out.ends_with("; damaged: 1 cached, 1 pushed; 2 moved to quarantine/\n"), "{}", text.out);
        assert_eq!(scene.quarantined(), 2);

        // Cached content comes back by itself, pushed content by a push.
        if !running {
            scene.server.restart().await;
        }
        let said = scene.scrub(&["--repair"]).await;
        assert_eq!((said.code, problems(&said.events())), (1, vec!["missing pushed".to_owned()]));
        assert_eq!(scene.server.get(&format!("/v2/library/app/blobs/{}", cached.digest)).await.body, cached.bytes);
        assert_eq!(scene.server.get(&format!("/v2/team/app/blobs/{}", pushed.digest)).await.status, 404);
        scene.server.client().push_image(&scene.server.url(""), "team/app", "v1", &scene.pushed).await;
        assert_eq!(scene.scrub(&[]).await.code, 0);
        assert_eq!(scene.upstream.count("GET", &format!("/v2/library/app/blobs/{}", cached.digest)), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_say_nothing_are_damage_and_what_somebody_deleted_is_not() {
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
    // A tag whose manifest was deleted while a backup was made: it counts as not there.
    let link = kept.manifest.digest.strip_prefix("sha256:").unwrap();
    std::fs::remove_file(local.join("_manifests/sha256").join(link)).unwrap();
    let cached = scene.cached.manifest.digest.strip_prefix("sha256:").unwrap();
    let mirrored = scene.data().join("repositories/docker.io/library/app");
    std::fs::write(mirrored.join("_manifests/sha256").join(cached), [0xff; 5]).unwrap();

    let said = scene.scrub(&[]).await;
    let expected = ["dangling pushed", "incomplete pushed", "name pushed", "unreadable cached"];
    assert_eq!((said.code, problems(&said.events())), (1, expected.map(str::to_owned).to_vec()), "{said:?}");
    let said = scene.scrub(&["--repair"]).await;
    assert_eq!((said.code, scene.quarantined()), (1, 2));
    let said = scene.scrub(&[]).await;
    assert_eq!(
        (said.code, problems(&said.events())),
        (0, vec!["dangling pushed".to_owned(), "incomplete pushed".to_owned()])
    );

    scene.server.restart().await;
    assert_eq!(scene.server.get("/v2/team/app/tags/list").await.json()["tags"], json!(["gone", "kept"]));
    let pulled = scene.server.get("/v2/library/app/manifests/v1").await;
    assert_eq!(pulled.body, scene.cached.manifest.bytes, "fetched again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_that_cannot_be_made_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let none = folder.path().join("none");
    let said = roadstead(&none, &["scrub"]).await;
    assert_eq!((said.code, said.err), (2, format!("roadstead: there is no data folder {}\n", none.display())));
    assert!(!none.exists());
}
