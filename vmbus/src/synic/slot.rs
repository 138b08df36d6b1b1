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

use crate::memory::{GuestMemory, GuestSlice};

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
pub(crate) struct GuestSlot<'a> {
    bytes: GuestSlice<'a>,
    message_type: &'a AtomicU32,
    /// Size and flags.
    header: &'a AtomicU32,
}

impl<'a> GuestSlot<'a> {
    /// The slot of `sint` in the message page at `page`; `None` if that is not memory.
    pub(crate) fn new(mem: &'a dyn GuestMemory, page: u64, sint: Sint) -> Option<Self> {
        let bytes = mem.slice(address(page, sint)?, usize::from(AREA_SIZE))?;
        Some(Self {
            message_type: bytes.atomic_u32(0)?,
            header: bytes.atomic_u32(4)?,
            bytes,
        })
    }
}

/// Where the slot of `sint` begins in the message page at `page`.
pub(crate) fn address(page: u64, sint: Sint) -> Option<u64> {
    page.checked_add(u64::from(AREA_SIZE) * u64::from(sint.number()))
}

impl SlotWords for GuestSlot<'_> {
    fn load_type(&self) -> u32 {
        self.message_type.load(Ordering::Acquire)
    }

    fn store_body(&self, message: &SynicMessage, pending: bool) {
        let payload = message.payload();
        let flags = if pending { PENDING } else { 0 };
        let header = u32::from(payload.len()) | flags;
        self.header.store(header, Ordering::Relaxed);
        // A payload has at most 240 bytes: both are within the slot.
        self.bytes.write(8, &SENDER.to_le_bytes());
        self.bytes.write(16, payload.as_slice());
    }

    fn store_type(&self, message_type: u32) {
        self.message_type.store(message_type, Ordering::Release);
    }

    fn set_pending(&self) {
        self.header.fetch_or(PENDING, Ordering::AcqRel);
    }

    fn barrier(&self) {
        fence(Ordering::SeqCst);
    }
}

#[cfg(all(test, loom))]
mod model;
