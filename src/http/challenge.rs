//! The challenge of a 401: where a client gets a token, and what for (distribution, "Token Authentication
//! Specification").
//!
//! It is one header line with one challenge, because clients take the first one only, or fail at a second scheme. No value
//! is empty, because a client stops reading there.

use std::fmt::Write;

use http::Method;

use super::App;
use super::call::Call;
use crate::access::Unauthenticated;
use crate::config::ServerConfig;
use crate::oci::Endpoint;

/// Path of the token endpoint.
pub(super) const TOKEN_PATH: &str = "/auth/token";
/// Longest name in bytes that is repeated: an upstream and a repository.
const MAX_NAME_BYTES: usize = 512;

/// Where clients get tokens.
#[derive(Debug)]
pub struct TokenServer {
    /// Without a slash at the end. `None`: the host that a request came to.
    external_url: Option<String>,
    /// Stands for the host if a request names none.
    listen: String,
}

impl TokenServer {
    pub fn new(config: &ServerConfig) -> Self {
        Self { external_url: config.external_url.clone(), listen: config.listen.to_string() }
    }
}

/// What a token for metrics must be asked for.
const METRICS_SCOPE: &str = "registry:metrics:metrics";

/// The value of `WWW-Authenticate` in the response to a request.
pub(super) fn challenge(app: &App, call: &Call<'_>, reason: Unauthenticated) -> String {
    with_scope(app, call, scope(call.method(), &call.route.endpoint, &call.route.name), reason)
}

/// The same in the response to a request for metrics.
pub(super) fn challenge_for_metrics(app: &App, call: &Call<'_>, reason: Unauthenticated) -> String {
    with_scope(app, call, Some(METRICS_SCOPE.to_owned()), reason)
}

/// The order of parameters is that of other registries.
fn with_scope(app: &App, call: &Call<'_>, scope: Option<String>, reason: Unauthenticated) -> String {
    let server = &app.token_server;
    let mut text = String::with_capacity(256);
    let (base, service) = match &server.external_url {
        Some(url) => (url.clone(), url.split_once("://").map_or(url.as_str(), |(_, rest)| rest)),
        None => {
            let scheme = if call.caller().is_encrypted() { "https" } else { "http" };
            // Its characters have been checked, see `host`.
            let host = call.requested().host.unwrap_or(&server.listen);
            (format!("{scheme}://{host}"), host)
        }
    };
    let service = service.split('/').next().unwrap_or(service);
    // Writing to a string does not fail.
    let _ = write!(text, "Bearer realm=\"{base}{TOKEN_PATH}\",service=\"{service}\"");
    if let Some(scope) = scope {
        let _ = write!(text, ",scope=\"{scope}\"");
    }
    let error = match reason {
        Unauthenticated::Required
        | Unauthenticated::Invalid
        | Unauthenticated::TokenRefused(_)
        | Unauthenticated::MachineTokenRefused(_) => return text,
        Unauthenticated::InvalidToken => "invalid_token",
        Unauthenticated::InsufficientScope => "insufficient_scope",
    };
    let _ = write!(text, ",error=\"{error}\"");
    text
}

/// What a token for this request must be asked for. The name is the one that the client has sent, because some clients
/// compare it with their own.
fn scope(method: &Method, endpoint: &Endpoint, name: &str) -> Option<String> {
    let actions = match (endpoint, method) {
        (Endpoint::Base, _) => return None,
        (Endpoint::Catalog, _) => return Some("registry:catalog:*".to_owned()),
        (Endpoint::Manifest(_) | Endpoint::Blob(_), &Method::DELETE) => "delete",
        (Endpoint::Uploads | Endpoint::Upload(_), _) | (Endpoint::Manifest(_), &Method::PUT) => "pull,push",
        _ => "pull",
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:".contains(&byte);
    let can_be_repeated = name.len() <= MAX_NAME_BYTES && name.bytes().all(is_plain);
    can_be_repeated.then(|| format!("repository:{name}:{actions}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scope_has_the_actions_of_the_operation_and_the_name_as_sent() {
        let text = String::new;
        for (method, endpoint, expected) in [
            (Method::GET, Endpoint::Base, None),
            (Method::GET, Endpoint::Catalog, Some("registry:catalog:*")),
            (Method::HEAD, Endpoint::Manifest(text()), Some("repository:ghcr.io/a/b:pull")),
            (Method::PUT, Endpoint::Manifest(text()), Some("repository:ghcr.io/a/b:pull,push")),
            (Method::DELETE, Endpoint::Manifest(text()), Some("repository:ghcr.io/a/b:delete")),
            (Method::GET, Endpoint::Blob(text()), Some("repository:ghcr.io/a/b:pull")),
            (Method::DELETE, Endpoint::Blob(text()), Some("repository:ghcr.io/a/b:delete")),
            (Method::POST, Endpoint::Uploads, Some("repository:ghcr.io/a/b:pull,push")),
            (Method::DELETE, Endpoint::Upload(text()), Some("repository:ghcr.io/a/b:pull,push")),
            (Method::GET, Endpoint::Tags, Some("repository:ghcr.io/a/b:pull")),
            (Method::GET, Endpoint::Referrers(text()), Some("repository:ghcr.io/a/b:pull")),
        ] {
            assert_eq!(scope(&method, &endpoint, "ghcr.io/a/b").as_deref(), expected, "{method} {endpoint:?}");
        }
        for name in ["a\"b", "a b", "a\\b", "ä", &"a".repeat(513)] {
            assert_eq!(scope(&Method::GET, &Endpoint::Tags, name), None, "{name}");
        }
    }
}
