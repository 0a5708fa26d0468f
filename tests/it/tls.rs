//! TLS of the server: certificates of server and clients, and clients without TLS.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::scene::until;
use crate::support::http2::tls;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Authority, Client, Image, TestServer, Upstream};

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
