//! Users and rules (`[auth]`): who gets what, and how clients log in.

mod audit;
mod certificates;
mod commands;
mod flows;
mod issuer;
mod logins;
mod machine_tokens;
mod metrics;
mod oidc;
mod private;
mod proxies;
mod reload;
mod repositories;

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Answer, Content, Image, TestServer, Upstream};

/// Everybody pulls from the upstream and `base/*`. The team pulls, pushes and deletes in `team/**`.
const RULES: &str = r#"
    [auth.groups]
    dev = ["ann", "bob"]
    [[auth.rule]]
    who = ["anonymous"]
    on = ["docker.io/**", "base/*"]
    may = ["pull"]
    [[auth.rule]]
    who = ["group:dev"]
    on = ["team/**", "users/{user}/**"]
    may = ["pull", "push", "delete"]
    [[auth.rule]]
    who = ["admin"]
    on = ["**"]
    may = ["pull", "push", "delete"]
    "#;

/// No rule is for everybody.
const CLOSED: &str = r#"
    [[auth.rule]]
    who = ["authenticated"]
    on = ["**"]
    may = ["pull", "push"]
    "#;

/// A server with the users ann, bob, eve and admin, whose passwords are `NAME-password`.
struct Access {
    server: TestServer,
    image: Image,
    upstream: Upstream,
    folder: TempDir,
}

impl Access {
    /// The upstream is docker.io, and has `library/alpine:1`.
    async fn start(rules: &str) -> Self {
        Self::configured(rules, "").await
    }

    /// The same with further settings.
    async fn configured(rules: &str, toml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let users = folder.path().join("htpasswd");
        write_users(&users, &["ann", "bob", "eve", "admin"]);
        let upstream = Upstream::start().await;
        let image = Image::new(1, &[1000]);
        upstream.add_image("library/alpine", "1", &image);
        let auth = format!(
            "[local]\nnamespaces = [\"team/**\", \"base/*\", \"users/**\", \"other/*\"]\n[auth]\nhtpasswd = {users:?}\n"
        );
        let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
        let server = builder.config(&format!("{auth}{rules}")).config(toml).start().await;
        Self { server, image, upstream, folder }
    }

    fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    fn users(&self) -> PathBuf {
        self.folder.path().join("htpasswd")
    }

    async fn get(&self, path: &str, authorization: &str) -> Answer {
        self.server.get_with(path, &[("Authorization", authorization)]).await
    }

    /// A request without a body; with an empty `authorization`, without that header.
    async fn send(&self, method: &str, path: &str, authorization: &str) -> Answer {
        let headers = [("Authorization", authorization)];
        let headers = if authorization.is_empty() { &headers[..0] } else { &headers[..] };
        self.server.send(method, path, headers, Bytes::new()).await
    }

    /// The status of a push of the test's image.
    async fn push(&self, repository: &str, authorization: &str) -> u16 {
        let headers = [("Authorization", authorization)];
        for Content { digest, bytes, .. } in self.image.blobs() {
            let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
            let answer = self.server.send("POST", &path, &headers, bytes.clone()).await;
            if answer.status != 201 {
                return answer.status;
            }
        }
        let manifest = &self.image.manifest;
        let headers = [headers[0], ("Content-Type", manifest.media_type.as_str())];
        let path = format!("/v2/{repository}/manifests/v1");
        self.server.send("PUT", &path, &headers, manifest.bytes.clone()).await.status
    }

    /// A token from the token endpoint, as an `Authorization` header.
    async fn token(&self, query: &str, login: &str) -> String {
        let answer = self.send("GET", &format!("/auth/token{query}"), login).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        bearer(&answer)
    }
}

fn write_users(path: &Path, names: &[&str]) {
    let line = |name: &&str| {
        let salt = [name.as_bytes()[0]; 16];
        format!("{name}:{}\n", bcrypt::hash_with_salt(format!("{name}-password"), 4, salt).unwrap())
    };
    std::fs::write(path, names.iter().map(line).collect::<String>()).unwrap();
}

/// The `Authorization` header of a login with the right password.
fn login(name: &str) -> String {
    basic(name, &format!("{name}-password"))
}

fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

/// The token in an answer of the token endpoint, as an `Authorization` header.
fn bearer(answer: &Answer) -> String {
    let answer: Value = answer.json();
    assert_eq!(answer["token"], answer["access_token"]);
    format!("Bearer {}", answer["token"].as_str().unwrap())
}

fn assert_error(answer: &Answer, status: u16, code: &str, what: &str) {
    assert_eq!((answer.status, answer.error_code().as_str()), (status, code), "{what}: {}", answer.text());
}
