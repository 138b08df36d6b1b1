// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every interleaving of the index protocol, by loom: one model per fence of
//! the table in `index`. Without that fence its model fails.
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

use super::control::Words;
use super::index::{Reader, Writer};

const SIZE: u32 = 64;
const PACKET: u32 = 24;

#[derive(Default)]
struct Ring {
    write: AtomicU32,
    read: AtomicU32,
    mask: AtomicU32,
    pending: AtomicU32,
    /// One word per packet. Loom fails the test if both sides touch one without
    /// an order.
    packets: [UnsafeCell<u32>; 2],
    signal: AtomicBool,
}

impl Words for Ring {
    fn write_index(&self) -> u32 {
        self.write.load(Ordering::Acquire)
    }
    fn set_write_index(&self, index: u32) {
        self.write.store(index, Ordering::Release);
    }
    fn read_index(&self) -> u32 {
        self.read.load(Ordering::Acquire)
    }
    fn set_read_index(&self, index: u32) {
        self.read.store(index, Ordering::Release);
    }
    fn interrupt_mask(&self) -> u32 {
        self.mask.load(Ordering::Acquire)
    }
    fn set_interrupt_mask(&self, mask: u32) {
        self.mask.store(mask, Ordering::Release);
    }
    fn pending_send_sz(&self) -> u32 {
        self.pending.load(Ordering::Acquire)
    }
    fn set_pending_send_sz(&self, size: u32) {
        self.pending.store(size, Ordering::Release);
    }
    fn barrier(&self) {
        fence(Ordering::SeqCst);
    }
}

impl Ring {
    fn put(&self, packet: u32) {
        // SAFETY: loom checks that nobody else uses the cell at the same time.
        self.packets[packet as usize].with_mut(|cell| unsafe { *cell = packet + 1 });
    }

    fn take(&self, packet: u32) {
        // SAFETY: as in `put`.
        let value = self.packets[packet as usize].with(|cell| unsafe { *cell });
        assert_eq!(value, packet + 1);
    }

    fn signal(&self) {
        self.signal.store(true, Ordering::Release);
    }

    fn signalled(&self) -> bool {
        self.signal.swap(false, Ordering::AcqRel)
    }
}

/// Serves the ring as the host does; returns how many packets there were.
fn host_drains(ring: &Ring, reader: &mut Reader, seen: u32) -> u32 {
    let mut seen = seen;
    loop {
        while reader.available(ring).unwrap() != 0 {
            ring.take(seen);
            seen += 1;
            reader.advance(PACKET);
        }
        reader.commit(ring).unwrap();
        if !reader.unmask(ring).unwrap() {
            return seen;
        }
    }
}

#[test]
fn f1_no_packet_is_left_without_a_signal() {
    loom::model(|| {
        let ring = Arc::new(Ring::default());
        ring.mask.store(1, Ordering::Release);
        let guest = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                for packet in 0..2 {
                    ring.put(packet);
                    let old = packet * PACKET;
                    ring.set_write_index(old + PACKET);
                    ring.barrier();
                    if ring.interrupt_mask() == 0 && ring.read_index() == old {
                        ring.signal();
                    }
                }
            })
        };
        let mut reader = Reader::new(&*ring, SIZE).unwrap();
        let mut seen = host_drains(&ring, &mut reader, 0);
        guest.join().unwrap();
        if ring.signalled() {
            seen = host_drains(&ring, &mut reader, seen);
        }
        assert_eq!(seen, 2, "a packet that nobody will look at");
    });
}

#[test]
fn f2_a_guest_that_waits_for_room_is_woken() {
    loom::model(|| {
        let ring = Arc::new(Ring::default());
        ring.write.store(2 * PACKET, Ordering::Release);
        let mut reader = Reader::new(&*ring, SIZE).unwrap();
        let guest = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                ring.set_pending_send_sz(PACKET);
                ring.barrier();
                let free = SIZE - (2 * PACKET - ring.read_index());
                free <= PACKET // asleep
            })
        };
        reader.advance(PACKET);
        let signalled = reader.commit(&*ring).unwrap();
        let asleep = guest.join().unwrap();
        assert!(!asleep || signalled, "it sleeps for ever");
    });
}

#[test]
fn f3_a_guest_that_asks_for_signals_again_misses_no_packet() {
    loom::model(|| {
        let ring = Arc::new(Ring::default());
        ring.mask.store(1, Ordering::Release);
        let guest = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                ring.set_interrupt_mask(0);
                ring.barrier();
                let there = ring.write_index() != 0;
                if there {
                    ring.take(0);
                }
                there
            })
        };
        let mut writer = Writer::new(&*ring, SIZE).unwrap();
        ring.put(0);
        writer.reserve(&*ring, PACKET).unwrap();
        let signalled = writer.publish(&*ring).unwrap();
        let seen = guest.join().unwrap();
        assert!(seen || signalled, "it sleeps on a packet");
    });
}

#[test]
fn f4_a_host_that_waits_for_room_is_woken() {
    loom::model(|| {
        let ring = Arc::new(Ring::default());
        ring.write.store(2 * PACKET, Ordering::Release);
        let mut writer = Writer::new(&*ring, SIZE).unwrap();
        let guest = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                // What hv_pkt_iter_close does.
                ring.set_read_index(PACKET);
                ring.barrier();
                let pending = ring.pending_send_sz();
                let (before, after) = (SIZE - 2 * PACKET, SIZE - PACKET);
                pending != 0 && before <= pending && pending < after
            })
        };
        let room = writer.reserve(&*ring, PACKET).is_ok();
        let room = room || writer.request_space(&*ring, PACKET).unwrap();
        let signalled = guest.join().unwrap();
        assert!(room || signalled, "the host waits for ever");
    });
}
