//! Every answer of an upstream to HEAD and GET, for every kind of content and every state of the cache, and the one
//! right answer to the client.
//!
//! The right answers follow from four rules. Stored and fresh content needs no upstream. Only a GET decides that
//! content does not exist. A refusal or a contradiction is a failure, which is answered from the cache or with 5xx,
//! never with 404. Content that is stored or can be fetched is served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::ready;
use futures_util::{StreamExt, stream};

use crate::support::{Answer, Image, Reply, TestServer, Upstream};

/// Cells of the table that are tried at the same time.
const CONCURRENT_CELLS: usize = 48;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    Ok,
    OkWithoutDigest,
    OkWithoutLength,
    OkWithLengthZero,
    /// Another digest, whose manifest is not there: a tag that has moved too early, or a lagging replica.
    OkElsewhere,
    /// 401 with a challenge, for every token.
    Unauthorized,
    BrokenChallenge,
    Forbidden,
    NotFound,
    NotAllowed,
    Failed,
    Unavailable,
    HangUp,
    /// A redirect to storage that answers 403.
    RefusedByStorage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Get {
    Ok,
    /// The bytes have the right digest, and the headers contradict it.
    OkWithWrongLabels,
    NotFound,
    Forbidden,
    BrokenChallenge,
    Failed,
    HangUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Object {
    Tag,
    Manifest,
    Blob,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cache {
    Cold,
    Fresh,
    /// Older than `tag_ttl`.
    Stale,
    /// Stored for a repository of another upstream.
    Elsewhere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    Content,
    /// The content with `Warning: 299`.
    Stale,
    /// 404.
    Absent,
    /// 502, 503 or 504.
    Trouble,
}

const HEADS: [Head; 14] = [
    Head::Ok,
    Head::OkWithoutDigest,
    Head::OkWithoutLength,
    Head::OkWithLengthZero,
    Head::OkElsewhere,
    Head::Unauthorized,
    Head::BrokenChallenge,
    Head::Forbidden,
    Head::NotFound,
    Head::NotAllowed,
    Head::Failed,
    Head::Unavailable,
    Head::HangUp,
    Head::RefusedByStorage,
];
const GETS: [Get; 7] =
    [Get::Ok, Get::OkWithWrongLabels, Get::NotFound, Get::Forbidden, Get::BrokenChallenge, Get::Failed, Get::HangUp];

impl Head {
    /// The upstream says that the content exists.
    fn exists(self) -> bool {
        matches!(
            self,
            Self::Ok | Self::OkWithoutDigest | Self::OkWithoutLength | Self::OkWithLengthZero | Self::OkElsewhere
        )
    }

    fn reply(self, upstream: &Upstream, storage: &Upstream, other: &str) -> Reply {
        let refused = |status| Reply::error(status, "DENIED");
        match self {
            Self::Ok => Reply::normal(),
            Self::OkWithoutDigest => Reply::normal().without_digest(),
            Self::OkWithoutLength => Reply::normal().chunked(),
            Self::OkWithLengthZero => Reply::normal().header("Content-Length", "0"),
            Self::OkElsewhere => Reply::normal().header("Docker-Content-Digest", other),
            Self::Unauthorized => {
                let challenge = format!("Bearer realm=\"{}\",service=\"s\"", upstream.url("/token"));
                refused(401).header("WWW-Authenticate", &challenge)
            }
            Self::BrokenChallenge => broken_challenge(),
            Self::Forbidden => refused(403),
            Self::NotFound => Reply::error(404, "MANIFEST_UNKNOWN"),
            Self::NotAllowed => refused(405),
            Self::Failed => Reply::error(500, "UNKNOWN"),
            Self::Unavailable => Reply::error(503, "UNAVAILABLE"),
            Self::HangUp => Reply::hang_up(),
            Self::RefusedByStorage => Reply::redirect(&storage.url("/signed-for-get")),
        }
    }
}

impl Get {
    fn reply(self) -> Reply {
        match self {
            Self::Ok => Reply::normal(),
            Self::OkWithWrongLabels => Reply::normal().header("Content-Encoding", "aws-chunked").without_digest(),
            Self::NotFound => Reply::error(404, "MANIFEST_UNKNOWN"),
            Self::Forbidden => Reply::error(403, "DENIED"),
            Self::BrokenChallenge => broken_challenge(),
            Self::Failed => Reply::error(500, "UNKNOWN"),
            Self::HangUp => Reply::hang_up(),
        }
    }

    /// The answer to a client if it depends on this GET alone, and the reason.
    fn decides(self) -> (Right, &'static str) {
        match self {
            Self::Ok | Self::OkWithWrongLabels => (Right::Content, "the GET has it, and the digest is right"),
            Self::NotFound => (Right::Absent, "a GET is answered 404"),
            Self::Forbidden => (Right::Absent, "an anonymous GET is denied, as registries do where there is nothing"),
            Self::BrokenChallenge => (Right::Trouble, "what cannot be asked is not known to be absent"),
            Self::Failed | Self::HangUp => (Right::Trouble, "an outage is not an absence"),
        }
    }
}

fn broken_challenge() -> Reply {
    let challenge = "Bearer realm=\"https://registry.example:443:443/token\"";
    Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", challenge)
}

fn right(head: Head, get: Get, object: Object, cache: Cache) -> (Right, &'static str) {
    match (object, cache) {
        (_, Cache::Fresh) => (Right::Content, "it is here and fresh"),
        (Object::Manifest | Object::Blob, Cache::Stale) => (Right::Content, "what a digest names does not change"),
        (Object::Tag, Cache::Cold | Cache::Elsewhere) | (_, Cache::Cold) => get.decides(),
        (_, Cache::Elsewhere) if head.exists() && head != Head::OkElsewhere => {
            (Right::Content, "the HEAD proves that this repository has it")
        }
        (_, Cache::Elsewhere) => get.decides(),
        (Object::Tag, Cache::Stale) => match (head, get.decides()) {
            (Head::Ok | Head::OkWithoutLength | Head::OkWithLengthZero, _) => {
                (Right::Content, "the HEAD confirms the cached manifest")
            }
            (_, (Right::Content, why)) => (Right::Content, why),
            (head, (Right::Absent, _)) if head.exists() => (Right::Stale, "the upstream contradicts itself"),
            (_, (Right::Absent, why)) => (Right::Absent, why),
            (_, (_, why)) => (Right::Stale, why),
        },
    }
}

struct Cell {
    number: usize,
    head: Head,
    get: Get,
    object: Object,
    cache: Cache,
    image: Image,
}

impl Cell {
    /// Each cell has an upstream name of its own, so that no circuit breaker is shared.
    fn upstream(&self) -> String {
        format!("cell{}.example", self.number)
    }

    fn repository(&self) -> String {
        format!("org/cell{}", self.number)
    }

    fn path(&self, upstream: &str) -> String {
        let digest = match self.object {
            Object::Tag => "manifests/1".to_owned(),
            Object::Manifest => format!("manifests/{}", self.image.digest()),
            Object::Blob => format!("blobs/{}", self.image.layers[0].digest),
        };
        format!("/v2/{upstream}/{}/{digest}", self.repository())
    }

    fn content(&self) -> &[u8] {
        match self.object {
            Object::Tag | Object::Manifest => &self.image.manifest.bytes,
            Object::Blob => &self.image.layers[0].bytes,
        }
    }

    fn check(&self, answer: &Answer) -> Option<String> {
        let (right, why) = right(self.head, self.get, self.object, self.cache);
        let content = answer.status == 200 && answer.body == self.content();
        let given = match (content, answer.header("warning").is_empty(), answer.status) {
            (true, true, _) => Some(Right::Content),
            (true, false, _) => Some(Right::Stale),
            (false, _, 404) => Some(Right::Absent),
            (false, _, 502..=504) => Some(Right::Trouble),
            _ => None,
        };
        let Self { head, get, object, cache, .. } = self;
        (given != Some(right)).then(|| {
            let text = answer.text();
            format!("{object:?}, {cache:?}, HEAD {head:?}, GET {get:?}: {given:?} instead of {right:?} ({why}): {text}")
        })
    }
}

fn cells(caches: &[Cache]) -> Vec<Arc<Cell>> {
    let mut cells = Vec::new();
    for head in HEADS {
        for get in GETS {
            for object in [Object::Tag, Object::Manifest, Object::Blob] {
                for &cache in caches {
                    let number = cells.len();
                    let image = Image::new(number as u64, &[100]);
                    cells.push(Arc::new(Cell { number, head, get, object, cache, image }));
                }
            }
        }
    }
    cells
}

/// Tries all cells with these states of the cache, which share the setting `tag_ttl`.
async fn try_cells(caches: &[Cache], tag_ttl: &str) {
    let (upstream, storage, elsewhere) = (Upstream::start().await, Upstream::start().await, Upstream::start().await);
    let cells = cells(caches);
    let mut builder = TestServer::builder().upstream("elsewhere.example", &elsewhere);
    for cell in &cells {
        upstream.add_image(&cell.repository(), "1", &cell.image);
        elsewhere.add_image(&cell.repository(), "1", &cell.image);
        builder = builder.upstream(&cell.upstream(), &upstream);
    }
    let server =
        builder.config(&format!("[cache]\ntag_ttl = \"{tag_ttl}\"\nstale_while_revalidate = \"0s\"")).start().await;
    // Fill the cache while the upstream works.
    let warm_up = stream::iter(&cells).for_each_concurrent(CONCURRENT_CELLS, async |cell| {
        let from = match cell.cache {
            Cache::Cold => return,
            Cache::Fresh | Cache::Stale => cell.upstream(),
            Cache::Elsewhere => "elsewhere.example".to_owned(),
        };
        assert_eq!(server.get(&cell.path(&from)).await.status, 200);
    });
    warm_up.await;

    let misbehaves = Arc::new(AtomicBool::new(true));
    storage.behave(|_| Some(Reply::status(403)));
    let replies: std::collections::HashMap<String, (Reply, Reply)> = cells
        .iter()
        .map(|cell| {
            let other = Image::new(1_000_000 + cell.number as u64, &[10]);
            let path = cell.path("x").replace("/v2/x/", "/v2/");
            (path, (cell.head.reply(&upstream, &storage, other.digest()), cell.get.reply()))
        })
        .collect();
    let switch = misbehaves.clone();
    upstream.behave(move |seen| {
        if seen.path == "/token" {
            return Some(Reply::status(200).body("{\"token\":\"t\"}"));
        }
        let (head, get) = replies.get(&seen.path).filter(|_| switch.load(Ordering::Relaxed))?;
        Some(if seen.method == "HEAD" { head.clone() } else { get.clone() })
    });
    let wrong: Vec<String> = stream::iter(&cells)
        .map(async |cell| cell.check(&server.get(&cell.path(&cell.upstream())).await))
        .buffer_unordered(CONCURRENT_CELLS)
        .filter_map(ready)
        .collect()
        .await;
    assert!(wrong.is_empty(), "{} of {} cells are wrong:\n{}", wrong.len(), cells.len(), wrong.join("\n"));
    // Answers of a failing upstream are not remembered as absences.
    misbehaves.store(false, Ordering::Relaxed);
    let troubled = cells.iter().filter(|cell| right(cell.head, cell.get, cell.object, cell.cache).0 == Right::Trouble);
    for cell in troubled.step_by(20) {
        crate::scene::until("the upstream is asked again", async || {
            server.get(&cell.path(&cell.upstream())).await.body == cell.content()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cold_and_foreign_content_is_decided_by_get_or_proof() {
    try_cells(&[Cache::Cold, Cache::Elsewhere], "1h").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fresh_content_needs_no_upstream() {
    try_cells(&[Cache::Fresh], "1h").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_content_is_confirmed_or_served_with_a_warning() {
    try_cells(&[Cache::Stale], "0s").await;
}
