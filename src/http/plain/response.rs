//! Writing a response: its headers, and its body with a length or in chunks (RFC 9112, sections 4, 6 and 7).

use std::cell::RefCell;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{io, mem};

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;

use super::super::body::{FilePart, log};
use super::socket::{Socket, Transport};
use crate::pull::ContentError;

/// Bytes of a file that are probed in the page cache at once, and then sent by sendfile.
const PROBED_BYTES: u64 = 2 << 20;
/// A range up to this length is read and written together with the headers. That never blocks on the disk.
const MAX_COPIED_BYTES: u64 = 32 << 10;
/// The headers of a range up to this length are written before it. A packet takes 64 KiB, and together they would need one
/// more.
const MAX_HEADERS_FIRST_BYTES: u64 = 128 << 10;
/// How long bytes are taken to stay in the page cache.
const PROBE_LIFETIME: Duration = Duration::from_millis(100);
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
        (Framing::Length(length), Some(part))
            if S::IS_PLAIN && part.range.len() == length && length > MAX_COPIED_BYTES =>
        {
            // `body` lives to the end of the transfer: its guard counts the request as in progress.
            send_file(socket, scratch, part).await
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

/// The next bytes of a body. Writes `unsent` first if they have to be waited for. Fails if the client leaves before.
async fn next<S: Transport>(
    socket: &mut Socket<S>,
    unsent: &mut BytesMut,
    body: &mut Body,
) -> Result<Option<Bytes>, SendError> {
    loop {
        let frame = match body.frame().now_or_never() {
            Some(frame) => frame,
            None => {
                socket.write([unsent, &[], &[]]).await?;
                unsent.clear();
                tokio::select! {
                    biased;
                    frame = body.frame() => frame,
                    () = socket.left() => return Err(SendError::Left),
                }
            }
        };
        match frame {
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

/// Sends a range of a file from the page cache to the socket. What is not in the page cache is read by the blocking pool first.
async fn send_file<S: Transport>(socket: &mut Socket<S>, head: &[u8], part: FilePart) -> Result<(), SendError> {
    let FilePart { mut range, counter } = part;
    let mut head = head;
    let mut by_copy = false;
    // Bytes of the range that were found in the page cache, and when.
    let (mut cached, mut probed) = (0, Instant::now());
    if range.len() <= MAX_HEADERS_FIRST_BYTES {
        socket.write([mem::take(&mut head), &[], &[]]).await?;
    }
    while !range.is_empty() {
        consume_budget().await;
        if cached == 0 && !by_copy {
            let probe = range.len().min(PROBED_BYTES);
            cached = if range.is_cached(probe) { probe } else { 0 };
            probed = Instant::now();
        }
        let sent = if cached == 0 {
            let bytes = range.read().await.map_err(unreadable)?.unwrap_or_default();
            socket.write([head, &bytes, &[]]).await?;
            bytes.len() as u64
        } else {
            socket.write_ahead(head).await?;
            let send = |stream: &TcpStream, waited: bool| {
                // While the client took its time, bytes may have left the page cache.
                if waited && probed.elapsed() > PROBE_LIFETIME {
                    if !range.is_cached(cached) {
                        return Ok(None);
                    }
                    probed = Instant::now();
                }
                range.send_to(stream, cached).map(Some)
            };
            match socket.write_by(send).await {
                Ok(Some(sent)) => {
                    cached -= sent;
                    sent
                }
                Ok(None) => {
                    cached = 0;
                    0
                }
                // The file system does not support sendfile.
                Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                    by_copy = true;
                    cached = 0;
                    0
                }
                // These are errors of the file, not of the socket.
                Err(error) if is_of_file(&error) => return Err(unreadable(error)),
                Err(error) => return Err(error.into()),
            }
        };
        head = &[];
        counter.count(sent);
    }
    Ok(())
}

fn is_of_file(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof || Errno::from_io_error(error) == Some(Errno::IO)
}

fn unreadable(error: io::Error) -> SendError {
    let error = ContentError::from(error);
    log(&error);
    SendError::Content(axum::Error::new(error))
}
