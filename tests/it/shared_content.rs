//! Content that is stored for one repository is readable in another one only with a proof. A manifest there is not
//! enough.

use bytes::Bytes;
use serde_json::json;

use crate::support::image::{OCI_INDEX, OCI_MANIFEST};
use crate::support::{Content, Image, Reply, TestServer, Upstream};

const OWNER: &str = "/v2/a.example/org/private";

/// `a.example` with an image that is cached completely, and `b.example`.
async fn two_upstreams() -> (Upstream, Upstream, TestServer, Image) {
    let (owner, other) = (Upstream::start().await, Upstream::start().await);
    let image = Image::new(1, &[100_000]);
    owner.add_image("org/private", "1", &image);
    let server = TestServer::builder().upstream("a.example", &owner).upstream("b.example", &other).start().await;
    for path in ["manifests/1".to_owned(), format!("blobs/{}", image.layers[0].digest)] {
        assert_eq!(server.get(&format!("{OWNER}/{path}")).await.status, 200);
    }
    (owner, other, server, image)
}

/// A manifest that refers to content of another upstream.
fn claiming(layer: &Content) -> Content {
    let config = Content::new("application/vnd.oci.image.config.v1+json", "{}");
    let body = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": config.descriptor(), "layers": [layer.descriptor()], "annotations": {"by": "b"},
    });
    Content::json(OCI_MANIFEST, &body)
}

fn claiming_index(manifest: &Content) -> Content {
    Content::json(OCI_INDEX, &json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [manifest.descriptor()]}))
}

#[tokio::test]
async fn a_manifest_gives_no_right_to_content_of_another_upstream() {
    let (owner, other, server, image) = two_upstreams().await;
    let layer = &image.layers[0];
    for (repo, manifest) in [("org/layer", claiming(layer)), ("org/index", claiming_index(&image.manifest))] {
        other.add_manifest(repo, &manifest);
        other.tag(repo, "1", &manifest.digest);
        assert_eq!(server.get(&format!("/v2/b.example/{repo}/manifests/1")).await.body, manifest.bytes);
    }
    let blob = format!("/v2/b.example/org/layer/blobs/{}", layer.digest);
    let manifest = format!("/v2/b.example/org/index/manifests/{}", image.digest());
    for path in [&blob, &manifest] {
        assert_eq!((server.get(path).await.status, server.head(path).await.status), (404, 404), "{path}");
    }
    assert!(other.count("HEAD", &blob.replace("/v2/b.example", "/v2")) > 0, "b.example was asked");
    let mount = format!("/v2/team/own/blobs/uploads/?mount={}&from=b.example/org/layer", layer.digest);
    assert_eq!(server.send("POST", &mount, &[], Bytes::new()).await.status, 202, "no mount of it either");
    let own = format!("{OWNER}/blobs/{}", layer.digest);
    owner.forget();
    assert_eq!(server.get(&own).await.body, layer.bytes);
    assert_eq!(owner.total(), 0);
}

#[tokio::test]
async fn one_proof_makes_shared_content_readable_for_good() {
    for (what, head) in [
        ("HEAD", Reply::normal()),
        ("HEAD without length", Reply::normal().chunked()),
        ("HEAD refused", Reply::error(403, "DENIED")),
        ("HEAD of nothing", Reply::error(404, "BLOB_UNKNOWN")),
    ] {
        let (_owner, other, server, image) = two_upstreams().await;
        other.add_image("org/copy", "1", &image);
        server.get("/v2/b.example/org/copy/manifests/1").await;
        other.forget();
        let path = format!("/v2/org/copy/blobs/{}", image.layers[0].digest);
        other.always("HEAD", &path, head);
        let through_b = format!("/v2/b.example{}", &path[3..]);
        assert_eq!(server.get(&through_b).await.body, image.layers[0].bytes, "{what}");
        assert_eq!(other.count("HEAD", &path), 1, "{what}");
        assert!(other.bytes_sent() <= 1, "{what}: at most the first byte was fetched");
        other.go_down().await;
        assert_eq!(server.get(&through_b).await.body, image.layers[0].bytes, "{what}: the proof is kept");
    }
}

#[tokio::test]
async fn images_of_one_upstream_share_layers_without_a_request() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[50_000]);
    upstream.add_image("org/one", "1", &image);
    upstream.add_image("org/two", "1", &image);
    let mut server = TestServer::builder().upstream("a.example", &upstream).start().await;
    let layer = |repo: &str| format!("/v2/a.example/org/{repo}/blobs/{}", image.layers[0].digest);
    for repo in ["one", "two"] {
        assert_eq!(server.get(&format!("/v2/a.example/org/{repo}/manifests/1")).await.status, 200);
    }
    assert_eq!(server.get(&layer("one")).await.body, image.layers[0].bytes);
    upstream.go_down().await;
    upstream.forget();
    server.restart().await;
    assert_eq!(server.get(&layer("two")).await.body, image.layers[0].bytes, "also in an outage, and after a restart");
    assert_eq!(upstream.total(), 0);
}

#[tokio::test]
async fn other_credentials_of_one_upstream_need_a_proof() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[50_000]);
    upstream.add_image("org/one", "1", &image);
    let claim = claiming(&image.layers[0]);
    upstream.add_manifest("evil/two", &claim);
    upstream.tag("evil/two", "1", &claim.digest);
    let credentials =
        "[[upstream.\"a.example\".credentials]]\nrepository = \"org/**\"\nusername = \"u\"\npassword = \"p\"";
    let server = TestServer::builder().upstream("a.example", &upstream).config(credentials).start().await;
    for path in ["org/one/manifests/1".to_owned(), format!("org/one/blobs/{}", image.layers[0].digest)] {
        assert_eq!(server.get(&format!("/v2/a.example/{path}")).await.status, 200, "{path}");
    }
    assert_eq!(server.get("/v2/a.example/evil/two/manifests/1").await.body, claim.bytes);
    let path = format!("/v2/a.example/evil/two/blobs/{}", image.layers[0].digest);
    assert_eq!(server.get(&path).await.status, 404);
}

/// An answer with status 200 that is not about the content: of a login page, for instance.
#[tokio::test]
async fn an_answer_that_does_not_fit_the_content_is_no_proof() {
    let page = || Reply::status(200).header("Content-Type", "text/html").body("<html>login</html>");
    let other = || format!("sha256:{}", "0".repeat(64));
    for (what, answer) in [
        ("a redirect to a login page", Reply::redirect("/login")),
        ("a page", page()),
        ("a page without length", page().chunked()),
        ("another length", Reply::status(200).body("shorter")),
        ("neither length nor digest", Reply::status(200).body("shorter").chunked()),
        ("another digest", Reply::normal().header("Docker-Content-Digest", &other())),
        ("416 without Content-Range", Reply::status(416)),
    ] {
        let (_owner, other, server, image) = two_upstreams().await;
        other.always("*", "/login", page());
        for path in [format!("blobs/{}", image.layers[0].digest), format!("manifests/{}", image.digest())] {
            other.always("*", &format!("/v2/org/copy/{path}"), answer.clone());
            let answer = server.get(&format!("/v2/b.example/org/copy/{path}")).await;
            assert!([404, 502].contains(&answer.status), "{what}, {path}: {}", answer.status);
        }
        let unknown = format!("/v2/b.example/org/copy/blobs/sha256:{}", "1".repeat(64));
        other.always("*", &unknown.replace("/b.example", ""), answer.clone());
        let is_known = server.head(&unknown).await.status == 200;
        // Nothing is stored to compare a length with.
        assert_eq!(is_known, ["another length", "neither length nor digest"].contains(&what), "{what}: HEAD");
    }
}

#[tokio::test]
async fn the_first_byte_proves_what_a_wrong_head_does_not() {
    let zeros = format!("sha256:{}", "0".repeat(64));
    for (what, head) in [
        ("another length", Reply::normal().header("Content-Length", "18")),
        ("another digest", Reply::normal().header("Docker-Content-Digest", &zeros)),
        ("a page", Reply::status(200).header("Content-Type", "text/html").body("<html>")),
    ] {
        let (_owner, other, server, image) = two_upstreams().await;
        other.add_image("org/copy", "1", &image);
        for content in [&image.layers[0], &image.manifest] {
            let kind = if content.digest == image.digest() { "manifests" } else { "blobs" };
            let path = format!("/v2/org/copy/{kind}/{}", content.digest);
            other.always("HEAD", &path, head.clone());
            let answer = server.get(&format!("/v2/b.example{}", &path[3..])).await;
            assert_eq!(answer.body, content.bytes, "{what}: {kind}");
            assert_eq!(other.count("GET", &path), 1, "{what}: {kind}");
        }
        assert!(other.bytes_sent() <= 1 + image.manifest.bytes.len() as u64, "{what}: only the first byte of the blob");
    }
}
