// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The 16 bytes in front of every ring packet (protocol 5.2).
//!
//! ```text
//! 0 type u16 | 2 offset8 u16 | 4 len8 u16 | 6 flags u16 | 8 transaction id u64
//! ├── offset8 × 8: header ──┤├── payload, zero-padded to 8 ──┤├ trailer u64 ┤
//! ├────────────────── len8 × 8 ─────────────────────────────┤
//! ```

use std::fmt;

use zerocopy::{FromBytes, IntoBytes};

use super::raw;

/// Bytes of a plain header.
pub const PACKET_HEADER_SIZE: usize = 16;
/// Bytes behind a packet that its length does not count.
pub const PACKET_TRAILER_SIZE: usize = 8;

/// What a packet is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PacketType(pub u16);

impl PacketType {
    /// Data in the ring itself.
    pub const IN_BAND: Self = Self(0x6);
    /// Data in pages that were agreed upon before.
    pub const TRANSFER_PAGES: Self = Self(0x7);
    /// Data in a GPADL.
    pub const GPADL: Self = Self(0x8);
    /// Data in pages that the packet lists.
    pub const GPA_DIRECT: Self = Self(0x9);
    /// Take a request back.
    pub const CANCEL: Self = Self(0xa);
    /// The answer to a packet that asked for one.
    pub const COMPLETION: Self = Self(0xb);

    /// The protocol's name, if it has one.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::IN_BAND => "data-inband",
            Self::TRANSFER_PAGES => "data-transfer-pages",
            Self::GPADL => "data-gpadl",
            Self::GPA_DIRECT => "data-gpa-direct",
            Self::CANCEL => "cancel",
            Self::COMPLETION => "completion",
            _ => return None,
        })
    }
}

impl fmt::Debug for PacketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "packet type {:#x}", self.0),
        }
    }
}

bitflags::bitflags! {
    /// Flags of a packet.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct PacketFlags: u16 {
        /// The sender waits for a completion with the same transaction id.
        const COMPLETION_REQUESTED = 0x1;
        /// Others are kept as they are.
        const _ = !0;
    }
}

/// A packet's header as it was read, with nothing checked but its existence:
/// the ring checks the lengths against what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketHeader {
    /// What it is.
    pub packet_type: PacketType,
    /// Where the payload begins, in units of 8 bytes.
    pub offset8: u16,
    /// Where the payload ends, in units of 8 bytes.
    pub len8: u16,
    /// Flags.
    pub flags: PacketFlags,
    /// The sender's number for it.
    pub transaction_id: u64,
}

impl PacketHeader {
    /// From bytes on the wire.
    #[inline]
    pub fn from_bytes(bytes: [u8; PACKET_HEADER_SIZE]) -> Self {
        let raw = raw::PacketHeader::read_from_bytes(&bytes);
        // The sizes are equal, so the default is never taken.
        let raw = raw.unwrap_or_else(|_| zerocopy::FromZeros::new_zeroed());
        Self {
            packet_type: PacketType(raw.packet_type.get()),
            offset8: raw.offset8.get(),
            len8: raw.len8.get(),
            flags: PacketFlags::from_bits_retain(raw.flags.get()),
            transaction_id: raw.transaction_id.get(),
        }
    }

    /// The bytes on the wire.
    #[inline]
    pub fn to_bytes(self) -> [u8; PACKET_HEADER_SIZE] {
        let raw = raw::PacketHeader {
            packet_type: self.packet_type.0.into(),
            offset8: self.offset8.into(),
            len8: self.len8.into(),
            flags: self.flags.bits().into(),
            transaction_id: self.transaction_id.into(),
        };
        let mut bytes = [0; PACKET_HEADER_SIZE];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// From the two words on the wire. The ring's way: put together from fields
    /// in memory, a header could not be loaded as words before they have settled,
    /// which takes longer than all the rest.
    #[inline]
    pub fn from_words([first, second]: [u64; 2]) -> Self {
        let [t0, t1, o0, o1, l0, l1, f0, f1] = u64::from_le(first).to_le_bytes();
        Self {
            packet_type: PacketType(u16::from_le_bytes([t0, t1])),
            offset8: u16::from_le_bytes([o0, o1]),
            len8: u16::from_le_bytes([l0, l1]),
            flags: PacketFlags::from_bits_retain(u16::from_le_bytes([f0, f1])),
            transaction_id: u64::from_le(second),
        }
    }

    /// The two words on the wire.
    #[inline]
    pub fn to_words(self) -> [u64; 2] {
        let first = u64::from(self.packet_type.0)
            | u64::from(self.offset8) << 16
            | u64::from(self.len8) << 32
            | u64::from(self.flags.bits()) << 48;
        [first.to_le(), self.transaction_id.to_le()]
    }

    /// Bytes from the packet's start to its payload.
    pub fn payload_offset(&self) -> u32 {
        u32::from(self.offset8) * 8
    }

    /// Bytes of header and payload, without the trailer.
    pub fn packet_len(&self) -> u32 {
        u32::from(self.len8) * 8
    }
}
