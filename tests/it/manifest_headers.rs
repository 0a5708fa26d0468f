//! All headers of responses with a manifest: over each kind of connection, and for each kind of request that a manifest
//! in memory can answer.

use std::net::SocketAddr;

use http::header::DATE;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpStream;

use crate::scene::pushed_and_mirrored;
use crate::support::http2::tls;
use crate::support::image::{DOCKER_MANIFEST, OCI_MANIFEST};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Authority, Client, Content, Image, TestServer, Upstream};

/// A request that no server answers in a special way. After it, another part of the program serves the connection.
const ABSOLUTE_FORM: &str = "GET http://registry/v2/ HTTP/1.1\r\nHost: registry\r\n\r\n";

/// A complete response: status line, sorted header lines without `Date`, body.
#[derive(Debug, PartialEq, Eq)]
struct Raw {
    status: String,
    lines: Vec<String>,
    body: Vec<u8>,
}

impl Raw {
    /// The next response on a connection. `Date` must be there once and be a date.
    async fn read(stream: &mut (impl AsyncBufRead + Unpin), to_head: bool) -> Self {
        let mut next = async || {
            let mut line = String::new();
            stream.read_line(&mut line).await.expect("a header line");
            line.strip_suffix("\r\n").expect("a complete line").to_owned()
        };
        let status = next().await;
        let mut lines = Vec::new();
        loop {
            match next().await {
                line if line.is_empty() => break,
                line => lines.push(line),
            }
        }
        lines.sort_unstable();
        let is_date = |line: &String| line.to_ascii_lowercase().starts_with(&format!("{DATE}: "));
        let dates: Vec<String> = lines.extract_if(.., |line| is_date(line)).collect();
        assert_eq!(dates.len(), 1, "{status} {lines:?}");
        assert!(httpdate::parse_http_date(&dates[0]["date: ".len()..]).is_ok(), "{dates:?}");
        let length = lines.iter().find_map(|line| line.strip_prefix("content-length: "));
        let length =
            length.filter(|_| !to_head && !status.contains(" 304 ")).map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.expect("the body");
        Self { status, lines, body }
    }
}

/// Sends `request`, after `first`, and returns its response.
async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin, first: &str, request: &str) -> Raw {
    let mut stream = BufReader::new(stream);
    if !first.is_empty() {
        stream.write_all(first.as_bytes()).await.expect("the server reads");
        let response = Raw::read(&mut stream, false).await;
        assert!(response.status.ends_with(" 200 OK"), "{response:?}");
    }
    stream.write_all(request.as_bytes()).await.expect("the server reads");
    stream.flush().await.expect("the server reads");
    Raw::read(&mut stream, request.starts_with("HEAD ")).await
}

async fn over_tcp(addr: SocketAddr, first: &str, request: &str) -> Raw {
    exchange(TcpStream::connect(addr).await.expect("the server listens"), first, request).await
}

/// The response with this manifest, with `more` header lines. `None`: 304.
fn expected(manifest: &Content, unchanged: bool, is_head: bool, more: &[String]) -> Raw {
    let mut lines = vec![
        "docker-distribution-api-version: registry/2.0".to_owned(),
        format!("docker-content-digest: {}", manifest.digest),
        format!("etag: \"{}\"", manifest.digest),
    ];
    if !unchanged {
        lines.push(format!("content-length: {}", manifest.bytes.len()));
        lines.push(format!("content-type: {}", manifest.media_type));
    }
    lines.extend_from_slice(more);
    lines.sort_unstable();
    let status = if unchanged { "304 Not Modified" } else { "200 OK" };
    let body = if unchanged || is_head { Vec::new() } else { manifest.bytes.to_vec() };
    Raw { status: format!("HTTP/1.1 {status}"), lines, body }
}

/// `name: value` lines of a request, separated by `; `, as they are sent.
fn as_sent(lines: &str) -> String {
    lines.split("; ").filter(|line| !line.is_empty()).map(|line| format!("{line}\r\n")).collect()
}

fn request(method: &str, path: &str, lines: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: registry\r\nAccept: */*\r\n{}\r\n", as_sent(lines))
}

/// Conditions and other header lines of a request, whether the answer is 304, and the lines that it adds to the
/// response. `{digest}` stands for the digest of the manifest.
const REQUESTS: [(&str, bool, &str); 21] = [
    ("", false, ""),
    ("User-Agent: containerd/2.1; Accept-Encoding: gzip; Accept: a/b", false, ""),
    ("If-None-Match: \"{digest}\"", true, ""),
    ("if-none-match: W/\"{digest}\"", true, ""),
    ("If-None-Match: *", true, ""),
    ("If-None-Match: \"x\", \"{digest}\"", true, ""),
    ("If-None-Match: \"x\" ,W/\"{digest}\",\"y\"", true, ""),
    ("If-None-Match: \"x\"; IF-NONE-MATCH: \"{digest}\"", true, ""),
    ("If-None-Match: \"{digest}\"; If-None-Match: \"x\"", true, ""),
    ("If-None-Match: \"x\"", false, ""),
    ("If-None-Match: {digest}", false, ""),
    ("If-None-Match: ", false, ""),
    ("If-None-Match: \"x\"; If-None-Match: \"y\"", false, ""),
    ("If-None-Match: \u{e9}; If-None-Match: \"{digest}\"", true, ""),
    ("If-Match: \"x\"; If-Modified-Since: Sun, 29 Nov 2026 05:45:33 GMT; Range: bytes=0-1", false, ""),
    ("X-Request-Id: from-the-client", false, "x-request-id: from-the-client"),
    ("X-Request-Id: from-the-client; If-None-Match: *", true, "x-request-id: from-the-client"),
    ("X-Request-Id: two words", false, ""),
    ("Authorization: Basic ZTpw; Via: 1.1 proxy; X-Forwarded-For: 10.0.0.1; Origin: http://ui.example", false, ""),
    ("Connection: keep-alive", false, ""),
    ("Connection: close", false, "connection: close"),
];

#[tokio::test]
async fn headers_are_complete_and_the_same_over_each_connection() {
    let (upstream, server, image) = pushed_and_mirrored().await;
    let docker = Image::docker(2, &[10]);
    upstream.add_image("org/docker", "v1", &docker);
    let authority = Authority::new();
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let encrypted = builder.config(&authority.config("one")).start().await;
    let client = Client::trusting(&authority.ca, None);
    client.push_image(&format!("https://{}", encrypted.addr()), "team/app", "v1", &image).await;
    assert_eq!((&*image.manifest.media_type, &*docker.manifest.media_type), (OCI_MANIFEST, DOCKER_MANIFEST));
    for (path, manifest, echo) in [
        ("/v2/team/app/manifests/{tag}", &image.manifest, ""),
        ("/v2/team/app/manifests/{digest}", &image.manifest, ""),
        ("/v2/org/app/manifests/{tag}", &image.manifest, ""),
        ("/v2/org/app/manifests/{digest}", &image.manifest, ""),
        ("/v2/docker.io/org/docker/manifests/{tag}", &docker.manifest, ""),
        ("/docker.io/v2/org/docker/manifests/{digest}", &docker.manifest, ""),
        ("/v2/org/app/manifests/{tag}?ns=docker.io", &image.manifest, "oci-namespace: docker.io"),
        ("/v2/org/app/manifests/{digest}?a=b&ns=docker%2Eio&ns=x", &image.manifest, "oci-namespace: docker.io"),
        ("/v2/team/app/manifests/{tag}?ns=registry:5000", &image.manifest, "oci-namespace: registry:5000"),
        ("/v2/team/app/manifests/{tag}?tag=x", &image.manifest, ""),
        ("/v2/org/%61pp/manifests/v%31", &image.manifest, ""),
        ("/v2/team/app/manifests/{encoded}", &image.manifest, ""),
    ] {
        let encoded = manifest.digest.replace(':', "%3A");
        let path = path.replace("{digest}", &manifest.digest).replace("{encoded}", &encoded).replace("{tag}", "v1");
        // From now on it is in memory.
        let first = request("GET", &path, "");
        assert_eq!(over_tcp(server.addr(), "", &first).await.status, "HTTP/1.1 200 OK", "{path}");
        let stream = tls(encrypted.addr(), &authority.ca, &["http/1.1"]).await.expect("a handshake");
        assert_eq!(exchange(stream, "", &first).await.status, "HTTP/1.1 200 OK", "{path}");
        for (lines, unchanged, added) in REQUESTS {
            let lines = lines.replace("{digest}", &manifest.digest);
            for method in ["GET", "HEAD"] {
                let is_head = method == "HEAD";
                let added: Vec<String> =
                    [added, echo].into_iter().filter(|line| !line.is_empty()).map(str::to_owned).collect();
                let expected = expected(manifest, unchanged, is_head, &added);
                let request = request(method, &path, &lines);
                assert_eq!(over_tcp(server.addr(), "", &request).await, expected, "{request}");
                assert_eq!(
                    over_tcp(server.addr(), ABSOLUTE_FORM, &request).await,
                    expected,
                    "not the first: {request}"
                );
                let stream = tls(encrypted.addr(), &authority.ca, &["http/1.1"]).await.expect("a handshake");
                assert_eq!(exchange(stream, "", &request).await, expected, "over TLS: {request}");
            }
        }
    }
    check_http2(&client, &encrypted, &image).await;
}

/// HTTP/2 has the same headers, except those that concern a connection.
async fn check_http2(client: &Client, server: &TestServer, image: &Image) {
    let etag = format!("\"{}\"", image.digest());
    for (path, echo) in
        [("/v2/team/app/manifests/v1", None), ("/v2/org/app/manifests/v1?ns=docker.io", Some("docker.io"))]
    {
        for method in ["GET", "HEAD"] {
            for (headers, unchanged) in [(&[("x-request-id", "mine")][..], false), (&[("if-none-match", &etag)], true)]
            {
                let url = format!("https://{}{path}", server.addr());
                let answer = client.send(method, &url, headers, "").await;
                let id = (!unchanged).then(|| "x-request-id: mine".to_owned());
                let echo = echo.map(|ns| format!("oci-namespace: {ns}"));
                let more: Vec<String> = id.into_iter().chain(echo).collect();
                let expected = expected(&image.manifest, unchanged, method == "HEAD", &more);
                let sent = answer.headers.iter().filter(|(name, _)| **name != DATE);
                let mut lines: Vec<_> =
                    sent.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
                lines.sort_unstable();
                assert_eq!((&lines, &answer.body[..]), (&expected.lines, &expected.body[..]), "{method} {url}");
                assert_eq!(answer.status, if unchanged { 304 } else { 200 });
            }
        }
    }
}

#[tokio::test]
async fn http_1_0_gets_the_same_headers() {
    let (_upstream, server, image) = pushed_and_mirrored().await;
    for path in ["/v2/team/app/manifests/v1", "/v2/org/app/manifests/v1"] {
        server.get(path).await;
        for (lines, more) in [("", ""), ("Host: registry", ""), ("Connection: keep-alive", "connection: keep-alive")] {
            for unchanged in [false, true] {
                let condition = if unchanged { "If-None-Match: *\r\n" } else { "" };
                let request = format!("GET {path} HTTP/1.0\r\n{}{condition}\r\n", as_sent(lines));
                let more: Vec<String> = Some(more.to_owned()).filter(|line| !line.is_empty()).into_iter().collect();
                let mut expected = expected(&image.manifest, unchanged, false, &more);
                expected.status = expected.status.replace("HTTP/1.1", "HTTP/1.0");
                assert_eq!(over_tcp(server.addr(), "", &request).await, expected, "{request}");
            }
        }
    }
}

#[tokio::test]
async fn a_stale_manifest_has_a_warning_in_each_response() {
    let (upstream, image) = (Upstream::start().await, Image::new(1, &[10]));
    upstream.add_image("org/app", "v1", &image);
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server = builder.config("[cache]\ntag_ttl = \"0s\"").start().await;
    let (by_tag, by_digest) = ("/v2/org/app/manifests/v1", format!("/v2/org/app/manifests/{}", image.digest()));
    assert_eq!(server.get(by_tag).await.status, 200);
    let warning = "warning: 299 - \"the upstream cannot be asked; this is what it last said\"".to_owned();
    for is_down in [true, false] {
        if is_down {
            upstream.go_down().await;
        } else {
            upstream.come_back().await;
            server.until_available("docker.io").await;
        }
        for method in ["GET", "HEAD"] {
            for (lines, unchanged) in [("", false), ("If-None-Match: *", true)] {
                let more = if is_down { vec![warning.clone()] } else { Vec::new() };
                let [stale, fresh] =
                    [more, Vec::new()].map(|more| expected(&image.manifest, unchanged, method == "HEAD", &more));
                let answered = over_tcp(server.addr(), "", &request(method, by_tag, lines)).await;
                assert_eq!(answered, stale, "{method} {lines}, down: {is_down}");
                let answered = over_tcp(server.addr(), "", &request(method, &by_digest, lines)).await;
                assert_eq!(answered, fresh, "a digest is never stale");
            }
        }
    }
}

#[tokio::test]
async fn configured_headers_are_added_to_each_response() {
    let headers = [
        ("REGISTRY_HTTP_HEADERS_Access-Control-Allow-Origin", "[http://ui.example]"),
        ("REGISTRY_HTTP_HEADERS_X-Two", "[one, two]"),
        // The response has these.
        ("REGISTRY_HTTP_HEADERS_Content-Type", "[text/plain]"),
        ("REGISTRY_HTTP_HEADERS_Etag", "['\"x\"']"),
    ];
    let server = ServerProcess::start_with(&std::env::temp_dir(), Settings::new(), &headers);
    let addr = SocketAddr::from(([127, 0, 0, 1], server.port()));
    let image = Image::new(1, &[10]);
    Client::new().push_image(&format!("http://{addr}"), "team/app", "v1", &image).await;
    for method in ["GET", "HEAD"] {
        for (lines, unchanged) in [("", false), ("If-None-Match: *", true)] {
            let mut more = ["access-control-allow-origin: http://ui.example", "x-two: one", "x-two: two"]
                .map(str::to_owned)
                .to_vec();
            if unchanged {
                more.push("content-type: text/plain".to_owned());
            }
            let expected = expected(&image.manifest, unchanged, method == "HEAD", &more);
            for first in ["", ABSOLUTE_FORM] {
                let answered = over_tcp(addr, first, &request(method, "/v2/team/app/manifests/v1", lines)).await;
                assert_eq!(answered, expected, "{method} {lines}");
            }
        }
    }
}
