// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Literal registers and bytes for [`super::decode`].

use super::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const FAST: u64 = 1 << 16;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x3000)]).unwrap()
}

/// An input block as Linux writes it: INITIATE_CONTACT's first 12 bytes to connection 4.
fn block() -> Vec<u8> {
    let mut bytes = vec![
        0x04, 0, 0, 0, // connection id
        0, 0, 0, 0, // reserved
        0x01, 0, 0, 0, // message type
        0x0c, 0, 0, 0, // payload size
        0x0e, 0, 0, 0, 0, 0, 0, 0, 0x03, 0, 0x05, 0, // payload
    ];
    bytes.resize(256, 0xee);
    bytes
}

fn post(mem: &GuestMemoryMmap, bytes: &[u8], gpa: u64) -> Result<Hypercall, HvStatus> {
    mem.write_slice(bytes, GuestAddress(gpa)).unwrap();
    decode(mem, 0x5c, gpa, 0)
}

#[test]
fn a_posted_message_is_copied_with_its_stated_size() {
    let call = post(&memory(), &block(), 0x1000).unwrap();
    let payload = Payload::new(&[0x0e, 0, 0, 0, 0, 0, 0, 0, 0x03, 0, 0x05, 0]).unwrap();
    let expected = Hypercall::PostMessage {
        connection_id: 4,
        message_type: 1,
        payload,
    };
    assert_eq!(call, expected);
}

#[test]
fn a_message_of_240_bytes_is_taken_and_one_of_241_is_not() {
    let mem = memory();
    let mut bytes = block();
    bytes[12] = 240;
    let Ok(Hypercall::PostMessage { payload, .. }) = post(&mem, &bytes, 0x1000) else {
        panic!("refused");
    };
    assert_eq!(payload.len(), 240);
    for size in [241u32, 256, 0x1_0000, u32::MAX] {
        bytes[12..16].copy_from_slice(&size.to_le_bytes());
        assert_eq!(
            post(&mem, &bytes, 0x1000),
            Err(HvStatus::INVALID_PARAMETER),
            "{size}"
        );
    }
}

#[test]
fn an_empty_message_is_well_formed() {
    let mut bytes = block();
    bytes[12] = 0;
    assert!(
        matches!(post(&memory(), &bytes, 0x1000), Ok(Hypercall::PostMessage { payload, .. }) if payload.is_empty())
    );
}

#[test]
fn fields_of_the_post_block_are_checked() {
    let mem = memory();
    let with = |offset: usize, value: u8| {
        let mut bytes = block();
        bytes[offset] = value;
        post(&mem, &bytes, 0x1000)
    };
    assert_eq!(with(3, 1), Err(HvStatus::INVALID_CONNECTION_ID));
    assert_eq!(with(4, 1), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(with(8, 0), Err(HvStatus::INVALID_PARAMETER), "type none");
    assert_eq!(
        with(11, 0x80),
        Err(HvStatus::INVALID_PARAMETER),
        "hypervisor's type"
    );
}

#[test]
fn the_post_block_is_aligned_in_one_page_and_in_memory() {
    let mem = memory();
    for gpa in [
        0x1001,
        0x1004,
        0x1f08,
        0x1ff8,
        0x3000,
        u64::MAX - 7,
        1 << 52,
    ] {
        assert_eq!(
            decode(&mem, 0x5c, gpa, 0),
            Err(HvStatus::INVALID_ALIGNMENT),
            "{gpa:#x}"
        );
    }
    assert!(post(&mem, &block(), 0x1f00).is_ok(), "the last that fits");
}

#[test]
fn posting_has_no_fast_form() {
    assert_eq!(
        decode(&memory(), 0x5c | FAST, 0, 0),
        Err(HvStatus::INVALID_HYPERCALL_INPUT)
    );
}

#[test]
fn control_bits_of_other_kinds_of_calls_are_refused() {
    let mem = memory();
    for bit in 17..64 {
        let control = 0x5d | FAST | 1 << bit;
        assert_eq!(
            decode(&mem, control, 0x20, 0),
            Err(HvStatus::INVALID_HYPERCALL_INPUT),
            "bit {bit}"
        );
    }
}

#[test]
fn a_fast_signal_takes_its_input_from_the_register() {
    let signal = |input| decode(&memory(), 0x5d | FAST, input, 0);
    let expected = Hypercall::SignalEvent {
        connection_id: 0x00ab_cdef,
        flag: 0x1234,
    };
    assert_eq!(signal(0x1234_00ab_cdef), Ok(expected));
    assert_eq!(signal(1 << 24), Err(HvStatus::INVALID_CONNECTION_ID));
    assert_eq!(signal(1 << 48), Err(HvStatus::INVALID_HYPERCALL_INPUT));
    assert_eq!(signal(1 << 63), Err(HvStatus::INVALID_HYPERCALL_INPUT));
}

#[test]
fn a_slow_signal_takes_its_input_from_memory() {
    let mem = memory();
    mem.write_slice(&[0x12, 0, 0, 0, 3, 0, 0, 0], GuestAddress(0x2ff8))
        .unwrap();
    let expected = Hypercall::SignalEvent {
        connection_id: 0x12,
        flag: 3,
    };
    assert_eq!(decode(&mem, 0x5d, 0x2ff8, 0), Ok(expected));
    assert_eq!(
        decode(&mem, 0x5d, 0x2ffc, 0),
        Err(HvStatus::INVALID_ALIGNMENT)
    );
}

#[test]
fn calls_that_are_not_offered_have_no_code() {
    for code in [
        0x02, 0x03, 0x08, 0x0b, 0x13, 0x14, 0x15, 0x46, 0x50, 0x51, 0x8001,
    ] {
        assert_eq!(
            decode(&memory(), code, 0, 0),
            Err(HvStatus::INVALID_HYPERCALL_CODE),
            "{code:#x}"
        );
    }
}
