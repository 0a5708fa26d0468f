//! distribution 3, the successor of `registry:2`, upstream and downstream of Roadstead.

use super::programs::commands_of;
use super::scene::{assert_layout_holds, two_platforms};
use super::tool::Tool;
use crate::clients::chains::{assert_mirrors_through_roadstead, assert_roadstead_mirrors_through};
use crate::clients::registry::Registry;
use crate::clients::roadstead;

fn mirror_of(url: &str) -> Registry {
    Registry::mirror_with(&commands_of("distribution").join("registry"), url)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn distribution_3_mirrors_through_roadstead() {
    assert_mirrors_through_roadstead(mirror_of).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn roadstead_mirrors_through_distribution_3() {
    assert_roadstead_mirrors_through(mirror_of).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn crane_copies_an_index_from_distribution_3() {
    let hub = Registry::start_program(&commands_of("distribution").join("registry"));
    let (index, crane) = (two_platforms(), Tool::new("crane"));
    hub.push_index("team/multi", "v1", &index).await;
    let roadstead = roadstead(&[("docker.io", &hub)]);
    let image = format!("{}/docker.io/team/multi:v1", roadstead.host());
    crane.run(&["pull", "--format", "oci", &image, &crane.home.at("layout")]);
    assert_layout_holds(&crane.home.at("layout"), &index);
    drop(hub);
    crane.run(&["pull", "--format", "oci", &image, &crane.home.at("again")]);
    assert_layout_holds(&crane.home.at("again"), &index);
}
