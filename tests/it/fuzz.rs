//! Ten thousand requests that were good once, sent by a client that is broken or means harm.
//!
//! The seed is fixed, so a failure names the request that can be sent again. What is looked for: an answer that blames the
//! server, a panic (which is a 500), a file that nobody was told of, and a server that is not itself afterwards.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::stream::{self, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::scene::{files_below, until};
use crate::support::image::OCI_MANIFEST;
use crate::support::{Image, TestServer, Upstream};

const REQUESTS: u64 = 10_000;
const AT_ONCE: usize = 32;
/// How long an answer may take, and how long to wait for one to a request that has not ended.
const PATIENCE: Duration = Duration::from_secs(20);
const PATIENCE_WITH_LIES: Duration = Duration::from_millis(50);

struct Request {
    method: String,
    target: String,
    headers: Vec<String>,
    body: Vec<u8>,
    framing: Framing,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Framing {
    Length,
    /// The length is this many bytes too large or too small.
    WrongLength(i64),
    /// A length that is no number of bytes.
    NoLength(&'static str),
    Chunked,
    /// The last chunk never comes.
    Endless,
    /// A chunk's size is not the size of the chunk.
    WrongChunk(i64),
    BadChunk(&'static str),
    /// Length and chunks, which would be a smuggled request behind a careless proxy.
    Both,
}

impl Framing {
    /// Whether the server may be left waiting for more.
    fn lies(self) -> bool {
        !matches!(self, Self::Length | Self::Chunked)
    }
}

/// What good requests are made of.
struct Ingredients {
    image: Image,
    session: String,
}

impl Ingredients {
    fn good(&self, rng: &mut Rng) -> Request {
        let repo = *rng.choice(&["team/app", "team/app", "org/app", "docker.io/org/app", "team/fuzz"]).unwrap();
        let (image, layer) = (self.image.digest(), &self.image.layers[0]);
        let get = |target: String| ("GET", target, Vec::new());
        let (method, target, body) = match rng.u8(..16) {
            0 => get("/v2/".to_owned()),
            1 => get(format!("/v2/_catalog?n={}&last=team", rng.u32(..3))),
            2 => get(format!("/v2/{repo}/tags/list?n={}", rng.u32(..3))),
            3 | 4 => get(format!("/v2/{repo}/manifests/v1")),
            5 => get(format!("/v2/{repo}/manifests/{image}")),
            6 | 7 => get(format!("/v2/{repo}/blobs/{}", layer.digest)),
            8 => get(format!("/v2/{repo}/referrers/{image}?artifactType=a/b")),
            9 => ("PUT", format!("/v2/{repo}/manifests/fuzz{}", rng.u8(..9)), self.image.manifest.bytes.to_vec()),
            10 => ("PUT", format!("/v2/{repo}/manifests/{image}?tag=a&tag=b"), self.image.manifest.bytes.to_vec()),
            11 => ("POST", format!("/v2/{repo}/blobs/uploads/?digest={}", layer.digest), layer.bytes.to_vec()),
            12 => ("POST", format!("/v2/{repo}/blobs/uploads/?mount={}&from=team/app", layer.digest), Vec::new()),
            13 => ("PATCH", self.session.clone(), layer.bytes.to_vec()),
            14 => ("PUT", format!("{}?digest={}", self.session, layer.digest), layer.bytes.to_vec()),
            _ => ("DELETE", format!("/v2/{repo}/manifests/fuzz{}", rng.u8(..9)), Vec::new()),
        };
        let headers = vec![
            "Host: registry".to_owned(),
            format!("Accept: {OCI_MANIFEST}, */*"),
            format!("Content-Type: {OCI_MANIFEST}"),
            format!("Range: bytes={}-{}", rng.u32(..2000), rng.u32(..2000)),
            format!("If-None-Match: \"{image}\""),
            format!("Content-Range: {}-{}", rng.u32(..2000), rng.u32(..2000)),
        ];
        let few = headers.into_iter().enumerate().filter(|(n, _)| *n < 3 || rng.u8(..4) == 0);
        let headers = few.map(|(_, header)| header).collect();
        Request { method: method.to_owned(), target, headers, body, framing: Framing::Length }
    }

    fn mutated(&self, rng: &mut Rng) -> Request {
        let mut request = self.good(rng);
        for _ in 0..rng.u8(1..4) {
            match rng.u8(..8) {
                0 => request.method = method(rng),
                1..=3 => request.target = spoil(rng, &request.target),
                4 | 5 => spoil_headers(rng, &mut request.headers),
                6 => spoil_bytes(rng, &mut request.body),
                _ => request.framing = framing(rng),
            }
        }
        request
    }
}

fn method(rng: &mut Rng) -> String {
    let methods =
        ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "BREW", "P\u{f6}ST"];
    (*rng.choice(&methods).unwrap()).to_owned()
}

const ODDITIES: [&str; 34] = [
    "/",
    "//",
    "..",
    "/../",
    "/./",
    "%",
    "%00",
    "%2e%2e%2f",
    "%zz",
    "?",
    "&",
    "=",
    "#",
    ":",
    "@",
    "\\",
    "\u{e4}",
    "\u{1F40B}",
    "sha256:",
    "sha512:",
    "md5:0",
    "_tags",
    "v2",
    "manifests",
    "blobs/uploads/",
    "tags/list",
    "docker.io/",
    "quay.io/",
    "localhost:5000/",
    "ns=docker.io",
    "digest=sha256:00",
    "mount=x",
    "n=-1",
    "999999999999999999999999",
];

/// Text with something put in, taken out, doubled or replaced.
fn spoil(rng: &mut Rng, text: &str) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let at = rng.usize(..=chars.len());
    let until = (at + rng.usize(..8)).min(chars.len());
    match rng.u8(..6) {
        0 => drop(chars.drain(at..until)),
        1 => drop(chars.splice(at..until, rng.choice(ODDITIES).unwrap().chars())),
        2 => drop(chars.splice(at..at, rng.choice(ODDITIES).unwrap().chars())),
        3 => chars.extend(chars.clone().get(at..).unwrap_or_default().to_vec()),
        4 => drop(chars.splice(at..at, std::iter::repeat_n('a', rng.usize(..4000)))),
        _ => {
            if let Some(char) = chars.get_mut(at) {
                // No line breaks: they would make another request of it, and those have their own rows.
                *char = char::from(rng.u8(33..=255));
            }
        }
    }
    chars.into_iter().collect()
}

fn spoil_headers(rng: &mut Rng, headers: &mut Vec<String>) {
    let extra = [
        "Range: bytes=0-0,1-1,-1",
        "Range: bytes=-",
        "Content-Range: bytes */*",
        "Content-Range: 0-18446744073709551615",
        "Expect: 100-continue",
        "Connection: upgrade",
        "Upgrade: h2c",
        "Transfer-Encoding: gzip",
        "Content-Encoding: gzip",
        "Host: other",
        "Via: 1.1 roadstead",
        "Authorization: Basic !!!",
        "If-Range: \"x\"",
        "Content-Type: ;;;",
        "Content-Type: application/vnd.oci.image.index.v1+json",
        "X: \u{e4}",
        ": no name",
        "no colon",
        "X\u{0}: zero",
        "Y : space",
        " folded: line",
        "Accept-Encoding: br",
        "Content-Length: 5",
        "Docker-Upload-UUID: ../../x",
    ];
    let at = rng.usize(..=headers.len());
    match rng.u8(..5) {
        0 if at < headers.len() => drop(headers.remove(at)),
        1 if at < headers.len() => headers[at] = spoil(rng, &headers[at].clone()),
        2 => headers.extend(std::iter::repeat_n("X: y".to_owned(), rng.usize(..120))),
        3 => headers.push(format!("X: {}", "z".repeat(rng.usize(..20_000)))),
        _ => headers.insert(at, (*rng.choice(&extra).unwrap()).to_owned()),
    }
}

fn spoil_bytes(rng: &mut Rng, bytes: &mut Vec<u8>) {
    match rng.u8(..4) {
        0 => bytes.truncate(rng.usize(..=bytes.len())),
        1 => bytes.extend(std::iter::repeat_with(|| rng.u8(..)).take(300).collect::<Vec<_>>()),
        2 => bytes.clear(),
        _ => {
            if !bytes.is_empty() {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
        }
    }
}

fn framing(rng: &mut Rng) -> Framing {
    let off = rng.i64(-50..50);
    match rng.u8(..8) {
        0 => Framing::WrongLength(off),
        1 => Framing::NoLength(rng.choice(["-1", "x", "", "1, 2", "0x10", "99999999999999999999"]).unwrap()),
        2 => Framing::Endless,
        3 => Framing::WrongChunk(off),
        4 => Framing::BadChunk(rng.choice(["x", "-1", "", "ffffffffffffffffff", "5;\u{1}=\u{2}", "0x5"]).unwrap()),
        5 => Framing::Both,
        _ => Framing::Chunked,
    }
}

impl Request {
    fn to_bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for header in &self.headers {
            head.push_str(header);
            head.push_str("\r\n");
        }
        let length = self.body.len();
        let chunk = |size: &str| [size.as_bytes(), b"\r\n", &self.body, b"\r\n0\r\n\r\n"].concat();
        let off = |by: i64| (length as i64 + by).max(0);
        let (field, body) = match self.framing {
            Framing::Length => (format!("Content-Length: {length}"), self.body.clone()),
            Framing::WrongLength(by) => (format!("Content-Length: {}", off(by)), self.body.clone()),
            Framing::NoLength(length) => (format!("Content-Length: {length}"), self.body.clone()),
            Framing::Chunked if length == 0 => ("Transfer-Encoding: chunked".to_owned(), b"0\r\n\r\n".to_vec()),
            Framing::Chunked => ("Transfer-Encoding: chunked".to_owned(), chunk(&format!("{length:x}"))),
            Framing::Endless => {
                let body = chunk(&format!("{length:x}"));
                ("Transfer-Encoding: chunked".to_owned(), body[..body.len() - 5].to_vec())
            }
            Framing::WrongChunk(by) => ("Transfer-Encoding: chunked".to_owned(), chunk(&format!("{:x}", off(by)))),
            Framing::BadChunk(size) => ("Transfer-Encoding: chunked".to_owned(), chunk(size)),
            Framing::Both => {
                (format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"), chunk(&format!("{length:x}")))
            }
        };
        [format!("{head}{field}\r\n\r\n").into_bytes(), body].concat()
    }
}

/// The head of every answer that came, one after the other; a client that lied does not wait for ever.
async fn send(addr: SocketAddr, bytes: &[u8], cut: bool, wait: Duration) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("the server accepts");
    // It may have said no before it has heard all.
    let _ = stream.write_all(bytes).await;
    if cut {
        let _ = stream.shutdown().await;
    }
    let mut answer = Vec::new();
    let read = async { while !is_complete(&answer) && stream.read_buf(&mut answer).await.is_ok_and(|n| n > 0) {} };
    let _ = timeout(wait, read).await;
    let text = String::from_utf8_lossy(&answer);
    text.split_once("\r\n\r\n").map_or("", |(head, _)| head).to_ascii_lowercase()
}

/// Whether the head is there that matters: what comes before it says only that the body may come.
fn is_complete(answer: &[u8]) -> bool {
    !answer.starts_with(b"HTTP/1.1 100") && answer.windows(4).any(|window| window == b"\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_broken_requests_leave_nothing_broken() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[1500]);
    upstream.add_image("org/app", "v1", &image);
    let server = TestServer::mirror_of(&upstream).await;
    let (client, base) = (server.client(), server.url(""));
    client.push_image(&base, "team/app", "v1", &image).await;
    let session = client.start_upload(&base, "team/app").await.replace(&base, "");
    let mut told = BTreeSet::from([session.rsplit('/').next().unwrap().to_owned()]);
    let ingredients = Arc::new(Ingredients { image: image.clone(), session });
    let addr = server.addr();
    let answers = stream::iter(0..REQUESTS).map(|seed| {
        let ingredients = ingredients.clone();
        async move {
            let mut rng = Rng::with_seed(seed);
            let request = ingredients.mutated(&mut rng);
            let mut bytes = request.to_bytes();
            let cut = rng.u8(..6) == 0;
            if cut {
                bytes.truncate(rng.usize(..bytes.len()));
            }
            let wait = if request.framing.lies() { PATIENCE_WITH_LIES } else { PATIENCE };
            (seed, request, send(addr, &bytes, cut, wait).await)
        }
    });
    let mut answers = answers.buffer_unordered(AT_ONCE);
    let mut answered = 0;
    while let Some((seed, request, head)) = answers.next().await {
        let status: u16 = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let what = || format!("request {seed}: {} {} ({:?})\n{head}", request.method, request.target, request.framing);
        assert!(status < 500 || matches!(status, 501 | 505 | 508), "{}", what());
        answered += u64::from(status != 0);
        let uuid = head.lines().find_map(|line| line.strip_prefix("docker-upload-uuid: "));
        told.extend(uuid.filter(|_| status == 202).map(str::to_owned));
    }
    drop(answers);
    assert!(answered > REQUESTS / 2, "{answered} of {REQUESTS} were answered");

    until("nothing is left in the spool", async || files_below(&server.data_dir().join("spool")) == 0).await;
    let open = std::fs::read_dir(server.data_dir().join("uploads")).unwrap();
    let open: BTreeSet<String> = open.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let untold: Vec<_> = open.difference(&told).collect();
    assert!(untold.is_empty(), "sessions of which nobody was told: {untold:?}");

    let next = Image::new(2, &[3000, 0]);
    client.push_image(&base, "team/app", "next", &next).await;
    assert_eq!(server.get("/v2/team/app/manifests/next").await.body, next.manifest.bytes);
    for (repo, image) in [("team/app", &next), ("org/app", &image), ("team/app", &image)] {
        for blob in image.blobs() {
            let got = server.get(&format!("/v2/{repo}/blobs/{}", blob.digest)).await;
            assert_eq!((got.status, &got.body), (200, &blob.bytes), "{repo}");
        }
    }
    assert_eq!(server.get("/v2/org/app/manifests/v1").await.body, image.manifest.bytes);
    assert_eq!(server.metric("registry_http_requests_total", &[("code", "500")]).await, 0.0);
}
