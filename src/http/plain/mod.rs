//! The fast path: GET or HEAD without a body, over HTTP/1.1, which is nearly every request to a cache.
//!
//! hyper sends a body from memory, so a file would be copied there on its way from the page cache to the socket. Here it is
//! not (`response`, by sendfile), except with TLS. Request headers cost one pass of httparse, the parser that hyper uses as
//! well (`request`). The handlers are the same. The first request of any other kind is left unread, and hyper serves the
//! connection from there to its end, so neither depends on the other.

mod deadline;
mod request;
mod response;
mod socket;

use bytes::{Bytes, BytesMut};
use http::Method;
use tokio::task::coop::consume_budget;

use super::Site;
use super::connection::Deadlines;
use super::places::{Activity, Place};
use crate::access::Peer;
use request::{NotPlain, PlainRequest};
use socket::Socket;
pub(super) use socket::Transport;

/// Bytes that the headers of a response usually take.
const RESPONSE_HEADERS_BYTES: usize = 1 << 10;

/// Serves a connection as long as its requests are of this kind. Returns the stream, and what was read of it, if another
/// request follows; `None` if the connection has ended.
pub(super) async fn serve<S: Transport>(
    stream: S,
    peer: &Peer,
    deadlines: Deadlines,
    site: &Site,
    place: &Place,
) -> Option<(S, Bytes)> {
    let activity = place.activity();
    let mut socket = Socket::new(stream, deadlines.headers, deadlines.progress);
    let mut scratch = BytesMut::with_capacity(RESPONSE_HEADERS_BYTES);
    loop {
        let PlainRequest { request, is_last } = match next(&mut socket, deadlines, activity).await {
            Ok(Some(plain)) => plain,
            Ok(None) if activity.gave_way() => return None,
            Ok(None) => break,
            Err(NotPlain) => return Some(socket.into_parts()),
        };
        if !activity.begin() {
            return None;
        }
        // Pipelined requests take turns with those of other connections.
        consume_budget().await;
        let is_head = request.method() == Method::HEAD;
        let response = tokio::select! {
            biased;
            response = site.answer(peer, request) => response,
            () = socket.left() => return None,
        };
        let is_last = is_last || place.is_reserved() || activity.ending().is_cancelled();
        if let Err(error) = response::send(&mut socket, &mut scratch, response, is_head, is_last).await {
            tracing::debug!(%error, "a response ended early");
            return None;
        }
        if is_last {
            break;
        }
        activity.rest(socket.set_deadline(deadlines.idle));
    }
    socket.end().await;
    None
}

/// The next request; `None` at the end of the connection, or when it is to end.
async fn next<S: Transport>(
    socket: &mut Socket<S>,
    deadlines: Deadlines,
    activity: &Activity,
) -> Result<Option<PlainRequest>, NotPlain> {
    let mut started = false;
    loop {
        if let Some(plain) = PlainRequest::take(&mut socket.read)? {
            return Ok(Some(plain));
        }
        // Headers that have started have a shorter deadline than an idle connection.
        if !socket.read.is_empty() && !started {
            started = true;
            socket.set_deadline(deadlines.headers);
        }
        let read = tokio::select! {
            biased;
            read = socket.read_more() => read,
            () = activity.ending().cancelled() => return Ok(None),
        };
        match read {
            Ok(0) if started => return Err(NotPlain),
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "a connection failed");
                return Ok(None);
            }
        }
    }
}
