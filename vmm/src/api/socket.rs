// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where control sockets are, and that nobody else gets at them.
//!
//! ```text
//! $XDG_RUNTIME_DIR/vmm/NAME/api.sock     else
//! /run/vmm/NAME/api.sock                 for root, else
//! $TMPDIR/vmm-UID/NAME/api.sock
//! ```
//!
//! The directories are this user's and closed to others; the socket is too. Beside
//! it is `vsock.sock`, or a link to what `--vsock` says.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::sys;

/// The socket's name in its VM's directory.
const SOCKET: &str = "api.sock";
/// The name of the socket for Hyper-V sockets there.
pub const VSOCK: &str = "vsock.sock";
/// A Unix socket's path has room for so many bytes.
const MAX_PATH: usize = 107;
/// Readable, writable and searchable by the owner only.
const PRIVATE: u32 = 0o700;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("{flag}: {path} is in use by another process")]
    InUse {
        /// Which flag moves the socket.
        flag: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// The path does not fit into a socket address.
    #[error("{flag}: {path} is longer than the {MAX_PATH} bytes of a socket's path")]
    TooLong {
        /// Which flag moves the socket.
        flag: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// The directory for all VMs belongs to somebody else, or is open to others.
    #[error("control socket: {0} is not a directory of this user's alone")]
    NotPrivate(PathBuf),
    /// Something else.
    #[error("control socket: {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A bound control socket; dropping it removes its files.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    /// The directory that was made for it.
    dir: Option<PathBuf>,
    /// Links that were put there.
    links: Vec<PathBuf>,
}

/// Where VMs of this user may be found, best place first.
pub fn places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        places.push(Path::new(&dir).join("vmm"));
    }
    let run = PathBuf::from("/run/vmm");
    if sys::user_id() == 0 && !places.contains(&run) {
        places.push(run);
    }
    places.push(std::env::temp_dir().join(format!("vmm-{}", sys::user_id())));
    places
}

/// The sockets of this user's VMs, running or left behind, by name.
pub fn known() -> Vec<(String, PathBuf)> {
    known_in(&places())
}

/// The same, of VMs in these places.
pub(crate) fn known_in(places: &[PathBuf]) -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    // What somebody else has put into a place for all users is no VM of ours.
    let own = places
        .iter()
        .filter(|place| is_private(place).unwrap_or(false));
    for entry in own.flat_map(fs::read_dir).flatten().flatten() {
        let path = entry.path().join(SOCKET);
        if let (Ok(name), true) = (entry.file_name().into_string(), path.exists()) {
            found.push((name, path));
        }
    }
    found.sort();
    found
}

/// A VM's name as a user may write it: it becomes a directory's.
pub fn valid_name(name: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        return Err("use letters, digits, '.', '-' and '_', and no '.' at the start".into());
    }
    Ok(name.to_owned())
}

impl ControlSocket {
    /// Binds the socket of the VM `name`, at `path` or in its own directory.
    pub fn bind(name: &str, path: Option<&Path>) -> Result<(UnixListener, Self), SocketError> {
        if let Some(path) = path {
            return Self::bind_at("--api-socket", path);
        }
        let mut last = SocketError::NotPrivate(std::env::temp_dir());
        for place in places() {
            match in_place(&place, name) {
                Ok(bound) => return Ok(bound),
                Err(error @ SocketError::InUse { .. }) => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Binds a socket at a path that `flag` has given, or would change.
    pub fn bind_at(flag: &'static str, path: &Path) -> Result<(UnixListener, Self), SocketError> {
        let listener = bind(flag, path)?;
        let path = path.to_owned();
        Ok((listener, Self::new(path, None)))
    }

    fn new(path: PathBuf, dir: Option<PathBuf>) -> Self {
        let links = Vec::new();
        Self { path, dir, links }
    }

    /// Puts a link into the directory that was made for it, if one was.
    pub fn link(&mut self, name: &str, to: &Path) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let link = dir.join(name);
        let id = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
        if id(&link).is_some_and(|found| id(to) == Some(found)) {
            return Ok(());
        }
        match fs::symlink_metadata(&link) {
            // The VM of that name is this one: it was left behind.
            Ok(_) => fs::remove_file(&link)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        symlink(std::path::absolute(to)?, &link)?;
        self.links.push(link);
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        for path in self.links.iter().chain([&self.path]) {
            let _ = fs::remove_file(path);
        }
        if let Some(dir) = &self.dir {
            // Stays if somebody has put something else there.
            let _ = fs::remove_dir(dir);
        }
    }
}

fn in_place(place: &Path, name: &str) -> Result<(UnixListener, ControlSocket), SocketError> {
    let dir = dir_in(place, name)?;
    let path = dir.join(SOCKET);
    let listener = bind("--name", &path)?;
    Ok((listener, ControlSocket::new(path, Some(dir))))
}

/// A VM's directory, made if it is not there.
pub(crate) fn dir_in(place: &Path, name: &str) -> Result<PathBuf, SocketError> {
    private_dir(place)?;
    let dir = place.join(name);
    private_dir(&dir)?;
    Ok(dir)
}

/// Makes a directory that only this user can use, or checks that it is one.
fn private_dir(path: &Path) -> Result<(), SocketError> {
    let fail = |source| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    match DirBuilder::new().mode(PRIVATE).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if is_private(path).map_err(fail)? {
                Ok(())
            } else {
                Err(SocketError::NotPrivate(path.to_owned()))
            }
        }
        Err(error) => Err(fail(error)),
    }
}

/// Whether this is a directory that only this user can use. Not through a link:
/// somebody else could have put it there.
fn is_private(path: &Path) -> io::Result<bool> {
    let meta = fs::symlink_metadata(path)?;
    let others = meta.permissions().mode() & 0o077;
    Ok(meta.is_dir() && meta.uid() == sys::user_id() && others == 0)
}

fn bind(flag: &'static str, path: &Path) -> Result<UnixListener, SocketError> {
    if path.as_os_str().len() > MAX_PATH {
        let path = path.to_owned();
        return Err(SocketError::TooLong { flag, path });
    }
    let fail = |source| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    if let Ok(meta) = fs::symlink_metadata(path) {
        if !meta.file_type().is_socket() {
            // A connection to a plain file is refused too; it is not ours to remove.
            return Err(fail(io::ErrorKind::AlreadyExists.into()));
        }
        match sys::connect_unix(path) {
            Ok(_) => {
                let path = path.to_owned();
                return Err(SocketError::InUse { flag, path });
            }
            // Somebody is there who takes no clients.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let path = path.to_owned();
                return Err(SocketError::InUse { flag, path });
            }
            // Left behind by a process that was killed.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(fail)?;
            }
            Err(error) => return Err(fail(error)),
        }
    }
    // The mode is right from the start: there is no moment to slip in.
    let listener = sys::with_umask(0o177, || UnixListener::bind(path)).map_err(fail)?;
    // Those that are accepted do as it does.
    sys::refuse_descriptors(&listener);
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("vmm-socket-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        dir
    }

    #[test]
    fn clients_can_send_no_descriptors() {
        let path = scratch("rights").join("s");
        let (listener, _socket) = ControlSocket::bind("x", Some(&path)).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        match client.send_with_fd(&b"x"[..], listener.as_raw_fd()) {
            Err(error) => assert_eq!(error.errno(), libc::EPERM),
            // A kernel before 6.16.
            Ok(_) => drop(server.read(&mut [0])),
        }
    }

    #[test]
    fn the_socket_is_closed_to_others_and_goes_with_its_owner() {
        let path = scratch("mode").join("s");
        let (_listener, socket) = ControlSocket::bind("x", Some(&path)).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_in_use_is_refused_and_one_left_behind_is_replaced() {
        let path = scratch("use").join("s");
        let (listener, socket) = ControlSocket::bind("x", Some(&path)).unwrap();
        assert!(matches!(
            ControlSocket::bind("y", Some(&path)),
            Err(SocketError::InUse { .. })
        ));
        drop(listener);
        let (_listener, _second) = ControlSocket::bind("z", Some(&path)).unwrap();
        drop(socket);
    }

    #[test]
    fn a_link_goes_with_the_directory_it_is_in() {
        let dir = scratch("link");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        let (_listener, mut socket) = in_place(&dir, "x").unwrap();
        for to in ["/somewhere/else", "/somewhere"] {
            socket.link(VSOCK, Path::new(to)).unwrap();
            let link = dir.join("x").join(VSOCK);
            assert_eq!(fs::read_link(link).unwrap(), Path::new(to));
        }
        // What is there itself needs none.
        let own = dir.join("x").join("own");
        fs::write(&own, "").unwrap();
        socket.link("own", &own).unwrap();
        assert!(fs::symlink_metadata(&own).unwrap().is_file());
        fs::remove_file(&own).unwrap();
        drop(socket);
        assert!(!dir.join("x").exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let path = scratch("file").join("s");
        fs::write(&path, "precious").unwrap();
        assert!(ControlSocket::bind("x", Some(&path)).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn directories_open_to_others_are_not_used() {
        let dir = scratch("open");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(private_dir(&dir), Err(SocketError::NotPrivate(_))));
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(private_dir(&dir).is_ok());
    }

    #[test]
    fn a_vm_in_a_place_of_others_is_not_found() {
        let dir = scratch("foreign");
        fs::create_dir(dir.join("web")).unwrap();
        fs::write(dir.join("web").join(SOCKET), "").unwrap();
        let places = [dir.clone()];
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(known_in(&places).is_empty());
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(known_in(&places).len(), 1);
        let link = dir.with_extension("link");
        let _ = fs::remove_file(&link);
        symlink(&dir, &link).unwrap();
        assert!(known_in(std::slice::from_ref(&link)).is_empty());
        fs::remove_file(link).unwrap();
    }

    #[test]
    fn names_are_plain_and_paths_fit() {
        for name in ["", ".", "..", "a/b", "a b", "\u{e9}", ".hidden"] {
            assert!(valid_name(name).is_err(), "{name}");
        }
        let long = scratch("long").join("x".repeat(120));
        assert!(matches!(
            ControlSocket::bind("x", Some(&long)),
            Err(SocketError::TooLong { .. })
        ));
    }
}
