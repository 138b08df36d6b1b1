// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device's view of its open channel: it can send.

use std::fmt;
use std::time::Duration;

use super::trace::{TraceEvent, Tracer};
use crate::ring::{Outgoing, PacketMeta, RingError, WriteError};
use crate::wire::{Relid, USER_DEFINED_SIZE};

/// Why a packet was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The guest has to read first. The device is polled when there is room.
    #[error("the ring is full")]
    Full,
    /// The packet is larger than the ring, whose size is the guest's choice.
    #[error("the packet is larger than the ring")]
    TooLarge,
    /// The guest broke the ring.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// An open channel, while one of its device's methods runs.
pub struct Channel<'a> {
    pub(super) now: Duration,
    pub(super) relid: Relid,
    pub(super) outgoing: &'a mut Outgoing,
    pub(super) user_data: &'a [u8; USER_DEFINED_SIZE],
    /// Ring bytes of the packet that last did not fit.
    pub(super) needed: &'a mut Option<u32>,
    pub(super) broken: &'a mut Option<RingError>,
    pub(super) buffer: &'a mut Vec<u8>,
    pub(super) tracer: Option<&'a mut dyn Tracer>,
}

impl Channel<'_> {
    /// Sends a packet whose payload is `parts` one after the other.
    pub fn send(&mut self, meta: PacketMeta, parts: &[&[u8]]) -> Result<(), SendError> {
        match self.outgoing.write(meta, parts) {
            Ok(()) => {
                if let Some(tracer) = &mut self.tracer {
                    let payload = parts.concat();
                    let event = TraceEvent::HostPacket(self.relid, meta, &payload);
                    tracer.trace(self.now, event);
                }
                Ok(())
            }
            Err(WriteError::Full { needed }) => {
                *self.needed = Some(needed);
                Err(SendError::Full)
            }
            Err(WriteError::NeverFits) => Err(SendError::TooLarge),
            Err(WriteError::Ring(error)) => {
                *self.broken = Some(error);
                Err(SendError::Ring(error))
            }
        }
    }

    /// Whether a packet with `payload` bytes can be sent now. If not, the device
    /// is polled when there is room, as after [`SendError::Full`].
    pub fn has_room(&mut self, payload: usize) -> Result<bool, SendError> {
        let needed = self
            .outgoing
            .packet_size(payload)
            .ok_or(SendError::TooLarge)?;
        match self.outgoing.free() {
            Ok(free) if free > needed => Ok(true),
            Ok(_) => {
                *self.needed = Some(needed);
                Ok(false)
            }
            Err(error) => {
                *self.broken = Some(error);
                Err(SendError::Ring(error))
            }
        }
    }

    /// Whether the guest has read every packet that was sent.
    pub fn is_read(&mut self) -> bool {
        match self.outgoing.is_read() {
            Ok(read) => read,
            Err(error) => {
                *self.broken = Some(error);
                false
            }
        }
    }

    /// Where in its ring the guest reads: another place than before means that it
    /// has read something.
    pub fn read_position(&self) -> u32 {
        self.outgoing.read_position()
    }

    /// The largest payload that a packet to the guest can have.
    pub fn max_payload(&self) -> usize {
        // The length field of a packet ends at 0xffff units of 8 bytes.
        let most = self.outgoing.size().min(0xffff * 8);
        let overhead = 16 + 8 + 8;
        usize::try_from(most.saturating_sub(overhead)).unwrap_or(0)
    }

    /// Memory for what a device is about to send, whatever is in it: the same for
    /// all devices, so that none has to allocate. Give it back when done.
    pub fn take_buffer(&mut self) -> Vec<u8> {
        std::mem::take(self.buffer)
    }

    /// Gives the memory back.
    pub fn return_buffer(&mut self, buffer: Vec<u8>) {
        *self.buffer = buffer;
    }

    /// The channel's number.
    pub fn relid(&self) -> Relid {
        self.relid
    }

    /// What the guest's driver said when it opened the channel.
    pub fn user_data(&self) -> &[u8; USER_DEFINED_SIZE] {
        self.user_data
    }
}

impl fmt::Debug for Channel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("relid", &self.relid)
            .finish_non_exhaustive()
    }
}
