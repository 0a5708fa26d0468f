//! A server without sockets, over a store with one mirrored image. Nothing leaves the process.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use roadstead::access::{Gate, Login, MachineTokens, Peer};
use roadstead::config::Config;
use roadstead::http::{App, Site, TokenServer};
use roadstead::oci::{Algorithm, Digest, Manifest, RepoId, Scope};
use roadstead::pull::Puller;
use roadstead::store::{NewManifest, Store};
use roadstead::tasks::Tasks;
use roadstead::telemetry::Metrics;
use roadstead::upstream::Upstream;
use tempfile::TempDir;

use super::tests::Image;

pub const BLOB_BYTES: usize = 1 << 20;
const UPSTREAM: &str = "docker.io";
/// The upstream does not exist and is not needed: all content is stored, and tags stay fresh throughout.
const CONFIG: &str = "builtin_upstreams = false\ndefault_upstream = \"docker.io\"\n\
                      [cache]\ntag_ttl = \"1d\"\n[upstream.\"docker.io\"]\nurl = \"http://127.0.0.1:1\"";

/// A user, and a rule without which the user could pull nothing.
const USER: &str = "ann";
const PASSWORD: &str = "password";
const RULES: &str = "[local]\nnamespaces = \"team/**\"\n[[auth.rule]]\nwho = \"authenticated\"\non = \"**\"\nmay = \"pull\"\n\
                     [auth]\nhtpasswd = ";
/// The key of the token.
const SECRET: [u8; 32] = [7; 32];
/// The cheapest cost of bcrypt: no measurement includes it.
const BCRYPT_COST: u32 = 4;

pub struct Hot {
    site: Site,
    /// The value of `Authorization` in each request; without users, there is none.
    authorization: Option<HeaderValue>,
    peer: Peer,
    pub store: Store,
    pub repository: RepoId,
    /// Request paths: the manifest by tag and by digest, and a blob of 1 MiB.
    pub by_tag: String,
    pub by_digest: String,
    pub blob: String,
    _folder: TempDir,
}

impl Hot {
    /// Without users.
    pub async fn new() -> Self {
        Self::configured(tempdir(), CONFIG).await
    }

    /// With a user, whose token is sent with each request.
    pub async fn with_token() -> Self {
        let folder = tempdir();
        let users = folder.path().join("htpasswd");
        let hash = bcrypt::hash(PASSWORD, BCRYPT_COST).expect("a hash");
        std::fs::write(&users, format!("{USER}:{hash}\n")).expect("the folder can be written");
        let mut hot = Self::configured(folder, &format!("{CONFIG}\n{RULES}{users:?}")).await;
        let login = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
        hot.authorization = Some(HeaderValue::try_from(login).expect("a header"));
        let answer = hot.body("/auth/token?scope=repository:library/hot:pull").await;
        let answer: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
        let token = answer["token"].as_str().expect("a token");
        hot.authorization = Some(HeaderValue::try_from(format!("Bearer {token}")).expect("a header"));
        hot
    }

    async fn configured(folder: TempDir, config: &str) -> Self {
        let config = Config::from_toml(config, "bench").expect("a configuration");
        let login = config.auth.as_ref().map(|auth| {
            let machine_tokens = Arc::new(MachineTokens::none());
            Login::load(auth, &SECRET, machine_tokens).expect("users")
        });
        let store = Store::open(folder.path()).expect("an empty store");
        store.reconcile(&AtomicBool::new(false));
        assert!(!store.needs_reconcile(), "the index is in service");
        let repository = mirrored("library/hot");
        let image = Image::new(1, &[BLOB_BYTES]);
        fill(&store, &repository, &image).await;

        let (metrics, tasks) = (Arc::new(Metrics::new(&[UPSTREAM])), Tasks::new());
        let upstream = Upstream::new(&config.upstreams[0], "bench", metrics.clone(), tasks.clone());
        let upstreams = HashMap::from([(UPSTREAM.into(), Arc::new(upstream.expect("an upstream")))]);
        let app = App {
            puller: Puller::new(store.clone(), upstreams, &config, metrics.clone(), tasks),
            store: store.clone(),
            gate: Gate::new(&config, login),
            token_server: TokenServer::new(&config.server),
            metrics,
            audit: Default::default(),
            via: "bench".to_owned(),
            progress_timeout: config.server.progress_timeout,
            foreign_names: Default::default(),
            large_manifests: roadstead::http::large_manifests(),
            response_headers: Vec::new(),
        };
        Self {
            site: Site::new(Arc::new(app)),
            authorization: None,
            peer: Peer::at(None),
            store,
            repository,
            by_tag: "/v2/library/hot/manifests/v1".to_owned(),
            by_digest: format!("/v2/library/hot/manifests/{}", image.digest()),
            blob: format!("/v2/library/hot/blobs/{}", image.layers[0].digest),
            _folder: folder,
        }
    }

    /// One GET, read to its end. Returns the length of its body.
    pub async fn get(&self, path: &str) -> usize {
        let (mut bytes, mut response) = (0, self.respond(path).await);
        while let Some(frame) = response.body_mut().frame().await {
            bytes += frame.expect("the body goes on").data_ref().map_or(0, |data| data.len());
        }
        bytes
    }

    async fn body(&self, path: &str) -> Bytes {
        self.respond(path).await.into_body().collect().await.expect("the body goes on").to_bytes()
    }

    async fn respond(&self, path: &str) -> Response<Body> {
        let mut request = Request::get(path).header(HOST, "bench").body(Body::empty()).expect("a request");
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let response = self.site.answer(&self.peer, request).await;
        assert_eq!(response.status(), 200, "{path}");
        response
    }
}

/// In the build folder, as /tmp may be in memory.
fn tempdir() -> TempDir {
    tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("a temporary folder")
}

/// A repository of the upstream.
pub fn mirrored(name: &str) -> RepoId {
    RepoId::new(Scope::Upstream(UPSTREAM.into()), name.parse().expect("a name"))
}

async fn fill(store: &Store, repository: &RepoId, image: &Image) {
    for blob in image.blobs() {
        let digest: Digest = blob.digest.parse().expect("a digest");
        let spool = store.begin(Algorithm::Sha256, Some(blob.bytes.len() as u64)).await.expect("a spool");
        spool.write_at(0, vec![blob.bytes.clone()]).await.expect("the bytes are written");
        store.commit(spool, &digest, repository).await.expect("the content is stored");
    }
    tag(store, repository, image, &["v1".to_owned()]).await;
}

/// Stores the manifest of the image under these tags.
pub async fn tag(store: &Store, repository: &RepoId, image: &Image, tags: &[String]) {
    let content = &image.manifest;
    let new = NewManifest {
        digest: content.digest.parse().expect("a digest"),
        media_type: content.media_type.clone(),
        bytes: content.bytes.clone(),
        manifest: Manifest::parse(&content.bytes).expect("a manifest"),
    };
    let tags = tags.iter().map(|tag| tag.parse().expect("a tag")).collect();
    store.put_manifest(repository, new, tags).await.expect("the content is stored");
}
