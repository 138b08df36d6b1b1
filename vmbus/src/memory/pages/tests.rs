// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page lists over guest memory with gaps: what is where, and what is out of
//! reach.

use std::sync::atomic::Ordering;

use super::*;
use ::vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const PAGE: u64 = PAGE_SIZE as u64;

fn memory() -> Arc<GuestMemoryMmap> {
    // Two regions that are neighbours in the guest, and one that is not.
    let ranges = [(0, 8), (8, 8), (32, 4)];
    let ranges = ranges.map(|(first, pages)| {
        (
            GuestAddress(first * PAGE),
            usize::try_from(pages * PAGE).unwrap(),
        )
    });
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
}

fn map(memory: &Arc<GuestMemoryMmap>, pfns: &[u64]) -> Result<GuestPages, MapError> {
    let memory: Arc<dyn GuestMemory> = memory.clone();
    GuestPages::map(&memory, pfns)
}

#[test]
fn neighbouring_pages_of_a_region_are_one_run() {
    for (pfns, runs) in [
        (&[1, 2, 3][..], 1),
        (&[3, 2, 1], 3),
        (&[1, 2, 4, 5, 32], 3),
        (&[2, 2, 3], 2),
        (&[6, 7, 8, 9], 4), // crosses into another region
    ] {
        let pages = map(&memory(), pfns).unwrap();
        assert_eq!(pages.runs(), runs, "{pfns:?}");
        assert_eq!(pages.len(), pfns.len() * PAGE_SIZE);
    }
}

#[test]
fn bytes_land_in_the_pages_of_the_list_whatever_their_order() {
    let memory = memory();
    let pages = map(&memory, &[5, 33, 2, 3, 8]).unwrap();
    let bytes: Vec<u8> = (0..5 * PAGE_SIZE)
        .map(|i| u8::try_from(i % 251).unwrap())
        .collect();
    assert!(pages.write(0, &bytes));
    let mut there = vec![0; PAGE_SIZE];
    memory
        .read_slice(&mut there, GuestAddress(33 * PAGE))
        .unwrap();
    assert_eq!(there, bytes[PAGE_SIZE..2 * PAGE_SIZE]);
    for (offset, len) in [(0, 1), (4000, 200), (8190, 8200), (0, 5 * PAGE_SIZE)] {
        let mut back = vec![0; len];
        assert!(pages.read(offset, &mut back));
        assert_eq!(back, bytes[offset..offset + len]);
    }
    for (offset, most, len) in [
        (0, 1, 1),
        (4000, 200, 96),
        (8190, 9000, 2),
        (8192, 9000, 8192),
        (5 * PAGE_SIZE - 1, 2, 1),
    ] {
        let piece = pages.piece(offset, most).unwrap();
        let mut there = vec![0; len];
        assert_eq!(piece.copy_to(&mut there), len);
        assert_eq!(
            (piece.len(), there),
            (len, bytes[offset..offset + len].to_vec())
        );
    }
    assert!(pages.piece(5 * PAGE_SIZE, 1).is_none());
    assert!(pages.piece(usize::MAX, 1).is_none());
    assert!(pages.piece(0, 0).is_none());
    let stretch = pages.stretch(0, 64).unwrap();
    let words = stretch.words().unwrap();
    assert_eq!(words.len(), 8);
    let second = words[1].load(Ordering::Relaxed);
    assert_eq!(second.to_ne_bytes(), bytes[8..16]);
}

#[test]
fn a_page_listed_twice_is_the_same_memory() {
    let pages = map(&memory(), &[4, 4]).unwrap();
    assert!(pages.write(8, &[77; 8]));
    let words = pages.stretch(PAGE_SIZE, 64).unwrap().words().unwrap();
    assert_eq!(
        words[1].load(Ordering::Relaxed),
        u64::from_ne_bytes([77; 8])
    );
}

#[test]
fn nothing_is_reachable_behind_the_end() {
    let pages = map(&memory(), &[1, 3]).unwrap();
    let end = pages.len();
    assert!(!pages.write(end - 8, &[1; 9]));
    assert!(!pages.read(end, &mut [0]));
    assert!(pages.stretch(end, 1).is_none());
    let last = pages.stretch(end - 16, 16).unwrap();
    assert!(last.write(8, &[1; 8]) && last.read(16, &mut []));
    assert!(!last.write(9, &[1; 8]) && !last.read(17, &mut []));
    assert!(!last.read(usize::MAX, &mut [0]));
    assert_eq!(last.words().unwrap().len(), 2);
    let odd = pages.stretch(end - 12, 12).unwrap();
    assert!(odd.words().is_none(), "misaligned");
    let short = pages.stretch(end - 8, 7).unwrap();
    assert!(short.words().unwrap().is_empty());
    assert!(!pages.read(usize::MAX, &mut [0; 4]));
}

#[test]
fn copies_of_every_length_move_their_bytes_and_no_others() {
    let pages = map(&memory(), &[1, 2, 3, 4]).unwrap();
    let bytes: Vec<u8> = (1..=251).cycle().take(10_000).collect();
    let lengths = (0..200).chain(2040..2060).chain(4090..4100).chain([10_000]);
    // Miri takes many seconds for each: the shortest, one between, the longest.
    for len in lengths.step_by(if cfg!(miri) { 115 } else { 1 }) {
        for at in [0, 8, 17] {
            assert!(pages.write(0, &[0; 4 * PAGE_SIZE]));
            assert!(pages.write(at, &bytes[..len]));
            let mut all = [9; 4 * PAGE_SIZE];
            assert!(pages.read(0, &mut all));
            assert!(all[..at].iter().chain(&all[at + len..]).all(|b| *b == 0));
            assert_eq!(all[at..at + len], bytes[..len], "{len} at {at}");
            let mut back = vec![9; len + 2];
            assert!(pages.read(at, &mut back[1..=len]));
            assert_eq!(back[1..=len], bytes[..len], "{len} at {at}");
            assert_eq!((back[0], back[len + 1]), (9, 9));
        }
    }
}

#[test]
fn an_empty_list_is_refused() {
    assert_eq!(map(&memory(), &[]).unwrap_err(), MapError::Empty);
}

#[test]
fn pages_outside_memory_are_refused() {
    for pfn in [16, 31, 36, 1 << 52, u64::MAX] {
        assert_eq!(
            map(&memory(), &[1, pfn]).unwrap_err(),
            MapError::NotMemory(pfn)
        );
    }
}

#[test]
fn the_memory_outlives_its_other_owners() {
    let memory = memory();
    let pages = map(&memory, &[1]).unwrap();
    drop(memory);
    assert!(pages.write(0, &[5; 8]));
    let mut back = [0; 16];
    assert!(pages.read(0, &mut back));
    assert_eq!(back[..8], [5; 8]);
}
