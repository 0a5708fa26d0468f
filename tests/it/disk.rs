//! Access to the files of a data folder, for tests that look behind the API.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::scene::{KIB, REPO, blob, blob_path, until};
use crate::support::{Image, TestServer, Upstream};

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
