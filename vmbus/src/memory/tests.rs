// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reads and writes across regions, at the ends, and what they mark.

use std::sync::Mutex;

use ::vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;

fn two_regions() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000), (GuestAddress(0x2000), 0x1000)])
        .unwrap()
}

#[test]
fn what_crosses_regions_is_read_and_written_whole() {
    let memory = two_regions();
    let memory: &dyn GuestMemory = &memory;
    assert!(memory.slice(0x1ffc, 8).is_none(), "not one stretch");
    assert!(memory.write(0x1ffc, &[1, 2, 3, 4, 5, 6, 7, 8]));
    let mut back = [0; 8];
    assert!(memory.read(0x1ffc, &mut back));
    assert_eq!(back, [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn nothing_is_reached_behind_the_end() {
    let memory = two_regions();
    let memory: &dyn GuestMemory = &memory;
    assert!(!memory.write(0x2fff, &[1, 2]));
    for address in [0x3000, u64::MAX, u64::MAX - 1] {
        assert!(!memory.read(address, &mut [0; 2]), "{address:#x}");
        assert!(!memory.write(address, &[0; 2]), "{address:#x}");
    }
    assert!(memory.read(u64::MAX, &mut []));
    assert!(memory.is_page(2) && !memory.is_page(3));
    assert!(!memory.is_page(u64::MAX) && !memory.is_page(1 << 52));
}

#[test]
fn words_are_given_only_where_they_are_aligned() {
    let memory = two_regions();
    let memory: &dyn GuestMemory = &memory;
    assert!(memory.atomic_u64(0x10).is_some() && memory.atomic_u64(0x14).is_none());
    let slice = memory.slice(0x100, 12).unwrap();
    assert!(slice.atomic_u32(8).is_some() && slice.atomic_u32(9).is_none());
    assert!(slice.atomic_u32(12).is_none() && slice.atomic_u64(8).is_none());
    assert!(slice.atomic_u32(usize::MAX).is_none());
    assert_eq!(slice.skip(12).unwrap().len(), 0);
    assert!(slice.skip(13).is_none());
}

/// Notes what is marked.
struct Logged(GuestMemoryMmap, Mutex<Vec<(u64, usize)>>);

// SAFETY: the memory within vouches for all of it.
unsafe impl GuestMemory for Logged {
    fn host_address(&self, address: u64, len: usize) -> Option<NonNull<u8>> {
        self.0.host_address(address, len)
    }

    fn mark_dirty(&self, address: u64, len: usize) {
        self.1.lock().unwrap().push((address, len));
    }
}

#[test]
fn what_is_written_is_marked_and_what_is_read_is_not() {
    let logged = Logged(two_regions(), Mutex::default());
    let memory: &dyn GuestMemory = &logged;
    memory.read(0x10, &mut [0; 8]);
    memory.write(0xffe, &[0; 4]);
    assert_eq!(*logged.1.lock().unwrap(), [(0xffe, 2), (0x1000, 2)]);
}
