// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names of files that the guest's daemons take as they are.
//!
//! | Daemon | Rule | Otherwise |
//! |---|---|---|
//! | any | absolute, 259 UTF-16 units each of directory and name | no room |
//! | `hv_fcopy_daemon`, kernels up to 6.9 | 259 bytes of UTF-8 in all | cut without a word |
//! | `hv_fcopy_uio_daemon`, from 6.10 on | ASCII, 129 characters each | other characters |
//!
//! What a daemon would garble is refused before anything is sent.

use std::fmt;

/// UTF-16 units of a field, without the terminating zero.
const MAX_UNITS: usize = 259;
/// Bytes of the path that the older daemon puts together.
const MAX_BYTES: usize = 259;
/// Characters of a field that the newer daemon reads right.
const MAX_ASCII: usize = 129;

/// Which daemon the guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FcopyDaemon {
    /// `hv_fcopy_daemon`, behind a driver of the kernel: up to 6.9.
    Driver,
    /// `hv_fcopy_uio_daemon`, on the channel itself: from 6.10 on.
    Uio,
}

/// Why a file cannot have this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not absolute.
    #[error("the path in the guest has to begin with a '/'")]
    NotAbsolute,
    /// Ends in `/`, `.` or `..`.
    #[error("the path in the guest ends without a file's name")]
    NoName,
    /// A zero in it.
    #[error("a path cannot have a zero character in it")]
    Zero,
    /// More than the message has room for.
    #[error("the {what} is {units} UTF-16 units long, and 259 are the most")]
    TooLong {
        /// Directory or file name.
        what: &'static str,
        /// Its length.
        units: usize,
    },
    /// The older daemon would cut it.
    #[error("the path is {bytes} bytes long, and the guest's hv_fcopy_daemon cuts it after 259")]
    Cut {
        /// Its length.
        bytes: usize,
    },
    /// The newer daemon would write an X.
    #[error("the guest's hv_fcopy_uio_daemon takes ASCII only, and writes other names than these")]
    NotAscii,
    /// The newer daemon would read on into other fields.
    #[error(
        "the {what} is {len} characters long, and the guest's hv_fcopy_uio_daemon takes 129 at most"
    )]
    TooLongForUio {
        /// Directory or file name.
        what: &'static str,
        /// Its length.
        len: usize,
    },
}

/// A file in the guest: a directory, which ends in `/`, and a name.
///
/// ```
/// use ics_devices::fcopy::{FcopyDaemon, Target};
/// let target = Target::new("/etc/motd")?;
/// assert_eq!((target.directory(), target.name()), ("/etc/", "motd"));
/// assert!(Target::new("/etc/").is_err() && Target::new("motd").is_err());
/// assert!(Target::new("/srv/ü")?.check(FcopyDaemon::Uio).is_err());
/// # Ok::<(), ics_devices::fcopy::NameError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    directory: String,
    name: String,
}

impl Target {
    /// Checks what holds for all daemons.
    pub fn new(path: &str) -> Result<Self, NameError> {
        if path.contains('\0') {
            return Err(NameError::Zero);
        }
        if !path.starts_with('/') {
            return Err(NameError::NotAbsolute);
        }
        let (directory, name) = path.rsplit_once('/').ok_or(NameError::NotAbsolute)?;
        if matches!(name, "" | "." | "..") {
            return Err(NameError::NoName);
        }
        let directory = format!("{directory}/");
        for (what, text) in [("directory", directory.as_str()), ("file name", name)] {
            let units = text.encode_utf16().count();
            if units > MAX_UNITS {
                return Err(NameError::TooLong { what, units });
            }
        }
        Ok(Self {
            directory,
            name: name.into(),
        })
    }

    /// Checks what holds for one of them.
    pub fn check(&self, daemon: FcopyDaemon) -> Result<(), NameError> {
        match daemon {
            FcopyDaemon::Driver => {
                let bytes = self.directory.len() + 1 + self.name.len();
                if bytes > MAX_BYTES {
                    return Err(NameError::Cut { bytes });
                }
            }
            FcopyDaemon::Uio => {
                for (what, text) in [("directory", &self.directory), ("file name", &self.name)] {
                    let len = text.len();
                    if !text.is_ascii() {
                        return Err(NameError::NotAscii);
                    }
                    if len > MAX_ASCII {
                        return Err(NameError::TooLongForUio { what, len });
                    }
                }
            }
        }
        Ok(())
    }

    /// The directory itself: exists if it does.
    pub(super) fn of_directory(&self) -> Self {
        Self {
            directory: self.directory.clone(),
            name: ".".into(),
        }
    }

    /// A file that every guest has.
    pub(super) fn root() -> Self {
        Self {
            directory: "/".into(),
            name: ".".into(),
        }
    }

    /// A file that no guest has, in a directory that none has.
    pub(super) fn nowhere() -> Self {
        Self {
            directory: "/.vmbus-no-such-directory/".into(),
            name: "no-such-file".into(),
        }
    }

    /// The directory, with a `/` at its end.
    pub fn directory(&self) -> &str {
        &self.directory
    }

    /// The name in it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.directory, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_without_a_file_in_them_are_refused() {
        assert_eq!(Target::new("a"), Err(NameError::NotAbsolute));
        assert_eq!(Target::new(""), Err(NameError::NotAbsolute));
        for path in ["/", "/a/", "/a/.", "/a/..", "/.."] {
            assert_eq!(Target::new(path), Err(NameError::NoName), "{path}");
        }
        assert_eq!(Target::new("/a\0b"), Err(NameError::Zero));
        assert_eq!(Target::new("/a").unwrap().directory(), "/");
    }

    #[test]
    fn each_daemon_has_its_own_limits() {
        use FcopyDaemon::{Driver, Uio};
        let name = |len| Target::new(&format!("/d/{}", "n".repeat(len)));
        assert!(name(129).unwrap().check(Uio).is_ok());
        let long = name(130).unwrap();
        let error = long.check(Uio).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the file name is 130 characters long, and the guest's hv_fcopy_uio_daemon takes 129 \
             at most"
        );
        assert!(long.check(Driver).is_ok());
        // "/d/" + "/" + name
        assert!(name(255).unwrap().check(Driver).is_ok());
        assert_eq!(
            name(256).unwrap().check(Driver),
            Err(NameError::Cut { bytes: 260 })
        );
        assert!(matches!(
            name(260),
            Err(NameError::TooLong { units: 260, .. })
        ));
        let wide = Target::new("/d/\u{20ac}").unwrap();
        assert!(wide.check(Driver).is_ok());
        assert_eq!(wide.check(Uio), Err(NameError::NotAscii));
        let deep = Target::new(&format!("/{}/n", "d".repeat(128))).unwrap();
        assert!(deep.check(Uio).is_err());
    }
}
