//! Scripts of the upstream, as data: a list of replies per path.
//!
//! A reply modifies the normal response of a registry: `Reply::normal().pace(n)` is the correct blob, sent slowly, and
//! `Reply::error(503, "UNAVAILABLE")` replaces it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;

/// A point in a reply where the upstream waits until the test opens it.
#[derive(Clone, Debug)]
pub struct Gate(Arc<watch::Sender<GateState>>);

#[derive(Clone, Copy, Debug, Default)]
struct GateState {
    open: bool,
    arrived: usize,
}

impl Gate {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(GateState::default())))
    }

    pub fn open(&self) {
        self.0.send_modify(|state| state.open = true);
    }

    /// Waits until `n` replies have reached this gate. They may have passed it since.
    pub async fn reached(&self, n: usize) {
        let mut state = self.0.subscribe();
        let reached = state.wait_for(|state| state.arrived >= n).await;
        reached.expect("this gate holds a sender");
    }

    /// Reaches the gate and waits, as a reply does.
    pub async fn pass(&self) {
        self.0.send_modify(|state| state.arrived += 1);
        let mut state = self.0.subscribe();
        let opened = state.wait_for(|state| state.open).await;
        opened.expect("this gate holds a sender");
    }
}

/// An event at one point in a reply.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Sleep(Duration),
    Wait(Gate),
    /// Nothing more is sent, and the connection stays open.
    Silence,
    /// An orderly close, before the reply is complete.
    Cut,
    /// A reset: the peer may lose bytes that it has not read yet.
    Reset,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Framing {
    #[default]
    Length,
    /// A Content-Length that may be wrong.
    Declared(u64),
    Chunked,
    /// Neither length nor chunks: the body ends with the connection.
    UntilClose,
}

#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub(super) status: Option<u16>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) left_out: Vec<String>,
    pub(super) body: Option<Bytes>,
    pub(super) before_head: Vec<Step>,
    pub(super) in_body: Vec<(u64, Step)>,
    pub(super) flipped: Vec<u64>,
    pub(super) bytes_per_second: Option<u64>,
    pub(super) framing: Framing,
    pub(super) ignores_range: bool,
}

impl Reply {
    /// The response of a well-behaved registry.
    pub fn normal() -> Self {
        Self::default()
    }

    /// This status and an empty body.
    pub fn status(status: u16) -> Self {
        Self { status: Some(status), body: Some(Bytes::new()), ..Self::default() }
    }

    /// This status and the spec's JSON body with this code.
    pub fn error(status: u16, code: &str) -> Self {
        let body = json!({"errors": [{"code": code, "message": code.to_lowercase(), "detail": null}]});
        Self::status(status).header("Content-Type", "application/json").body(body.to_string())
    }

    pub fn redirect(location: &str) -> Self {
        Self::status(307).header("Location", location)
    }

    /// The connection is closed without a response.
    pub fn hang_up() -> Self {
        let mut reply = Self::default();
        reply.before_head.push(Step::Cut);
        reply
    }

    /// The request is read and never answered.
    pub fn never() -> Self {
        let mut reply = Self::default();
        reply.before_head.push(Step::Silence);
        reply
    }

    /// Adds or replaces a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.left_out.push(name.to_owned());
        self
    }

    pub fn without_digest(self) -> Self {
        self.without("Docker-Content-Digest")
    }

    /// Announces a compressed body, which it is not.
    pub fn claims_gzip(self) -> Self {
        self.header("Content-Encoding", "gzip")
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Sends the body no faster than this.
    pub fn pace(mut self, bytes_per_second: u64) -> Self {
        self.bytes_per_second = Some(bytes_per_second);
        self
    }

    pub fn delay(mut self, before_head: Duration) -> Self {
        self.before_head.push(Step::Sleep(before_head));
        self
    }

    pub fn wait_before_head(mut self, gate: &Gate) -> Self {
        self.before_head.push(Step::Wait(gate.clone()));
        self
    }

    /// Sends `n` bytes of the body, and the rest once the gate is open.
    pub fn wait_after(self, n: u64, gate: &Gate) -> Self {
        self.at(n, Step::Wait(gate.clone()))
    }

    /// Sends `n` bytes of the body and closes the connection.
    pub fn cut_after(self, n: u64) -> Self {
        self.at(n, Step::Cut)
    }

    /// Sends `n` bytes of the body and resets the connection; the peer may not see all of them.
    pub fn reset_after(self, n: u64) -> Self {
        self.at(n, Step::Reset)
    }

    /// Sends `n` bytes of the body and then stays silent.
    pub fn silent_after(self, n: u64) -> Self {
        self.at(n, Step::Silence)
    }

    /// Sends `n` bytes of the body and pauses.
    pub fn pause_after(self, n: u64, pause: Duration) -> Self {
        self.at(n, Step::Sleep(pause))
    }

    /// Corrupts the byte at this offset of the body.
    pub fn flip(mut self, offset: u64) -> Self {
        self.flipped.push(offset);
        self
    }

    /// Announces a body of `n` bytes. A shorter body is followed by a close.
    pub fn declare_length(mut self, n: u64) -> Self {
        self.framing = Framing::Declared(n);
        self
    }

    pub fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    /// Announces no length and ends the body by closing, like an HTTP/1.0 server.
    pub fn until_close(mut self) -> Self {
        self.framing = Framing::UntilClose;
        self
    }

    /// Answers a Range request with 200 and the complete body.
    pub fn ignore_range(mut self) -> Self {
        self.ignores_range = true;
        self
    }

    fn at(mut self, offset: u64, step: Step) -> Self {
        self.in_body.push((offset, step));
        self.in_body.sort_by_key(|(offset, _)| *offset);
        self
    }
}

/// The remaining replies, by method and path.
#[derive(Default)]
pub(super) struct Scripts(Mutex<Vec<Script>>);

struct Script {
    method: String,
    path: String,
    replies: VecDeque<Reply>,
    then: Option<Reply>,
}

impl Scripts {
    pub(super) fn add(&self, method: &str, path: &str, replies: Vec<Reply>, then: Option<Reply>) {
        self.0.lock().push(Script { method: method.to_owned(), path: path.to_owned(), replies: replies.into(), then });
    }

    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }

    /// The next reply for this request. Lists are consumed in the order in which they were added.
    pub(super) fn next(&self, method: &str, path: &str) -> Option<Reply> {
        let mut scripts = self.0.lock();
        let mut fitting = scripts.iter_mut().filter(|script| script.fits(method, path));
        fitting.find_map(|script| script.replies.pop_front().or_else(|| script.then.clone()))
    }
}

impl Script {
    /// `*` matches every method, and at the end of a path any rest.
    fn fits(&self, method: &str, path: &str) -> bool {
        let method_fits = self.method == "*" || self.method == method;
        method_fits
            && match self.path.strip_suffix('*') {
                Some(start) => path.starts_with(start),
                None => path == self.path,
            }
    }
}
