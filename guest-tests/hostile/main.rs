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

mod attack;
mod bus;

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use attack::{Random, attack};
use bus::{answer, drain, enable_synic, open_heartbeat};

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
    let mut random = Random::new(tsc());
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
    let mut random = Random::new(tsc() ^ cpu << 56);
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

// What the compiler calls, or has the core library name: nothing unwinds here.

#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

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
