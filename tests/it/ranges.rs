//! Several ranges of one blob in one request (RFC 9110, 14.6), of stored blobs and of running fills.

use bytes::Bytes;

use crate::scene::{KIB, MIB, Scene};
use crate::support::{Conn, Ended, Gate};

/// The parts of a `multipart/byteranges` body: first and last offset, total, bytes.
fn parts(content_type: &str, body: &Bytes) -> Vec<(usize, usize, usize, Bytes)> {
    let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").expect("a multipart type");
    let open = format!("--{boundary}\r\n");
    let mut rest = body.clone();
    assert!(rest.starts_with(open.as_bytes()), "the body begins with its first part");
    let mut parts = Vec::new();
    loop {
        let _ = rest.split_to(open.len());
        let end = find(&rest, b"\r\n\r\n");
        let head = String::from_utf8(rest.split_to(end + 4).to_vec()).unwrap();
        let mut lines = head.trim_end().split("\r\n").collect::<Vec<_>>();
        lines.sort_unstable();
        let [range, kind] = lines[..] else { panic!("{lines:?}") };
        assert_eq!(kind, "Content-Type: application/octet-stream");
        let range = range.strip_prefix("Content-Range: bytes ").expect("a range");
        let (range, total) = range.split_once('/').unwrap();
        let (first, last) = range.split_once('-').unwrap();
        let number = |text: &str| text.parse::<usize>().unwrap();
        let bytes = rest.split_to(number(last) + 1 - number(first));
        parts.push((number(first), number(last), number(total), bytes));
        if rest[..] == *format!("\r\n--{boundary}--\r\n").as_bytes() {
            return parts;
        }
        assert_eq!(rest.split_to(2), "\r\n");
        assert!(rest.starts_with(open.as_bytes()), "a part is followed by a part or by the end");
    }
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|window| window == what).expect("the delimiter is present")
}

fn assert_parts(content_type: &str, body: &Bytes, whole: &Bytes, expected: &[(usize, usize)]) {
    let parts = parts(content_type, body);
    let ranges: Vec<_> = parts.iter().map(|(first, last, ..)| (*first, *last)).collect();
    assert_eq!(ranges, expected);
    for (first, last, total, bytes) in parts {
        assert_eq!(total, whole.len());
        assert!(bytes == whole[first..=last], "{first}-{last}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_a_stored_blob_come_as_parts_in_order() {
    let scene = Scene::with_blob(2048).await;
    scene.server.get(&scene.path()).await;
    scene.settle().await;
    scene.server.client().push_blob(&scene.server.url(""), "team/app", &scene.blob).await;
    for path in [scene.path(), scene.path().replace(crate::scene::REPO, "team/app")] {
        for (range, expected) in [
            ("bytes=0-9,100-199", &[(0, 9), (100, 199)][..]),
            ("bytes=1000-1099, 0-0 ,-5", &[(1000, 1099), (0, 0), (2043, 2047)]),
            ("bytes=0-9,9999-,20-29", &[(0, 9), (20, 29)]),
            ("bytes=2000-9999,0-1,9-8", &[(2000, 2047), (0, 1)]),
            ("bytes=0-99,50-149", &[(0, 99), (50, 149)]),
        ] {
            let answer = scene.server.get_with(&path, &[("Range", range)]).await;
            assert_eq!((answer.status, answer.header("content-range")), (206, ""), "{range}");
            assert_eq!(answer.header("content-length"), answer.body.len().to_string(), "{range}");
            assert_parts(answer.header("content-type"), &answer.body, scene.bytes(), expected);
        }
        // A single satisfiable range is a plain 206.
        let one = scene.server.get_with(&path, &[("Range", "bytes=5-6,3000-")]).await;
        assert_eq!(
            (one.status, one.header("content-range"), &one.body[..]),
            (206, "bytes 5-6/2048", &scene.bytes()[5..7])
        );
        let none = scene.server.get_with(&path, &[("Range", "bytes=3000-,-0")]).await;
        assert_eq!((none.status, none.header("content-range")), (416, "bytes */2048"));
        let many = |count: usize| format!("bytes={}", vec!["0-0"; count].join(","));
        for (what, range) in
            [("more bytes than the blob", "bytes=0-,0-99,5-"), ("too many", &many(257)), ("nonsense", "bytes=0-1,x")]
        {
            let answer = scene.server.get_with(&path, &[("Range", range)]).await;
            assert_eq!((answer.status, &answer.body), (200, scene.bytes()), "{what}");
            assert_eq!(answer.header("content-type"), "application/octet-stream");
        }
        let answer = scene.server.get_with(&path, &[("Range", &many(256))]).await;
        assert_parts(answer.header("content-type"), &answer.body, scene.bytes(), &[(0, 0); 256]);
        let etag = format!("\"{}\"", scene.blob.digest);
        for (condition, status) in [(etag.as_str(), 206), ("\"other\"", 200), ("W/\"x\"", 200)] {
            let headers = [("Range", "bytes=0-1,5-6"), ("If-Range", condition)];
            assert_eq!(scene.server.get_with(&path, &headers).await.status, status, "{condition}");
        }
    }
    assert_eq!(scene.fetches(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_a_running_fill_come_as_parts_or_completely() {
    let scene = Scene::with_blob(4 * MIB).await;
    let gate = Gate::new();
    let scripted = crate::support::Reply::normal().wait_after(2 * MIB as u64, &gate);
    scene.upstream.script("GET", &scene.path(), [scripted]);
    let here = 2 * MIB;
    let mut first = Conn::get(scene.server.addr(), &scene.path()).await;
    assert!(first.take(here).await == scene.bytes()[..here]);
    let range = format!("bytes={}-{},0-9,{}-{}", MIB, MIB + KIB - 1, here - 10, here - 1);
    let below = scene.server.get_with(&scene.path(), &[("Range", &range)]).await;
    assert_eq!((below.status, below.header("content-length")), (206, &*below.body.len().to_string()));
    let expected = [(MIB, MIB + KIB - 1), (0, 9), (here - 10, here - 1)];
    assert_parts(below.header("content-type"), &below.body, scene.bytes(), &expected);

    let range = format!("bytes=0-9,{}-{}", here - 1, here);
    let mut beyond = Conn::get_with(scene.server.addr(), &scene.path(), &[("Range", &range)]).await;
    assert_eq!(
        (beyond.status, beyond.header("content-length")),
        (200, "4194304"),
        "one of the ranges has not arrived yet"
    );
    let unsatisfiable = scene.server.get_with(&scene.path(), &[("Range", "bytes=4194304-,9999999-")]).await;
    assert_eq!((unsatisfiable.status, unsatisfiable.header("content-range")), (416, "bytes */4194304"));
    gate.open();
    assert!(beyond.rest().await == (scene.bytes().clone(), Ended::Complete));
    assert!(first.rest().await.0 == scene.bytes()[here..]);
    assert_eq!(scene.fetches(), 1);
    scene.settle().await;
}
