//! The id and the span of a request, for logs and traces.
//!
//! A hit needs neither, so both are created when they are first used.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tracing::Span;
use uuid::Uuid;

/// The header with the id, in requests and in responses.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Maximum length of a client's id, in bytes.
const MAX_ID_BYTES: usize = 128;

/// The start, the id and the span of one request. Small, because every request has one.
#[derive(Debug)]
pub struct RequestTrace {
    handler: &'static str,
    method: Method,
    started: Instant,
    /// The id that the client sent.
    sent: Option<Box<HeaderValue>>,
    /// The generated id, if the client sent none.
    generated: OnceLock<Box<str>>,
    /// The address of the client, where somebody has asked for it.
    client: OnceLock<IpAddr>,
    span: OnceLock<Box<Span>>,
}

impl RequestTrace {
    /// `handler` is the value of the metric label. The client's id is used if it is acceptable.
    pub fn new(handler: &'static str, method: Method, headers: &HeaderMap) -> Self {
        // A request has few headers, so comparing each of them costs less than hashing the name.
        let sent = headers.iter().find(|(name, _)| **name == REQUEST_ID).map(|(_, id)| id);
        let sent = sent.filter(|id| Self::is_acceptable(id.as_bytes())).map(|id| Box::new(id.clone()));
        let (generated, client, span) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        Self { handler, method, started: Instant::now(), sent, generated, client, span }
    }

    /// Whether an id of a client is used: it is 1 to 128 visible ASCII characters.
    pub fn is_acceptable(id: &[u8]) -> bool {
        (1..=MAX_ID_BYTES).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
    }

    /// Returns the time at which the headers of the request had arrived.
    pub fn started(&self) -> Instant {
        self.started
    }

    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Returns the method, the start and the span, for the code that runs until the end of the response.
    pub fn into_parts(self) -> (Method, Instant, Option<Box<Span>>) {
        (self.method, self.started, self.span.into_inner())
    }

    /// Returns the id of the request.
    pub fn id(&self) -> &str {
        match self.sent.as_ref().and_then(|sent| sent.to_str().ok()) {
            Some(sent) => sent,
            None => self.generated.get_or_init(|| Uuid::new_v4().simple().to_string().into()),
        }
    }

    /// Sets the address of the client, for log lines and the span.
    pub fn set_client(&self, address: Option<IpAddr>) {
        if let Some(address) = address {
            // It stays the same.
            let _ = self.client.set(address);
        }
    }

    /// Returns the address of the client, if it was set.
    pub fn client(&self) -> Option<IpAddr> {
        self.client.get().copied()
    }

    /// Returns the id that the client sent. Every response returns it.
    pub fn sent_id(&self) -> Option<&HeaderValue> {
        self.sent.as_deref()
    }

    /// Returns the span of the request. The first call opens it.
    pub fn span(&self) -> Span {
        let client = self.client().map(tracing::field::display);
        let open =
            || tracing::info_span!("request", id = self.id(), client, handler = self.handler, method = %self.method);
        Span::clone(self.span.get_or_init(|| Box::new(open())))
    }

    /// Whether a subscriber wants a span of every request, including hits.
    pub fn is_wanted_for_hits() -> bool {
        tracing::enabled!(tracing::Level::DEBUG)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(id: Option<&str>) -> RequestTrace {
        let mut headers = HeaderMap::new();
        if let Some(id) = id {
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(id.as_bytes()).unwrap());
        }
        RequestTrace::new("blob", Method::GET, &headers)
    }

    #[test]
    fn an_acceptable_id_of_the_client_is_kept() {
        let trace = trace(Some("7f-client_1"));
        assert_eq!((trace.id(), trace.sent_id().unwrap().as_bytes()), ("7f-client_1", b"7f-client_1".as_slice()));
    }

    #[test]
    fn other_ids_are_replaced_by_one_of_ours() {
        let long = "x".repeat(MAX_ID_BYTES + 1);
        for id in [None, Some(""), Some("two words"), Some("ümlaut"), Some(long.as_str())] {
            let trace = trace(id);
            assert!(trace.sent_id().is_none() && trace.id().len() == 32, "{id:?}");
            assert_eq!(trace.id(), trace.id(), "it stays the same");
        }
    }
}
