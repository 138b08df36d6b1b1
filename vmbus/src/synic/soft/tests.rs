// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The MSR interface as a Linux guest and a hostile one use it.

use super::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const VP: VpIndex = VpIndex(1);

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
}

fn enable(synic: &mut SoftSynic, mem: &GuestMemoryMmap, sint2: u64) {
    for (index, value) in [
        (msr::SIMP, 0x8001),
        (msr::SIEFP, 0x9001),
        (msr::SINT0 + 2, sint2),
        (msr::SCONTROL, 1),
    ] {
        synic.write_msr(mem, VP, index, value).unwrap();
    }
}

fn hello() -> Payload {
    Payload::new(&[4, 0, 0, 0, 0, 0, 0, 0]).unwrap()
}

#[test]
fn registers_read_as_reset_values_and_then_as_written() {
    let mem = memory();
    let mut synic = SoftSynic::new(2);
    let expected = [
        (msr::SCONTROL, 0),
        (msr::SVERSION, 1),
        (msr::SIEFP, 0),
        (msr::SIMP, 0),
        (msr::EOM, 0),
        (msr::SINT0, 0x10000),
        (msr::SINT15, 0x10000),
    ];
    for (index, value) in expected {
        assert_eq!(synic.read_msr(VP, index), Some(value), "{index:#x}");
    }
    enable(&mut synic, &mem, 0xf3);
    assert_eq!(synic.read_msr(VP, msr::SINT0 + 2), Some(0xf3));
    assert_eq!(synic.read_msr(VP, msr::SIMP), Some(0x8001));
    assert_eq!(
        synic.read_msr(VpIndex(0), msr::SIMP),
        Some(0),
        "per processor"
    );
    synic.reset();
    assert_eq!(synic.read_msr(VP, msr::SINT0 + 2), Some(0x10000));
}

#[test]
fn only_its_own_msrs_are_its_own() {
    let mem = memory();
    let mut synic = SoftSynic::new(2);
    for index in [
        0x4000_007f,
        0x4000_0085,
        0x4000_008f,
        0x4000_00a0,
        0,
        u32::MAX,
    ] {
        assert!(!SoftSynic::owns_msr(index));
        assert_eq!(synic.read_msr(VP, index), None);
        assert_eq!(
            synic.write_msr(&mem, VP, index, 0),
            Err(MsrFault::NotOurs(index))
        );
    }
    assert_eq!(
        synic.write_msr(&mem, VP, msr::SVERSION, 1),
        Err(MsrFault::BadWrite(msr::SVERSION))
    );
    assert_eq!(synic.read_msr(VpIndex(2), msr::SIMP), None);
    assert!(synic.write_msr(&mem, VpIndex(2), msr::SIMP, 0).is_err());
}

#[test]
fn a_sint_with_an_exceptions_vector_is_refused_unless_masked() {
    let mem = memory();
    let mut synic = SoftSynic::new(2);
    let index = msr::SINT0 + 3;
    assert_eq!(
        synic.write_msr(&mem, VP, index, 15),
        Err(MsrFault::BadWrite(index))
    );
    assert_eq!(synic.read_msr(VP, index), Some(0x10000), "unchanged");
    assert!(synic.write_msr(&mem, VP, index, 15 | 1 << 16).is_ok());
    assert!(synic.write_msr(&mem, VP, index, 16).is_ok());
}

#[test]
fn an_interrupt_has_the_sints_vector_and_says_if_eoi_is_automatic() {
    let mem = memory();
    for (sint2, auto_eoi) in [(0xf3, false), (0x2_00f3, true)] {
        let mut synic = SoftSynic::new(2);
        enable(&mut synic, &mem, sint2);
        synic.signal_event(&mem, VP, Sint::VMBUS, 5).unwrap();
        let expected = SynicAction::Interrupt {
            vp: VP,
            sint: Sint::VMBUS,
            vector: 0xf3,
            auto_eoi,
        };
        assert_eq!(synic.poll_action(), Some(expected));
        assert_eq!(synic.poll_action(), None);
        mem.write_obj(0u8, GuestAddress(0x9200)).unwrap();
    }
}

#[test]
fn a_polling_sint_gets_its_message_without_an_interrupt() {
    let mem = memory();
    let mut synic = SoftSynic::new(2);
    enable(&mut synic, &mem, 0x4_0000);
    synic
        .post_message(&mem, VP, Sint::VMBUS, 1, hello())
        .unwrap();
    assert_eq!(synic.poll_action(), None);
    assert_eq!(mem.read_obj::<u32>(GuestAddress(0x8200)).unwrap(), 1);
}

#[test]
fn unmasking_and_eom_deliver_what_waited() {
    let mem = memory();
    let mut synic = SoftSynic::new(2);
    enable(&mut synic, &mem, 0x1_00f3);
    synic
        .post_message(&mem, VP, Sint::VMBUS, 1, hello())
        .unwrap();
    synic
        .post_message(&mem, VP, Sint::VMBUS, 1, hello())
        .unwrap();
    assert_eq!(synic.poll_action(), None);
    synic.write_msr(&mem, VP, msr::SINT0 + 2, 0xf3).unwrap();
    assert!(synic.poll_action().is_some());
    assert_eq!(synic.queued_messages(VP), 1);
    mem.write_obj(0u32, GuestAddress(0x8200)).unwrap();
    synic.write_msr(&mem, VP, msr::EOM, 0).unwrap();
    assert!(synic.poll_action().is_some());
    assert_eq!(synic.queued_messages(VP), 0);
}

#[test]
fn interrupts_that_nobody_fetched_coalesce() {
    let mem = memory();
    let mut synic = SoftSynic::new(2);
    enable(&mut synic, &mem, 0xf3);
    for flag in 1..2048 {
        synic.signal_event(&mem, VP, Sint::VMBUS, flag).unwrap();
    }
    assert!(synic.poll_action().is_some());
    assert_eq!(synic.poll_action(), None);
}

#[test]
fn a_vp_that_does_not_exist_is_the_hosts_mistake_and_no_panic() {
    let mem = memory();
    let mut synic = SoftSynic::new(2);
    let vp = VpIndex(u32::MAX);
    assert_eq!(
        synic.signal_event(&mem, vp, Sint::VMBUS, 1),
        Err(SynicError::NoSuchVp)
    );
    assert_eq!(
        synic.post_message(&mem, vp, Sint::VMBUS, 1, hello()),
        Err(SynicError::NoSuchVp)
    );
    assert_eq!(synic.queued_messages(vp), 0);
}
