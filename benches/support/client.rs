//! A client that costs next to nothing: a blocking socket, and a comparison with what should come instead of a hash.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

/// What a registry must be told to give out an OCI manifest.
pub const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, */*";
const BUFFER: usize = 256 << 10;
/// Far above what any figure takes: a server that hangs ends the run.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Conn {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// One answer, timed from the request on.
#[derive(Clone, Copy, Debug)]
pub struct Got {
    /// Of the body, as the last.
    pub first_byte: Duration,
    pub last_byte: Duration,
    /// 200, and byte for byte what it should be.
    pub right: bool,
}

/// An answer as it came, for what is not timed by its bytes.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// The header of that name, in whatever case, or an empty string.
    pub fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(other, _)| other.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value.trim())
    }
}

impl Conn {
    pub fn open(address: SocketAddr) -> Self {
        Self::from_stream(TcpStream::connect(address).expect("somebody listens"))
    }

    /// With a receive buffer of so many bytes: all that one who reads nothing takes.
    pub fn with_receive_buffer(address: SocketAddr, bytes: usize) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(bytes).expect("a small buffer");
        socket.connect(&address.into()).expect("somebody listens");
        Self::from_stream(socket.into())
    }

    fn from_stream(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("an option of every socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option of every socket");
        Self { stream, buffer: vec![0; BUFFER] }
    }

    pub fn ask(&mut self, path: &str) {
        self.send("GET", path, &[("Accept", ACCEPT)], &[]);
    }

    /// Sends a request with a body of these parts, and leaves what comes to be read.
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

    /// The whole answer to the request before.
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
        let mut right = self.buffer.starts_with(b"HTTP/1.1 200");
        let (mut at, mut first_byte) = (0, None);
        loop {
            if filled > from {
                first_byte.get_or_insert_with(|| start.elapsed());
            }
            let bytes = &self.buffer[from..filled];
            right &= expected.get(at..at + bytes.len()) == Some(bytes);
            at += bytes.len();
            if !right || at >= expected.len() {
                break;
            }
            (from, filled) = (0, self.stream.read(&mut self.buffer).expect("the body goes on"));
            right &= filled > 0;
        }
        let last_byte = start.elapsed();
        Got { first_byte: first_byte.unwrap_or(last_byte), last_byte, right }
    }

    /// Reads until a whole head is in the buffer: where it ends, and what is filled.
    fn read_head(&mut self) -> (usize, usize) {
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..]).expect("a head comes");
            assert!(read > 0, "no head, but {:?}", String::from_utf8_lossy(&self.buffer[..filled]));
            filled += read;
            if let Some(end) = self.buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") {
                return (end + 4, filled);
            }
        }
    }
}

/// So many clients, each with a connection of its own, ask for the same at the same moment.
pub fn together(clients: usize, address: SocketAddr, path: &str, expected: &[u8]) -> Vec<Got> {
    let start = Barrier::new(clients);
    let client = || {
        let mut conn = Conn::open(address);
        start.wait();
        conn.get(path, expected)
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        running.into_iter().map(|client| client.join().expect("a client ends")).collect()
    })
}
