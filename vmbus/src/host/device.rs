// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a service is to the bus: an offer, and what it does with packets.

use std::any::Any;
use std::time::Duration;

use super::{Channel, SendError};
use crate::bus::OfferSpec;
use crate::ring::{Incoming, IncomingPacket, Place};
use crate::wire::{PacketFlags, PacketType};

/// A packet from the guest, copied out of its ring.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// What it is.
    pub packet_type: PacketType,
    /// Whether the guest waits for a completion.
    pub flags: PacketFlags,
    /// The guest's number for it.
    pub transaction_id: u64,
    /// Between the 16-byte header and the payload: see [`crate::wire::ext`].
    pub extended_header: &'a [u8],
    /// The data, with the padding to a multiple of 8.
    pub payload: &'a [u8],
}

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

/// What a device did with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It is done with it.
    Done,
    /// It cannot take it now: show it again when there is room in the guest's
    /// ring, if a send found it full, or when the host pokes the device.
    Later,
}

/// The guest sent something that the device cannot go on from. The channel
/// stays unserved until the guest closes it and opens it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest broke the device's protocol")]
pub struct DeviceError;

/// A service on the bus.
///
/// ```text
///   offer ──► opened ──► packet, poll, packet, … ──► closed ──► opened …
/// ```
///
/// A device is a pure state machine: it is told the time, and answers at once.
/// Every method but `offer` and `closed` may send on the channel; what is sent
/// becomes visible to the guest when the method returns.
pub trait Device: Any + Send {
    /// What the guest is offered. Always the same.
    fn offer(&self) -> OfferSpec;

    /// The guest opened the channel. State of an earlier opening is void.
    fn opened(&mut self, now: Duration, channel: &mut Channel<'_>) -> Result<(), SendError>;

    /// The guest sent a packet.
    ///
    /// [`SendError::Full`] from [`Channel::send`] turned into [`Flow::Later`]
    /// makes for back-pressure; see [`EchoDevice`](super::EchoDevice).
    fn packet(
        &mut self,
        now: Duration,
        channel: &mut Channel<'_>,
        packet: &Packet<'_>,
    ) -> Result<Flow, DeviceError>;

    /// How many packets the device wants to be shown at a time, if there are so
    /// many: more than one only if it has [`packets`](Self::packets).
    fn batch(&self) -> usize {
        1
    }

    /// The guest sent these packets, one after the other, and maybe more. Says
    /// how many the device is done with; it cannot take the rest now, which is
    /// shown again as with [`Flow::Later`].
    fn packets(
        &mut self,
        now: Duration,
        channel: &mut Channel<'_>,
        batch: &mut Batch<'_>,
    ) -> Result<usize, DeviceError> {
        let mut done = 0;
        while let Some(packet) = batch.copied(done) {
            if self.packet(now, channel, &packet)? == Flow::Later {
                break;
            }
            done += 1;
        }
        Ok(done)
    }

    /// Whether serving the device may change what the embedder asks it for. A
    /// device that deals with all of it by itself says no, and the embedder
    /// need not look each time: see [`Host::take_touched`](super::Host::take_touched).
    fn tells(&self) -> bool {
        true
    }

    /// A packet was put off. `last` is the payload of the packet that was sent
    /// last, if it is of one word, as those are that say goodbye.
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

    /// When to call [`expired`](Self::expired). Only asked while not open.
    fn expires(&self) -> Option<Duration> {
        None
    }

    /// The guest has not opened the channel in time. The device must have
    /// [`finished`](Self::finished), or want more time, when this returns.
    fn expired(&mut self, now: Duration) {
        let _ = now;
    }

    /// The device has nothing more to do: its channel is taken back.
    fn finished(&self) -> bool {
        false
    }

    /// The channel closed: by the guest, by a reset, by a rescind, or because
    /// the guest broke it.
    fn closed(&mut self, now: Duration) {
        let _ = now;
    }
}
