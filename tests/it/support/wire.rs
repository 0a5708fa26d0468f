//! HTTP/1.1 by hand, so that the scripted upstream can break it in every way.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::script::{Framing, Reply, Step};

const FRAME_BYTES: usize = 64 * 1024;

/// A received request.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    /// Without the question mark; empty if there is none.
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    /// The first header of that name, or an empty string.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

/// The response of a registry, before a script modifies it.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
}

/// How a reply ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Complete,
    /// Ended by the script: the connection cannot be reused.
    Closed,
    /// The client left before the end.
    Abandoned,
}

/// The next request on the connection; `None` when the client has closed it.
pub(super) async fn read_request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Seen>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut seen = Seen {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: read_headers(stream).await?,
        body: Bytes::new(),
    };
    let length = seen.header("content-length").parse().unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    seen.body = body.into();
    Ok(Some(seen))
}

/// The header lines up to the empty one.
pub async fn read_headers<R>(stream: &mut R) -> io::Result<HeaderMap>
where
    R: tokio::io::AsyncBufRead + Unpin,
{
    let mut headers = HeaderMap::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return Ok(headers);
        };
        let bad = |_| io::Error::from(io::ErrorKind::InvalidData);
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad(()))?;
        let value = HeaderValue::from_str(value.trim()).map_err(|_| bad(()))?;
        headers.append(name, value);
    }
}

/// Sends the response as the reply modifies it. `sent` counts the bytes of bodies.
pub(super) async fn send(
    stream: &mut BufReader<TcpStream>,
    is_head: bool,
    answer: Answer,
    reply: &Reply,
    sent: &AtomicU64,
) -> Sent {
    for step in &reply.before_head {
        if let Some(end) = take_step(stream, step).await {
            return end;
        }
    }
    let body = reply.body.clone().unwrap_or(answer.body);
    let status = reply.status.unwrap_or(answer.status);
    let head = head(status, answer.headers, reply, body.len() as u64);
    if stream.get_mut().write_all(head.as_bytes()).await.is_err() {
        return Sent::Abandoned;
    }
    if is_head || status == 304 || status == 204 {
        return Sent::Complete;
    }
    let end = send_body(stream, &body, reply, sent).await;
    match reply.framing {
        Framing::Declared(n) if n != body.len() as u64 && end == Sent::Complete => Sent::Closed,
        Framing::UntilClose if end == Sent::Complete => Sent::Closed,
        _ => end,
    }
}

fn head(status: u16, headers: Vec<(String, String)>, reply: &Reply, length: u64) -> String {
    let framing = match reply.framing {
        Framing::Length => Some(("Content-Length", length.to_string())),
        Framing::Declared(n) => Some(("Content-Length", n.to_string())),
        Framing::Chunked => Some(("Transfer-Encoding", "chunked".to_owned())),
        Framing::UntilClose => Some(("Connection", "close".to_owned())),
    };
    let replaced = |name: &str| {
        let mut names = reply.headers.iter().map(|(name, _)| name).chain(&reply.left_out);
        names.any(|other| other.eq_ignore_ascii_case(name))
    };
    let mut head = format!("HTTP/1.1 {status} Scripted\r\n");
    let mut line = |name: &str, value: &str| head.push_str(&format!("{name}: {value}\r\n"));
    for (name, value) in &headers {
        if !replaced(name) {
            line(name, value);
        }
    }
    for (name, value) in &reply.headers {
        line(name, value);
    }
    if let Some((name, value)) = framing
        && !replaced(name)
    {
        line(name, &value);
    }
    head.push_str("\r\n");
    head
}

async fn send_body(stream: &mut BufReader<TcpStream>, body: &Bytes, reply: &Reply, sent: &AtomicU64) -> Sent {
    let chunked = matches!(reply.framing, Framing::Chunked);
    let mut pacer = reply.bytes_per_second.map(Pacer::new);
    let mut steps = reply.in_body.iter().peekable();
    let mut offset = 0;
    loop {
        while let Some((_, step)) = steps.next_if(|(at, _)| *at <= offset as u64) {
            if let Some(end) = take_step(stream, step).await {
                return end;
            }
        }
        if offset == body.len() {
            break;
        }
        let next_step = steps.peek().map_or(u64::MAX, |(at, _)| *at);
        let limit = pacer.as_ref().map_or(FRAME_BYTES, Pacer::frame);
        let end = body.len().min(offset + limit);
        let end = end.min(usize::try_from(next_step).unwrap_or(usize::MAX));
        let frame = corrupt(body.slice(offset..end), offset as u64, &reply.flipped);
        if write_frame(stream.get_mut(), &frame, chunked).await.is_err() {
            return Sent::Abandoned;
        }
        sent.fetch_add(frame.len() as u64, Ordering::SeqCst);
        offset = end;
        if let Some(pacer) = &mut pacer {
            pacer.sent(frame.len()).await;
        }
    }
    if chunked && stream.get_mut().write_all(b"0\r\n\r\n").await.is_err() {
        return Sent::Abandoned;
    }
    Sent::Complete
}

async fn write_frame(stream: &mut TcpStream, frame: &[u8], chunked: bool) -> io::Result<()> {
    if !chunked {
        return stream.write_all(frame).await;
    }
    let size = format!("{:x}\r\n", frame.len());
    stream.write_all(size.as_bytes()).await?;
    stream.write_all(frame).await?;
    stream.write_all(b"\r\n").await
}

fn corrupt(frame: Bytes, offset: u64, flipped: &[u64]) -> Bytes {
    let range = offset..offset + frame.len() as u64;
    if !flipped.iter().any(|at| range.contains(at)) {
        return frame;
    }
    let mut bytes = frame.to_vec();
    for at in flipped.iter().filter(|at| range.contains(at)) {
        bytes[(at - offset) as usize] ^= 0x20;
    }
    bytes.into()
}

/// `Some` if the reply ends at this step.
async fn take_step(stream: &mut BufReader<TcpStream>, step: &Step) -> Option<Sent> {
    let pause = async {
        match step {
            Step::Sleep(pause) => tokio::time::sleep(*pause).await,
            Step::Wait(gate) => gate.pass().await,
            Step::Silence => std::future::pending().await,
            Step::Cut | Step::Reset => {}
        }
    };
    tokio::select! {
        () = pause => {}
        () = client_left(stream.get_ref()) => return Some(Sent::Abandoned),
    }
    match step {
        Step::Cut => Some(Sent::Closed),
        Step::Reset => {
            stream.get_ref().set_zero_linger().expect("an option of every socket");
            Some(Sent::Closed)
        }
        Step::Sleep(_) | Step::Wait(_) | Step::Silence => None,
    }
}

async fn client_left(stream: &TcpStream) {
    match stream.peek(&mut [0]).await {
        Ok(0) | Err(_) => {}
        Ok(_) => std::future::pending().await,
    }
}

/// Keeps an average rate from the first byte on.
struct Pacer {
    bytes_per_second: u64,
    start: Instant,
    sent: u64,
}

impl Pacer {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, start: Instant::now(), sent: 0 }
    }

    /// The bytes of about ten milliseconds, so that a slow rate is steady.
    fn frame(&self) -> usize {
        (self.bytes_per_second / 100).clamp(1, FRAME_BYTES as u64) as usize
    }

    async fn sent(&mut self, n: usize) {
        self.sent += n as u64;
        let due = Duration::from_secs_f64(self.sent as f64 / self.bytes_per_second as f64);
        tokio::time::sleep_until(self.start + due).await;
    }
}
