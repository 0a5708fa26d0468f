//! `roadstead du`: disk usage by repository and class.

use serde_json::{Value, json};

use crate::operator::roadstead;
use crate::scene::settle;
use crate::support::image::OCI_LAYER;
use crate::support::{Content, Image, TestServer, Upstream, random_bytes};

/// Total bytes of an image's manifest and blobs.
fn size_of(image: &Image) -> u64 {
    image.blobs().chain([&image.manifest]).map(|content| content.bytes.len() as u64).sum()
}

async fn pull(server: &TestServer, name: &str, tag: &str, image: &Image) {
    assert_eq!(server.get(&format!("/v2/{name}/manifests/{tag}")).await.status, 200);
    for blob in image.blobs() {
        assert_eq!(server.get(&format!("/v2/{name}/blobs/{}", blob.digest)).await.body, blob.bytes);
    }
}

/// Two pushed repositories and two mirrored ones; one image is in three of them.
async fn scene() -> (TestServer, Image, Image) {
    let upstream = Upstream::start().await;
    let (common, alone) = (Image::new(1, &[40_000]), Image::new(2, &[70_000, 1]));
    upstream.add_image("library/a", "v1", &common);
    upstream.add_image("library/b", "v1", &common);
    upstream.add_image("library/b", "v2", &alone);
    let server = TestServer::mirror_of(&upstream).await;
    let base = server.url("");
    server.client().push_image(&base, "team/app", "v1", &common).await;
    server.client().push_image(&base, "team/app", "v2", &common).await;
    pull(&server, "docker.io/library/a", "v1", &common).await;
    pull(&server, "docker.io/library/b", "v1", &common).await;
    pull(&server, "docker.io/library/b", "v2", &alone).await;
    settle(&server).await;
    // An uploaded blob that no manifest refers to.
    let lost = Content::new(OCI_LAYER, random_bytes(9, 5000));
    server.client().push_blob(&base, "team/other", &lost).await;
    server.delete(&format!("/v2/team/other/blobs/{}", lost.digest)).await;
    (server, common, alone)
}

fn row(rows: &Value, name: &str) -> Value {
    let rows = rows.as_array().unwrap();
    rows.iter().find(|row| row["repository"] == name || row["scope"] == name).cloned().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn du_separates_shared_pushed_and_cached_bytes() {
    let (mut server, common, alone) = scene().await;
    let (common, alone) = (size_of(&common), size_of(&alone));
    let online = roadstead(server.data_dir(), &["du", "--output", "json"]).await;
    assert_eq!((online.code, online.err.as_str()), (0, ""));
    let found = online.json();
    assert_eq!(
        row(&found["repositories"], "team/app"),
        json!({"scope": "local", "repository": "team/app", "class": "pushed", "own_bytes": 0, "shared_bytes": common,
               "blobs": 3, "manifests": 1, "tags": 2})
    );
    let b = row(&found["repositories"], "library/b");
    assert_eq!((&b["own_bytes"], &b["shared_bytes"], &b["tags"]), (&json!(alone), &json!(common), &json!(2)));
    let mirrored = row(&found["scopes"], "docker.io");
    let sums = ["own_bytes", "shared_bytes", "repositories", "manifests", "tags"].map(|key| mirrored[key].as_u64());
    assert_eq!(sums.map(Option::unwrap), [alone, common, 2, 3, 3]);
    let total = &found["total"];
    assert_eq!(total["pushed"], json!({"files": 3, "bytes": common}));
    assert_eq!(total["cached"], json!({"files": 4, "bytes": alone}));
    assert_eq!(total["unreferenced"], json!({"files": 1, "bytes": 5000}));
    assert_eq!(total["spool"]["files"], 0);

    server.stop_running().await;
    let offline = roadstead(server.data_dir(), &["du", "--output", "json"]).await.json();
    assert_eq!((&offline["repositories"], &offline["scopes"]), (&found["repositories"], &found["scopes"]));
    assert_eq!(offline["total"]["pushed"], found["total"]["pushed"]);
    server.restart().await;
    assert_eq!(server.get("/v2/team/app/tags/list").await.json()["tags"], json!(["v1", "v2"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn du_prints_a_table_with_the_largest_first() {
    let (server, _, _) = scene().await;
    let output = roadstead(server.data_dir(), &["du"]).await;
    let lines: Vec<&str> = output.out.lines().take(6).collect();
    let expected = "        own      shared  manifests    tags  content of
        0 B     40.6 kB          1       2  local (1 repository)
        0 B     40.6 kB          1       2    team/app
    70.8 kB     40.6 kB          3       3  docker.io (2 repositories)
    70.8 kB     40.6 kB          2       2    library/b
        0 B     40.6 kB          1       1    library/a";
    assert_eq!(lines.join("\n"), expected, "{}", output.out);
    for line in ["    40.6 kB  pushed (3 blobs)", "     5000 B  unreferenced (1 blob)", "        0 B  spool (0 files)"]
    {
        assert!(output.out.lines().any(|found| found == line), "{line:?} is not in\n{}", output.out);
    }
    assert_eq!(output.err, "", "no progress bar without a terminal");
}

#[tokio::test(flavor = "multi_thread")]
async fn du_explain_and_metrics_show_the_bounds_in_force() {
    let builder = TestServer::builder().config("[cache]\nmax_size = \"3GiB\"\nmin_free = \"5MiB\"");
    let mut server = builder.start().await;
    let in_force = |bounds: &Value| {
        assert_eq!((&bounds["max_size"], &bounds["min_free"]), (&json!(3u64 << 30), &json!(5 << 20)), "{bounds}");
    };
    let online = roadstead(server.data_dir(), &["du", "--output", "json"]).await.json();
    in_force(&online["disk"]);
    let free = online["disk"]["free_bytes"].as_f64().unwrap();
    assert!(free > 0.0 && online["disk"]["bytes"].as_f64().unwrap() >= free);
    in_force(&roadstead(server.data_dir(), &["explain", "team/app", "--output", "json"]).await.json()["bounds"]);
    let metrics = server.metrics().await;
    assert_eq!(metrics.sum("roadstead_storage_capacity_bytes", &[]), (3u64 << 30) as f64);
    assert_eq!(metrics.sum("roadstead_storage_min_free_bytes", &[]), (5u64 << 20) as f64);
    assert!(metrics.sum("roadstead_storage_free_bytes", &[]) > 0.0);
    assert!(metrics.has("roadstead_storage_free_inodes"));
    let text = roadstead(server.data_dir(), &["du"]).await.out;
    for line in ["     3.2 GB  cache.max_size", "     5.2 MB  cache.min_free"] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }

    // Without a server, the bounds are those that a server with the defaults would have.
    server.stop_running().await;
    let disk = roadstead(server.data_dir(), &["du", "--output", "json"]).await.json()["disk"].clone();
    let (size, max_size) = (disk["bytes"].as_u64().unwrap(), disk["max_size"].as_u64().unwrap());
    assert!(max_size <= 20 << 30 && max_size <= size / 10 * 8 + 10, "{disk}");
}
