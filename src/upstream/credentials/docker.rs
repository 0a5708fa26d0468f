//! Docker's `config.json`: logins in `auths`, and the programs that keep others (`credHelpers`, `credsStore`).
//!
//! The host decides, as in Docker; a longer key (`quay.io/org`, as podman writes) goes before it. A program for the host
//! goes before the one for all, and that before what stands in the file.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::Credentials;
use super::renewed::{Call, Reads};
use crate::config::{DOCKER_IO, canonical_name};

/// What Docker Hub is called in this file.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

pub(super) struct DockerConfig {
    /// By host, or host and the beginning of a repository's name.
    logins: HashMap<String, Arc<Credentials>>,
    helpers: HashMap<String, String>,
    store: Option<String>,
}

/// What there is for a host.
pub(super) struct Lookup {
    pub(super) helper: Option<Call>,
    pub(super) login: Option<Arc<Credentials>>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
    #[serde(default, rename = "registrytoken")]
    registry_token: String,
}

// === impl DockerConfig ===

impl DockerConfig {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let document: Document = serde_json::from_slice(bytes).map_err(|_| "is not like Docker's config.json")?;
        let mut logins = HashMap::new();
        for (key, entry) in document.auths {
            // Where a program keeps the login, Docker leaves an empty entry.
            if let Some(credentials) = entry.credentials()? {
                logins.insert(place(&key), Arc::new(credentials));
            }
        }
        let helpers: HashMap<_, _> = document.helpers.into_iter().map(|(key, helper)| (place(&key), helper)).collect();
        let store = document.store.filter(|store| !store.is_empty());
        if !helpers.values().chain(&store).all(|name| is_plain(name)) {
            return Err("names a helper that is no program's name");
        }
        Ok(Self { logins, helpers, store })
    }

    /// For a host (and port), as it stands in the URL that is asked.
    pub(super) fn look_up(&self, host: &str, repository: &str) -> Lookup {
        let host = canonical_name(host);
        let helper = self.helpers.get(host).or(self.store.as_ref()).map(|helper| Call {
            command: vec![format!("docker-credential-{helper}"), "get".to_owned()],
            input: if host == DOCKER_IO { DOCKER_HUB.to_owned() } else { host.to_owned() },
            reads: Reads::Helper,
        });
        let whole = format!("{host}/{repository}");
        let mut place = whole.as_str();
        loop {
            match (self.logins.get(place), place.rsplit_once('/')) {
                (Some(login), _) => return Lookup { helper, login: Some(login.clone()) },
                (None, Some((shorter, _))) => place = shorter,
                (None, None) => return Lookup { helper, login: None },
            }
        }
    }
}

// === impl Entry ===

impl Entry {
    fn credentials(self) -> Result<Option<Credentials>, &'static str> {
        const UNUSABLE: &str = "has a login that cannot be used";
        if !self.registry_token.is_empty() {
            return Credentials::bearer(&self.registry_token).map(Some).ok_or(UNUSABLE);
        }
        if !self.identity_token.is_empty() {
            return Credentials::identity(&self.identity_token).map(Some).ok_or(UNUSABLE);
        }
        let (username, password) = if self.auth.is_empty() {
            (self.username, self.password)
        } else {
            let decoded = BASE64_STANDARD.decode(self.auth.trim()).map_err(|_| UNUSABLE)?;
            let decoded = String::from_utf8(decoded).map_err(|_| UNUSABLE)?;
            let (username, password) = decoded.split_once(':').ok_or(UNUSABLE)?;
            (username.to_owned(), password.trim_end_matches('\0').to_owned())
        };
        if username.is_empty() || password.is_empty() {
            return Ok(None);
        }
        Credentials::new(&username, &password).map(Some).ok_or(UNUSABLE)
    }
}

/// A key without what Docker has written around hosts over the years: a scheme, `/v1/`, `/v2/`.
fn place(key: &str) -> String {
    let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    match key.split_once('/') {
        Some((host, path)) => format!("{}/{path}", canonical_name(host)),
        None => canonical_name(key).to_owned(),
    }
}

/// Not a path: nobody who writes this file chooses a folder to run programs from.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> DockerConfig {
        DockerConfig::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_login_is_found_by_its_host_however_the_key_is_written() {
        // "ann:x"
        let keys = [
            ("https://index.docker.io/v1/", "registry-1.docker.io"),
            ("docker.io", "index.docker.io"),
            ("https://r.example/v2/", "r.example"),
            ("r.example:5000", "r.example:5000"),
            ("r.example/org", "r.example"),
            ("r.example/org/app", "r.example"),
        ];
        for (key, host) in keys {
            let config = parse(&format!(r#"{{"auths":{{"{key}":{{"auth":"YW5uOng="}}}},"HttpHeaders":{{}}}}"#));
            let found = config.look_up(host, "org/app").login.unwrap();
            assert_eq!((found.username.as_str(), found.password.expose()), ("ann", "x"), "{key}");
            assert!(config.look_up("other.example", "org/app").login.is_none());
            assert_eq!(config.look_up(host, "organ/app").login.is_none(), key.contains("org"), "{key}");
        }
    }

    #[test]
    fn the_longer_key_goes_first() {
        let config = parse(
            r#"{"auths":{"r.example":{"username":"a","password":"1"},"r.example/org":{"username":"b","password":"2"}}}"#,
        );
        for (repository, username) in [("org/app", "b"), ("org", "b"), ("other/app", "a")] {
            assert_eq!(config.look_up("r.example", repository).login.unwrap().username, username);
        }
    }

    #[test]
    fn a_program_for_the_host_goes_before_the_one_for_all() {
        let config = parse(r#"{"auths":{"r.example":{}},"credHelpers":{"gcr.io":"gcloud"},"credsStore":"pass"}"#);
        for (host, program, input) in [
            ("gcr.io", "docker-credential-gcloud", "gcr.io"),
            ("r.example", "docker-credential-pass", "r.example"),
            ("registry-1.docker.io", "docker-credential-pass", DOCKER_HUB),
        ] {
            let call = config.look_up(host, "app").helper.unwrap();
            assert_eq!((call.command, call.input.as_str()), (vec![program.to_owned(), "get".to_owned()], input));
            assert!(config.look_up(host, "app").login.is_none());
        }
    }

    #[test]
    fn tokens_are_told_from_passwords() {
        let config = parse(
            r#"{"auths":{"acr.example":{"auth":"MDA6","identitytoken":"refresh"},"t.example":{"registrytoken":"bearer"}}}"#,
        );
        let identity = config.look_up("acr.example", "app").login.unwrap();
        assert!(identity.is_identity_token() && identity.password.expose() == "refresh");
        let bearer = config.look_up("t.example", "app").login.unwrap();
        assert!(bearer.is_bearer && bearer.authorization == "Bearer bearer");
    }

    #[test]
    fn what_is_wrong_is_said_without_what_stands_there() {
        for text in [
            "hunter2",
            r#"{"auths":"hunter2"}"#,
            r#"{"auths":{"r.example":{"auth":"hunter2 is no base64"}}}"#,
            r#"{"auths":{"r.example":{"auth":"aHVudGVyMg=="}}}"#,
            r#"{"credsStore":"../hunter2"}"#,
            r#"{"credHelpers":{"r.example":"/bin/hunter2"}}"#,
        ] {
            let error = DockerConfig::parse(text.as_bytes()).err().unwrap();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
