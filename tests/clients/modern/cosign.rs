//! cosign signs images with a local key, and verifies them through a mirror.

use super::scene::pushed_and_mirror;
use super::tool::Tool;
use crate::clients::folder::Folder;
use crate::clients::login::{PASSWORD, with_users};
use crate::clients::registry::Registry;
use crate::clients::roadstead;
use crate::support::process::ServerProcess;
use crate::support::{Client, Image, Index};

/// Signatures as referrers, and as images under a tag that is made from the digest.
const SCHEMES: [&str; 2] = ["--new-bundle-format=true", "--new-bundle-format=false"];

/// cosign with a key pair, which is all that verification needs.
fn cosign() -> Tool {
    let cosign = Tool::new("cosign");
    cosign.run(&["generate-key-pair", "--output-key-prefix", &cosign.home.at("own")]);
    cosign
}

/// Signs an image, without the public log.
fn sign(cosign: &Tool, image: &str, scheme: &str) {
    let key = cosign.home.at("own.key");
    let offline = ["--use-signing-config=false", "--tlog-upload=false", "--yes", "--key", &key];
    cosign.run(&[&["sign", "--recursive", "--allow-http-registry", scheme], &offline[..], &[image]].concat());
}

fn verification<'a>(key: &'a str, scheme: &'a str, image: &'a str) -> [&'a str; 7] {
    ["verify", "--allow-http-registry", "--insecure-ignore-tlog", "--key", key, scheme, image]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn cosign_signs_here_and_verifies_through_a_mirror() {
    let (cosign, (pushed, mirror)) = (cosign(), pushed_and_mirror());
    let key = cosign.home.at("own.pub");
    for (scheme, name) in SCHEMES.into_iter().zip(["new", "old"]) {
        let index = Index::new(1, &["linux/amd64", "linux/arm64"], &[1000]);
        Client::new().push_index(&pushed.url(""), &format!("team/{name}"), "v1", &index).await;
        let here = format!("{}/team/{name}", pushed.host());
        let there = format!("{}/ghcr.io/team/{name}", mirror.host());
        // Without a signature, here and there. The mirror remembers that for a moment only.
        cosign.fail(&verification(&key, scheme, &format!("{here}:v1")));
        sign(&cosign, &format!("{here}@{}", index.digest()), scheme);
        for base in [&here, &there] {
            for digest in [index.digest(), index.images[0].digest()] {
                cosign.run(&verification(&key, scheme, &format!("{base}@{digest}")));
            }
        }
        let other = Tool::new("cosign");
        other.run(&["generate-key-pair", "--output-key-prefix", &other.home.at("own")]);
        cosign.fail(&verification(&other.home.at("own.pub"), scheme, &format!("{there}:v1")));
        let tree = cosign.run(&["tree", "--allow-http-registry", &format!("{there}:v1")]);
        assert!(tree.contains("sha256:"), "{tree}");
    }
}

/// A registry without the referrers API: clients keep the list of referrers under a tag.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn cosign_verifies_through_a_mirror_of_a_registry_without_referrers() {
    let (cosign, hub, image) = (cosign(), Registry::start(), Image::new(1, &[1000]));
    hub.push("team/app", "v1", &image).await;
    let mirror = roadstead(&[("docker.io", &hub)]);
    let key = cosign.home.at("own.pub");
    for scheme in SCHEMES {
        sign(&cosign, &format!("127.0.0.1:{}/team/app@{}", hub.port(), image.digest()), scheme);
        let there = format!("{}/docker.io/team/app:v1", mirror.host());
        cosign.run(&verification(&key, scheme, &there));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn cosign_attests_and_verifies_attestations() {
    let (cosign, (pushed, mirror)) = (cosign(), pushed_and_mirror());
    let image = Image::new(1, &[1000]);
    Client::new().push_image(&pushed.url(""), "team/app", "v1", &image).await;
    let (key, predicate) = (cosign.home.at("own.key"), cosign.home.write("predicate", "{\"by\": \"a test\"}"));
    let offline = ["--use-signing-config=false", "--tlog-upload=false", "--yes", "--key", &key];
    let what = ["--type", "https://example.com/of-a-test", "--predicate", predicate.to_str().unwrap()];
    let subject = format!("{}/team/app@{}", pushed.host(), image.digest());
    cosign.run(&[&["attest", "--allow-http-registry"], &offline[..], &what, &[&subject]].concat());
    let public = cosign.home.at("own.pub");
    let there = format!("{}/ghcr.io/team/app:v1", mirror.host());
    let verify = ["verify-attestation", "--allow-http-registry", "--insecure-ignore-tlog", "--key", &public];
    cosign.run(&[&verify[..], &what[..2], &[&there]].concat());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn cosign_logs_in_and_signs() {
    let (folder, cosign) = (Folder::new(), cosign());
    let server = with_users(&folder);
    let image = Image::new(1, &[1000]);
    push_as_ann(&server, &image);
    let subject = format!("{}/team/app@{}", server.host(), image.digest());
    let key = cosign.home.at("own.key");
    let offline = ["--use-signing-config=false", "--tlog-upload=false", "--yes", "--key", &key, &subject];
    let signing = [&["sign", "--allow-http-registry"], &offline[..]].concat();
    cosign.fail(&signing);
    cosign.run(&["login", &server.host(), "-u", "ann", "-p", PASSWORD]);
    cosign.run(&signing);
    cosign.run(&verification(&cosign.home.at("own.pub"), SCHEMES[0], &subject));
}

/// Pushes an image with the account of ann.
fn push_as_ann(server: &ServerProcess, image: &Image) {
    let skopeo = Tool::new("skopeo");
    let source = crate::clients::shapes::write_dir(&skopeo.home, image);
    let (account, target) = (format!("ann:{PASSWORD}"), format!("docker://{}/team/app:v1", server.host()));
    let copy = ["copy", "--preserve-digests", "--dest-tls-verify=false", "--dest-creds", &account];
    skopeo.run(&[&copy[..], &[&source, &target]].concat());
}
