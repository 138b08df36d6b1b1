// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest sends for `vmmctl cp`: an archive is read to its end or refused,
//! and no name that is taken leads out.

use vmm::ctl::tar::{Archive, Kind};
use vmm::ctl::tree::Name;

const BLOCK: usize = 512;

/// Reads `data` as an archive, as `vmmctl cp` does.
pub fn run(data: &[u8]) {
    let mut archive = Archive::new(data);
    let mut total = 0;
    while let Ok(Some(entry)) = archive.entry() {
        let name = Name::parse(&entry.name);
        if let Ok(name) = &name {
            let bytes = name.bytes();
            let mut parts = bytes.split(|byte| *byte == b'/');
            assert!(name.is_top() || parts.all(|part| !matches!(part, b"" | b"." | b"..")));
        }
        if let (Kind::Symlink(to), Ok(name)) = (&entry.kind, name) {
            let inside = name.below("top".as_ref());
            assert!(!(inside.holds_link(to) && to.starts_with(b"/")));
        }
        let (mut size, mut chunk) = (0, [0; 1000]);
        while let Ok(count @ 1..) = archive.data(&mut chunk) {
            size += count;
        }
        total += size;
        assert!(total <= data.len(), "more comes out than went in");
        if let Kind::File(wanted) = entry.kind {
            assert!(size as u64 <= wanted);
        }
    }
}

fn entry(name: &[u8], kind: u8, link: &[u8], data: &[u8]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0000755\0");
    block[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    block[148..156].fill(b' ');
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend(data);
    block.resize(block.len().next_multiple_of(BLOCK), 0);
    block
}

/// A directory, and names in all the ways there are.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let end = vec![0; 2 * BLOCK];
    let tree = [
        entry(b"./", b'5', b"", b""),
        entry(b"./a", b'0', b"", b"data"),
        entry(b"./b", b'1', b"./a", b""),
        entry(b"./c", b'2', b"../../etc", b""),
        entry(b"./../d", b'0', b"", b""),
        end.clone(),
    ];
    let long = [
        entry(b"././@LongLink", b'L', b"", &[b'n'; 200]),
        entry(b"././@LongLink", b'K', b"", &[b'l'; 200]),
        entry(b"n", b'2', b"l", b""),
        entry(b"x", b'x', b"", b"12 path=a/b\n11 size=10\n"),
        entry(b"n", b'0', b"", &[7; 10]),
        end,
    ];
    vec![("tree", tree.concat()), ("long", long.concat())]
}
