//! Nearly every request to a cache: GET or HEAD without a body, over HTTP/1.1 and without TLS.
//!
//! hyper sends a body from memory, so a file goes through ours on its way from the page cache to the socket. Here it does
//! not (`answer`, by sendfile), and a head costs one pass of the parser that hyper has, too (`head`). The handlers are the
//! same. The first request that is anything else, or not to be judged in a line, is left unread, and hyper has the
//! connection from there to its end: so neither knows anything of the other.

mod answer;
mod clock;
mod head;
mod socket;

use bytes::{Bytes, BytesMut};
use http::Method;
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;
use tokio_util::sync::CancellationToken;

use super::Site;
use super::connection::Deadlines;
use head::{Asked, Foreign};
use socket::Socket;

/// What the head of an answer takes, as a rule.
const ANSWER: usize = 1 << 10;

/// Serves a connection as long as it asks for what is served here. What comes back is for somebody else to go on with:
/// the socket, and what was read of it.
pub(super) async fn serve(
    stream: TcpStream,
    deadlines: Deadlines,
    site: &Site,
    draining: &CancellationToken,
) -> Option<(TcpStream, Bytes)> {
    let mut socket = Socket::new(stream, deadlines.head, deadlines.progress);
    let mut scratch = BytesMut::with_capacity(ANSWER);
    loop {
        let Asked { request, is_last } = match next(&mut socket, deadlines, draining).await {
            Ok(Some(asked)) => asked,
            Ok(None) => break,
            Err(Foreign) => return Some(socket.into_parts()),
        };
        // Requests that were sent all at once are answered in turn with those of others.
        consume_budget().await;
        let to_head = request.method() == Method::HEAD;
        let response = tokio::select! {
            biased;
            response = site.answer(request) => response,
            () = socket.left() => return None,
        };
        let is_last = is_last || draining.is_cancelled();
        if let Err(error) = answer::send(&mut socket, &mut scratch, response, to_head, is_last).await {
            tracing::debug!(%error, "an answer ended early: {error}");
            return None;
        }
        if is_last {
            break;
        }
        socket.give(deadlines.idle);
    }
    socket.end().await;
    None
}

/// The next request; `None` at the end of the connection, or when its time has come.
async fn next(
    socket: &mut Socket,
    deadlines: Deadlines,
    draining: &CancellationToken,
) -> Result<Option<Asked>, Foreign> {
    let mut begun = false;
    loop {
        if let Some(asked) = Asked::take(&mut socket.read)? {
            return Ok(Some(asked));
        }
        // The rest of a head is not waited for as long as its beginning.
        if !socket.read.is_empty() && !begun {
            begun = true;
            socket.give(deadlines.head);
        }
        let read = tokio::select! {
            biased;
            read = socket.read_more() => read,
            () = draining.cancelled() => return Ok(None),
        };
        match read {
            Ok(0) if begun => return Err(Foreign),
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "a connection ended: {error}");
                return Ok(None);
            }
        }
    }
}
