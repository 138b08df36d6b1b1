// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the boot CPU needs in memory to be in 64-bit mode: a GDT and page
//! tables. And what a kernel finds where it expects firmware: a reset.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::devices::power;
use crate::memory::GuestMemory;

/// Where the GDT stands.
pub const GDT: u64 = 0x500;
/// The GDT: null, unused, 64-bit code (selector 0x10), data (0x18). The
/// selectors are the boot protocol's.
pub const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF];
/// The top-level page table; CR3 holds its address.
pub const PML4: u64 = 0x9000;

/// Where x86 starts in real mode. Linux jumps there to reset a machine with
/// hardware-reduced ACPI and no EFI, before it would try the reset register.
pub const RESET_VECTOR: u64 = 0xF_FFF0;

const PDPT: u64 = 0xA000;
const PAGE_DIRECTORY: u64 = 0xB000;
const PAGE: u64 = 4096;
const ENTRIES: u64 = 512;
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
/// How many GiB are mapped one to one. The kernel, its parameters and its
/// initramfs are all below the gap.
const GIB: u64 = 4;

/// Real-mode code that writes the reset register, and waits.
fn reset_code() -> [u8; 10] {
    let [port_low, port_high] = power::RESET.to_le_bytes();
    #[rustfmt::skip]
    let code = [
        0xB0, power::RESET_VALUE,   // mov al, RESET_VALUE
        0xBA, port_low, port_high,  // mov dx, RESET
        0xEE,                       // out dx, al
        0xFA,                       // cli
        0xF4,                       // hlt
        0xEB, 0xFD,                 // jmp back to hlt
    ];
    code
}

/// Writes the GDT, the reset code, and an identity map of the first 4 GiB in 2 MiB pages.
pub fn write(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    write_u64s(memory, GDT, GDT_ENTRIES)?;
    memory.write_slice(&reset_code(), GuestAddress(RESET_VECTOR))?;
    memory.write_obj(PDPT | PRESENT_WRITABLE, GuestAddress(PML4))?;
    write_u64s(
        memory,
        PDPT,
        (0..GIB).map(|n| (PAGE_DIRECTORY + n * PAGE) | PRESENT_WRITABLE),
    )?;
    write_u64s(
        memory,
        PAGE_DIRECTORY,
        (0..GIB * ENTRIES).map(|n| (n << 21) | LARGE | PRESENT_WRITABLE),
    )
}

fn write_u64s(
    memory: &GuestMemory,
    address: u64,
    values: impl IntoIterator<Item = u64>,
) -> Result<(), GuestMemoryError> {
    let bytes: Vec<u8> = values.into_iter().flat_map(u64::to_le_bytes).collect();
    memory.write_slice(&bytes, GuestAddress(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the tables as the CPU does.
    fn translate(memory: &GuestMemory, address: u64) -> u64 {
        let entry = |table: u64, shift: u32| -> u64 {
            let index = (address >> shift) & (ENTRIES - 1);
            let value: u64 = memory.read_obj(GuestAddress(table + index * 8)).unwrap();
            assert_eq!(value & PRESENT_WRITABLE, PRESENT_WRITABLE);
            value & !(PAGE - 1)
        };
        let pdpt = entry(PML4, 39);
        let directory = entry(pdpt, 30);
        entry(directory, 21) + (address & ((2 << 20) - 1))
    }

    #[test]
    fn a_jump_to_the_reset_vector_writes_the_reset_register() {
        let memory = crate::memory::map(4 << 20, false).unwrap();
        write(&memory).unwrap();
        let mut code = [0; 10];
        memory
            .read_slice(&mut code, GuestAddress(RESET_VECTOR))
            .unwrap();
        assert_eq!(
            code,
            [0xB0, 1, 0xBA, 0x02, 0x06, 0xEE, 0xFA, 0xF4, 0xEB, 0xFD]
        );
    }

    #[test]
    fn the_first_four_gibibytes_are_mapped_one_to_one() {
        let memory = crate::memory::map(4 << 20, false).unwrap();
        write(&memory).unwrap();
        for address in [0, 0x7000, 0x100_0000, 0xBFFF_FFFF, 0xFFFF_FFFF] {
            assert_eq!(translate(&memory, address), address);
        }
    }
}
