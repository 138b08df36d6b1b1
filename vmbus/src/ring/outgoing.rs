// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ring from host to guest: reserve, publish (protocol 5.2, 5.4).
//!
//! ```text
//!   ┌ write ┐ … ─► publish ─► signal the guest, if it had nothing to look at
//!   └───────┘
//!       full ─► request_space ─► wait for the guest's signal, or go on at once
//! ```

use super::index::Writer;
use super::{Data, HEADER, RingError, TRAILER, WriteError};
use crate::mapped::{GuestPages, Stretch};
use crate::wire::{PacketFlags, PacketHeader, PacketType};

/// The host's end of the ring that the guest reads.
#[derive(Debug)]
pub struct Outgoing {
    data: Data,
    writer: Writer,
}

/// What a packet says besides its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketMeta {
    /// What it is.
    pub packet_type: PacketType,
    /// Whether a completion is wanted.
    pub flags: PacketFlags,
    /// The host's number for it, or the guest's, in a completion.
    pub transaction_id: u64,
}

impl PacketMeta {
    /// Plain data that wants no completion.
    pub const fn in_band(transaction_id: u64) -> Self {
        Self {
            packet_type: PacketType::IN_BAND,
            flags: PacketFlags::empty(),
            transaction_id,
        }
    }

    /// The answer to the guest's packet `transaction_id`.
    pub const fn completion(transaction_id: u64) -> Self {
        Self {
            packet_type: PacketType::COMPLETION,
            flags: PacketFlags::empty(),
            transaction_id,
        }
    }
}

impl Outgoing {
    pub(super) fn new(pages: GuestPages, size: u32) -> Result<Self, RingError> {
        let data = Data { pages, size };
        let writer = Writer::new(data.control()?, size)?;
        Ok(Self { data, writer })
    }

    /// Bytes of the data area.
    pub fn size(&self) -> u32 {
        self.data.size
    }

    /// Ring bytes that a packet with `payload` bytes takes, if it can ever fit.
    pub fn packet_size(&self, payload: usize) -> Option<u32> {
        let (_, size) = lengths(payload)?;
        (size <= self.writer.capacity()).then_some(size)
    }

    /// Free ring bytes now.
    pub fn free(&mut self) -> Result<u32, RingError> {
        let control = self.data.control()?;
        self.writer.current_free(control)
    }

    /// Whether the guest has read everything that was written.
    pub fn is_read(&mut self) -> Result<bool, RingError> {
        Ok(self.free()? == self.data.size)
    }

    /// Writes a packet whose payload is `parts` one after the other. The guest
    /// sees it with the next [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`WriteError::Full`] leaves the ring as it was.
    #[inline]
    pub fn write(&mut self, meta: PacketMeta, parts: &[&[u8]]) -> Result<(), WriteError> {
        let payload = parts.iter().map(|part| part.len()).sum();
        let (len8, size) = lengths(payload).ok_or(WriteError::NeverFits)?;
        let start = self.writer.cursor();
        self.writer.reserve(self.data.control()?, size)?;

        let packet = NewPacket {
            header: PacketHeader {
                packet_type: meta.packet_type,
                offset8: OFFSET8,
                len8,
                flags: meta.flags,
                transaction_id: meta.transaction_id,
            },
            parts,
            // The last word of the payload may be more than the parts fill.
            padded: !payload.is_multiple_of(8),
            trailer: u64::from(start) << 32,
        };
        match self.data.stretch(start, size) {
            Some(stretch) => packet.write(size, |at, bytes| put(stretch, at, bytes)),
            None => packet.write(size, |at, bytes| {
                self.data.write(self.data.wrap(start, at), bytes);
            }),
        }
        Ok(())
    }

    /// Shows the guest everything written since the last time. True if it must
    /// be signalled.
    #[inline]
    pub fn publish(&mut self) -> Result<bool, RingError> {
        let control = self.data.control()?;
        self.writer.publish(control)
    }

    /// After [`WriteError::Full`]: asks the guest to signal when more than
    /// `needed` ring bytes are free. True if they are already: try again, no
    /// signal will come.
    pub fn request_space(&mut self, needed: u32) -> Result<bool, RingError> {
        let control = self.data.control()?;
        self.writer.request_space(control, needed)
    }
}

/// A packet on its way into the ring.
struct NewPacket<'a> {
    header: PacketHeader,
    parts: &'a [&'a [u8]],
    padded: bool,
    trailer: u64,
}

impl NewPacket<'_> {
    /// Gives the packet of `size` ring bytes to `put`, piece by piece, each with
    /// its offset.
    #[inline]
    fn write(&self, size: u32, mut put: impl FnMut(u32, &[u8])) {
        let [first, second]: [[u8; 8]; 2] = zerocopy::transmute!(self.header.to_bytes());
        put(0, &first);
        put(8, &second);
        if self.padded {
            // Zeroes first: the payload overwrites what it needs of the word.
            put(size - TRAILER - 8, &[0; 8]);
        }
        let mut at = HEADER;
        for part in self.parts {
            put(at, part);
            // The sum of all parts fits, so each does.
            at += u32::try_from(part.len()).unwrap_or(0);
        }
        put(size - TRAILER, &self.trailer.to_le_bytes());
    }
}

/// Writes `bytes` to `at` of a stretch that has room for the whole packet.
#[inline]
fn put(stretch: Stretch<'_>, at: u32, bytes: &[u8]) {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    match bytes.try_into() {
        Ok(word) if at.is_multiple_of(8) => stretch.write_8(at, word),
        _ => stretch.write(at, bytes),
    };
}

/// The header's length in units of 8 bytes: ours is always plain.
const OFFSET8: u16 = 2;

/// What goes into the header's len8, and the ring bytes, of a packet.
#[inline]
fn lengths(payload: usize) -> Option<(u16, u32)> {
    let len8 = payload.div_ceil(8).checked_add(usize::from(OFFSET8))?;
    let len8 = u16::try_from(len8).ok()?;
    Some((len8, u32::from(len8) * 8 + TRAILER))
}
