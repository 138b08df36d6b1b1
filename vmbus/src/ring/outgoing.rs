// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ring from host to guest: reserve, publish (protocol 5.2, 5.4).
//!
//! ```text
//!   ┌ write ┐ … ─► publish ─► signal the guest, if it had nothing to look at
//!   └───────┘
//!       full ─► request_space ─► wait for the guest's signal, or go on at once
//! ```

use std::sync::atomic::Ordering;

use zerocopy::IntoBytes;

use super::control::Words;
use super::index::Writer;
use super::{Data, HEADER, RingError, TRAILER, WriteError};
use crate::memory::GuestSlice;
use crate::wire::{PACKET_HEADER_SIZE, PacketFlags, PacketHeader, PacketType};

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
    /// Tells the memory that any page of the ring may have been written.
    pub(super) fn mark_dirty(&self) {
        self.data.pages.mark_dirty();
    }

    pub(super) fn new(data: Data) -> Result<Self, RingError> {
        let writer = Writer::new(data.control(), data.size)?;
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
        let control = self.data.control();
        self.writer.current_free(control)
    }

    /// Whether the guest has read everything that was written.
    pub fn is_read(&mut self) -> Result<bool, RingError> {
        Ok(self.free()? == self.data.size)
    }

    /// The guest's read index, whatever it is: for who wants to know whether it
    /// moves.
    pub fn read_position(&self) -> u32 {
        self.data.control().read_index()
    }

    /// Writes a packet whose payload is `parts` one after the other. The guest
    /// sees it with the next [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`WriteError::Full`] leaves the ring as it was.
    #[inline(always)]
    #[expect(clippy::inline_always)] // Out of line a small packet takes half as long again.
    pub fn write(&mut self, meta: PacketMeta, parts: &[&[u8]]) -> Result<(), WriteError> {
        let payload = parts.iter().map(|part| part.len()).sum();
        let (len8, size) = lengths(payload).ok_or(WriteError::NeverFits)?;
        let start = self.writer.cursor();
        self.writer.reserve(self.data.control(), size)?;

        let header = PacketHeader {
            packet_type: meta.packet_type,
            offset8: OFFSET8,
            len8,
            flags: meta.flags,
            transaction_id: meta.transaction_id,
        };
        let packet = NewPacket {
            head: header.to_words(),
            payload,
            trailer: (u64::from(start) << 32).to_le(),
        };
        let stretch = usize::try_from(size).ok();
        let stretch = stretch.and_then(|size| self.data.stretch(start, size));
        if !stretch.is_some_and(|stretch| packet.write(stretch, parts)) {
            packet.write_in_pieces(&self.data, start, size, parts);
        }
        Ok(())
    }

    /// Shows the guest everything written since the last time. True if it must
    /// be signalled.
    #[inline]
    pub fn publish(&mut self) -> Result<bool, RingError> {
        let control = self.data.control();
        self.writer.publish(control)
    }

    /// After [`WriteError::Full`]: asks the guest to signal when more than
    /// `needed` ring bytes are free. True if they are already: try again, no
    /// signal will come.
    pub fn request_space(&mut self, needed: u32) -> Result<bool, RingError> {
        let control = self.data.control();
        self.writer.request_space(control, needed)
    }
}

/// A packet on its way into the ring, without its payload.
#[derive(Clone, Copy)]
struct NewPacket {
    /// As it is in memory, as the trailer is.
    head: [u64; 2],
    /// Bytes of the payload.
    payload: usize,
    trailer: u64,
}

impl NewPacket {
    /// The last word of the payload may be more than its bytes fill. Zeroes are
    /// put there first, and overwritten as far as needed.
    #[inline]
    fn is_padded(self) -> bool {
        !self.payload.is_multiple_of(8)
    }

    /// Fills a stretch of just the packet's size. False if it is none of words.
    #[inline]
    fn write(self, to: GuestSlice<'_>, parts: &[&[u8]]) -> bool {
        let Some([first, second, payload @ .., trailer]) = to.words() else {
            return false;
        };
        let [head, id] = self.head;
        first.store(head, Ordering::Relaxed);
        second.store(id, Ordering::Relaxed);
        trailer.store(self.trailer, Ordering::Relaxed);
        if let Some(last) = payload.last().filter(|_| self.is_padded()) {
            last.store(0, Ordering::Relaxed);
        }
        let mut at = PACKET_HEADER_SIZE;
        for part in parts {
            to.write(at, part);
            at += part.len();
        }
        true
    }

    /// The same for `size` ring bytes from `start` on that wrap, or are not all
    /// in one place.
    #[cold]
    fn write_in_pieces(self, to: &Data, start: u32, size: u32, parts: &[&[u8]]) {
        let put = |at: u32, bytes: &[u8]| to.write_in_pieces(to.wrap(start, at), bytes);
        put(0, self.head.as_bytes());
        if self.is_padded() {
            put(size - TRAILER - 8, &[0; 8]);
        }
        let mut at = HEADER;
        for part in parts {
            put(at, part);
            // The sum of all parts fits, so each does.
            at += u32::try_from(part.len()).unwrap_or(0);
        }
        put(size - TRAILER, self.trailer.as_bytes());
    }
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
