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

use super::{Channel, Device, Flow, MAX_PACKETS_PER_TURN, Packet, SendError, Slot, Tracer};
use crate::bus::Violation;
use crate::host::trace::TraceEvent;
use crate::ring::{RingError, RingPair};
use crate::wire::{Relid, USER_DEFINED_SIZE};

type Trace<'a, 'b> = &'a mut Option<&'b mut (dyn Tracer + 'static)>;

/// What is kept of a channel while it is open.
pub(super) struct OpenChannel {
    rings: RingPair,
    user_data: [u8; USER_DEFINED_SIZE],
    /// Ring bytes that the device waits for.
    needed: Option<u32>,
    /// The device is to be polled at the next turn.
    poll: bool,
    /// The packet at the head of the ring was traced: it may be shown again.
    traced: bool,
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
    pub(super) fn new(rings: RingPair, user_data: [u8; USER_DEFINED_SIZE]) -> Self {
        Self {
            rings,
            user_data,
            needed: None,
            poll: false,
            traced: false,
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
        trace: Trace<'_, '_>,
        run: impl FnOnce(&mut Channel<'_>) -> T,
    ) -> Result<T, Fault> {
        let mut broken = None;
        let mut channel = Channel {
            now,
            relid,
            outgoing: &mut self.rings.outgoing,
            user_data: &self.user_data,
            needed: &mut self.needed,
            broken: &mut broken,
            tracer: trace.as_deref_mut().map(|tracer| tracer as &mut dyn Tracer),
        };
        let said = run(&mut channel);
        broken.map_or(Ok(said), |error| Err(Fault::Ring(error)))
    }

    /// Shows up to a turn's worth of packets to the device. True if it stopped
    /// for want of room, or because its turn is over.
    fn drain(
        &mut self,
        device: &mut dyn Device,
        now: Duration,
        relid: Relid,
        scratch: &mut Vec<u8>,
        trace: Trace<'_, '_>,
    ) -> Result<Drained, Fault> {
        for _ in 0..MAX_PACKETS_PER_TURN {
            let Some(packet) = self.rings.incoming.peek()? else {
                return Ok(Drained::Empty);
            };
            let extended = packet.extended_header.len();
            let len = extended + packet.payload.len();
            if scratch.len() < len {
                scratch.resize(len, 0);
            }
            let Some((head, rest)) = scratch.split_at_mut_checked(extended) else {
                return Err(Fault::Device);
            };
            packet.extended_header.copy_to(head);
            let copied = packet.payload.copy_to(rest);
            let packet = Packet {
                packet_type: packet.packet_type,
                flags: packet.flags,
                transaction_id: packet.transaction_id,
                extended_header: head,
                payload: rest.get(..copied).unwrap_or_default(),
            };
            if let Some(tracer) = trace
                && !std::mem::replace(&mut self.traced, true)
            {
                tracer.trace(now, TraceEvent::GuestPacket(relid, &packet));
            }
            let flow = self.with_channel(now, relid, trace, |channel| {
                device.packet(now, channel, &packet)
            })?;
            match flow.map_err(|_| Fault::Device)? {
                Flow::Done => {
                    self.traced = false;
                    self.rings.incoming.advance();
                }
                Flow::Later => return Ok(Drained::Stalled),
            }
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
            (None, false) => self.device.expires(),
            (None, true) => None,
        }
    }

    pub(super) fn close(&mut self, now: Duration) {
        if self.open.take().is_some() {
            self.device.closed(now);
        }
    }

    /// Tells the device that its channel is open.
    pub(super) fn opened(&mut self, now: Duration, relid: Relid, trace: Trace<'_, '_>) -> Served {
        let Some(open) = &mut self.open else {
            return Served::default();
        };
        let device = &mut *self.device;
        let said = open.with_channel(now, relid, trace, |channel| device.opened(now, channel));
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
        scratch: &mut Vec<u8>,
        trace: Trace<'_, '_>,
    ) -> Served {
        let Some(open) = &mut self.open else {
            return Served::default();
        };
        let served = open.turn(&mut *self.device, now, relid, scratch, trace);
        served.unwrap_or_else(|fault| Served::broken(relid, &fault))
    }
}

impl OpenChannel {
    fn turn(
        &mut self,
        device: &mut dyn Device,
        now: Duration,
        relid: Relid,
        scratch: &mut Vec<u8>,
        trace: Trace<'_, '_>,
    ) -> Result<Served, Fault> {
        self.rings.incoming.mask();
        let mut served = Served::default();
        self.check_room()?;
        if std::mem::take(&mut self.poll) {
            // What the device could not send before comes before new packets.
            let said = self.with_channel(now, relid, trace, |channel| device.poll(now, channel))?;
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
