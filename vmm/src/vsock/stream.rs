// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A Unix socket as the host's end of a connection.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmbus::hvsock::{Stream, StreamError};
use vmbus::memory::GuestSlice;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::sys;

/// Half of what a socket may hold for its reader, as the kernel counts: a guest's
/// ring and more, so that the guest can go on while the reader reads.
const SEND_BUFFER: i32 = 256 << 10;

/// What is told of an end: once for each change.
pub const WATCHED: EventSet = EventSet::IN
    .union(EventSet::READ_HANG_UP)
    .union(EventSet::EDGE_TRIGGERED);

/// What tells that no more is to come than what there is.
const ENDS: EventSet = EventSet::READ_HANG_UP
    .union(EventSet::HANG_UP)
    .union(EventSet::ERROR);

/// What the loop has seen of a socket, for its end. All of it happens on the
/// bus thread; it is shared between two of its structures.
pub struct Signs {
    /// Both directions are closed.
    gone: AtomicBool,
    /// Its writer has ended: reading comes to that at last.
    ending: AtomicBool,
    /// Something came since it was last read empty.
    readable: AtomicBool,
}

impl Default for Signs {
    fn default() -> Self {
        Self::new()
    }
}

impl Signs {
    /// Of a socket of which nothing is known.
    pub fn new() -> Self {
        Self {
            gone: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            readable: AtomicBool::new(true),
        }
    }

    /// Takes note of what epoll tells.
    pub fn note(&self, events: EventSet) {
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.gone.store(true, Ordering::Relaxed);
        }
        if events.intersects(ENDS) {
            self.ending.store(true, Ordering::Relaxed);
        }
        if events.intersects(ENDS | EventSet::IN) {
            self.readable.store(true, Ordering::Relaxed);
        }
    }

    /// The socket is empty, and what comes later is told. The end of the stream is
    /// no bytes: once it has been told, reads go on until they give it.
    fn emptied(&self) {
        let ending = self.ending.load(Ordering::Relaxed);
        self.readable.store(ending, Ordering::Relaxed);
    }
}

/// Whether nothing will come any more from a client.
pub fn is_end(events: EventSet) -> bool {
    events.intersects(ENDS)
}

/// The host's end of a connection.
pub struct UnixEnd {
    socket: UnixStream,
    epoll: Arc<Epoll>,
    token: u64,
    signs: Arc<Signs>,
    /// It could not be written to, and is watched for that.
    blocked: bool,
    /// What a client is told when the guest has accepted. Then empty.
    answer: String,
}

impl UnixEnd {
    /// A socket that is watched as `token`.
    pub fn new(socket: UnixStream, epoll: Arc<Epoll>, token: u64, signs: Arc<Signs>) -> Self {
        sys::widen(&socket, SEND_BUFFER);
        Self {
            socket,
            epoll,
            token,
            signs,
            blocked: false,
            answer: String::new(),
        }
    }

    /// Its client waits for an answer about `name`.
    #[must_use]
    pub fn answering(mut self, name: &str) -> Self {
        self.answer = format!("OK {name}\n");
        self
    }

    /// Lets `write` write `all`. A socket that takes nothing is watched until it
    /// has taken all again.
    fn written(
        &mut self,
        all: usize,
        write: impl Fn(&UnixStream) -> io::Result<usize>,
    ) -> Result<usize, StreamError> {
        loop {
            match write(&self.socket) {
                Ok(0) => return Err(StreamError::Gone),
                Ok(len) => {
                    if len == all {
                        // What was written stays written, whatever comes of this.
                        let _ = self.watch(false);
                    }
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
        self.written(data.len(), |mut socket| socket.write(data))
    }

    fn write_pieces(&mut self, pieces: &[GuestSlice<'_>]) -> Result<usize, StreamError> {
        let all = pieces.iter().map(GuestSlice::len).sum();
        self.written(all, |socket| sys::write_volatile(socket, pieces))
    }

    fn close_write(&mut self) {
        // It may be gone already.
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, StreamError> {
        if !self.signs.readable.load(Ordering::Relaxed) {
            return Err(StreamError::WouldBlock);
        }
        loop {
            match sys::receive(&self.socket, into) {
                Ok((len, more)) => {
                    if len < into.len() && !more {
                        self.signs.emptied();
                    }
                    return Ok(len);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.signs.emptied();
                    return Err(StreamError::WouldBlock);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(StreamError::Gone),
            }
        }
    }

    fn is_gone(&self) -> bool {
        self.signs.gone.load(Ordering::Relaxed)
    }
}

impl Drop for UnixEnd {
    fn drop(&mut self) {
        if !self.answer.is_empty() {
            // Never offered: the guest is not on the bus, as a rule.
            let _ = self
                .socket
                .write(b"ERR the guest is not connected to the bus\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    use super::*;

    fn end() -> (UnixEnd, Arc<Signs>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let signs = Arc::new(Signs::new());
        let epoll = Arc::new(Epoll::new().unwrap());
        (
            UnixEnd::new(ours, epoll, 0, Arc::clone(&signs)),
            signs,
            theirs,
        )
    }

    #[test]
    fn an_empty_socket_is_not_read_until_something_comes() {
        let (mut end, signs, mut peer) = end();
        let mut bytes = [0; 10];
        peer.write_all(b"abc").unwrap();
        assert_eq!(end.read(&mut bytes), Ok(3));
        peer.write_all(b"de").unwrap();
        // It was empty, and this is not told yet.
        assert_eq!(end.read(&mut bytes), Err(StreamError::WouldBlock));
        signs.note(EventSet::IN);
        assert_eq!(end.read(&mut bytes), Ok(2));
        signs.note(EventSet::OUT);
        assert_eq!(end.read(&mut bytes), Err(StreamError::WouldBlock));
    }

    #[test]
    fn what_stands_behind_a_descriptor_is_read_too() {
        let (mut end, _, mut peer) = end();
        let mut bytes = [0; 10];
        peer.send_with_fd(&b"ab"[..], peer.as_raw_fd()).unwrap();
        peer.write_all(b"cde").unwrap();
        assert_eq!(end.read(&mut bytes), Ok(2));
        assert_eq!(end.read(&mut bytes), Ok(3));
        assert_eq!(end.read(&mut bytes), Err(StreamError::WouldBlock));
    }

    #[test]
    fn an_end_that_was_told_is_read_also_behind_data() {
        let (mut end, signs, mut peer) = end();
        let mut bytes = [0; 10];
        peer.write_all(b"abc").unwrap();
        drop(peer);
        signs.note(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP);
        assert!(end.is_gone());
        assert_eq!(end.read(&mut bytes), Ok(3));
        assert_eq!(end.read(&mut bytes), Ok(0));
    }

    #[test]
    fn pieces_are_one_write() {
        let (mut end, _, mut peer) = end();
        let (mut first, mut second) = (*b"ab", *b"cde");
        let pieces = [&mut first[..], &mut second].map(GuestSlice::from);
        assert_eq!(end.write_pieces(&pieces), Ok(5));
        let mut bytes = [0; 10];
        assert_eq!(peer.read(&mut bytes).unwrap(), 5);
        assert_eq!(&bytes[..5], b"abcde");
    }
}
