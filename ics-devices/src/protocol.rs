// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What one service adds to what all have in common.
//!
//! ```text
//!            connected ─► ┌ request? ─► sent ─► answered ┐ … ─► disconnected
//!                         │               └───► failed   │
//!                         └─── tick, whenever it is due ─┘
//! ```
//!
//! A [`Protocol`] never sees a packet's header, an id, or a ring: [`Ic`](crate::Ic)
//! asks it for the body of its next request when there is room for one, and
//! shows it the answer. Between `connected` and `disconnected` it is asked for
//! its deadline, and ticked when that has come.
//!
//! # Two clocks
//! While the VM is paused the guest can do nothing, so what it is given time for
//! stands still: ticks, looks, the limit of a packet that nobody waits for. What a
//! user asked for has a deadline in the user's time, which passes all the same: see
//! [`Requests`] and [`Deadline`].

use std::time::Duration;

use crate::look::Look;
use crate::service::Service;
use crate::slot::{Cancelled, Requests, Ticket};
use crate::status::{ServiceError, ServiceState};
use crate::wire::{HResult, IcVersion, Versions};

/// When to give up waiting for an answer. Until one comes nothing else is sent,
/// also after the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// However late it comes, it is welcome.
    Never,
    /// Nobody waits: the guest is given so long, and longer by each pause.
    Guest(Duration),
    /// A user waits, whose time passes also while the VM is paused.
    User(Duration),
}

/// A request that is about to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// When to give up waiting for its answer.
    pub deadline: Deadline,
}

/// The answer to the last request that was sent.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// How the guest did.
    pub status: HResult,
    /// The body of the request as the guest sent it back: any length.
    pub body: &'a [u8],
}

/// An answer that makes no sense; it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest's answer makes no sense")]
pub struct BadAnswer;

/// The time `at`, moved because the VM `slept` until `now`. What happened while
/// it slept is moved to `now`.
pub fn moved(at: Duration, now: Duration, slept: Duration) -> Duration {
    at.saturating_add(slept).min(now)
}

/// A service, without what all services have in common.
pub trait Protocol: Send + 'static {
    /// Which service it is.
    const SERVICE: Service;
    /// Framework versions to offer, in ascending order.
    const FRAMEWORKS: &'static [IcVersion] = &[IcVersion::new(1, 0), IcVersion::new(3, 0)];
    /// Service versions to offer, in ascending order.
    const VERSIONS: &'static [IcVersion];
    /// The guest's driver reads its ring only when its daemon runs.
    const WAITS_FOR_DAEMON: bool = false;

    /// The versions are agreed on. State of an earlier connection is void.
    fn connected(&mut self, now: Duration, versions: Versions);

    /// The channel closed; also called if it was never connected.
    fn disconnected(&mut self, now: Duration);

    /// When to call [`tick`](Self::tick) at the latest.
    fn deadline(&self) -> Option<Duration> {
        None
    }

    /// Time has passed, and the VM is not paused. A deadline that has come must be
    /// gone afterwards.
    fn tick(&mut self, now: Duration) {
        let _ = now;
    }

    /// The requests of the host's user, where there can be any. Their deadlines are
    /// kept for the service.
    fn requests(&self) -> Option<&dyn Requests> {
        None
    }

    /// The same, to end some.
    fn requests_mut(&mut self) -> Option<&mut dyn Requests> {
        None
    }

    /// Nobody waits for this request any more. One that is not in the ring is
    /// forgotten; one that is gets [`failed`](Self::failed) afterwards.
    fn cancel(&mut self, ticket: Ticket) -> Cancelled {
        let requests = self.requests_mut();
        requests.map_or(Cancelled::Nothing, |requests| requests.cancel(ticket))
    }

    /// A request has ended between two packets of it, or before the first.
    fn ended_unsent(&mut self) {}

    /// If there is something to ask: appends it to `body`, which is empty. This
    /// is called right before the packet is written. The ring may have no room;
    /// then it is called again later, so nothing may be taken as sent here.
    fn request(&mut self, now: Duration, versions: Versions, body: &mut Vec<u8>)
    -> Option<Request>;

    /// The request that [`request`](Self::request) made is in the ring.
    fn sent(&mut self, now: Duration);

    /// The request is answered.
    fn answered(&mut self, now: Duration, answer: &Answer<'_>) -> Result<(), BadAnswer>;

    /// A request that has [`failed`](Self::failed) is answered after all. Only
    /// now is another one sent.
    fn late(&mut self, now: Duration, answer: &Answer<'_>) {
        let _ = (now, answer);
    }

    /// A packet of the guest is about to be looked at: what the ring says of it.
    fn arrived(&mut self, transaction_id: u64) {
        let _ = transaction_id;
    }

    /// The request's deadline has passed, the user has gone away, or no packet can
    /// ever be as large. The first two happen also while the VM is paused.
    fn failed(&mut self, now: Duration, error: ServiceError);

    /// The VM was paused.
    fn paused(&mut self, now: Duration) {
        let _ = now;
    }

    /// The VM goes on after it `slept`. Times that are kept have to be
    /// [`moved`], if the guest is to be given as much time as before.
    fn resumed(&mut self, now: Duration, slept: Duration) {
        let _ = (now, slept);
    }

    /// The looks for the guest's daemon, of a service that needs one.
    fn look(&mut self) -> Option<&mut Look> {
        None
    }

    /// While the versions are agreed on: how the service is, and one line about
    /// it for people.
    fn condition(&self, now: Duration) -> (ServiceState, String);
}
