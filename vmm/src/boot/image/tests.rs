// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images made by hand, whole and broken.

use std::io::Cursor;

use vm_memory::Bytes;

use super::*;

const MIB: u64 = 1 << 20;
/// Setup sectors of the test image.
const SETUP: usize = 2;

/// A bzImage with nothing but a header and 64 KiB of "code".
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; (SETUP + 1) * 512 + 0x1_0000];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[2]); // setup_sects
    put(0x1F4, &0x1000u32.to_le_bytes()); // syssize, in units of 16
    put(0x1FE, &0xAA55u16.to_le_bytes());
    put(0x202, b"HdrS");
    put(0x206, &0x020Fu16.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: high
    put(0x22C, &0x7FFF_FFFFu32.to_le_bytes()); // initrd_addr_max
    put(0x236, &1u16.to_le_bytes()); // xloadflags: 64-bit entry
    put(0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(0x258, &(16 * MIB).to_le_bytes()); // pref_address
    put(0x260, &0x20_0000u32.to_le_bytes()); // init_size
    let code = (SETUP + 1) * 512;
    put(code + 0x200, b"entry");
    image
}

/// An ELF file with one segment of 16 bytes, 32 in memory, at 16 MiB.
fn elf() -> Vec<u8> {
    let mut image = vec![0; 64 + 56 + 16];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7FELF\x02\x01\x01");
    put(18, &62u16.to_le_bytes());
    put(24, &(16 * MIB + 4).to_le_bytes()); // entry
    put(32, &64u64.to_le_bytes()); // phoff
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes()); // phnum
    put(64, &1u32.to_le_bytes()); // PT_LOAD
    put(64 + 8, &120u64.to_le_bytes()); // offset
    put(64 + 24, &(16 * MIB).to_le_bytes()); // paddr
    put(64 + 32, &16u64.to_le_bytes()); // filesz
    put(64 + 40, &32u64.to_le_bytes()); // memsz
    put(120, b"sixteen bytes...");
    image
}

fn load(bytes: &[u8], mib: u64) -> Result<(Loaded, GuestMemory), ImageError> {
    let mut file = Cursor::new(bytes);
    let image = Image::parse(&mut file)?;
    let memory = memory::map(mib * MIB, false).unwrap();
    let loaded = image.load(&mut file, &memory, mib * MIB)?;
    Ok((loaded, memory))
}

fn patched(mut image: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn a_bzimage_is_loaded_at_its_preferred_address_and_entered_at_0x200() {
    let (loaded, memory) = load(&bzimage(), 32).unwrap();
    assert_eq!((loaded.entry, loaded.end), (16 * MIB + 0x200, 18 * MIB));
    assert_eq!(
        (loaded.cmdline_max, loaded.initramfs_max),
        (2047, 0x7FFF_FFFF)
    );
    let mut text = [0; 5];
    memory
        .read_slice(&mut text, GuestAddress(loaded.entry))
        .unwrap();
    assert_eq!(&text, b"entry");
    assert_eq!(loaded.header.type_of_loader, 0xFF);
}

#[test]
fn an_elf_is_loaded_where_its_headers_say() {
    let (loaded, memory) = load(&elf(), 32).unwrap();
    assert_eq!((loaded.entry, loaded.end), (16 * MIB + 4, 16 * MIB + 32));
    let mut text = [0; 16];
    memory
        .read_slice(&mut text, GuestAddress(16 * MIB))
        .unwrap();
    assert_eq!(&text, b"sixteen bytes...");
}

#[test]
fn too_little_memory_is_told_with_what_is_needed() {
    for image in [bzimage(), elf()] {
        let error = load(&image, 8).unwrap_err();
        assert!(matches!(error, ImageError::TooLittleMemory { need, have }
            if need > 16 * MIB && have == 8 * MIB));
    }
}

#[test]
fn every_truncation_is_an_error() {
    for whole in [bzimage(), elf()] {
        for len in (0..whole.len()).step_by(7) {
            assert!(load(&whole[..len], 32).is_err(), "{len} of {}", whole.len());
        }
    }
}

#[test]
fn files_that_are_no_kernels_are_called_so() {
    for bytes in [&b""[..], b"#!/bin/sh\n", &[0; 4096], &[0xFF; 10_000]] {
        assert!(matches!(load(bytes, 32), Err(ImageError::NotAKernel)));
    }
}

#[test]
fn old_and_32_bit_kernels_are_refused_with_the_reason() {
    for image in [
        patched(bzimage(), 0x206, &0x0204u16.to_le_bytes()),
        patched(bzimage(), 0x236, &[0]),
        patched(bzimage(), 0x211, &[0]),
        patched(bzimage(), 0x258, &[0; 8]),
        patched(bzimage(), 0x258, &[0xFF; 8]),
        patched(elf(), 4, &[1]),
        patched(elf(), 18, &183u16.to_le_bytes()),
    ] {
        assert!(matches!(load(&image, 32), Err(ImageError::Unsupported(_))));
    }
}

#[test]
fn elf_headers_full_of_nonsense_are_refused() {
    for image in [
        patched(patched(elf(), 64, &[4]), 64 + 34, &[2]), // notes without end
        patched(elf(), 54, &[1]),                         // size of a program header
        patched(elf(), 56, &[0, 0]),                      // none of them
        patched(elf(), 56, &[0xFF, 0xFF]),                // far too many
        patched(elf(), 32, &[0xFF; 8]),                   // beyond all files
        patched(elf(), 64 + 8, &[0xFF; 8]),               // a segment beyond all files
        patched(elf(), 64 + 24, &[0xFF; 8]),              // and beyond all memory
        patched(elf(), 64 + 24, &[0; 8]),                 // or over the boot data
        patched(elf(), 64 + 40, &[8, 0, 0, 0]),           // larger in the file
        patched(elf(), 24, &[0; 8]),                      // entered nowhere
    ] {
        let error = load(&image, 32).unwrap_err();
        assert!(matches!(error, ImageError::BadElf(_)), "{error}");
    }
}
