//! skopeo of Debian 13.

use super::scene::{assert_layout_holds, digest_at, json, mirrored, two_platforms};
use super::tool::Tool;
use crate::clients::folder::Folder;
use crate::clients::login::{PASSWORD, with_users};
use crate::clients::shapes;
use crate::support::Image;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn skopeo_copies_an_index_through_the_mirror_once() {
    let (upstream, roadstead) = mirrored().await;
    let (index, skopeo) = (two_platforms(), Tool::new("skopeo"));
    upstream.add_index("team/multi", "v1", &index);
    let host = roadstead.host();
    let (from, own) = (format!("docker://{host}/docker.io/team/multi:v1"), format!("docker://{host}/copies/multi:v1"));
    for layout in ["first", "second"] {
        let to = format!("oci:{}:v1", skopeo.home.at(layout));
        skopeo.run(&["copy", "--all", "--preserve-digests", "--src-tls-verify=false", &from, &to]);
        assert_layout_holds(&skopeo.home.at(layout), &index);
        assert_eq!(upstream.total() == 0, layout == "second", "{layout}");
        upstream.forget();
    }
    let tls = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    skopeo.run(&[&["copy", "--all", "--preserve-digests"], &tls[..], &[&from, &own]].concat());
    assert_eq!(digest_at(&roadstead, "copies/multi", "v1").await, index.digest());
    let list = skopeo.run(&["list-tags", "--tls-verify=false", &format!("docker://{host}/copies/multi")]);
    assert_eq!(json(&list)["Tags"], serde_json::json!(["v1"]));
    skopeo.run(&["delete", "--tls-verify=false", &own]);
    skopeo.fail(&["inspect", "--raw", "--tls-verify=false", &own]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn skopeo_logs_in_pushes_and_logs_out() {
    let (folder, skopeo) = (Folder::new(), Tool::new("skopeo"));
    let server = with_users(&folder);
    let host = server.host();
    let (image, target) = (Image::new(1, &[1000]), format!("docker://{host}/team/app:v1"));
    let source = shapes::write_dir(&folder, &image);
    let copy = ["copy", "--preserve-digests", "--dest-tls-verify=false", &source, &target];
    let login = |password| ["login", "--tls-verify=false", "--username", "ann", "--password", password, &host];
    skopeo.fail(&copy);
    skopeo.fail(&login("wrong"));
    skopeo.run(&login(PASSWORD));
    skopeo.run(&copy);
    skopeo.run(&["logout", &host]);
    skopeo.fail(&copy);
    assert_eq!(digest_at(&server, "team/app", "v1").await, image.digest());
}
