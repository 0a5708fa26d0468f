//! One attempt at a blob from byte zero: a spool, a running hash, and as many requests as it takes.
//!
//! A transfer that breaks off or falls silent is taken up where it was, with a closed range and the entity tag that the
//! upstream gave; clients only see bytes. An upstream that answers with the whole instead has the beginning compared with
//! what is here, byte by byte. What turns out wrong is never mended: the generation ends, and another one may begin.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{Method, StatusCode};

use super::fill::{HELD_BACK, Run, State};
use super::{PullError, pace, request};
use crate::oci::Digest;
use crate::store::{self, Spool};
use crate::upstream::{Effort, Kind, UpstreamBody, UpstreamError, UpstreamRequest, UpstreamResponse};

/// Generations after the first one: bytes that were wrong once may have been spoilt on the way.
const REPEATS: u32 = 1;
/// Times that a transfer is taken up again without progress between them.
const RESUMES_WITHOUT_PROGRESS: u32 = 5;
/// Bytes that are progress: one a try would go on for ever.
const PROGRESS: u64 = 4 << 10;
/// Before the first of those; each further pause is twice as long, give or take half of it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Generation<'a> {
    run: &'a Run,
    number: u32,
}

/// A verified blob that only has to be put away.
pub(super) struct Whole {
    spool: Spool,
    length: u64,
    generation: u32,
}

/// Where a transfer is taken up: the bytes that came with the comparison, and the body that goes on behind them.
struct Resumed {
    ahead: Option<Bytes>,
    body: UpstreamBody,
    /// It need not go on to the end of the blob (RFC 9110, 15.3.7: a server may send less than was asked for).
    partial: bool,
}

impl<'a> Generation<'a> {
    pub(super) fn first(run: &'a Run) -> Self {
        Self { run, number: 0 }
    }

    pub(super) fn next(self) -> Self {
        Self { run: self.run, number: self.number + 1 }
    }

    /// Only for somebody who waits; those who have had bytes end, those who have not move on to the next one.
    pub(super) fn may_be_repeated(&self) -> bool {
        self.number < REPEATS && self.run.fill.followers.load(Ordering::Acquire) > 0
    }

    /// All of the blob, verified and published as such.
    pub(super) async fn run(&self) -> Result<Whole, PullError> {
        let Run { inner, fill, publish, .. } = self.run;
        let (digest, source, generation) = (&fill.digest, &fill.source.repo, self.number);
        let response = inner.send(&self.run.upstream, self.request(), inner.deadline()).await?;
        let announced = response.content_length().or(response.content_range().and_then(|(_, _, total)| total));
        let total = match announced {
            Some(total) => Some(total),
            None => inner.known_size(&self.run.upstream, source, digest).await,
        };
        let doubtful = self.is_doubtful(&response, total);
        // A weak tag does not promise the same bytes.
        let etag = response.etag().filter(|etag| !etag.starts_with("W/")).map(str::to_owned);
        let spool = inner.store.begin(digest.algorithm(), total).await?;
        if !doubtful {
            publish.send_replace(State::Streaming { total, mark: 0, generation, reader: spool.content() });
        }
        let length = self.receive(response.body, &spool, total, etag).await?;
        self.verify(&spool, total, length).await?;
        publish.send_replace(State::Whole { length, generation, reader: spool.content() });
        Ok(Whole { spool, length, generation })
    }

    /// Whether the answer's head contradicts what is known. The digest decides, not a header; but nobody is told anything
    /// before it has.
    fn is_doubtful(&self, response: &UpstreamResponse, total: Option<u64>) -> bool {
        let Run { fill, upstream, .. } = self.run;
        let (digest, image) = (&fill.digest, &fill.source.repo);
        let other_length = fill.size.zip(total).is_some_and(|(known, total)| known != total);
        let named: Option<Digest> = response.docker_content_digest().and_then(|named| named.parse().ok());
        let other_digest = named.is_some_and(|named| named.algorithm() == digest.algorithm() && named != *digest);
        if other_length || other_digest {
            tracing::warn!(
                %image, %digest, upstream = %upstream.name(), other_length, other_digest,
                "the answer for {image}@{digest} names another length or digest; it is held back until it is verified"
            );
        }
        other_length || other_digest
    }

    fn request(&self) -> UpstreamRequest {
        let fill = &self.run.fill;
        request(Method::GET, Kind::Blob, &fill.source.repo, format!("blobs/{}", fill.digest))
    }

    /// Receives to the end, taking the transfer up as often as that brings progress; the length received.
    async fn receive(
        &self,
        body: UpstreamBody,
        spool: &Spool,
        total: Option<u64>,
        etag: Option<String>,
    ) -> Result<u64, PullError> {
        let mut resumed = Resumed { ahead: None, body, partial: false };
        let (mut reached, mut fruitless) = (0, 0);
        loop {
            match self.receive_some(resumed, spool, total).await {
                Err(error) if error.is_cut() => {
                    fruitless = if spool.length() >= reached + PROGRESS { 0 } else { fruitless + 1 };
                    reached = spool.length();
                    resumed = self.resume(error, spool, total, &etag, fruitless).await?;
                }
                outcome => return outcome.map(|()| spool.length()),
            }
        }
    }

    /// Writes what comes and publishes how far it may be read, until the transfer ends or breaks.
    async fn receive_some(&self, from: Resumed, spool: &Spool, total: Option<u64>) -> Result<(), PullError> {
        let Resumed { ahead, body, partial } = from;
        let upstream = &self.run.upstream;
        let stream = stream::iter(ahead.map(Ok)).chain(pace::chunks(body, upstream)).map_err(PullError::from);
        let progress = |length| {
            self.run.fill.received.store(length, Ordering::Relaxed);
            if total.is_some_and(|total| length > total) {
                return Err(self.wrong_content());
            }
            self.advance(length);
            Ok(())
        };
        store::pump(stream, |chunks| spool.append(chunks), progress).await?;
        if partial && total.is_some_and(|total| spool.length() < total) {
            let cause = "it sent less than was asked for".into();
            return Err(UpstreamError::Interrupted { upstream: upstream.name().clone(), cause }.into());
        }
        Ok(())
    }

    /// Asks for the rest, with growing pauses, until somebody gives it or there is no hope.
    async fn resume(
        &self,
        mut cause: PullError,
        spool: &Spool,
        total: Option<u64>,
        etag: &Option<String>,
        fruitless: u32,
    ) -> Result<Resumed, PullError> {
        let Run { inner, fill, upstream, .. } = self.run;
        let length = spool.length();
        if total == Some(length) {
            // All of it had come; what broke is only the connection's end.
            return Ok(Resumed { ahead: None, body: UpstreamBody::empty(upstream), partial: false });
        }
        let mut limited = false;
        for attempt in fruitless..RESUMES_WITHOUT_PROGRESS {
            let asked_for = cause.retry_after().unwrap_or_default();
            // A limit is obeyed, and waited for once.
            if (limited && cause.is_limit()) || asked_for > inner.cache.answer_within {
                return Err(cause);
            }
            limited |= cause.is_limit();
            tokio::time::sleep(pause(attempt).max(asked_for)).await;
            tracing::debug!(digest = %fill.digest, length, error = %cause, "taking up {} at {length}: {cause}", fill.digest);
            let mut rest = self.request();
            // Who has brought nothing is asked last.
            rest.skip_urls = attempt as usize;
            rest.effort = Effort::Resume;
            if let Some(total) = total.filter(|_| length > 0) {
                rest.range = Some((length, total - 1));
                rest.if_range = etag.clone();
            }
            match inner.send(upstream, rest, inner.deadline()).await {
                Ok(response) => match self.take_up(response, spool, total).await {
                    Ok(resumed) => {
                        inner.metrics.fill_resumed(upstream.name());
                        fill.resumes.fetch_add(1, Ordering::Relaxed);
                        return Ok(resumed);
                    }
                    Err(error) if error.is_cut() => cause = error,
                    Err(error) => return Err(error),
                },
                // There is less of it than was announced.
                Err(PullError::Upstream(UpstreamError::Status {
                    status: StatusCode::RANGE_NOT_SATISFIABLE, ..
                })) => {
                    return Err(PullError::Changed { upstream: upstream.name().to_string() });
                }
                Err(error) if error.is_trouble() => cause = error,
                Err(error) => return Err(error),
            }
        }
        Err(cause)
    }

    /// Takes 206 with exactly what was asked for, or 200 with the beginning that is here already.
    async fn take_up(
        &self,
        response: UpstreamResponse,
        spool: &Spool,
        total: Option<u64>,
    ) -> Result<Resumed, PullError> {
        let length = spool.length();
        let changed = || PullError::Changed { upstream: self.run.upstream.name().to_string() };
        if response.status == StatusCode::PARTIAL_CONTENT {
            let (start, last, whole) = response.content_range().ok_or_else(changed)?;
            let fits = start == length
                && total.is_some_and(|total| last < total)
                && whole.is_none_or(|whole| Some(whole) == total);
            return if fits { Ok(Resumed { ahead: None, body: response.body, partial: true }) } else { Err(changed()) };
        }
        if let (Some(announced), Some(total)) = (response.content_length(), total)
            && announced != total
        {
            return Err(changed());
        }
        let mut body = response.body;
        let (reader, mut at) = (spool.content(), 0);
        while at < length {
            let Some(mut chunk) = body.chunk().await? else { return Err(changed()) };
            while !chunk.is_empty() && at < length {
                let wanted = (length - at).min(chunk.len() as u64);
                let here =
                    reader.part(at..at + wanted).read().await.map_err(|_| PullError::GivenUp)?.unwrap_or_default();
                if chunk.split_to(here.len()) != here {
                    return Err(changed());
                }
                at += here.len() as u64;
            }
            if !chunk.is_empty() {
                return Ok(Resumed { ahead: Some(chunk), body, partial: false });
            }
        }
        Ok(Resumed { ahead: None, body, partial: false })
    }

    /// Publishes the new mark: everything received but what has to be held back.
    fn advance(&self, received: u64) {
        self.run.publish.send_if_modified(|state| match state {
            State::Streaming { total, mark, .. } => {
                let open = match total {
                    Some(total) => received.min(total.saturating_sub(HELD_BACK)),
                    None => received.saturating_sub(HELD_BACK),
                };
                let moved = open > *mark;
                *mark = open.max(*mark);
                moved
            }
            _ => false,
        });
    }

    async fn verify(&self, spool: &Spool, total: Option<u64>, length: u64) -> Result<(), PullError> {
        let digest = &self.run.fill.digest;
        let right = total.is_none_or(|total| total == length) && spool.digest().await? == *digest;
        if right { Ok(()) } else { Err(self.wrong_content()) }
    }

    fn wrong_content(&self) -> PullError {
        let Run { fill, upstream, .. } = self.run;
        PullError::WrongContent { upstream: upstream.name().to_string(), digest: fill.digest.clone() }
    }
}

impl Whole {
    /// Puts it into the store and lets its repository read it; the length.
    pub(super) async fn commit(self, run: &Run) -> Result<u64, PullError> {
        let Self { spool, length, generation } = self;
        let (fill, reader) = (&run.fill, spool.content());
        run.inner.store.commit(spool, &fill.digest, &fill.source.repo).await?;
        run.publish.send_replace(State::Committed { length, generation, reader, found: false });
        Ok(length)
    }
}

/// Twice as long each time, give or take half of it: upstreams that failed many at once are not asked by all at once.
fn pause(attempt: u32) -> Duration {
    FIRST_PAUSE.mul_f64(f64::from(2u32.pow(attempt)) * (0.5 + fastrand::f64()))
}
