// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A look at everything that passes, for a host that wants to write it down.

use std::time::Duration;

use super::Packet;
use crate::ring::PacketMeta;
use crate::wire::{GuestMessage, HostMessage, ParseError, Relid};

/// Something that passed between guest and host.
#[derive(Clone, Copy, Debug)]
pub enum TraceEvent<'a> {
    /// A message of the guest; [`Describe`](crate::wire::Describe) has its fields.
    GuestMessage(&'a GuestMessage),
    /// Bytes that are no message.
    Malformed(ParseError, &'a [u8]),
    /// A message to the guest.
    HostMessage(&'a HostMessage),
    /// The guest signalled a channel.
    GuestSignal(Relid),
    /// The host signalled a channel.
    HostSignal(Relid),
    /// A packet of the guest, when it is first shown to its device.
    GuestPacket(Relid, &'a Packet<'a>),
    /// A packet to the guest, and its payload.
    HostPacket(Relid, PacketMeta, &'a [u8]),
}

/// Takes what passes.
pub trait Tracer: Send {
    /// `event` passed at `now`.
    fn trace(&mut self, now: Duration, event: TraceEvent<'_>);
}
