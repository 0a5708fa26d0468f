//! Serves a connection from its first byte to its end: plain or TLS, HTTP/1.1 or HTTP/2 as ALPN negotiated.
//!
//! Its memory is bounded. HTTP/1: 128 KiB per direction. HTTP/2: the same for each of 100 streams. An abandoned
//! stream keeps 16 KiB until the connection ends. Its waits are bounded as well (see `connection` and `streams`).

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::body::Guarded;
use super::connection::{Deadlines, Requests, TimedReads, TimedWrites};
use super::drain::{self, Draining, UnreadBody};
use super::places::Place;
use super::streams::{PacedBody, Streams};
use super::tls::{Certificates, Handshake, Protocol};
use super::{Site, host, plain, records};
use crate::access::{AttemptResult, Peer, TrustedProxies};
use crate::tasks::Tasks;

/// Maximum bytes that one HTTP/1 connection or one HTTP/2 stream buffers per direction, plus one frame.
const MAX_BUFFER_BYTES: usize = 128 << 10;
/// Maximum number of concurrent requests of one HTTP/2 connection.
const MAX_STREAMS: u32 = 100;
/// HTTP/2 receive window in bytes, for each stream and for the connection. The window of the connection limits the
/// sum over its streams.
const WINDOW_BYTES: u32 = 1 << 20;

/// The value of `Connection` in the last response of an HTTP/1 connection. HTTP/2 has no such header.
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// Serves connections.
pub(super) struct Connections {
    site: Site,
    /// The site for connections at reserved places.
    crowded_site: Site,
    deadlines: Deadlines,
    certificates: Option<Certificates>,
    proxies: TrustedProxies,
    tasks: Tasks,
}

// === impl Connections ===

impl Connections {
    pub(super) fn new(
        site: Site,
        deadlines: Deadlines,
        certificates: Option<Certificates>,
        proxies: TrustedProxies,
        tasks: Tasks,
    ) -> Self {
        Self { crowded_site: site.crowded(), site, deadlines, certificates, proxies, tasks }
    }

    /// Serves one connection to its end. After its place was told to end, it ends after the requests in progress.
    pub(super) async fn serve(&self, stream: TcpStream, place: Place) {
        // Without TCP_NODELAY a small response may wait 40 ms.
        let _ = stream.set_nodelay(true);
        let peer = Peer::at(stream.peer_addr().ok()).trusted_if_in(&self.proxies);
        let Some(certificates) = &self.certificates else {
            let left = plain::serve(stream, &peer, self.deadlines, self.site_at(&place), &place).await;
            let Some((stream, ahead)) = left else { return };
            let stream = TimedWrites::new(stream, self.deadlines.progress);
            // Boxed, so that each connection does not allocate the largest future.
            return Box::pin(self.http1(stream, ahead, peer, &place)).await;
        };
        Box::pin(self.encrypted(stream, peer, certificates, &place)).await;
    }

    async fn encrypted(&self, stream: TcpStream, mut peer: Peer, certificates: &Certificates, place: &Place) {
        let progress = self.deadlines.progress;
        let handshake = certificates.accept(stream, |stream| TimedWrites::new(stream, progress));
        let handshake = tokio::select! {
            handshake = tokio::time::timeout(self.deadlines.headers, handshake) => handshake,
            () = place.activity().given_way() => return,
        };
        let Handshake { protocol, stream, certificate } = match handshake {
            Ok(Ok(handshake)) => handshake,
            Ok(Err(error)) => {
                if is_of_certificate(&error) {
                    records::certificate(&self.site.app, &peer, AttemptResult::Refused);
                }
                return tracing::debug!(%error, "a TLS handshake failed");
            }
            Err(_) => return tracing::debug!("a TLS handshake took too long"),
        };
        (peer.is_encrypted, peer.certificate) = (true, certificate);
        records::certificate(&self.site.app, &peer, AttemptResult::Accepted);
        match protocol {
            Protocol::Http1 => {
                let left = plain::serve(stream, &peer, self.deadlines, self.site_at(place), place).await;
                let Some((stream, ahead)) = left else { return };
                Box::pin(self.http1(stream, ahead, peer, place)).await;
            }
            Protocol::Http2 => self.http2(stream, peer, place).await,
        }
    }

    /// Serves the rest of a connection of which `ahead` has been read already.
    async fn http1(&self, stream: impl AsyncRead + AsyncWrite + Unpin, ahead: Bytes, peer: Peer, place: &Place) {
        let (requests, peer) = (Arc::new(Requests::new(place.activity().clone())), Arc::new(peer));
        let mut stream = TimedReads::new(stream, ahead, self.deadlines, requests.clone());
        let unread = UnreadBody::default();
        self.http1_requests(&mut stream, &peer, &requests, &unread, place).await;
        if unread.is_left() {
            tokio::select! {
                () = drain::linger(&mut stream) => {}
                () = place.activity().given_way() => {}
                () = place.activity().ending().cancelled() => {}
            }
        }
    }

    async fn http1_requests(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        peer: &Arc<Peer>,
        requests: &Arc<Requests>,
        unread: &UnreadBody,
        place: &Place,
    ) {
        let io = TokioIo::new(stream);
        let service =
            service_fn(|request: Request<Incoming>| self.answer(peer, unread.watch(request), requests, place));
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_BUFFER_BYTES).timer(TokioTimer::new()).header_read_timeout(None);
        // A client that ends its side after the request still reads the response.
        builder.half_close(true);
        let mut connection = pin!(builder.serve_connection(io, service));
        let ended = tokio::select! {
            biased;
            ended = &mut connection => ended,
            () = place.activity().given_way() => return,
            () = place.activity().ending().cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        log(ended);
    }

    async fn http2(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer, place: &Place) {
        let requests = Arc::new(Requests::new(place.activity().clone()));
        let (streams, peer) = (Streams::new(self.deadlines.progress, &self.tasks), Arc::new(peer));
        let service = service_fn(|request| {
            let turns = streams.begin();
            let (request, rest) = drain::keep(request);
            let answer = self.answer(&peer, request, &requests, place);
            async move {
                let response = answer.await?.map(|body| Body::new(PacedBody::new(body, turns)));
                Ok::<_, Infallible>(match rest {
                    Some(rest) => response.map(|body| Body::new(Draining::new(body, rest))),
                    None => response,
                })
            }
        });
        let mut builder = http2::Builder::new(streams.clone());
        builder.timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS).max_send_buf_size(MAX_BUFFER_BYTES);
        builder.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let unused = requests.unused_for(self.deadlines.headers, self.deadlines.idle);
        let ended = tokio::select! {
            biased;
            ended = &mut connection => ended,
            () = place.activity().given_way() => return,
            () = place.activity().ending().cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = unused => {
                connection.as_mut().graceful_shutdown();
                // The client has not read the end of a response, or it is gone.
                tokio::time::timeout(self.deadlines.progress, connection).await.unwrap_or(Ok(()))
            }
        };
        log(ended);
    }

    fn answer(
        &self,
        peer: &Arc<Peer>,
        request: Request<Body>,
        requests: &Arc<Requests>,
        place: &Place,
    ) -> Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>> {
        let guard = requests.begin();
        let is_reserved = place.is_reserved();
        if is_reserved {
            place.activity().ending().cancel();
        }
        if let Err(error) = host::check(&request) {
            let mut response = self.site_at(place).refuse(&request, error.into());
            // A proxy in between may have parsed this request differently, and then also the bytes after it.
            if request.version() <= Version::HTTP_11 {
                response.headers_mut().insert(CONNECTION, CLOSE);
            }
            return Box::pin(async move { Ok(response.map(|body| Guarded::wrap(body, guard))) });
        }
        let (site, peer) = (self.site_at(place).clone(), peer.clone());
        Box::pin(async move {
            let is_http1 = request.version() <= Version::HTTP_11;
            let mut response = site.answer(&peer, request).await;
            if is_reserved && is_http1 {
                response.headers_mut().insert(CONNECTION, CLOSE);
            }
            Ok(response.map(|body| Guarded::wrap(body, guard)))
        })
    }

    /// The site that answers the requests of a connection at this place.
    fn site_at(&self, place: &Place) -> &Site {
        if place.is_reserved() { &self.crowded_site } else { &self.site }
    }
}

/// Whether a handshake failed because of the certificate of the client.
fn is_of_certificate(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(error, Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented))
}

fn log(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection failed");
    }
}
