//! Request sequences of clients that Debian does not package, and what each of them needs in the responses.
//!
//! `make clients` runs most of these programs themselves. These tests need neither Go nor root, and they name the header
//! that a client misses. Each sends its user agent, so that a failure names the client.

use bytes::Bytes;
use serde_json::json;

use crate::scene::{MIB, blob, blob_path, until};
use crate::support::artifact::{empty, fallback_tag, manifest_about};
use crate::support::image::{OCI_INDEX, OCI_MANIFEST};
use crate::support::push::absolute;
use crate::support::{Answer, Client, Content, Gate, Image, Index, Reply, TestServer, Upstream};

/// One client and the server it talks to.
struct Program<'a> {
    agent: &'a str,
    server: &'a TestServer,
    client: Client,
}

impl<'a> Program<'a> {
    fn new(agent: &'a str, server: &'a TestServer) -> Self {
        Self { agent, server, client: Client::new() }
    }

    async fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
        let url = absolute(&self.server.url(""), target);
        let headers = [&[("User-Agent", self.agent)], headers].concat();
        self.client.send(method, &url, &headers, body).await
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask("GET", path, headers, Bytes::new()).await
    }

    async fn head(&self, path: &str) -> Answer {
        self.ask("HEAD", path, &[], Bytes::new()).await
    }

    /// Opens a session. Its `Location` must be relative: crane refuses a different private address, and behind a proxy the
    /// server does not know its own.
    async fn post(&self, path: &str) -> String {
        let answer = self.ask("POST", path, &[("Content-Type", "application/json")], Bytes::new()).await;
        assert_eq!(answer.status, 202, "{}: {}", self.agent, answer.text());
        let location = answer.header("location").to_owned();
        assert!(location.starts_with("/v2/"), "{}: {location}", self.agent);
        location
    }

    async fn put_manifest(&self, repository: &str, reference: &str, manifest: &Content) -> Answer {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let answer = self.ask("PUT", &path, &[("Content-Type", &manifest.media_type)], manifest.bytes.clone()).await;
        assert_eq!(answer.status, 201, "{}: {}", self.agent, answer.text());
        assert_eq!(answer.header("docker-content-digest"), manifest.digest, "{}", self.agent);
        answer
    }
}

/// What crane and containerd need in the response to a HEAD.
fn assert_described(answer: &Answer, manifest: &Content, what: &str) {
    let length = manifest.bytes.len().to_string();
    assert_eq!(answer.status, 200, "{what}");
    assert_eq!(answer.header("content-type"), manifest.media_type, "{what}");
    assert_eq!(answer.header("content-length"), length, "{what}");
    assert_eq!(answer.header("docker-content-digest"), manifest.digest, "{what}");
}

#[tokio::test]
async fn crane_pushes_and_pulls() {
    let server = TestServer::builder().start().await;
    let (crane, image) = (Program::new("crane", &server), Image::new(1, &[100_000, 10]));
    assert_eq!(crane.get("/v2/", &[]).await.status, 200);
    for content in image.blobs() {
        let path = blob_path("team/app", content);
        assert_eq!(crane.head(&path).await.status, 404);
        let mount = format!("/v2/team/app/blobs/uploads/?mount={}&from=team%2Fother&origin=localhost", content.digest);
        let location = crane.post(&mount).await;
        // Streamed, without Content-Range and length.
        let patched = crane.ask("PATCH", &location, &[], content.bytes.clone()).await;
        assert_eq!(patched.status, 202, "{}", patched.text());
        let finish = format!("{}?digest={}", patched.header("location"), content.digest);
        assert_eq!(crane.ask("PUT", &finish, &[], Bytes::new()).await.status, 201);
    }
    crane.put_manifest("team/app", "v1", &image.manifest).await;
    assert_described(&crane.head("/v2/team/app/manifests/v1").await, &image.manifest, "crane");
    for content in image.blobs() {
        let answer = crane.get(&blob_path("team/app", content), &[]).await;
        assert_eq!(answer.header("content-length"), content.bytes.len().to_string());
        assert_eq!(answer.body, content.bytes);
    }
}

#[tokio::test]
async fn oras_detects_the_referrers_api_and_attaches() {
    let server = TestServer::builder().start().await;
    let (oras, image) = (Program::new("oras", &server), Image::new(1, &[10]));
    oras.client.push_image(&server.url(""), "team/app", "v1", &image).await;
    // oras probes whether there is a referrers API.
    let probed = format!("/v2/team/app/referrers/sha256:{}", "0".repeat(64));
    let probe = oras.get(&probed, &[]).await;
    assert_eq!((probe.status, probe.header("content-type")), (200, OCI_INDEX));
    let location = oras.post("/v2/team/app/blobs/uploads/").await;
    let put = format!("{location}?digest={}", empty().digest);
    assert_eq!(oras.ask("PUT", &put, &[("Content-Type", "application/octet-stream")], empty().bytes).await.status, 201);
    let sbom = manifest_about(&image.manifest, OCI_MANIFEST, &json!({"artifactType": "application/spdx+json"}));
    let pushed = oras.put_manifest("team/app", &sbom.digest, &sbom).await;
    assert_eq!(pushed.header("oci-subject"), image.digest());
    let wanted = format!("/v2/team/app/referrers/{}?artifactType=application%2Fspdx%2Bjson", image.digest());
    let found = oras.get(&wanted, &[]).await;
    assert_eq!(found.header("oci-filters-applied"), "artifactType");
    assert_eq!(found.json()["manifests"][0]["digest"], sbom.digest);
}

#[tokio::test]
async fn regctl_tries_a_mount_cancels_it_and_pushes_in_chunks() {
    let server = TestServer::builder().start().await;
    let (regctl, content) = (Program::new("regclient", &server), blob(1, 300_000));
    let session = regctl.post(&format!("/v2/team/app/blobs/uploads/?mount={}", content.digest)).await;
    assert_eq!(regctl.ask("DELETE", &session, &[], Bytes::new()).await.status, 204);
    let mut location = regctl.post("/v2/team/app/blobs/uploads/").await;
    for (at, chunk) in content.bytes.chunks(100_000).enumerate() {
        let range = format!("{}-{}", at * 100_000, at * 100_000 + chunk.len() - 1);
        let headers = [("Content-Range", range.as_str()), ("Content-Type", "application/octet-stream")];
        let answer = regctl.ask("PATCH", &location, &headers, Bytes::copy_from_slice(chunk)).await;
        assert_eq!(
            (answer.status, answer.header("range")),
            (202, format!("0-{}", at * 100_000 + chunk.len() - 1).as_str())
        );
        location = answer.header("location").to_owned();
    }
    let finish = format!("{location}?digest={}", content.digest);
    assert_eq!(regctl.ask("PUT", &finish, &[], Bytes::new()).await.status, 201);
    assert_eq!(regctl.get(&blob_path("team/app", &content), &[]).await.body, content.bytes);
}

/// `1.0.0+build.5` becomes the tag `1.0.0_build.5`, and a range of versions is resolved in the list of tags.
#[tokio::test]
async fn helm_pulls_a_chart_by_a_range_of_versions() {
    let upstream = Upstream::start().await;
    let server = TestServer::builder().upstream("ghcr.io", &upstream).start().await;
    let config =
        Content::new("application/vnd.cncf.helm.config.v1+json", r#"{"name":"chart","version":"1.0.0+build.5"}"#);
    let layer = Content::new("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "a chart");
    let provenance = Content::new("application/vnd.cncf.helm.chart.provenance.v1.prov", "a signature");
    let manifest = json!({
        "schemaVersion": 2,
        "config": config.descriptor(),
        "layers": [provenance.descriptor(), layer.descriptor()],
        "annotations": {"org.opencontainers.image.version": "1.0.0+build.5"},
    });
    let manifest = Content::json(OCI_MANIFEST, &manifest);
    upstream.add_manifest("charts/chart", &manifest);
    upstream.tag("charts/chart", "1.0.0_build.5", &manifest.digest);
    for content in [&config, &layer, &provenance] {
        upstream.add_blob("charts/chart", content);
    }
    let helm = Program::new("Helm/3.16", &server);
    let tags = helm.get("/v2/ghcr.io/charts/chart/tags/list", &[]).await;
    assert_eq!(tags.json()["tags"], json!(["1.0.0_build.5"]));
    let path = "/v2/ghcr.io/charts/chart/manifests/1.0.0_build.5";
    assert_described(&helm.head(path).await, &manifest, "helm");
    assert_eq!(helm.get(path, &[]).await.body, manifest.bytes);
    for content in [&config, &provenance, &layer] {
        assert_eq!(helm.get(&blob_path("ghcr.io/charts/chart", content), &[]).await.body, content.bytes);
    }
}

#[tokio::test]
async fn cosign_lookups_of_absent_tags_ask_upstream_once() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[10]);
    upstream.add_image("org/app", "1", &image);
    let server = TestServer::builder().upstream("ghcr.io", &upstream).start().await;
    let cosign = Program::new("cosign", &server);
    assert_described(&cosign.head("/v2/ghcr.io/org/app/manifests/1").await, &image.manifest, "cosign");
    let tag = fallback_tag(&image.manifest);
    for _ in 0..3 {
        for tag in [tag.clone(), format!("{tag}.sig"), format!("{tag}.att"), format!("{tag}.sbom")] {
            let answer = cosign.get(&format!("/v2/ghcr.io/org/app/manifests/{tag}"), &[]).await;
            assert_eq!((answer.status, answer.error_code().as_str()), (404, "MANIFEST_UNKNOWN"), "{tag}");
            assert_eq!(upstream.count("GET", &format!("/v2/org/app/manifests/{tag}")), 1, "{tag}");
        }
    }
}

/// Docker 29 through a mirror with a path: the index, its platform, the attestation, and the referrers of that.
#[tokio::test]
async fn docker_29_pulls_an_image_with_attestations() {
    let upstream = Upstream::start().await;
    let (image, attestation) = (Image::new(1, &[200_000]), Image::new(2, &[10]));
    let mut described = attestation.manifest.descriptor();
    described["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    described["annotations"] =
        json!({"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image.digest()});
    let mut own = image.manifest.descriptor();
    own["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [own, described]});
    let index = Index { manifest: Content::json(OCI_INDEX, &manifest), images: vec![image, attestation] };
    upstream.add_index("library/app", "1", &index);
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server = builder.start().await;
    let docker = Program::new("docker/29.1 containerd/2.2", &server);
    for prefix in ["/v2", "/docker.io/v2", "/v2/docker.io/v2"] {
        let path = |rest: &str| format!("{prefix}/library/app/{rest}?ns=docker.io");
        let head = docker.head(&path("manifests/1")).await;
        assert_described(&head, &index.manifest, prefix);
        assert_eq!(head.header("oci-namespace"), "docker.io");
        for manifest in [&index.manifest, &index.images[0].manifest, &index.images[1].manifest] {
            let accept = format!("{}, */*", manifest.media_type);
            let headers = [("Accept", accept.as_str()), ("Accept-Encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5")];
            let answer = docker.get(&path(&format!("manifests/{}", manifest.digest)), &headers).await;
            assert_eq!((answer.body, answer.headers.get("content-encoding")), (manifest.bytes.clone(), None));
        }
        for blob in index.images.iter().flat_map(Image::blobs) {
            assert_eq!(docker.get(&path(&format!("blobs/{}", blob.digest)), &[]).await.body, blob.bytes);
        }
        let attested = &index.images[1].manifest;
        let referrers = docker.get(&path(&format!("referrers/{}", attested.digest)), &[]).await;
        assert!(referrers.status == 200 || referrers.status == 404, "{}", referrers.text());
        let fallback = docker.get(&path(&format!("manifests/{}", fallback_tag(attested))), &[]).await;
        assert_eq!(fallback.status, 404, "an absent fallback tag is a valid result");
    }
    assert_eq!(upstream.count("GET", &format!("/v2/library/app/blobs/{}", index.images[0].layers[0].digest)), 1);
}

/// containerd 2.1 fetches a layer in parallel open-ended ranges, and closes each once it has its part.
#[tokio::test]
async fn containerd_pulls_a_cold_layer_in_parallel_ranges_from_one_transfer() {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    let content = blob(1, 4 * MIB);
    upstream.add_blob("org/app", &content);
    let at_upstream = blob_path("org/app", &content);
    upstream.script("GET", &at_upstream, [Reply::normal().wait_after(64 << 10, &gate)]);
    let server = TestServer::builder().upstream("ghcr.io", &upstream).start().await;
    let path = format!("{at_upstream}?ns=ghcr.io");
    let client = Client::new();
    let url = server.url(&path);
    let parts = (0..4).map(|part| {
        let (client, url, first) = (client.clone(), url.clone(), part * MIB);
        tokio::spawn(async move {
            let range = format!("bytes={first}-");
            let mut answer = client.start("GET", &url, &[("Range", &range)], "").await.unwrap();
            assert_eq!(answer.status(), 206);
            let expected = format!("bytes {first}-{}/{}", 4 * MIB - 1, 4 * MIB);
            assert_eq!(answer.headers()["content-range"], expected.as_str());
            let mut taken = Vec::new();
            while taken.len() < MIB {
                taken.extend_from_slice(&answer.chunk().await.unwrap().expect("more comes"));
            }
            taken.truncate(MIB);
            taken
        })
    });
    let parts: Vec<_> = parts.collect();
    until("the transfer has started", async || upstream.count("GET", &at_upstream) == 1).await;
    gate.open();
    let mut whole = Vec::new();
    for part in parts {
        whole.extend(part.await.unwrap());
    }
    assert_eq!(Bytes::from(whole), content.bytes);
    assert_eq!(upstream.count("GET", &at_upstream), 1, "one transfer for all parts");
}

/// stargz: a probe of two bytes, the footer, and then ranges, several in one request.
#[tokio::test]
async fn a_lazy_snapshotter_reads_a_footer_and_ranges() {
    let upstream = Upstream::start().await;
    let content = blob(1, 2 * MIB);
    upstream.add_blob("org/app", &content);
    let server = TestServer::builder().upstream("ghcr.io", &upstream).start().await;
    let (stargz, path) = (Program::new("stargz", &server), blob_path("ghcr.io/org/app", &content));
    let ranged = async |range: &str| {
        let answer = stargz.get(&path, &[("Range", range), ("Accept-Encoding", "identity")]).await;
        assert_eq!(answer.status, 206, "{range}");
        answer
    };
    let look = ranged("bytes=0-1").await;
    assert_eq!((look.body.as_ref(), look.header("content-range")), (&content.bytes[..2], "bytes 0-1/2097152"));
    assert_eq!(stargz.head(&path).await.header("content-length"), "2097152");
    let footer = ranged("bytes=2097101-2097151").await;
    assert_eq!(footer.body, content.bytes[2_097_101..]);
    let several = ranged("bytes=10-19,1000-1999").await;
    assert!(several.header("content-type").starts_with("multipart/byteranges; boundary="));
    for piece in [&content.bytes[10..20], &content.bytes[1000..2000]] {
        assert!(several.body.windows(piece.len()).any(|window| window == piece));
    }
}
