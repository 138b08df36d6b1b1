// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bodies of file copy (protocol 6.9).
//!
//! ```text
//!  0 operation u32 | 4 two service ids, 16 bytes each, unused
//!  start  36 name [260 u16] | 556 directory [260 u16] | 1076 flags u32 | 1080 size u64
//!  write  36 padding | 40 offset u64 | 48 size u32 | 52 data, 6144 bytes at most
//! ```
//!
//! Answers have nothing but a status.

use super::name::Target;

/// The most data in a fragment.
pub const FRAGMENT: usize = 6144;
/// Bytes of the header that all requests begin with.
const HEADER: usize = 36;
const NAME_SIZE: usize = 520;

const OVERWRITE: u32 = 1;
const CREATE_PATH: u32 = 2;

/// Operations on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Start,
    Write,
    Complete,
    Cancel,
}

/// A request without anything behind its header.
pub(super) fn emit_bare(operation: Operation, body: &mut Vec<u8>) {
    let number = match operation {
        Operation::Start => 0,
        Operation::Write => 1,
        Operation::Complete => 2,
        Operation::Cancel => 3,
    };
    body.push(number);
    body.resize(HEADER, 0);
}

/// A request to create a file. The names' fields are zero behind the names: the
/// newer daemon reads on.
pub(super) fn emit_start(
    target: &Target,
    overwrite: bool,
    mkdir: bool,
    size: u64,
    body: &mut Vec<u8>,
) {
    emit_bare(Operation::Start, body);
    for text in [target.name(), target.directory()] {
        let start = body.len();
        body.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
        // Checked to be shorter.
        body.resize(start + NAME_SIZE, 0);
    }
    let mut flags = 0;
    if overwrite {
        flags |= OVERWRITE;
    }
    if mkdir {
        flags |= CREATE_PATH;
    }
    body.extend_from_slice(&flags.to_le_bytes());
    body.extend_from_slice(&size.to_le_bytes());
}

/// A request to write a fragment; what is more than [`FRAGMENT`] is left out.
pub(super) fn emit_write(offset: u64, data: &[u8], body: &mut Vec<u8>) {
    let data = data.get(..FRAGMENT).unwrap_or(data);
    emit_bare(Operation::Write, body);
    body.extend_from_slice(&[0; 4]);
    body.extend_from_slice(&offset.to_le_bytes());
    let size = u32::try_from(data.len()).unwrap_or(0);
    body.extend_from_slice(&size.to_le_bytes());
    body.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_1088_bytes_long_with_zeros_behind_the_names() {
        let mut body = Vec::new();
        let target = Target::new("/a/bc").unwrap();
        emit_start(&target, true, true, 0x0102_0304_0506, &mut body);
        assert_eq!(body.len(), 1088);
        assert!(body[..36].iter().all(|byte| *byte == 0));
        assert_eq!(body[36..41], [b'b', 0, b'c', 0, 0]);
        assert!(body[41..556].iter().all(|byte| *byte == 0));
        assert_eq!(body[556..562], [b'/', 0, b'a', 0, b'/', 0]);
        assert!(body[562..1076].iter().all(|byte| *byte == 0));
        assert_eq!(body[1076..], [3, 0, 0, 0, 6, 5, 4, 3, 2, 1, 0, 0]);
        for (overwrite, mkdir, flags) in [(false, false, 0), (true, false, 1), (false, true, 2)] {
            let mut body = Vec::new();
            emit_start(&target, overwrite, mkdir, 0, &mut body);
            assert_eq!(body[1076], flags);
        }
    }

    #[test]
    fn a_write_says_where_and_how_much() {
        let mut body = Vec::new();
        emit_write(0x1_0000_0002, b"data", &mut body);
        assert_eq!(body[..5], [1, 0, 0, 0, 0]);
        #[rustfmt::skip]
        assert_eq!(body[36..], [
            0, 0, 0, 0, // padding
            2, 0, 0, 0, 1, 0, 0, 0, // offset
            4, 0, 0, 0, b'd', b'a', b't', b'a',
        ]);
        let mut body = Vec::new();
        emit_write(0, &[7; 7000], &mut body);
        assert_eq!((body.len(), &body[48..50]), (52 + 6144, &[0, 24][..]));
    }

    #[test]
    fn the_rest_is_a_header() {
        for (operation, number) in [(Operation::Complete, 2), (Operation::Cancel, 3)] {
            let mut body = Vec::new();
            emit_bare(operation, &mut body);
            assert_eq!((body.len(), body[0]), (36, number));
        }
    }
}
