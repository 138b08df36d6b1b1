// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The slot algorithm step by step, with the guest's moves written out.

use super::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const SIMP: u64 = 0x8000;
const SIEFP: u64 = 0x9000;
const SLOT: u64 = SIMP + 0x200;
const ON: SynicRegs = SynicRegs {
    scontrol: 1,
    siefp: SIEFP | 1,
    simp: SIMP | 1,
};
const SINT2: u16 = 1 << 2;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
}

fn ready(mem: &GuestMemoryMmap) -> VpSynic {
    let mut vp = VpSynic::new(u16::MAX);
    vp.set_regs(mem, ON);
    vp
}

fn message(tag: u8) -> SynicMessage {
    SynicMessage::vmbus(Sint::VMBUS, Payload::new(&[tag, 0, 0, 0]).unwrap())
}

fn byte(mem: &GuestMemoryMmap, at: u64) -> u8 {
    mem.read_obj(GuestAddress(at)).unwrap()
}

/// The guest frees its slot; says whether it would write EOM.
fn guest_frees(mem: &GuestMemoryMmap) -> bool {
    mem.write_obj(0u32, GuestAddress(SLOT)).unwrap();
    byte(mem, SLOT + 5) & 1 != 0
}

#[test]
fn a_message_is_laid_out_as_the_guest_reads_it() {
    let mem = memory();
    let mut vp = ready(&mem);
    let payload = Payload::new(&[0x0f, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]).unwrap();
    vp.post(&mem, SynicMessage::vmbus(Sint::VMBUS, payload))
        .unwrap();
    assert_eq!(vp.take_raised(), SINT2);
    let mut slot = [0; 28];
    mem.read_slice(&mut slot, GuestAddress(SLOT)).unwrap();
    assert_eq!(
        slot,
        [
            1, 0, 0, 0, // type
            11, 0, 0, 0, // size, flags, reserved
            1, 0, 0, 0, 0, 0, 0, 0, // sender
            0x0f, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 0,
        ]
    );
}

#[test]
fn a_second_message_sets_the_pending_flag_and_comes_with_the_eom() {
    let mem = memory();
    let mut vp = ready(&mem);
    vp.post(&mem, message(1)).unwrap();
    assert_eq!(byte(&mem, SLOT + 5), 0);
    assert_eq!(vp.take_raised(), SINT2);
    vp.post(&mem, message(2)).unwrap();
    vp.post(&mem, message(3)).unwrap();
    assert_eq!(byte(&mem, SLOT + 5), 1);
    assert_eq!(byte(&mem, SLOT + 16), 1, "the first is still there");
    assert_eq!((vp.queued(), vp.take_raised()), (2, 0));

    assert!(guest_frees(&mem), "the guest was asked for an EOM");
    vp.end_of_message(&mem);
    assert_eq!(byte(&mem, SLOT + 16), 2);
    assert_eq!(byte(&mem, SLOT + 5), 1, "one more waits");
    assert_eq!(vp.take_raised(), SINT2);

    assert!(guest_frees(&mem));
    vp.end_of_message(&mem);
    assert_eq!(byte(&mem, SLOT + 16), 3);
    assert_eq!((vp.queued(), vp.take_raised()), (0, SINT2));
    guest_frees(&mem);
    vp.end_of_message(&mem);
    assert_eq!(vp.take_raised(), 0, "a needless EOM does nothing");
}

#[test]
fn an_eom_before_the_slot_is_free_moves_nothing() {
    let mem = memory();
    let mut vp = ready(&mem);
    vp.post(&mem, message(1)).unwrap();
    vp.post(&mem, message(2)).unwrap();
    vp.take_raised();
    vp.end_of_message(&mem);
    assert_eq!((vp.queued(), vp.take_raised()), (1, 0));
    assert_eq!(byte(&mem, SLOT + 16), 1);
}

#[test]
fn a_message_waits_for_scontrol_simp_and_the_mask() {
    let mem = memory();
    for off in [
        SynicRegs { scontrol: 0, ..ON },
        SynicRegs { simp: SIMP, ..ON },
    ] {
        let mut vp = VpSynic::new(u16::MAX);
        vp.set_regs(&mem, off);
        vp.post(&mem, message(1)).unwrap();
        assert_eq!((vp.queued(), vp.take_raised()), (1, 0), "{off:?}");
        vp.set_regs(&mem, ON);
        assert_eq!((vp.queued(), vp.take_raised()), (0, SINT2));
        guest_frees(&mem);
    }
    let mut vp = VpSynic::new(0);
    vp.set_regs(&mem, ON);
    vp.post(&mem, message(1)).unwrap();
    assert_eq!((vp.queued(), vp.take_raised()), (1, 0));
    vp.set_open_sints(&mem, SINT2);
    assert_eq!((vp.queued(), vp.take_raised()), (0, SINT2));
}

#[test]
fn an_event_flag_is_set_once_and_raised_once_until_the_guest_clears_it() {
    let mem = memory();
    let mut vp = ready(&mem);
    for (flag, at, mask) in [
        (1, 0x200, 2),
        (63, 0x207, 0x80),
        (64, 0x208, 1),
        (2047, 0x2ff, 0x80),
    ] {
        vp.signal(&mem, Sint::VMBUS, flag).unwrap();
        assert_eq!(vp.take_raised(), SINT2);
        assert_eq!(byte(&mem, SIEFP + at) & mask, mask, "flag {flag}");
        vp.signal(&mem, Sint::VMBUS, flag).unwrap();
        assert_eq!(vp.take_raised(), 0, "it is still set");
        mem.write_obj(0u8, GuestAddress(SIEFP + at)).unwrap();
        vp.signal(&mem, Sint::VMBUS, flag).unwrap();
        assert_eq!(vp.take_raised(), SINT2);
        mem.write_obj(0u8, GuestAddress(SIEFP + at)).unwrap();
    }
    assert_eq!(
        vp.signal(&mem, Sint::VMBUS, 2048),
        Err(SynicError::NoSuchFlag)
    );
}

#[test]
fn event_flags_are_held_until_their_page_and_sint_are_open() {
    let mem = memory();
    let mut vp = VpSynic::new(0);
    vp.signal(&mem, Sint::VMBUS, 9).unwrap();
    vp.signal(&mem, Sint::VMBUS, 2000).unwrap();
    vp.set_regs(&mem, ON);
    assert_eq!(vp.take_raised(), 0, "still masked");
    vp.set_open_sints(&mem, SINT2);
    assert_eq!(vp.take_raised(), SINT2);
    assert_eq!(byte(&mem, SIEFP + 0x201), 2);
    assert_eq!(byte(&mem, SIEFP + 0x2fa), 1);
    vp.set_open_sints(&mem, SINT2);
    assert_eq!(vp.take_raised(), 0, "held flags are given once");
    vp.set_open_sints(&mem, 0);
    vp.signal(&mem, Sint::VMBUS, 10).unwrap();
    assert_eq!(vp.take_raised(), 0, "masked again");
    assert_eq!(byte(&mem, SIEFP + 0x201), 2, "and not set");
    vp.set_open_sints(&mem, SINT2);
    assert_eq!(vp.take_raised(), SINT2);
}

#[test]
fn pages_outside_memory_harm_nobody() {
    let mem = memory();
    for page in [0x1_0000, !0xfff, 1 << 52] {
        let mut vp = VpSynic::new(u16::MAX);
        vp.signal(&mem, Sint::VMBUS, 9).unwrap();
        let regs = SynicRegs {
            scontrol: 1,
            siefp: page | 1,
            simp: page | 1,
        };
        vp.set_regs(&mem, regs);
        vp.post(&mem, message(1)).unwrap();
        vp.signal(&mem, Sint::VMBUS, 9).unwrap();
        vp.end_of_message(&mem);
        assert_eq!(vp.take_raised(), 0, "{page:#x}");
    }
}

#[test]
fn a_guest_that_never_reads_is_stopped_at_the_limit() {
    let mem = memory();
    let mut vp = ready(&mem);
    vp.post(&mem, message(0)).unwrap();
    for _ in 0..MAX_QUEUED_MESSAGES {
        vp.post(&mem, message(1)).unwrap();
    }
    assert_eq!(vp.post(&mem, message(2)), Err(SynicError::QueueFull));
    assert_eq!(vp.queued(), MAX_QUEUED_MESSAGES);
    vp.discard_messages();
    assert_eq!(vp.queued(), 0);
    assert!(vp.post(&mem, message(3)).is_ok());
}

#[test]
fn messages_for_two_sints_keep_their_order() {
    let mem = memory();
    let mut vp = ready(&mem);
    let other = Sint::new(5).unwrap();
    let payload = Payload::new(&[7]).unwrap();
    vp.post(&mem, message(1)).unwrap();
    vp.post(&mem, message(2)).unwrap();
    vp.post(&mem, SynicMessage::vmbus(other, payload)).unwrap();
    assert_eq!(vp.take_raised(), SINT2);
    guest_frees(&mem);
    vp.end_of_message(&mem);
    assert_eq!(vp.take_raised(), SINT2 | 1 << 5);
    assert_eq!(byte(&mem, SIMP + 0x510), 7);
}
