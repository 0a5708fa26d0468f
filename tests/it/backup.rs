//! Backup of a running server with the script of docs/operating.md.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::operator::roadstead;
use crate::scene::until;
use crate::support::daemon::{Daemon, free_port};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Image};

async fn start() -> ServerProcess {
    let process = tokio::task::spawn_blocking(|| ServerProcess::start(Settings::new())).await.unwrap();
    assert_eq!(Client::new().get(&process.url("/v2/")).await.status, 200);
    process
}

/// The script of that page, for these folders.
fn recipe(data: &Path, copy: &Path) -> String {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating.md")).unwrap();
    let script =
        page.split("```sh\n").find(|part| part.contains("backup-lease --data")).expect("the page has the script");
    let script = script.split("```").next().unwrap();
    let changed = script
        .replace("/var/lib/roadstead", data.to_str().unwrap())
        .replace("/backup/roadstead", copy.to_str().unwrap())
        .replace("roadstead backup-lease", &format!("{} backup-lease", env!("CARGO_BIN_EXE_roadstead")));
    assert!(changed != script);
    changed
}

/// Pushes and deletes until `end` is set. Returns the number of images pushed.
async fn churn(base: String, writer: u64, end: Arc<AtomicBool>) -> u64 {
    let client = Client::new();
    let name = format!("churn/app{writer}");
    let mut pushed = 0;
    while !end.load(Ordering::Relaxed) {
        let image = Image::new(1000 * (writer + 1) + pushed, &[20_000, 1000]);
        client.push_image(&base, &name, &format!("v{pushed}"), &image).await;
        // A tag that always exists and moves with every push.
        client.push_manifest(&base, &name, "latest", &image.manifest).await;
        let doomed = Image::new(500_000 * (writer + 1) + pushed, &[5000]);
        client.push_image(&base, &name, "doomed", &doomed).await;
        for reference in [doomed.digest(), &format!("v{pushed}")] {
            let url = format!("{base}/v2/{name}/manifests/{reference}");
            assert_eq!(client.send("DELETE", &url, &[], "").await.status, 202);
        }
        pushed += 1;
    }
    pushed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_during_pushes_and_deletes_is_consistent() {
    let mut process = start().await;
    let base = process.url("");
    let client = Client::new();
    let kept: Vec<Image> = (0..20).map(|seed| Image::new(seed, &[30_000])).collect();
    for (number, image) in kept.iter().enumerate() {
        client.push_image(&base, &format!("kept/app{}", number % 5), &format!("v{number}"), image).await;
    }
    let end = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3).map(|writer| tokio::spawn(churn(base.clone(), writer, end.clone()))).collect();
    for writer in 0..3 {
        let latest = format!("{base}/v2/churn/app{writer}/manifests/latest");
        until("the first push is done", async || client.get(&latest).await.status == 200).await;
    }

    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    let script = recipe(&process.data_dir(), &copy);
    let ran = tokio::task::spawn_blocking(move || std::process::Command::new("sh").arg("-euc").arg(script).output());
    let ran = ran.await.unwrap().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    end.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 0);
    }
    assert_eq!(client.get(&process.url("/readyz")).await.json()["deletions_held"], false);
    tokio::task::spawn_blocking(move || process.stop()).await.unwrap();

    let output = roadstead(&copy, &["scrub", "--output", "json"]).await;
    let events = output.events();
    let done = events.last().unwrap();
    let figures = ["damaged_cached", "damaged_pushed"].map(|key| done[key].as_u64().unwrap());
    assert_eq!((output.code, figures), (0, [0, 0]), "{}", output.out);
    // Content deleted during the backup may be missing, but every manifest in the copy is complete.
    assert!(events.iter().all(|event| event["problem"] != "incomplete"), "{}", output.out);

    let address = format!("127.0.0.1:{}", free_port());
    let args = ["serve", "--listen", &address, "--data", copy.to_str().unwrap(), "--default-upstream", "none"];
    let mut server = Daemon::spawn("restored", folder.path(), env!("CARGO_BIN_EXE_roadstead").as_ref(), &args);
    server.wait_until(|| std::net::TcpStream::connect(&address).is_ok());
    let restored = format!("http://{address}");
    for (number, image) in kept.iter().enumerate() {
        let name = format!("kept/app{}", number % 5);
        let manifest = client.get(&format!("{restored}/v2/{name}/manifests/v{number}")).await;
        assert_eq!(manifest.body, image.manifest.bytes);
        for blob in image.blobs() {
            assert_eq!(client.get(&format!("{restored}/v2/{name}/blobs/{}", blob.digest)).await.body, blob.bytes);
        }
    }
    for writer in 0..3 {
        let manifest = client.get(&format!("{restored}/v2/churn/app{writer}/manifests/latest")).await;
        assert_eq!(manifest.status, 200, "the moving tag is in the copy");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_lasts_as_long_as_its_command() {
    let process = start().await;
    let data = process.data_dir();
    let (began, may_end) = (data.join("began"), data.join("may-end"));
    let script = format!("touch {began:?}; until [ -e {may_end:?} ]; do sleep 0.01; done; exit 7");
    let command = tokio::spawn({
        let data = data.clone();
        async move { roadstead(&data, &["backup-lease", "--", "sh", "-c", &script]).await }
    });
    until("the command runs", async || began.exists()).await;
    let held = async || Client::new().get(&process.url("/readyz")).await.json()["deletions_held"].clone();
    assert_eq!(held().await, true);
    std::fs::write(&may_end, "").unwrap();
    let output = command.await.unwrap();
    assert_eq!((output.code, output.err.as_str()), (7, ""), "the exit code of the command is passed on");
    assert_eq!(held().await, false);

    let taken = roadstead(&data, &["backup-lease", "--for", "2h"]).await;
    assert_eq!(taken.out, "no content is removed for 2h, or until backup-lease --release\n");
    assert_eq!(held().await, true);
    assert_eq!(roadstead(&data, &["backup-lease", "--release"]).await.out, "the lease was released\n");
    assert_eq!(held().await, false);
    assert_eq!(roadstead(&data, &["backup-lease", "--release"]).await.out, "there was no lease\n");
    let long = roadstead(&data, &["backup-lease", "--for", "30d"]).await;
    assert_eq!((long.code, long.err.contains("at most 7d")), (1, true), "{}", long.err);
    let both = roadstead(&data, &["backup-lease", "--for", "1h", "--", "true"]).await;
    assert_eq!((both.code, both.err.contains("cannot be used with")), (2, true), "{}", both.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_fails_when_the_server_stops_meanwhile() {
    let mut process = start().await;
    let data = process.data_dir();
    let (began, may_end) = (data.join("began"), data.join("may-end"));
    let script = format!("touch {began:?}; until [ -e {may_end:?} ]; do sleep 0.01; done");
    let command = tokio::spawn({
        let data = data.clone();
        async move { roadstead(&data, &["backup-lease", "--", "sh", "-c", &script]).await }
    });
    until("the command runs", async || began.exists()).await;
    let stopped = tokio::task::spawn_blocking(move || {
        process.stop();
        process
    });
    let _folder = stopped.await.unwrap();
    std::fs::write(&may_end, "").unwrap();
    let output = command.await.unwrap();
    assert_eq!(output.code, 1);
    assert!(output.err.contains("the lease was lost"), "{}", output.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_reaches_the_command_and_ends_the_lease() {
    let process = start().await;
    let data = process.data_dir();
    for (signal, name) in [(Signal::SIGTERM, "TERM"), (Signal::SIGINT, "INT")] {
        let (began, got) = (data.join(format!("began-{name}")), data.join(format!("got-{name}")));
        let script = format!("trap 'touch {got:?}; exit 3' {name}; touch {began:?}; while :; do sleep 0.01; done");
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_roadstead"));
        command.args(["backup-lease", "--data"]).arg(&data).args(["--", "sh", "-c", &script]);
        let mut running = command.stdin(std::process::Stdio::null()).spawn().unwrap();
        until("the command runs", async || began.exists()).await;
        kill(Pid::from_raw(running.id().unwrap().cast_signed()), signal).unwrap();
        assert_eq!(running.wait().await.unwrap().code(), Some(3), "the exit code of the command is passed on");
        assert!(got.exists(), "the command received the signal");
        assert_eq!(Client::new().get(&process.url("/readyz")).await.json()["deletions_held"], false);
    }
}

/// Waits longer than the server keeps an idle connection, and longer than the interval between renewals of a lease.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_outlasts_its_connection() {
    let process = start().await;
    let output = roadstead(&process.data_dir(), &["backup-lease", "--", "sleep", "17"]).await;
    assert_eq!((output.code, output.err.as_str()), (0, ""));
    let taken = process.log().matches("holds back removals").count();
    assert_eq!(taken, 1, "a renewal is not logged");
    assert_eq!(Client::new().get(&process.url("/readyz")).await.json()["deletions_held"], false);
}
