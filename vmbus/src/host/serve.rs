// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Carrying packets between the rings of one channel and its device
//! (protocol 5.3, 5.4).
//!
//! ```text
//!   mask ─► ┌ peek ─► device ─► advance ┐ … ─► commit, publish ─► unmask ─► more?
//!           └───── Later: stop ─────────┘                          │ no
//!                      │                                           ▼
//!                      └─► ask the guest for room ─► none ─► wait for its signal
//! ```

use std::time::Duration;

use super::device::AnyDevice;
use super::{Batch, Channel, MAX_BATCH, MAX_PACKETS_PER_TURN, SendError, Slot, Tracer};
use crate::bus::Violation;
use crate::host::trace::TraceEvent;
use crate::ring::{Incoming, Place, RingError, RingPair};
use crate::wire::{Relid, USER_DEFINED_SIZE};

type Trace<'a, 'b> = &'a mut Option<&'b mut (dyn Tracer + 'static)>;

/// Memory that all channels use, one after the other.
#[derive(Default)]
pub(super) struct Scratch {
    /// A packet is copied here for a device that looks at it: at most 512 KiB.
    packet: Vec<u8>,
    /// Where the packets are that a device is shown: at most [`MAX_BATCH`].
    places: Vec<Place>,
    /// What devices are about to send.
    sending: Vec<u8>,
}

/// What is kept of a channel while it is open.
pub(super) struct OpenChannel {
    rings: RingPair,
    user_data: [u8; USER_DEFINED_SIZE],
    /// Ring bytes that the device waits for.
    needed: Option<u32>,
    /// The device is to be polled at the next turn.
    poll: bool,
    /// Packets at the head of the ring that were traced: they may be shown again.
    traced: usize,
}

/// What serving a channel led to.
#[derive(Default)]
pub(super) struct Served {
    /// The guest must be signalled.
    pub(super) signal: bool,
    /// There is more to do, at the next turn.
    pub(super) more: bool,
    /// The guest broke the channel.
    pub(super) violation: Option<Violation>,
}

/// Why a channel cannot go on.
enum Fault {
    Ring(RingError),
    Device,
}

impl From<RingError> for Fault {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

impl OpenChannel {
    /// The host may have written to its rings.
    pub(super) fn mark_dirty(&self) {
        self.rings.mark_dirty();
    }

    pub(super) fn new(rings: RingPair, user_data: [u8; USER_DEFINED_SIZE]) -> Self {
        Self {
            rings,
            user_data,
            needed: None,
            poll: false,
            traced: 0,
        }
    }

    /// The next turn begins with polling the device.
    pub(super) fn poll_soon(&mut self) {
        self.poll = true;
    }

    /// Lets the device send; returns what it said.
    fn with_channel<T>(
        &mut self,
        now: Duration,
        relid: Relid,
        buffer: &mut Vec<u8>,
        trace: Trace<'_, '_>,
        run: impl FnOnce(&mut Channel<'_>, &Incoming) -> T,
    ) -> Result<T, Fault> {
        let mut broken = None;
        let mut channel = Channel {
            now,
            relid,
            outgoing: &mut self.rings.outgoing,
            user_data: &self.user_data,
            needed: &mut self.needed,
            broken: &mut broken,
            buffer,
            tracer: trace.as_deref_mut().map(|tracer| tracer as &mut dyn Tracer),
        };
        let said = run(&mut channel, &self.rings.incoming);
        broken.map_or(Ok(said), |error| Err(Fault::Ring(error)))
    }

    /// Shows up to a turn's worth of packets to the device.
    fn drain(
        &mut self,
        device: &mut AnyDevice,
        now: Duration,
        relid: Relid,
        scratch: &mut Scratch,
        trace: Trace<'_, '_>,
    ) -> Result<Drained, Fault> {
        let mut left = MAX_PACKETS_PER_TURN;
        while left > 0 {
            let most = device.batch().clamp(1, MAX_BATCH).min(left);
            let Scratch {
                packet,
                places,
                sending,
            } = scratch;
            places.clear();
            while places.len() < most
                && let Some(place) = self.rings.incoming.find()?
            {
                self.rings.incoming.advance();
                places.push(place);
            }
            if places.is_empty() {
                return Ok(Drained::Empty);
            }
            let shown = places.len();
            if let Some(tracer) = trace {
                let mut batch = Batch::new(&self.rings.incoming, places, packet);
                for place in self.traced..shown {
                    if let Some(packet) = batch.copied(place) {
                        tracer.trace(now, TraceEvent::GuestPacket(relid, &packet));
                    }
                }
                self.traced = self.traced.max(shown);
            }
            let done = self.with_channel(now, relid, sending, trace, |channel, ring| {
                device.packets(now, channel, &mut Batch::new(ring, places, packet))
            })?;
            let done = done.map_err(|_| Fault::Device)?;
            self.traced = self.traced.saturating_sub(done);
            if let Some(place) = places.get(done) {
                self.rings.incoming.back_to(place);
                return Ok(Drained::Stalled);
            }
            left -= shown;
        }
        Ok(Drained::TurnOver)
    }

    /// Makes what was read and written visible to the guest. True if it must be
    /// signalled.
    fn flush(&mut self) -> Result<bool, Fault> {
        let freed = self.rings.incoming.commit()?;
        let written = self.rings.outgoing.publish()?;
        Ok(freed || written)
    }

    /// If the device waits for room: true if there is room now, and the device
    /// is to be polled. Otherwise the guest was asked for a signal.
    fn check_room(&mut self) -> Result<bool, Fault> {
        let Some(needed) = self.needed else {
            return Ok(false);
        };
        let room = self.rings.outgoing.request_space(needed)?;
        if room {
            self.needed = None;
            self.poll = true;
        }
        Ok(room)
    }
}

fn note(relid: Relid, said: Result<(), SendError>) {
    if let Err(error) = said {
        log::debug!("{relid}: cannot send: {error}");
    }
}

enum Drained {
    Empty,
    Stalled,
    TurnOver,
}

impl Slot {
    pub(super) fn deadline(&self) -> Option<Duration> {
        match (&self.open, self.rescinded) {
            (Some(_), _) => self.device.deadline(),
            (None, false) => self.device.open_deadline(),
            (None, true) => None,
        }
    }

    pub(super) fn close(&mut self, now: Duration) {
        if let Some(open) = self.open.take() {
            open.rings.mark_dirty();
            self.device.closed(now);
        }
    }

    /// Tells the device that its channel is open.
    pub(super) fn opened(
        &mut self,
        now: Duration,
        relid: Relid,
        scratch: &mut Scratch,
        trace: Trace<'_, '_>,
    ) -> Served {
        let Some(open) = &mut self.open else {
            return Served::default();
        };
        let device = &mut self.device;
        let buffer = &mut scratch.sending;
        let said = open.with_channel(now, relid, buffer, trace, |channel, _| {
            device.opened(now, channel)
        });
        match said {
            Ok(said) => {
                note(relid, said);
                // The first turn, which follows at once, publishes what was sent.
                Served::default()
            }
            Err(fault) => Served::broken(relid, &fault),
        }
    }

    /// Serves the channel for one turn.
    pub(super) fn serve(
        &mut self,
        now: Duration,
        relid: Relid,
        scratch: &mut Scratch,
        trace: Trace<'_, '_>,
    ) -> Served {
        let Some(open) = &mut self.open else {
            return Served::default();
        };
        let served = open.turn(&mut self.device, now, relid, scratch, trace);
        served.unwrap_or_else(|fault| Served::broken(relid, &fault))
    }
}

impl OpenChannel {
    fn turn(
        &mut self,
        device: &mut AnyDevice,
        now: Duration,
        relid: Relid,
        scratch: &mut Scratch,
        trace: Trace<'_, '_>,
    ) -> Result<Served, Fault> {
        self.rings.incoming.mask();
        let mut served = Served::default();
        self.check_room()?;
        if std::mem::take(&mut self.poll) {
            // What the device could not send before comes before new packets.
            let buffer = &mut scratch.sending;
            let said = self.with_channel(now, relid, buffer, trace, |channel, _| {
                device.poll(now, channel)
            })?;
            note(relid, said);
        }
        let drained = self.drain(device, now, relid, scratch, trace)?;
        if matches!(drained, Drained::Stalled) {
            device.stalled(now, self.rings.incoming.last_word()?);
        }
        served.signal = self.flush()?;
        let room = self.check_room()?;
        served.more = match drained {
            Drained::TurnOver => true,
            // Masked all the while: the guest signals when it has made room,
            // whatever the mask says.
            Drained::Stalled => room,
            Drained::Empty => self.rings.incoming.unmask()? || room,
        };
        Ok(served)
    }
}

impl Served {
    fn broken(relid: Relid, fault: &Fault) -> Self {
        let violation = match fault {
            Fault::Ring(error) => Violation::BrokenRing(relid, *error),
            Fault::Device => Violation::BadPacket(relid),
        };
        Self {
            violation: Some(violation),
            ..Self::default()
        }
    }
}
