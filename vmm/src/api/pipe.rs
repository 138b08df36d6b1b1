// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A request's body on its way from a client to the bus, while it comes.
//!
//! ```text
//!  client ─► API thread ── push ─► Pipe ── take ─► bus thread ─► guest
//!               ▲  room: its bell             data: its bell
//! ```
//!
//! Bounded: the client's socket is read as fast as the guest takes the data. That
//! the client has hung up is the [`Waiter`](super::waiter::Waiter)'s to tell.

use std::sync::Arc;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

/// Bytes that wait for the bus.
const CAPACITY: usize = 128 << 10;

/// The pipe; clones are ends of the same.
#[derive(Debug, Clone)]
pub struct Pipe {
    state: Arc<Mutex<State>>,
    /// Wakes the API thread.
    bell: Arc<EventFd>,
}

#[derive(Debug)]
struct State {
    size: u64,
    data: Vec<u8>,
    /// The guest takes data.
    ready: bool,
    /// Wakes the bus thread.
    bell: Option<Arc<EventFd>>,
}

impl PartialEq for Pipe {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

impl Eq for Pipe {}

impl Pipe {
    /// For a body of `size` bytes; `bell` wakes the API thread.
    pub fn new(size: u64, bell: Arc<EventFd>) -> Self {
        let state = State {
            size,
            data: Vec::new(),
            ready: false,
            bell: None,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            bell,
        }
    }

    /// Bytes of the whole body.
    pub fn size(&self) -> u64 {
        self.state.lock().size
    }

    /// The API thread: how many bytes may be pushed, or `None` if nobody knows
    /// yet whether the guest wants any.
    pub fn room(&self) -> Option<usize> {
        let state = self.state.lock();
        state
            .ready
            .then(|| CAPACITY.saturating_sub(state.data.len()))
    }

    /// The API thread: more of the body.
    pub fn push(&self, data: &[u8]) {
        let mut state = self.state.lock();
        state.data.extend_from_slice(data);
        state.wake();
    }

    /// The bus thread: wakes it from now on.
    pub fn set_bell(&self, bell: Arc<EventFd>) {
        self.state.lock().bell = Some(bell);
    }

    /// The bus thread: the guest takes data now.
    pub fn set_ready(&self) {
        let before = std::mem::replace(&mut self.state.lock().ready, true);
        if !before {
            let _ = self.bell.write(1);
        }
    }

    /// The bus thread: at most `most` bytes.
    pub fn take(&self, most: usize) -> Vec<u8> {
        let mut state = self.state.lock();
        let count = most.min(state.data.len());
        let taken: Vec<u8> = state.data.drain(..count).collect();
        drop(state);
        if !taken.is_empty() {
            let _ = self.bell.write(1);
        }
        taken
    }
}

impl State {
    fn wake(&self) {
        if let Some(bell) = &self.bell {
            let _ = bell.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bell() -> Arc<EventFd> {
        Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())
    }

    #[test]
    fn nothing_is_pushed_before_the_guest_wants_it() {
        let (api, bus) = (bell(), bell());
        let pipe = Pipe::new(10, Arc::clone(&api));
        pipe.set_bell(Arc::clone(&bus));
        assert_eq!((pipe.room(), pipe.size()), (None, 10));
        pipe.set_ready();
        assert!(api.read().is_ok());
        pipe.push(b"0123456789");
        assert!(bus.read().is_ok());
        assert_eq!(pipe.room(), Some(CAPACITY - 10));
        assert_eq!(pipe.take(4), b"0123");
        assert!(api.read().is_ok());
        assert_eq!(pipe.take(100), b"456789");
        assert!(pipe.take(100).is_empty());
    }
}
