//! Proxies from the environment: which upstream hosts are requested through them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::crypto::ring;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Image, Upstream};

/// A proxy on a loopback port that connects every host to one of two servers. It ends with the process.
struct Proxy {
    addr: SocketAddr,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start(plain: SocketAddr, tls: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self { addr: listener.local_addr().unwrap(), lines: Arc::default() };
        let lines = proxy.lines.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let lines = lines.clone();
                std::thread::spawn(move || pass(client, plain, tls, &lines));
            }
        });
        proxy
    }

    /// Method and target of each request.
    fn lines(&self) -> Vec<String> {
        self.lines.lock().clone()
    }
}

fn head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

fn pass(mut client: TcpStream, plain: SocketAddr, tls: SocketAddr, lines: &Mutex<Vec<String>>) {
    let Some(requested) = head(&mut client) else { return };
    let line = requested.split(" HTTP/").next().unwrap().to_owned();
    lines.lock().push(line.clone());
    if line.starts_with("CONNECT ") {
        let server = TcpStream::connect(tls).unwrap();
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
        let _ = std::io::copy(&mut client, &mut &server);
        let _ = server.shutdown(Shutdown::Write);
    } else {
        let _ = client.write_all(&ask(plain, &requested));
    }
}

/// Sends one request and reads until the server closes.
fn ask(server: SocketAddr, request: &str) -> Vec<u8> {
    let (method, rest) = request.split_once(' ').unwrap();
    let path = rest.find("/v2/").map(|at| &rest[at..]).unwrap();
    let mut server = TcpStream::connect(server).unwrap();
    server.write_all(format!("{method} {path}").as_bytes()).unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    let _ = server.read_to_end(&mut answer);
    answer
}

/// A TLS endpoint in front of a plain server, one request per connection.
fn tls_front(plain: SocketAddr) -> SocketAddr {
    let file = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("src/upstream/testdata").join(name);
    let chain = vec![CertificateDer::from_pem_file(file("server.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key);
    let config = Arc::new(config.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let config = config.clone();
            std::thread::spawn(move || {
                let mut tls = StreamOwned::new(ServerConnection::new(config).unwrap(), client);
                let Some(requested) = head(&mut tls) else { return };
                let _ = tls.write_all(&ask(plain, &requested));
                tls.conn.send_close_notify();
                let _ = tls.flush();
            });
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_proxies_are_used_except_for_loopback() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[2000]);
    upstream.add_image("org/app", "v1", &image);
    let proxy = Proxy::start(upstream.addr(), tls_front(upstream.addr()));
    let url = format!("http://{}", proxy.addr);
    let settings = Settings::new()
        .upstream_url("plain.test", "http://plain.test")
        .upstream_url("tls.test:8443", "https://tls.test:8443")
        .upstream_url("direct.test", "http://direct.test")
        .upstream("here.test", &upstream)
        .config("[upstream.\"tls.test:8443\"]\ninsecure_skip_verify = true");
    let variables =
        [("HTTP_PROXY", url.as_str()), ("HTTPS_PROXY", url.as_str()), ("NO_PROXY", "direct.test,.example.com")];
    let folder = tempfile::tempdir().unwrap();
    let server = ServerProcess::start_with(folder.path(), settings, &variables);
    let client = Client::new();
    let get = async |path: String| client.get(&server.url(&path)).await;
    for (name, line) in
        [("plain.test", "GET http://plain.test/v2/org/app/"), ("tls.test:8443", "CONNECT tls.test:8443")]
    {
        let before = proxy.lines().len();
        assert_eq!(get(format!("/v2/{name}/org/app/manifests/v1")).await.status, 200, "{name}");
        for blob in image.blobs() {
            let answer = get(format!("/v2/{name}/org/app/blobs/{}", blob.digest)).await;
            assert!(answer.status == 200 && answer.body == blob.bytes, "{name}");
        }
        let lines = proxy.lines().split_off(before);
        assert!(!lines.is_empty() && lines.iter().all(|seen| seen.starts_with(line)), "{name}: {lines:?}");
    }
    let before = proxy.lines().len();
    assert_eq!(get("/v2/here.test/org/app/manifests/v1".to_owned()).await.status, 200);
    let direct = get("/v2/direct.test/org/app/manifests/v1".to_owned()).await;
    assert!(direct.status >= 500, "the host does not exist without the proxy: {}", direct.status);
    assert_eq!(
        proxy.lines().len(),
        before,
        "neither loopback nor the hosts in NO_PROXY are requested through the proxy"
    );
}
