//! The fast path: GET or HEAD without a body, over HTTP/1.1, which is nearly every request to a cache.
//!
//! hyper sends a body from memory, so a file would be copied there on its way from the page cache to the socket. Here
//! it is not (`files`, by sendfile), except with TLS. Request headers cost one pass of httparse, the parser that
//! hyper uses as well (`request`). A manifest in memory is answered from the parsed headers (`http::hits`). For all
//! other requests the handlers are the same. The first request of any other kind is left unread, and hyper serves the
//! connection from there to its end, so neither depends on the other.

mod deadline;
mod files;
mod request;
mod response;
mod socket;

use std::pin::{Pin, pin};

use bytes::{Bytes, BytesMut};
use http::Method;
use tokio::task::coop::consume_budget;
use tokio_util::sync::WaitForCancellationFuture;

use super::Site;
use super::connection::Deadlines;
use super::hits::{HitResponse, ReceivedRequest};
use super::places::Place;
use crate::access::Peer;
use request::{NotPlain, PlainRequest, Taken};
use socket::Socket;
pub(super) use socket::Transport;

/// Bytes that the headers of a response usually take.
const RESPONSE_HEADERS_BYTES: usize = 1 << 10;

/// What was made of a request before it was assembled.
enum AtOnce<'s> {
    Hit {
        response: HitResponse<'s>,
        is_last: bool,
    },
    /// The connection has given way to another one, so the request is not answered.
    GaveWay,
}

/// Serves a connection as long as its requests are of this kind. Returns the stream, and what was read of it, if
/// another request follows; `None` if the connection has ended.
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
    let mut ending = pin!(activity.ending().cancelled());
    loop {
        let at_once = |request: &ReceivedRequest<'_>| answer_at_once(site, place, &mut scratch, request);
        let taken = match next(&mut socket, deadlines, ending.as_mut(), at_once).await {
            Ok(Some(taken)) => taken,
            Ok(None) if activity.gave_way() => return None,
            Ok(None) => break,
            Err(NotPlain) => return Some(socket.into_parts()),
        };
        let PlainRequest { request, is_last } = match taken {
            Taken::Request(request) => request,
            Taken::AtOnce(AtOnce::GaveWay) => return None,
            Taken::AtOnce(AtOnce::Hit { response, is_last }) => {
                consume_budget().await;
                if let Err(error) = socket.write([&scratch, response.body(), &[]]).await {
                    tracing::debug!(%error, "a response ended early");
                    return None;
                }
                let now = response.end();
                if is_last {
                    break;
                }
                socket.set_deadline_to(now + deadlines.idle);
                activity.rest(now);
                continue;
            }
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
            () = socket.left_or_gave_way(activity) => return None,
        };
        if activity.gave_way() {
            return None;
        }
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

/// Begins the response to a hit in `out`; `None` if the request must be assembled and answered by its handler.
fn answer_at_once<'s>(
    site: &'s Site,
    place: &Place,
    out: &mut BytesMut,
    request: &ReceivedRequest<'_>,
) -> Option<AtOnce<'s>> {
    let (hit, activity) = (site.hit(request)?, place.activity());
    if !activity.begin() {
        return Some(AtOnce::GaveWay);
    }
    let is_last = hit.is_last() || place.is_reserved() || activity.ending().is_cancelled();
    out.clear();
    let now = hit.now();
    let response = hit.respond(out);
    response::end_headers(out, is_last, now);
    Some(AtOnce::Hit { response, is_last })
}

/// The next request, or what `at_once` makes of it; `None` at the end of the connection, or when it is to end.
async fn next<S: Transport, T>(
    socket: &mut Socket<S>,
    deadlines: Deadlines,
    mut ending: Pin<&mut WaitForCancellationFuture<'_>>,
    mut at_once: impl FnMut(&ReceivedRequest<'_>) -> Option<T>,
) -> Result<Option<Taken<T>>, NotPlain> {
    let mut started = false;
    loop {
        if let Some(taken) = PlainRequest::take(&mut socket.read, &mut at_once)? {
            return Ok(Some(taken));
        }
        // Headers that have started have a shorter deadline than an idle connection.
        if !socket.read.is_empty() && !started {
            started = true;
            socket.set_deadline(deadlines.headers);
        }
        let read = tokio::select! {
            biased;
            read = socket.read_more() => read,
            () = ending.as_mut() => return Ok(None),
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
