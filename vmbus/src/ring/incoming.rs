// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ring from guest to host: peek, advance, commit (protocol 5.2, 5.3).
//!
//! ```text
//!   signal ─► mask ─► ┌ peek ─► use ─► advance ┐ … ─► commit ─► unmask ─► more? ─┐
//!               ▲     └────────────────────────┘        │                        │
//!               └───────────────────────────────────────│────────────────────────┘
//!                                                       └► signal the guest, if it waits
//! ```

use std::iter;

use super::index::Reader;
use super::{Data, HEADER, RingError, TRAILER};
use crate::memory::GuestSlice;
use crate::ring::control::Words;
use crate::wire::{PacketFlags, PacketType};

/// The host's end of the ring that the guest writes.
#[derive(Debug)]
pub struct Incoming {
    data: Data,
    reader: Reader,
    /// Ring bytes of the packet last peeked at, until it is advanced past.
    peeked: u32,
}

/// A packet in the ring. Its header was copied and checked; its payload still
/// is where the guest can change it, so copy it once and use the copy.
#[derive(Debug)]
pub struct IncomingPacket<'a> {
    /// What it is.
    pub packet_type: PacketType,
    /// Whether the guest waits for a completion.
    pub flags: PacketFlags,
    /// The guest's number for it.
    pub transaction_id: u64,
    /// Between the 16-byte header and the payload; empty for most types.
    pub extended_header: PacketPayload<'a>,
    /// The data, with the padding to 8 bytes.
    pub payload: PacketPayload<'a>,
}

/// Where a packet is in the ring, and its header, which was copied and checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    packet_type: PacketType,
    flags: PacketFlags,
    transaction_id: u64,
    /// Where its header is.
    at: u32,
    /// Bytes from there to its payload, and to its end.
    bounds: [u32; 2],
}

/// Bytes of a packet that are still in the ring.
#[derive(Clone, Copy, Debug)]
pub struct PacketPayload<'a> {
    data: &'a Data,
    at: u32,
    len: u32,
}

impl Incoming {
    pub(super) fn new(data: Data) -> Result<Self, RingError> {
        let reader = Reader::new(data.control(), data.size)?;
        Ok(Self {
            data,
            reader,
            peeked: 0,
        })
    }

    /// Bytes of the data area.
    pub fn size(&self) -> u32 {
        self.data.size
    }

    /// The next packet, if there is one. It stays the next one until
    /// [`advance`](Self::advance).
    #[inline(always)]
    #[expect(clippy::inline_always)] // As `Outgoing::write`.
    pub fn peek(&mut self) -> Result<Option<IncomingPacket<'_>>, RingError> {
        let place = self.find()?;
        Ok(place.map(|place| self.packet(&place)))
    }

    /// As [`peek`](Self::peek).
    #[inline(always)]
    #[expect(clippy::inline_always)] // As `Outgoing::write`.
    pub(crate) fn find(&mut self) -> Result<Option<Place>, RingError> {
        let available = self.reader.available(self.data.control())?;
        if available == 0 {
            return Ok(None);
        }
        let at = self.reader.cursor();
        if available < HEADER + TRAILER {
            return Err(RingError::Torn { available });
        }
        let header = self.data.read_header(at);
        let (offset, len) = (header.payload_offset(), header.packet_len());
        if offset < HEADER || len < offset || len > available - TRAILER {
            return Err(RingError::BadLength {
                offset8: header.offset8,
                len8: header.len8,
                available,
            });
        }
        self.peeked = len + TRAILER;
        Ok(Some(Place {
            packet_type: header.packet_type,
            flags: header.flags,
            transaction_id: header.transaction_id,
            at,
            bounds: [offset, len],
        }))
    }

    /// The packet at a place that was found since the last commit.
    #[inline(always)]
    #[expect(clippy::inline_always)] // As `Outgoing::write`.
    pub(crate) fn packet(&self, place: &Place) -> IncomingPacket<'_> {
        let part = |from, to| PacketPayload {
            data: &self.data,
            at: self.data.wrap(place.at, from),
            len: to - from,
        };
        let [offset, end] = place.bounds;
        IncomingPacket {
            packet_type: place.packet_type,
            flags: place.flags,
            transaction_id: place.transaction_id,
            extended_header: part(HEADER, offset),
            payload: part(offset, end),
        }
    }

    /// Moves past the packet that was peeked at. The guest gets its space back
    /// with the next [`commit`](Self::commit).
    #[inline]
    pub fn advance(&mut self) {
        self.reader.advance(std::mem::take(&mut self.peeked));
    }

    /// Back to a packet that was advanced past since the last commit: it and
    /// those behind it come again.
    pub(crate) fn back_to(&mut self, place: &Place) {
        self.peeked = 0;
        self.reader.back_to(place.at);
    }

    /// Back to where the last commit was: what was advanced past comes again.
    pub fn rewind(&mut self) {
        self.peeked = 0;
        self.reader.rewind();
    }

    /// Ring bytes advanced past and not committed.
    pub fn uncommitted(&self) -> u32 {
        self.reader.uncommitted()
    }

    /// Gives the space of all packets advanced past back to the guest. True if
    /// the guest waits for just that and must be signalled.
    #[inline]
    pub fn commit(&mut self) -> Result<bool, RingError> {
        let control = self.data.control();
        self.reader.commit(control)
    }

    /// Asks the guest not to signal: the host looks by itself.
    pub fn mask(&mut self) {
        Reader::mask(self.data.control());
    }

    /// Asks the guest to signal again. True if packets came meanwhile: the ring
    /// is masked again, and the host drains on.
    pub fn unmask(&mut self) -> Result<bool, RingError> {
        let control = self.data.control();
        self.reader.unmask(control)
    }

    /// Whether there is a packet, by the guest's present index.
    pub fn is_empty(&mut self) -> Result<bool, RingError> {
        let control = self.data.control();
        Ok(self.reader.available(control)? == 0)
    }

    /// The payload of the last packet in the ring, if that seems to be plain
    /// and of one word: for those who cannot take the packets before it yet. The
    /// guest can make it look so with any data of its own.
    pub fn last_word(&mut self) -> Result<Option<[u8; 8]>, RingError> {
        const SIZE: u32 = HEADER + 8 + TRAILER;
        let present = self.reader.present(self.data.control())?;
        let Some(before) = present.checked_sub(SIZE) else {
            return Ok(None);
        };
        let at = self.data.wrap(self.reader.cursor(), before);
        let header = self.data.read_header(at);
        let plain = header.packet_type == PacketType::IN_BAND
            && (header.payload_offset(), header.packet_len()) == (HEADER, HEADER + 8);
        Ok(plain.then(|| self.data.read_word(self.data.wrap(at, HEADER))))
    }

    /// Tells the memory that the control words may have been written.
    pub(super) fn mark_dirty(&self) {
        self.data.pages.mark_control_dirty();
    }

    /// The guest's pending_send_sz, for a status display.
    pub fn guest_pending_send_sz(&self) -> u32 {
        self.data.control().pending_send_sz()
    }
}

impl<'a> PacketPayload<'a> {
    /// How many bytes.
    pub fn len(&self) -> usize {
        usize::try_from(self.len).unwrap_or(0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A copy of the first 8 bytes.
    #[inline]
    pub fn first_word(&self) -> Option<[u8; 8]> {
        (self.len >= 8).then(|| self.data.read_word(self.at))
    }

    /// Copies as many bytes as there are, or as `to` has room for, from the
    /// start. Says how many.
    #[inline]
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let len = self.len().min(to.len());
        if let Some(to) = to.get_mut(..len) {
            self.data.read(self.at, to);
        }
        len
    }

    /// Copies bytes from `from` on. Says how many.
    #[inline]
    pub fn copy_from_to(&self, from: usize, to: &mut [u8]) -> usize {
        let Some(skipped) = u32::try_from(from).ok().filter(|from| *from <= self.len) else {
            return 0;
        };
        let most = self.len() - from;
        let len = most.min(to.len());
        if let Some(to) = to.get_mut(..len) {
            self.data.read(self.data.wrap(self.at, skipped), to);
        }
        len
    }

    /// The bytes where they are, from `from` on and `most` at most, in as many
    /// pieces as they lie in: for system calls that take them from there. The
    /// guest can change them at any time.
    #[inline]
    pub fn pieces(
        &self,
        from: usize,
        most: usize,
    ) -> impl Iterator<Item = GuestSlice<'a>> + use<'a> {
        let data = self.data;
        let skipped = u32::try_from(from).unwrap_or(u32::MAX).min(self.len);
        let mut at = data.wrap(self.at, skipped);
        let mut left = self.len().saturating_sub(from).min(most);
        iter::from_fn(move || {
            let piece = data.piece(at, left)?;
            left -= piece.len();
            at = data.wrap(at, u32::try_from(piece.len()).ok()?);
            Some(piece)
        })
    }

    /// A copy. At most 512 KiB: a packet cannot be longer.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.copy_to(&mut bytes);
        bytes
    }
}
