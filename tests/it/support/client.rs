//! A well-behaved HTTP client. It neither follows redirects nor decodes bodies.

use std::sync::Once;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::Value;

/// Far above what any test needs, so that a hanging server fails the test instead of blocking the run.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
}

/// A complete response.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Client {
    /// One per test: its connections belong to the test's runtime.
    pub fn new() -> Self {
        Self::built(|builder| builder)
    }

    /// A client that trusts only this authority, with `own` (certificate and key) as its own certificate.
    pub fn trusting(ca: &str, own: Option<&str>) -> Self {
        let ca = reqwest::Certificate::from_pem(ca.as_bytes()).expect("a certificate");
        let own = own.map(|pem| reqwest::Identity::from_pem(pem.as_bytes()).expect("a certificate and its key"));
        Self::built(|builder| {
            let builder = builder.tls_certs_only([ca]);
            own.into_iter().fold(builder, reqwest::ClientBuilder::identity)
        })
    }

    fn built(settings: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> Self {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // An error means that a provider is installed already.
            drop(rustls::crypto::ring::default_provider().install_default());
        });
        let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy();
        let http = settings(builder.timeout(REQUEST_TIMEOUT)).build();
        Self { http: http.expect("a plain client can be built") }
    }

    pub async fn get(&self, url: &str) -> Answer {
        self.send("GET", url, &[], Bytes::new()).await
    }

    pub async fn get_with(&self, url: &str, headers: &[(&str, &str)]) -> Answer {
        self.send("GET", url, headers, Bytes::new()).await
    }

    pub async fn head(&self, url: &str) -> Answer {
        self.send("HEAD", url, &[], Bytes::new()).await
    }

    /// Any request whose response must be complete.
    pub async fn send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        let answer = self.try_send(method, url, headers, body).await;
        answer.unwrap_or_else(|error| panic!("{method} {url} got no complete response: {error:?}"))
    }

    /// Any request. The error says why the response is incomplete.
    pub async fn try_send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> reqwest::Result<Answer> {
        let response = self.start(method, url, headers, body).await?;
        Ok(Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.bytes().await?,
        })
    }

    /// The headers of the response: `chunk()` reads the body, dropping it closes the connection.
    pub async fn start(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> reqwest::Result<reqwest::Response> {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = self.http.request(method, url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.into();
        if body.as_bytes() != Some(b"") {
            request = request.body(body);
        }
        request.send().await
    }
}

/// A body of unknown length, sent in chunks of `frame` bytes, as docker sends a layer.
pub fn chunked(bytes: &Bytes, frame: usize) -> reqwest::Body {
    let frames: Vec<Bytes> = bytes.chunks(frame).map(Bytes::copy_from_slice).collect();
    let frames = frames.into_iter().map(Ok::<_, std::io::Error>);
    reqwest::Body::wrap_stream(futures_util::stream::iter(frames))
}

impl Answer {
    /// The first header of that name, or an empty string.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or("(not text)")
    }

    pub fn json(&self) -> Value {
        let parsed = serde_json::from_slice(&self.body);
        parsed.unwrap_or_else(|error| panic!("not JSON, {error}: {}", self.text()))
    }

    /// `errors[0].code` of the spec's JSON body.
    pub fn error_code(&self) -> String {
        let code = &self.json()["errors"][0]["code"];
        code.as_str().unwrap_or("").to_owned()
    }
}
