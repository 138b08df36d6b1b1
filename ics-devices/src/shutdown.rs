// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shutdown: asking the guest to power off, reboot or hibernate (protocol 6.5).
//!
//! ```text
//!   request ─► sent ─► accepted           the guest has begun; that it stopped
//!                ├───► guest-error           is seen elsewhere, if ever
//!                └───► timeout, not-open
//! ```
//!
//! The guest answers before it does anything, and an answer of success says no
//! more than that it has started to. Reboot needs version 3.1 of the service and
//! hibernate 3.2.

use std::fmt;
use std::time::Duration;

use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::device::Ic;
use crate::protocol::{Answer, BadAnswer, Deadline, Protocol, Request, moved};
use crate::service::Service;
use crate::slot::{Outcome, Requests, Slot, Ticket};
use crate::status::{ServiceError, ServiceState};
use crate::wire::{IcVersion, Versions};

/// The shutdown service.
///
/// ```
/// use std::time::Duration;
/// use ics_devices::{ServiceError, Shutdown, ShutdownAction, ShutdownRequest};
///
/// let mut shutdown = Shutdown::new();
/// let request = ShutdownRequest::new(ShutdownAction::PowerOff);
/// let now = Duration::ZERO;
/// // Nobody has opened the channel.
/// let refused = shutdown.request(now, request, Duration::from_secs(60));
/// assert_eq!(refused, Err(ServiceError::NotOpen));
/// ```
pub type Shutdown = Ic<ShutdownProtocol>;

/// What the guest is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShutdownAction {
    /// Power off.
    PowerOff,
    /// Reboot.
    Reboot,
    /// Save its memory to disk and power off.
    Hibernate,
}

impl ShutdownAction {
    const fn flags(self) -> u32 {
        match self {
            Self::PowerOff => 0,
            Self::Reboot => 2,
            Self::Hibernate => 4,
        }
    }

    /// The version that brought it.
    const fn since(self) -> IcVersion {
        match self {
            Self::PowerOff => IcVersion::new(1, 0),
            Self::Reboot => IcVersion::new(3, 1),
            Self::Hibernate => IcVersion::new(3, 2),
        }
    }

    const fn unsupported(self) -> ServiceError {
        ServiceError::Unsupported(match self {
            Self::PowerOff => "the guest's shutdown service is too old",
            Self::Reboot => "reboot needs version 3.1 of the shutdown service",
            Self::Hibernate => "hibernate needs version 3.2 of the shutdown service",
        })
    }
}

impl fmt::Display for ShutdownAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PowerOff => "power-off",
            Self::Reboot => "reboot",
            Self::Hibernate => "hibernate",
        })
    }
}

/// A request to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShutdownRequest {
    /// What to do.
    pub action: ShutdownAction,
    /// Do not let applications object. Linux never does.
    pub force: bool,
    /// How long applications may take, in whole seconds. Linux ignores it.
    pub grace: Duration,
    /// What to show to users; 1023 UTF-16 units of it are sent. Linux ignores it.
    pub message: String,
}

impl ShutdownRequest {
    /// Without force, grace or a message.
    pub const fn new(action: ShutdownAction) -> Self {
        Self {
            action,
            force: false,
            grace: Duration::ZERO,
            message: String::new(),
        }
    }

    fn emit(&self, body: &mut Vec<u8>) {
        let grace = u32::try_from(self.grace.as_secs()).unwrap_or(u32::MAX);
        let head = RawShutdown {
            reason: PLANNED.into(),
            grace_seconds: grace.into(),
            flags: (self.action.flags() | u32::from(self.force)).into(),
        };
        body.extend_from_slice(head.as_bytes());
        let end = body.len() + MESSAGE_SIZE;
        let mut room = MESSAGE_SIZE / 2 - 1;
        for character in self.message.chars() {
            let mut units = [0; 2];
            let units = character.encode_utf16(&mut units);
            let Some(left) = room.checked_sub(units.len()) else {
                break;
            };
            room = left;
            body.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        }
        // The guest insists on all of it, and on a terminating zero.
        body.resize(end, 0);
    }
}

/// The guest has begun to do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// To do what.
    pub action: ShutdownAction,
}

/// SHTDN_REASON_FLAG_PLANNED.
const PLANNED: u32 = 0x8000_0000;
/// Bytes of the message.
const MESSAGE_SIZE: usize = 2048;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawShutdown {
    reason: U32,
    grace_seconds: U32,
    flags: U32,
}

/// What shutdown adds to what all services have in common.
#[derive(Debug, Default)]
pub struct ShutdownProtocol {
    slot: Slot<ShutdownRequest, Accepted>,
    /// What the guest last answered, and when.
    last: Option<(ShutdownAction, Result<(), ServiceError>, Duration)>,
}

impl Shutdown {
    /// A shutdown service that does nothing until it is asked to.
    pub fn new() -> Self {
        Self::from_protocol(ShutdownProtocol::default())
    }

    /// Asks the guest; it has to answer within `limit`. Poke the host, then wait
    /// for the outcome.
    pub fn request(
        &mut self,
        now: Duration,
        request: ShutdownRequest,
        limit: Duration,
    ) -> Result<Ticket, ServiceError> {
        let versions = self.admit()?;
        if versions.service < request.action.since() {
            return Err(request.action.unsupported());
        }
        self.protocol.slot.submit(now, limit, request)
    }

    /// How the request ended, once.
    pub fn take_outcome(&mut self) -> Option<Outcome<Accepted>> {
        self.protocol.slot.take()
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl ShutdownProtocol {
    fn end(&mut self, now: Duration, result: Result<(), ServiceError>) {
        let Some(request) = self.slot.in_flight() else {
            return;
        };
        let action = request.action;
        self.last = Some((action, result, now));
        self.slot.finish(result.map(|()| Accepted { action }));
    }
}

impl Protocol for ShutdownProtocol {
    const SERVICE: Service = Service::Shutdown;
    const VERSIONS: &'static [IcVersion] = &[
        IcVersion::new(1, 0),
        IcVersion::new(3, 0),
        IcVersion::new(3, 1),
        IcVersion::new(3, 2),
    ];

    fn connected(&mut self, _: Duration, _: Versions) {}

    fn disconnected(&mut self, _: Duration) {
        self.slot.finish(Err(ServiceError::NotOpen));
        self.last = None;
    }

    fn requests(&self) -> Option<&dyn Requests> {
        Some(&self.slot)
    }

    fn requests_mut(&mut self) -> Option<&mut dyn Requests> {
        Some(&mut self.slot)
    }

    fn request(&mut self, _: Duration, _: Versions, body: &mut Vec<u8>) -> Option<Request> {
        let (request, deadline) = self.slot.waiting()?;
        request.emit(body);
        Some(Request {
            deadline: Deadline::User(deadline),
        })
    }

    fn sent(&mut self, _: Duration) {
        self.slot.sent();
    }

    fn answered(&mut self, now: Duration, answer: &Answer<'_>) -> Result<(), BadAnswer> {
        // Only the status matters; the body is ours, sent back.
        let result = if answer.status.is_ok() {
            Ok(())
        } else {
            Err(ServiceError::Guest(answer.status))
        };
        self.end(now, result);
        Ok(())
    }

    fn failed(&mut self, now: Duration, error: ServiceError) {
        self.slot.sent();
        self.end(now, Err(error));
    }

    fn resumed(&mut self, now: Duration, slept: Duration) {
        if let Some((_, _, at)) = &mut self.last {
            *at = moved(*at, now, slept);
        }
    }

    fn condition(&self, now: Duration) -> (ServiceState, String) {
        let detail = match (self.slot.in_flight(), &self.last) {
            (Some(request), _) => format!("{} asked for", request.action),
            (None, Some((action, result, at))) => {
                let ago = now.saturating_sub(*at).as_secs_f32();
                match result {
                    Ok(()) => format!("{action} accepted by the guest {ago:.1} s ago"),
                    Err(error) => format!("{action} failed {ago:.1} s ago: {error}"),
                }
            }
            (None, None) => "the guest can be asked".to_string(),
        };
        (ServiceState::Ready, detail)
    }
}

#[cfg(test)]
mod tests;
