//! TLS of our own: who may connect, with which certificate, and what else may knock at such a port.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::scene::until;
use crate::support::http2::tls;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Authority, Client, Image, TestServer, Upstream};

const PATIENCE: Duration = Duration::from_secs(10);

/// The certificate that the server shows now, in DER.
async fn shown(server: &TestServer, authority: &Authority) -> Vec<u8> {
    let stream = tls(server.addr(), &authority.ca, &["http/1.1"]).await.expect("a handshake");
    let certificates = stream.get_ref().1.peer_certificates().expect("a certificate");
    certificates[0].to_vec()
}

fn https(server: &TestServer, path: &str) -> String {
    format!("https://{}{path}", server.addr())
}

#[tokio::test]
async fn pushes_and_pulls_go_over_tls_to_who_trusts_the_certificate() {
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
async fn a_new_certificate_is_taken_while_serving_and_a_broken_one_is_not() {
    let authority = Authority::new();
    let server = TestServer::builder().config(&authority.config("one")).start().await;
    let first = shown(&server, &authority).await;
    assert_eq!(shown(&server, &authority).await, first);

    authority.config("two");
    until("the second certificate is shown", async || shown(&server, &authority).await != first).await;
    let second = shown(&server, &authority).await;

    // A key that is not the certificate's, half a file, none: the server goes on with what it has.
    authority.write("tls.key", &authority.sign("three").key);
    authority.write("tls.crt", "-----BEGIN CERTIFICATE-----\nMIIB");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(shown(&server, &authority).await, second);

    authority.config("four");
    until("the fourth certificate is shown", async || shown(&server, &authority).await != second).await;
}

#[tokio::test]
async fn a_broken_certificate_is_said_once() {
    let authority = Authority::new();
    let process = ServerProcess::start(Settings::new().config(&authority.config("one")));
    // Its port is open before it has read anything.
    let addr = ([127, 0, 0, 1], process.port()).into();
    tls(addr, &authority.ca, &[]).await.expect("a handshake");
    // Who waits for a pipe would never see the files again.
    let key = authority.write("tls.key", "");
    std::fs::remove_file(&key).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&key).status().unwrap().success());
    until("a pipe is refused", async || process.log().contains("tls.key: is not a file")).await;
    std::fs::remove_file(&key).unwrap();
    authority.config("two");
    until("the second certificate is taken", async || process.log().contains("took the new certificate")).await;
    let before = process.log().matches("the certificate stays as it is").count();
    authority.write("tls.crt", "nothing");
    let said = || process.log().matches("the certificate stays as it is").count() - before;
    process.log().matches("the certificate stays as it is").count();
    until("it is said", async || said() == 1).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(said(), 1, "{}", process.log());
}

#[tokio::test]
async fn only_clients_with_a_certificate_of_the_client_authority_may_connect() {
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
async fn files_that_cannot_be_used_stop_the_start_with_one_line() {
    let authority = Authority::new();
    let good = authority.config("one");
    for (file, content, wrong) in [
        ("tls.crt", String::new(), "tls.crt has no certificate"),
        ("tls.key", authority.sign("two").key, "tls.key: the key does not belong to the certificate in "),
        ("tls.key", "none".to_owned(), "tls.key is to hold a private key, and has none"),
        (
            "tls.crt",
            authority.sign("two").cert[..200].to_owned(),
            "is to hold a certificate, and breaks off in the middle",
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
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(!checked.status.success() && said.contains(wrong), "check: {said}");
        let config = roadstead::config::Config::from_toml(&config, "test").unwrap();
        let error = roadstead::server::start(config).await.err().expect("no start").to_string();
        assert!(error.contains("[server.tls]") && error.contains(wrong), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[tokio::test]
async fn plain_http_to_the_port_is_told_so_in_http() {
    let authority = Authority::new();
    let server = TestServer::builder().config(&authority.config("one")).start().await;
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("it is closed");
    let said = String::from_utf8_lossy(&said);
    assert!(said.starts_with("HTTP/1.1 400 ") && said.contains("HTTPS"), "{said}");
}

#[tokio::test]
async fn a_handshake_that_is_never_finished_holds_its_place_until_its_deadline() {
    let authority = Authority::new();
    let config = format!("{}[server]\nmax_connections = 1\nhead_timeout = \"1s\"", authority.config("one"));
    let server = TestServer::builder().config(&config).start().await;
    let mut silent = TcpStream::connect(server.addr()).await.unwrap();
    let (client, url) = (Client::trusting(&authority.ca, None), https(&server, "/v2/"));
    let waiting = tokio::spawn(async move { client.get(&url).await.status });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished(), "the only place is taken");
    let mut said = Vec::new();
    let _ = timeout(PATIENCE, silent.read_to_end(&mut said)).await.expect("it is closed");
    assert_eq!(timeout(PATIENCE, waiting).await.expect("its turn comes").unwrap(), 200);
    // One that drips does not begin the clock anew.
    let mut dripping = TcpStream::connect(server.addr()).await.unwrap();
    let drip = async {
        for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc".iter().chain(std::iter::repeat(&0)) {
            if dripping.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, drip).await.expect("the server closes");
}
