// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Heartbeat: is the guest alive? (protocol 6.4)
//!
//! ```text
//!              beat answered       3 beats missed, or channel closed
//!  no-contact ──────────────► ok ◄───────────────────────────────────► lost
//!                                          beat answered
//!  paused: while the VM is
//! ```
//!
//! Every 2 seconds the host sends a number, and the guest sends the next one
//! back. While a beat is not answered no other is sent: each 2 seconds it counts
//! as missed once more. However late its answer comes, the guest is alive then.
//!
//! A guest that closes the channel does not answer any more: a kernel that panics
//! leaves the bus before it stops.
//!
//! A clock that jumps, as when the host itself was stopped, is one missed beat
//! and no more: the guest was given no chance to answer the others.

use std::fmt;
use std::time::Duration;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::device::Ic;
use crate::protocol::{Answer, BadAnswer, Deadline, Protocol, Request, moved};
use crate::service::Service;
use crate::status::{ServiceError, ServiceState};
use crate::wire::{IcVersion, Versions};

/// From one beat to the next, as on Hyper-V.
pub const INTERVAL: Duration = Duration::from_secs(2);
/// So many missed in a row are a lost guest: it is known 6 to 8 s after its
/// last answer.
pub const MISSED_UNTIL_LOST: u32 = 3;

/// The heartbeat service.
///
/// ```
/// use std::time::Duration;
/// use ics_devices::{Health, Heartbeat, ServiceState};
///
/// let mut heartbeat = Heartbeat::new();
/// assert_eq!(heartbeat.state(Duration::ZERO), ServiceState::Offered);
/// assert_eq!(heartbeat.health(), Health::NoContact);
///
/// heartbeat.pause(Duration::from_secs(1));
/// assert_eq!(heartbeat.health(), Health::Paused);
/// heartbeat.resume(Duration::from_secs(100));
/// assert_eq!(heartbeat.health(), Health::NoContact);
/// ```
pub type Heartbeat = Ic<HeartbeatProtocol>;

/// How the guest is, as far as its heartbeat tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// It answers.
    Ok,
    /// It has never answered.
    NoContact,
    /// It answered, and does not any more.
    Lost,
    /// The VM is paused; nobody asks.
    Paused,
}

impl Health {
    /// The name in commands and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NoContact => "no-contact",
            Self::Lost => "lost",
            Self::Paused => "paused",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a guest says about its applications. Linux says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ApplicationState(pub u32);

impl ApplicationState {
    /// It does not say.
    pub const UNKNOWN: Self = Self(0);
    /// All is well.
    pub const HEALTHY: Self = Self(1);
    /// Something is wrong.
    pub const CRITICAL: Self = Self(2);
    /// They are stopped.
    pub const STOPPED: Self = Self(3);

    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HEALTHY => "healthy",
            Self::CRITICAL => "critical",
            Self::STOPPED => "stopped",
            _ => "unknown",
        }
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawBeat {
    sequence: U64,
    application_state: U32,
    reserved: [u8; 28],
}

const _: () = assert!(size_of::<RawBeat>() == 40);

/// What the heartbeat adds to what all services have in common.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeartbeatProtocol {
    /// Of the beat that was sent last.
    sequence: u64,
    /// When the next beat is due.
    next: Duration,
    /// A beat is due and not sent.
    due: bool,
    /// A beat is sent and not answered.
    in_flight: bool,
    /// It has answered since the service is there, whoever had the channel open.
    seen: bool,
    /// When the last answer came, since the channel is open.
    last: Option<Duration>,
    missed: u32,
    application_state: ApplicationState,
    paused: bool,
}

impl Heartbeat {
    /// A heartbeat that beats when the guest opens its channel.
    pub fn new() -> Self {
        Self::from_protocol(HeartbeatProtocol::default())
    }

    /// How the guest is.
    pub fn health(&self) -> Health {
        self.protocol.health()
    }

    /// When the guest last answered.
    pub fn last_beat(&self) -> Option<Duration> {
        self.protocol.last
    }

    /// Beats missed since the last answer.
    pub fn missed(&self) -> u32 {
        self.protocol.missed
    }

    /// What the guest last said about its applications.
    pub fn application_state(&self) -> ApplicationState {
        self.protocol.application_state
    }
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self::new()
    }
}

impl HeartbeatProtocol {
    fn health(&self) -> Health {
        match self.last {
            _ if self.paused => Health::Paused,
            None if self.seen => Health::Lost,
            None => Health::NoContact,
            Some(_) if self.missed >= MISSED_UNTIL_LOST => Health::Lost,
            Some(_) => Health::Ok,
        }
    }

    fn miss(&mut self) {
        self.missed = self.missed.saturating_add(1);
    }
}

impl Protocol for HeartbeatProtocol {
    const SERVICE: Service = Service::Heartbeat;
    const VERSIONS: &'static [IcVersion] = &[IcVersion::new(1, 0), IcVersion::new(3, 0)];

    fn connected(&mut self, now: Duration, _: Versions) {
        *self = Self {
            sequence: self.sequence,
            next: now.saturating_add(INTERVAL),
            due: true,
            seen: self.seen,
            paused: self.paused,
            ..Self::default()
        };
    }

    fn disconnected(&mut self, _: Duration) {
        *self = Self {
            sequence: self.sequence,
            seen: self.seen,
            paused: self.paused,
            ..Self::default()
        };
    }

    fn deadline(&self) -> Option<Duration> {
        Some(self.next)
    }

    fn tick(&mut self, now: Duration) {
        if now < self.next {
            return;
        }
        if self.due || self.in_flight {
            self.miss();
        }
        self.due = !self.in_flight;
        self.next = self.next.saturating_add(INTERVAL);
        if self.next <= now {
            self.next = now.saturating_add(INTERVAL);
        }
    }

    fn request(&mut self, _: Duration, _: Versions, body: &mut Vec<u8>) -> Option<Request> {
        if !self.due {
            return None;
        }
        let beat = RawBeat {
            sequence: self.sequence.wrapping_add(1).into(),
            application_state: U32::ZERO,
            reserved: [0; 28],
        };
        body.extend_from_slice(beat.as_bytes());
        // However late the answer comes, it is a sign of life.
        Some(Request {
            deadline: Deadline::Never,
        })
    }

    fn sent(&mut self, _: Duration) {
        self.sequence = self.sequence.wrapping_add(1);
        self.due = false;
        self.in_flight = true;
    }

    fn answered(&mut self, now: Duration, answer: &Answer<'_>) -> Result<(), BadAnswer> {
        self.in_flight = false;
        let beat = RawBeat::read_from_prefix(answer.body).ok();
        let expected = self.sequence.wrapping_add(1);
        let Some((beat, _)) = beat.filter(|(beat, _)| beat.sequence.get() == expected) else {
            self.miss();
            return Err(BadAnswer);
        };
        self.seen = true;
        self.last = Some(now);
        self.missed = 0;
        self.application_state = ApplicationState(beat.application_state.get());
        Ok(())
    }

    fn failed(&mut self, _: Duration, _: ServiceError) {
        self.due = false;
        self.in_flight = false;
        self.miss();
    }

    fn paused(&mut self, _: Duration) {
        self.paused = true;
    }

    fn resumed(&mut self, now: Duration, slept: Duration) {
        self.paused = false;
        self.next = now.saturating_add(INTERVAL);
        self.last = self.last.map(|last| moved(last, now, slept));
        // It gets all its chances again; a guest that was lost stays lost.
        if self.missed < MISSED_UNTIL_LOST {
            self.missed = 0;
        }
    }

    fn condition(&self, now: Duration) -> (ServiceState, String) {
        let detail = match (self.last, self.missed) {
            _ if self.paused => "paused".to_string(),
            (None, _) => "no beat yet".to_string(),
            (Some(last), missed) => {
                let ago = now.saturating_sub(last).as_secs_f32();
                let missed = match missed {
                    0 => String::new(),
                    missed => format!(", {missed} missed"),
                };
                let applications = match self.application_state {
                    ApplicationState::UNKNOWN => String::new(),
                    state => format!(", applications {}", state.name()),
                };
                format!("last beat {ago:.1} s ago{missed}{applications}")
            }
        };
        (ServiceState::Ready, detail)
    }
}

#[cfg(test)]
mod tests;
