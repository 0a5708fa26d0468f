//! Regression tests of attacks and misuse that once broke the server.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::disk::blob_file;
use crate::scene::{KIB, MIB, REPO, Scene, blob, blob_path, entry_count, is_stored, settle, until};
use crate::support::image::OCI_INDEX;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Bearer, Client, Conn, Content, Ended, Image, Reply, TestServer, Upstream};

#[tokio::test(flavor = "multi_thread")]
async fn blobs_of_a_burst_are_kept_when_clients_leave_early() {
    const BLOBS: u64 = 60;
    let upstream = Upstream::start().await;
    let server = TestServer::mirror_of(&upstream).await;
    let blobs: Vec<_> = (0..BLOBS).map(|n| blob(n, 20 * KIB)).collect();
    blobs.iter().for_each(|blob| upstream.add_blob(REPO, blob));
    let paths: Vec<_> = blobs.iter().map(|blob| blob_path(REPO, blob)).collect();
    futures_util::future::join_all(paths.iter().map(|path| server.get(path))).await;
    settle(&server).await;
    let kept = blobs.iter().filter(|blob| is_stored(server.data_dir(), blob)).count();
    assert_eq!(kept as u64, BLOBS);
    let metrics = server.metrics().await;
    let results = |result| metrics.sum("roadstead_cache_results_total", &[("type", "blob"), ("result", result)]);
    assert_eq!(
        results("miss"),
        BLOBS as f64,
        "a request that starts a fill counts as a miss, however fast the fill is"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trickling_upstream_response_times_out() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[10]);
    upstream.add_image(REPO, "v1", &image);
    // A stale tag is served after two seconds, and a stale list after five.
    let config = "[cache]\ntag_ttl = \"0s\"";
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server = builder.config(config).start().await;
    let tag = format!("/v2/{REPO}/manifests/v1");
    assert_eq!(server.get(&tag).await.status, 200);
    let drip = Reply::status(200).header("Content-Type", &image.manifest.media_type).body(image.manifest.bytes.clone());
    upstream.always("HEAD", &tag, Reply::status(405));
    upstream.always("GET", &tag, drip.pace(20));
    let stale = server.get(&tag).await;
    assert_eq!((stale.status, stale.header("warning").is_empty()), (200, false));
    let list = format!("/v2/{REPO}/tags/list");
    upstream.always("GET", &list, Reply::normal().body(vec![b' '; 1000]).pace(20));
    assert_eq!(server.get(&list).await.json()["tags"], json!(["v1"]));
    upstream.end_scripts();
    until("the tag is confirmed again", async || server.get(&tag).await.header("warning").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_blob_file_is_not_served() {
    let mut scene = Scene::with_blob(MIB).await;
    let pushed = blob(7, 100 * KIB);
    scene.server.client().push_blob(&scene.server.url(""), "team/app", &pushed).await;
    scene.server.get(&scene.path()).await;
    scene.settle().await;
    for content in [&scene.blob, &pushed] {
        let file = blob_file(scene.server.data_dir(), &content.digest);
        fs::File::options().write(true).open(file).unwrap().set_len(1000).unwrap();
    }
    assert!(scene.server.get(&scene.path()).await.body == scene.bytes(), "cached content is fetched again");
    let lost = scene.server.get(&blob_path("team/app", &pushed)).await;
    assert_eq!((lost.status, lost.error_code().as_str()), (404, "BLOB_UNKNOWN"));
    assert_eq!(entry_count(&scene.server.data_dir().join("quarantine")), 2);
    scene.server.client().push_blob(&scene.server.url(""), "team/app", &pushed).await;
    scene.server.restart().await;
    assert!(scene.server.get(&blob_path("team/app", &pushed)).await.body == pushed.bytes, "a new push heals it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_index_is_bounded_by_its_bytes() {
    let upstream = Upstream::start().await;
    let server = TestServer::mirror_of(&upstream).await;
    let entries: Vec<_> =
        (0..5000).map(|n| json!({"digest": format!("sha256:{n:064x}"), "size": 1, "mediaType": "a/b"})).collect();
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    let index = Content::json(OCI_INDEX, &index);
    upstream.add_manifest(REPO, &index);
    let path = format!("/v2/{REPO}/manifests/{}", index.digest);
    assert_eq!(server.get(&path).await.body, index.bytes);
    let url = format!("/v2/team/app/manifests/{}", index.digest);
    let headers = [("Content-Type", OCI_INDEX)];
    let pushed = server.send("PUT", &url, &headers, index.bytes.clone()).await;
    assert_eq!((pushed.status, pushed.error_code().as_str()), (400, "MANIFEST_BLOB_UNKNOWN"));
    assert_eq!(
        pushed.json()["errors"][0]["detail"]["missing"].as_array().unwrap().len(),
        50,
        "and no more are looked up"
    );
    assert!(!server.data_dir().join("repositories/local").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_token_server_affects_only_challenged_requests() {
    let (upstream, issuer) = (Upstream::start().await, Upstream::start().await);
    let (open, closed) = (Image::new(1, &[10]), Image::new(2, &[10]));
    upstream.add_image("org/open", "v1", &open);
    upstream.add_image("org/closed", "v1", &closed);
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server = builder.start().await;
    upstream.require_bearer_from(&issuer, Bearer::new());
    issuer.always("GET", "/token", Reply::error(500, "UNKNOWN"));
    issuer.always("POST", "/token", Reply::error(500, "UNKNOWN"));
    assert!(server.get("/v2/org/closed/manifests/v1").await.status >= 500);
    upstream.require_nothing();
    assert_eq!(server.get("/v2/org/open/manifests/v1").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_leave_descriptors_for_files() {
    let server = ServerProcess::start_limited(Settings::new(), 96);
    let address = SocketAddr::from(([127, 0, 0, 1], server.port()));
    let blobs: Vec<_> = (0..8).map(|n| blob(n, KIB)).collect();
    for blob in &blobs {
        Client::new().push_blob(&server.url(""), "team/app", blob).await;
    }
    // More connections than descriptors. Those in the accept queue are connected, too.
    let mut others = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: registry\r\n\r\n").await.unwrap();
        others.push(stream);
    }
    let mut begun = [0; 16];
    timeout(Duration::from_secs(20), others[0].read(&mut begun)).await.expect("some connections are served").unwrap();
    for blob in &blobs {
        let mut conn = Conn::get(address, &blob_path("team/app", blob)).await;
        assert_eq!((conn.status, conn.rest().await.1), (200, Ended::Complete));
    }
    assert!(server.log().contains("limited_to=32 open_files=96"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn open_sessions_hold_no_descriptors() {
    let server = TestServer::builder().start().await;
    let descriptors = || entry_count(std::path::Path::new("/proc/self/fd"));
    let before = descriptors();
    for _ in 0..200 {
        server.client().start_upload(&server.url(""), "team/app").await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(descriptors() < before + 100, "{before} before, {} now", descriptors());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_file_with_binary_content_is_ignored() {
    let mut scene = Scene::with_blob(KIB).await;
    let image = Image::new(3, &[10]);
    scene.upstream.add_image(REPO, "v1", &image);
    let tag = format!("/v2/{REPO}/manifests/v1");
    scene.server.get(&tag).await;
    scene.server.stop_running().await;
    let file = scene.server.data_dir().join(format!("repositories/docker.io/{REPO}/_tags/v1"));
    assert!(fs::read_to_string(&file).unwrap().contains(image.digest()));
    fs::write(file, [0xff, 0xfe, 0x00]).unwrap();
    scene.server.restart().await;
    assert_eq!(scene.server.get(&tag).await.body, image.manifest.bytes);
    assert_eq!(scene.upstream.count("GET", &tag), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pulled_image_can_be_pushed_under_its_short_name() {
    let upstream = Upstream::start().await;
    let image = Image::new(3, &[10 * KIB]);
    upstream.add_image("library/two", "latest", &image);
    let server = TestServer::mirror_of(&upstream).await;
    server.get("/v2/library/two/manifests/latest").await;
    for blob in image.blobs() {
        server.get(&blob_path("library/two", blob)).await;
        // Docker sends this HEAD before an upload. 200 would speak of another repository than the one it pushes to.
        assert_eq!(server.head(&blob_path("two", blob)).await.status, 404);
    }
    server.client().push_image(&server.url(""), "two", "mine", &image).await;
    assert_eq!(server.get("/v2/two/manifests/mine").await.body, image.manifest.bytes);
    assert_eq!(server.get("/v2/library/two/manifests/latest").await.body, image.manifest.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_between_two_generations_gets_the_correct_bytes() {
    let scene = Scene::with_blob(MIB).await;
    let gate = crate::support::Gate::new();
    let bad = Reply::normal().flip(MIB as u64 - 1);
    scene.upstream.script("GET", &scene.path(), [bad, Reply::normal().wait_before_head(&gate)]);
    let first = crate::support::Conn::get(scene.server.addr(), &scene.path()).await;
    // By now the first generation has failed its check, and the second one is requested.
    gate.reached(1).await;
    let path = scene.path();
    let late = scene.server.get(&path);
    let (late, ()) = tokio::join!(late, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        gate.open();
    });
    assert!(late.status == 200 && late.body == scene.bytes());
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_never_gets_a_truncated_generation_as_complete() {
    for _ in 0..20 {
        let upstream = Upstream::start().await;
        let content = blob(1, 400_000);
        // Each client uses its own repository: its confirmation separates the start of the response from the first byte.
        let repos: Vec<_> = (0..12).map(|n| format!("org/r{n}")).collect();
        for repo in &repos {
            upstream.add_blob(repo, &content);
            upstream.script("GET", &blob_path(repo, &content), [Reply::normal().body(vec![9; 70_000])]);
        }
        let server = TestServer::mirror_of(&upstream).await;
        let clients = repos.iter().map(|repo| {
            let (addr, path) = (server.addr(), blob_path(repo, &content));
            async move {
                let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
                let mut client = crate::support::Conn::ask(addr, &request).await.ok()?;
                let (body, ended) = client.rest().await;
                (client.status == 200 && ended == crate::support::Ended::Complete).then_some(body)
            }
        });
        for whole in futures_util::future::join_all(clients).await.into_iter().flatten() {
            assert!(whole == content.bytes, "{} wrong bytes as a complete body", whole.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_referrer_entries_are_skipped() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[10]);
    upstream.add_image(REPO, "v1", &image);
    let server = TestServer::mirror_of(&upstream).await;
    let good = json!({"mediaType": "a/b", "digest": image.digest(), "size": 1});
    for (manifests, wanted) in [
        (json!(null), 0),
        (json!([good, {"digest": "sha256:x"}, {"mediaType": "a/b", "digest": "<script>", "size": 1}, 7]), 1),
    ] {
        let subject = format!("sha256:{:064x}", wanted + 1);
        let path = format!("/v2/{REPO}/referrers/{subject}");
        upstream.always("GET", &path, Reply::status(200).body(json!({"manifests": manifests}).to_string()));
        let listed = server.get(&path).await;
        assert_eq!((listed.status, listed.json()["manifests"].as_array().unwrap().len()), (200, wanted));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_referrers_is_bounded_in_size() {
    let server = TestServer::builder().start().await;
    let subject = format!("sha256:{:064x}", 7);
    for n in 0..4 {
        let manifest = json!({
            "schemaVersion": 2, "mediaType": crate::support::image::OCI_MANIFEST, "layers": [],
            "artifactType": format!("application/x-{n}{}", "y".repeat(1 << 20)),
            "subject": {"mediaType": "a/b", "digest": subject, "size": 1},
        });
        let manifest = Content::json(crate::support::image::OCI_MANIFEST, &manifest);
        server.client().push_manifest(&server.url(""), "team/app", &manifest.digest, &manifest).await;
    }
    let mut path = format!("/v2/team/app/referrers/{subject}");
    let mut found = 0;
    loop {
        let page = server.get(&path).await;
        assert!(page.body.len() < 3 << 20, "{} bytes", page.body.len());
        found += page.json()["manifests"].as_array().unwrap().len();
        let Some((next, _)) = page.header("link").trim_start_matches('<').split_once('>') else { break };
        path = next.to_owned();
    }
    assert_eq!(found, 4);
}
