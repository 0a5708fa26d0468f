//! Mutated requests. The same seed makes the same request.

use fastrand::Rng;

use super::image::{Image, OCI_MANIFEST};

pub struct Request {
    pub method: String,
    pub target: String,
    headers: Vec<String>,
    body: Vec<u8>,
    pub framing: Framing,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Framing {
    Length,
    /// The length is this many bytes too large or too small.
    WrongLength(i64),
    /// A length that is not a number.
    NoLength(&'static str),
    Chunked,
    /// The last chunk is missing.
    Endless,
    /// A chunk size that is not the size of its chunk.
    WrongChunk(i64),
    BadChunk(&'static str),
    /// Length and chunks, the pattern of request smuggling.
    Both,
}

impl Framing {
    /// Whether the server may wait for more bytes.
    pub fn is_incomplete(self) -> bool {
        !matches!(self, Self::Length | Self::Chunked)
    }
}

/// The parts of valid requests.
pub struct Ingredients {
    pub image: Image,
    /// The path of an open push session.
    pub session: String,
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

    /// A valid request with one to three mutations.
    pub fn mutated(&self, rng: &mut Rng) -> Request {
        let mut request = self.good(rng);
        for _ in 0..rng.u8(1..4) {
            match rng.u8(..8) {
                0 => request.method = method(rng),
                1..=3 => request.target = mutate_text(rng, &request.target),
                4 | 5 => mutate_headers(rng, &mut request.headers),
                6 => mutate_bytes(rng, &mut request.body),
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

const UNUSUAL_TEXTS: [&str; 34] = [
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

/// Text with a part inserted, removed, doubled or replaced.
fn mutate_text(rng: &mut Rng, text: &str) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let at = rng.usize(..=chars.len());
    let until = (at + rng.usize(..8)).min(chars.len());
    match rng.u8(..6) {
        0 => drop(chars.drain(at..until)),
        1 => drop(chars.splice(at..until, rng.choice(UNUSUAL_TEXTS).unwrap().chars())),
        2 => drop(chars.splice(at..at, rng.choice(UNUSUAL_TEXTS).unwrap().chars())),
        3 => chars.extend(chars.clone().get(at..).unwrap_or_default().to_vec()),
        4 => drop(chars.splice(at..at, std::iter::repeat_n('a', rng.usize(..4000)))),
        _ => {
            if let Some(char) = chars.get_mut(at) {
                // No line breaks, as they would make it another request.
                *char = char::from(rng.u8(33..=255));
            }
        }
    }
    chars.into_iter().collect()
}

fn mutate_headers(rng: &mut Rng, headers: &mut Vec<String>) {
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
        1 if at < headers.len() => headers[at] = mutate_text(rng, &headers[at].clone()),
        2 => headers.extend(std::iter::repeat_n("X: y".to_owned(), rng.usize(..120))),
        3 => headers.push(format!("X: {}", "z".repeat(rng.usize(..20_000)))),
        _ => headers.insert(at, (*rng.choice(&extra).unwrap()).to_owned()),
    }
}

fn mutate_bytes(rng: &mut Rng, bytes: &mut Vec<u8>) {
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
    pub fn to_bytes(&self) -> Vec<u8> {
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
