//! HTTPS clients, many at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Builder;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::support::tests::http2;

const BUFFER_BYTES: usize = 64 << 10;

/// This many clients, each with its own connection, request the same path at the same moment. Returns the time of each
/// last byte. Each client compares each byte.
pub fn together(clients: usize, address: SocketAddr, ca: &str, path: &str, expected: &bytes::Bytes) -> Vec<Duration> {
    let runtime = Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (start, mut running) = (Arc::new(Barrier::new(clients)), JoinSet::new());
        for _ in 0..clients {
            running.spawn(get(address, ca.to_owned(), path.to_owned(), expected.clone(), start.clone()));
        }
        running.join_all().await
    })
}

async fn get(address: SocketAddr, ca: String, path: String, expected: bytes::Bytes, start: Arc<Barrier>) -> Duration {
    let mut stream = http2::tls(address, &ca, &["http/1.1"]).await.expect("a handshake");
    start.wait().await;
    let begun = Instant::now();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("the server reads");
    let (mut buffer, mut filled) = (vec![0; BUFFER_BYTES], 0);
    let head = loop {
        let read = stream.read(&mut buffer[filled..]).await.expect("response headers arrive");
        assert!(read > 0, "incomplete headers: {:?}", String::from_utf8_lossy(&buffer[..filled]));
        filled += read;
        if let Some(end) = buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    assert!(buffer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&buffer[..head]));
    let (mut from, mut at) = (head, 0);
    loop {
        let bytes = &buffer[from..filled];
        assert!(expected[at..].starts_with(bytes), "the bytes are correct");
        at += bytes.len();
        if at == expected.len() {
            return begun.elapsed();
        }
        (from, filled) = (0, stream.read(&mut buffer).await.expect("the body goes on"));
        assert!(filled > 0, "the body is complete");
    }
}
