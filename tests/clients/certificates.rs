//! Real clients with a client certificate, which the rules give rights to.

use rcgen::SanType;

use super::folder::Folder;
use super::program::{find, run};
use super::{busybox, shapes};
use crate::support::Authority;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;

/// A folder as for `/etc/docker/certs.d/HOST:PORT`, with the certificate of a client.
fn certificates(authority: &Authority, name: &str) -> Folder {
    let folder = Folder::new();
    let signed = authority.sign_for("a client", vec![SanType::DnsName(name.try_into().unwrap())]);
    folder.write("ca.crt", &authority.ca);
    folder.write("client.cert", &signed.cert);
    folder.write("client.key", &signed.key);
    folder
}

#[tokio::test]
async fn skopeo_and_curl_push_and_pull_with_a_certificate() {
    let authority = Authority::new();
    let ca = authority.write("clients.pem", &authority.ca);
    let tls = format!("{}client_ca = {ca:?}\nclient_auth = \"optional\"\n", authority.config("roadstead"));
    let roadstead = ServerProcess::start(Settings::new().config(&format!(
        "{tls}[auth]\nhtpasswd = \"/dev/null\"\n\
         [[auth.rule]]\nwho = \"cert:builder.example\"\non = \"team/**\"\nmay = [\"pull\", \"push\"]\n\
         [[auth.rule]]\nwho = \"cert:node-*.example\"\non = \"team/**\"\nmay = \"pull\"\n"
    )));
    let (builder, node) = (certificates(&authority, "builder.example"), certificates(&authority, "node-7.example"));
    let (image, folder) = (busybox::image("pushed by a builder"), Folder::new());
    let (source, target) = (shapes::write_dir(&folder, &image), format!("docker://{}/team/app:v1", roadstead.host()));
    let skopeo = |args: &[&str]| run(&find("skopeo", "skopeo"), args, &[("HOME", &folder.at(""))]);
    skopeo(&["copy", "--preserve-digests", "--dest-cert-dir", &builder.at(""), &source, &target]);
    let digest = skopeo(&["inspect", "--cert-dir", &node.at(""), "--format", "{{.Digest}}", &target]);
    assert_eq!(digest, image.digest());
    let status = |own: &Folder, method: &str, path: &str| {
        let url = format!("https://{}{path}", roadstead.host());
        let (ca, cert, key) = (own.at("ca.crt"), own.at("client.cert"), own.at("client.key"));
        let args = ["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--request", method];
        let own = ["--cacert", &ca, "--cert", &cert, "--key", &key, &url];
        run(&find("curl", "curl"), &[&args[..], &own].concat(), &[])
    };
    assert_eq!(status(&node, "GET", "/v2/"), "200");
    assert_eq!(status(&node, "GET", "/v2/team/app/manifests/v1"), "200");
    assert_eq!(status(&node, "POST", "/v2/team/app/blobs/uploads/"), "403");
    assert_eq!(status(&builder, "POST", "/v2/team/app/blobs/uploads/"), "202");
    assert_eq!(status(&builder, "POST", "/v2/other/app/blobs/uploads/"), "403");
}
