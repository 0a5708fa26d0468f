//! Writing a response: its headers, and its body with a length or in chunks (RFC 9112, sections 4, 6 and 7).

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;

use super::super::body::FilePart;
use super::files::FileSender;
use super::socket::{Socket, Transport};

/// A range up to this length is read and written together with the headers. That never blocks on the disk.
const MAX_COPIED_BYTES: u64 = 32 << 10;
/// The headers of a range up to this length are written before it. A packet takes 64 KiB, and together they would
/// need one more.
const MAX_HEADERS_FIRST_BYTES: u64 = 128 << 10;
const LINE_END: &[u8] = b"\r\n";
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// How the client knows the end of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// There is no body. The length is what a GET would return, for HEAD.
    None(Option<u64>),
    Length(u64),
    Chunks,
}

/// Why a response could not be completed. The connection cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("cannot write to the client: {0}")]
    Client(#[from] io::Error),
    #[error("the client has left")]
    Left,
    #[error("cannot read the content: {0}")]
    Content(axum::Error),
    #[error("the content does not have its announced length")]
    Length,
}

/// Sends a response. With `is_last`, it announces the end of the connection.
pub(super) async fn send<S: Transport>(
    socket: &mut Socket<S>,
    scratch: &mut BytesMut,
    mut response: Response,
    is_head: bool,
    is_last: bool,
) -> Result<(), SendError> {
    let part = response.extensions_mut().remove::<FilePart>();
    let (parts, mut body) = response.into_parts();
    let framing = framing(parts.status, &parts.headers, &body, is_head);
    scratch.clear();
    write_headers(scratch, parts.status, &parts.headers, framing, is_last);
    match (framing, part) {
        (Framing::None(_) | Framing::Length(0), _) => Ok(socket.write([scratch, &[], &[]]).await?),
        // `body` lives to the end of the transfer: its guard counts the request as in progress.
        (Framing::Length(length), Some(FilePart { source, counter })) if S::IS_PLAIN && length > MAX_COPIED_BYTES => {
            if length <= MAX_HEADERS_FIRST_BYTES {
                socket.write([scratch, &[], &[]]).await?;
                scratch.clear();
            }
            FileSender::new(socket, scratch, counter).send(source, length).await
        }
        (Framing::Length(length), _) => send_whole(socket, scratch, &mut body, length).await,
        (Framing::Chunks, _) => send_chunks(socket, scratch, &mut body).await,
    }
}

fn framing(status: StatusCode, headers: &HeaderMap, body: &Body, is_head: bool) -> Framing {
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Framing::None(None);
    }
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let length = announced.or_else(|| body.size_hint().exact());
    match length {
        // An empty body to a HEAD may stand for a body of unknown length.
        _ if is_head => Framing::None(length.filter(|&length| length > 0)),
        Some(length) => Framing::Length(length),
        None => Framing::Chunks,
    }
}

fn write_headers(out: &mut BytesMut, status: StatusCode, headers: &HeaderMap, framing: Framing, is_last: bool) {
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_slice(b" ");
    out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.put_slice(LINE_END);
    let mut field = |name: &str, value: &[u8]| {
        out.put_slice(name.as_bytes());
        out.put_slice(b": ");
        out.put_slice(value);
        out.put_slice(LINE_END);
    };
    for (name, value) in headers {
        field(name.as_str(), value.as_bytes());
    }
    match framing {
        Framing::Length(length) | Framing::None(Some(length)) if !headers.contains_key(CONTENT_LENGTH) => {
            field(CONTENT_LENGTH.as_str(), length.to_string().as_bytes());
        }
        Framing::Chunks => field(TRANSFER_ENCODING.as_str(), b"chunked"),
        Framing::None(_) | Framing::Length(_) => {}
    }
    end_headers(out, is_last, SystemTime::now());
}

/// Writes the header lines that every response has, and the end of the headers. `now` is for `Date`.
pub(super) fn end_headers(out: &mut BytesMut, is_last: bool, now: SystemTime) {
    if is_last {
        out.put_slice(b"connection: close\r\n");
    }
    out.put_slice(b"date: ");
    with_date(now, |date| out.put_slice(date.as_bytes()));
    out.put_slice(b"\r\n\r\n");
}

/// The date in the form of RFC 9110, section 5.6.7, formatted once a second.
fn with_date(now: SystemTime, use_date: impl FnOnce(&str)) {
    thread_local! {
        static LAST: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    LAST.with_borrow_mut(|(second, text)| {
        if *second != now || text.is_empty() {
            *second = now;
            *text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now));
        }
        use_date(text);
    });
}

/// Waits for `next`. Writes `unsent` before it waits. Fails if the client leaves before.
pub(super) async fn ready<S: Transport, T>(
    socket: &mut Socket<S>,
    unsent: &mut BytesMut,
    next: impl Future<Output = T>,
) -> Result<T, SendError> {
    let mut next = pin!(next);
    if let Some(ready) = next.as_mut().now_or_never() {
        return Ok(ready);
    }
    socket.write([unsent, &[], &[]]).await?;
    unsent.clear();
    tokio::select! {
        biased;
        ready = next => Ok(ready),
        () = socket.left() => Err(SendError::Left),
    }
}

/// The next bytes of a body. Writes `unsent` before it waits for them. Fails if the client leaves before.
async fn next<S: Transport>(
    socket: &mut Socket<S>,
    unsent: &mut BytesMut,
    body: &mut Body,
) -> Result<Option<Bytes>, SendError> {
    loop {
        match ready(socket, unsent, body.frame()).await? {
            None => return Ok(None),
            Some(Err(error)) => return Err(SendError::Content(error)),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Ok(Some(bytes)),
                // Trailers are not sent.
                Err(_) => {}
            },
        }
    }
}

async fn send_whole<S: Transport>(
    socket: &mut Socket<S>,
    out: &mut BytesMut,
    body: &mut Body,
    length: u64,
) -> Result<(), SendError> {
    let mut left = length;
    while left > 0 {
        let Some(bytes) = next(socket, out, body).await? else { return Err(SendError::Length) };
        left = left.checked_sub(bytes.len() as u64).ok_or(SendError::Length)?;
        socket.write([out, &bytes, &[]]).await?;
        out.clear();
    }
    Ok(())
}

async fn send_chunks<S: Transport>(
    socket: &mut Socket<S>,
    out: &mut BytesMut,
    body: &mut Body,
) -> Result<(), SendError> {
    while let Some(bytes) = next(socket, out, body).await? {
        out.put_slice(format!("{:x}\r\n", bytes.len()).as_bytes());
        socket.write([out, &bytes, LINE_END]).await?;
        out.clear();
    }
    socket.write([out, LAST_CHUNK, &[]]).await?;
    Ok(())
}
