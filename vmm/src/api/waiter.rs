// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether a client still waits for the answer to what it asked for.
//!
//! ```text
//!  API thread: WaitGuard ── answered ─► Answered
//!                  └─ dropped: the client has hung up ─► Gone, and the bell
//!  bus thread: Waiter ── is gone? ─► what was asked is cancelled
//! ```
//!
//! A client that goes away takes what it asked for with it. Nobody is asked to look:
//! who does the work is woken.

use std::sync::Arc;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    /// The answer is in the client's socket.
    Answered,
    /// It has hung up before.
    Gone,
}

#[derive(Debug)]
struct Shared {
    state: State,
    /// Of the thread that does the work.
    bell: Option<Arc<EventFd>>,
}

/// The end of who does the work; clones are the same.
#[derive(Debug, Clone)]
pub struct Waiter(Arc<Mutex<Shared>>);

/// The end of who has the connection: as long as it is kept, the client waits.
#[derive(Debug)]
pub struct WaitGuard(Waiter);

impl Waiter {
    /// Of a client that waits.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Shared {
            state: State::Waiting,
            bell: None,
        })))
    }

    /// To be kept as long as the client waits.
    pub fn guard(&self) -> WaitGuard {
        WaitGuard(self.clone())
    }

    /// Rings this bell when the client hangs up. Look whether it
    /// [`is_gone`](Self::is_gone) afterwards.
    pub fn ring(&self, bell: Arc<EventFd>) {
        self.0.lock().bell = Some(bell);
    }

    /// Whether it has hung up before it was answered.
    pub fn is_gone(&self) -> bool {
        self.0.lock().state == State::Gone
    }

    /// Whether it has its answer.
    pub fn is_answered(&self) -> bool {
        self.0.lock().state == State::Answered
    }
}

impl Default for Waiter {
    fn default() -> Self {
        Self::new()
    }
}

impl WaitGuard {
    /// The client has its answer.
    pub fn answered(self) {
        self.0.0.lock().state = State::Answered;
    }
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        let mut shared = self.0.0.lock();
        if shared.state == State::Waiting {
            shared.state = State::Gone;
            if let Some(bell) = &shared.bell {
                let _ = bell.write(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hangs_up_before_the_answer_rings_and_is_gone() {
        let bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let waiter = Waiter::new();
        let guard = waiter.guard();
        waiter.ring(Arc::clone(&bell));
        assert!(!waiter.is_gone() && !waiter.is_answered() && bell.read().is_err());
        drop(guard);
        assert!(waiter.is_gone() && !waiter.is_answered() && bell.read().is_ok());
    }

    #[test]
    fn who_has_the_answer_may_go() {
        let bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let waiter = Waiter::new();
        waiter.ring(Arc::clone(&bell));
        waiter.guard().answered();
        assert!(!waiter.is_gone() && waiter.is_answered() && bell.read().is_err());
    }

    #[test]
    fn who_was_gone_before_anybody_listened_is_found_out() {
        let waiter = Waiter::new();
        drop(waiter.guard());
        assert!(waiter.is_gone());
    }
}
