// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A Unix socket as the host's end of a connection.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmbus::hvsock::{Stream, StreamError};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// What is told of an end: once for each change.
pub(super) const WATCHED: EventSet = EventSet::IN
    .union(EventSet::READ_HANG_UP)
    .union(EventSet::EDGE_TRIGGERED);

/// The host's end of a connection.
pub(super) struct UnixEnd {
    socket: UnixStream,
    epoll: Arc<Epoll>,
    token: u64,
    /// Both directions are closed; set by the loop.
    gone: Arc<AtomicBool>,
    /// It could not be written to, and is watched for that.
    blocked: bool,
    /// What a client is told when the guest has accepted. Then empty.
    answer: String,
}

impl UnixEnd {
    /// A socket that is watched as `token`.
    pub(super) fn new(
        socket: UnixStream,
        epoll: Arc<Epoll>,
        token: u64,
        gone: Arc<AtomicBool>,
    ) -> Self {
        Self {
            socket,
            epoll,
            token,
            gone,
            blocked: false,
            answer: String::new(),
        }
    }

    /// Its client waits for an answer about `name`.
    pub(super) fn answering(mut self, name: &str) -> Self {
        self.answer = format!("OK {name}\n");
        self
    }

    fn watch(&mut self, blocked: bool) -> Result<(), StreamError> {
        if self.blocked != blocked {
            let more = if blocked {
                EventSet::OUT
            } else {
                EventSet::empty()
            };
            let event = EpollEvent::new(WATCHED | more, self.token);
            let fd = self.socket.as_raw_fd();
            self.epoll
                .ctl(ControlOperation::Modify, fd, event)
                .map_err(|_| StreamError::Gone)?;
            self.blocked = blocked;
        }
        Ok(())
    }
}

impl Stream for UnixEnd {
    fn opened(&mut self) {
        let answer = std::mem::take(&mut self.answer);
        // Its buffer is empty; a client that is gone is noticed when it is read.
        let _ = self.socket.write(answer.as_bytes());
    }

    fn refused(&mut self) {
        if !std::mem::take(&mut self.answer).is_empty() {
            let _ = self
                .socket
                .write(b"ERR nobody in the guest took the connection\n");
        }
    }

    fn write(&mut self, data: &[u8]) -> Result<usize, StreamError> {
        loop {
            match self.socket.write(data) {
                Ok(0) => return Err(StreamError::Gone),
                Ok(len) => {
                    self.watch(false)?;
                    return Ok(len);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.watch(true)?;
                    return Err(StreamError::WouldBlock);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(StreamError::Gone),
            }
        }
    }

    fn close_write(&mut self) {
        // It may be gone already.
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, StreamError> {
        loop {
            match self.socket.read(into) {
                Ok(len) => return Ok(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(StreamError::WouldBlock);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(StreamError::Gone),
            }
        }
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

impl Drop for UnixEnd {
    fn drop(&mut self) {
        if !self.answer.is_empty() {
            // Never offered: the guest is not on the bus.
            let _ = self
                .socket
                .write(b"ERR the guest is not connected to the bus\n");
        }
    }
}
