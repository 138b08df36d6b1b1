// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that is added while the guest runs, and memory that logs what is written.

use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::sync::Mutex;

use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::*;
use crate::memory::GuestMemory;

/// Notes the pages that are marked.
struct Logged(StdArc<GuestMemoryMmap>, Mutex<BTreeSet<u64>>);

// SAFETY: the memory within vouches for all of it.
unsafe impl GuestMemory for Logged {
    fn host_address(&self, address: u64, len: usize) -> Option<NonNull<u8>> {
        self.0.host_address(address, len)
    }

    fn mark_dirty(&self, address: u64, len: usize) {
        let last = address + u64::try_from(len).unwrap() - 1;
        self.1.lock().unwrap().extend(address / 4096..=last / 4096);
    }
}

#[test]
fn a_channel_can_have_its_pages_in_memory_that_was_added() {
    let (mut guest, relid) = connected(Box::new(EchoDevice::default()));
    let end = 1 << 40;
    let pfns: Vec<u64> = (0..8).map(|page| (end >> 12) + page).collect();
    assert!(guest.create_gpadl(relid, &pfns).is_err(), "not there yet");
    let added = GuestRegionMmap::from_range(GuestAddress(end), 1 << 20, None).unwrap();
    let memory = guest.memory().insert_region(StdArc::new(added)).unwrap();
    guest.with_host(|host, _| host.set_memory(StdArc::new(memory)));
    assert!(guest.create_gpadl(relid, &pfns).is_ok());
    // What was there before still is.
    let mut channel = guest.open(relid, 4).unwrap();
    assert!(guest.send(&mut channel, 7, b"hello"));
    assert_eq!(guest.receive(&mut channel).unwrap().transaction_id, 7);
}

#[test]
fn an_open_channel_outlives_the_memory_object_that_it_was_opened_in() {
    let (mut guest, mut channel) = echo(4);
    let memory = StdArc::clone(guest.memory());
    guest.with_host(|host, _| host.set_memory(StdArc::new((*memory).clone())));
    assert!(guest.send(&mut channel, 1, b"still here"));
    assert_eq!(guest.receive(&mut channel).unwrap().transaction_id, 1);
}

#[test]
fn pages_of_rings_are_marked_when_asked_and_when_a_channel_closes() {
    let (mut guest, relid) = connected(Box::new(EchoDevice::default()));
    let memory = StdArc::clone(guest.memory());
    let logged = StdArc::new(Logged(memory, Mutex::default()));
    guest.with_host(|host, _| host.set_memory(logged.clone()));
    let take = || std::mem::take(&mut *logged.1.lock().unwrap());
    let mut channel = guest.open(relid, 4).unwrap();
    assert!(guest.send(&mut channel, 1, b"hello"));
    assert_eq!(take(), BTreeSet::new(), "packets mark nothing");
    guest.with_host(|host, _| host.mark_rings_dirty());
    let marked = take();
    // Four pages from the host, and the control words of the ring from the guest.
    assert_eq!(marked.len(), 5, "{marked:?}");
    guest.close(&channel);
    assert_eq!(take(), marked);
    guest.with_host(|host, _| host.mark_rings_dirty());
    assert_eq!(take(), BTreeSet::new());
}
