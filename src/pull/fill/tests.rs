//! Fills from a scripted source, into a real store.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::super::context::Context;
use super::super::error::{ContentError, PullError};
use super::super::held_back_tail::HELD_BACK_TAIL_BYTES;
use super::super::slots::Slots;
use super::super::source::BlobSource;
use super::super::source::scripted::{Answer, NAME, ScriptedSource};
use super::{Fills, Follower, Following, Joined, Readiness, Requester};
use crate::config::Config;
use crate::oci::{Algorithm, ByteRange, Digest};
use crate::store::Store;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::upstream::Effort;

mod spans;

const LIMIT: Duration = Duration::from_secs(20);
const TAIL: usize = HELD_BACK_TAIL_BYTES as usize;
const LENGTH: usize = 4 * TAIL;

struct Fixture {
    fills: Fills,
    context: Arc<Context>,
    folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let metrics = Arc::new(Metrics::new(&[NAME]));
        let context = Arc::new(Context::new(store, &Config::default(), metrics));
        let fills = Fills::new(context.clone(), Slots::new(8, []), Tasks::new());
        Self { fills, context, folder }
    }

    fn join(&self, digest: &Digest, source: &Arc<ScriptedSource>) -> Following {
        let source: Arc<dyn BlobSource> = source.clone();
        let requester = Requester {
            source,
            proven: false,
            listed: false,
            may_share: true,
            new_repository: false,
            size: None,
            is_for_range: false,
        };
        match self.fills.join(digest, &requester) {
            Joined::Led(following) | Joined::Followed(following) => following,
            Joined::NeedsProof => panic!("the fill has another source"),
        }
    }

    async fn follow(&self, digest: &Digest, source: &Arc<ScriptedSource>) -> Result<Follower, PullError> {
        let mut following = self.join(digest, source);
        let start = following.start_by(Instant::now() + LIMIT, Readiness::FirstBytes, LIMIT).await?;
        let end = start.total();
        Ok(following.read(&start, 0, end))
    }

    async fn until_stored(&self, digest: &Digest) {
        let stored = async {
            while self.context.store.blob(digest).await.unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(LIMIT, stored).await.expect("the fill goes on to its end");
    }

    /// Makes the only spool file unreadable from this position on.
    fn truncate_spool(&self, length: u64) {
        let spool: Vec<_> = std::fs::read_dir(self.folder.path().join("spool")).unwrap().collect();
        assert_eq!(spool.len(), 1);
        let file = std::fs::File::options().write(true).open(spool[0].as_ref().unwrap().path()).unwrap();
        file.set_len(length).unwrap();
    }
}

fn content() -> (Vec<u8>, Digest) {
    let bytes: Vec<u8> = (0..LENGTH).map(|at| (at / 7 + at) as u8).collect();
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    (bytes, digest)
}

async fn read_exactly(follower: &mut Follower, length: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < length {
        let bytes = timeout(LIMIT, follower.next()).await.expect("bytes in time").unwrap();
        read.extend_from_slice(&bytes.expect("more bytes"));
    }
    read
}

#[tokio::test]
async fn bytes_before_the_held_back_tail_are_read_before_the_fill_ends() {
    let ((bytes, digest), fixture, gate) = (content(), Fixture::new(), Arc::new(Semaphore::new(0)));
    let answer = Answer::complete(LENGTH).send(&bytes).wait(&gate);
    let source = ScriptedSource::new("a/b", [answer]);
    let mut follower = fixture.follow(&digest, &source).await.unwrap();
    let first = read_exactly(&mut follower, LENGTH - TAIL).await;
    // All bytes were received, but the transfer has not ended, so nothing is verified.
    assert!(timeout(Duration::from_millis(50), follower.next()).await.is_err());
    gate.add_permits(1);
    let tail = read_exactly(&mut follower, TAIL).await;
    assert!([first, tail].concat() == bytes);
    assert!(follower.next().await.unwrap().is_none());
    let one = ScriptedSource::new("a/b", []);
    assert!(read_exactly(&mut fixture.follow(&digest, &one).await.unwrap(), LENGTH).await == bytes);
    assert!(one.requests.lock().is_empty(), "the stored blob is not fetched again");
}

#[tokio::test]
async fn an_interrupted_transfer_is_resumed_as_a_closed_range_under_its_etag() {
    let ((bytes, digest), fixture) = (content(), Fixture::new());
    let answers = [
        Answer::complete(LENGTH).etag("\"v1\"").send(&bytes[..1000]).interrupt(),
        // A server may send less than was requested.
        Answer::part(1000, 70_000, LENGTH).send(&bytes[1000..70_000]),
        // A server may ignore the range.
        Answer::complete(LENGTH).send(&bytes[..500]).send(&bytes[500..]),
    ];
    let source = ScriptedSource::new("a/b", answers);
    let mut follower = fixture.follow(&digest, &source).await.unwrap();
    assert!(read_exactly(&mut follower, LENGTH).await == bytes);
    let requests = source.requests.lock();
    let asked: Vec<_> = requests.iter().map(|request| (request.range, request.effort)).collect();
    let rest = |start| Some(ByteRange { start, end: LENGTH as u64 });
    assert_eq!(asked, [(None, Effort::Rounds), (rest(1000), Effort::Resume), (rest(70_000), Effort::Resume)]);
    assert!(requests[1..].iter().all(|request| request.if_range.as_deref() == Some("\"v1\"")));
}

#[tokio::test]
async fn wrong_bytes_are_fetched_once_more_for_followers_without_bytes() {
    let (bytes, fixture) = (content().0[..TAIL].to_vec(), Fixture::new());
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let wrong = || Answer::complete(TAIL).send(&vec![0; TAIL]);
    let source = ScriptedSource::new("a/b", [wrong(), Answer::complete(TAIL).send(&bytes)]);
    let mut follower = fixture.follow(&digest, &source).await.unwrap();
    assert!(read_exactly(&mut follower, TAIL).await == bytes);

    let other = Digest::of(Algorithm::Sha256, b"other");
    let source = ScriptedSource::new("a/b", [wrong(), wrong()]);
    let error = fixture.follow(&other, &source).await.unwrap_err();
    assert!(matches!(&error, PullError::WrongContent { digest, .. } if *digest == other), "{error}");
    assert_eq!(source.requests.lock().len(), 2);
}

#[tokio::test]
async fn a_spool_that_cannot_be_read_is_not_the_sources_failure() {
    let ((bytes, digest), fixture, gate) = (content(), Fixture::new(), Arc::new(Semaphore::new(0)));
    let answers = [
        Answer::complete(LENGTH).send(&bytes[..1000]).wait(&gate).interrupt(),
        // The beginning has to be compared with the spool.
        Answer::complete(LENGTH).send(&bytes),
    ];
    let source = ScriptedSource::new("a/b", answers);
    let mut follower = fixture.follow(&digest, &source).await.unwrap();
    assert!(read_exactly(&mut follower, 1000).await == bytes[..1000]);
    fixture.truncate_spool(500);
    gate.add_permits(1);
    let error = timeout(LIMIT, follower.next()).await.unwrap().unwrap_err();
    let ContentError::Transfer(error) = error else { panic!("{error}") };
    assert!(matches!(&error, PullError::LocalRead { digest: of, .. } if *of == digest), "{error}");
    assert!(error.is_local() && !error.to_string().contains(NAME), "{error}");
    let remembered = fixture.context.memory.failure(source.id(), &digest);
    assert!(matches!(remembered, Some(PullError::LocalRead { .. })), "{remembered:?}");
}

#[tokio::test]
async fn a_follower_that_cannot_read_the_spool_reports_a_local_failure() {
    let ((bytes, digest), fixture, gate) = (content(), Fixture::new(), Arc::new(Semaphore::new(0)));
    let source = ScriptedSource::new("a/b", [Answer::complete(LENGTH).send(&bytes[..1000]).wait(&gate)]);
    let mut follower = fixture.follow(&digest, &source).await.unwrap();
    fixture.truncate_spool(0);
    let error = follower.read_ahead(Instant::now() + LIMIT).await.unwrap_err();
    assert!(matches!(error, ContentError::LocalRead(_)), "{error}");
}

#[tokio::test]
async fn a_fill_without_followers_goes_on_while_slots_are_free() {
    let ((bytes, digest), fixture, gate) = (content(), Fixture::new(), Arc::new(Semaphore::new(0)));
    let source =
        ScriptedSource::new("a/b", [Answer::complete(LENGTH).send(&bytes[..1000]).wait(&gate).send(&bytes[1000..])]);
    drop(fixture.follow(&digest, &source).await.unwrap());
    gate.add_permits(1);
    fixture.until_stored(&digest).await;
}

/// Reads the rest of a fill by ranges of at most `max` bytes, from `start`.
async fn read_ranges(follower: &mut Follower, mut start: u64, max: u64) -> Result<Vec<u8>, ContentError> {
    let mut read = Vec::new();
    while let Some(mut range) = timeout(LIMIT, follower.next_range(max)).await.expect("a range in time")? {
        assert!(range.start() == start && (1..=max).contains(&range.len()), "{range:?} at {start}");
        start = range.end();
        while let Some(bytes) = range.read().await? {
            read.extend_from_slice(&bytes);
        }
    }
    Ok(read)
}

#[tokio::test]
async fn ranges_begin_with_the_bytes_that_were_read_ahead() {
    let ((bytes, digest), fixture, gate) = (content(), Fixture::new(), Arc::new(Semaphore::new(0)));
    let answer = Answer::complete(LENGTH).send(&bytes[..1000]).wait(&gate).send(&bytes[1000..]);
    let source = ScriptedSource::new("a/b", [answer]);
    let mut follower = fixture.follow(&digest, &source).await.unwrap();
    follower.read_ahead(Instant::now() + LIMIT).await.unwrap();
    gate.add_permits(1);
    assert!(read_ranges(&mut follower, 0, 999).await.unwrap() == bytes);
}

#[tokio::test]
async fn a_range_that_was_returned_binds_a_follower_to_its_generation() {
    let ((bytes, digest), fixture, gate) = (content(), Fixture::new(), Arc::new(Semaphore::new(0)));
    let wrong = Answer::complete(LENGTH).send(&[0; 1000]).wait(&gate).send(&[0; LENGTH - 1000]);
    let source = ScriptedSource::new("a/b", [wrong, Answer::complete(LENGTH).send(&bytes)]);
    let mut bound = fixture.follow(&digest, &source).await.unwrap();
    let mut free = fixture.follow(&digest, &source).await.unwrap();
    for follower in [&mut bound, &mut free] {
        follower.read_ahead(Instant::now() + LIMIT).await.unwrap();
    }
    assert_eq!(bound.next_range(10).await.unwrap().unwrap().len(), 10);
    gate.add_permits(1);
    fixture.until_stored(&digest).await;
    assert!(read_ranges(&mut free, 0, u64::MAX).await.is_ok_and(|read| read == bytes));
    let error = read_ranges(&mut bound, 10, u64::MAX).await.unwrap_err();
    assert!(matches!(error, ContentError::Restarted), "{error}");
}
