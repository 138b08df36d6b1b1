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
