// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Byte formats of the bus: bytes in, checked owned values out, and back
//! (protocol 4 and 5.2, appendices A and B).
//!
//! Nothing here holds state. Every parser works on bytes that were copied out
//! of guest memory once, so what was checked is what is used. Numbers that a
//! guest may choose freely are newtypes, never exhaustive enums.
//!
//! | Format | Type |
//! |---|---|
//! | control messages, guest to host | [`GuestMessage`] |
//! | control messages, host to guest | [`HostMessage`], with [`Offer`] |
//! | ring packets | [`PacketHeader`], [`PacketType`], [`ext`] |
//! | pipe framing inside packets | [`PipeHeader`] |
//! | names | [`Guid`], [`ProtocolVersion`], [`Relid`], [`GpadlId`], [`VpIndex`], [`Sint`] |
//!
//! [`Describe`] gives any message as a name and named fields, for tracing.

mod describe;
pub mod ext;
mod gpadl;
mod guest;
mod guid;
mod host;
mod ids;
mod message;
mod offer;
mod packet;
mod payload;
mod pipe;
mod raw;
mod version;

#[cfg(test)]
mod tests;

pub use describe::{Describe, FieldValue};
pub use gpadl::{GpadlBody, GpadlHeader, MAX_BODY_PFNS, MAX_HEADER_PFNS, PfnList};
pub use guest::{
    ContactTarget, GuestMessage, InitiateContact, ModifyChannel, OpenChannel, TlConnectRequest,
};
pub use guid::{Guid, GuidError};
pub use host::{HostMessage, TlConnectResult, VersionResponse};
pub use ids::{GpadlId, Relid, Sint, VpIndex};
pub use message::{Direction, MessageType, ParseError};
pub use offer::{ChannelFlags, Offer, PIPE_MODE_BYTE, PIPE_MODE_MESSAGE, USER_DEFINED_SIZE};
pub use packet::{PACKET_HEADER_SIZE, PACKET_TRAILER_SIZE, PacketFlags, PacketHeader, PacketType};
pub use payload::{MAX_PAYLOAD, Payload};
pub use pipe::{PIPE_DATA, PIPE_HEADER_SIZE, PipeHeader};
pub use version::{ProtocolVersion, VersionError};
