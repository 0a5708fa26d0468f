//! A socket of which every wait has an end.

use std::future::pending;
use std::io::{self, IoSlice};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;

use super::clock::Clock;
use super::head;

/// Room that a read finds: a head is shorter, as a rule.
const ROOM: usize = 4 << 10;

pub(super) struct Socket {
    stream: TcpStream,
    /// What was read and not yet taken.
    pub(super) read: BytesMut,
    clock: Clock,
    /// How long a write may make no progress.
    progress: Duration,
}

impl Socket {
    /// `patience` is how long the first read may take.
    pub(super) fn new(stream: TcpStream, patience: Duration, progress: Duration) -> Self {
        Self { stream, read: BytesMut::new(), clock: Clock::new(patience), progress }
    }

    /// The socket and what was read ahead, for somebody else to go on with.
    pub(super) fn into_parts(self) -> (TcpStream, Bytes) {
        (self.stream, self.read.freeze())
    }

    /// From now on reading may take this long.
    pub(super) fn give(&mut self, patience: Duration) {
        self.clock.give(patience);
    }

    /// Reads more; zero at the end.
    ///
    /// # Errors
    /// `TimedOut` when the time that was given has passed.
    pub(super) async fn read_more(&mut self) -> io::Result<usize> {
        self.read.reserve(ROOM);
        tokio::select! {
            biased;
            read = self.stream.read_buf(&mut self.read) => read,
            () = &mut self.clock => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Resolves when the client has left. What it asks meanwhile is kept, and read no further than a head may be long.
    pub(super) async fn left(&mut self) {
        while self.read.len() < head::MOST {
            self.read.reserve(ROOM);
            match self.stream.read_buf(&mut self.read).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        pending().await
    }

    /// Writes all of both, in one call to the system if the client takes as much. With `more`, there is more to come soon.
    ///
    /// # Errors
    /// `TimedOut` when the client takes nothing for as long as is allowed, as in [`Socket::write_by`].
    pub(super) async fn write(&mut self, mut head: &[u8], mut body: &[u8], more: bool) -> io::Result<()> {
        let flags = SendFlags::NOSIGNAL | if more { SendFlags::MORE } else { SendFlags::empty() };
        while !(head.is_empty() && body.is_empty()) {
            let slices = [IoSlice::new(head), IoSlice::new(body)];
            let send = |stream: &TcpStream| {
                Ok(rustix::net::sendmsg(stream, &slices, &mut SendAncillaryBuffer::default(), flags)?)
            };
            let written = self.write_by(send).await?;
            let of_head = written.min(head.len());
            (head, body) = (&head[of_head..], &body[written - of_head..]);
        }
        Ok(())
    }

    /// Calls what writes to the socket whenever there is room, until it could.
    pub(super) async fn write_by(
        &mut self,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match self.stream.try_io(Interest::WRITABLE, || write(&self.stream)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
            self.clock.give(self.progress);
            tokio::select! {
                biased;
                ready = self.stream.writable() => ready?,
                () = &mut self.clock => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// Says that there is no more to come.
    pub(super) async fn end(&mut self) {
        let _ = self.stream.shutdown().await;
    }
}
