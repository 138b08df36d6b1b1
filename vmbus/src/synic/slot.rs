// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One message slot: 256 bytes that the host fills and the guest frees (protocol 3.7).
//!
//! ```text
//! 0 type u32 | 4 size u8 | 5 flags u8 | 6 zero u16 | 8 sender u64 | 16 payload 240
//!
//!            host: body, then type (release)
//!   free ────────────────────────────────────► full
//!   (type 0) ◄──────────────────────────────── (type ≠ 0)
//!            guest: type := 0, then, if the pending flag is set, EOM
//! ```
//!
//! The handshake is written against [`SlotWords`], so that it runs on guest
//! memory and under loom alike.

use std::sync::atomic::{AtomicU32, Ordering, fence};

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice, bitmap::MS};

use super::SynicMessage;
use crate::wire::Sint;

/// Bytes of a slot, and of one SINT's share of the event-flags page.
pub(crate) const AREA_SIZE: u16 = 256;
/// The pending flag as a bit of the word at offset 4.
const PENDING: u32 = 1 << 8;
/// Who sends. Linux ignores it; Hyper-V uses this port.
const SENDER: u64 = 1;

/// The accesses that the handshake makes, and how they are ordered.
pub(crate) trait SlotWords {
    /// Reads the type; acquire, so that the guest is done with the body if it is 0.
    fn load_type(&self) -> u32;
    /// Writes everything but the type. The slot is free: only the host looks at it.
    fn store_body(&self, message: &SynicMessage, pending: bool);
    /// Writes the type; release, so that a guest that sees it sees the body.
    fn store_type(&self, message_type: u32);
    /// Sets the pending flag of whatever is in the slot.
    fn set_pending(&self);
    /// A full barrier.
    fn barrier(&self);
}

/// Puts `message` into the slot, or asks the guest for an EOM when it frees it.
/// `more` says that another message waits behind this one.
pub(crate) fn deliver(slot: &impl SlotWords, message: &SynicMessage, more: bool) -> bool {
    if try_fill(slot, message, more) {
        return true;
    }
    slot.set_pending();
    // Pairs with the guest's full barrier between freeing the slot and reading
    // the flag: either it sees the flag, or we see that the slot is free.
    slot.barrier();
    try_fill(slot, message, more)
}

fn try_fill(slot: &impl SlotWords, message: &SynicMessage, more: bool) -> bool {
    if slot.load_type() != 0 {
        return false;
    }
    slot.store_body(message, more);
    slot.store_type(message.message_type());
    true
}

/// A slot in guest memory.
pub(crate) struct GuestSlot<'a, M: GuestMemoryBackend + ?Sized> {
    bytes: VolatileSlice<'a, MS<'a, M>>,
}

impl<'a, M: GuestMemoryBackend + ?Sized> GuestSlot<'a, M> {
    /// The slot of `sint` in the message page at `page`; `None` if that is not memory.
    pub(crate) fn new(mem: &'a M, page: GuestAddress, sint: Sint) -> Option<Self> {
        let offset = u64::from(AREA_SIZE) * u64::from(sint.number());
        let start = GuestAddress(page.0.checked_add(offset)?);
        let bytes = mem.get_slice(start, usize::from(AREA_SIZE)).ok()?;
        let slot = Self { bytes };
        // Every later access is to one of these two words or to the body, so
        // that none of them can fail once this has worked.
        (slot.word(0).is_some() && slot.word(4).is_some()).then_some(slot)
    }

    fn word(&self, offset: usize) -> Option<&AtomicU32> {
        use vm_memory::VolatileMemory;
        self.bytes.get_atomic_ref(offset).ok()
    }
}

impl<M: GuestMemoryBackend + ?Sized> SlotWords for GuestSlot<'_, M> {
    fn load_type(&self) -> u32 {
        self.word(0).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store_body(&self, message: &SynicMessage, pending: bool) {
        let payload = message.payload();
        let flags = if pending { PENDING } else { 0 };
        if let Some(word) = self.word(4) {
            word.store(u32::from(payload.len()) | flags, Ordering::Relaxed);
        }
        if let Ok(sender) = self.bytes.offset(8) {
            sender.copy_from(&SENDER.to_le_bytes());
        }
        if let Ok(body) = self.bytes.offset(16) {
            body.copy_from(payload.as_slice());
        }
    }

    fn store_type(&self, message_type: u32) {
        if let Some(word) = self.word(0) {
            word.store(message_type, Ordering::Release);
        }
    }

    fn set_pending(&self) {
        if let Some(word) = self.word(4) {
            word.fetch_or(PENDING, Ordering::AcqRel);
        }
    }

    fn barrier(&self) {
        fence(Ordering::SeqCst);
    }
}

#[cfg(all(test, loom))]
mod model;
