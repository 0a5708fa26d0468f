//! regctl copies with referrers, and pushes blobs in chunks.

use super::scene::{assert_layout_holds, digest_at, mirrored, pushed_and_mirror, two_platforms};
use super::tool::Tool;
use crate::clients::folder::Folder;
use crate::clients::login::{PASSWORD, with_users};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Image, digest_of, random_bytes};

/// regctl with these registries without TLS.
fn regctl(servers: &[&ServerProcess]) -> Tool {
    let regctl = Tool::new("regctl");
    for server in servers {
        regctl.run(&["registry", "set", &server.host(), "--tls", "disabled"]);
    }
    regctl
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn regctl_copies_an_index_through_the_mirror_once() {
    let (upstream, roadstead) = mirrored().await;
    let (index, regctl) = (two_platforms(), regctl(&[&roadstead]));
    upstream.add_index("team/multi", "v1", &index);
    let image = format!("{}/docker.io/team/multi:v1", roadstead.host());
    for layout in ["first", "second"] {
        regctl.run(&["image", "copy", &image, &format!("ocidir://{}:v1", regctl.home.at(layout))]);
        assert_layout_holds(&regctl.home.at(layout), &index);
        assert_eq!(upstream.total() == 0, layout == "second", "{layout}");
        upstream.forget();
    }
    let own = format!("{}/copies/multi", roadstead.host());
    regctl.run(&["image", "copy", &format!("ocidir://{}:v1", regctl.home.at("first")), &format!("{own}:v1")]);
    regctl.run(&["image", "copy", &format!("{own}:v1"), &format!("{own}:v2")]);
    assert_eq!(digest_at(&roadstead, "copies/multi", "v2").await, index.digest());
    assert_eq!(regctl.run(&["tag", "ls", &own]), "v1\nv2");
    assert_eq!(regctl.run(&["repo", "ls", &roadstead.host()]), "copies/multi");
    regctl.run(&["tag", "delete", &format!("{own}:v1")]);
    assert_eq!(regctl.run(&["tag", "ls", &own]), "v2");
    assert_eq!(regctl.run(&["tag", "ls", &format!("{}/docker.io/team/multi", roadstead.host())]), "v1");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn regctl_pushes_a_blob_in_chunks() {
    let server = ServerProcess::start(Settings::new());
    let regctl = Tool::new("regctl");
    let chunks = ["--blob-chunk", "100000", "--blob-max", "200000"];
    regctl.run(&[&["registry", "set", &server.host(), "--tls", "disabled"], &chunks[..]].concat());
    let (bytes, repository) = (random_bytes(1, 1_234_567), format!("{}/team/app", server.host()));
    std::fs::write(regctl.home.at("blob"), &bytes).unwrap();
    let digest = digest_of(&bytes);
    assert_eq!(regctl.run_with_input(&regctl.home.at("blob"), &["blob", "put", &repository]), digest);
    let answer = Client::new().get(&server.url(&format!("/v2/team/app/blobs/{digest}"))).await;
    assert!(answer.status == 200 && answer.body == bytes);
    let patches = [("method", "patch")];
    assert!(server.metric("registry_http_requests_total", &patches).await >= 13.0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn regctl_copies_referrers_from_a_mirror() {
    let (pushed, mirror) = pushed_and_mirror();
    let regctl = regctl(&[&pushed, &mirror]);
    let image = Image::new(1, &[1000]);
    Client::new().push_image(&pushed.url(""), "team/app", "v1", &image).await;
    let subject = format!("{}/team/app:v1", pushed.host());
    let file = regctl.home.write("sbom", "a list\n");
    let put = ["artifact", "put", "--artifact-type", "application/vnd.example.sbom", "--subject", &subject];
    regctl.run_with_input(file.to_str().unwrap(), &put);
    let (from, to) = (format!("{}/ghcr.io/team/app:v1", mirror.host()), format!("{}/copies/app:v1", mirror.host()));
    regctl.run(&["image", "copy", "--referrers", "--digest-tags", &from, &to]);
    for image in [&subject, &from, &to] {
        let kind = ["--filter-artifact-type", "application/vnd.example.sbom"];
        let list = [&["artifact", "list", "--format", "{{len .Descriptors}}"], &kind[..], &[image]].concat();
        assert_eq!(regctl.run(&list), "1", "{image}");
        assert!(regctl.run(&["artifact", "get", "--subject", image]).contains("a list"), "{image}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn regctl_logs_in_pushes_and_logs_out() {
    let folder = Folder::new();
    let server = with_users(&folder);
    let (regctl, host) = (regctl(&[&server]), server.host());
    let (file, target) = (folder.at("htpasswd"), format!("{host}/team/app:v1"));
    let put = ["artifact", "put", "--artifact-type", "application/vnd.example", "-f", &file, &target];
    regctl.fail(&put);
    regctl.fail(&["registry", "login", &host, "-u", "ann", "-p", "wrong"]);
    regctl.run(&["registry", "login", &host, "-u", "ann", "-p", PASSWORD]);
    regctl.run(&put);
    regctl.run(&["registry", "logout", &host]);
    regctl.fail(&put);
    regctl.run(&["manifest", "head", &target]);
}
