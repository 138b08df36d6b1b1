// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Archives of literal bytes, of the real tar, and of nobody in his right mind.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use proptest::prelude::*;

use super::*;

/// A header as ustar has it, with the right checksum.
pub(in crate::ctl) fn header(name: &[u8], kind: u8, size: u64, link: &[u8]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    sign(&mut block);
    block
}

/// Makes the checksum of a header, which may have data behind it, right.
pub(in crate::ctl) fn sign(block: &mut [u8]) {
    let block = &mut block[..BLOCK];
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Data, filled up to a block.
pub(in crate::ctl) fn padded(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(BLOCK), 0);
    data
}

/// Headers and data with the end that an archive has.
pub(in crate::ctl) fn archive(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut all = parts.concat();
    all.extend([0; 2 * BLOCK]);
    all
}

/// All entries with their data.
fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut archive = Archive::new(bytes);
    let mut all = Vec::new();
    while let Some(entry) = archive.entry()? {
        let (mut data, mut chunk) = (Vec::new(), [0; 100]);
        loop {
            let count = archive.data(&mut chunk)?;
            if count == 0 {
                break;
            }
            data.extend(&chunk[..count]);
        }
        all.push((entry, data));
    }
    Ok(all)
}

fn names(bytes: &[u8]) -> Vec<String> {
    let all = read(bytes).unwrap();
    all.iter()
        .map(|(entry, _)| String::from_utf8_lossy(&entry.name).into_owned())
        .collect()
}

#[test]
fn files_directories_and_links_are_told_apart() {
    let bytes = archive(&[
        header(b"./", b'5', 0, b""),
        header(b"./a", b'0', 3, b""),
        padded(b"abc"),
        header(b"./b", b'1', 0, b"./a"),
        header(b"./c", b'2', 0, b"/etc"),
        header(b"./d", b'6', 9, b""),
        header(b"./e/", 0, 0, b""),
        header(b"./f", 0, 0, b""),
    ]);
    let kinds: Vec<Kind> = read(&bytes)
        .unwrap()
        .into_iter()
        .map(|(entry, _)| entry.kind)
        .collect();
    assert_eq!(
        kinds,
        [
            Kind::Directory,
            Kind::File(3),
            Kind::HardLink(b"./a".to_vec()),
            Kind::Symlink(b"/etc".to_vec()),
            Kind::Other(b'6'),
            Kind::Directory,
            Kind::File(0),
        ]
    );
    assert_eq!(read(&bytes).unwrap()[1].1, b"abc");
}

#[test]
fn entries_that_are_not_read_are_skipped() {
    let bytes = archive(&[
        header(b"a", b'0', 1025, b""),
        padded(&[7; 1025]),
        header(b"b", b'0', 512, b""),
        padded(&[8; 512]),
    ]);
    let mut archive = Archive::new(bytes.as_slice());
    assert_eq!(archive.entry().unwrap().unwrap().name, b"a");
    assert_eq!(archive.data(&mut [0; 5]).unwrap(), 5);
    assert_eq!(archive.entry().unwrap().unwrap().name, b"b");
    assert_eq!(archive.entry().unwrap(), None);
    assert_eq!(archive.into_input().len(), BLOCK);
}

#[test]
fn long_names_come_in_three_ways() {
    let long = [b'n'; 300];
    let mut posix = header(b"name", b'0', 0, b"");
    posix[345..348].copy_from_slice(b"dir");
    sign(&mut posix);
    let line = [b"309 path=".as_slice(), &long, b"\n"].concat();
    // 4 + 5 + 300 + 1
    let line = [b"310".as_slice(), &line[3..]].concat();
    let bytes = archive(&[
        header(b"././@LongLink", b'L', 301, b""),
        padded(&[&long[..], b"\0"].concat()),
        header(b"short", b'0', 0, b""),
        header(b"PaxHeaders/x", b'x', line.len() as u64, b""),
        padded(&line),
        header(b"short", b'0', 0, b""),
        posix,
    ]);
    let long = String::from_utf8(long.to_vec()).unwrap();
    assert_eq!(names(&bytes), [long.clone(), long, "dir/name".into()]);
}

#[test]
fn large_sizes_are_numbers_to_another_base() {
    assert_eq!(number(b"0000644\0"), Some(0o644));
    assert_eq!(number(b"    12 \0"), Some(0o12));
    assert_eq!(
        number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]),
        Some(2 << 32)
    );
    assert_eq!(number(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    assert_eq!(number(&[0xff; 12]), None);
    assert_eq!(number(b"+7"), None);
    assert_eq!(number(b"9"), None);
}

#[test]
fn what_is_no_archive_is_told() {
    let good = archive(&[header(b"a", b'0', 3, b""), padded(b"abc")]);
    let error = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
    assert_eq!(error(b""), TarError::Ended.to_string());
    for cut in [1, 511, 512, 513, 515, 1024, 1500] {
        assert_eq!(error(&good[..cut]), TarError::Ended.to_string(), "{cut}");
    }
    // A second zero block is usual, and not needed.
    assert!(read(&good[..1536]).is_ok());
    assert!(error(&[b'x'; 512]).contains("checksum"));
    let mut size = header(b"a", b'0', 3, b"");
    size[124] = b'x';
    sign(&mut size);
    assert!(error(&size).contains("size"));
    assert!(error(&header(b"l", b'L', 1 << 20, b"")).contains("too long"));
    let endless = vec![[header(b"g", b'g', 0, b"")].concat(); 20].concat();
    assert!(error(&endless).contains("extensions"));
    for bad in [
        "x",
        "5 a=b",
        "5 a=\n",
        "99 path=a\n",
        "0 a=b\n",
        " a=b\n",
        "3 \n",
    ] {
        let bytes = [
            header(b"x", b'x', bad.len() as u64, b""),
            padded(bad.as_bytes()),
        ]
        .concat();
        let said = error(&bytes);
        // Where the line is fine, nothing follows it.
        let fine = bad == "5 a=\n";
        assert!(said.contains("broken") != fine, "{bad:?}: {said}");
    }
}

#[test]
fn archives_of_the_real_tar_are_read() {
    let dir = std::env::temp_dir().join(format!("tar-test-{}", std::process::id()));
    let deep = dir.join("d".repeat(90)).join("e".repeat(90));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), vec![9; 70_000]).unwrap();
    fs::write(dir.join("empty"), b"").unwrap();
    fs::hard_link(dir.join("empty"), dir.join("same")).unwrap();
    symlink("/nowhere", dir.join("link")).unwrap();
    for format in ["gnu", "pax", "ustar"] {
        let output = Command::new("tar")
            .args(["--format", format, "--sort=name", "-C"])
            .arg(&dir)
            .args(["-cf", "-", "."])
            .output()
            .unwrap();
        let all = read(&output.stdout).unwrap();
        let find = |end: &[u8]| all.iter().find(|(entry, _)| entry.name.ends_with(end));
        let (file, data) = find(b"/file").unwrap();
        assert_eq!((file.name.len(), data.len()), (2 + 91 + 91 + 4, 70_000));
        assert_eq!(find(b"./empty").unwrap().0.kind, Kind::File(0));
        let same = find(b"./same").unwrap().0.kind.clone();
        assert_eq!(same, Kind::HardLink(b"./empty".to_vec()), "{format}");
        let link = find(b"./link").unwrap().0.kind.clone();
        assert_eq!(link, Kind::Symlink(b"/nowhere".to_vec()));
        assert_eq!(all[0].0.name, b"./");
    }
    fs::remove_dir_all(&dir).unwrap();
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let _ = read(&bytes);
    }

    /// Headers whose sum is right get further.
    #[test]
    fn any_header_is_read_or_refused(
        header in proptest::collection::vec(any::<u8>(), BLOCK),
        kind in prop_oneof![Just(b'L'), Just(b'K'), Just(b'x'), Just(b'g'), any::<u8>()],
        size in 0u64..5000,
        data in proptest::collection::vec(any::<u8>(), 0..4096),
    ) {
        let mut block = header;
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[156] = kind;
        sign(&mut block);
        if let Ok(all) = read(&[block, data].concat()) {
            let whole = all.iter().all(|(entry, data)| match entry.kind {
                Kind::File(size) => size == data.len() as u64,
                _ => true,
            });
            prop_assert!(whole);
        }
    }
}
