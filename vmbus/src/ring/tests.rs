// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whole rings over guest memory, from literal bytes to random traffic.

use std::collections::VecDeque;

use super::*;
use crate::wire::{PacketFlags, PacketType};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const PAGE: u64 = 4096;
/// The incoming ring of `open` begins here, the outgoing one where `OUT` says.
const IN: u64 = 8 * PAGE;
const OUT: u64 = 16 * PAGE;

fn memory() -> Arc<GuestMemoryMmap> {
    let size = usize::try_from(64 * PAGE).unwrap();
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap())
}

/// Two data pages each.
fn open(memory: &Arc<GuestMemoryMmap>) -> RingPair {
    RingPair::open(memory.clone(), &[8, 9, 10, 16, 17, 18], 3).unwrap()
}

fn word(memory: &GuestMemoryMmap, at: u64) -> u32 {
    memory.read_obj(GuestAddress(at)).unwrap()
}

fn set_word(memory: &GuestMemoryMmap, at: u64, value: u32) {
    memory.write_obj(value, GuestAddress(at)).unwrap();
}

#[test]
fn a_written_packet_has_these_bytes() {
    let memory = memory();
    set_word(&memory, OUT, 16);
    set_word(&memory, OUT + 4, 16);
    let mut rings = open(&memory);
    let meta = PacketMeta {
        packet_type: PacketType::IN_BAND,
        flags: PacketFlags::COMPLETION_REQUESTED,
        transaction_id: 0x1122,
    };
    // Garbage from an earlier lap must not show in the padding.
    memory
        .write_slice(&[0xee; 64], GuestAddress(OUT + PAGE))
        .unwrap();
    rings.outgoing.write(meta, &[b"hel", b"lo"]).unwrap();
    assert_eq!(word(&memory, OUT), 16, "not published");
    assert_eq!(rings.outgoing.publish(), Ok(true));
    assert_eq!(word(&memory, OUT), 16 + 32);
    let mut bytes = [0; 40];
    memory
        .read_slice(&mut bytes, GuestAddress(OUT + PAGE + 16))
        .unwrap();
    let expected = [
        6, 0, 2, 0, 3, 0, 1, 0, // type, offset8, len8, flags
        0x22, 0x11, 0, 0, 0, 0, 0, 0, // transaction id
        b'h', b'e', b'l', b'l', b'o', 0, 0, 0, // payload, padded
        0, 0, 0, 0, 16, 0, 0, 0, // where the packet began
    ];
    assert_eq!(bytes[..32], expected);
    assert_eq!(bytes[32..], [0xee; 8]);
}

#[test]
fn a_packet_is_read_from_these_bytes() {
    let memory = memory();
    let bytes = [
        9, 0, 3, 0, 4, 0, 1, 0, // GPA direct with 8 bytes of extended header
        7, 0, 0, 0, 0, 0, 0, 0, //
        1, 2, 3, 4, 5, 6, 7, 8, // extended header
        b'p', b'a', b'y', b'l', b'o', b'a', b'd', 0, //
        0, 0, 0, 0, 0, 0, 0, 0, // trailer
    ];
    memory.write_slice(&bytes, GuestAddress(IN + PAGE)).unwrap();
    set_word(&memory, IN, 40);
    let mut rings = open(&memory);
    let packet = rings.incoming.peek().unwrap().unwrap();
    assert_eq!(packet.packet_type, PacketType::GPA_DIRECT);
    assert_eq!(packet.transaction_id, 7);
    assert!(packet.flags.contains(PacketFlags::COMPLETION_REQUESTED));
    assert_eq!(packet.extended_header.to_vec(), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(packet.payload.to_vec(), b"payload\0");
    let mut part = [0; 3];
    assert_eq!(packet.payload.copy_from_to(3, &mut part), 3);
    assert_eq!(&part, b"loa");
    assert_eq!(packet.payload.copy_from_to(9, &mut part), 0);
    rings.incoming.advance();
    assert!(rings.incoming.peek().unwrap().is_none());
    assert_eq!(word(&memory, IN + 4), 0, "not committed");
    assert_eq!(rings.incoming.commit(), Ok(false));
    assert_eq!(word(&memory, IN + 4), 40);
}

#[test]
fn a_peeked_packet_stays_until_it_is_advanced_past_and_comes_again_on_rewind() {
    let memory = memory();
    let mut guest = mirror(&memory);
    let mut host = open(&memory);
    guest
        .outgoing
        .write(PacketMeta::in_band(1), &[b"one"])
        .unwrap();
    guest
        .outgoing
        .write(PacketMeta::in_band(2), &[b"two"])
        .unwrap();
    guest.outgoing.publish().unwrap();
    let id = |rings: &mut RingPair| rings.incoming.peek().unwrap().map(|p| p.transaction_id);
    assert_eq!((id(&mut host), id(&mut host)), (Some(1), Some(1)));
    host.incoming.advance();
    assert_eq!(id(&mut host), Some(2));
    host.incoming.advance();
    host.incoming.advance(); // nothing was peeked: nothing happens
    assert_eq!(id(&mut host), None);
    host.incoming.rewind();
    assert_eq!(id(&mut host), Some(1));
}

/// The same memory seen from the guest: what goes in comes out here.
fn mirror(memory: &Arc<GuestMemoryMmap>) -> RingPair {
    RingPair::open(memory.clone(), &[16, 17, 18, 8, 9, 10], 3).unwrap()
}

#[test]
fn lengths_that_lie_break_the_ring_and_nothing_else() {
    // A ring with 4096 readable bytes, zeroed: (offset8, len8)
    for (offset8, len8) in [
        (0, 0),
        (2, 0),
        (1, 4),
        (3, 2),
        (2, 512), // 4096 bytes, but the trailer would not fit
        (2, 0xffff),
        (0xffff, 0xffff),
    ] {
        let memory = memory();
        set_word(&memory, IN + PAGE, 6 | offset8 << 16);
        set_word(&memory, IN + PAGE + 4, len8);
        set_word(&memory, IN, 4096);
        let error = open(&memory).incoming.peek().unwrap_err();
        assert!(
            matches!(error, RingError::BadLength { .. }),
            "{offset8} {len8} {error}"
        );
    }
    for available in [8, 16] {
        let memory = memory();
        set_word(&memory, IN, available);
        let error = open(&memory).incoming.peek().unwrap_err();
        assert_eq!(error, RingError::Torn { available });
    }
}

#[test]
fn rings_need_two_pages_each() {
    let memory = memory();
    for (pages, offset) in [
        (6, 0),
        (6, 1),
        (6, 5),
        (6, 6),
        (6, 7),
        (6, u32::MAX),
        (3, 1),
        (0, 0),
    ] {
        let pfns: Vec<u64> = (8..8 + pages).collect();
        let error = RingPair::open(memory.clone(), &pfns, offset).unwrap_err();
        assert!(
            matches!(error, OpenError::BadSplit { .. }),
            "{pages} {offset}"
        );
    }
    assert!(RingPair::open(memory.clone(), &[1, 2, 3, 4], 2).is_ok());
    assert!(matches!(
        RingPair::open(memory.clone(), &[1, 2, 3, 64], 2),
        Err(OpenError::Map(MapError::NotMemory(64)))
    ));
}

#[test]
fn indices_left_by_the_guest_are_taken_over_or_refused() {
    let memory = memory();
    set_word(&memory, IN, 8192);
    assert!(matches!(
        RingPair::open(memory.clone(), &[8, 9, 10, 16, 17, 18], 3),
        Err(OpenError::Ring(RingError::BadIndex { .. }))
    ));
}

#[test]
fn one_page_for_everything_harms_nobody() {
    // Control page, data and both rings share a page: all packets are garbage.
    let memory = memory();
    let mut rings = RingPair::open(memory.clone(), &[8, 8, 8, 8], 2).unwrap();
    for round in 0..2000u64 {
        let _ = rings
            .outgoing
            .write(PacketMeta::in_band(round), &[&[0x55; 40]]);
        let _ = rings.outgoing.publish();
        if rings.incoming.peek().is_ok_and(|packet| packet.is_some()) {
            rings.incoming.advance();
        }
        let _ = rings.incoming.commit();
        let _ = rings.incoming.unmask();
    }
}

#[test]
fn a_full_ring_takes_nothing_until_there_is_space_again() {
    let memory = memory();
    let mut guest = mirror(&memory);
    let mut host = open(&memory);
    let mut written = 0;
    let needed = loop {
        match host
            .outgoing
            .write(PacketMeta::in_band(written), &[&[7; 1000]])
        {
            Ok(()) => written += 1,
            Err(WriteError::Full { needed }) => break needed,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(
        written, 7,
        "seven of 1024 bytes in 8192, which is never full"
    );
    assert_eq!(host.outgoing.publish(), Ok(true));
    assert_eq!(host.outgoing.request_space(needed), Ok(false));
    guest.incoming.peek().unwrap().unwrap();
    guest.incoming.advance();
    assert_eq!(guest.incoming.commit(), Ok(true), "we wait for this");
    assert_eq!(
        host.outgoing.write(PacketMeta::in_band(7), &[&[7; 1000]]),
        Ok(())
    );
    assert_eq!(
        host.outgoing.write(PacketMeta::in_band(0), &[&[0; 8192]]),
        Err(WriteError::NeverFits)
    );
    assert_eq!(
        host.outgoing
            .write(PacketMeta::in_band(0), &[&vec![0; 1 << 20]]),
        Err(WriteError::NeverFits)
    );
}

fn body(id: u64, len: usize) -> Vec<u8> {
    let start = usize::try_from(id).unwrap() * 31;
    (0..len)
        .map(|i| u8::try_from((start + i * 7) % 256).unwrap())
        .collect()
}

proptest! {
    /// Traffic with random sizes over non-contiguous pages: nothing is lost,
    /// changed or reordered, and whoever must be signalled is.
    #[test]
    fn packets_arrive_as_sent(
        ops in proptest::collection::vec((any::<bool>(), 0usize..3000, 1usize..5), 1..200),
    ) {
        let memory = memory();
        let pfns = [40, 20, 41, 30, 8, 9];
        let mut host = RingPair::open(memory.clone(), &pfns, 3).unwrap();
        let guest_pfns = [30, 8, 9, 40, 20, 41];
        let mut guest = RingPair::open(memory.clone(), &guest_pfns, 3).unwrap();
        let mut expected = VecDeque::new();
        let mut next = 0;
        let mut awake = false;
        for (write, len, count) in ops {
            if write {
                for _ in 0..count {
                    let payload = body(next, len);
                    match host.outgoing.write(PacketMeta::in_band(next), &[&payload]) {
                        Ok(()) => {
                            expected.push_back((next, payload));
                            next += 1;
                        }
                        Err(WriteError::Full { .. }) => break,
                        Err(other) => panic!("{other}"),
                    }
                }
                awake |= host.outgoing.publish().unwrap();
            } else {
                prop_assert!(awake || expected.is_empty(), "the guest sleeps on packets");
                for _ in 0..count {
                    let Some(packet) = guest.incoming.peek().unwrap() else { break };
                    let (id, payload) = expected.pop_front().unwrap();
                    prop_assert_eq!(packet.transaction_id, id);
                    let mut bytes = packet.payload.to_vec();
                    prop_assert!(bytes[payload.len()..].iter().all(|byte| *byte == 0));
                    prop_assert_eq!(
                        packet.payload.first_word().map(Vec::from),
                        bytes.get(..8).map(Vec::from)
                    );
                    for (from, most) in [(0, usize::MAX), (len / 3, len), (len, 5), (9000, 1)] {
                        let rest = bytes.get(from..).unwrap_or_default();
                        let mut there = Vec::new();
                        for piece in packet.payload.pieces(from, most) {
                            prop_assert!(!piece.is_empty());
                            let mut part = vec![0; piece.len()];
                            piece.copy_to(&mut part);
                            there.extend(part);
                        }
                        prop_assert_eq!(there, &rest[..most.min(rest.len())]);
                    }
                    bytes.truncate(payload.len());
                    prop_assert_eq!(bytes, payload);
                    guest.incoming.advance();
                }
                guest.incoming.commit().unwrap();
                awake = !expected.is_empty();
            }
        }
    }

    /// Control and data pages full of arbitrary bytes: errors, but no panic,
    /// and nothing outside the rings is touched.
    #[test]
    fn arbitrary_memory_harms_nobody(
        bytes in proptest::collection::vec(any::<u8>(), 256),
        write in 0u32..8192,
        read in 0u32..8192,
    ) {
        let memory = memory();
        memory.write_slice(&[0xaa; 4096], GuestAddress(7 * PAGE)).unwrap();
        memory.write_slice(&[0xaa; 4096], GuestAddress(11 * PAGE)).unwrap();
        memory.write_slice(&bytes, GuestAddress(IN + PAGE)).unwrap();
        memory.write_slice(&bytes, GuestAddress(IN + 2 * PAGE)).unwrap();
        let mut host = open(&memory);
        set_word(&memory, IN, write & !7);
        set_word(&memory, IN + 4, read & !7);
        set_word(&memory, OUT + 4, read);
        for _ in 0..64 {
            match host.incoming.peek() {
                Ok(Some(packet)) => drop(packet.payload.to_vec()),
                Ok(None) | Err(_) => break,
            }
            host.incoming.advance();
        }
        let _ = host.incoming.commit();
        let _ = host.outgoing.write(PacketMeta::in_band(0), &[&bytes]);
        let _ = host.outgoing.publish();
        let _ = host.outgoing.request_space(4096);
        for page in [7, 11] {
            let mut guard = [0; 4096];
            memory.read_slice(&mut guard, GuestAddress(page * PAGE)).unwrap();
            prop_assert!(guard.iter().all(|byte| *byte == 0xaa));
        }
    }
}
