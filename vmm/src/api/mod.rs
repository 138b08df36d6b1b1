// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control API: HTTP/1.1 and JSON over a Unix socket.
//!
//! ```text
//!  clients ──► one API thread ──Call──► supervisor ──► bus thread
//!      ◄────── never blocks   ◄──────────── Reply ────────┘
//! ```
//!
//! The API thread only moves bytes. Who is slow, silent or gone holds up
//! nobody: each connection has its own buffers, all of them bounded.

pub mod data;
pub mod http;
pub mod hvsocket;
pub mod pipe;
pub mod query;
pub mod routes;
pub mod server;
pub mod socket;
pub mod types;
pub mod waiter;

use std::sync::Arc;

use crossbeam_channel::Sender;
use vmm_sys_util::eventfd::EventFd;

pub use routes::Op;
use types::{Answer, ApiError};
use waiter::Waiter;

/// An operation on its way to who can do it.
#[derive(Debug)]
pub struct Call {
    /// What to do.
    pub op: Op,
    /// Where the answer goes.
    pub reply: Reply,
}

/// The way back to a client. Dropping it unused tells the client so.
#[derive(Debug)]
pub struct Reply {
    client: u64,
    queue: Sender<(u64, Answer)>,
    bell: Arc<EventFd>,
    used: bool,
    waiter: Waiter,
}

impl Reply {
    /// For a client of the API thread with this queue and bell.
    pub fn new(client: u64, queue: Sender<(u64, Answer)>, bell: Arc<EventFd>) -> Self {
        Self {
            client,
            queue,
            bell,
            used: false,
            waiter: Waiter::new(),
        }
    }

    /// Whether the client still waits for it.
    pub fn waiter(&self) -> &Waiter {
        &self.waiter
    }

    /// The client has hung up, and what it asked for is not done: nobody is told.
    pub fn abandon(mut self) {
        self.used = true;
    }

    /// Answers.
    pub fn send(mut self, answer: Answer) {
        self.deliver(answer);
    }

    fn deliver(&mut self, answer: Answer) {
        self.used = true;
        // Fails only when the API thread is gone, and the client with it.
        let _ = self.queue.send((self.client, answer));
        let _ = self.bell.write(1);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.used {
            self.deliver(Err(ApiError::gone()));
        }
    }
}

/// Where the API thread sends operations.
#[derive(Debug, Clone)]
pub struct CallSender {
    /// The queue.
    pub queue: Sender<Call>,
    /// Wakes its reader.
    pub bell: Arc<EventFd>,
}

impl CallSender {
    /// Hands over a call.
    pub fn send(&self, call: Call) {
        // A reader that is gone drops the call, and so answers it.
        let _ = self.queue.send(call);
        let _ = self.bell.write(1);
    }
}
