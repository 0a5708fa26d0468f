//! Access to the files of a data folder, for tests that look behind the API.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::scene::{KIB, REPO, blob, blob_path, until};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Image, TestServer, Upstream};

/// The path of a blob's file.
pub fn blob_file(data: &Path, digest: &str) -> PathBuf {
    let (algorithm, hex) = digest.split_once(':').expect("a digest");
    data.join("blobs").join(algorithm).join(&hex[..2]).join(hex)
}

/// Every file below a folder, sorted.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("the folder can be read") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

/// Opens the index once sled's threads have released it, which is a moment after the server has stopped.
pub fn open_index(index: &Path) -> sled::Db {
    let mut tries = (0..500).map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        sled::open(index)
    });
    tries.find_map(Result::ok).expect("the index can be opened")
}

/// Waits until there is no spool file and no open upload.
pub async fn wait_until_idle(data: &Path) {
    for folder in ["spool", "uploads"] {
        let folder = data.join(folder);
        until(&format!("{} is empty", folder.display()), async || entries(&folder) == 0).await;
    }
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).expect("the folder can be read").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_folders_are_created_again() {
    let upstream = Upstream::start().await;
    let (cached, pushed) = (blob(1, 10 * KIB), Image::new(2, &[10 * KIB]));
    upstream.add_blob(REPO, &cached);
    let server = TestServer::mirror_of(&upstream).await;
    let data = server.data_dir();
    for folder in ["spool", "uploads", "quarantine"] {
        std::fs::remove_dir_all(data.join(folder)).unwrap();
    }
    for first in 0..=u8::MAX {
        std::fs::remove_dir(data.join(format!("blobs/sha256/{first:02x}"))).unwrap();
    }
    for _ in 0..2 {
        assert_eq!(server.get(&blob_path(REPO, &cached)).await.body, cached.bytes);
    }
    assert_eq!(upstream.count("GET", &blob_path(REPO, &cached)), 1, "the blob was stored");
    server.client().push_image(&server.url(""), "team/app", "v1", &pushed).await;
    assert_eq!(server.get("/v2/team/app/manifests/v1").await.body, pushed.manifest.bytes);
    assert_eq!(server.get("/readyz").await.status, 200);

    // Without the lock file the disk counts as unmounted, and nothing is created.
    std::fs::remove_dir_all(data.join("spool")).unwrap();
    std::fs::remove_file(data.join("lock")).unwrap();
    until("the server is not ready", async || server.get("/readyz").await.status == 503).await;
    assert!(!data.join("spool").exists());
}

/// The mode of every file and folder below a folder.
fn modes_below(folder: &Path) -> Vec<(PathBuf, u32)> {
    let mode = |path: &Path| std::fs::metadata(path).expect("it exists").permissions().mode() & 0o7777;
    let mut modes = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("an entry").path();
        modes.push((path.clone(), mode(&path)));
        if path.is_dir() {
            modes.extend(modes_below(&path));
        }
    }
    modes
}

#[tokio::test(flavor = "multi_thread")]
async fn modes_do_not_depend_on_the_umask() {
    let upstream = Upstream::start().await;
    let (cached, pushed) = (blob(1, 10 * KIB), Image::new(2, &[10 * KIB]));
    upstream.add_blob(REPO, &cached);
    for umask in ["000", "022", "277"] {
        let settings = Settings::new().upstream("docker.io", &upstream).default_upstream("docker.io");
        let mut server = ServerProcess::start_with_umask(settings, umask);
        let client = Client::new();
        client.push_image(&server.url(""), "team/app", "v1", &pushed).await;
        assert_eq!(client.get(&server.url(&blob_path(REPO, &cached))).await.body, cached.bytes);
        let data = server.data_dir();
        until("the blob is stored", async || blob_file(&data, &cached.digest).exists()).await;
        server.stop();
        let pushed: Vec<PathBuf> =
            pushed.blobs().chain([&pushed.manifest]).map(|content| blob_file(&data, &content.digest)).collect();
        for (path, mode) in modes_below(&data) {
            let expected = match path.is_dir() {
                true => 0o700,
                false if pushed.contains(&path) => 0o400,
                false => 0o600,
            };
            assert_eq!(mode, expected, "umask {umask}: {} has {mode:o}", path.display());
        }
        assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o7777, 0o700);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_folder_keeps_its_mode_and_is_warned_about() {
    for (mode, warned) in [(0o755, true), (0o701, true), (0o770, false), (0o700, false)] {
        let mut server = ServerProcess::start(Settings::new());
        let data = server.data_dir();
        server.stop();
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(mode)).unwrap();
        server.begin();
        until("the second start is logged", async || server.log().matches("listening").count() == 2).await;
        let warning = "every user of this machine can look into the data folder";
        assert_eq!(server.log().contains(warning), warned, "{mode:o}: {}", server.log());
        assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o7777, mode);
    }
}
