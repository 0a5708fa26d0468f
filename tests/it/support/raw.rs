//! A client on a bare socket, with any HTTP version and pace. It can leave at any moment, and reports exactly how a
//! body ended.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream};

use super::wire::read_headers;

/// A response whose headers are read, and its body as far as the test requested. Dropping it closes the connection.
pub struct Conn {
    pub status: u16,
    pub headers: HeaderMap,
    stream: BufReader<TcpStream>,
    framing: Framing,
    ended: Option<Ended>,
}

/// How a body ended, by the rules of its framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Complete,
    /// Closed before the declared length or the last chunk.
    Short,
    Reset,
}

enum Framing {
    Length(u64),
    Chunked {
        left_in_chunk: u64,
    },
    /// A reader cannot tell a complete body from a truncated one.
    UntilClose,
}

impl Conn {
    /// Leaves with a reset, whatever was read before.
    pub fn reset(self) {
        self.stream.get_ref().set_zero_linger().expect("an option of every socket");
    }

    pub async fn get(addr: SocketAddr, path: &str) -> Self {
        Self::get_with(addr, path, &[]).await
    }

    pub async fn get_with(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Self {
        let headers = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        let headers: String = headers.collect();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\n{headers}\r\n");
        Self::ask(addr, &request).await.expect("a response with headers")
    }

    pub async fn get_http10(addr: SocketAddr, path: &str) -> Self {
        let request = format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n");
        Self::ask(addr, &request).await.expect("a response with headers")
    }

    /// Sends these bytes unchanged and reads the headers of the response.
    pub async fn ask(addr: SocketAddr, request: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        Self::ask_on(stream, request).await
    }

    /// The same from this address.
    pub async fn ask_from(source: std::net::IpAddr, addr: SocketAddr, request: &str) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((source, 0).into())?;
        Self::ask_on(socket.connect(addr).await?, request).await
    }

    /// The same with a small receive buffer: when this client stops reading, writes of the server soon block.
    pub async fn ask_with_small_buffer(addr: SocketAddr, request: &str) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4096)?;
        Self::ask_on(socket.connect(addr).await?, request).await
    }

    /// Sends the next request on a connection whose last response was read to its end. With an empty request it only
    /// reads the response to a pipelined one.
    pub async fn then(self, request: &str) -> io::Result<Self> {
        Self::ask_over(self.stream, request).await
    }

    async fn ask_on(stream: TcpStream, request: &str) -> io::Result<Self> {
        Self::ask_over(BufReader::new(stream), request).await
    }

    async fn ask_over(mut stream: BufReader<TcpStream>, request: &str) -> io::Result<Self> {
        stream.get_mut().write_all(request.as_bytes()).await?;
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let status = line.split_whitespace().nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or(io::ErrorKind::UnexpectedEof)?;
        let headers = read_headers(&mut stream).await?;
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let framing = match text("content-length").and_then(|length| length.parse().ok()) {
            _ if request.starts_with("HEAD ") => Framing::Length(0),
            Some(length) => Framing::Length(length),
            None if text("transfer-encoding") == Some("chunked") => Framing::Chunked { left_in_chunk: 0 },
            None => Framing::UntilClose,
        };
        Ok(Self { status, headers, stream, framing, ended: None })
    }

    /// The first header of that name, or an empty string.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// The next `n` bytes of the body; fewer only at its end.
    pub async fn take(&mut self, n: usize) -> Bytes {
        let mut taken = BytesMut::new();
        while taken.len() < n && self.ended.is_none() {
            taken.extend_from_slice(&self.next(n - taken.len()).await);
        }
        taken.freeze()
    }

    /// The rest of the body, and how it ended.
    pub async fn rest(&mut self) -> (Bytes, Ended) {
        let rest = self.take(usize::MAX).await;
        (rest, self.ended.unwrap_or(Ended::Short))
    }

    /// The same, `frame` bytes at a time with a pause after each.
    pub async fn rest_slowly(&mut self, frame: usize, pause: Duration) -> (Bytes, Ended) {
        let mut taken = BytesMut::new();
        loop {
            taken.extend_from_slice(&self.take(frame).await);
            if let Some(ended) = self.ended {
                return (taken.freeze(), ended);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Reads the rest without keeping it. Returns its length, whether it equals `expected`, and how it ended.
    pub async fn compare(&mut self, expected: &[u8]) -> (usize, bool, Ended) {
        let (mut at, mut same) = (0, true);
        while self.ended.is_none() {
            let bytes = self.next(usize::MAX).await;
            same &= expected.get(at..at + bytes.len()) == Some(&bytes[..]);
            at += bytes.len();
        }
        (at, same && at == expected.len(), self.ended.unwrap_or(Ended::Short))
    }

    async fn next(&mut self, max: usize) -> Bytes {
        match self.try_next(max).await {
            Ok(bytes) => {
                if bytes.is_empty() {
                    self.ended = Some(Ended::Complete);
                }
                bytes
            }
            Err(error) => {
                let short = error.kind() == io::ErrorKind::UnexpectedEof;
                self.ended = Some(if short { Ended::Short } else { Ended::Reset });
                Bytes::new()
            }
        }
    }

    /// Some bytes of the body; none at its regular end.
    async fn try_next(&mut self, max: usize) -> io::Result<Bytes> {
        if let Framing::Chunked { left_in_chunk: left @ 0 } = &mut self.framing {
            let mut line = String::new();
            self.stream.read_line(&mut line).await?;
            let size = u64::from_str_radix(line.trim(), 16);
            *left = size.map_err(|_| io::ErrorKind::UnexpectedEof)?;
            if *left == 0 {
                self.stream.read_line(&mut line).await?;
            }
        }
        let left = match &self.framing {
            Framing::Length(left) | Framing::Chunked { left_in_chunk: left } => *left,
            Framing::UntilClose => u64::MAX,
        };
        let mut bytes = BytesMut::with_capacity(64 * 1024);
        let max = left.min(max as u64).min(64 * 1024);
        if max == 0 {
            return Ok(Bytes::new());
        }
        let n = (&mut self.stream).take(max).read_buf(&mut bytes).await?;
        if n == 0 && !matches!(self.framing, Framing::UntilClose) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match &mut self.framing {
            Framing::Length(left) => *left -= n as u64,
            Framing::Chunked { left_in_chunk } => {
                *left_in_chunk -= n as u64;
                if *left_in_chunk == 0 {
                    self.stream.read_line(&mut String::new()).await?;
                }
            }
            Framing::UntilClose => {}
        }
        Ok(bytes.freeze())
    }
}
