//! TLS of the server: certificates of server and clients, and clients without TLS.

use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::scene::{blob, blob_path, until};
use crate::support::http2::tls;
use crate::support::metrics::Metrics;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::wire::read_headers;
use crate::support::{Authority, Client, Content, Image, TestServer, Upstream, digest_of};

const TEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The current certificate of the server, in DER.
async fn shown(server: &TestServer, authority: &Authority) -> Vec<u8> {
    let stream = tls(server.addr(), &authority.ca, &["http/1.1"]).await.expect("a handshake");
    let certificates = stream.get_ref().1.peer_certificates().expect("a certificate");
    certificates[0].to_vec()
}

fn https(server: &TestServer, path: &str) -> String {
    format!("https://{}{path}", server.addr())
}

#[tokio::test]
async fn clients_that_trust_the_certificate_push_and_pull() {
    let (authority, other) = (Authority::new(), Authority::new());
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[300_000]);
    upstream.add_image("library/a", "1", &image);
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server = builder.config(&authority.config("one")).start().await;
    let client = Client::trusting(&authority.ca, None);
    client.push_image(&https(&server, ""), "team/app", "1", &image).await;
    for repository in ["team/app", "library/a"] {
        let url = https(&server, &format!("/v2/{repository}/blobs/{}", image.layers[0].digest));
        assert_eq!(client.get(&url).await.body, image.layers[0].bytes);
    }
    let refused = Client::trusting(&other.ca, None).try_send("GET", &https(&server, "/v2/"), &[], "").await;
    assert!(refused.is_err(), "{refused:?}");
}

#[tokio::test]
async fn a_new_certificate_is_loaded_and_a_broken_one_ignored() {
    let authority = Authority::new();
    let server = TestServer::builder().config(&authority.config("one")).start().await;
    let first = shown(&server, &authority).await;
    assert_eq!(shown(&server, &authority).await, first);

    authority.config("two");
    until("the second certificate is shown", async || shown(&server, &authority).await != first).await;
    let second = shown(&server, &authority).await;

    // With a key of another certificate, a truncated file or none, the server keeps its certificate.
    authority.write("tls.key", &authority.sign("three").key);
    authority.write("tls.crt", "-----BEGIN CERTIFICATE-----\nMIIB");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(shown(&server, &authority).await, second);

    authority.config("four");
    until("the fourth certificate is shown", async || shown(&server, &authority).await != second).await;
}

#[tokio::test]
async fn a_broken_certificate_is_logged_once() {
    let authority = Authority::new();
    let process = ServerProcess::start(Settings::new().config(&authority.config("one")));
    // The port is open before any file is read.
    let addr = ([127, 0, 0, 1], process.port()).into();
    tls(addr, &authority.ca, &[]).await.expect("a handshake");
    // A server that waited for a pipe would never reload the files.
    let key = authority.write("tls.key", "");
    std::fs::remove_file(&key).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&key).status().unwrap().success());
    until("a pipe is refused", async || process.log().contains("tls.key: is not a file")).await;
    std::fs::remove_file(&key).unwrap();
    authority.config("two");
    until("the second certificate is taken", async || process.log().contains("took the new certificate")).await;
    let before = process.log().matches("the certificate stays as it is").count();
    authority.write("tls.crt", "nothing");
    let failures = || process.log().matches("the certificate stays as it is").count() - before;
    process.log().matches("the certificate stays as it is").count();
    until("the failure is logged", async || failures() == 1).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(failures(), 1, "{}", process.log());
}

#[tokio::test]
async fn clients_need_a_certificate_of_the_client_authority() {
    let (authority, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let client_ca = authority.write("clients.pem", &clients.ca);
    let config = format!("{}client_ca = {client_ca:?}\n", authority.config("server"));
    let server = TestServer::builder().config(&config).start().await;
    let url = https(&server, "/v2/");
    let with = |own: Option<&str>| Client::trusting(&authority.ca, own);
    assert_eq!(with(Some(&clients.sign("ann").identity())).get(&url).await.status, 200);
    for own in [None, Some(others.sign("mallory").identity())] {
        let refused = with(own.as_deref()).try_send("GET", &url, &[], "").await;
        assert!(refused.is_err(), "{refused:?}");
    }
}

#[tokio::test]
async fn unusable_tls_files_stop_the_start_with_one_line() {
    let authority = Authority::new();
    let good = authority.config("one");
    for (file, content, wrong) in [
        ("tls.crt", String::new(), "tls.crt contains no certificate"),
        ("tls.key", authority.sign("two").key, "tls.key: the key does not belong to the certificate in "),
        ("tls.key", "none".to_owned(), "tls.key must contain a private key, but it does not"),
        (
            "tls.crt",
            authority.sign("two").cert[..200].to_owned(),
            "must contain a certificate, but it ends in the middle",
        ),
    ] {
        authority.config("one");
        authority.write(file, &content);
        let data = tempfile::tempdir().unwrap();
        let config = Settings::new().config(&good).data_dir(data.path()).to_toml();
        let file = data.path().join("roadstead.toml");
        std::fs::write(&file, &config).unwrap();
        let checked = std::process::Command::new(env!("CARGO_BIN_EXE_roadstead"))
            .args(["check", "--config", file.to_str().unwrap()])
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&checked.stderr);
        assert!(!checked.status.success() && message.contains(wrong), "check: {message}");
        let config = roadstead::config::Config::from_toml(&config, "test").unwrap();
        let error = roadstead::server::start(config).await.err().expect("no start").to_string();
        assert!(error.contains("[server.tls]") && error.contains(wrong), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[tokio::test]
async fn plain_http_on_the_tls_port_gets_an_http_error() {
    let authority = Authority::new();
    let server = TestServer::builder().config(&authority.config("one")).start().await;
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut response = Vec::new();
    let _ = timeout(TEST_TIMEOUT, stream.read_to_end(&mut response)).await.expect("the connection is closed");
    let response = String::from_utf8_lossy(&response);
    assert!(response.starts_with("HTTP/1.1 400 ") && response.contains("HTTPS"), "{response}");
}

#[tokio::test]
async fn an_unfinished_handshake_ends_at_its_deadline() {
    let authority = Authority::new();
    let config = format!("{}[server]\nhead_timeout = \"1s\"", authority.config("one"));
    let server = TestServer::builder().config(&config).start().await;
    let mut silent = TcpStream::connect(server.addr()).await.unwrap();
    let mut response = Vec::new();
    let _ = timeout(TEST_TIMEOUT, silent.read_to_end(&mut response)).await.expect("the connection is closed");
    // A byte now and then does not restart the clock.
    let mut dripping = TcpStream::connect(server.addr()).await.unwrap();
    let drip = async {
        for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc".iter().chain(std::iter::repeat(&0)) {
            if dripping.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TEST_TIMEOUT, drip).await.expect("the server closes");
}

/// A server with a blob of this length in `team/app`, and the path of the blob.
async fn with_blob(length: usize, more: &str) -> (Authority, TestServer, Client, Content, String) {
    let authority = Authority::new();
    let server = TestServer::builder().config(&format!("{}{more}", authority.config("one"))).start().await;
    let (client, content) = (Client::trusting(&authority.ca, None), blob(1, length));
    client.push_blob(&https(&server, ""), "team/app", &content).await;
    let path = blob_path("team/app", &content);
    (authority, server, client, content, path)
}

/// The status and the body of the next response on a connection.
async fn response(stream: &mut (impl AsyncBufRead + Unpin)) -> (u16, Vec<u8>) {
    let mut status = String::new();
    stream.read_line(&mut status).await.expect("a status line");
    let headers = read_headers(stream).await.expect("headers");
    let length = headers.get("content-length").map_or(0, |length| length.to_str().unwrap().parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.expect("a complete body");
    (status.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status"), body)
}

#[tokio::test]
async fn one_encrypted_connection_mixes_pipelined_pulls_and_pushes() {
    let (authority, server, _client, content, path) = with_blob(3_000_000, "").await;
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n");
    let pushed = "x".repeat(50);
    let digest = digest_of(pushed.as_bytes());
    let push =
        format!("POST /v2/team/app/blobs/uploads/?digest={digest} HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n");
    let part = get(&path, "Range: bytes=100000-199999\r\n");
    let fresh = get(&format!("/v2/team/app/blobs/{digest}"), "Connection: close\r\n");
    let all = [&get("/v2/", ""), &get(&path, ""), &part, &push, &pushed, &get(&path, ""), &fresh]
        .map(String::as_str)
        .concat();
    let mut stream = BufReader::new(tls(server.addr(), &authority.ca, &["http/1.1"]).await.unwrap());
    stream.write_all(all.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(response(&mut stream).await, (200, b"{}".to_vec()));
    assert!(response(&mut stream).await == (200, content.bytes.to_vec()));
    assert!(response(&mut stream).await == (206, content.bytes[100_000..200_000].to_vec()));
    assert_eq!(response(&mut stream).await.0, 201);
    assert!(response(&mut stream).await == (200, content.bytes.to_vec()));
    assert_eq!(response(&mut stream).await, (200, pushed.into_bytes()));
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "the server closes with a message of TLS");
}

#[tokio::test]
async fn an_encrypted_connection_without_a_request_ends_at_its_deadline() {
    let authority = Authority::new();
    let config = format!("{}[server]\nhead_timeout = \"300ms\"\nkeep_alive = \"300ms\"", authority.config("one"));
    let server = TestServer::builder().config(&config).start().await;
    for (sent, answered) in [("", ""), ("GET /v2/ HTTP/1.1\r\nHo", ""), ("GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", "{}")]
    {
        let mut stream = tls(server.addr(), &authority.ca, &["http/1.1"]).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        // The server may close without a message of TLS, which is an error.
        let _ = timeout(TEST_TIMEOUT, stream.read_to_end(&mut response)).await.expect("the connection is closed");
        let response = String::from_utf8_lossy(&response);
        assert!(response.ends_with(answered) && response.is_empty() == answered.is_empty(), "{sent:?}: {response}");
    }
}

#[tokio::test]
async fn a_client_that_stops_reading_is_disconnected_with_tls() {
    let (authority, server, client, _content, path) =
        with_blob(32 << 20, "[server]\nprogress_timeout = \"300ms\"").await;
    let mut stream = tls(server.addr(), &authority.ca, &["http/1.1"]).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    stream.read_exact(&mut [0; 1000]).await.unwrap();
    let in_flight = async || {
        let metrics = client.get(&https(&server, "/metrics")).await;
        Metrics::parse(metrics.text()).sum("registry_http_in_flight_requests", &[("handler", "blob")])
    };
    until("no request is in flight", async || in_flight().await == 0.0).await;
    drop(stream);
}

#[tokio::test]
async fn a_client_that_ends_its_side_gets_every_encrypted_response() {
    let (authority, server, _client, content, path) = with_blob(100_000, "").await;
    let mut stream = tls(server.addr(), &authority.ca, &["http/1.1"]).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").repeat(3).as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut stream = BufReader::new(stream);
    for _ in 0..3 {
        assert!(response(&mut stream).await == (200, content.bytes.to_vec()));
    }
}

#[tokio::test]
async fn expiry_of_the_certificate_is_a_metric() {
    let authority = Authority::new();
    let server = TestServer::builder().config(&authority.config("first")).start().await;
    let client = Client::trusting(&authority.ca, None);
    let expiry = async || {
        let answer = client.get(&https(&server, "/metrics")).await;
        let line =
            answer.text().lines().find(|line| line.starts_with("roadstead_certificate_expiry")).unwrap().to_owned();
        line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
    };
    // rcgen's certificates end on 4096-01-01.
    assert_eq!(expiry().await, 67_090_118_400.0);
}
