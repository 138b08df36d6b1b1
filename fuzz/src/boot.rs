// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a machine of any size finds when it boots: ACPI tables with right
//! checksums that lie where they should, and a memory map without overlaps.

use linux_loader::loader::bootparam::boot_params;
use vm_memory::{Bytes, GuestAddress};
use vmm::boot::params;
use vmm::{acpi, memory};

use crate::guest::{PAGE, wipe};

/// RSDP, XSDT and what they name lie in this.
const AREA: std::ops::Range<u64> = memory::ACPI_START..memory::HIGH_RAM_START;

/// A number of vCPUs, of bytes of memory, and where an initramfs is.
pub fn run(data: &[u8]) {
    let number = |at: usize| {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(data.iter().skip(at)) {
            *to = *from;
        }
        u64::from_le_bytes(bytes)
    };
    // Few, as a rule: tables of thousands take long.
    let cpus = match data {
        [few, 0xa5, ..] => u32::from(*few) * 32 + 31,
        [few, ..] => u32::from(*few) % 64,
        [] => 0,
    };
    let size = number(2);
    tables(cpus);
    map(size, number(10), number(18));
}

fn tables(cpus: u32) {
    thread_local! {
        static GUEST: memory::GuestMemory = memory::map(2 << 20, false).expect("memory for a guest");
    }
    GUEST.with(|guest| {
        if let Ok(rsdp) = acpi::write(guest, cpus) {
            check(guest, rsdp, cpus);
        }
        // Zeroes for the next.
        wipe(guest, AREA.start / PAGE..AREA.end / PAGE);
    });
}

fn check(guest: &memory::GuestMemory, rsdp: u64, cpus: u32) {
    let bytes = |at: u64, len: u64| {
        assert!(
            AREA.contains(&at) && at + len <= AREA.end,
            "{at:#x} and {len}"
        );
        let mut bytes = vec![0; usize::try_from(len).expect("small")];
        guest
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("in memory");
        bytes
    };
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    let pointer = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let root = bytes(rsdp, 36);
    assert_eq!(
        (&root[..8], sum(&root[..20]), sum(&root)),
        (&b"RSD PTR "[..], 0, 0)
    );
    let table = |at: u64| {
        let header = bytes(at, 36);
        let length = u32::from_le_bytes(header[4..8].try_into().expect("four bytes"));
        let table = bytes(at, length.into());
        assert_eq!(sum(&table), 0, "the table at {at:#x}");
        table
    };
    let tables = table(pointer(&root[24..32]));
    let mut processors = 0;
    for entry in tables[36..].chunks(8) {
        let table = table(pointer(entry));
        if table.starts_with(b"APIC") {
            let mut rest = &table[44..];
            while let [kind, length, ..] = *rest {
                processors += u32::from(kind == 0 || kind == 9);
                rest = rest
                    .get(usize::from(length).max(2)..)
                    .expect("whole entries");
            }
        }
    }
    assert_eq!(processors, cpus);
}

fn map(size: u64, start: u64, length: u64) {
    if memory::regions(size).is_err() {
        return;
    }
    let mut zero_page = boot_params::default();
    params::set_e820(&mut zero_page, size);
    params::set_initramfs(&mut zero_page, start, length);
    let mut end = 0;
    for entry in zero_page
        .e820_table
        .iter()
        .take(zero_page.e820_entries.into())
    {
        let (address, bytes) = (entry.addr, entry.size);
        assert!(address >= end, "{address:#x} lies in what ends at {end:#x}");
        end = address.checked_add(bytes).expect("no overflow");
    }
    assert!(end <= size.max(memory::GAP_END) + memory::GAP_END - memory::GAP_START);
}

/// Machines of all shapes.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let shape = |cpus: [u8; 2], size: u64| [&cpus[..], &size.to_le_bytes()].concat();
    vec![
        ("small", shape([1, 0], 2 << 20)),
        ("usual", shape([4, 0], 512 << 20)),
        ("above-the-gap", shape([63, 0], 8 << 30)),
        ("many-cpus", shape([127, 0xa5], 1 << 45)),
    ]
}
