//! Stand-ins for every registry in docs/upstreams.md, with the same challenges, tokens, redirects, missing headers, and
//! responses to expired tokens and passwords.
//!
//! Each has three hosts: the registry, its token server, and a storage that refuses requests with `Authorization`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::future::join_all;
use serde_json::json;
use tempfile::TempDir;

use crate::support::wire::Seen;
use crate::support::{Image, Reply, TestServer, Upstream};

const PUBLIC: &str = "library/app";
const PRIVATE: &str = "corp/app";
const PASSWORD: &str = "s3cret";

/// How a registry authenticates. `{realm}`, `{elsewhere}` and `{repository}` are placeholders.
#[derive(Clone, Copy, Debug)]
enum Authentication {
    Open,
    Basic(&'static str),
    Bearer(Bearer),
}

#[derive(Clone, Copy, Debug)]
struct Bearer {
    challenge: &'static str,
    fields: &'static [&'static str],
    expires_in: Option<u64>,
    /// The scope that a token request must have, with `{repository}`.
    scope: &'static str,
    /// Whether POST with `grant_type=refresh_token` is accepted. Any other POST gets 404.
    takes_refresh_token: bool,
    /// The token server's status for a wrong password.
    refuses_with: u16,
}

/// The response to an expired token or password.
#[derive(Clone, Copy, Debug)]
enum Expired {
    /// The same as without credentials.
    Challenge,
    /// Only this status.
    Bare(u16),
    /// 401 with another challenge, whose realm does not work.
    Other(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Digest {
    Always,
    OnHead,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Redirects {
    Nothing,
    Blobs,
    /// Manifests as well, to a registry with its own token server.
    All,
}

/// The credentials that private pulls need.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// There is no private content.
    None,
    Password,
    /// A password printed by a program; the second run prints another one.
    Exec,
    /// An identity token in Docker's `config.json`, to be exchanged for a token.
    IdentityToken,
}

#[derive(Clone, Copy, Debug)]
struct Registry {
    name: &'static str,
    authentication: Authentication,
    expired: Expired,
    digest: Digest,
    redirects: Redirects,
    /// The `Content-Type` of manifests, where it is not their media type.
    media_type: Option<&'static str>,
    is_public: bool,
    kind: Kind,
    user: &'static str,
}

const BEARER: Bearer = Bearer {
    challenge: "",
    fields: &["token"],
    expires_in: Some(300),
    scope: "repository:{repository}:pull",
    takes_refresh_token: false,
    refuses_with: 401,
};

const REGISTRY: Registry = Registry {
    name: "",
    authentication: Authentication::Open,
    expired: Expired::Challenge,
    digest: Digest::Always,
    redirects: Redirects::Blobs,
    media_type: None,
    is_public: true,
    kind: Kind::Password,
    user: "ann",
};

const fn bearer(challenge: &'static str) -> Authentication {
    Authentication::Bearer(Bearer { challenge, ..BEARER })
}

/// One row for each registry in docs/upstreams.md.
fn registries() -> Vec<Registry> {
    vec![
        Registry {
            name: "docker.io",
            authentication: Authentication::Bearer(Bearer {
                fields: &["token", "access_token"],
                challenge: r#"Bearer realm="{realm}",service="registry.docker.io",scope="repository:{repository}:pull""#,
                ..BEARER
            }),
            ..REGISTRY
        },
        Registry {
            name: "ghcr.io",
            authentication: Authentication::Bearer(Bearer {
                challenge: r#"Bearer realm="{realm}",service="ghcr.io",scope="repository:{repository}:pull""#,
                refuses_with: 403,
                ..BEARER
            }),
            ..REGISTRY
        },
        Registry {
            name: "quay.io",
            authentication: Authentication::Bearer(Bearer {
                challenge: r#"Bearer realm="{realm}",service="quay.io",scope="repository:{repository}:pull""#,
                expires_in: None,
                ..BEARER
            }),
            user: "org+robot",
            ..REGISTRY
        },
        Registry { name: "mcr.microsoft.com", kind: Kind::None, ..REGISTRY },
        Registry { name: "registry.k8s.io", redirects: Redirects::All, kind: Kind::None, ..REGISTRY },
        Registry { name: "gcr.io", authentication: bearer(r#"Bearer realm="{realm}""#), user: "_json_key", ..REGISTRY },
        Registry {
            name: "europe-docker.pkg.dev",
            authentication: bearer(r#"Bearer realm="{realm}",service="europe-docker.pkg.dev""#),
            kind: Kind::Exec,
            user: "oauth2accesstoken",
            ..REGISTRY
        },
        Registry {
            name: "public.ecr.aws",
            authentication: Authentication::Bearer(Bearer {
                challenge: r#"Bearer realm="{realm}",service="public.ecr.aws",scope="aws""#,
                scope: "aws",
                ..BEARER
            }),
            expired: Expired::Bare(400),
            digest: Digest::OnHead,
            user: "AWS",
            ..REGISTRY
        },
        Registry {
            name: "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
            authentication: Authentication::Basic(r#"Basic realm="https://ecr.example/",service="ecr.amazonaws.com""#),
            expired: Expired::Bare(403),
            digest: Digest::OnHead,
            is_public: false,
            kind: Kind::Exec,
            user: "AWS",
            ..REGISTRY
        },
        Registry {
            name: "corp.azurecr.io",
            authentication: Authentication::Bearer(Bearer {
                challenge: r#"Bearer realm="{realm}",service="corp.azurecr.io",scope="repository:{repository}:pull""#,
                fields: &["access_token"],
                expires_in: None,
                takes_refresh_token: true,
                ..BEARER
            }),
            kind: Kind::IdentityToken,
            ..REGISTRY
        },
        Registry {
            name: "registry.gitlab.com",
            authentication: bearer(
                r#"Bearer realm="{realm}",service="container_registry",scope="repository:{repository}:pull",error="invalid_token""#,
            ),
            ..REGISTRY
        },
        Registry {
            name: "nvcr.io",
            authentication: bearer(r#"Bearer realm="{realm}",scope="repository:{repository}:pull""#),
            expired: Expired::Other(r#"Bearer realm="{elsewhere}", service="registry", error="invalid_token""#),
            user: "$oauthtoken",
            ..REGISTRY
        },
        Registry {
            name: "harbor.example.com",
            authentication: bearer(
                r#"Bearer realm="{realm}",service="harbor-registry",scope="repository:{repository}:pull""#,
            ),
            expired: Expired::Other(r#"Basic realm="harbor""#),
            redirects: Redirects::Nothing,
            user: "robot$ci",
            ..REGISTRY
        },
        Registry {
            name: "registry.heroku.com",
            authentication: Authentication::Basic(r#"Basic realm="heroku""#),
            redirects: Redirects::Nothing,
            is_public: false,
            user: "_",
            ..REGISTRY
        },
        Registry {
            name: "distribution.example.com",
            authentication: Authentication::Basic(r#"Basic realm="Registry Realm""#),
            redirects: Redirects::Nothing,
            is_public: false,
            ..REGISTRY
        },
        Registry {
            name: "codeberg.org",
            authentication: Authentication::Bearer(Bearer {
                challenge: r#"Bearer realm="{realm}",service="container_registry",scope="*",Basic realm="{realm}",service="container_registry",scope="*""#,
                scope: "*",
                ..BEARER
            }),
            redirects: Redirects::Nothing,
            ..REGISTRY
        },
        Registry {
            name: "registry.access.redhat.com",
            digest: Digest::Never,
            media_type: Some("text/plain; charset=utf-8"),
            kind: Kind::None,
            ..REGISTRY
        },
        Registry {
            name: "nexus.example.com:8082",
            authentication: bearer(r#"Bearer realm="{realm}",service="nexus.example.com:8082""#),
            redirects: Redirects::Nothing,
            ..REGISTRY
        },
        Registry {
            name: "corp.jfrog.io",
            authentication: Authentication::Basic(r#"Basic realm="Artifactory Realm""#),
            is_public: false,
            ..REGISTRY
        },
    ]
}

/// The three hosts of a registry with a public and a private image, in two versions each.
struct StandIn {
    row: Registry,
    registry: Upstream,
    tokens: Arc<Upstream>,
    storage: Upstream,
    /// Increases when all tokens and passwords expire.
    age: Arc<AtomicUsize>,
    folder: TempDir,
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{user}:{password}")))
}

fn images() -> [Image; 2] {
    [Image::new(1, &[3000, 100]), Image::new(2, &[4000])]
}

impl StandIn {
    async fn start(row: Registry) -> Self {
        let (registry, tokens, storage) = (Upstream::start().await, Upstream::start().await, Upstream::start().await);
        for host in [&registry, &storage] {
            for repository in [PUBLIC, PRIVATE] {
                for (image, tag) in images().iter().zip(["v1", "v2"]) {
                    host.add_image(repository, tag, image);
                }
            }
        }
        let age = Arc::<AtomicUsize>::default();
        let tokens = Arc::new(tokens);
        let stand_in = Self { row, registry, tokens, storage, age, folder: tempfile::tempdir().unwrap() };
        stand_in.behave();
        stand_in
    }

    fn behave(&self) {
        let (row, age) = (self.row, self.age.clone());
        if let Authentication::Bearer(bearer) = row.authentication {
            let age = age.clone();
            self.tokens.behave(move |seen| Some(give_token(&row, bearer, seen, age.load(Ordering::SeqCst))));
        }
        let (realm, storage) = (self.tokens.url("/token"), self.storage.url(""));
        let elsewhere = self.tokens.url("/elsewhere");
        self.registry.behave(move |seen| {
            let age = age.load(Ordering::SeqCst);
            if let Some(refusal) = refuse(&row, seen, age) {
                let text = refusal.0.map(|text| text.replace("{realm}", &realm).replace("{elsewhere}", &elsewhere));
                let reply = Reply::error(refusal.1, "UNAUTHORIZED");
                return Some(match text {
                    Some(text) => reply.header("WWW-Authenticate", &text.replace("{repository}", repository(seen))),
                    None => reply,
                });
            }
            let is_blob = seen.path.contains("/blobs/");
            if row.redirects == Redirects::All || (is_blob && row.redirects == Redirects::Blobs) {
                return Some(Reply::redirect(&format!("{storage}{}", seen.path)));
            }
            (!is_blob).then(|| manifest(&row, seen))
        });
        let is_registry = row.redirects == Redirects::All;
        let realm = self.storage.url("/token");
        self.storage.behave(move |seen| match seen.header("authorization") {
            _ if seen.path == "/token" => Some(Reply::status(200).body(r#"{"token":"of the storage"}"#)),
            "" if is_registry => {
                Some(Reply::error(401, "DENIED").header("WWW-Authenticate", &format!("Bearer realm=\"{realm}\"")))
            }
            "Bearer of the storage" if is_registry => None,
            // Amazon refuses a second authentication ("Only one auth mechanism allowed"). Google refuses several ranges.
            "" if !seen.header("range").contains(',') => None,
            _ => Some(Reply::status(400)),
        });
    }

    /// Makes all tokens and passwords invalid.
    fn expire(&self) {
        self.age.fetch_add(1, Ordering::SeqCst);
        if let Kind::Exec = self.row.kind {
            std::fs::write(self.folder.path().join("password"), self.password()).unwrap();
        }
    }

    fn password(&self) -> String {
        password(&self.row, self.age.load(Ordering::SeqCst))
    }

    async fn server(&self, keys: &str) -> TestServer {
        let name = self.row.name;
        let config = format!("[cache]\ntag_ttl = \"0s\"\n[upstream.\"{name}\"]\n{keys}");
        TestServer::builder().upstream(name, &self.registry).config(&config).start().await
    }

    /// The configuration of the credentials that this registry needs.
    fn keys(&self) -> String {
        let (user, folder) = (self.row.user, self.folder.path());
        match self.row.kind {
            Kind::None => String::new(),
            Kind::Password => format!("username = '{user}'\npassword = \"{}\"", self.password()),
            Kind::Exec => {
                let file = folder.join("password");
                std::fs::write(&file, self.password()).unwrap();
                format!("username = \"{user}\"\nexec = [\"cat\", {file:?}]\nexec_lifetime = \"1s\"")
            }
            Kind::IdentityToken => {
                let file = folder.join("config.json");
                let login = json!({"auth": BASE64.encode("0:"), "identitytoken": PASSWORD});
                let logins = json!({"auths": {self.registry.addr().to_string(): login}});
                std::fs::write(&file, logins.to_string()).unwrap();
                format!("docker_config = {file:?}")
            }
        }
    }

    /// Pulls manifest, config and layers of one tag, and checks all bytes.
    async fn pull(&self, server: &TestServer, repository: &str, tag: &str, image: &Image) {
        let name = self.row.name;
        let manifest = server.get(&format!("/v2/{name}/{repository}/manifests/{tag}")).await;
        let text = if manifest.status == 200 { "" } else { manifest.text() };
        assert_eq!(manifest.status, 200, "{name} {repository}:{tag}: {text}");
        assert_eq!(manifest.header("docker-content-digest"), image.digest(), "{name}");
        assert_eq!(manifest.header("content-type"), image.manifest.media_type, "{name}");
        assert_eq!(manifest.header("warning"), "", "{name}");
        for blob in image.blobs() {
            let answer = server.get(&format!("/v2/{name}/{repository}/blobs/{}", blob.digest)).await;
            assert!(answer.status == 200 && answer.body == blob.bytes, "{name} {repository}:{tag}: {}", answer.status);
        }
    }

    /// A pull, an expiry, and a pull of other content.
    async fn pull_twice(&self, server: &TestServer, repository: &str) {
        let [one, two] = images();
        self.pull(server, repository, "v1", &one).await;
        self.expire();
        if let Kind::Exec = self.row.kind {
            // The program does not run again for each of several refusals in a short time.
            tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        }
        self.pull(server, repository, "v1", &one).await;
        self.pull(server, repository, "v2", &two).await;
    }

    /// Checks that credentials go only to the registry and its token server, and that each request has a full `Accept`.
    fn assert_requests(&self) {
        let name = self.row.name;
        let storage = self.storage.requests();
        assert_eq!(storage.is_empty(), self.row.redirects == Redirects::Nothing, "{name}");
        for seen in storage {
            assert!(["", "Bearer of the storage"].contains(&seen.header("authorization")), "{name}: {seen:?}");
        }
        for seen in self.registry.requests().iter().filter(|seen| seen.path.contains("/manifests/")) {
            assert!(seen.header("accept").contains("vnd.oci.image.index.v1+json"), "{name}");
            assert!(seen.header("accept").contains("manifest.list.v2+json"), "{name}");
        }
        assert!(self.tokens.requests().iter().all(|seen| seen.path == "/token"), "{name}");
    }
}

fn password(row: &Registry, age: usize) -> String {
    match row.kind {
        Kind::Exec => format!("{PASSWORD}-{age}"),
        _ => PASSWORD.to_owned(),
    }
}

fn repository(seen: &Seen) -> &str {
    if seen.path.contains(PRIVATE) { PRIVATE } else { PUBLIC }
}

fn token(scope: &str, is_named: bool, age: usize) -> String {
    format!("{scope}.{}.{age}", if is_named { "named" } else { "anonymous" })
}

/// The challenge and status of a refusal; `None` if the request is allowed.
fn refuse(row: &Registry, seen: &Seen, age: usize) -> Option<(Option<String>, u16)> {
    let shown = seen.header("authorization");
    // A valid token for another repository is not an expired one.
    let is_old = matches!(row.authentication, Authentication::Basic(_)) || !shown.ends_with(&format!(".{age}"));
    let (challenge, may_pass) = match row.authentication {
        Authentication::Open => return None,
        Authentication::Basic(challenge) => (challenge, shown == basic(row.user, &password(row, age))),
        Authentication::Bearer(bearer) => {
            let scope = bearer.scope.replace("{repository}", repository(seen));
            let with = |is_named| shown == format!("Bearer {}", token(&scope, is_named, age));
            (bearer.challenge, with(true) || (repository(seen) == PUBLIC && with(false)))
        }
    };
    match row.expired {
        _ if may_pass => None,
        Expired::Bare(status) if !shown.is_empty() && is_old => Some((None, status)),
        Expired::Other(other) if !shown.is_empty() && is_old => Some((Some(other.to_owned()), 401)),
        _ => Some((Some(challenge.to_owned()), 401)),
    }
}

fn give_token(row: &Registry, bearer: Bearer, seen: &Seen, age: usize) -> Reply {
    let form = if seen.method == "POST" { &seen.body[..] } else { seen.query.as_bytes() };
    let fields: Vec<(String, String)> = url::form_urlencoded::parse(form).into_owned().collect();
    let field = |name: &str| fields.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str());
    let shown = seen.header("authorization");
    let is_named = match seen.method.as_str() {
        _ if seen.path != "/token" => return Reply::error(401, "DENIED"),
        "POST" if !bearer.takes_refresh_token || field("grant_type") != "refresh_token" => {
            return Reply::error(404, "UNSUPPORTED");
        }
        "POST" if field("refresh_token") != PASSWORD => return Reply::error(401, "UNAUTHORIZED"),
        "POST" => true,
        _ if shown.is_empty() => false,
        _ if shown == basic(row.user, &password(row, age)) => true,
        _ => return Reply::error(bearer.refuses_with, "DENIED"),
    };
    let token = token(field("scope"), is_named, age);
    let mut answer = json!({});
    bearer.fields.iter().for_each(|name| answer[*name] = json!(token));
    if let Some(seconds) = bearer.expires_in {
        answer["expires_in"] = json!(seconds);
    }
    Reply::status(200).header("Content-Type", "application/json").body(answer.to_string())
}

/// The usual response with the peculiarities of this registry.
fn manifest(row: &Registry, seen: &Seen) -> Reply {
    let mut reply = Reply::normal();
    if row.digest == Digest::Never || (row.digest == Digest::OnHead && seen.method == "GET") {
        reply = reply.without_digest().without("ETag");
    }
    if let Some(media_type) = row.media_type {
        reply = reply.header("Content-Type", media_type);
    }
    if row.name == "docker.io" {
        reply = reply.header("ratelimit-limit", "100;w=21600").header("ratelimit-remaining", "93;w=21600");
    }
    reply
}

/// Runs a test for every selected registry in parallel.
async fn of_each(meant: impl Fn(&Registry) -> bool, test: impl AsyncFn(Registry)) {
    join_all(registries().into_iter().filter(|row| meant(row)).map(async |row| test(row).await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn public_images_of_every_registry_are_pulled_anonymously() {
    of_each(
        |row| row.is_public,
        async |row| {
            let stand_in = StandIn::start(row).await;
            let server = stand_in.server("").await;
            stand_in.pull_twice(&server, PUBLIC).await;
            let private = server.get(&format!("/v2/{}/{PRIVATE}/manifests/v1", row.name)).await;
            let expected = if matches!(row.kind, Kind::None) { 200 } else { 404 };
            assert_eq!(private.status, expected, "{}", row.name);
            stand_in.assert_requests();
            server.stop().await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn private_images_of_every_registry_are_pulled_with_credentials() {
    of_each(
        |row| !matches!(row.kind, Kind::None),
        async |row| {
            let stand_in = StandIn::start(row).await;
            let server = stand_in.server(&stand_in.keys()).await;
            stand_in.pull_twice(&server, PRIVATE).await;
            stand_in.assert_requests();
            if row.name == "docker.io" {
                let labels = [("upstream", "docker.io")];
                assert_eq!(server.metric("roadstead_upstream_ratelimit_remaining", &labels).await, 93.0);
            }
            server.stop().await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_registry_accepts_a_password_and_refuses_a_wrong_one() {
    of_each(
        |row| !matches!(row.kind, Kind::None),
        async |row| {
            let stand_in = StandIn::start(Registry { kind: Kind::Password, ..row }).await;
            let server = stand_in.server(&stand_in.keys()).await;
            stand_in.pull_twice(&server, PRIVATE).await;
            server.stop().await;

            let wrong = stand_in.server(&format!("username = '{}'\npassword = \"wrong\"", row.user)).await;
            let before = stand_in.registry.total() + stand_in.tokens.total();
            let answer = wrong.get(&format!("/v2/{}/{PRIVATE}/manifests/v1", row.name)).await;
            assert_eq!(answer.status, 403, "{}: {}", row.name, answer.text());
            let requests = stand_in.registry.total() + stand_in.tokens.total() - before;
            assert!(requests <= 3, "{}: a wrong password is tried once, not in {requests} requests", row.name);
            wrong.stop().await;
        },
    )
    .await;
}
