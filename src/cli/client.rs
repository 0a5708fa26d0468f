//! Asking a running server, over the socket in its data folder: the other half of `control`.

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

/// For the head of an answer, and for the next part of a long one.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// More than any line takes.
const LONGEST_LINE: usize = 1 << 20;

pub struct Client(SendRequest<Full<Bytes>>);

impl Client {
    /// The server of a data folder; `None` if none listens there.
    pub async fn connect(data: &Path) -> Result<Option<Self>, CliError> {
        let stream = match UnixStream::connect(control::path(data)).await {
            Ok(stream) => stream,
            // A path that is too long for a socket is one that no server listens on.
            Err(error) if nobody_listens(error.kind()) => return Ok(None),
            Err(error) => return Err(CliError::Server(format!("control.sock: {error}"))),
        };
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(server_error)?;
        // It ends with the sender, and what is wrong with it shows there.
        tokio::spawn(connection);
        Ok(Some(Self(sender)))
    }

    /// An operation with a short answer.
    pub async fn call<A: DeserializeOwned>(
        &mut self,
        operation: &str,
        question: &impl Serialize,
    ) -> Result<A, CliError> {
        let response = self.send(operation, question).await?;
        let body = timeout(PATIENCE, response.into_body().collect()).await.map_err(silent)?;
        serde_json::from_slice(&body.map_err(server_error)?.to_bytes()).map_err(server_error)
    }

    /// An operation that answers in lines, each handed to `each`.
    pub async fn lines<E: DeserializeOwned>(
        &mut self,
        operation: &str,
        question: &impl Serialize,
        mut each: impl FnMut(E) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let mut body = self.send(operation, question).await?.into_body();
        let mut unread = BytesMut::new();
        while let Some(frame) = timeout(PATIENCE, body.frame()).await.map_err(silent)? {
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
            if unread.len() > LONGEST_LINE {
                return Err(CliError::Server("it sends what is no line".to_owned()));
            }
        }
        Ok(())
    }

    async fn send(&mut self, operation: &str, question: &impl Serialize) -> Result<Response<Incoming>, CliError> {
        let question = serde_json::to_vec(question).map_err(server_error)?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("/v1/{operation}"))
            .header("host", "control.sock")
            .body(Full::from(question))
            .map_err(server_error)?;
        let response = timeout(PATIENCE, self.0.send_request(request)).await.map_err(silent)?.map_err(server_error)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = timeout(PATIENCE, response.into_body().collect()).await.map_err(silent)?;
        let bytes = body.map_err(server_error)?.to_bytes();
        let error = serde_json::from_slice::<serde_json::Value>(&bytes).ok();
        let error = error.and_then(|error| Some(error.get("error")?.as_str()?.to_owned()));
        Err(CliError::Refused(error.unwrap_or_else(|| format!("it answers {status}"))))
    }
}

fn nobody_listens(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::InvalidInput)
}

fn server_error(error: impl std::fmt::Display) -> CliError {
    CliError::Server(error.to_string())
}

fn silent(_: tokio::time::error::Elapsed) -> CliError {
    CliError::Server("it does not answer".to_owned())
}
