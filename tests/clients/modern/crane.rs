//! crane copies images and indexes, and changes them in the registry.

use super::scene::{assert_layout_holds, digest_at, mirrored};
use super::tool::Tool;
use crate::clients::busybox;
use crate::clients::folder::Folder;
use crate::clients::login::{PASSWORD, with_users};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Content};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn crane_pulls_an_index_and_then_from_the_cache() {
    let (upstream, roadstead) = mirrored().await;
    let (index, crane) = (busybox::index("one of three"), Tool::new("crane"));
    upstream.add_index("team/multi", "v1", &index);
    let image = format!("{}/docker.io/team/multi:v1", roadstead.host());
    for layout in ["first", "second"] {
        crane.run(&["pull", "--format", "oci", &image, &crane.home.at(layout)]);
        assert_layout_holds(&crane.home.at(layout), &index);
        assert_eq!(upstream.total() == 0, layout == "second", "{layout}");
        upstream.forget();
    }
    assert_eq!(crane.run(&["digest", &image]), index.digest());
    crane.run(&["validate", "--remote", &image]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn crane_copies_lists_appends_and_deletes() {
    let (upstream, roadstead) = mirrored().await;
    let (index, crane) = (busybox::index("one of three"), Tool::new("crane"));
    upstream.add_index("team/multi", "v1", &index);
    let host = roadstead.host();
    let (from, to) = (format!("{host}/docker.io/team/multi:v1"), format!("{host}/copies/multi:v1"));
    crane.run(&["copy", &from, &to]);
    assert_eq!(digest_at(&roadstead, "copies/multi", "v1").await, index.digest());
    // Its content can be mounted from there.
    let again = format!("{host}/again/multi:v1");
    crane.run(&["copy", &to, &again]);
    crane.run(&["tag", &to, "v2"]);
    assert_eq!(crane.run(&["ls", &format!("{host}/copies/multi")]), "v1\nv2");
    assert_eq!(crane.run(&["catalog", &host]), "again/multi\ncopies/multi");

    let (base, layer) = (format!("{to}@{}", index.images[0].digest()), busybox::root_tar(&crane.home, "appended"));
    let (appended, mutated) = (format!("{host}/team/appended:v1"), format!("{host}/team/mutated:v1"));
    crane.run(&["append", "--base", &base, "-f", &layer, "-t", &appended]);
    crane.run(&["export", &appended, "root.tar"]);
    crane.run(&["mutate", "--label", "by=crane", "--tag", &mutated, &appended]);
    assert!(crane.run(&["config", &mutated]).contains("\"by\":\"crane\""));

    crane.run(&["delete", &format!("{host}/again/multi:v1")]);
    assert!(crane.fail(&["digest", &again]).contains("MANIFEST_UNKNOWN"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn crane_pushes_a_tarball_and_pulls_it_back() {
    let (server, crane) = (ServerProcess::start(Settings::new()), Tool::new("crane"));
    let (host, image) = (server.host(), busybox::image("in a tarball"));
    Client::new().push_image(&server.url(""), "team/app", "v1", &image).await;
    let (tar, other) = (crane.home.at("image.tar"), format!("{host}/team/other:v1"));
    crane.run(&["pull", &format!("{host}/team/app:v1"), &tar]);
    crane.run(&["push", &tar, &other]);
    for Content { digest, bytes, .. } in image.blobs() {
        let answer = Client::new().get(&server.url(&format!("/v2/team/other/blobs/{digest}"))).await;
        assert!(answer.status == 200 && answer.body == bytes, "{digest}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn crane_logs_in_pushes_and_logs_out() {
    let (folder, crane) = (Folder::new(), Tool::new("crane"));
    let server = with_users(&folder);
    let target = format!("{}/team/app:v1", server.host());
    let tar = busybox::root_tar(&folder, "by ann");
    let append = ["append", "-f", &tar, "-t", &target];
    crane.fail(&append);
    crane.run(&["auth", "login", &server.host(), "-u", "ann", "-p", "wrong"]);
    crane.fail(&append);
    crane.run(&["auth", "login", &server.host(), "-u", "ann", "-p", PASSWORD]);
    crane.run(&append);
    let outside = format!("{}/other/app:v1", server.host());
    assert!(crane.fail(&["append", "-f", &tar, "-t", &outside]).contains("DENIED"));
    crane.run(&["auth", "logout", &server.host()]);
    crane.fail(&["tag", &target, "v2"]);
    crane.run(&["digest", &target]);
}
