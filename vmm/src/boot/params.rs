// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's `boot_params`: command line, initramfs and the map of memory.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};

use crate::memory;

const E820_RAM: u32 = 1;
const E820_ACPI: u32 = 3;

/// One line of the memory map that the kernel is given.
type Range = (u64, u64, u32);

/// Points the kernel to its command line.
pub fn set_cmdline(params: &mut boot_params, address: u64) {
    let (low, high) = halves(address);
    params.hdr.cmd_line_ptr = low;
    params.ext_cmd_line_ptr = high;
}

/// Points the kernel to its initramfs.
pub fn set_initramfs(params: &mut boot_params, address: u64, size: u64) {
    (params.hdr.ramdisk_image, params.ext_ramdisk_image) = halves(address);
    (params.hdr.ramdisk_size, params.ext_ramdisk_size) = halves(size);
}

/// Describes `size` bytes of RAM and the areas that are none.
pub fn set_e820(params: &mut boot_params, size: u64) {
    let mut count = 0;
    for (entry, (addr, len, kind)) in params.e820_table.iter_mut().zip(memory_map(size)) {
        *entry = boot_e820_entry {
            addr,
            size: len,
            r#type: kind,
        };
        count += 1;
    }
    params.e820_entries = count;
}

/// The memory map of a guest with `size` bytes of RAM, in order of address.
fn memory_map(size: u64) -> Vec<Range> {
    let low_end = size.min(memory::GAP_START);
    let mut map = vec![
        (0, memory::LOW_RAM_END, E820_RAM),
        (
            memory::ACPI_START,
            memory::HIGH_RAM_START - memory::ACPI_START,
            E820_ACPI,
        ),
        (
            memory::HIGH_RAM_START,
            low_end.saturating_sub(memory::HIGH_RAM_START),
            E820_RAM,
        ),
    ];
    if size > memory::GAP_START {
        map.push((memory::GAP_END, size - memory::GAP_START, E820_RAM));
    }
    map
}

/// A 64-bit address as the protocol's two 32-bit fields.
fn halves(value: u64) -> (u32, u32) {
    let half = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0);
    (half(value), half(value >> 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram(size: u64) -> u64 {
        memory_map(size)
            .iter()
            .filter(|(_, _, kind)| *kind == E820_RAM)
            .map(|(_, len, _)| len)
            .sum()
    }

    #[test]
    fn the_map_shows_all_ram_but_the_hole_below_one_mebibyte() {
        for size in [2 << 20, 512 << 20, 3 << 30, 3584 << 20, 64 << 30] {
            assert_eq!(
                ram(size),
                size - (memory::HIGH_RAM_START - memory::LOW_RAM_END)
            );
        }
    }

    #[test]
    fn ranges_are_in_order_and_do_not_overlap() {
        let map = memory_map(8 << 30);
        for pair in map.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0);
        }
    }

    #[test]
    fn addresses_above_four_gibibytes_use_both_fields() {
        let mut params = boot_params::default();
        set_initramfs(&mut params, 0x1_2345_6000, 0x2_0000_0001);
        let (hdr, high) = (params.hdr, params.ext_ramdisk_image);
        assert_eq!({ hdr.ramdisk_image }, 0x2345_6000);
        assert_eq!(high, 1);
        assert_eq!({ hdr.ramdisk_size }, 1);
        assert_eq!({ params.ext_ramdisk_size }, 2);
    }
}
