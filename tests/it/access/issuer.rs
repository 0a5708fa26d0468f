//! An OIDC issuer for tests: its discovery document and keys over HTTP, tokens that it signs, and ways to go wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::support::Authority;

const RSA: &[u8] = include_bytes!("../../../src/access/oidc/testdata/rsa-test-key.pem");
pub const DISCOVERY: &str = "/.well-known/openid-configuration";

/// How the issuer answers.
#[derive(Clone, Debug)]
pub enum Mood {
    Well,
    /// It closes connections without an answer.
    Down,
    Slow(Duration),
    /// Its documents have a megabyte.
    Huge,
    /// It redirects to the same path at this base.
    Redirects(String),
    /// Its discovery document is of this issuer, or names these keys.
    Says {
        issuer: Option<String>,
        keys: Option<String>,
    },
    /// It wants `Authorization: Bearer` with this.
    Wants(String),
    Status(u16),
}

/// A key that signs tokens.
pub enum Key {
    Rsa(Box<RsaKeyPair>),
    Ec(Box<EcdsaKeyPair>),
}

pub struct Issuer {
    pub url: String,
    state: Arc<State>,
    serving: JoinHandle<()>,
}

struct State {
    mood: Mutex<Mood>,
    /// The public keys.
    keys: Mutex<Value>,
    fetches: AtomicUsize,
    /// Paths and `Authorization` fields of all requests.
    requests: Mutex<Vec<(String, Option<String>)>>,
}

impl Key {
    pub fn rsa() -> Self {
        let key = PrivatePkcs8KeyDer::from_pem_slice(RSA).unwrap();
        Self::Rsa(Box::new(RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).unwrap()))
    }

    pub fn ec() -> Self {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self::Ec(Box::new(EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random).unwrap()))
    }

    pub fn jwk(&self, id: &str) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::Rsa(key) => {
                let PublicKeyComponents::<Vec<u8>> { n, e } = key.public().into();
                json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": id, "n": text(&n), "e": text(&e) })
            }
            Self::Ec(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({ "kty": "EC", "crv": "P-256", "use": "sig", "kid": id, "x": text(x), "y": text(y) })
            }
        }
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::Ec(_) => "ES256",
        }
    }

    /// A token with this id of a key.
    pub fn sign(&self, id: &str, claims: &Value) -> String {
        self.sign_with(&json!({ "alg": self.algorithm(), "kid": id, "typ": "JWT" }), claims)
    }

    pub fn sign_with(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    pub fn sign_text(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let random = SystemRandom::new();
        let signature = match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature).unwrap();
                signature
            }
            Self::Ec(key) => key.sign(&random, signed.as_bytes()).unwrap().as_ref().to_vec(),
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

impl Issuer {
    /// Has these keys.
    pub async fn start(keys: &[Value]) -> Self {
        Self::start_with(keys, None).await
    }

    /// The same with TLS, and a certificate of this authority.
    pub async fn start_tls(keys: &[Value], authority: &Authority) -> Self {
        let signed = authority.sign("issuer");
        let chain = CertificateDer::pem_slice_iter(signed.cert.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(chain, key).unwrap()));
        Self::start_with(keys, Some(acceptor)).await
    }

    async fn start_with(keys: &[Value], tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            mood: Mutex::new(Mood::Well),
            keys: Mutex::new(json!({ "keys": keys })),
            fetches: AtomicUsize::new(0),
            requests: Mutex::default(),
        });
        let (base, serving) = (url.clone(), state.clone());
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (base, state, tls) = (base.clone(), serving.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => answer(stream, base, state).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                answer(stream, base, state).await;
                            }
                        }
                    }
                });
            }
        });
        Self { url, state, serving }
    }

    pub fn becomes(&self, mood: Mood) {
        *self.state.mood.lock() = mood;
    }

    pub fn has_keys(&self, keys: &[Value]) {
        *self.state.keys.lock() = json!({ "keys": keys });
    }

    /// How often the discovery document was asked for.
    pub fn fetches(&self) -> usize {
        self.state.fetches.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> Vec<(String, Option<String>)> {
        self.state.requests.lock().clone()
    }

    /// Claims of a token for `cache.example` that is valid for five minutes, with these in addition or instead.
    pub fn claims(&self, others: Value) -> Value {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let mut claims = json!({
            "iss": self.url, "aud": "cache.example", "sub": "somebody", "iat": now, "nbf": now - 5, "exp": now + 300,
            "jti": "3e7a2f0c",
        });
        for (claim, value) in others.as_object().unwrap() {
            claims[claim] = value.clone();
        }
        claims
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, base: String, state: Arc<State>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let field = |line: &str| {
        Some(line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("authorization"))?.1.to_owned())
    };
    let authorization = head.lines().find_map(field);
    state.requests.lock().push((path.clone(), authorization.clone()));
    if path.ends_with(DISCOVERY) {
        state.fetches.fetch_add(1, Ordering::SeqCst);
    }
    let mood = state.mood.lock().clone();
    let (mut issuer, mut keys) = (base.clone(), format!("{base}/keys"));
    let mut status = "200 OK".to_owned();
    let mut field = String::new();
    match mood {
        Mood::Well => {}
        Mood::Down => return,
        Mood::Slow(time) => tokio::time::sleep(time).await,
        Mood::Huge => issuer = "x".repeat(1 << 20),
        Mood::Redirects(to) => {
            status = "302 Found".to_owned();
            field = format!("Location: {to}{path}\r\n");
        }
        Mood::Says { issuer: other_issuer, keys: other_keys } => {
            issuer = other_issuer.unwrap_or(issuer);
            keys = other_keys.unwrap_or(keys);
        }
        Mood::Wants(token) if authorization != Some(format!("Bearer {token}")) => {
            status = "401 Unauthorized".to_owned()
        }
        Mood::Wants(_) => {}
        Mood::Status(code) => status = format!("{code} Status"),
    }
    let body = match path.as_str() {
        "/keys" => state.keys.lock().to_string(),
        _ => json!({ "issuer": issuer, "jwks_uri": keys, "response_types_supported": ["id_token"] }).to_string(),
    };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{field}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}
