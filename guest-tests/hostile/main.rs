// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that means harm: no kernel, nothing but attacks on its host.
//!
//! ```text
//!  "beside"  vCPU 0: a heartbeat channel that behaves      others: attack
//!  "wild"    all attack, sessions included; vCPU 0 resets the machine now and then
//! ```
//!
//! The attackers post messages that are random, or right and then mutated; signal
//! connections that are not theirs; make page lists of absurd pages; move their
//! SynIC's pages to absurd places; write every synthetic MSR; and scribble over
//! the rings and page lists that the host is reading. Beside a channel that
//! behaves they leave alone what is that channel's own: its relid, the session,
//! the hypercall page, and other vCPUs.
//!
//! `vmm` boots it as an ELF kernel, in 64-bit mode with 4 GiB mapped one to one.
//! Interrupts stay off; a fault of a `RDMSR` or `WRMSR` is skipped.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Where things lie; all in the first 16 MiB.
const TRAMPOLINE: u64 = 0x8000;
const TRAMPOLINE_GDT: u64 = 0x8080;
const HYPERCALL_PAGE: u64 = 0x60_0000;
const SIMP: u64 = 0x61_0000;
const SIEFP: u64 = 0x62_0000;
const INPUT: u64 = 0x63_0000;
/// The good channel's rings: four pages each.
const RINGS: u64 = 0x70_0000;
const RING_PAGES: u64 = 4;
const RING_DATA: u32 = 3 * 4096;
/// What the attackers' page lists name, and what they scribble over.
const FIELD: u64 = 0x80_0000;
const FIELD_PAGES: u64 = 256;

const STACK: usize = 0x4000;
const MAX_CPUS: usize = 8;
const IDT_ENTRIES: usize = 32;

/// Attacks of CPU 0 before it resets the machine.
const ROUNDS: u32 = 1000;
/// The reset register.
const RESET_PORT: u16 = 0x602;

const GUEST_OS_ID: u32 = 0x4000_0000;
const HYPERCALL: u32 = 0x4000_0001;
const ICR: u32 = 0x4000_0071;
const SCONTROL: u32 = 0x4000_0080;
const SIEFP_MSR: u32 = 0x4000_0082;
const SIMP_MSR: u32 = 0x4000_0083;
const EOM: u32 = 0x4000_0084;
const SINT2: u32 = 0x4000_0092;
const LAST_MSR: u32 = 0x4000_01FF;

const GOOD_GPADL: u32 = 0x1000;
const BAD_GPADLS: u32 = 0x2000;
/// Relids that an attacker tries.
const RELIDS: u64 = 16;
/// The type GUID of the heartbeat, as on the wire.
const HEARTBEAT: [u8; 16] = [
    0x39, 0x4f, 0x16, 0x57, 0x15, 0x91, 0x78, 0x4e, 0xab, 0x55, 0x38, 0x2f, 0x3b, 0xd5, 0x42, 0x2d,
];

global_asm!(
    ".section .text.start, \"ax\"",
    ".globl _start",
    "_start:",
    "cli",
    "mov rax, cr0",
    "and eax, 0xFFFFFFFB",
    "or eax, 2",
    "mov cr0, rax",
    "mov rax, cr4",
    "or eax, 0x600",
    "mov cr4, rax",
    "lea rsp, [rip + {stacks} + {stack}]",
    "xor ebp, ebp",
    "mov rdi, rsi",
    "call {first}",
    "2: hlt",
    "jmp 2b",
    // The other CPUs, from real mode.
    ".code16",
    ".globl ap_start",
    "ap_start:",
    "cli",
    "xor ax, ax",
    "mov ds, ax",
    "mov eax, 0x620",
    "mov cr4, eax",
    "mov eax, 0x9000",
    "mov cr3, eax",
    "mov ecx, 0xC0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    ".byte 0x0F, 0x01, 0x16, 0x80, 0x80", // lgdt [TRAMPOLINE_GDT]
    "mov eax, 0x80000033",
    "mov cr0, eax",
    ".byte 0x66, 0xEA", // jmp 0x10:ap64
    ".long ap64",
    ".word 0x10",
    ".globl ap_end",
    "ap_end:",
    ".code64",
    "ap64:",
    "mov ax, 0x18",
    "mov ds, ax",
    "mov es, ax",
    "mov ss, ax",
    "mov eax, 1",
    "lock xadd dword ptr [rip + {next}], eax",
    "mov edi, eax",
    "inc eax",
    "shl eax, 14",
    "lea rsp, [rip + {stacks}]",
    "add rsp, rax",
    "xor ebp, ebp",
    "call {other}",
    "2: hlt",
    "jmp 2b",
    // #GP: its error code lies above the address, which is an RDMSR's or WRMSR's.
    ".globl skip_two",
    "skip_two:",
    "add qword ptr [rsp + 8], 2",
    "add rsp, 8",
    "iretq",
    stacks = sym STACKS,
    stack = const STACK,
    first = sym first,
    other = sym other,
    next = sym NEXT_CPU,
);

// SAFETY: labels of the code above, of which only the addresses are taken.
unsafe extern "C" {
    static ap_start: u8;
    static ap_end: u8;
    static skip_two: u8;
}

#[repr(C, align(4096))]
struct Stacks([u8; STACK * MAX_CPUS]);
static mut STACKS: Stacks = Stacks([0; STACK * MAX_CPUS]);
#[repr(C, align(16))]
struct Idt([u64; IDT_ENTRIES * 2]);
static mut IDT: Idt = Idt([0; IDT_ENTRIES * 2]);

/// The number of the next CPU to come up.
static NEXT_CPU: AtomicU32 = AtomicU32::new(1);
static WILD: AtomicBool = AtomicBool::new(false);
/// The attackers may begin.
static GO: AtomicBool = AtomicBool::new(false);
/// What the attackers leave alone.
static GOOD_RELID: AtomicU32 = AtomicU32::new(0);
/// Where the session's messages go.
static CONNECTION: AtomicU32 = AtomicU32::new(4);

// --- the machine ---

fn peek<T: Copy>(at: u64) -> T {
    // SAFETY: all memory below 4 GiB is mapped, and any bytes are a T, which is
    // an integer or an array of them.
    unsafe { (at as *const T).read_volatile() }
}

fn poke<T: Copy>(at: u64, value: T) {
    // SAFETY: as above; what is overwritten is nobody's but this guest's.
    unsafe { (at as *mut T).write_volatile(value) }
}

fn write_msr(index: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: no MSR that is written here takes memory of this program away.
    unsafe { asm!("wrmsr", in("ecx") index, in("eax") low, in("edx") high) }
}

fn read_msr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading changes nothing; a fault leaves the registers as they are.
    unsafe { asm!("rdmsr", in("ecx") index, inout("eax") 0 => low, inout("edx") 0 => high) }
    u64::from(high) << 32 | u64::from(low)
}

fn out(port: u16, value: u8) {
    // SAFETY: this machine has no device that writes memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value) }
}

fn input(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as above.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value) }
    value
}

/// Writes a line to the console, whole: others speak too.
fn say(text: &str) {
    static BUSY: AtomicBool = AtomicBool::new(false);
    while BUSY.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    for byte in text.bytes() {
        out(0x3F8, byte);
    }
    BUSY.store(false, Ordering::Release);
}

fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

fn hypercall(control: u64, rdx: u64, r8: u64) -> u64 {
    let result: u64;
    // SAFETY: the page holds the host's code, which changes nothing but these
    // registers, or, when the host has not written it, ends this guest.
    unsafe {
        asm!("call {page}", page = in(reg) HYPERCALL_PAGE, in("rcx") control, in("rdx") rdx,
             in("r8") r8, out("rax") result, out("r9") _, out("r10") _, out("r11") _)
    }
    result
}

/// Writes the IDT and loads it.
fn load_idt() {
    let handler = (&raw const skip_two) as u64;
    let low = handler & 0xFFFF | 0x10 << 16 | 0x8E00 << 32 | (handler & 0xFFFF_0000) << 32;
    let idt = (&raw mut IDT) as u64;
    poke(idt + 13 * 16, low);
    poke(idt + 13 * 16 + 8, handler >> 32);
    let mut pointer = [0u8; 10];
    pointer[..2].copy_from_slice(&((IDT_ENTRIES * 16 - 1) as u16).to_le_bytes());
    pointer[2..].copy_from_slice(&idt.to_le_bytes());
    // SAFETY: the table is static, and its entry is of a handler that is there.
    unsafe { asm!("lidt [{}]", in(reg) pointer.as_ptr()) }
}

/// Starts the other CPUs by INIT and SIPI to all but this one.
fn start_others() {
    let (from, to) = ((&raw const ap_start) as u64, (&raw const ap_end) as u64);
    for at in 0..to - from {
        poke(TRAMPOLINE + at, peek::<u8>(from + at));
    }
    poke(TRAMPOLINE_GDT, 31u16);
    poke(TRAMPOLINE_GDT + 2, 0x500u32);
    const APIC_BASE: u32 = 0x1B;
    const X2APIC_ICR: u32 = 0x830;
    write_msr(APIC_BASE, read_msr(APIC_BASE) | 0xC00);
    write_msr(X2APIC_ICR, 0xC_4500);
    pause(20_000_000);
    write_msr(X2APIC_ICR, 0xC_4600 | TRAMPOLINE >> 12);
}

fn pause(ticks: u64) {
    let start = tsc();
    while tsc().wrapping_sub(start) < ticks {
        core::hint::spin_loop();
    }
}

// --- the bus, as a driver that behaves would use it ---

/// Turns a CPU's SynIC on.
fn enable_synic(cpu: u64) {
    write_msr(SIMP_MSR, SIMP + cpu * 4096 | 1);
    write_msr(SIEFP_MSR, SIEFP + cpu * 4096 | 1);
    write_msr(SINT2, 0xF3);
    write_msr(SCONTROL, 1);
}

/// A message's bytes.
type Message = [u8; 256];

fn word(message: &Message, at: usize) -> u32 {
    u32::from_le_bytes([
        message[at],
        message[at + 1],
        message[at + 2],
        message[at + 3],
    ])
}

fn set_word(message: &mut Message, at: usize, value: u32) {
    message[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Posts `size` bytes to a connection, by the input page of a CPU.
fn post(cpu: u64, connection: u32, message: &Message, size: u32) -> u64 {
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
fn send(message: &Message, size: u32) {
    while post(0, CONNECTION.load(Ordering::Relaxed), message, size) != 0 {
        drain();
    }
}

fn signal(connection: u32, flag: u16) {
    hypercall(0x1_005D, u64::from(connection) | u64::from(flag) << 32, 0);
}

/// The next message in CPU 0's slot.
fn receive() -> Option<Message> {
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

fn drain() {
    while receive().is_some() {}
}

/// Waits for a message of this type, about this relid unless that is zero.
fn await_message(kind: u32, relid: u32) -> Message {
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

fn contact(version: u32) -> Message {
    let mut message = [0; 256];
    set_word(&mut message, 0, 14);
    set_word(&mut message, 8, version);
    message[16] = 2;
    message
}

/// A page list of `pages` pages from `first` on.
fn page_list(relid: u32, gpadl: u32, first: u64, pages: u64) -> Message {
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

fn open(relid: u32, gpadl: u32, downstream: u32) -> Message {
    let mut message = [0; 256];
    set_word(&mut message, 0, 5);
    set_word(&mut message, 8, relid);
    set_word(&mut message, 12, relid);
    set_word(&mut message, 16, gpadl);
    set_word(&mut message, 24, downstream);
    message
}

/// Opens the heartbeat's channel; its relid and its connection.
fn open_heartbeat() -> (u32, u32) {
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
fn answer(connection: u32) -> bool {
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

// --- attacks ---

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 32) % end
    }

    /// A number at which things go wrong.
    fn edge(&mut self) -> u32 {
        match self.below(8) {
            0 => 0,
            1 => u32::MAX,
            2 => 0x7FFF_FFFF,
            3 => 1 << self.below(32),
            4 => 4096,
            5 => self.next() as u32,
            _ => self.below(32) as u32,
        }
    }

    /// A page that is none, or one of those that are fought over.
    fn page(&mut self) -> u64 {
        match self.below(8) {
            0 => u64::MAX >> 12,
            1 => 1 << self.below(52).max(15),
            2 => 0xC_0000,
            3 => 0xFEE0_0000 >> 12,
            4 => (self.next() >> 12) | 1 << 40,
            _ => FIELD / 4096 + self.below(FIELD_PAGES),
        }
    }

    fn relid(&mut self) -> u32 {
        self.below(RELIDS) as u32
    }

    fn gpadl(&mut self) -> u32 {
        BAD_GPADLS + self.below(16) as u32
    }
}

/// A message that could be right.
fn likely(random: &mut Random) -> (Message, u32) {
    let (relid, gpadl) = (random.relid(), random.gpadl());
    let mut message = [0; 256];
    let size = match random.below(10) {
        0..3 => {
            let pages = 2 + random.below(30);
            message = page_list(relid, gpadl, FIELD + random.below(200) * 4096, pages);
            if random.below(3) == 0 {
                let page = random.page().to_le_bytes();
                message[28..36].copy_from_slice(&page);
            }
            28 + 8 * pages.min(26) as u32
        }
        3 => {
            set_word(&mut message, 0, 9);
            set_word(&mut message, 12, gpadl);
            for at in (16..240).step_by(8) {
                message[at..at + 8].copy_from_slice(&random.page().to_le_bytes());
            }
            16 + 8 * random.below(29) as u32
        }
        4..7 => {
            message = open(relid, gpadl, random.below(10) as u32);
            148
        }
        kind => {
            set_word(&mut message, 0, [7, 11, 22][kind as usize % 3]);
            set_word(&mut message, 8, relid);
            set_word(&mut message, 12, gpadl);
            16
        }
    };
    (message, size)
}

fn attack_bus(random: &mut Random, cpu: u64, wild: bool) {
    let (mut message, mut size) = likely(random);
    match random.below(6) {
        0 => {
            set_word(&mut message, 0, random.below(28) as u32);
            for at in (8..240).step_by(4) {
                set_word(&mut message, at, random.edge());
            }
            size = random.below(260) as u32;
        }
        1 => {
            for _ in 0..=random.below(6) {
                message[random.below(200) as usize] = random.next() as u8;
            }
        }
        2 if wild => {
            message = contact([0x5_0003, 0x5_0000, 0x4_0001, 0x6_0000][random.below(4) as usize]);
            set_word(&mut message, 12, random.below(6) as u32);
            size = 40;
        }
        3 if wild => {
            set_word(&mut message, 0, [3, 16, 21, 13][random.below(4) as usize]);
            size = 240;
        }
        _ => {}
    }
    if !wild {
        // The session and the good channel are another's.
        let good = GOOD_RELID.load(Ordering::Relaxed);
        if matches!(word(&message, 0), 14 | 16) {
            set_word(&mut message, 0, 5);
        }
        if word(&message, 8) == good {
            set_word(&mut message, 8, good + 1);
        }
    }
    let connection = match random.below(16) {
        0 => random.edge(),
        1 => 1,
        _ => CONNECTION.load(Ordering::Relaxed),
    };
    post(cpu, connection, &message, size);
}

fn attack_msrs(random: &mut Random, wild: bool) {
    let index = match random.below(3) {
        0 => SCONTROL + random.below(0x20) as u32,
        1 => [SIMP_MSR, SIEFP_MSR, SINT2, SCONTROL, EOM][random.below(5) as usize],
        _ => GUEST_OS_ID + random.below(u64::from(LAST_MSR - GUEST_OS_ID) + 1) as u32,
    };
    read_msr(index);
    // An interrupt command could stop the vCPU that behaves; without the
    // hypercall page there is no attack.
    if index == ICR || matches!(index, GUEST_OS_ID | HYPERCALL) && !wild {
        return;
    }
    let page = random.page() << 12 | random.below(4);
    write_msr(
        index,
        if random.below(8) == 0 {
            random.next() | 1 << 50
        } else {
            page
        },
    );
    if matches!(index, GUEST_OS_ID | HYPERCALL) {
        hello();
    }
}

/// Makes the memory that the host looks at change under its eyes.
fn scribble(random: &mut Random) {
    let page = FIELD + random.below(FIELD_PAGES) * 4096;
    if random.below(2) == 0 {
        // A ring's indices, masks and sizes.
        for at in [0, 4, 8, 12] {
            poke(page + at, random.edge());
        }
        return;
    }
    for at in (0..4096).step_by(8) {
        let word = match random.below(3) {
            // An in-band packet's descriptor, more or less.
            0 => 6 | 2 << 16 | random.below(64) << 32,
            1 => random.next(),
            _ => u64::from(random.edge()),
        };
        poke(page + at, word);
    }
}

fn attack_ports(random: &mut Random) {
    let port = random.next() as u16;
    // The power registers and the reset lines are for the wild mode's resets.
    if matches!(port, 0x60..=0x64 | 0x3F8..=0x3FF | 0x600..=0x602 | 0xCF9) {
        return;
    }
    input(port);
    out(port, random.next() as u8);
}

fn attack(random: &mut Random, cpu: u64, wild: bool) {
    match random.below(16) {
        0..8 => attack_bus(random, cpu, wild),
        8..11 => {
            let connection = random.below(64) as u32 | 0x1_0000;
            let flag = if random.below(4) == 0 {
                random.next() as u16
            } else {
                0
            };
            signal(
                if random.below(4) == 0 {
                    random.edge()
                } else {
                    connection
                },
                flag,
            );
        }
        11..13 => scribble(random),
        13 => attack_msrs(random, wild),
        14 => {
            // An odd hypercall, or one whose block is nowhere.
            let code = [0x5C, 0x5D, 0x1_005D, random.next()][random.below(4) as usize];
            hypercall(
                code,
                random.page() << 12 | random.below(4096),
                random.next(),
            );
        }
        _ => attack_ports(random),
    }
}

fn hello() {
    write_msr(GUEST_OS_ID, 0x8100_0000_0006_0000);
    write_msr(HYPERCALL, HYPERCALL_PAGE | 1);
}

/// CPU 0.
extern "C" fn first(boot_params: u64) -> ! {
    load_idt();
    WILD.store(says_wild(boot_params), Ordering::Relaxed);
    hello();
    enable_synic(0);
    start_others();
    let mut random = Random(tsc() | 1);
    if WILD.load(Ordering::Relaxed) {
        GO.store(true, Ordering::Release);
        say("hostile: wild\n");
        for _ in 0..ROUNDS {
            attack(&mut random, 0, true);
            if random.below(8) == 0 {
                drain();
            }
        }
        say("hostile: reset\n");
        out(RESET_PORT, 1);
    }
    let (relid, connection) = open_heartbeat();
    GOOD_RELID.store(relid, Ordering::Relaxed);
    GO.store(true, Ordering::Release);
    say("hostile: beside\n");
    loop {
        drain();
        answer(connection);
        core::hint::spin_loop();
    }
}

/// The others.
extern "C" fn other(cpu: u32) -> ! {
    load_idt();
    while !GO.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    let (cpu, wild) = (u64::from(cpu), WILD.load(Ordering::Relaxed));
    enable_synic(cpu);
    let mut random = Random(tsc() ^ cpu << 56 | 1);
    say("hostile: attack\n");
    loop {
        attack(&mut random, cpu, wild);
    }
}

/// Whether the command line has the word.
fn says_wild(boot_params: u64) -> bool {
    let line = u64::from(peek::<u32>(boot_params + 0x228));
    (0..1024).any(|at| peek::<[u8; 4]>(line + at) == *b"wild")
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    say("hostile: panicked\n");
    loop {
        core::hint::spin_loop();
    }
}

// What the compiler calls.

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's word for it.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") count => _)
    }
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's word for it.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("al") value as u8, inout("rcx") count => _)
    }
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, count: usize) -> i32 {
    for at in 0..count as u64 {
        let (a, b): (u8, u8) = (peek(one as u64 + at), peek(other as u64 + at));
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's word for it.
    unsafe { memcmp(one, other, count) }
}
