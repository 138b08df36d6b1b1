// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Copies into a guest that the test plays: packet by packet, or as Linux's
//! daemons do.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::copy::BUFFER;
use super::*;
use crate::script::{Script, answer, listed, secs};

type Copying = Script<FcopyProtocol>;

/// A guest's file system and daemon.
#[derive(Debug)]
struct Linux {
    uio: bool,
    daemon: bool,
    locale: bool,
    read_only: bool,
    room: usize,
    directories: BTreeSet<String>,
    files: BTreeMap<String, Vec<u8>>,
    /// The file that is open, and the name of which was heard last.
    open: Option<String>,
    heard: String,
}

impl Linux {
    fn new(uio: bool) -> Self {
        Self {
            uio,
            daemon: true,
            locale: true,
            read_only: false,
            room: usize::MAX,
            directories: ["/", "/tmp/"].map(String::from).into(),
            files: BTreeMap::new(),
            open: None,
            heard: String::new(),
        }
    }

    fn exists(&self, path: &str) -> bool {
        self.files.contains_key(path) || path.ends_with("/.") || path == "/"
    }

    fn start(&mut self, body: &[u8]) -> HResult {
        let text = |field: &[u8]| crate::kvp::wire::get_text(field).unwrap();
        let (mut name, mut directory) = (text(&body[36..556]), text(&body[556..1076]));
        if self.uio && !self.locale {
            (name, directory) = (String::new(), "/".into());
        }
        let path = format!("{directory}{name}");
        if !self.uio {
            self.heard.clone_from(&path);
        }
        if !self.directories.contains(&directory) {
            if body[1076] & 2 == 0 || self.read_only {
                return HResult::FAIL;
            }
            self.directories.insert(directory);
        }
        if self.exists(&path) && body[1076] & 1 == 0 {
            return HResult::ALREADY_EXISTS;
        }
        if self.read_only || self.exists(&path) && !self.files.contains_key(&path) {
            return HResult::FAIL;
        }
        self.files.insert(path.clone(), Vec::new());
        self.heard.clone_from(&path);
        self.open = Some(path);
        HResult::OK
    }

    fn write(&mut self, body: &[u8]) -> HResult {
        let offset = u64::from_le_bytes(body[40..48].try_into().unwrap());
        let size = u32::from_le_bytes(body[48..52].try_into().unwrap());
        let data = &body[52..52 + usize::try_from(size).unwrap()];
        let Some(file) = self.open.as_ref().and_then(|path| self.files.get_mut(path)) else {
            return HResult::FAIL;
        };
        assert_eq!(offset, file.len() as u64);
        if file.len() + data.len() > self.room {
            return HResult::DISK_FULL;
        }
        file.extend(data);
        HResult::OK
    }

    fn reply(&mut self, request: Vec<u8>) -> Vec<u8> {
        let body = request[28..].to_vec();
        let status = match body[0] {
            _ if !self.daemon => HResult::FAIL,
            0 => self.start(&body),
            1 => self.write(&body),
            2 => {
                self.open = None;
                HResult::OK
            }
            3 if !self.uio => {
                self.open = None;
                self.files.remove(&self.heard);
                HResult::OK
            }
            _ => HResult::FAIL,
        };
        answer(request, status.0)
    }
}

impl Copying {
    fn copying(linux: &mut Linux) -> Self {
        let mut script = Self::new(Fcopy::new());
        script.open();
        let id = if linux.uio { u64::MAX } else { 1 };
        script.device.protocol.arrived(id);
        script.negotiate((1, 1));
        script.serve(linux);
        script
    }

    fn serve(&mut self, linux: &mut Linux) {
        while let Some(sent) = self.try_take() {
            let reply = linux.reply(sent.payload);
            self.send(&reply);
        }
    }

    fn begin(&mut self, file: NewFile) -> Result<Ticket, FcopyError> {
        let ticket = self.device.start(self.now, file);
        self.poke();
        ticket
    }

    fn push(&mut self, data: &[u8]) -> usize {
        let taken = self.device.push(self.now, data);
        self.poke();
        taken
    }

    fn end(&mut self) -> Result<Copied, FcopyFailure> {
        self.device.take_outcome().expect("an outcome").result
    }

    /// A whole copy.
    fn copy(
        &mut self,
        linux: &mut Linux,
        file: NewFile,
        mut data: &[u8],
    ) -> Result<Copied, FcopyFailure> {
        let begun = self.begin(file);
        begun.map_err(|error| FcopyFailure {
            error,
            partial: false,
        })?;
        self.serve(linux);
        while !data.is_empty() && self.device.progress().is_some() {
            let taken = self.push(data);
            data = &data[taken..];
            self.serve(linux);
        }
        self.end()
    }
}

fn file(path: &str, size: usize) -> NewFile {
    NewFile::new(Target::new(path).unwrap(), size as u64)
}

fn bytes(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n % 251).try_into().unwrap()).collect()
}

fn failure(error: FcopyError) -> Result<Copied, FcopyFailure> {
    let partial = false;
    Err(FcopyFailure { error, partial })
}

#[test]
fn only_the_version_that_linux_knows_is_offered() {
    let mut script = Script::new(Fcopy::new());
    script.open();
    let versions = listed(&script.take());
    assert_eq!(
        versions,
        (vec![IcVersion::new(3, 0)], vec![IcVersion::new(1, 1)])
    );
}

#[test]
fn files_of_all_sizes_arrive_whole_at_both_daemons() {
    for uio in [false, true] {
        let mut linux = Linux::new(uio);
        let mut script = Copying::copying(&mut linux);
        for size in [0, 1, 6143, 6144, 6145, 12288, 400_000] {
            let path = format!("/tmp/f{size}");
            let copied = script.copy(&mut linux, file(&path, size), &bytes(size));
            let fragments = size.div_ceil(FRAGMENT) as u64;
            let size = size as u64;
            assert_eq!(copied, Ok(Copied { size, fragments }));
            assert_eq!(linux.files[&path], bytes(linux.files[&path].len()));
            assert_eq!(linux.files[&path].len() as u64, size);
            assert_eq!(linux.open, None);
        }
    }
}

#[test]
fn one_fragment_is_in_flight_and_a_few_wait() {
    let mut linux = Linux::new(false);
    let mut script = Copying::copying(&mut linux);
    script.begin(file("/tmp/a", 1_000_000)).unwrap();
    assert_eq!(script.push(&bytes(1_000_000)), BUFFER);
    let reply = linux.reply(script.take());
    script.send(&reply);
    assert_eq!(script.unread(), 1);
    let write = script.take();
    assert_eq!(write.len(), 6224);
    assert_eq!(script.device.room(), 0);
    let reply = linux.reply(write);
    script.send(&reply);
    assert_eq!(script.device.room(), FRAGMENT);
    let progress = script.device.progress().unwrap();
    assert_eq!((progress.written, progress.started), (6144, true));
    assert_eq!(script.detail(), "copying /tmp/a: 6144 of 1000000 bytes");
    assert_eq!(
        script.begin(file("/tmp/b", 1)),
        Err(ServiceError::Busy.into())
    );
}

#[test]
fn each_refusal_is_told_by_its_reason() {
    for uio in [false, true] {
        let mut linux = Linux::new(uio);
        let mut script = Copying::copying(&mut linux);
        linux.files.insert("/tmp/old".into(), b"precious".to_vec());
        let copy = |script: &mut Copying, linux: &mut Linux, file| script.copy(linux, file, b"x");
        let exists = copy(&mut script, &mut linux, file("/tmp/old", 1));
        assert_eq!(exists, failure(FcopyError::Exists));
        let nowhere = copy(&mut script, &mut linux, file("/none/a", 1));
        assert_eq!(nowhere, failure(FcopyError::NoDirectory));
        let overwrite = true;
        let new = NewFile {
            overwrite,
            ..file("/tmp/old", 1)
        };
        assert!(copy(&mut script, &mut linux, new).is_ok());
        assert_eq!(linux.files["/tmp/old"], b"x");
        let mkdir = true;
        let new = NewFile {
            mkdir,
            ..file("/new/a", 1)
        };
        assert!(copy(&mut script, &mut linux, new.clone()).is_ok());
        linux.read_only = true;
        let read_only = copy(&mut script, &mut linux, file("/tmp/new", 1));
        assert_eq!(read_only, failure(FcopyError::CannotCreate));
        linux.directories.remove("/new/");
        let read_only = copy(&mut script, &mut linux, new);
        assert_eq!(read_only, failure(FcopyError::CannotMakeDirectory));
        assert_eq!(linux.files["/tmp/old"], b"x", "nothing was cancelled");
    }
}

#[test]
fn a_full_disk_is_told_and_the_part_removed_where_the_daemon_can() {
    for uio in [false, true] {
        let mut linux = Linux::new(uio);
        let mut script = Copying::copying(&mut linux);
        linux.room = 10_000;
        let full = script.copy(&mut linux, file("/tmp/a", 20_000), &bytes(20_000));
        let failure = full.unwrap_err();
        assert_eq!(failure.error, FcopyError::DiskFull);
        assert_eq!(failure.partial, uio);
        assert_eq!(linux.files.contains_key("/tmp/a"), uio);
        assert_eq!(linux.open, None, "closed all the same");
        assert!(script.copy(&mut linux, file("/tmp/b", 1), b"x").is_ok());
    }
}

#[test]
fn names_that_a_daemon_would_garble_are_refused_before_anything_is_sent() {
    let mut linux = Linux::new(true);
    let mut script = Copying::copying(&mut linux);
    let refused = script.begin(file("/tmp/\u{e4}", 1));
    assert_eq!(refused, Err(NameError::NotAscii.into()));
    assert_eq!(refused.unwrap_err().code(), "bad-name");
    assert_eq!(script.unread(), 0);
    let mut linux = Linux::new(false);
    let mut script = Copying::copying(&mut linux);
    assert!(
        script
            .copy(&mut linux, file("/tmp/\u{e4}", 1), b"x")
            .is_ok()
    );
}

#[test]
fn a_daemon_without_its_locale_is_known_before_it_does_harm() {
    let mut linux = Linux::new(true);
    linux.locale = false;
    let mut script = Copying::copying(&mut linux);
    assert_eq!(script.state(), ServiceState::Error);
    let error = script.begin(file("/tmp/a", 1)).unwrap_err();
    assert_eq!(error.code(), "unsupported");
    assert!(error.to_string().contains("en_US.UTF-8"), "{error}");
    assert!(linux.files.is_empty());
}

#[test]
fn a_driver_without_its_daemon_is_known_and_looked_at_again() {
    let mut linux = Linux::new(false);
    linux.daemon = false;
    let mut script = Copying::copying(&mut linux);
    assert_eq!(script.state(), ServiceState::NoDaemon);
    let error = script.copy(&mut linux, file("/tmp/a", 1), b"x");
    assert_eq!(error, failure(ServiceError::NoDaemon.into()));
    linux.daemon = true;
    script.advance(secs(5));
    script.serve(&mut linux);
    assert_eq!(script.state(), ServiceState::Ready);
    assert_eq!(script.device.next_deadline(), None);
}

#[test]
fn a_cancelled_copy_leaves_nothing_where_the_daemon_can_remove_it() {
    for uio in [false, true] {
        let mut linux = Linux::new(uio);
        let mut script = Copying::copying(&mut linux);
        // Before, while and after the file is created, and between fragments.
        for replies in 0..4 {
            let ticket = script.begin(file("/tmp/a", 100_000)).unwrap();
            script.push(&bytes(20_000));
            for _ in 0..replies {
                let reply = linux.reply(script.take());
                script.send(&reply);
            }
            let now = script.now;
            script.device.cancel(now, Ticket(ticket.0 + 1));
            script.device.cancel(now, ticket);
            script.poke();
            script.serve(&mut linux);
            let failure = script.end().unwrap_err();
            assert_eq!(failure.error, FcopyError::Cancelled);
            assert_eq!(failure.partial, uio, "{replies}");
            assert_eq!(linux.files.contains_key("/tmp/a"), uio, "{replies}");
            assert_eq!(linux.open, None);
            linux.files.clear();
        }
    }
}

#[test]
fn a_file_that_was_not_to_be_overwritten_survives_a_cancel() {
    let mut linux = Linux::new(false);
    let mut script = Copying::copying(&mut linux);
    linux.files.insert("/tmp/old".into(), b"precious".to_vec());
    let ticket = script.begin(file("/tmp/old", 10)).unwrap();
    script.device.cancel(script.now, ticket);
    script.poke();
    script.serve(&mut linux);
    assert_eq!(script.end(), failure(FcopyError::Exists));
    assert_eq!(linux.files["/tmp/old"], b"precious");
}

#[test]
fn a_user_without_data_is_given_up() {
    let mut linux = Linux::new(false);
    let mut script = Copying::copying(&mut linux);
    script.begin(file("/tmp/a", 100_000)).unwrap();
    script.push(&bytes(10_000));
    script.serve(&mut linux);
    script.advance(secs(59));
    assert_eq!(script.unread(), 0);
    script.advance(secs(1));
    script.serve(&mut linux);
    assert_eq!(script.end(), failure(FcopyError::Stalled));
    assert!(linux.files.is_empty());
}

#[test]
fn what_is_answered_too_late_is_cleaned_up_before_the_next_copy() {
    let mut linux = Linux::new(false);
    let mut script = Copying::copying(&mut linux);
    script.begin(file("/tmp/a", 10)).unwrap();
    let start = script.take();
    script.advance(secs(35));
    let failure = script.end().unwrap_err();
    assert_eq!(failure.error, ServiceError::Timeout.into());
    assert!(failure.partial);
    assert_eq!(
        script.begin(file("/tmp/b", 1)),
        Err(ServiceError::Timeout.into())
    );
    let reply = linux.reply(start);
    assert!(linux.files.contains_key("/tmp/a"));
    script.send(&reply);
    script.serve(&mut linux);
    assert!(!linux.files.contains_key("/tmp/a"));
    assert!(script.copy(&mut linux, file("/tmp/b", 1), b"x").is_ok());
}

#[test]
fn a_late_refusal_removes_nothing() {
    let mut linux = Linux::new(false);
    let mut script = Copying::copying(&mut linux);
    linux.files.insert("/tmp/old".into(), b"precious".to_vec());
    script.begin(file("/tmp/old", 10)).unwrap();
    let start = script.take();
    script.advance(secs(35));
    script.end().unwrap_err();
    let reply = linux.reply(start);
    script.send(&reply);
    script.serve(&mut linux);
    assert_eq!(linux.files["/tmp/old"], b"precious");
}

#[test]
fn a_channel_that_closes_ends_the_copy() {
    let mut linux = Linux::new(true);
    let mut script = Copying::copying(&mut linux);
    script.begin(file("/tmp/a", 10)).unwrap();
    script.close();
    let failure = script.end().unwrap_err();
    assert_eq!(failure.error, ServiceError::NotOpen.into());
    script.open();
    script.device.protocol.arrived(u64::MAX);
    script.negotiate((1, 1));
    script.serve(&mut linux);
    assert!(script.copy(&mut linux, file("/tmp/a", 1), b"x").is_ok());
}

#[test]
fn a_daemon_that_dies_in_a_copy_ends_it() {
    let mut linux = Linux::new(false);
    let mut script = Copying::copying(&mut linux);
    script.begin(file("/tmp/a", 100_000)).unwrap();
    script.push(&bytes(10_000));
    script.serve(&mut linux);
    linux.daemon = false;
    linux.open = None;
    script.push(&bytes(10_000));
    script.serve(&mut linux);
    let failure = script.end().unwrap_err();
    assert_eq!(failure.error, FcopyError::Write(HResult::FAIL));
    assert!(failure.partial);
    linux.daemon = true;
    assert!(script.copy(&mut linux, file("/tmp/b", 1), b"x").is_ok());
}

proptest! {
    /// However the data comes in pieces, the file is what was pushed.
    #[test]
    fn any_pieces_make_the_file(
        size in 0..40_000_usize,
        pieces in prop::collection::vec(1..9000_usize, 1..20),
        uio in any::<bool>(),
    ) {
        let mut linux = Linux::new(uio);
        let mut script = Copying::copying(&mut linux);
        let data = bytes(size);
        script.begin(file("/tmp/a", size)).unwrap();
        let (mut at, mut pieces) = (0, pieces.iter().cycle());
        while at < size {
            let end = size.min(at + pieces.next().unwrap());
            at += script.push(&data[at..end]);
            script.serve(&mut linux);
        }
        script.serve(&mut linux);
        prop_assert!(script.end().is_ok());
        prop_assert_eq!(&linux.files["/tmp/a"], &data);
    }
}
