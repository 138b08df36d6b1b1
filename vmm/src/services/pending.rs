// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests of a service's that wait for their outcome, each with its client.

use std::collections::HashMap;
use std::sync::Arc;

use ics_devices::Ticket;
use vmm_sys_util::eventfd::EventFd;

use crate::api::Reply;
use crate::api::types::ApiError;

/// What was asked for, by ticket.
#[derive(Debug)]
pub(super) struct Pending<T> {
    waiting: HashMap<Ticket, (T, Reply)>,
    /// Wakes the bus thread when a client hangs up.
    bell: Arc<EventFd>,
}

impl<T> Pending<T> {
    pub(super) fn new(bell: &Arc<EventFd>) -> Self {
        Self {
            waiting: HashMap::new(),
            bell: Arc::clone(bell),
        }
    }

    /// A client waits for the outcome.
    pub(super) fn insert(&mut self, ticket: Ticket, what: T, reply: Reply) {
        reply.waiter().ring(Arc::clone(&self.bell));
        self.waiting.insert(ticket, (what, reply));
    }

    /// Who waits for this outcome.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<(T, Reply)> {
        self.waiting.remove(&ticket)
    }

    /// Answers all with an error.
    pub(super) fn refuse_all(&mut self, error: &ApiError) {
        for (_, (_, reply)) in self.waiting.drain() {
            reply.send(Err(error.clone()));
        }
    }

    /// Those for which nobody waits any more; they are forgotten here.
    pub(super) fn take_abandoned(&mut self) -> Vec<Ticket> {
        let gone = |(ticket, (_, reply)): (&Ticket, &(T, Reply))| {
            reply.waiter().is_gone().then_some(*ticket)
        };
        let gone: Vec<Ticket> = self.waiting.iter().filter_map(gone).collect();
        for ticket in &gone {
            if let Some((_, reply)) = self.waiting.remove(ticket) {
                reply.abandon();
            }
        }
        gone
    }
}
