//! The client of `control.sock`, the socket of a running server in its data folder. The server's side is `control`.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::CliError;
use crate::control::{self, lines::Failed};

/// How long the headers of a response, or the next part of its body, may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// Bytes of one line of a response. No event is as long.
const MAX_LINE_BYTES: usize = 1 << 20;

/// A connection to a running server.
pub struct Client(SendRequest<Full<Bytes>>);

impl Client {
    /// Connects to the server of a data folder. `None` if no server listens.
    pub async fn connect(data: &Path) -> Result<Option<Self>, CliError> {
        let stream = match UnixStream::connect(control::socket_path(data)).await {
            Ok(stream) => stream,
            Err(error) if says_no_server(error.kind()) => return Ok(None),
            Err(error) => return Err(CliError::Server(format!("control.sock: {error}"))),
        };
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(server_error)?;
        // The connection ends with the sender, and the sender reports its errors.
        tokio::spawn(connection);
        Ok(Some(Self(sender)))
    }

    /// Calls an operation that responds with one JSON object.
    pub async fn call<A: DeserializeOwned>(
        &mut self,
        operation: &str,
        request: &impl Serialize,
    ) -> Result<A, CliError> {
        let response = self.send(operation, request).await?;
        let body = timeout(RESPONSE_TIMEOUT, response.into_body().collect()).await.map_err(timed_out)?;
        serde_json::from_slice(&body.map_err(server_error)?.to_bytes()).map_err(server_error)
    }

    /// Calls an operation that responds with lines, and passes each to `each`.
    pub async fn lines<E: DeserializeOwned>(
        &mut self,
        operation: &str,
        request: &impl Serialize,
        mut each: impl FnMut(E) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let mut body = self.send(operation, request).await?.into_body();
        let mut unread = BytesMut::new();
        while let Some(frame) = timeout(RESPONSE_TIMEOUT, body.frame()).await.map_err(timed_out)? {
            let Ok(data) = frame.map_err(server_error)?.into_data() else { continue };
            unread.extend_from_slice(&data);
            while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
                let line = unread.split_to(end);
                unread.advance(1);
                if let Ok(Failed { error }) = serde_json::from_slice(&line) {
                    return Err(CliError::Server(error));
                }
                each(serde_json::from_slice(&line).map_err(server_error)?)?;
            }
            if unread.len() > MAX_LINE_BYTES {
                return Err(CliError::Server("a line of its response is too long".to_owned()));
            }
        }
        Ok(())
    }

    async fn send(&mut self, operation: &str, request: &impl Serialize) -> Result<Response<Incoming>, CliError> {
        let body = serde_json::to_vec(request).map_err(server_error)?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("/v1/{operation}"))
            .header("host", "control.sock")
            .body(Full::from(body))
            .map_err(server_error)?;
        let response =
            timeout(RESPONSE_TIMEOUT, self.0.send_request(request)).await.map_err(timed_out)?.map_err(server_error)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = timeout(RESPONSE_TIMEOUT, response.into_body().collect()).await.map_err(timed_out)?;
        let bytes = body.map_err(server_error)?.to_bytes();
        let error = serde_json::from_slice::<serde_json::Value>(&bytes).ok();
        let error = error.and_then(|error| Some(error.get("error")?.as_str()?.to_owned()));
        Err(CliError::Refused(error.unwrap_or_else(|| format!("status {status}"))))
    }
}

/// Whether a failure to connect says that no server listens. The path may be too long for a socket: no server listens then.
fn says_no_server(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::InvalidInput)
}

fn server_error(error: impl std::fmt::Display) -> CliError {
    CliError::Server(error.to_string())
}

fn timed_out(_: tokio::time::error::Elapsed) -> CliError {
    CliError::Server("it does not respond".to_owned())
}
