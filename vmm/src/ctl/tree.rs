// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A directory of this host into which a guest's files go, and out of which no
//! name of the guest's leads.
//!
//! A name is taken apart, and each part is opened below the one before, never
//! through a symbolic link: neither one that the guest has sent nor one that
//! was there. A file is written under another name and gets its own when all of
//! it is there, so that what ends the copy leaves no half of one.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

/// Linux' own limit of a path.
const MAX_NAME: usize = 4096;

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
pub struct Tree(OwnedFd);

impl Tree {
    /// A directory of the user's choice; it may be a link itself.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self(fs::open(path, flags, Mode::empty())?))
    }

    /// Makes a directory, unless it is there, and those above.
    pub fn directory(&self, name: &Name) -> io::Result<()> {
        self.enter(&name.0).map(drop)
    }

    /// Begins a file. What has its name already is in the way unless it may be
    /// overwritten, and a directory is even then.
    pub fn create(&self, name: &Name, executable: bool, overwrite: bool) -> io::Result<Partial> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (last, above) = split(name)?;
        let dir = self.enter(above)?;
        vacant(&dir, last, overwrite)?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let unfinished = format!(".vmmctl-{}-{number}.part", std::process::id());
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        // Who else may read or write it is for the umask to say; nobody gets
        // the rights of its owner by running it.
        let mode = if executable { 0o777 } else { 0o666 };
        let file = fs::openat(&dir, &unfinished, flags, Mode::from_raw_mode(mode))?;
        Ok(Partial {
            dir,
            unfinished: unfinished.into(),
            name: last.to_owned(),
            file: file.into(),
            overwrite,
            kept: false,
        })
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

    /// A regular file that is there.
    pub fn read(&self, name: &Name) -> io::Result<File> {
        let (last, above) = split(name)?;
        let dir = self.enter(above)?;
        // A FIFO would wait for somebody who writes.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(fs::openat(&dir, last, flags, Mode::empty())?);
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(Errno::INVAL.into())
        }
    }

    /// Opens directories one below the other, making those that are missing.
    fn enter(&self, parts: &[OsString]) -> io::Result<OwnedFd> {
        let mut dir = self.0.try_clone()?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for part in parts {
            let open = || fs::openat(&dir, part, flags, Mode::empty());
            dir = match open() {
                Err(Errno::NOENT) => {
                    fs::mkdirat(&dir, part, Mode::from_raw_mode(0o777))?;
                    open()?
                }
                // What a link is called here differs between file systems.
                Err(Errno::LOOP) => return Err(Errno::NOTDIR.into()),
                other => other?,
            };
        }
        Ok(dir)
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

/// A file that is being written; it is gone if it is dropped before it is kept.
#[derive(Debug)]
pub struct Partial {
    dir: OwnedFd,
    /// What it is called meanwhile.
    unfinished: OsString,
    name: OsString,
    file: File,
    overwrite: bool,
    kept: bool,
}

impl Partial {
    /// All of it is there: gives it its name.
    pub fn keep(mut self) -> io::Result<()> {
        let (dir, from, to) = (&self.dir, &self.unfinished, &self.name);
        if self.overwrite {
            fs::renameat(dir, from, dir, to)?;
            self.kept = true;
            return Ok(());
        }
        match fs::renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE) {
            Ok(()) => {
                self.kept = true;
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

impl Write for Partial {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::unlinkat(&self.dir, &self.unfinished, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs as std_fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::parse(text.as_bytes()).unwrap()
    }

    /// A directory with one in it, and a neighbour that nothing may touch.
    fn place(test: &str) -> (PathBuf, Tree) {
        let dir = std::env::temp_dir().join(format!("tree-{test}-{}", std::process::id()));
        let _ = std_fs::remove_dir_all(&dir);
        std_fs::create_dir_all(dir.join("in")).unwrap();
        std_fs::create_dir_all(dir.join("out")).unwrap();
        let tree = Tree::open(&dir.join("in")).unwrap();
        (dir, tree)
    }

    fn put(tree: &Tree, to: &str, data: &[u8], overwrite: bool) -> io::Result<()> {
        let mut file = tree.create(&name(to), false, overwrite)?;
        file.write_all(data)?;
        file.keep()
    }

    fn errno(result: io::Result<()>) -> Option<Errno> {
        result.err().and_then(|error| Errno::from_io_error(&error))
    }

    fn files(dir: &Path) -> Vec<String> {
        let entries = std_fs::read_dir(dir).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn names_lead_down_or_are_refused() {
        assert_eq!(name("./a//b/./c/").bytes(), b"a/b/c");
        assert!(name("./").is_top() && name("").is_top());
        assert_eq!(name("x").below(OsStr::new("top")).bytes(), b"top/x");
        let refused = |name: &[u8]| Name::parse(name).unwrap_err();
        assert_eq!(refused(b"/etc/passwd"), NameError::Absolute);
        for up in ["..", "../x", "a/../b", "a/..", "./.."] {
            assert_eq!(refused(up.as_bytes()), NameError::Up, "{up}");
        }
        assert_eq!(refused(b"a\0b"), NameError::Nul);
        assert_eq!(refused(&[b'a'; 5000]), NameError::TooLong);
        assert_eq!(name("...").bytes(), b"...");
    }

    #[test]
    fn links_stay_below_the_top() {
        let holds = |link: &str, target: &str| name(link).holds_link(target.as_bytes());
        for (link, target) in [
            ("top/a", "b"),
            ("top/a", "./b/c"),
            ("top/d/a", "../b"),
            ("top/d/e/a", "../../b/c"),
        ] {
            assert!(holds(link, target), "{link} -> {target}");
        }
        for (link, target) in [
            ("top/a", "/etc/passwd"),
            ("top/a", ".."),
            ("top/a", "../b"),
            ("top/d/a", "../../b"),
            ("top/d/a", "x/../../../y"),
            ("top/d/a", "../x/../y"),
            ("top/a", ""),
            ("top/a", "b\0c"),
            ("top", "b/../.."),
        ] {
            assert!(!holds(link, target), "{link} -> {target}");
        }
    }

    #[test]
    fn a_file_has_its_name_when_it_is_whole() {
        let (dir, tree) = place("whole");
        let mut file = tree.create(&name("d/e/f"), true, false).unwrap();
        file.write_all(b"half").unwrap();
        assert!(!dir.join("in/d/e/f").exists());
        drop(file);
        assert_eq!(files(&dir.join("in/d/e")), Vec::<String>::new());
        let mut file = tree.create(&name("d/e/f"), true, false).unwrap();
        file.write_all(b"whole").unwrap();
        file.keep().unwrap();
        assert_eq!(files(&dir.join("in/d/e")), ["f"]);
        let mode = std_fs::metadata(dir.join("in/d/e/f")).unwrap();
        assert_eq!(mode.permissions().mode() & 0o7100, 0o100);
        std_fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_is_there_is_overwritten_only_when_it_may_be() {
        let (dir, tree) = place("over");
        put(&tree, "f", b"old", false).unwrap();
        assert_eq!(errno(put(&tree, "f", b"new", false)), Some(Errno::EXIST));
        assert_eq!(std_fs::read(dir.join("in/f")).unwrap(), b"old");
        put(&tree, "f", b"new", true).unwrap();
        assert_eq!(std_fs::read(dir.join("in/f")).unwrap(), b"new");
        tree.directory(&name("d")).unwrap();
        assert_eq!(errno(put(&tree, "d", b"", true)), Some(Errno::ISDIR));
        assert_eq!(errno(put(&tree, "f/x", b"", true)), Some(Errno::NOTDIR));
        // One that came into being meanwhile is not replaced either.
        let mut late = tree.create(&name("late"), false, false).unwrap();
        late.write_all(b"ours").unwrap();
        std_fs::write(dir.join("in/late"), b"theirs").unwrap();
        assert_eq!(errno(late.keep()), Some(Errno::EXIST));
        assert_eq!(std_fs::read(dir.join("in/late")).unwrap(), b"theirs");
        let mut left = files(&dir.join("in"));
        left.sort();
        assert_eq!(left, ["d", "f", "late"]);
        std_fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn no_link_is_followed() {
        let (dir, tree) = place("link");
        std_fs::write(dir.join("out/secret"), b"secret").unwrap();
        // What a guest could send, and what could be there.
        tree.symlink(&name("a"), b"../out", false).unwrap();
        symlink(dir.join("out/secret"), dir.join("in/b")).unwrap();
        assert_eq!(errno(put(&tree, "a/x", b"", true)), Some(Errno::NOTDIR));
        assert_eq!(errno(tree.directory(&name("a/x"))), Some(Errno::NOTDIR));
        assert_eq!(errno(tree.directory(&name("a"))), Some(Errno::NOTDIR));
        assert!(tree.read(&name("a/secret")).is_err());
        assert!(tree.read(&name("b")).is_err());
        assert_eq!(errno(put(&tree, "b", b"", false)), Some(Errno::EXIST));
        // The link is replaced, and not what it leads to.
        put(&tree, "b", b"mine", true).unwrap();
        assert!(dir.join("in/b").symlink_metadata().unwrap().is_file());
        assert_eq!(std_fs::read(dir.join("out/secret")).unwrap(), b"secret");
        assert_eq!(files(&dir.join("out")), ["secret"]);
        std_fs::remove_dir_all(dir).unwrap();
    }

    proptest! {
        #[test]
        fn no_part_of_a_name_leads_elsewhere(bytes in proptest::collection::vec(
            prop_oneof![Just(b'.'), Just(b'/'), Just(b'a'), any::<u8>()], 0..20)) {
            if let Ok(name) = Name::parse(&bytes) {
                for part in &name.0 {
                    prop_assert!(!part.is_empty() && part != "." && part != "..");
                    prop_assert!(!part.as_bytes().contains(&b'/'));
                }
            }
        }
    }
}
