//! Lazy pulling (stargz, SOCI, nydus): many small ranges of a large blob that is not stored yet.

use bytes::Bytes;
use futures_util::future::join_all;

use crate::scene::{KIB, MIB, Scene, settle};
use crate::support::{Conn, Gate, Reply, TestServer, Upstream, digest_of, random_bytes};

const GIB: u64 = 1 << 30;
const CONNECTIONS: usize = 8;
const RANGES: usize = 200;

/// First and last byte of a random range of up to 64 KiB.
fn piece(random: &mut fastrand::Rng, total: usize) -> (usize, usize) {
    let first = random.usize(..total);
    (first, (first + random.usize(..64 * KIB)).min(total - 1))
}

/// Whether the response to these ranges is correct: one part, several parts, or the complete blob.
fn is_right(content_type: &str, status: u16, body: &Bytes, whole: &Bytes, ranges: &[(usize, usize)]) -> bool {
    if status == 200 {
        return body == whole;
    }
    let Some(boundary) = content_type.strip_prefix("multipart/byteranges; boundary=") else {
        return ranges.len() == 1 && body[..] == whole[ranges[0].0..=ranges[0].1];
    };
    let mut expected = Vec::new();
    for (first, last) in ranges {
        let head = format!("--{boundary}\r\nContent-Type: application/octet-stream\r\n");
        expected.extend_from_slice(head.as_bytes());
        let range = format!("Content-Range: bytes {first}-{last}/{}\r\n\r\n", whole.len());
        expected.extend_from_slice(range.as_bytes());
        expected.extend_from_slice(&whole[*first..=*last]);
        expected.extend_from_slice(b"\r\n");
    }
    expected.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    body[..] == expected
}

#[tokio::test(flavor = "multi_thread")]
async fn many_ranges_of_a_cold_blob_fetch_it_about_once() {
    let scene = Scene::with_blob(64 * MIB).await;
    let slowly = Reply::normal().pace(48 * MIB as u64);
    scene.upstream.script("GET", &scene.path(), [slowly]);
    let reader = async |reader: usize| {
        let mut random = fastrand::Rng::with_seed(reader as u64);
        for turn in 0..RANGES / CONNECTIONS {
            // During the fill, several ranges may be answered with the complete blob. The end is late, so most ranges come before.
            let pieces = if turn >= 20 && turn % 4 == 0 { 3 } else { 1 };
            let ranges: Vec<_> = (0..pieces).map(|_| piece(&mut random, 64 * MIB)).collect();
            let text: Vec<_> = ranges.iter().map(|(first, last)| format!("{first}-{last}")).collect();
            let range = format!("bytes={}", text.join(","));
            let answer = scene.server.get_with(&scene.path(), &[("Range", &range)]).await;
            let right = is_right(answer.header("content-type"), answer.status, &answer.body, scene.bytes(), &ranges);
            assert!(right, "{reader} {turn} {range}: {}", answer.status);
            assert!(answer.status == 206 || pieces > 1, "a single range never gets the complete blob");
        }
    };
    join_all((0..CONNECTIONS).map(reader)).await;
    scene.settle().await;
    assert!(scene.is_stored());
    let (sent, blob) = (scene.upstream.bytes_sent(), 64 * MIB as u64);
    assert!(sent >= blob && sent * 2 <= blob * 3, "{sent} bytes for {blob}");
    // From now on no range causes an upstream request.
    let before = scene.upstream.total();
    reader(99).await;
    assert_eq!(scene.upstream.total(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_footer_of_a_large_blob_arrives_before_the_rest() {
    let total = 5 * GIB;
    let footer = random_bytes(7, 64 * KIB);
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    let path = format!("/v2/library/app/blobs/{}", digest_of(b"never read completely"));
    let (body, stuck) = (footer.clone(), gate.clone());
    upstream.behave(move |seen| {
        let range = seen.header("range");
        if range.is_empty() {
            let beginning = Reply::status(200).header("Content-Type", "application/octet-stream");
            return Some(beginning.body(random_bytes(8, MIB)).declare_length(total).wait_after(64, &stuck));
        }
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        let start = total - body.len() as u64;
        let part = body.slice((first - start) as usize..=(last - start) as usize);
        let range = format!("bytes {first}-{last}/{total}");
        Some(Reply::status(206).header("Content-Range", &range).body(part))
    });
    let config = "[cache]\nmin_free = \"0B\"\nmax_size = \"100GiB\"";
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server = builder.config(config).start().await;
    for (range, part) in [
        ("bytes=-65536".to_owned(), footer.clone()),
        (format!("bytes={}-{}", total - 51, total - 1), footer.slice(64 * KIB - 51..)),
        (format!("bytes={}-", total - 10), footer.slice(64 * KIB - 10..)),
    ] {
        let mut conn = Conn::get_with(server.addr(), &path, &[("Range", &range)]).await;
        assert_eq!(conn.status, 206, "{range}");
        assert!(conn.header("content-range").ends_with(&format!("-{}/{total}", total - 1)), "{range}");
        assert!(conn.take(part.len()).await == part, "{range}");
    }
    gate.reached(1).await;
    let whole = |seen: &&crate::support::wire::Seen| seen.header("range").is_empty();
    assert!(upstream.requests().iter().filter(whole).count() <= 3, "{}", upstream.total());
    assert!(upstream.bytes_sent() < 8 * MIB as u64, "the footer was served without the bytes before it");
    gate.open();
    settle(&server).await;
}
