//! Parser for Docker's `config.json`: logins in `auths`, and credential helpers (`credHelpers`, `credsStore`).
//!
//! Logins are looked up by host, as in Docker. A longer key with a path (`quay.io/org`, as podman writes) takes
//! precedence. A helper for the host precedes the one for all hosts, and helpers precede logins in the file.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::Credentials;
use super::renewed::{OutputFormat, ProgramCall};
use crate::config::{DOCKER_IO, canonical_name};

/// The key of Docker Hub in this file.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// A parsed `config.json`.
pub(super) struct DockerConfig {
    /// By host, or by host and the first components of a repository's name.
    logins: HashMap<String, Arc<Credentials>>,
    helpers: HashMap<String, String>,
    store: Option<String>,
}

/// The credentials for a host: a helper to run, and a login to use if the helper has none.
pub(super) struct HostCredentials {
    pub(super) helper: Option<ProgramCall>,
    pub(super) login: Option<Arc<Credentials>>,
    /// The key of `login`.
    key: Option<String>,
}

#[derive(Deserialize)]
struct DockerConfigDocument {
    #[serde(default)]
    auths: HashMap<String, AuthEntry>,
    #[serde(default, rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize)]
struct AuthEntry {
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
    /// Parses the file. The error is a predicate that follows its name, and contains no text of the file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let document: DockerConfigDocument =
            serde_json::from_slice(bytes).map_err(|_| "is not a Docker config.json")?;
        let mut logins = HashMap::new();
        for (key, entry) in document.auths {
            // Docker leaves an empty entry for a login that a helper has.
            if let Some(credentials) = entry.credentials()? {
                logins.insert(normalized_key(&key), Arc::new(credentials));
            }
        }
        let helpers: HashMap<_, _> =
            document.helpers.into_iter().map(|(key, helper)| (normalized_key(&key), helper)).collect();
        let store = document.store.filter(|store| !store.is_empty());
        if !helpers.values().chain(&store).all(|name| is_program_name(name)) {
            return Err("contains a credential helper whose name is not a program name");
        }
        Ok(Self { logins, helpers, store })
    }

    /// The credentials for a host (and port), as written in the URL of the request.
    pub(super) fn look_up(&self, host: &str, repository: &str) -> HostCredentials {
        let host = canonical_name(host);
        let helper = self.helpers.get(host).or(self.store.as_ref()).map(|helper| ProgramCall {
            command: vec![format!("docker-credential-{helper}"), "get".to_owned()],
            input: if host == DOCKER_IO { DOCKER_HUB.to_owned() } else { host.to_owned() },
            format: OutputFormat::Helper,
        });
        let whole = format!("{host}/{repository}");
        let mut place = whole.as_str();
        loop {
            match (self.logins.get(place), place.rsplit_once('/')) {
                (Some(login), _) => {
                    return HostCredentials { helper, login: Some(login.clone()), key: Some(place.to_owned()) };
                }
                (None, Some((shorter, _))) => place = shorter,
                (None, None) => return HostCredentials { helper, login: None, key: None },
            }
        }
    }
}

// === impl HostCredentials ===

impl HostCredentials {
    /// What distinguishes these credentials from others of the same file. A changed password makes it another identity.
    pub(super) fn identity(self) -> impl Hash {
        (self.helper, self.key, self.login.map(|login| login.account))
    }
}

// === impl AuthEntry ===

impl AuthEntry {
    fn credentials(self) -> Result<Option<Credentials>, &'static str> {
        const UNUSABLE: &str = "contains a login that cannot be used";
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

/// The host and path of a key, without the additions of various versions of Docker: a scheme, `/v1/`, `/v2/`.
fn normalized_key(key: &str) -> String {
    let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    match key.split_once('/') {
        Some((host, path)) => format!("{}/{path}", canonical_name(host)),
        None => canonical_name(key).to_owned(),
    }
}

/// Whether a helper's name is not a path, so that the file cannot choose a folder to run programs from.
fn is_program_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> DockerConfig {
        DockerConfig::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn logins_are_found_for_every_form_of_key() {
        // The login is "ann:x".
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
    fn longest_matching_key_wins() {
        let config = parse(
            r#"{"auths":{"r.example":{"username":"a","password":"1"},"r.example/org":{"username":"b","password":"2"}}}"#,
        );
        for (repository, username) in [("org/app", "b"), ("org", "b"), ("other/app", "a")] {
            assert_eq!(config.look_up("r.example", repository).login.unwrap().username, username);
        }
    }

    #[test]
    fn credential_helper_of_the_host_precedes_the_store() {
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
    fn tokens_are_distinguished_from_passwords() {
        let config = parse(
            r#"{"auths":{"acr.example":{"auth":"MDA6","identitytoken":"refresh"},"t.example":{"registrytoken":"bearer"}}}"#,
        );
        let identity = config.look_up("acr.example", "app").login.unwrap();
        assert!(identity.is_identity_token() && identity.password.expose() == "refresh");
        let bearer = config.look_up("t.example", "app").login.unwrap();
        assert!(bearer.is_bearer && bearer.authorization == "Bearer bearer");
    }

    #[test]
    fn errors_never_repeat_file_contents() {
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
