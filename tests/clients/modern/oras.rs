//! oras pushes artifacts, attaches others to them, and finds these again.

use serde_json::json;

use super::scene::{assert_layout_holds, digest_at, json, mirrored, pushed_and_mirror, two_platforms};
use super::tool::Tool;
use crate::clients::folder::Folder;
use crate::clients::login::{PASSWORD, with_users};
use crate::support::process::ServerProcess;

/// Pushes a file, attaches two artifacts to it, and one to the first of these. The digests of the two.
fn push_with_referrers(oras: &Tool, server: &ServerProcess) -> [String; 2] {
    let subject = format!("{}/team/app:v1", server.host());
    let file = |name: &str| {
        oras.home.write(name, &format!("this is {name}\n"));
        format!("{name}:application/vnd.example.{name}")
    };
    let plain = ["--plain-http", "--format", "go-template={{.digest}}"];
    oras.run(
        &[&["push"], &plain[..], &["--artifact-type", "application/vnd.example", &subject, &file("app")]].concat(),
    );
    let attach = |to: &str, name: &str| {
        let kind = format!("application/vnd.example.{name}+json");
        oras.run(&[&["attach"], &plain[..], &["--artifact-type", &kind, to, &file(name)]].concat())
    };
    let attached = ["sbom", "signature"].map(|name| attach(&subject, name));
    attach(&format!("{}/team/app@{}", server.host(), attached[0]), "about-sbom");
    attached
}

/// The digests that `oras discover` finds at the first level.
fn discovered(oras: &Tool, image: &str, more: &[&str]) -> Vec<String> {
    let args = [&["discover", "--plain-http", "--format", "json", "--depth", "1"], more, &[image]].concat();
    let found = json(&oras.run(&args));
    let listed = found["referrers"].as_array().expect("a list").iter();
    let mut digests: Vec<String> = listed.map(|entry| entry["digest"].as_str().unwrap().to_owned()).collect();
    digests.sort();
    digests
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn oras_attaches_and_discovers_here_and_through_a_mirror() {
    let (oras, (pushed, mirror)) = (Tool::new("oras"), pushed_and_mirror());
    let attached = push_with_referrers(&oras, &pushed);
    let mut sorted = attached.to_vec();
    sorted.sort();
    for image in [format!("{}/team/app:v1", pushed.host()), format!("{}/ghcr.io/team/app:v1", mirror.host())] {
        assert_eq!(discovered(&oras, &image, &[]), sorted, "{image}");
        let filter = ["--artifact-type", "application/vnd.example.sbom+json"];
        assert_eq!(discovered(&oras, &image, &filter), attached[..1], "{image}");
        let out = Folder::new();
        oras.run(&["pull", "--plain-http", "--output", &out.at(""), &image]);
        assert_eq!(std::fs::read_to_string(out.at("app")).unwrap(), "this is app\n", "{image}");
    }
    // The referrers of the referrers come along.
    let (from, to) = (format!("{}/ghcr.io/team/app:v1", mirror.host()), format!("{}/copies/app:v1", mirror.host()));
    oras.run(&["cp", "--recursive", "--from-plain-http", "--to-plain-http", &from, &to]);
    assert_eq!(discovered(&oras, &to, &[]), sorted);
    let sbom = format!("{}/copies/app@{}", mirror.host(), attached[0]);
    assert_eq!(discovered(&oras, &sbom, &[]).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn oras_copies_an_index_through_the_mirror_once() {
    let (upstream, roadstead) = mirrored().await;
    let (index, oras) = (two_platforms(), Tool::new("oras"));
    upstream.add_index("team/multi", "v1", &index);
    let image = format!("{}/docker.io/team/multi:v1", roadstead.host());
    for layout in ["first", "second"] {
        let to = format!("{}:v1", oras.home.at(layout));
        oras.run(&["cp", "--from-plain-http", "--to-oci-layout", &image, &to]);
        assert_layout_holds(&oras.home.at(layout), &index);
        assert_eq!(upstream.total() == 0, layout == "second", "{layout}");
        upstream.forget();
    }
    // And back into a repository of this server.
    let (from, to) = (format!("{}:v1", oras.home.at("first")), format!("{}/copies/multi:v1,v2", roadstead.host()));
    oras.run(&["cp", "--to-plain-http", "--from-oci-layout", &from, &to]);
    assert_eq!(digest_at(&roadstead, "copies/multi", "v2").await, index.digest());
    let repository = format!("{}/copies/multi", roadstead.host());
    assert_eq!(oras.run(&["repo", "tags", "--plain-http", &repository]), "v1\nv2");
    let listed = json(&oras.run(&["repo", "ls", "--plain-http", "--format", "json", &roadstead.host()]));
    assert_eq!(listed["repositories"], json!(["copies/multi"]));
    oras.run(&["manifest", "delete", "--force", "--plain-http", &format!("{repository}:v1")]);
    oras.fail(&["resolve", "--plain-http", &format!("{repository}:v1")]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn oras_logs_in_pushes_and_logs_out() {
    let (folder, oras) = (Folder::new(), Tool::new("oras"));
    let server = with_users(&folder);
    let target = format!("{}/team/app:v1", server.host());
    oras.home.write("app", "this is app\n");
    let push = ["push", "--plain-http", &target, "app"];
    oras.fail(&push);
    let login = |password| ["login", "--plain-http", "-u", "ann", "-p", password];
    oras.fail(&[&login("wrong")[..], &[&server.host()]].concat());
    oras.run(&[&login(PASSWORD)[..], &[&server.host()]].concat());
    oras.run(&push);
    oras.run(&["logout", &server.host()]);
    oras.fail(&push);
    oras.run(&["resolve", "--plain-http", &target]);
}
