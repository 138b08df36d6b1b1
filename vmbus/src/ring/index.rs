// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The index protocol: who may read and write what, and who must be signalled
//! (protocol 5.1, 5.3, 5.4).
//!
//! ```text
//!            read ─────────── cursor ─────────── known write ── … free … ── read
//!   reader   committed        peeked             seen so far
//!
//!            read ── … data … ── written ─────────── cursor ── … free … ── read
//!   writer   seen so far         published           reserved
//! ```
//!
//! Both sides keep their own index privately and only ever *store* it: what a
//! guest writes over it has no effect. The peer's index is loaded, checked, and
//! kept until it is used up.
//!
//! | Fence | in | pairs with the guest's barrier between |
//! |---|---|---|
//! | F1 | [`Reader::unmask`] | advancing write_index and reading interrupt_mask |
//! | F2 | [`Reader::commit`] | setting pending_send_sz and reading read_index |
//! | F3 | [`Writer::publish`] | clearing interrupt_mask and reading write_index |
//! | F4 | [`Writer::request_space`] | advancing read_index and reading pending_send_sz |

use super::control::Words;
use super::{RingError, WriteError};

/// Packets, and so indices, are multiples of this.
pub(crate) const ALIGN: u32 = 8;
/// Values of interrupt_mask; any but 0 means masked.
const MASKED: u32 = 1;
const UNMASKED: u32 = 0;

/// Bytes from `from` on to `to` in a ring of `size` bytes; both are below `size`.
#[inline]
fn distance(from: u32, to: u32, size: u32) -> u32 {
    if to >= from {
        to - from
    } else {
        size - (from - to)
    }
}

/// `index` advanced by `by`, which is at most `size`.
#[inline]
fn advance(index: u32, by: u32, size: u32) -> u32 {
    // Rings are smaller than 2^31 bytes, so the sum cannot overflow.
    let next = index + by;
    if next >= size { next - size } else { next }
}

#[inline]
fn check(index: u32, size: u32) -> Result<u32, RingError> {
    if index < size && index.is_multiple_of(ALIGN) {
        Ok(index)
    } else {
        Err(RingError::BadIndex { index, size })
    }
}

/// The host as reader: of the ring from guest to host.
#[derive(Debug)]
pub(crate) struct Reader {
    size: u32,
    /// Published to the guest.
    read: u32,
    /// Where the next packet is peeked at.
    cursor: u32,
    /// From `read` to `cursor`.
    uncommitted: u32,
    /// From `cursor` to the guest's write index as last seen.
    available: u32,
    /// That index.
    write: u32,
}

impl Reader {
    pub(crate) fn new(words: &impl Words, size: u32) -> Result<Self, RingError> {
        let read = check(words.read_index(), size)?;
        let write = check(words.write_index(), size)?;
        Ok(Self {
            size,
            read,
            cursor: read,
            uncommitted: 0,
            available: distance(read, write, size),
            write,
        })
    }

    /// Bytes that can be peeked at. Looks at the guest's index when what was
    /// known is used up.
    #[inline]
    pub(crate) fn available(&mut self, words: &impl Words) -> Result<u32, RingError> {
        if self.available == 0 {
            self.look(words)?;
        }
        Ok(self.available)
    }

    /// Bytes that could be peeked at by the guest's present index.
    pub(crate) fn present(&mut self, words: &impl Words) -> Result<u32, RingError> {
        self.look(words)?;
        Ok(self.available)
    }

    /// Takes the guest's index. It can only have moved on, into the space that
    /// the guest knows to be free.
    #[inline]
    fn look(&mut self, words: &impl Words) -> Result<(), RingError> {
        let write = check(words.write_index(), self.size)?;
        let new = distance(self.write, write, self.size);
        // A ring is never full, or it would look empty.
        if new >= self.size - self.uncommitted - self.available {
            return Err(RingError::WentBack);
        }
        self.available += new;
        self.write = write;
        Ok(())
    }

    #[inline]
    pub(crate) fn cursor(&self) -> u32 {
        self.cursor
    }

    /// Moves past `len` bytes that were peeked at; `len` is at most what was available.
    #[inline]
    pub(crate) fn advance(&mut self, len: u32) {
        self.cursor = advance(self.cursor, len, self.size);
        self.uncommitted += len;
        self.available -= len;
    }

    /// Back to the last commit.
    pub(crate) fn rewind(&mut self) {
        self.back_to(self.read);
    }

    /// Back to where the cursor was at some time since the last commit.
    pub(crate) fn back_to(&mut self, cursor: u32) {
        let kept = distance(self.read, cursor, self.size);
        if kept <= self.uncommitted {
            self.available += self.uncommitted - kept;
            self.uncommitted = kept;
            self.cursor = cursor;
        }
    }

    /// Bytes peeked past and not committed.
    pub(crate) fn uncommitted(&self) -> u32 {
        self.uncommitted
    }

    /// Gives the space of everything peeked past back to the guest. True if the
    /// guest waits for space, did not have it before, and has it now.
    #[inline]
    pub(crate) fn commit(&mut self, words: &impl Words) -> Result<bool, RingError> {
        let consumed = std::mem::take(&mut self.uncommitted);
        if consumed == 0 {
            return Ok(false);
        }
        self.read = self.cursor;
        words.set_read_index(self.read);
        words.barrier(); // F2
        let pending = words.pending_send_sz();
        if pending == 0 {
            return Ok(false);
        }
        // The guest may have written on meanwhile: count with what it has now.
        self.look(words)?;
        let free_after = self.size - self.available;
        let free_before = free_after.saturating_sub(consumed);
        Ok(free_before <= pending && pending < free_after)
    }

    pub(crate) fn mask(words: &impl Words) {
        words.set_interrupt_mask(MASKED);
    }

    /// Asks for signals again. True if packets came meanwhile, for which none
    /// was sent: the mask is set again, and the caller drains on.
    pub(crate) fn unmask(&mut self, words: &impl Words) -> Result<bool, RingError> {
        words.set_interrupt_mask(UNMASKED);
        words.barrier(); // F1
        self.look(words)?;
        let more = self.available != 0;
        if more {
            words.set_interrupt_mask(MASKED);
        }
        Ok(more)
    }
}

/// The host as writer: of the ring from host to guest.
#[derive(Debug)]
pub(crate) struct Writer {
    size: u32,
    /// Published to the guest.
    written: u32,
    /// Where the next packet is written.
    cursor: u32,
    /// From `written` to `cursor`.
    unpublished: u32,
    /// From the guest's read index as last seen to `written`.
    unread: u32,
    /// That index.
    read: u32,
    /// The guest was asked to signal when there is space.
    waiting: bool,
}

impl Writer {
    pub(crate) fn new(words: &impl Words, size: u32) -> Result<Self, RingError> {
        let written = check(words.write_index(), size)?;
        let read = check(words.read_index(), size)?;
        Ok(Self {
            size,
            written,
            cursor: written,
            unpublished: 0,
            unread: distance(read, written, size),
            read,
            waiting: false,
        })
    }

    #[inline]
    pub(crate) fn cursor(&self) -> u32 {
        self.cursor
    }

    /// The most bytes that one packet can take, with its trailer: a ring is
    /// never filled completely, or it would look empty.
    pub(crate) fn capacity(&self) -> u32 {
        self.size - ALIGN
    }

    #[inline]
    fn free(&self) -> u32 {
        self.size - self.unread - self.unpublished
    }

    /// Free space by the guest's present index.
    pub(crate) fn current_free(&mut self, words: &impl Words) -> Result<u32, RingError> {
        self.look(words)?;
        Ok(self.free())
    }

    /// Takes the guest's index. It can only have moved on, up to what is written.
    #[inline]
    fn look(&mut self, words: &impl Words) -> Result<(), RingError> {
        let read = check(words.read_index(), self.size)?;
        let new = distance(self.read, read, self.size);
        self.unread = self.unread.checked_sub(new).ok_or(RingError::WentBack)?;
        self.read = read;
        Ok(())
    }

    /// Reserves `len` bytes at the cursor.
    #[inline]
    pub(crate) fn reserve(&mut self, words: &impl Words, len: u32) -> Result<(), WriteError> {
        if self.free() <= len {
            self.make_room(words, len)?;
        }
        self.cursor = advance(self.cursor, len, self.size);
        self.unpublished += len;
        Ok(())
    }

    /// Sees whether the guest has read on.
    #[cold]
    fn make_room(&mut self, words: &impl Words, len: u32) -> Result<(), WriteError> {
        self.look(words)?;
        if self.free() > len {
            Ok(())
        } else if len > self.capacity() {
            Err(WriteError::NeverFits)
        } else {
            Err(WriteError::Full { needed: len })
        }
    }

    /// Shows the guest everything reserved since the last time. True if it must
    /// be signalled: it does not look by itself, and had nothing to look at.
    #[inline]
    pub(crate) fn publish(&mut self, words: &impl Words) -> Result<bool, RingError> {
        if self.unpublished == 0 {
            return Ok(false);
        }
        let old = self.written;
        self.written = self.cursor;
        self.unread += std::mem::take(&mut self.unpublished);
        words.set_write_index(self.written);
        if self.waiting {
            // There was space after all.
            self.waiting = false;
            words.set_pending_send_sz(0);
        }
        words.barrier(); // F3
        if words.interrupt_mask() != 0 {
            return Ok(false);
        }
        self.look(words)?;
        Ok(self.read == old)
    }

    /// Asks the guest to signal when more than `needed` bytes are free. True if
    /// they are already, and no signal will come.
    pub(crate) fn request_space(
        &mut self,
        words: &impl Words,
        needed: u32,
    ) -> Result<bool, RingError> {
        words.set_pending_send_sz(needed);
        self.waiting = true;
        words.barrier(); // F4
        self.look(words)?;
        let enough = self.free() > needed;
        if enough {
            self.waiting = false;
            words.set_pending_send_sz(0);
        }
        Ok(enough)
    }
}

#[cfg(test)]
mod tests;
