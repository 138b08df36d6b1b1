// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Time synchronisation: the host's clock for the guest (protocol 6.8).
//!
//! ```text
//!   connected, resumed, asked to ─► SYNC     the guest steps its clock
//!   every 5 s                    ─► SAMPLE   the guest's PTP clock learns
//! ```
//!
//! A message pairs the host's time with the guest's reference counter, so that
//! the guest knows how old it is. The pair is asked for when the ring has been
//! found to have room, right before the packet is written; if there turns out to
//! be none, it is thrown away and asked for anew.
//!
//! A SYNC is a step of the guest's clock at once, in either direction, and would
//! fight NTP. It is sent only for the three reasons above.
//!
//! # The guest's clock
//! The guest says nothing about its clock in version 4.0. In 3.0 there is a field
//! for it, which Linux leaves as it is. So the offset is known only if a guest
//! fills it in.

use std::fmt;
use std::time::Duration;

use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::device::Ic;
use crate::protocol::{Answer, BadAnswer, Deadline, Protocol, Request, moved};
use crate::service::Service;
use crate::slot::{Outcome, Requests, Slot, Ticket};
use crate::status::{ServiceError, ServiceState};
use crate::wire::{IcVersion, Versions};

/// From one sample to the next. A guest does not read a sample that is older
/// than 600 s.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// 1970-01-01 in the units of [`TimeSample::host_time_100ns_since_1601`].
pub const UNIX_EPOCH_100NS: u64 = 116_444_736_000_000_000;

/// The time, read from both clocks together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeSample {
    /// The host's clock: units of 100 ns since 1601-01-01 UTC.
    pub host_time_100ns_since_1601: u64,
    /// The partition's reference counter, which the guest reads from an MSR or
    /// from the TSC page: units of 100 ns.
    pub reference_time_100ns: u64,
}

impl TimeSample {
    /// With the host's time as a duration since 1970-01-01 UTC.
    pub fn from_unix(since_epoch: Duration, reference_time: u64) -> Self {
        let units = u64::try_from(since_epoch.as_nanos() / 100).unwrap_or(u64::MAX);
        Self {
            host_time_100ns_since_1601: UNIX_EPOCH_100NS.saturating_add(units),
            reference_time_100ns: reference_time,
        }
    }
}

/// Reads the host's clock and the reference counter, one right after the other.
/// A closure does.
pub trait HostClock: Send {
    /// Both, now.
    fn sample(&self) -> TimeSample;
}

impl<F: Fn() -> TimeSample + Send> HostClock for F {
    fn sample(&self) -> TimeSample {
        self()
    }
}

/// The time synchronisation service.
///
/// ```
/// use std::time::Duration;
/// use ics_devices::{ServiceError, TimeSample, TimeSync};
///
/// let clock = || TimeSample::from_unix(Duration::from_secs(1_700_000_000), 42);
/// let mut timesync = TimeSync::new(Box::new(clock));
/// let refused = timesync.sync_now(Duration::ZERO, Duration::from_secs(5));
/// assert_eq!(refused, Err(ServiceError::NotOpen));
/// ```
pub type TimeSync = Ic<TimeSyncProtocol>;

/// The guest has taken a SYNC and steps its clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    /// What it was told.
    pub sample: TimeSample,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawReference {
    host_time: U64,
    reference_time: U64,
    flags: u8,
    leap: u8,
    stratum: u8,
    reserved: [u8; 5],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTime {
    host_time: U64,
    guest_time: U64,
    round_trip: U64,
    flags: u8,
}

const _: () = assert!(size_of::<RawReference>() == 24);
const _: () = assert!(size_of::<RawTime>() == 25);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sync,
    Sample,
}

impl Kind {
    const fn flag(self) -> u8 {
        match self {
            Self::Sync => 1,
            Self::Sample => 2,
        }
    }
}

/// A message that was sent or is about to be.
#[derive(Clone, Copy, Debug)]
struct Message {
    kind: Kind,
    time: TimeSample,
}

/// What time synchronisation adds to what all services have in common.
pub struct TimeSyncProtocol {
    clock: Box<dyn HostClock>,
    /// A SYNC is due because the guest is new or was paused.
    sync_due: bool,
    sample_due: bool,
    /// When the next sample is due.
    next: Duration,
    slot: Slot<(), Synced>,
    prepared: Option<Message>,
    in_flight: Option<Message>,
    /// Layout of the message in flight.
    references: bool,
    last_sync: Option<Duration>,
    last: Option<Duration>,
    syncs: u64,
    samples: u64,
    offset: Option<i64>,
}

impl TimeSync {
    /// A service that asks `clock` for the time.
    pub fn new(clock: Box<dyn HostClock>) -> Self {
        Self::from_protocol(TimeSyncProtocol {
            clock,
            sync_due: false,
            sample_due: false,
            next: Duration::ZERO,
            slot: Slot::default(),
            prepared: None,
            in_flight: None,
            references: false,
            last_sync: None,
            last: None,
            syncs: 0,
            samples: 0,
            offset: None,
        })
    }

    /// Makes the guest step its clock to the host's; it has to answer within
    /// `limit`. Poke the host, then wait for the outcome.
    pub fn sync_now(&mut self, now: Duration, limit: Duration) -> Result<Ticket, ServiceError> {
        self.admit()?;
        self.protocol.slot.submit(now, limit, ())
    }

    /// How the request ended, once.
    pub fn take_outcome(&mut self) -> Option<Outcome<Synced>> {
        self.protocol.slot.take()
    }

    /// When the guest last took a SYNC.
    pub fn last_sync(&self) -> Option<Duration> {
        self.protocol.last_sync
    }

    /// When the guest last took a message of either kind.
    pub fn last_message(&self) -> Option<Duration> {
        self.protocol.last
    }

    /// SYNCs that were sent, over all openings of the channel.
    pub fn syncs_sent(&self) -> u64 {
        self.protocol.syncs
    }

    /// SAMPLEs that were sent, over all openings of the channel.
    pub fn samples_sent(&self) -> u64 {
        self.protocol.samples
    }

    /// The guest's clock minus the host's in units of 100 ns, if the guest
    /// tells: Linux does not.
    pub fn guest_offset(&self) -> Option<i64> {
        self.protocol.offset
    }
}

impl TimeSyncProtocol {
    /// What to send next.
    fn wanted(&self) -> Option<Kind> {
        if self.sync_due || self.slot.waiting().is_some() {
            Some(Kind::Sync)
        } else if self.sample_due {
            Some(Kind::Sample)
        } else {
            None
        }
    }

    /// What the guest says about its own clock.
    fn learn(&mut self, message: Message, body: &[u8]) -> Result<(), BadAnswer> {
        if self.references {
            return match RawReference::read_from_prefix(body) {
                Ok(_) => Ok(()),
                Err(_) => Err(BadAnswer),
            };
        }
        let (raw, _) = RawTime::read_from_prefix(body).map_err(|_| BadAnswer)?;
        let guest_time = raw.guest_time.get();
        if guest_time != 0 {
            let host_time = message.time.host_time_100ns_since_1601;
            self.offset = i64::try_from(i128::from(guest_time) - i128::from(host_time)).ok();
        }
        Ok(())
    }
}

impl Protocol for TimeSyncProtocol {
    const SERVICE: Service = Service::TimeSync;
    const VERSIONS: &'static [IcVersion] = &[IcVersion::new(3, 0), IcVersion::new(4, 0)];

    fn connected(&mut self, now: Duration, _: Versions) {
        self.sync_due = true;
        self.next = now.saturating_add(INTERVAL);
    }

    fn disconnected(&mut self, _: Duration) {
        self.slot.finish(Err(ServiceError::NotOpen));
        self.sync_due = false;
        self.sample_due = false;
        self.prepared = None;
        self.in_flight = None;
        self.last_sync = None;
        self.last = None;
        self.offset = None;
    }

    fn requests(&self) -> Option<&dyn Requests> {
        Some(&self.slot)
    }

    fn requests_mut(&mut self) -> Option<&mut dyn Requests> {
        Some(&mut self.slot)
    }

    fn deadline(&self) -> Option<Duration> {
        Some(self.next)
    }

    fn tick(&mut self, now: Duration) {
        if self.next <= now {
            self.sample_due = true;
            self.next = now.saturating_add(INTERVAL);
        }
    }

    fn request(&mut self, _: Duration, versions: Versions, body: &mut Vec<u8>) -> Option<Request> {
        let kind = self.wanted()?;
        self.references = versions.service >= IcVersion::new(4, 0);
        let time = self.clock.sample();
        self.prepared = Some(Message { kind, time });
        if self.references {
            let raw = RawReference {
                host_time: time.host_time_100ns_since_1601.into(),
                reference_time: time.reference_time_100ns.into(),
                flags: kind.flag(),
                leap: 0,
                stratum: 0,
                reserved: [0; 5],
            };
            body.extend_from_slice(raw.as_bytes());
        } else {
            let raw = RawTime {
                host_time: time.host_time_100ns_since_1601.into(),
                guest_time: U64::ZERO,
                round_trip: U64::ZERO,
                flags: kind.flag(),
            };
            body.extend_from_slice(raw.as_bytes());
        }
        let waiting = self.slot.waiting();
        let deadline = waiting.map_or(Deadline::Never, |(&(), at)| Deadline::User(at));
        Some(Request { deadline })
    }

    fn sent(&mut self, now: Duration) {
        let message = self.prepared.take();
        match message.map(|message| message.kind) {
            Some(Kind::Sync) => {
                self.sync_due = false;
                self.slot.sent();
                self.syncs += 1;
            }
            Some(Kind::Sample) => self.samples += 1,
            None => {}
        }
        // A SYNC is as good as a sample.
        self.sample_due = false;
        self.next = now.saturating_add(INTERVAL);
        self.in_flight = message;
    }

    fn answered(&mut self, now: Duration, answer: &Answer<'_>) -> Result<(), BadAnswer> {
        let Some(message) = self.in_flight.take() else {
            return Ok(());
        };
        let learnt = if answer.status.is_ok() {
            self.learn(message, answer.body)
                .map_err(|_| ServiceError::BadAnswer)
        } else {
            Err(ServiceError::Guest(answer.status))
        };
        if learnt.is_ok() {
            self.last = Some(now);
            if message.kind == Kind::Sync {
                self.last_sync = Some(now);
            }
        }
        if self.slot.in_flight().is_some() {
            let sample = message.time;
            self.slot.finish(learnt.map(|()| Synced { sample }));
        }
        match learnt {
            Err(ServiceError::BadAnswer) => Err(BadAnswer),
            _ => Ok(()),
        }
    }

    fn failed(&mut self, _: Duration, error: ServiceError) {
        if self.in_flight.take().is_none() {
            // The ring can never take it: do not ask for the time again at once.
            self.sync_due = false;
            self.sample_due = false;
            self.prepared = None;
        }
        self.slot.finish(Err(error));
    }

    fn resumed(&mut self, now: Duration, slept: Duration) {
        self.sync_due = true;
        self.next = now.saturating_add(INTERVAL);
        for time in [&mut self.last, &mut self.last_sync].into_iter().flatten() {
            *time = moved(*time, now, slept);
        }
    }

    fn condition(&self, now: Duration) -> (ServiceState, String) {
        let ago = |at: Duration| now.saturating_sub(at).as_secs_f32();
        let detail = match (self.last, self.last_sync) {
            (None, _) => "the guest has not taken the time yet".to_string(),
            (Some(last), None) => format!("last sample {:.1} s ago", ago(last)),
            (Some(last), Some(sync)) => format!(
                "last sample {:.1} s ago, clock set {:.1} s ago",
                ago(last),
                ago(sync)
            ),
        };
        (ServiceState::Ready, detail)
    }
}

impl fmt::Debug for TimeSyncProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimeSyncProtocol")
            .field("sync_due", &self.sync_due)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
