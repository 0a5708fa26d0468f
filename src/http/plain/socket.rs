//! A socket of which every wait has an end.

use std::future::pending;
use std::io::{self, IoSlice};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::clock::Clock;
use super::head;

/// Room that a read finds: a head is shorter, as a rule.
const ROOM: usize = 4 << 10;
/// How long, and how much, a client may go on after the end.
const LINGER: Duration = Duration::from_secs(1);
const MOST_IGNORED: usize = 256 << 10;

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

    /// Resolves when the client has left. What it asks meanwhile is kept, and read no further than a head may be long. One
    /// that has asked for more and then says that this was all may still read.
    pub(super) async fn left(&mut self) {
        while self.read.len() < head::MOST {
            self.read.reserve(ROOM);
            match self.stream.read_buf(&mut self.read).await {
                Ok(0) if !self.read.is_empty() => break,
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        pending().await
    }

    /// Writes all of these, in one call to the system if the client takes as much.
    ///
    /// # Errors
    /// `TimedOut` when the client takes nothing for as long as is allowed, as in [`Socket::write_by`].
    pub(super) async fn write(&mut self, parts: [&[u8]; 3]) -> io::Result<()> {
        self.write_with(parts, SendFlags::NOSIGNAL).await
    }

    /// The same of a head that is held back until the first bytes behind it are written.
    pub(super) async fn write_ahead(&mut self, head: &[u8]) -> io::Result<()> {
        self.write_with([head, &[], &[]], SendFlags::NOSIGNAL | SendFlags::MORE).await
    }

    async fn write_with(&mut self, mut parts: [&[u8]; 3], flags: SendFlags) -> io::Result<()> {
        while parts.iter().any(|part| !part.is_empty()) {
            let slices = parts.map(IoSlice::new);
            let send = |stream: &TcpStream, _waited| {
                Ok(rustix::net::sendmsg(stream, &slices, &mut SendAncillaryBuffer::default(), flags)?)
            };
            let mut written = self.write_by(send).await?;
            for part in &mut parts {
                let of_part = written.min(part.len());
                *part = &part[of_part..];
                written -= of_part;
            }
        }
        Ok(())
    }

    /// Calls what writes to the socket whenever there is room, and with whether it had to wait for that, until it could.
    pub(super) async fn write_by<T>(
        &mut self,
        mut write: impl FnMut(&TcpStream, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut waited = false;
        loop {
            match self.stream.try_io(Interest::WRITABLE, || write(&self.stream, waited)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
            waited = true;
            self.clock.give(self.progress);
            tokio::select! {
                biased;
                ready = self.stream.writable() => ready?,
                () = &mut self.clock => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// Says that there is no more to come, and waits a little for the client to say the same: what it has sent and nobody
    /// has read would make a reset of the end, and take with it what is on its way.
    pub(super) async fn end(&mut self) {
        let ended = async {
            let _ = self.stream.shutdown().await;
            let mut read = 0;
            while read < MOST_IGNORED {
                self.read.clear();
                self.read.reserve(ROOM);
                match self.stream.read_buf(&mut self.read).await {
                    Ok(0) | Err(_) => return,
                    Ok(more) => read += more,
                }
            }
        };
        let _ = timeout(LINGER, ended).await;
    }
}
