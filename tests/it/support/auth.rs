//! Authentication of the scripted upstream: none, name and password, or bearer tokens.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::{Duration, Instant};

use super::registry::{error, header, json as json_answer, split};
use super::wire::{Answer, Seen};

/// What the upstream requires.
#[derive(Clone, Default)]
pub(super) enum Auth {
    #[default]
    Open,
    Basic(String),
    Bearer {
        realm: String,
        issuer: Arc<TokenIssuer>,
    },
}

/// The behaviour of an upstream with tokens.
#[derive(Clone, Debug)]
pub struct Bearer {
    service: String,
    fields: &'static [&'static str],
    expires_in: Option<u64>,
    takes_post: bool,
    credentials: Option<String>,
    names_scope: bool,
}

impl Bearer {
    /// Anonymous tokens by GET, in `token`, for 300 s.
    pub fn new() -> Self {
        Self {
            service: "scripted".to_owned(),
            fields: &["token"],
            expires_in: Some(300),
            takes_post: false,
            credentials: None,
            names_scope: true,
        }
    }

    pub fn only_access_token(mut self) -> Self {
        self.fields = &["access_token"];
        self
    }

    pub fn both_fields(mut self) -> Self {
        self.fields = &["token", "access_token"];
        self
    }

    /// Tokens expire after this time. With `None` they never do, and the response omits `expires_in`.
    pub fn expires_in(mut self, seconds: Option<u64>) -> Self {
        self.expires_in = seconds;
        self
    }

    /// Gives tokens for POST, too. Otherwise POST gets 404, as with most registries.
    pub fn takes_post(mut self) -> Self {
        self.takes_post = true;
        self
    }

    /// Gives tokens only for this name and password.
    pub fn credentials(mut self, user: &str, password: &str) -> Self {
        self.credentials = Some(format!("{user}:{password}"));
        self
    }

    /// Sends a challenge without `scope`, like Nexus.
    pub fn without_scope(mut self) -> Self {
        self.names_scope = false;
        self
    }
}

/// Issues and verifies tokens. It may belong to another listener than the registry.
pub(super) struct TokenIssuer {
    behaviour: Bearer,
    given: Mutex<Vec<Grant>>,
    count: Mutex<usize>,
}

struct Grant {
    token: String,
    scopes: Vec<String>,
    until: Option<Instant>,
}

impl TokenIssuer {
    pub(super) fn new(behaviour: Bearer) -> Self {
        Self { behaviour, given: Mutex::default(), count: Mutex::default() }
    }

    /// How many tokens were issued so far, including revoked ones.
    pub(super) fn count(&self) -> usize {
        *self.count.lock()
    }

    pub(super) fn revoke_all(&self) {
        self.given.lock().clear();
    }

    /// The response of the token endpoint.
    pub(super) fn answer(&self, seen: &Seen) -> Answer {
        let form = match seen.method.as_str() {
            "GET" => seen.query.as_bytes(),
            "POST" if self.behaviour.takes_post => seen.body.as_ref(),
            _ => return error(404, "UNSUPPORTED"),
        };
        let fields: Vec<(String, String)> = url::form_urlencoded::parse(form).into_owned().collect();
        if !self.knows(seen, &fields) {
            return error(401, "UNAUTHORIZED");
        }
        let scopes = fields.iter().filter(|(name, _)| name == "scope");
        let scopes = scopes.flat_map(|(_, value)| value.split(' ').map(str::to_owned));
        self.give(scopes.collect())
    }

    fn knows(&self, seen: &Seen, fields: &[(String, String)]) -> bool {
        let Some(wanted) = &self.behaviour.credentials else {
            return true;
        };
        if seen.method == "GET" {
            return seen.header("authorization") == basic(wanted);
        }
        let fields: HashMap<_, _> = fields.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let field = |name| fields.get(name).copied().unwrap_or("");
        field("grant_type") == "password" && format!("{}:{}", field("username"), field("password")) == *wanted
    }

    fn give(&self, scopes: Vec<String>) -> Answer {
        let mut count = self.count.lock();
        *count += 1;
        let token = format!("token-{count}-{:016x}", fastrand::u64(..));
        let lifetime = self.behaviour.expires_in.map(Duration::from_secs);
        let until = lifetime.map(|lifetime| Instant::now() + lifetime);
        let mut body = json!({});
        for field in self.behaviour.fields {
            body[*field] = json!(token);
        }
        if let Some(seconds) = self.behaviour.expires_in {
            body["expires_in"] = json!(seconds);
        }
        self.given.lock().push(Grant { token, scopes, until });
        json_answer(&body)
    }

    /// `None` if the request is allowed, else what is wrong with its token.
    fn refuse(&self, seen: &Seen) -> Option<&'static str> {
        let Some(token) = seen.header("authorization").strip_prefix("Bearer ") else {
            return Some("");
        };
        let given = self.given.lock();
        let live = |grant: &&Grant| grant.until.is_none_or(|until| Instant::now() < until);
        let grant = given.iter().filter(live).find(|grant| grant.token == token);
        let Some(grant) = grant else {
            return Some(",error=\"invalid_token\"");
        };
        let covered = wanted_scope(&seen.path).is_none_or(|scope| grant.scopes.contains(&scope));
        (!covered).then_some(",error=\"insufficient_scope\"")
    }
}

impl Auth {
    pub(super) fn basic(user: &str, password: &str) -> Self {
        Self::Basic(basic(&format!("{user}:{password}")))
    }

    /// `None` if the request is allowed, else its 401.
    pub(super) fn challenge(&self, seen: &Seen) -> Option<Answer> {
        let challenge = match self {
            Self::Open => return None,
            Self::Basic(wanted) if seen.header("authorization") == wanted => return None,
            Self::Basic(_) => "Basic realm=\"scripted\"".to_owned(),
            Self::Bearer { realm, issuer } => {
                let reason = issuer.refuse(seen)?;
                let scope = wanted_scope(&seen.path).filter(|_| issuer.behaviour.names_scope);
                let scope = scope.map_or(String::new(), |scope| format!(",scope=\"{scope}\""));
                let service = &issuer.behaviour.service;
                format!("Bearer realm=\"{realm}\",service=\"{service}\"{scope}{reason}")
            }
        };
        let mut answer = error(401, "UNAUTHORIZED");
        answer.headers.push(header("WWW-Authenticate", &challenge));
        Some(answer)
    }
}

fn wanted_scope(path: &str) -> Option<String> {
    let (name, _, _) = split(path)?;
    Some(format!("repository:{name}:pull"))
}

fn basic(user_and_password: &str) -> String {
    format!("Basic {}", BASE64.encode(user_and_password))
}
