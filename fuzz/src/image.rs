// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernel images: any file is loaded inside the guest's memory, or refused.

use std::io::Cursor;

use vmm::boot::Image;
use vmm::memory;

/// Enough for an image that is loaded at 16 MiB.
const MEMORY: u64 = 20 << 20;

/// Loads `data` as a kernel.
pub fn run(data: &[u8]) {
    let mut file = Cursor::new(data);
    let Ok(image) = Image::parse(&mut file) else {
        return;
    };
    let guest = memory::map(MEMORY, false).expect("memory for a guest");
    if let Ok(loaded) = image.load(&mut file, &guest, MEMORY) {
        assert!(loaded.end <= MEMORY, "the kernel ends at {:#x}", loaded.end);
        assert!(loaded.entry < loaded.end, "the entry is behind the end");
        assert!(loaded.cmdline_max <= 0xFFFF);
    }
}

/// The smallest files that are kernels: a bzImage and an ELF.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut bzimage = vec![0; 3 * 512 + 0x1000];
    let mut put = |at: usize, bytes: &[u8]| bzimage[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[2]);
    put(0x1F4, &0x100u32.to_le_bytes());
    put(0x1FE, &[0x55, 0xAA]);
    put(0x202, b"HdrS\x0F\x02");
    put(0x211, &[1]);
    put(0x236, &[1]);
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &(16u64 << 20).to_le_bytes());
    put(0x260, &0x10_0000u32.to_le_bytes());
    let mut elf = vec![0; 64 + 56 + 16];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7FELF\x02\x01\x01");
    put(18, &[62]);
    put(24, &(16u64 << 20).to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &[56, 0, 1]);
    put(64, &[1]);
    put(64 + 8, &120u64.to_le_bytes());
    put(64 + 24, &(16u64 << 20).to_le_bytes());
    put(64 + 32, &16u64.to_le_bytes());
    put(64 + 40, &32u64.to_le_bytes());
    vec![("bzimage", bzimage), ("elf", elf)]
}
