// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a service is to the bus: an offer, and what it does with packets.

use std::any::Any;
use std::time::Duration;

use super::{Channel, SendError};
use crate::bus::OfferSpec;
use crate::wire::{PacketFlags, PacketType};

/// A packet from the guest, copied out of its ring once.
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

/// The most packets of a [`Batch`]: what fits into an array that is no burden.
pub const MAX_BATCH: usize = 16;

/// A packet of a batch: its header, and where its bytes are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) packet_type: PacketType,
    pub(super) flags: PacketFlags,
    pub(super) transaction_id: u64,
    /// Where the extended header, the payload and the next packet begin.
    pub(super) bounds: [usize; 3],
}

impl Piece {
    /// Of no packet.
    pub(super) const NONE: Self = Self {
        packet_type: PacketType::IN_BAND,
        flags: PacketFlags::empty(),
        transaction_id: 0,
        bounds: [0; 3],
    };
}

/// Packets from the guest, copied out of its ring once.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) pieces: &'a [Piece],
}

impl<'a> Batch<'a> {
    /// How many there are: at least one, at most [`MAX_BATCH`].
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether there are none, which a device is never shown.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The packets, in the guest's order.
    pub fn iter(&self) -> impl Iterator<Item = Packet<'a>> + use<'a> {
        let bytes = self.bytes;
        self.pieces.iter().map(move |piece| {
            let [extended, payload, end] = piece.bounds;
            Packet {
                packet_type: piece.packet_type,
                flags: piece.flags,
                transaction_id: piece.transaction_id,
                extended_header: bytes.get(extended..payload).unwrap_or_default(),
                payload: bytes.get(payload..end).unwrap_or_default(),
            }
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
        batch: &Batch<'_>,
    ) -> Result<usize, DeviceError> {
        for (place, packet) in batch.iter().enumerate() {
            if self.packet(now, channel, &packet)? == Flow::Later {
                return Ok(place);
            }
        }
        Ok(batch.len())
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
