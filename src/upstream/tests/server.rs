//! A test server made of a closure: it can be a registry, a storage or a token server.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::header::{AUTHORIZATION, HOST, HeaderMap};
use http::{Method, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use url::Url;

/// A received request.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: Method,
    /// Path and query.
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

/// A response to send.
pub(super) struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<Part>,
    wait: Duration,
}

#[derive(Clone)]
enum Part {
    Bytes(Bytes),
    Cut,
    Silence,
}

/// A running server and the requests that it received.
pub(super) struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

type Body = StreamBody<Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, &'static str>> + Send>>>;

// === impl Seen ===

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(super) fn authorization(&self) -> Option<&str> {
        self.header(AUTHORIZATION.as_str())
    }

    /// A URL on this server, with the host of the request.
    pub(super) fn here(&self, path: &str) -> String {
        format!("http://{}{path}", self.header(HOST.as_str()).unwrap())
    }
}

// === impl Reply ===

impl Reply {
    pub(super) fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), wait: Duration::ZERO }
    }

    /// A registry's own refusal (distribution-spec, "Error Codes").
    pub(super) fn denied(status: u16) -> Self {
        Self::new(status).body(r#"{"errors":[{"code":"DENIED"}]}"#)
    }

    pub(super) fn ok(body: impl Into<String>) -> Self {
        Self::new(200).body(body)
    }

    pub(super) fn bearer(realm: &str, rest: &str) -> Self {
        Self::new(401).header("www-authenticate", format!(r#"Bearer realm="{realm}",{rest}"#))
    }

    pub(super) fn token(token: &str) -> Self {
        Self::ok(format!(r#"{{"token":"{token}","expires_in":300}}"#))
    }

    pub(super) fn redirect(target: impl Into<String>) -> Self {
        Self::new(307).header("location", target)
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn body(mut self, body: impl Into<String>) -> Self {
        self.body.push(Part::Bytes(body.into().into()));
        self
    }

    /// Closes the connection here.
    pub(super) fn cut(mut self) -> Self {
        self.body.push(Part::Cut);
        self
    }

    /// Sends nothing more, and keeps the connection open.
    pub(super) fn silence(mut self) -> Self {
        self.body.push(Part::Silence);
        self
    }

    /// Waits before the response headers.
    pub(super) fn after(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    fn into_response(self) -> Response<Body> {
        let mut response = Response::builder().status(self.status);
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        let parts = stream::iter(self.body).then(|part| async {
            match part {
                Part::Bytes(bytes) => Ok(Frame::data(bytes)),
                Part::Cut => {
                    // The bytes before the cut must be sent first.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Err("cut")
                }
                Part::Silence => std::future::pending().await,
            }
        });
        response.body(StreamBody::new(parts.boxed() as _)).unwrap()
    }
}

// === impl Server ===

impl Server {
    pub(super) async fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let server = Self { address: listener.local_addr().unwrap(), seen: Arc::default() };
        let (seen, answer) = (server.seen.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (seen, answer) = (seen.clone(), answer.clone());
                let service = service_fn(move |request| {
                    let (seen, answer) = (seen.clone(), answer.clone());
                    async move {
                        let request = Seen::read(request).await;
                        seen.lock().push(request.clone());
                        let reply = answer(&request);
                        tokio::time::sleep(reply.wait).await;
                        Ok::<_, Infallible>(reply.into_response())
                    }
                });
                let connection = TokioIo::new(connection);
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(connection, service));
            }
        });
        server
    }

    pub(super) fn url(&self) -> Url {
        self.at("/").parse().unwrap()
    }

    pub(super) fn at(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// Path and `Authorization` of all requests, in order.
    pub(super) fn log(&self) -> Vec<(String, Option<String>)> {
        let line = |seen: Seen| (seen.target.clone(), seen.authorization().map(str::to_owned));
        self.seen().into_iter().map(line).collect()
    }

    /// Number of requests whose path begins with `path`.
    pub(super) fn count(&self, path: &str) -> usize {
        self.seen().iter().filter(|seen| seen.target.starts_with(path)).count()
    }
}

impl Seen {
    async fn read(request: http::Request<Incoming>) -> Self {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        Self {
            method: head.method,
            target: head.uri.to_string(),
            headers: head.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        }
    }
}
