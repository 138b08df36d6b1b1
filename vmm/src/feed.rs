// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lines on their way to the clients of the API that follow something.
//!
//! Bounded: who writes never waits, and learns when nobody reads.

use std::io;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use vmm_sys_util::eventfd::EventFd;

/// The writer's end.
#[derive(Debug)]
pub struct Feed {
    queue: Sender<Arc<[u8]>>,
    bell: Arc<EventFd>,
}

/// The API thread's end.
#[derive(Debug)]
pub struct FeedEnd {
    queue: Receiver<Arc<[u8]>>,
    /// Written when there are lines.
    pub bell: Arc<EventFd>,
}

impl Feed {
    /// Both ends, with room for so many pieces between them.
    pub fn new(room: usize) -> io::Result<(Self, FeedEnd)> {
        let bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let (sender, queue) = bounded(room);
        let feed = Self {
            queue: sender,
            bell: Arc::clone(&bell),
        };
        Ok((feed, FeedEnd { queue, bell }))
    }

    /// Passes whole lines on; false if too much waits already.
    pub fn offer(&self, lines: Arc<[u8]>) -> bool {
        let taken = self.queue.try_send(lines).is_ok();
        let _ = self.bell.write(1);
        taken
    }
}

impl FeedEnd {
    /// The lines that are new since the last call.
    pub fn take(&self) -> Vec<u8> {
        let _ = self.bell.read();
        let lines: Vec<_> = self.queue.try_iter().collect();
        lines.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_takes_is_refused_and_what_waits_comes_in_order() {
        let (feed, end) = Feed::new(8).unwrap();
        let line: Arc<[u8]> = b"a\n".as_slice().into();
        for _ in 0..8 {
            assert!(feed.offer(Arc::clone(&line)));
        }
        assert!(!feed.offer(Arc::clone(&line)));
        assert_eq!(end.take().len(), 16);
        assert!(feed.offer(b"b\n".as_slice().into()));
        assert_eq!(end.take(), b"b\n");
        assert!(end.take().is_empty() && end.bell.read().is_err());
    }
}
