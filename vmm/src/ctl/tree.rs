// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A directory of this host into which a guest's files go, and out of which no
//! name of the guest's leads.
//!
//! A name is taken apart, and each part is opened below the one before, never
//! through a symbolic link: neither one that the guest has sent nor one that
//! was there. A file is written under another name and gets its own when all of
//! it is there, so that what ends the copy leaves no half of one.
//!
//! Permissions only narrow: a file has the guest's from its first byte on, without
//! what the user's umask takes away. A hard link leads to a file that was made here
//! before, and to nothing else. Each call makes one thing at most.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

/// Linux' own limit of a path.
const MAX_NAME: usize = 4096;
/// Bytes for the names of files that hard links may lead to: a million of them.
const MAX_MADE: usize = 128 << 20;
/// What such a name takes besides its bytes.
const MADE_OVERHEAD: usize = 64;

/// Why a name cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It begins with a `/`.
    #[error("is absolute")]
    Absolute,
    /// It has a `..` in it.
    #[error("has a '..' in it")]
    Up,
    /// It has a NUL in it.
    #[error("has a NUL in it")]
    Nul,
    /// It is longer than any name.
    #[error("is too long")]
    TooLong,
}

/// A name that leads down, as its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(Vec<OsString>);

impl Name {
    /// Checks a name that a guest has sent. `.` and `./` are the top itself.
    pub fn parse(name: &[u8]) -> Result<Self, NameError> {
        if name.len() > MAX_NAME {
            return Err(NameError::TooLong);
        }
        if name.starts_with(b"/") {
            return Err(NameError::Absolute);
        }
        if name.contains(&0) {
            return Err(NameError::Nul);
        }
        let mut parts = Vec::new();
        for part in name.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(NameError::Up),
                part => parts.push(OsStr::from_bytes(part).to_owned()),
            }
        }
        Ok(Self(parts))
    }

    /// The same, below a directory with one part.
    #[must_use]
    pub fn below(mut self, top: &OsStr) -> Self {
        self.0.insert(0, top.to_owned());
        self
    }

    /// Whether it is the top.
    pub fn is_top(&self) -> bool {
        self.0.is_empty()
    }

    /// With slashes.
    pub fn bytes(&self) -> Vec<u8> {
        let parts: Vec<&[u8]> = self.0.iter().map(|part| part.as_bytes()).collect();
        parts.join(&b'/')
    }

    /// Whether a symbolic link of this name, to `target`, stays below the first
    /// part of the name: relative, with `..` only where it begins, and no more
    /// of them than there are directories above.
    pub fn holds_link(&self, target: &[u8]) -> bool {
        if target.is_empty() || target.len() >= MAX_NAME || target.starts_with(b"/") {
            return false;
        }
        let mut parts = target
            .split(|byte| *byte == b'/')
            .filter(|part| !matches!(*part, b"" | b"."));
        let ups = parts.by_ref().take_while(|part| *part == b"..").count();
        // What ended the count was taken too, and is none.
        let more_ups = parts.any(|part| part == b"..");
        !more_ups && !target.contains(&0) && ups.saturating_add(2) <= self.0.len()
    }
}

/// The directory.
#[derive(Debug)]
pub struct Tree {
    dir: OwnedFd,
    made: Made,
}

impl Tree {
    /// A directory of the user's choice; it may be a link itself.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self {
            dir: fs::open(path, flags, Mode::empty())?,
            made: Made::default(),
        })
    }

    /// Makes a directory, unless it is there. Its owner may always use it; others
    /// as far as `mode` and the umask let them.
    pub fn directory(&self, name: &Name, mode: u32) -> io::Result<()> {
        let (last, above) = split(name)?;
        let dir = self.enter(above)?;
        match fs::mkdirat(&dir, last, Mode::from_raw_mode(mode & 0o777 | 0o700)) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => open_directory(&dir, last).map(drop),
            Err(error) => Err(error.into()),
        }
    }

    /// Begins a file of a mode, as far as the umask lets it. What has its name
    /// already is in the way unless it may be overwritten, and a directory is even
    /// then.
    pub fn create(&self, name: &Name, mode: u32, overwrite: bool) -> io::Result<Partial> {
        let unfinished = self.begin(name, overwrite)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode & 0o777);
        let file = fs::openat(&unfinished.dir, &unfinished.temporary, flags, mode)?;
        Ok(Partial {
            unfinished,
            full_name: name.bytes(),
            file: file.into(),
        })
    }

    /// All of a file is there: gives it its name.
    pub fn keep(&mut self, file: Partial) -> io::Result<()> {
        let id = FileId::of(&fs::fstat(&file.file)?);
        file.unfinished.publish()?;
        self.made.add(file.full_name, id);
        Ok(())
    }

    /// Makes a hard link to a file that was made here and is still what it was; says
    /// how large that is.
    pub fn link(&mut self, name: &Name, to: &Name, overwrite: bool) -> Result<u64, LinkError> {
        let wanted = self.made.get(&to.bytes()).ok_or(LinkError::NotMade)?;
        let (last, above) = split(to)?;
        let from = self.enter(above)?;
        let unfinished = self.begin(name, overwrite)?;
        let (dir, temporary) = (&unfinished.dir, &unfinished.temporary);
        // Without the flag that would, it follows no symbolic link.
        match fs::linkat(&from, last, dir, temporary, AtFlags::empty()) {
            Err(Errno::NOENT) => return Err(LinkError::NotMade),
            other => other?,
        }
        // Looked at where nobody expects it, so that it is not exchanged meanwhile.
        let about = fs::statat(dir, temporary, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileId::of(&about) != wanted {
            return Err(LinkError::NotMade);
        }
        let size = u64::try_from(about.st_size).unwrap_or_default();
        unfinished.publish()?;
        self.made.add(name.bytes(), wanted);
        Ok(size)
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, name: &Name, target: &[u8], overwrite: bool) -> io::Result<()> {
        let (last, above) = split(name)?;
        let dir = self.enter(above)?;
        vacant(&dir, last, overwrite)?;
        if overwrite {
            match fs::unlinkat(&dir, last, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(fs::symlinkat(OsStr::from_bytes(target), &dir, last)?)
    }

    /// A place for a file of this name, if the name may be used.
    fn begin(&self, name: &Name, overwrite: bool) -> io::Result<Unfinished> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (last, above) = split(name)?;
        let dir = self.enter(above)?;
        vacant(&dir, last, overwrite)?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Ok(Unfinished {
            dir,
            temporary: format!(".vmmctl-{}-{number}.part", std::process::id()).into(),
            name: last.to_owned(),
            overwrite,
            published: false,
        })
    }

    /// Opens directories one below the other. None is made: an archive has each
    /// before what is in it, and a name of a thousand parts would make a thousand.
    fn enter(&self, parts: &[OsString]) -> io::Result<OwnedFd> {
        let mut dir = self.dir.try_clone()?;
        for part in parts {
            dir = open_directory(&dir, part)?;
        }
        Ok(dir)
    }
}

/// Opens a directory below another, and nothing that a link leads to.
fn open_directory(dir: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match fs::openat(dir, name, flags, Mode::empty()) {
        // What a link is called here differs between file systems.
        Err(Errno::LOOP) => Err(Errno::NOTDIR.into()),
        other => Ok(other?),
    }
}

/// Why a hard link was not made.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It leads to something else than a file that was made here.
    #[error("a hard link to something that this copy did not make")]
    NotMade,
    /// The file system refuses.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for LinkError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// A file, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId(u64, u64);

impl FileId {
    fn of(about: &Stat) -> Self {
        Self(about.st_dev, about.st_ino)
    }
}

/// The regular files that were made, by name: what hard links may lead to.
#[derive(Debug, Default)]
struct Made {
    files: HashMap<Vec<u8>, FileId>,
    bytes: usize,
}

impl Made {
    fn add(&mut self, name: Vec<u8>, id: FileId) {
        let size = name.len().saturating_add(MADE_OVERHEAD);
        // Beyond the limit a file is there all the same, and no link leads to it.
        if self.bytes.saturating_add(size) <= MAX_MADE {
            self.bytes = self.bytes.saturating_add(size);
            self.files.insert(name, id);
        }
    }

    fn get(&self, name: &[u8]) -> Option<FileId> {
        self.files.get(name).copied()
    }
}

fn split(name: &Name) -> io::Result<(&OsStr, &[OsString])> {
    let (last, above) = name.0.split_last().ok_or(Errno::ISDIR)?;
    Ok((last, above))
}

/// Whether a name may be used.
fn vacant(dir: &OwnedFd, name: &OsStr, overwrite: bool) -> io::Result<()> {
    match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(about) if FileType::from_raw_mode(about.st_mode).is_dir() => Err(Errno::ISDIR.into()),
        Ok(_) if overwrite => Ok(()),
        Ok(_) => Err(Errno::EXIST.into()),
    }
}

/// A name that something gets when it is whole; until then it has another, and is
/// gone if it is dropped.
#[derive(Debug)]
struct Unfinished {
    dir: OwnedFd,
    temporary: OsString,
    name: OsString,
    overwrite: bool,
    published: bool,
}

impl Unfinished {
    fn publish(mut self) -> io::Result<()> {
        let (dir, from, to) = (&self.dir, &self.temporary, &self.name);
        if self.overwrite {
            fs::renameat(dir, from, dir, to)?;
            // Two names of one file stay as they are: then the other goes in the end.
            self.published = matches!(
                fs::statat(dir, from, AtFlags::SYMLINK_NOFOLLOW),
                Err(Errno::NOENT)
            );
            return Ok(());
        }
        match fs::renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE) {
            Ok(()) => {
                self.published = true;
                Ok(())
            }
            // Not every file system can. A link does not replace either, and
            // the other name goes when this is dropped.
            Err(Errno::INVAL | Errno::NOSYS) => {
                Ok(fs::linkat(dir, from, dir, to, AtFlags::empty())?)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::unlinkat(&self.dir, &self.temporary, AtFlags::empty());
        }
    }
}

/// A file that is being written; it is gone if it is dropped before it is kept.
#[derive(Debug)]
pub struct Partial {
    unfinished: Unfinished,
    full_name: Vec<u8>,
    file: File,
}

impl Write for Partial {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests;
