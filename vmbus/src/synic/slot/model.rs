// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every interleaving of the slot's handshake, by loom.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p vmbus --lib model
//! ```

// Clippy takes models for ordinary code; they are tests.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use loom::thread;

use super::{PENDING, SlotWords, deliver};
use crate::synic::SynicMessage;
use crate::wire::{Payload, Sint};

struct Slot {
    message_type: AtomicU32,
    header: AtomicU32,
    // Loom fails the test if both sides touch the body without an order.
    body: UnsafeCell<u8>,
    eom: AtomicBool,
}

impl Slot {
    fn new() -> Self {
        Self {
            message_type: AtomicU32::new(0),
            header: AtomicU32::new(0),
            body: UnsafeCell::new(0),
            eom: AtomicBool::new(false),
        }
    }

    /// What vmbus_on_msg_dpc and vmbus_signal_eom do. Returns the message read.
    fn guest_reads(&self) -> Option<u8> {
        let message_type = self.message_type.load(Ordering::Acquire);
        if message_type == 0 {
            return None;
        }
        // SAFETY: this model's guest is the only reader, and loom checks that
        // the host does not write at the same time.
        let body = self.body.with(|body| unsafe { *body });
        self.message_type
            .compare_exchange(message_type, 0, Ordering::AcqRel, Ordering::Acquire)
            .unwrap();
        fence(Ordering::SeqCst);
        if self.header.load(Ordering::Relaxed) & PENDING != 0 {
            self.eom.store(true, Ordering::Release);
        }
        Some(body)
    }
}

impl SlotWords for Slot {
    fn load_type(&self) -> u32 {
        self.message_type.load(Ordering::Acquire)
    }

    fn store_body(&self, message: &SynicMessage, pending: bool) {
        let flags = if pending { PENDING } else { 0 };
        self.header.store(flags, Ordering::Relaxed);
        let tag = message.payload().as_slice()[0];
        // SAFETY: as in `guest_reads`.
        self.body.with_mut(|body| unsafe { *body = tag });
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

fn message(tag: u8) -> SynicMessage {
    SynicMessage::vmbus(Sint::VMBUS, Payload::new(&[tag]).unwrap())
}

#[test]
fn a_message_that_waits_is_always_announced_by_an_eom() {
    loom::model(|| {
        let slot = Arc::new(Slot::new());
        assert!(deliver(&*slot, &message(1), false));
        let guest = {
            let slot = Arc::clone(&slot);
            thread::spawn(move || {
                assert_eq!(slot.guest_reads(), Some(1));
                slot.guest_reads()
            })
        };
        let delivered = deliver(&*slot, &message(2), false);
        let second = guest.join().unwrap();
        if !delivered {
            assert_eq!(second, None);
            assert!(slot.eom.load(Ordering::Acquire), "nobody will wake us");
            assert!(deliver(&*slot, &message(2), false));
        }
        if second.is_none() {
            assert_eq!(slot.guest_reads(), Some(2), "nothing is lost");
        }
    });
}

#[test]
fn two_waiting_messages_arrive_in_order() {
    loom::model(|| {
        let slot = Arc::new(Slot::new());
        assert!(deliver(&*slot, &message(1), true));
        let guest = {
            let slot = Arc::clone(&slot);
            thread::spawn(move || (slot.guest_reads(), slot.guest_reads(), slot.guest_reads()))
        };
        let mut next = 2;
        while next < 4 && deliver(&*slot, &message(next), next == 2) {
            next += 1;
        }
        let (first, second, third) = guest.join().unwrap();
        assert_eq!(first, Some(1));
        let seen = 2 + u8::from(second.is_some()) + u8::from(third.is_some());
        assert!(seen <= next);
        assert!(next == 4 || seen < next || slot.eom.load(Ordering::Acquire));
        for tag in [second, third].into_iter().flatten().zip(2..) {
            assert_eq!(tag.0, tag.1);
        }
    });
}
