// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A service of this host: one Unix socket for each VM that it is for.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, fchmod};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Address, ServiceId, VmId, is_listening, resolved, running_in};
use crate::api::socket::{VSOCK, dir_in, places, valid_name};
use crate::vsock::peer;

/// Between two looks for VMs that have started or ended. A kernel boots longer.
const LOOK: Duration = Duration::from_millis(250);
/// Connections that wait to be accepted.
const PENDING: i32 = 128;

/// Who has connected.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The VM's name; `None` if only its socket is known.
    pub vm: Option<String>,
    /// The VM's socket.
    pub socket: PathBuf,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.vm {
            Some(name) => name.fmt(f),
            None => self.socket.display().fmt(f),
        }
    }
}

/// A service that guests connect to.
///
/// For each VM that it is for there is a Unix socket beside the VM's own. One that
/// is left behind by a program that was killed is replaced, one where somebody
/// listens is not. They are removed with the listener.
#[derive(Debug)]
pub struct Listener {
    places: Vec<PathBuf>,
    vm: VmId,
    service: ServiceId,
    epoll: Epoll,
    next: u64,
    /// By token.
    bound: BTreeMap<u64, Bound>,
    looked: Instant,
}

impl Listener {
    /// Listens for a service.
    ///
    /// A VM that is named need not run yet. With [`VmId::Wildcard`] or
    /// [`VmId::Children`] VMs that start later are found by
    /// [`accept`](Self::accept), within a quarter of a second. Fails with
    /// [`AddrInUse`](io::ErrorKind::AddrInUse) if another program has the service
    /// for one of the VMs that run.
    pub fn bind(address: &Address) -> io::Result<Self> {
        Self::bind_in(places(), address)
    }

    pub(super) fn bind_in(places: Vec<PathBuf>, address: &Address) -> io::Result<Self> {
        let mut listener = Self {
            places,
            vm: address.vm.clone(),
            service: address.service,
            epoll: Epoll::new()?,
            next: 0,
            bound: BTreeMap::new(),
            looked: Instant::now(),
        };
        for peer in listener.peers()? {
            listener.add(peer)?;
        }
        Ok(listener)
    }

    /// The Unix sockets that it has now.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.bound.values().map(|bound| bound.path.as_path())
    }

    /// Waits for the next connection, and says which VM it is from.
    pub fn accept(&mut self) -> io::Result<(UnixStream, Peer)> {
        loop {
            if let Some(accepted) = self.accept_within(Some(LOOK))? {
                return Ok(accepted);
            }
        }
    }

    /// The same, but gives up after a while; waits for ever without a limit.
    pub fn accept_within(
        &mut self,
        limit: Option<Duration>,
    ) -> io::Result<Option<(UnixStream, Peer)>> {
        let end = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut ready = [EpollEvent::default()];
        loop {
            self.look()?;
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let wait = match &self.vm {
                VmId::Socket(_) => left,
                _ => Some(left.unwrap_or(LOOK).min(LOOK)),
            };
            let wait = wait.map_or(-1, |wait| {
                i32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
            });
            match self.epoll.wait(wait, &mut ready) {
                Ok(0) => {}
                Ok(_) => {
                    let token = ready.first().map_or(0, EpollEvent::data);
                    if let Some(accepted) = self.take(token)? {
                        return Ok(Some(accepted));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
        }
    }

    fn take(&self, token: u64) -> io::Result<Option<(UnixStream, Peer)>> {
        let Some(bound) = self.bound.get(&token) else {
            return Ok(None);
        };
        match bound.listener.accept() {
            Ok((stream, _)) => Ok(Some((stream, bound.peer.clone()))),
            // Who came has gone again.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::Interrupted
                        | io::ErrorKind::ConnectionAborted
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whom the service is for now.
    fn peers(&self) -> io::Result<Vec<Peer>> {
        let peer = |vm: Option<String>, socket| Peer { vm, socket };
        Ok(match &self.vm {
            VmId::Socket(path) => vec![peer(None, path.clone())],
            VmId::Wildcard | VmId::Children => running_in(&self.places)
                .into_iter()
                .map(|vm| peer(Some(vm.name), vm.socket))
                .collect(),
            VmId::Name(name) => {
                let running = running_in(&self.places);
                let socket = match running.into_iter().find(|vm| vm.name == *name) {
                    Some(vm) => vm.socket,
                    // Where it will be.
                    None => self.place(name)?.join(VSOCK),
                };
                vec![peer(Some(name.clone()), resolved(&socket))]
            }
        })
    }

    /// The directory that a VM will have, made if it is not there.
    fn place(&self, name: &str) -> io::Result<PathBuf> {
        valid_name(name).map_err(|why| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("a VM's name: {why}"))
        })?;
        let mut last = None;
        for place in &self.places {
            match dir_in(place, name) {
                Ok(dir) => return Ok(dir),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| io::ErrorKind::NotFound.into(), io::Error::other))
    }

    /// Looks for VMs that have started or ended, if it is time.
    fn look(&mut self) -> io::Result<()> {
        if matches!(self.vm, VmId::Socket(_)) || self.looked.elapsed() < LOOK {
            return Ok(());
        }
        let peers = self.peers()?;
        self.looked = Instant::now();
        // One that was removed or replaced is not ours any more.
        self.bound
            .retain(|_, bound| peers.contains(&bound.peer) && bound.is_there());
        for peer in peers {
            let known = self.bound.values().any(|bound| bound.peer == peer);
            if !known && let Err(error) = self.add(peer) {
                log::debug!("hvsocket: {}: {error}", self.service);
            }
        }
        Ok(())
    }

    fn add(&mut self, peer: Peer) -> io::Result<()> {
        let bound = Bound::new(peer, self.service)?;
        let event = EpollEvent::new(EventSet::IN, self.next);
        let fd = bound.listener.as_raw_fd();
        self.epoll.ctl(ControlOperation::Add, fd, event)?;
        self.bound.insert(self.next, bound);
        self.next += 1;
        Ok(())
    }
}

/// A socket for one VM; dropping it removes its file.
#[derive(Debug)]
struct Bound {
    peer: Peer,
    listener: UnixListener,
    path: PathBuf,
    id: (u64, u64),
}

/// A socket that only this user can connect to, from its first moment on.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    net::listen(&socket, PENDING)?;
    Ok(socket.into())
}

impl Bound {
    fn new(peer_: Peer, service: ServiceId) -> io::Result<Self> {
        let path = peer(&peer_.socket, service);
        let in_words =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        remove_dead(&path).map_err(in_words)?;
        let listener = listen(&path).map_err(in_words)?;
        let id = id_of(&path).map_err(in_words)?;
        Ok(Self {
            peer: peer_,
            listener,
            path,
            id,
        })
    }

    /// Its file is there, and not another's.
    fn is_there(&self) -> bool {
        id_of(&self.path).is_ok_and(|id| id == self.id)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
        if let (Some(_), Some(dir)) = (&self.peer.vm, self.path.parent()) {
            // Only if nothing is in it: its VM has ended, or never ran.
            let _ = fs::remove_dir(dir);
        }
    }
}

fn id_of(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// Makes room for a socket, unless somebody listens there or it is no socket.
fn remove_dead(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(meta) if !meta.file_type().is_socket() || is_listening(path) => {
            Err(io::ErrorKind::AddrInUse.into())
        }
        Ok(_) => fs::remove_file(path),
    }
}
