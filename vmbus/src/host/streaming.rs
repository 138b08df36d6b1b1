// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The second level of devices: those that move much data, or live as long as one
//! connection.
//!
//! ```text
//!  offered ─► opened ─► packets, poll, packets … ─► closed ─┐
//!     │ open_deadline passes                                ├─► is_finished: taken back
//!     └─► not_opened ───────────────────────────────────────┘
//! ```
//! Packets stay in the ring while they are looked at, so what they carry can go to a
//! system call from there. A device that cannot take them all says how many it took.

use std::any::Any;
use std::time::Duration;

use super::{Channel, DeviceError, Packet, SendError};
use crate::bus::OfferSpec;
use crate::ring::{Incoming, IncomingPacket, Place};

/// The most packets of a [`Batch`].
pub const MAX_BATCH: usize = 64;

/// Packets from the guest that are still in its ring.
#[derive(Debug)]
pub struct Batch<'a> {
    ring: &'a Incoming,
    places: &'a [Place],
    /// Memory for a copy.
    copy: &'a mut Vec<u8>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(ring: &'a Incoming, places: &'a [Place], copy: &'a mut Vec<u8>) -> Self {
        Self { ring, places, copy }
    }

    /// How many there are: at least one, at most [`MAX_BATCH`].
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none, which a device is never shown.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The packets from `first` on, in the guest's order. Their headers were
    /// copied; their bytes the guest can change as long as they are in the ring.
    pub fn packets_from(&self, first: usize) -> impl Iterator<Item = IncomingPacket<'a>> + use<'a> {
        let ring = self.ring;
        let places = self.places.get(first..).unwrap_or_default();
        places.iter().map(|place| ring.packet(place))
    }

    /// The packet at `place`, copied: what a device looks at more than once.
    pub fn copied(&mut self, place: usize) -> Option<Packet<'_>> {
        let packet = self.ring.packet(self.places.get(place)?);
        let payload = packet.extended_header.len();
        let end = payload + packet.payload.len();
        if self.copy.len() < end {
            // At most 512 KiB, as long as a packet can be.
            self.copy.resize(end, 0);
        }
        let (head, rest) = self.copy.get_mut(..end)?.split_at_mut_checked(payload)?;
        packet.extended_header.copy_to(head);
        packet.payload.copy_to(rest);
        Some(Packet {
            packet_type: packet.packet_type,
            flags: packet.flags,
            transaction_id: packet.transaction_id,
            extended_header: head,
            payload: rest,
        })
    }
}

/// A device that is shown packets by the dozen, in the guest's memory.
///
/// What [`Device`](super::Device) says of its methods holds for those of the same
/// names. It is offered with [`Host::offer_streaming`](super::Host::offer_streaming),
/// and deals with all that it is told by itself: the embedder is not asked to look at
/// it each time that it was served.
pub trait StreamingDevice: Any + Send {
    /// What the guest is offered. Always the same.
    fn offer(&self) -> OfferSpec;

    /// The guest opened the channel. State of an earlier opening is void.
    fn opened(&mut self, now: Duration, channel: &mut Channel<'_>) -> Result<(), SendError>;

    /// How many packets the device wants to be shown at a time, if there are so
    /// many: at most [`MAX_BATCH`].
    fn batch(&self) -> usize {
        MAX_BATCH
    }

    /// The guest sent these packets, one after the other, and maybe more. Says
    /// how many the device is done with; it cannot take the rest now, which is
    /// shown again as with [`Flow::Later`](super::Flow::Later).
    fn packets(
        &mut self,
        now: Duration,
        channel: &mut Channel<'_>,
        batch: &mut Batch<'_>,
    ) -> Result<usize, DeviceError>;

    /// Packets were put off. `last` is the payload of the packet that the guest sent
    /// last, if it is of one word: a stream's end is, and a stream that cannot be
    /// emptied may want to know of it.
    fn stalled(&mut self, now: Duration, last: Option<[u8; 8]>) {
        let _ = (now, last);
    }

    /// The deadline has come, there is room in a ring that was full, or the host
    /// wants something: the device may send.
    fn poll(&mut self, now: Duration, channel: &mut Channel<'_>) -> Result<(), SendError> {
        let _ = (now, channel);
        Ok(())
    }

    /// When to call [`poll`](Self::poll) at the latest. Only asked while open. A
    /// deadline that has passed must be gone when `poll` returns, also if it
    /// could not send.
    fn deadline(&self) -> Option<Duration> {
        None
    }

    /// When the guest must have opened the channel. Only asked while not open.
    fn open_deadline(&self) -> Option<Duration> {
        None
    }

    /// The guest has not opened the channel in time. The device must be
    /// [finished](Self::is_finished), or want more time, when this returns.
    fn not_opened(&mut self, now: Duration) {
        let _ = now;
    }

    /// The device has nothing more to do: its channel is taken back.
    fn is_finished(&self) -> bool {
        false
    }

    /// The channel closed: by the guest, by a reset, by a rescind, or because
    /// the guest broke it.
    fn closed(&mut self, now: Duration) {
        let _ = now;
    }
}
