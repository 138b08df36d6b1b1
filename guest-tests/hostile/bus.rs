// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bus, as a driver that behaves would use it.

use super::*;

/// Turns a CPU's SynIC on.
pub(super) fn enable_synic(cpu: u64) {
    write_msr(SIMP_MSR, SIMP + cpu * 4096 | 1);
    write_msr(SIEFP_MSR, SIEFP + cpu * 4096 | 1);
    write_msr(SINT2, 0xF3);
    write_msr(SCONTROL, 1);
}

/// A message's bytes.
pub(super) type Message = [u8; 256];

pub(super) fn word(message: &Message, at: usize) -> u32 {
    u32::from_le_bytes([
        message[at],
        message[at + 1],
        message[at + 2],
        message[at + 3],
    ])
}

pub(super) fn set_word(message: &mut Message, at: usize, value: u32) {
    message[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Posts `size` bytes to a connection, by the input page of a CPU.
pub(super) fn post(cpu: u64, connection: u32, message: &Message, size: u32) -> u64 {
    let block = INPUT + cpu * 4096;
    poke(block, connection);
    poke(block + 4, 0u32);
    poke(block + 8, 1u32);
    poke(block + 12, size);
    for (at, byte) in (0u64..240).zip(message) {
        poke(block + 16 + at, *byte);
    }
    hypercall(0x5C, block, 0)
}

/// Posts until the host takes it.
pub(super) fn send(message: &Message, size: u32) {
    while post(0, CONNECTION.load(Ordering::Relaxed), message, size) != 0 {
        drain();
    }
}

pub(super) fn signal(connection: u32, flag: u16) {
    hypercall(0x1_005D, u64::from(connection) | u64::from(flag) << 32, 0);
}

/// The next message in CPU 0's slot.
pub(super) fn receive() -> Option<Message> {
    let slot = SIMP + 2 * 256;
    if peek::<u32>(slot) == 0 {
        return None;
    }
    let mut message = [0; 256];
    for (at, byte) in (0u64..240).zip(&mut message) {
        *byte = peek(slot + 16 + at);
    }
    let pending = peek::<u8>(slot + 5) & 1 != 0;
    poke(slot, 0u32);
    core::sync::atomic::fence(Ordering::SeqCst);
    if pending {
        write_msr(EOM, 0);
    }
    Some(message)
}

pub(super) fn drain() {
    while receive().is_some() {}
}

/// Waits for a message of this type, about this relid unless that is zero.
pub(super) fn await_message(kind: u32, relid: u32) -> Message {
    loop {
        match receive() {
            Some(message)
                if word(&message, 0) == kind && (relid == 0 || word(&message, 8) == relid) =>
            {
                return message;
            }
            _ => core::hint::spin_loop(),
        }
    }
}

pub(super) fn contact(version: u32) -> Message {
    let mut message = [0; 256];
    set_word(&mut message, 0, 14);
    set_word(&mut message, 8, version);
    message[16] = 2;
    message
}

/// A page list of `pages` pages from `first` on.
pub(super) fn page_list(relid: u32, gpadl: u32, first: u64, pages: u64) -> Message {
    let mut message = [0; 256];
    set_word(&mut message, 0, 8);
    set_word(&mut message, 8, relid);
    set_word(&mut message, 12, gpadl);
    set_word(&mut message, 16, 1 << 16 | (8 + 8 * pages as u32));
    set_word(&mut message, 20, pages as u32 * 4096);
    for page in 0..pages.min(26) {
        let at = 28 + 8 * page as usize;
        message[at..at + 8].copy_from_slice(&(first / 4096 + page).to_le_bytes());
    }
    message
}

pub(super) fn open(relid: u32, gpadl: u32, downstream: u32) -> Message {
    let mut message = [0; 256];
    set_word(&mut message, 0, 5);
    set_word(&mut message, 8, relid);
    set_word(&mut message, 12, relid);
    set_word(&mut message, 16, gpadl);
    set_word(&mut message, 24, downstream);
    message
}

/// Opens the heartbeat's channel; its relid and its connection.
pub(super) fn open_heartbeat() -> (u32, u32) {
    send(&contact(0x5_0002), 40);
    let answer = await_message(15, 0);
    if answer[8] == 0 {
        say("hostile: the version was refused\n");
    }
    CONNECTION.store(word(&answer, 12), Ordering::Relaxed);
    let mut message = [0; 256];
    set_word(&mut message, 0, 3);
    send(&message, 8);
    let (mut relid, mut connection) = (0, 0);
    loop {
        let Some(offer) = receive() else { continue };
        match word(&offer, 0) {
            1 if offer[8..24] == HEARTBEAT => {
                (relid, connection) = (word(&offer, 184), word(&offer, 192));
            }
            4 => break,
            _ => {}
        }
    }
    send(
        &page_list(relid, GOOD_GPADL, RINGS, 2 * RING_PAGES),
        28 + 8 * 8,
    );
    await_message(10, relid);
    for ring in [RINGS, RINGS + RING_PAGES * 4096] {
        for at in (0..4096).step_by(8) {
            poke(ring + at, 0u64);
        }
        poke(ring + 64, 1u32);
    }
    send(&open(relid, GOOD_GPADL, RING_PAGES as u32), 148);
    if word(&await_message(6, relid), 16) != 0 {
        say("hostile: the heartbeat cannot be opened\n");
    }
    (relid, connection)
}

/// Answers what the host has sent on the heartbeat's channel.
pub(super) fn answer(connection: u32) -> bool {
    let (ours, theirs) = (RINGS, RINGS + RING_PAGES * 4096);
    let (write, read) = (peek::<u32>(theirs), peek::<u32>(theirs + 4));
    if write == read {
        return false;
    }
    core::sync::atomic::fence(Ordering::SeqCst);
    let mut packet = [0u8; 512];
    let at =
        |ring: u64, start: u32, offset: u32| ring + 4096 + u64::from((start + offset) % RING_DATA);
    for (offset, byte) in (0..512).zip(&mut packet) {
        *byte = peek(at(theirs, read, offset));
    }
    let size = u32::from(u16::from_le_bytes([packet[4], packet[5]])) * 8;
    poke(theirs + 4, (read + size + 8) % RING_DATA);
    // Behind the descriptor: request becomes response.
    let body = 16;
    packet[body + 25] = 5;
    if packet[body + 12] == 0 {
        packet[body + 18..body + 20].copy_from_slice(&[0x10, 0]);
        packet[body + 28..body + 32].copy_from_slice(&[1, 0, 1, 0]);
        packet[body + 36..body + 44].copy_from_slice(&[3, 0, 0, 0, 3, 0, 0, 0]);
    } else {
        packet[body + 28] = packet[body + 28].wrapping_add(1);
        if packet[body + 28] == 0 {
            packet[body + 29] = packet[body + 29].wrapping_add(1);
        }
    }
    let start = peek::<u32>(ours);
    for (offset, byte) in (0..size.min(500)).zip(&packet) {
        poke(at(ours, start, offset), *byte);
    }
    for (offset, byte) in (0..8).zip(u64::to_le_bytes(u64::from(start) << 32)) {
        poke(at(ours, start, size + offset), byte);
    }
    core::sync::atomic::fence(Ordering::SeqCst);
    poke(ours, (start + size + 8) % RING_DATA);
    core::sync::atomic::fence(Ordering::SeqCst);
    if peek::<u32>(ours + 8) == 0 {
        signal(connection, 0);
    }
    true
}
