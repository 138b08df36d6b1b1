// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a service is to the bus: an offer, and what it does with packets.
//!
//! There are two levels. [`Device`] has what a heartbeat needs: one packet at a time,
//! an answer at once. [`StreamingDevice`] has what a stream or a disk needs beside
//! that: packets by the dozen, in the guest's memory, and an end of its own.

use std::any::Any;
use std::time::Duration;

use super::streaming::{Batch, StreamingDevice};
use super::{Channel, SendError};
use crate::bus::OfferSpec;
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
///
/// It is offered with [`Host::offer`](super::Host::offer).
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

    /// The channel closed: by the guest, by a reset, by a rescind, or because
    /// the guest broke it.
    fn closed(&mut self, now: Duration) {
        let _ = now;
    }
}

/// A device of either level, as the host has it.
pub(super) enum AnyDevice {
    Simple(Box<dyn Device>),
    Streaming(Box<dyn StreamingDevice>),
}

impl AnyDevice {
    pub(super) fn as_any(&self) -> &dyn Any {
        match self {
            Self::Simple(device) => &**device,
            Self::Streaming(device) => &**device,
        }
    }

    pub(super) fn as_any_mut(&mut self) -> &mut dyn Any {
        match self {
            Self::Simple(device) => &mut **device,
            Self::Streaming(device) => &mut **device,
        }
    }

    pub(super) fn offer(&self) -> OfferSpec {
        match self {
            Self::Simple(device) => device.offer(),
            Self::Streaming(device) => device.offer(),
        }
    }

    pub(super) fn opened(
        &mut self,
        now: Duration,
        channel: &mut Channel<'_>,
    ) -> Result<(), SendError> {
        match self {
            Self::Simple(device) => device.opened(now, channel),
            Self::Streaming(device) => device.opened(now, channel),
        }
    }

    /// The most packets to show at a time.
    pub(super) fn batch(&self) -> usize {
        match self {
            Self::Simple(_) => 1,
            Self::Streaming(device) => device.batch(),
        }
    }

    /// Shows packets; says with how many the device is done.
    pub(super) fn packets(
        &mut self,
        now: Duration,
        channel: &mut Channel<'_>,
        batch: &mut Batch<'_>,
    ) -> Result<usize, DeviceError> {
        let device = match self {
            Self::Streaming(device) => return device.packets(now, channel, batch),
            Self::Simple(device) => device,
        };
        let mut done = 0;
        while let Some(packet) = batch.copied(done) {
            if device.packet(now, channel, &packet)? == Flow::Later {
                break;
            }
            done += 1;
        }
        Ok(done)
    }

    pub(super) fn stalled(&mut self, now: Duration, last: Option<[u8; 8]>) {
        if let Self::Streaming(device) = self {
            device.stalled(now, last);
        }
    }

    pub(super) fn poll(
        &mut self,
        now: Duration,
        channel: &mut Channel<'_>,
    ) -> Result<(), SendError> {
        match self {
            Self::Simple(device) => device.poll(now, channel),
            Self::Streaming(device) => device.poll(now, channel),
        }
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        match self {
            Self::Simple(device) => device.deadline(),
            Self::Streaming(device) => device.deadline(),
        }
    }

    /// When the guest must have opened the channel.
    pub(super) fn open_deadline(&self) -> Option<Duration> {
        match self {
            Self::Simple(_) => None,
            Self::Streaming(device) => device.open_deadline(),
        }
    }

    pub(super) fn not_opened(&mut self, now: Duration) {
        if let Self::Streaming(device) = self {
            device.not_opened(now);
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        match self {
            Self::Simple(_) => false,
            Self::Streaming(device) => device.is_finished(),
        }
    }

    /// Whether there may be something new to ask of the device when it was served.
    pub(super) fn has_news(&self) -> bool {
        matches!(self, Self::Simple(_))
    }

    pub(super) fn closed(&mut self, now: Duration) {
        match self {
            Self::Simple(device) => device.closed(now),
            Self::Streaming(device) => device.closed(now),
        }
    }
}
