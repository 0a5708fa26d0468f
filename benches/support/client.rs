//! A client with minimal cost: a blocking socket, and a comparison with the expected bytes instead of a hash.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

/// The `Accept` that docker-registry needs to serve an OCI manifest.
pub const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, */*";
const BUFFER_BYTES: usize = 256 << 10;
/// Far above the time of any figure: a server that hangs ends the run.
const READ_TIMEOUT: Duration = Duration::from_secs(120);

pub struct Conn {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// One response, timed from the request.
#[derive(Clone, Copy, Debug)]
pub struct Got {
    /// Time of the first byte of the body; that of the last byte follows.
    pub first_byte: Duration,
    pub last_byte: Duration,
    /// Status 200 and the expected bytes.
    pub correct: bool,
}

/// A complete response, where single bytes are not timed.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// The header of this name, case-insensitive, or an empty string.
    pub fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(other, _)| other.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value.trim())
    }
}

impl Conn {
    pub fn open(address: SocketAddr) -> Self {
        Self::from_stream(TcpStream::connect(address).expect("the server listens"))
    }

    /// With a receive buffer of this many bytes, which bounds what a client that does not read accepts.
    pub fn with_receive_buffer(address: SocketAddr, bytes: usize) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(bytes).expect("a small buffer");
        socket.connect(&address.into()).expect("the server listens");
        Self::from_stream(socket.into())
    }

    fn from_stream(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("an option of every socket");
        stream.set_read_timeout(Some(READ_TIMEOUT)).expect("an option of every socket");
        Self { stream, buffer: vec![0; BUFFER_BYTES] }
    }

    pub fn ask(&mut self, path: &str) {
        self.send("GET", path, &[("Accept", ACCEPT)], &[]);
    }

    /// Sends a request with a body of these parts. The response is left unread.
    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[&[u8]]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: figures\r\n");
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        if !matches!(method, "GET" | "HEAD") {
            let length: usize = body.iter().map(|part| part.len()).sum();
            head.push_str(&format!("Content-Length: {length}\r\n"));
        }
        head.push_str("\r\n");
        for part in [head.as_bytes()].iter().chain(body) {
            self.stream.write_all(part).expect("the server reads");
        }
    }

    /// The complete response to the last request.
    pub fn answer(&mut self, to_head: bool) -> Answer {
        let (from, filled) = self.read_head();
        let head = String::from_utf8_lossy(&self.buffer[..from]).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let mut answer = Answer { status, head, body: self.buffer[from..filled].to_vec() };
        if to_head || matches!(status, 204 | 304) {
            return answer;
        }
        if answer.header("Transfer-Encoding").eq_ignore_ascii_case("chunked") {
            while !answer.body.ends_with(b"0\r\n\r\n") {
                self.read_more(&mut answer.body);
            }
            return answer;
        }
        let length = answer.header("Content-Length").parse().expect("a length");
        while answer.body.len() < length {
            self.read_more(&mut answer.body);
        }
        answer
    }

    fn read_more(&mut self, body: &mut Vec<u8>) {
        let read = self.stream.read(&mut self.buffer).expect("the body goes on");
        assert!(read > 0, "the body goes on");
        body.extend_from_slice(&self.buffer[..read]);
    }

    pub fn get(&mut self, path: &str, expected: &[u8]) -> Got {
        let start = Instant::now();
        self.ask(path);
        let (mut from, mut filled) = self.read_head();
        let mut correct = self.buffer.starts_with(b"HTTP/1.1 200");
        let (mut at, mut first_byte) = (0, None);
        loop {
            if filled > from {
                first_byte.get_or_insert_with(|| start.elapsed());
            }
            let bytes = &self.buffer[from..filled];
            correct &= expected.get(at..at + bytes.len()) == Some(bytes);
            at += bytes.len();
            if !correct || at >= expected.len() {
                break;
            }
            (from, filled) = (0, self.stream.read(&mut self.buffer).expect("the body goes on"));
            correct &= filled > 0;
        }
        let last_byte = start.elapsed();
        Got { first_byte: first_byte.unwrap_or(last_byte), last_byte, correct }
    }

    /// Reads until complete headers are in the buffer. Returns their end and the filled length.
    fn read_head(&mut self) -> (usize, usize) {
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..]).expect("response headers arrive");
            assert!(read > 0, "incomplete headers: {:?}", String::from_utf8_lossy(&self.buffer[..filled]));
            filled += read;
            if let Some(end) = self.buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") {
                return (end + 4, filled);
            }
        }
    }
}

/// This many clients, each with its own connection, send the same request at the same moment.
pub fn together(clients: usize, address: SocketAddr, path: &str, expected: &[u8]) -> Vec<Got> {
    let start = Barrier::new(clients);
    let client = || {
        let mut conn = Conn::open(address);
        start.wait();
        conn.get(path, expected)
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        running.into_iter().map(|client| client.join().expect("a client thread ends")).collect()
    })
}
