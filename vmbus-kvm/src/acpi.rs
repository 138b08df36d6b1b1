// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ACPI device by which Linux knows that there is a bus (protocol 2.1), as AML for a
//! VMM's DSDT.
//!
//! ```text
//! \_SB
//!  └─ VMOD  _HID "ACPI0004", _CRS: a memory window      5.10 looks for one through all
//!      └─ VMBS  _HID "VMBUS", _CRS empty                ancestors, and oopses without
//! ```
//!
//! The bus' own resources are empty on purpose: a memory range there keeps 6.12 and later
//! from making the device.

use std::ops::RangeInclusive;

/// The two devices, to be appended to the contents of the scope `\_SB`.
///
/// `window` is guest-physical memory that nothing else has: nothing of ours is in it
/// either, as long as no device with a frame buffer or PCI pass-through is on the bus. 16
/// MiB below 4 GiB are what Hyper-V's smallest has.
///
/// ```
/// let aml = vmbus_kvm::acpi::vmbus_device(0xF000_0000..=0xF0FF_FFFF);
/// assert_eq!(aml[..2], [0x5B, 0x82], "DeviceOp");
/// ```
pub fn vmbus_device(window: RangeInclusive<u32>) -> Vec<u8> {
    let bus = device(
        *b"VMBS",
        &[
            name(*b"_HID", &string("VMBUS")),
            name(*b"_UID", &[ZERO]),
            name(*b"_CRS", &resources(&[])),
        ],
    );
    device(
        *b"VMOD",
        &[
            name(*b"_HID", &string("ACPI0004")),
            name(*b"_UID", &[ZERO]),
            name(*b"_CRS", &resources(&memory_range(&window))),
            bus,
        ],
    )
}

const ZERO: u8 = 0x00;
const BYTE_PREFIX: u8 = 0x0A;
const STRING_PREFIX: u8 = 0x0D;
const NAME_OP: u8 = 0x08;
const BUFFER_OP: u8 = 0x11;
const DEVICE_OP: [u8; 2] = [0x5B, 0x82];
/// The end tag of a resource template; its checksum may be 0.
const END_TAG: [u8; 2] = [0x79, 0];

fn device(name: [u8; 4], contents: &[Vec<u8>]) -> Vec<u8> {
    let mut body = name.to_vec();
    body.extend(contents.iter().flatten());
    [&DEVICE_OP[..], &with_length(&body)].concat()
}

fn name(name: [u8; 4], object: &[u8]) -> Vec<u8> {
    [&[NAME_OP], &name[..], object].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&[STRING_PREFIX], text.as_bytes(), &[0]].concat()
}

fn resources(descriptors: &[u8]) -> Vec<u8> {
    let all = [descriptors, &END_TAG].concat();
    // Far below 256.
    let len = u8::try_from(all.len()).unwrap_or(u8::MAX);
    [
        &[BUFFER_OP],
        &with_length(&[&[BYTE_PREFIX, len], &all[..]].concat())[..],
    ]
    .concat()
}

/// A 32-bit memory range that the device produces: fixed at both ends, read and write, not
/// cacheable.
fn memory_range(range: &RangeInclusive<u32>) -> Vec<u8> {
    const DWORD_ADDRESS_SPACE: u8 = 0x87;
    const LENGTH: u16 = 23;
    const MEMORY: u8 = 0;
    const FIXED: u8 = 1 << 2 | 1 << 3;
    const READ_WRITE: u8 = 1;
    let (first, last) = (*range.start(), *range.end());
    let size = last.wrapping_sub(first).wrapping_add(1);
    let mut bytes = vec![DWORD_ADDRESS_SPACE];
    bytes.extend(LENGTH.to_le_bytes());
    bytes.extend([MEMORY, FIXED, READ_WRITE]);
    // Granularity, first, last, translation, size.
    for word in [0, first, last, 0, size] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

/// Puts the length of a package, itself included, in front of its contents.
fn with_length(contents: &[u8]) -> Vec<u8> {
    const SHORT: usize = 0x3F;
    let mut bytes = Vec::with_capacity(contents.len() + 2);
    if contents.len() < SHORT {
        bytes.push(low_byte(contents.len() + 1));
    } else {
        // Two bytes: 4 bits, then 8. Nothing here comes near their 4095.
        let len = contents.len() + 2;
        bytes.push(1 << 6 | low_byte(len & 0xF));
        bytes.push(low_byte(len >> 4));
    }
    bytes.extend(contents);
    bytes
}

fn low_byte(value: usize) -> u8 {
    let [low, ..] = value.to_le_bytes();
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_devices_are_these_bytes() {
        let aml = vmbus_device(0xF000_0000..=0xF0FF_FFFF);
        let expected: Vec<u8> = [
            &[0x5B, 0x82, 0x40 | 0x4, 0x06][..],
            b"VMOD",
            &[0x08],
            b"_HID",
            b"\x0DACPI0004\0",
            &[0x08],
            b"_UID",
            &[0x00, 0x08],
            b"_CRS",
            &[0x11, 0x1F, 0x0A, 0x1C],
            &[0x87, 0x17, 0x00, 0x00, 0x0C, 0x01],
            &[0, 0, 0, 0],
            &[0, 0, 0, 0xF0],
            &[0xFF, 0xFF, 0xFF, 0xF0],
            &[0, 0, 0, 0],
            &[0, 0, 0, 1],
            &[0x79, 0x00],
            &[0x5B, 0x82, 0x22],
            b"VMBS",
            &[0x08],
            b"_HID",
            b"\x0DVMBUS\0",
            &[0x08],
            b"_UID",
            &[0x00, 0x08],
            b"_CRS",
            &[0x11, 0x05, 0x0A, 0x02, 0x79, 0x00],
        ]
        .concat();
        assert_eq!(aml, expected);
    }

    #[test]
    fn a_long_package_has_its_length_in_two_bytes() {
        assert_eq!(with_length(&[7; 62])[..2], [0x3F, 7]);
        assert_eq!(with_length(&[7; 63])[..3], [0x41, 0x04, 7]);
    }
}
