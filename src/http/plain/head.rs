//! The head of a request, where it is one of those that are answered here (RFC 9112, section 3).

use std::ops::Range;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};

/// Bytes of a head that is read here. hyper takes longer ones.
pub(super) const MOST: usize = 16 << 10;
const MOST_FIELDS: usize = 64;

/// What was sent is not for us to judge.
#[derive(Debug)]
pub(super) struct Foreign;

/// A GET or HEAD without a body.
pub(super) struct Asked {
    pub(super) request: Request<Body>,
    /// The client wants no more than this one.
    pub(super) is_last: bool,
}

impl Asked {
    /// Takes the next request out of what was read; `None` if that is only the beginning of one, or nothing. What is
    /// foreign stays as it came.
    pub(super) fn take(read: &mut BytesMut) -> Result<Option<Self>, Foreign> {
        // Empty lines before a request are to be ignored (RFC 9112, 2.2), and the parser does.
        let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
        let mut parsed = httparse::Request::new(&mut fields);
        let length = match parsed.parse(read) {
            Ok(httparse::Status::Complete(length)) if length <= MOST => length,
            Ok(httparse::Status::Partial) if read.len() < MOST => return Ok(None),
            _ => return Err(Foreign),
        };
        let method = match parsed.method {
            Some("GET") => Method::GET,
            Some("HEAD") => Method::HEAD,
            _ => return Err(Foreign),
        };
        let (Some(target), Some(1)) = (parsed.path.filter(|target| target.starts_with('/')), parsed.version) else {
            return Err(Foreign);
        };
        let place = |part: &[u8]| {
            let start = part.as_ptr() as usize - read.as_ptr() as usize;
            start..start + part.len()
        };
        let target = place(target.as_bytes());
        let mut places = [(); MOST_FIELDS].map(|()| (0..0, 0..0));
        let count = parsed.headers.len();
        for (field, place_of) in parsed.headers.iter().zip(&mut places) {
            *place_of = (place(field.name.as_bytes()), place(field.value));
        }
        let head = read.split_to(length).freeze();
        match assemble(method, &head, target, &places[..count]) {
            Some(asked) => Ok(Some(asked)),
            None => {
                // Nobody else looks at it meanwhile, so this is how it was.
                let mut whole = BytesMut::from(&head[..]);
                whole.unsplit(std::mem::take(read));
                *read = whole;
                Err(Foreign)
            }
        }
    }
}

/// A request of the parts of its head, if it is one of ours.
fn assemble(
    method: Method,
    head: &Bytes,
    target: Range<usize>,
    fields: &[(Range<usize>, Range<usize>)],
) -> Option<Asked> {
    let mut headers = HeaderMap::with_capacity(fields.len());
    let mut is_last = false;
    for (name, value) in fields {
        let name = HeaderName::from_bytes(&head[name.clone()]).ok()?;
        let value = HeaderValue::from_maybe_shared(head.slice(value.clone())).ok()?;
        match name {
            CONTENT_LENGTH | TRANSFER_ENCODING | UPGRADE | EXPECT => return None,
            CONNECTION if value.as_bytes().eq_ignore_ascii_case(b"close") => is_last = true,
            CONNECTION if !value.as_bytes().eq_ignore_ascii_case(b"keep-alive") => return None,
            _ => {}
        }
        headers.append(name, value);
    }
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from_maybe_shared(head.slice(target)).ok()?;
    *request.headers_mut() = headers;
    Some(Asked { request, is_last })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(text: &str) -> (Result<Option<Asked>, Foreign>, BytesMut) {
        let mut read = BytesMut::from(text.as_bytes());
        let head = Asked::take(&mut read);
        (head, read)
    }

    #[test]
    fn reads_without_a_body_are_taken_one_after_the_other() {
        let two = "GET /v2/a/blobs/x?ns=b HTTP/1.1\r\nHost: h\r\nRANGE:  bytes=0-1 \r\n\r\nHEAD / HTTP/1.1\r\nConnection: Close\r\n\r\n";
        let mut read = BytesMut::from(two);
        let first = Asked::take(&mut read).unwrap().unwrap();
        assert_eq!((first.request.method(), first.is_last), (&Method::GET, false));
        assert_eq!(first.request.uri(), "/v2/a/blobs/x?ns=b");
        assert_eq!(first.request.headers()["range"], "bytes=0-1");
        assert_eq!(first.request.headers()["host"], "h");
        let second = Asked::take(&mut read).unwrap().unwrap();
        assert_eq!((second.request.method(), second.is_last), (&Method::HEAD, true));
        assert!(matches!(Asked::take(&mut read), Ok(None)) && read.is_empty());
    }

    #[test]
    fn the_beginning_of_a_head_is_waited_with() {
        let whole = "\r\nGET /v2/ HTTP/1.1\r\nHost: h\r\n\r\n";
        for length in 0..whole.len() {
            let (head, read) = taken(&whole[..length]);
            assert!(matches!(head, Ok(None)) && read == whole[..length], "{length}");
        }
        assert!(matches!(taken(whole).0, Ok(Some(_))));
    }

    #[test]
    fn everything_else_is_left_as_it_came() {
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(MOST));
        let endless = format!("GET / HTTP/1.1\r\nx: {}", "a".repeat(MOST));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(MOST_FIELDS + 1));
        for text in [
            "POST /v2/a/blobs/uploads/ HTTP/1.1\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nContent-Length: 0\r\n\r\nrest",
            "GET /v2/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nConnection: keep-alive, close\r\n\r\n",
            "GET /v2/ HTTP/1.0\r\n\r\n",
            "GET http://host/v2/ HTTP/1.1\r\n\r\n",
            "GET * HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nna me: x\r\n\r\n",
            "GET / HTTP/1.1\r\nx: a\r\n folded\r\n\r\n",
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
