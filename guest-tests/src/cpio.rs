// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writing an initramfs: cpio's "newc" format.
//!
//! Each entry is a header of 110 bytes, `070701` and 13 numbers of eight
//! hexadecimal digits, then the name with a NUL, then the data; header with
//! name, and data, are each padded to four bytes. `TRAILER!!!` ends it. Device
//! nodes are just headers, so nothing here needs root.

use std::collections::BTreeSet;

const DIR: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHAR: u32 = 0o020_000;

/// An archive being written.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
    owner: (u32, u32),
    made: BTreeSet<String>,
}

impl Archive {
    /// Adds a directory and those it is in; one that is there already is fine.
    pub fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || !self.made.insert(path.to_owned()) {
            return;
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.entry(path, DIR | 0o755, (0, 0), &[]);
    }

    /// Adds a directory with this mode, after those it is in.
    pub fn directory_of(&mut self, path: &str, mode: u32) {
        self.parent(path);
        if self.made.insert(path.trim_matches('/').to_owned()) {
            self.entry(path, DIR | mode, (0, 0), &[]);
        }
    }

    /// Whose everything is that is added from now on; root's unless said.
    pub fn owner(&mut self, user: u32, group: u32) {
        self.owner = (user, group);
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.parent(path);
        self.entry(path, FILE | mode, (0, 0), data);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, to: &str) {
        self.parent(path);
        self.entry(path, LINK | 0o777, (0, 0), to.as_bytes());
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.parent(path);
        self.entry(path, CHAR | mode, (major, minor), &[]);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.inodes = 0;
        self.owner = (0, 0);
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn parent(&mut self, path: &str) {
        if let Some((parent, _)) = path.trim_matches('/').rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), data: &[u8]) {
        let path = path.trim_matches('/');
        self.inodes += 1;
        let links = if mode & DIR == DIR { 2 } else { 1 };
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(b"070701");
        for number in [
            self.inodes,
            mode,
            self.owner.0,
            self.owner.1,
            links,
            0,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ] {
            self.bytes
                .extend_from_slice(format!("{number:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_header_name_data_each_padded() {
        let mut archive = Archive::default();
        archive.file("hi", 0o644, b"abc");
        let bytes = archive.finish();
        let expected = "070701\
            00000001000081a4000000000000000000000001000000000000000300000000\
            00000000000000000000000000000003000000\
            00hi\0\0\0\0abc\0";
        // 110 bytes of header and 3 of name are padded to 116.
        assert_eq!(String::from_utf8_lossy(&bytes[..120]), expected);
        assert_eq!(&bytes[120..126], b"070701");
        assert!(bytes.len().is_multiple_of(4));
    }

    #[test]
    fn directories_come_before_what_is_in_them_and_once() {
        let mut archive = Archive::default();
        archive.file("a/b/one", 0o644, b"");
        archive.file("/a/b/two", 0o644, b"");
        let text = String::from_utf8_lossy(&archive.finish()).into_owned();
        let at = |name: &str| text.find(name).unwrap();
        assert!(at("a\0") < at("a/b\0"));
        assert!(at("a/b\0") < at("a/b/one\0"));
        assert_eq!(text.matches("a/b\0").count(), 1);
    }

    #[test]
    fn the_console_is_character_device_5_1() {
        let mut archive = Archive::default();
        archive.device("console", 0o600, 5, 1);
        let bytes = archive.finish();
        assert_eq!(&bytes[14..22], b"00002180");
        assert_eq!(&bytes[78..94], b"0000000500000001");
    }

    #[test]
    fn owners_and_modes_are_kept() {
        let mut archive = Archive::default();
        archive.owner(1, 0x2a);
        archive.directory_of("tmp", 0o1777);
        archive.directory_of("tmp", 0o755);
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(&text[14..38], "000043ff000000010000002a");
        assert_eq!(text.matches("tmp\0").count(), 1);
    }

    #[test]
    fn it_ends_with_the_trailer() {
        let bytes = Archive::default().finish();
        assert_eq!(&bytes[110..121], b"TRAILER!!!\0");
        assert_eq!(bytes.len(), 124);
    }
}
