// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Backup: freezing the guest's file systems for a moment (protocol 6.7).
//!
//! ```text
//!            freeze            daemon is there            frozen
//!   Thawed ─────────► checking ───────────────► freezing ───────► Frozen
//!     ▲                  │ no daemon                │ refused        │ thaw, or
//!     │◄─────────────────┘                          ▼ or too late    ▼ the deadline
//!     └──── thawed ──────────────────────────────── Thawing ◄────────┘
//!                                    failed: again  └─┘
//! ```
//!
//! * Every freeze has a deadline, from the moment it was asked for, in the time of
//!   who asked for it. When it has come, thawing begins by itself, whoever is still
//!   there to ask for it: at once, or as soon as a VM that is paused goes on.
//! * A freeze that was refused, or whose end is unknown, is thawed as well: to
//!   thaw what is not frozen does no harm.
//! * Thawing goes on until the guest says that it is done, with a new daemon or
//!   a new channel if need be. Until then the file systems may be frozen, and
//!   the service says so.
//! * Without its daemon the guest's driver fails a freeze as it fails any other;
//!   the check before it tells which it was.

use std::fmt;
use std::time::Duration;

use crate::device::Ic;
use crate::look::Look;
use crate::protocol::{Answer, BadAnswer, Deadline, Protocol, Request, moved};
use crate::service::Service;
use crate::slot::{Outcome, Requests, Slot, Ticket};
use crate::status::{ServiceError, ServiceState};
use crate::wire::{HResult, IcVersion, Versions};

/// The backup service.
///
/// ```
/// use std::time::Duration;
/// use ics_devices::{ServiceError, Vss, VssRequest};
///
/// let mut vss = Vss::new();
/// let max = Duration::from_secs(10);
/// // Nobody has opened the channel.
/// let refused = vss.request(Duration::ZERO, VssRequest::Freeze { max });
/// assert_eq!(refused, Err(ServiceError::NotOpen));
/// ```
pub type Vss = Ic<VssProtocol>;

/// The guest's timer for all but freezing is 30 s: an answer comes before this.
const ANSWER_LIMIT: Duration = Duration::from_secs(35);
/// Between a thaw that failed and the next.
const THAW_AGAIN: Duration = Duration::from_secs(1);
/// No freeze may last longer.
pub const MAX_FREEZE: Duration = Duration::from_secs(900);
/// A guest that has been asked to thaw for so long, and has not said that it did,
/// will not: it had the time to answer, or to refuse again and again.
pub const THAW_PATIENCE: Duration = Duration::from_secs(35);

/// What the host's user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VssRequest {
    /// Whether the guest can be frozen.
    Check,
    /// Freeze, and thaw at the latest after this long.
    Freeze {
        /// From the request on.
        max: Duration,
    },
    /// Thaw.
    Thaw,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VssAnswer {
    /// The guest can be frozen.
    Possible,
    /// The file systems are frozen until the time of the deadline.
    Frozen {
        /// When they are thawed by themselves.
        until: Duration,
    },
    /// The file systems are thawed.
    Thawed {
        /// They were frozen up to this thaw: whatever was copied since the
        /// freeze is of one moment.
        was_frozen: bool,
    },
}

/// What is known of the guest's file systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filesystems {
    /// Nobody has asked the guest to freeze them, or it has thawed them.
    Thawed,
    /// The guest was asked to freeze them, and has not answered.
    Freezing,
    /// Frozen since then, and until then at the latest.
    Frozen {
        /// When the guest said so.
        since: Duration,
        /// When they are thawed by themselves.
        until: Duration,
    },
    /// They may be frozen, and the guest is asked to thaw them until it has.
    MaybeFrozen,
}

/// Why the service cannot be taken away from the guest now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// The file systems are frozen, or about to be, and no thaw was asked for.
    Frozen,
    /// The guest is asked to thaw them, and is given so long yet to do it.
    Thawing {
        /// How long.
        left: Duration,
    },
}

/// Operations on the wire. Creating, deleting and recovering mean nothing to
/// Linux and are not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Check,
    Complete,
    Freeze,
    Thaw,
}

/// Appends the body of a request: operation, reserved, flags.
fn emit(operation: Operation, body: &mut Vec<u8>) {
    let operation = match operation {
        Operation::Check => 2,
        Operation::Complete => 4,
        Operation::Freeze => 5,
        Operation::Thaw => 6,
    };
    body.extend_from_slice(&[operation, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Daemon {
    Unknown,
    There,
    Gone,
}

/// What backup adds to what all services have in common.
#[derive(Debug)]
pub struct VssProtocol {
    slot: Slot<VssRequest, VssAnswer>,
    filesystems: Filesystems,
    /// For a freeze: the check before it went well.
    checked: bool,
    daemon: Daemon,
    /// A thaw is due now.
    thaw_now: bool,
    thaw_at: Option<Duration>,
    /// Since when the guest is asked to thaw.
    thawing_since: Option<Duration>,
    paused_at: Option<Duration>,
    complete_now: bool,
    look: Look,
    /// Chosen by `request`, in the ring after `sent`.
    operation: Option<Operation>,
    /// Freezes that lasted until their deadline.
    expired: u64,
}

impl Default for VssProtocol {
    fn default() -> Self {
        Self {
            slot: Slot::default(),
            filesystems: Filesystems::Thawed,
            checked: false,
            daemon: Daemon::Unknown,
            thaw_now: false,
            thaw_at: None,
            thawing_since: None,
            paused_at: None,
            complete_now: false,
            look: Look::default(),
            operation: None,
            expired: 0,
        }
    }
}

impl Vss {
    /// A backup service that does nothing until it is asked to.
    pub fn new() -> Self {
        Self::from_protocol(VssProtocol::default())
    }

    /// The same, for a guest whose file systems an earlier device of the service left
    /// frozen, for all that is known: it is asked to thaw them before all else.
    #[must_use]
    pub fn thawing_first(mut self, now: Duration) -> Self {
        self.protocol.filesystems = Filesystems::MaybeFrozen;
        self.protocol.thawing_since = Some(now);
        self
    }

    /// Asks the guest. Poke the host, then wait for the outcome. A thaw that is asked
    /// for while the VM is paused is refused, and brings the freeze's deadline forward.
    pub fn request(&mut self, now: Duration, request: VssRequest) -> Result<Ticket, ServiceError> {
        let admitted = self.admit();
        if admitted == Err(ServiceError::Paused) && request == VssRequest::Thaw {
            // It cannot be done now. What was wanted is done as soon as it can be.
            self.thaw_soon(now);
        }
        admitted?;
        let limit = self.protocol.check(request)?;
        let ticket = self.protocol.slot.submit(now, limit, request)?;
        self.protocol.checked = false;
        Ok(ticket)
    }

    /// How the request ended, once.
    pub fn take_outcome(&mut self) -> Option<Outcome<VssAnswer>> {
        self.protocol.slot.take()
    }

    /// What is known of the guest's file systems.
    pub fn filesystems(&self) -> Filesystems {
        self.protocol.filesystems
    }

    /// Nobody waits any more for what is frozen to be thawed: its deadline comes now.
    /// Poke the host.
    pub fn thaw_soon(&mut self, now: Duration) {
        if let Some(at) = &mut self.protocol.thaw_at {
            *at = now.min(*at);
        }
    }

    /// Whether taking the service away would leave the guest's file systems frozen.
    /// A guest cannot make that last: it ends [`THAW_PATIENCE`] after the guest was
    /// asked to thaw, whatever it says.
    pub fn needed(&self, now: Duration) -> Option<Needed> {
        self.protocol.needed(now)
    }

    /// How many freezes were ended by their deadline.
    pub fn expired(&self) -> u64 {
        self.protocol.expired
    }
}

impl Default for Vss {
    fn default() -> Self {
        Self::new()
    }
}

impl VssProtocol {
    fn check(&self, request: VssRequest) -> Result<Duration, ServiceError> {
        match request {
            VssRequest::Freeze { max } if max.is_zero() || max > MAX_FREEZE => {
                Err(ServiceError::Unsupported(
                    "a freeze lasts more than nothing and at most 15 minutes",
                ))
            }
            // Whoever froze them relies on their deadline.
            VssRequest::Freeze { .. } if self.filesystems != Filesystems::Thawed => {
                Err(ServiceError::Busy)
            }
            VssRequest::Freeze { max } => Ok(max),
            VssRequest::Check | VssRequest::Thaw => Ok(ANSWER_LIMIT),
        }
    }

    /// From now on the guest is asked to thaw until it has.
    fn thaw(&mut self, now: Duration) {
        self.filesystems = Filesystems::MaybeFrozen;
        self.thaw_now = true;
        self.thaw_at = None;
        self.thawing_since.get_or_insert(now);
    }

    fn needed(&self, now: Duration) -> Option<Needed> {
        if self.filesystems == Filesystems::Thawed {
            return None;
        }
        let Some(since) = self.thawing_since else {
            return Some(Needed::Frozen);
        };
        // What a paused guest does not do is not held against it.
        let now = self.paused_at.unwrap_or(now);
        let left = THAW_PATIENCE.saturating_sub(now.saturating_sub(since));
        (!left.is_zero()).then_some(Needed::Thawing { left })
    }

    fn user_wants_thaw(&self) -> bool {
        let waiting = self.slot.waiting().map(|(request, _)| *request);
        waiting == Some(VssRequest::Thaw)
    }

    fn checked(&mut self, now: Duration, status: HResult) {
        self.daemon = if status.is_ok() {
            Daemon::There
        } else {
            Daemon::Gone
        };
        self.look.ended();
        // A daemon that is there is left alone: it writes to the guest's log.
        if !status.is_ok() {
            self.look.later(now);
        }
        match self.slot.in_flight() {
            Some(VssRequest::Freeze { .. }) if status.is_ok() => {
                self.checked = true;
                self.slot.again();
            }
            Some(VssRequest::Check) if status.is_ok() => {
                self.slot.finish(Ok(VssAnswer::Possible));
            }
            // No file system was touched.
            Some(_) => self.slot.finish(Err(no_daemon(status))),
            None => {}
        }
    }

    fn frozen(&mut self, now: Duration, status: HResult) {
        if !status.is_ok() {
            // The daemon has thawed what it had frozen. If it has not, this does.
            self.thaw(now);
            self.slot.finish(Err(ServiceError::Guest(status)));
            return;
        }
        let until = self.slot.limit().unwrap_or(now);
        let since = now;
        self.filesystems = Filesystems::Frozen { since, until };
        self.thaw_at = Some(until);
        self.slot.finish(Ok(VssAnswer::Frozen { until }));
    }

    fn thawed(&mut self, now: Duration, status: HResult) {
        if status.is_ok() {
            let was_frozen = matches!(self.filesystems, Filesystems::Frozen { .. });
            self.complete_now = self.filesystems != Filesystems::Thawed;
            self.filesystems = Filesystems::Thawed;
            self.daemon = Daemon::There;
            self.thaw_at = None;
            self.thaw_now = false;
            self.thawing_since = None;
            self.finish_thaw(Ok(VssAnswer::Thawed { was_frozen }));
            return;
        }
        if self.filesystems != Filesystems::Thawed {
            self.filesystems = Filesystems::MaybeFrozen;
            self.thaw_at = Some(now.saturating_add(THAW_AGAIN));
        }
        self.daemon = Daemon::Gone;
        self.finish_thaw(Err(no_daemon(status)));
    }

    /// The request that a thaw of ours answers as well.
    fn finish_thaw(&mut self, result: Result<VssAnswer, ServiceError>) {
        let waits = self.slot.in_flight() == Some(&VssRequest::Thaw);
        if waits || (result.is_ok() && self.user_wants_thaw()) {
            self.slot.finish(result);
        }
    }
}

/// Linux checks and thaws whenever its daemon is there.
fn no_daemon(status: HResult) -> ServiceError {
    if status == HResult::FAIL {
        ServiceError::NoDaemon
    } else {
        ServiceError::Guest(status)
    }
}

impl Protocol for VssProtocol {
    const SERVICE: Service = Service::Vss;
    const FRAMEWORKS: &'static [IcVersion] = &[IcVersion::new(3, 0)];
    const VERSIONS: &'static [IcVersion] = &[IcVersion::new(5, 0)];

    fn connected(&mut self, now: Duration, _: Versions) {
        // What was frozen before the channel closed may still be.
        if self.filesystems != Filesystems::Thawed {
            self.thaw(now);
        }
        self.daemon = Daemon::Unknown;
        self.look.now();
        self.operation = None;
    }

    fn disconnected(&mut self, now: Duration) {
        self.slot.finish(Err(ServiceError::NotOpen));
        if self.filesystems != Filesystems::Thawed {
            self.filesystems = Filesystems::MaybeFrozen;
            self.thawing_since.get_or_insert(now);
        }
        (self.thaw_now, self.thaw_at, self.complete_now) = (false, None, false);
        self.operation = None;
        self.look.stop();
        self.daemon = Daemon::Unknown;
    }

    fn requests(&self) -> Option<&dyn Requests> {
        Some(&self.slot)
    }

    fn requests_mut(&mut self) -> Option<&mut dyn Requests> {
        Some(&mut self.slot)
    }

    fn deadline(&self) -> Option<Duration> {
        let deadlines = [self.thaw_at, self.look.deadline()];
        deadlines.into_iter().flatten().min()
    }

    fn tick(&mut self, now: Duration) {
        let due = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        if due(self.thaw_at) {
            if matches!(self.filesystems, Filesystems::Frozen { until, .. } if until <= now) {
                self.expired += 1;
            }
            self.thaw(now);
        }
        self.look.tick(now);
    }

    fn request(&mut self, now: Duration, _: Versions, body: &mut Vec<u8>) -> Option<Request> {
        let usual = Deadline::Guest(now.saturating_add(ANSWER_LIMIT));
        let waiting = self.slot.waiting();
        let waiting = waiting.map(|(request, at)| (*request, Deadline::User(at)));
        // Nothing else before what is frozen is thawed, which may be asked for, too.
        let (operation, deadline) = if self.thaw_now {
            let users = waiting.filter(|(request, _)| *request == VssRequest::Thaw);
            (
                Operation::Thaw,
                users.map_or(usual, |(_, deadline)| deadline),
            )
        } else if let Some((request, deadline)) = waiting {
            let operation = match request {
                VssRequest::Thaw => Operation::Thaw,
                VssRequest::Freeze { .. } if self.checked => Operation::Freeze,
                VssRequest::Freeze { .. } | VssRequest::Check => Operation::Check,
            };
            (operation, deadline)
        } else if self.complete_now {
            (Operation::Complete, usual)
        } else if self.look.is_due() {
            (Operation::Check, usual)
        } else {
            return None;
        };
        emit(operation, body);
        self.operation = Some(operation);
        Some(Request { deadline })
    }

    fn sent(&mut self, now: Duration) {
        match self.operation {
            Some(Operation::Thaw) => {
                if self.filesystems != Filesystems::Thawed {
                    self.thawing_since.get_or_insert(now);
                }
                // One that is asked for is this one.
                if self.user_wants_thaw() {
                    self.slot.sent();
                }
                self.thaw_now = false;
            }
            Some(Operation::Freeze) => {
                self.filesystems = Filesystems::Freezing;
                self.thawing_since = None;
                self.slot.sent();
            }
            Some(Operation::Check) => {
                if self.slot.waiting().is_some() {
                    self.slot.sent();
                }
                self.look.sent();
            }
            Some(Operation::Complete) => self.complete_now = false,
            None => {}
        }
    }

    fn answered(&mut self, now: Duration, answer: &Answer<'_>) -> Result<(), BadAnswer> {
        // Only the status matters: the flags come back as they were sent.
        match self.operation.take().ok_or(BadAnswer)? {
            Operation::Check => self.checked(now, answer.status),
            Operation::Freeze => self.frozen(now, answer.status),
            Operation::Thaw => self.thawed(now, answer.status),
            Operation::Complete => {}
        }
        Ok(())
    }

    fn failed(&mut self, now: Duration, error: ServiceError) {
        let operation = self.operation.take();
        match operation {
            Some(Operation::Freeze) => {
                // Whatever it comes to, it is thawed as soon as anything can be
                // sent.
                self.thaw(now);
                self.slot.finish(Err(error));
            }
            Some(Operation::Thaw) => {
                let owed = self.filesystems != Filesystems::Thawed;
                if owed {
                    self.filesystems = Filesystems::MaybeFrozen;
                    self.thaw_now = false;
                    self.thaw_at = Some(now.saturating_add(THAW_AGAIN));
                }
                if self.user_wants_thaw() {
                    self.slot.sent();
                }
                self.finish_thaw(Err(error));
            }
            Some(Operation::Check) => {
                self.look.ended();
                self.look.later(now);
                self.slot.finish(Err(error));
            }
            Some(Operation::Complete) | None => self.complete_now = false,
        }
    }

    fn paused(&mut self, now: Duration) {
        self.paused_at = Some(now);
    }

    /// A thaw whose time came meanwhile is due now.
    fn resumed(&mut self, now: Duration, slept: Duration) {
        self.paused_at = None;
        if let Some(since) = &mut self.thawing_since {
            *since = moved(*since, now, slept);
        }
        self.look.resumed(now, slept);
    }

    fn look(&mut self) -> Option<&mut Look> {
        Some(&mut self.look)
    }

    fn condition(&self, now: Duration) -> (ServiceState, String) {
        let state = match self.daemon {
            Daemon::Gone => ServiceState::NoDaemon,
            Daemon::Unknown | Daemon::There => ServiceState::Ready,
        };
        let detail = match self.filesystems {
            Filesystems::Thawed if self.daemon == Daemon::Gone => {
                "waiting for the guest's daemon".into()
            }
            Filesystems::Frozen { until, .. } if self.paused_at.is_some() && until <= now => {
                "file systems frozen, thawed as soon as the VM goes on".into()
            }
            filesystems => Shown(filesystems, now).to_string(),
        };
        (state, detail)
    }
}

/// For people, at a time.
struct Shown(Filesystems, Duration);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Filesystems::Thawed => f.write_str("file systems are not frozen"),
            Filesystems::Freezing => f.write_str("file systems are being frozen"),
            Filesystems::Frozen { since, until } => {
                let for_ = self.1.saturating_sub(since).as_secs_f32();
                let left = until.saturating_sub(self.1).as_secs_f32();
                write!(
                    f,
                    "file systems frozen for {for_:.1} s, thawed in {left:.1} s"
                )
            }
            Filesystems::MaybeFrozen => {
                f.write_str("file systems may be frozen, the guest is asked to thaw them")
            }
        }
    }
}

#[cfg(test)]
mod tests;
