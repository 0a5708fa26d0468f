//! Parsing the headers of a request that the fast path can answer (RFC 9112, section 3).

use std::mem::MaybeUninit;
use std::ops::Range;

use axum::body::Body;
use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};

use super::super::hits::ReceivedRequest;
use super::super::host;

/// Bytes of headers that are parsed here. hyper accepts more.
pub(super) const MAX_HEADERS_BYTES: usize = 16 << 10;
/// Header lines that are parsed here.
const MAX_FIELDS: usize = 64;

/// The request is of another kind, or malformed: hyper decides.
#[derive(Debug)]
pub(super) struct NotPlain;

/// A GET or HEAD without a body.
pub(super) struct PlainRequest {
    pub(super) request: Request<Body>,
    /// The client closes the connection after it.
    pub(super) is_last: bool,
}

/// A request that was taken out of what was read.
#[expect(clippy::large_enum_variant, reason = "there is one for each connection, and a box would cost each request")]
pub(super) enum Taken<T> {
    /// A response to it, of type `T`, was made from the headers as they were read.
    AtOnce(T),
    Request(PlainRequest),
}

impl PlainRequest {
    /// Takes the next request out of what was read; `None` if it is incomplete. A request of another kind stays as it
    /// was read. `at_once` may answer the request before it is assembled, which is a large part of the cost of a hit.
    pub(super) fn take<T>(
        read: &mut BytesMut,
        at_once: impl FnOnce(&ReceivedRequest<'_>) -> Option<T>,
    ) -> Result<Option<Taken<T>>, NotPlain> {
        // The parser ignores empty lines before a request, as RFC 9112, section 2.2, demands.
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut parsed = httparse::Request::new(&mut []);
        let length = match parsed.parse_with_uninit_headers(read, &mut fields) {
            Ok(httparse::Status::Complete(length)) if length <= MAX_HEADERS_BYTES => length,
            Ok(httparse::Status::Partial) if read.len() < MAX_HEADERS_BYTES => return Ok(None),
            _ => return Err(NotPlain),
        };
        let method = match parsed.method {
            Some("GET") => Method::GET,
            Some("HEAD") => Method::HEAD,
            _ => return Err(NotPlain),
        };
        let (Some(target), Some(1)) = (parsed.path.filter(|target| target.starts_with('/')), parsed.version) else {
            return Err(NotPlain);
        };
        if let Some(answered) =
            at_once(&ReceivedRequest { is_head: method == Method::HEAD, target, fields: parsed.headers })
        {
            read.advance(length);
            return Ok(Some(Taken::AtOnce(answered)));
        }
        let place = |part: &[u8]| {
            let start = part.as_ptr() as usize - read.as_ptr() as usize;
            start..start + part.len()
        };
        let target = place(target.as_bytes());
        let mut places = [(); MAX_FIELDS].map(|()| (0..0, 0..0));
        let count = parsed.headers.len();
        for (field, place_of) in parsed.headers.iter().zip(&mut places) {
            *place_of = (place(field.name.as_bytes()), place(field.value));
        }
        let head = read.split_to(length).freeze();
        match assemble(method, &head, target, &places[..count]) {
            Some(request) => Ok(Some(Taken::Request(request))),
            None => {
                // Put back together as it was.
                let mut whole = BytesMut::from(&head[..]);
                whole.unsplit(std::mem::take(read));
                *read = whole;
                Err(NotPlain)
            }
        }
    }
}

/// Assembles a request from its parsed parts; `None` if it is of another kind.
fn assemble(
    method: Method,
    head: &Bytes,
    target: Range<usize>,
    fields: &[(Range<usize>, Range<usize>)],
) -> Option<PlainRequest> {
    let mut headers = HeaderMap::with_capacity(fields.len());
    let (mut is_last, mut hosts) = (false, 0);
    for (name, value) in fields {
        let name = HeaderName::from_bytes(&head[name.clone()]).ok()?;
        let value = HeaderValue::from_maybe_shared(head.slice(value.clone())).ok()?;
        match name {
            CONTENT_LENGTH | TRANSFER_ENCODING | UPGRADE | EXPECT => return None,
            HOST if host::is_valid(value.as_bytes()) => hosts += 1,
            HOST => return None,
            CONNECTION if value.as_bytes().eq_ignore_ascii_case(b"close") => is_last = true,
            CONNECTION if !value.as_bytes().eq_ignore_ascii_case(b"keep-alive") => return None,
            _ => {}
        }
        headers.append(name, value);
    }
    if hosts != 1 {
        return None;
    }
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from_maybe_shared(head.slice(target)).ok()?;
    *request.headers_mut() = headers;
    Some(PlainRequest { request, is_last })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(text: &str) -> (Result<Option<PlainRequest>, NotPlain>, BytesMut) {
        let mut read = BytesMut::from(text.as_bytes());
        let head = take(&mut read);
        (head, read)
    }

    fn take(read: &mut BytesMut) -> Result<Option<PlainRequest>, NotPlain> {
        let never = |_: &ReceivedRequest<'_>| None::<std::convert::Infallible>;
        Ok(PlainRequest::take(read, never)?.map(|Taken::Request(request)| request))
    }

    #[test]
    fn a_request_answered_at_once_is_taken_out() {
        let mut read = BytesMut::from("\r\nHEAD /v2/?a HTTP/1.1\r\nHost: h\r\n\r\nGET / HTT");
        let taken = PlainRequest::take(&mut read, |request| {
            let names: Vec<&str> = request.fields.iter().map(|field| field.name).collect();
            Some((request.is_head, request.target.to_owned(), names.concat()))
        });
        let Ok(Some(Taken::AtOnce(seen))) = taken else { panic!("it was answered") };
        assert_eq!(seen, (true, "/v2/?a".to_owned(), "Host".to_owned()));
        assert_eq!(read, "GET / HTT");
    }

    #[test]
    fn pipelined_reads_are_taken_in_order() {
        let two = "GET /v2/a/blobs/x?ns=b HTTP/1.1\r\nHost: h\r\nRANGE:  bytes=0-1 \r\n\r\nHEAD / HTTP/1.1\r\nHost: h\r\nConnection: Close\r\n\r\n";
        let mut read = BytesMut::from(two);
        let first = take(&mut read).unwrap().unwrap();
        assert_eq!((first.request.method(), first.is_last), (&Method::GET, false));
        assert_eq!(first.request.uri(), "/v2/a/blobs/x?ns=b");
        assert_eq!(first.request.headers()["range"], "bytes=0-1");
        assert_eq!(first.request.headers()["host"], "h");
        let second = take(&mut read).unwrap().unwrap();
        assert_eq!((second.request.method(), second.is_last), (&Method::HEAD, true));
        assert!(matches!(take(&mut read), Ok(None)) && read.is_empty());
    }

    #[test]
    fn incomplete_headers_wait_for_the_rest() {
        let whole = "\r\nGET /v2/ HTTP/1.1\r\nHost: h\r\n\r\n";
        for length in 0..whole.len() {
            let (head, read) = taken(&whole[..length]);
            assert!(matches!(head, Ok(None)) && read == whole[..length], "{length}");
        }
        assert!(matches!(taken(whole).0, Ok(Some(_))));
    }

    #[test]
    fn other_requests_are_left_unread() {
        let long = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(MAX_HEADERS_BYTES));
        let endless = format!("GET / HTTP/1.1\r\nHost: h\r\nx: {}", "a".repeat(MAX_HEADERS_BYTES));
        let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "x: y\r\n".repeat(MAX_FIELDS + 1));
        for text in [
            "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\nrest",
            "GET /v2/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, close\r\n\r\n",
            "GET /v2/ HTTP/1.0\r\nHost: h\r\n\r\n",
            "GET http://host/v2/ HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nna me: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nx: a\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "\u{16}\u{3}\u{1}",
            &long,
            &endless,
            &many,
        ] {
            let (head, read) = taken(text);
            assert!(head.is_err(), "{text:?}");
            assert_eq!(read, text.as_bytes());
        }
    }
}
