//! An import that is killed leaves nothing half, and its repetition completes it.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::tree::RegistryFolder;
use super::{assert_served, begin, import, numbers, start};
use crate::operator::roadstead;
use crate::support::settings::Settings;
use crate::support::{Client, Image};

const IMAGES: u64 = 40;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_import_leaves_nothing_half_and_can_be_repeated() {
    let source = RegistryFolder::new();
    let images: Vec<Image> = (0..IMAGES).map(|seed| Image::new(100 * seed, &[200_000, 1000, 50])).collect();
    for (number, image) in images.iter().enumerate() {
        source.image(&format!("team/app{}", number % 7), &format!("v{number}"), image);
    }
    let mut server = start(Settings::new()).await;
    for (round, files) in [5, 40, 90].into_iter().enumerate() {
        tokio::task::block_in_place(|| {
            server.stop();
            kill_at(&server.data_dir(), source.path(), files);
        });
        begin(&mut server).await;
        // A tag that exists has everything.
        let client = Client::new();
        let mut present = 0;
        for (number, image) in images.iter().enumerate() {
            let base = server.url(&format!("/v2/team/app{}", number % 7));
            if client.get(&format!("{base}/manifests/v{number}")).await.status == 200 {
                assert_served(&base, &format!("v{number}"), image).await;
                present += 1;
            }
        }
        assert!(present < IMAGES || round > 0, "the import was killed in the middle");
        let scrubbed = roadstead(&server.data_dir(), &["scrub"]).await;
        assert_eq!(scrubbed.code, 0, "{scrubbed:?}");
    }
    let output = import(&server, &[source.path()]).await;
    let [blobs, known] = numbers(&output, ["blobs", "known_blobs"]);
    assert!(output.code == 0 && known > 0 && blobs < 4 * IMAGES, "{output:?}");
    for (number, image) in images.iter().enumerate() {
        assert_served(&server.url(&format!("/v2/team/app{}", number % 7)), &format!("v{number}"), image).await;
    }
}

/// Starts an import and kills it when this many content files are in the data folder, or when it has ended.
fn kill_at(data: &std::path::Path, source: &str, files: usize) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roadstead"));
    command.args(["import", source, "--default-upstream", "none", "--data"]).arg(data).stdout(Stdio::null());
    let mut running = command.spawn().unwrap();
    while running.try_wait().unwrap().is_none() && crate::disk::files_below(&data.join("blobs")).len() < files {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = running.kill();
    running.wait().unwrap();
}
