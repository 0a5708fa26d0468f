//! One connection, from its first byte to its end: plain or TLS, HTTP/1.1 or what ALPN chose.
//!
//! What it may hold is bounded (128 KiB each way; on HTTP/2 that for each of 100 streams, and once a stream has been
//! given up, 16 KiB until its connection ends), and so is how long it may keep us waiting (see `connection` and `streams`).

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::body::Guarded;
use super::connection::{Deadlines, Requests, TimedReads, TimedWrites};
use super::streams::{Paced, Streams};
use super::tls::{Certificates, Handshake};
use super::{Site, plain};
use crate::tasks::Tasks;

/// What one connection, or one stream of it, may hold on its way in and, beside one frame, on its way out.
const BUFFER: usize = 128 << 10;
/// Requests at once on one connection.
const STREAMS: u32 = 100;
/// What a client may send ahead of us: on one stream, and on all of a connection.
const WINDOW: u32 = 1 << 20;

/// How we deal with whoever connects.
pub(super) struct Peers {
    site: Site,
    deadlines: Deadlines,
    certificates: Option<Certificates>,
    tasks: Tasks,
}

// === impl Peers ===

impl Peers {
    pub(super) fn new(site: Site, deadlines: Deadlines, certificates: Option<Certificates>, tasks: Tasks) -> Self {
        Self { site, deadlines, certificates, tasks }
    }

    /// Serves one connection to its end, which is near once `draining` is cancelled.
    pub(super) async fn serve(&self, stream: TcpStream, draining: CancellationToken) {
        // Without it a small answer may wait 40 ms for the client's acknowledgement.
        let _ = stream.set_nodelay(true);
        let progress = self.deadlines.progress;
        let Some(certificates) = &self.certificates else {
            let left = plain::serve(stream, self.deadlines, &self.site, &draining).await;
            let Some((stream, ahead)) = left else { return };
            let stream = TimedWrites::with_ahead(stream, ahead, progress);
            // In a box, as what follows: most connections are not as large as the largest.
            return Box::pin(self.http1(stream, draining.cancelled())).await;
        };
        Box::pin(self.encrypted(stream, certificates, draining)).await;
    }

    async fn encrypted(&self, stream: TcpStream, certificates: &Certificates, draining: CancellationToken) {
        let progress = self.deadlines.progress;
        let shaken = certificates.accept(stream, |stream| TimedWrites::new(stream, progress));
        match tokio::time::timeout(self.deadlines.head, shaken).await {
            Ok(Ok(Handshake::Http1(stream))) => self.http1(stream, draining.cancelled()).await,
            Ok(Ok(Handshake::Http2(stream))) => self.http2(stream, draining.cancelled()).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed: {error}"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn http1(&self, stream: impl AsyncRead + AsyncWrite + Unpin, draining: impl Future<Output = ()>) {
        let requests = Arc::new(Requests::default());
        let io = TokioIo::new(TimedReads::new(stream, self.deadlines, requests.clone()));
        let service = service_fn(move |request| self.answer(request, &requests));
        let mut builder = http1::Builder::new();
        builder.max_buf_size(BUFFER).timer(TokioTimer::new()).header_read_timeout(None);
        let mut connection = pin!(builder.serve_connection(io, service));
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = draining => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        log(ended);
    }

    async fn http2(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        draining: impl Future<Output = ()>,
    ) {
        let (requests, streams) = (Arc::new(Requests::default()), Streams::new(self.deadlines.progress, &self.tasks));
        let service = service_fn(|request| {
            let clock = streams.begin();
            let answer = self.answer(request, &requests);
            async move { answer.await.map(|response| response.map(|body| Body::new(Paced::new(body, clock)))) }
        });
        let mut builder = http2::Builder::new(streams.clone());
        builder.timer(TokioTimer::new()).max_concurrent_streams(STREAMS).max_send_buf_size(BUFFER);
        builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let unused = requests.unused_for(self.deadlines.head, self.deadlines.idle);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = draining => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = unused => {
                connection.as_mut().graceful_shutdown();
                // What is left are ends of answers that nobody takes, or a client that does not answer.
                tokio::time::timeout(self.deadlines.progress, connection).await.unwrap_or(Ok(()))
            }
        };
        log(ended);
    }

    fn answer(
        &self,
        request: Request<Incoming>,
        requests: &Arc<Requests>,
    ) -> Pin<Box<dyn Future<Output = Result<Response, std::convert::Infallible>> + Send>> {
        let guard = requests.begin();
        let site = self.site.clone();
        Box::pin(async move {
            let response = site.answer(request.map(Body::new)).await;
            Ok(response.map(|body| Guarded::wrap(body, guard)))
        })
    }
}

fn log(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended: {error}");
    }
}
