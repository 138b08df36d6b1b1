// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A place for one request of the host's user, and for its outcome.
//!
//! ```text
//!   submit ─► waiting ─► sent ─► outcome ─► take
//!                ├────────┴─ deadline, channel closed ─┘
//!                └─ cancelled: forgotten
//! ```
//!
//! Every ticket that is not cancelled comes to exactly one outcome. An outcome that
//! nobody takes is overwritten by the next one, so nothing grows.
//!
//! A request's deadline is in its user's time: a pause of the VM does not move it.

use std::time::Duration;

use crate::status::ServiceError;

/// Names a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome<T> {
    /// Which request.
    pub ticket: Ticket,
    /// What the guest said, or what went wrong.
    pub result: Result<T, ServiceError>,
}

#[derive(Debug)]
struct Job<R> {
    ticket: Ticket,
    request: R,
    since: Duration,
    limit: Duration,
    sent: bool,
}

impl<R> Job<R> {
    fn deadline(&self) -> Duration {
        self.since.saturating_add(self.limit)
    }
}

/// What became of a request that was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// There is none of that name, or it has ended already.
    Nothing,
    /// It is not in the ring, and will not be.
    Unsent,
    /// It is in the ring: what the guest makes of it is open.
    Sent,
}

/// What is done with a [`Slot`] without knowing what is asked.
pub trait Requests {
    /// When [`expire`](Self::expire) is to be called: the deadline of a request that
    /// is not in the ring. The link keeps that of one that is.
    fn deadline(&self) -> Option<Duration>;

    /// Ends a request that could not be sent in time; whether there was one.
    fn expire(&mut self, now: Duration) -> bool;

    /// Forgets a request for which nobody waits any more, unless it is in the ring.
    fn cancel(&mut self, ticket: Ticket) -> Cancelled;
}

impl<R, T> Requests for Slot<R, T> {
    fn deadline(&self) -> Option<Duration> {
        self.waiting().map(|(_, deadline)| deadline)
    }

    fn expire(&mut self, now: Duration) -> bool {
        let due = self.deadline().is_some_and(|deadline| deadline <= now);
        if due {
            self.finish(Err(ServiceError::Unsent));
        }
        due
    }

    fn cancel(&mut self, ticket: Ticket) -> Cancelled {
        match &self.job {
            Some(job) if job.ticket == ticket && job.sent => Cancelled::Sent,
            Some(job) if job.ticket == ticket => {
                self.job = None;
                Cancelled::Unsent
            }
            _ => Cancelled::Nothing,
        }
    }
}

/// At most one request, at most one outcome.
#[derive(Debug)]
pub struct Slot<R, T> {
    last: u64,
    job: Option<Job<R>>,
    outcome: Option<Outcome<T>>,
}

impl<R, T> Default for Slot<R, T> {
    fn default() -> Self {
        Self {
            last: 0,
            job: None,
            outcome: None,
        }
    }
}

impl<R, T> Slot<R, T> {
    /// Takes a request that has to be answered within `limit`.
    pub fn submit(
        &mut self,
        now: Duration,
        limit: Duration,
        request: R,
    ) -> Result<Ticket, ServiceError> {
        if self.job.is_some() {
            return Err(ServiceError::Busy);
        }
        self.last += 1;
        let ticket = Ticket(self.last);
        self.job = Some(Job {
            ticket,
            request,
            since: now,
            limit,
            sent: false,
        });
        Ok(ticket)
    }

    /// The request that is to be sent, and its deadline.
    pub fn waiting(&self) -> Option<(&R, Duration)> {
        let job = self.job.as_ref().filter(|job| !job.sent)?;
        Some((&job.request, job.deadline()))
    }

    /// The request that is to be answered.
    pub fn in_flight(&self) -> Option<&R> {
        let job = self.job.as_ref().filter(|job| job.sent)?;
        Some(&job.request)
    }

    /// When the request is to be done, whether it is sent or not.
    pub fn limit(&self) -> Option<Duration> {
        self.job.as_ref().map(Job::deadline)
    }

    /// The request is in the ring: from now on its deadline is the link's.
    pub fn sent(&mut self) {
        if let Some(job) = &mut self.job {
            job.sent = true;
        }
    }

    /// The request needs one more packet to the guest, within the same limit.
    pub fn again(&mut self) {
        if let Some(job) = &mut self.job {
            job.sent = false;
        }
    }

    /// Ends the request, if there is one.
    pub fn finish(&mut self, result: Result<T, ServiceError>) {
        if let Some(job) = self.job.take() {
            let ticket = job.ticket;
            self.outcome = Some(Outcome { ticket, result });
        }
    }

    /// The outcome, once.
    pub fn take(&mut self) -> Option<Outcome<T>> {
        self.outcome.take()
    }
}
