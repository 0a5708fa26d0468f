//! containerd 2: its transfer service, which `ctr` uses by default, and the client's own pull with `--local`.

use super::programs::commands_of;
use super::scene::mirrored;
use crate::clients::containerd::Containerd;
use crate::clients::program::MachineLock;
use crate::clients::readme::generated;
use crate::clients::{busybox, shapes};
use crate::scene::MIB;
use crate::support::{Content, Image, Reply, Upstream};

/// containerd 2 whose transfer service unpacks without support of the kernel.
pub fn start() -> Containerd {
    start_with("")
}

/// The same with more settings of the transfer service.
fn start_with(more: &str) -> Containerd {
    let commands = commands_of("containerd");
    let transfer = format!(
        "[plugins.\"io.containerd.transfer.v1.local\"]\n{more}\n\
         [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
         platform = \"linux\"\nsnapshotter = \"native\"\n"
    );
    Containerd::start_program(&commands.join("containerd"), &commands.join("ctr"), &transfer)
}

/// Removes the image and its content, so that the next pull downloads it again.
fn forget(containerd: &Containerd, image: &str) {
    containerd.ctr(&["images", "rm", "--sync", image]);
    containerd.ctr(&["content", "prune", "references"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn containerd_pulls_pushes_and_pulls_its_own_name() {
    let (upstream, roadstead) = mirrored().await;
    let index = shapes::attested(&busybox::image("attested"));
    upstream.add_index("team/app", "v1", &index);
    let _lock = MachineLock::take("daemon");
    let containerd = start();
    let hosts = containerd.set_up(&generated("containerd", &roadstead.url("")));
    let (image, own) = ("docker.io/team/app:v1", format!("{}/team/app:v1", roadstead.host()));
    for local in [&[][..], &["--local"]] {
        let pull = |image: &str| {
            let args = ["images", "pull", "--snapshotter", "native", "--hosts-dir", &hosts, "--all-platforms"];
            containerd.ctr(&[&args[..], local, &[image]].concat());
        };
        upstream.forget();
        pull(image);
        assert_eq!(containerd.digest_of(image), index.digest());
        assert_eq!(containerd.greeting_in(image), "attested");
        assert_eq!(upstream.total() == 0, local == ["--local"], "the second pull comes from the cache");
        containerd.ctr(&["images", "tag", image, &own]);
        containerd.ctr(&[&["images", "push", "--hosts-dir", &hosts], local, &[&own]].concat());
        forget(&containerd, &own);
        forget(&containerd, image);
        pull(&own);
        assert_eq!(containerd.digest_of(&own), index.digest());
        forget(&containerd, &own);
    }
}

/// Pulls an image with a layer of 24 MiB from a slow upstream, in parallel requests for parts of it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn parallel_fetches_of_a_cold_layer_cost_one_transfer() {
    let (upstream, roadstead) = mirrored().await;
    let image = busybox::image_with_ballast("in parts", &[24 * MIB]);
    upstream.add_image("team/app", "v1", &image);
    let layer = image.layers.last().expect("the ballast");
    upstream.always("GET", &path_of(layer), Reply::normal().pace(8 * MIB as u64));
    let _lock = MachineLock::take("daemon");
    let containerd = start_with("max_concurrent_downloads = 4\nconcurrent_layer_fetch_buffer = 1048576");
    let hosts = containerd.set_up(&generated("containerd", &roadstead.url("")));
    containerd.pull(&hosts, "docker.io/team/app:v1");
    assert_eq!(containerd.greeting_in("docker.io/team/app:v1"), "in parts");
    let asked = roadstead.metric("registry_http_requests_total", &[("handler", "blob")]).await;
    assert!(asked > image.blobs().count() as f64 + 1.0, "containerd asked for parts: {asked}");
    assert_sent_once(&upstream, &image);
}

fn path_of(layer: &Content) -> String {
    format!("/v2/team/app/blobs/{}", layer.digest)
}

/// The upstream sent no more than the image: the requests for the parts of its layer add up to the layer.
fn assert_sent_once(upstream: &Upstream, image: &Image) {
    let contents = image.blobs().chain([&image.manifest]);
    let size: usize = contents.map(|content| content.bytes.len()).sum();
    let sent = upstream.bytes_sent() as f64 / size as f64;
    let requests = upstream.requests();
    let ranges: Vec<&str> = requests.iter().map(|seen| seen.header("range")).collect();
    assert!((1.0..1.02).contains(&sent), "{sent} times the image was sent, for these ranges: {ranges:?}");
}
