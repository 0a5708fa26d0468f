//! podman 5 of Debian 13.

use super::programs::commands_of;
use super::scene::{digest_at, mirrored};
use crate::clients::podman::Podman;
use crate::clients::readme::recipe;
use crate::clients::{busybox, shapes};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn podman_pulls_twice_pushes_and_pulls_its_own_name() {
    let (upstream, roadstead) = mirrored().await;
    let index = shapes::attested(&busybox::image("attested"));
    upstream.add_index("team/app", "v1", &index);
    let recipe = recipe("### podman, buildah, skopeo, CRI-O", "toml", &roadstead.host());
    let podman = || Podman::of_program(commands_of("podman").join("podman"), &recipe);
    let image = "docker.io/team/app:v1";
    let first = podman();
    first.pull(image);
    assert_eq!(first.greeting_in(image), "attested");
    upstream.forget();
    let second = podman();
    second.pull(image);
    assert_eq!(second.digest_of(image), index.images[0].digest());
    assert_eq!(upstream.total(), 0, "the second pull comes from the cache: {:?}", upstream.requests());

    let own = format!("{}/copies/app:v1", roadstead.host());
    second.run(&["push", "--quiet", "--tls-verify=false", image, &own]);
    let third = podman();
    third.run(&["pull", "--quiet", "--tls-verify=false", &own]);
    assert_eq!(third.greeting_in(&own), "attested");
    assert_eq!(third.digest_of(&own), digest_at(&roadstead, "copies/app", "v1").await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn podman_pushes_an_index() {
    let (upstream, roadstead) = mirrored().await;
    let index = busybox::index("one of three");
    upstream.add_index("team/multi", "v1", &index);
    let host = roadstead.host();
    let registries = format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true\n");
    let podman = Podman::of_program(commands_of("podman").join("podman"), &registries);
    podman.run(&["manifest", "create", "list"]);
    podman.run(&["manifest", "add", "--all", "list", &format!("docker://{host}/docker.io/team/multi:v1")]);
    podman.run(&["manifest", "push", "--all", "list", &format!("docker://{host}/team/copy:v1")]);
    let mut copied = shapes::listed(&roadstead.url("/v2/team/copy/manifests/v1")).await;
    let mut wanted: Vec<String> = index.images.iter().map(|image| image.digest().to_owned()).collect();
    copied.sort();
    wanted.sort();
    assert_eq!(copied, wanted);
}
