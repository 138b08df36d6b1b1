// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hyper-V sockets for programs of this host: connect to a guest's service, or be
//! a service that guests connect to.
//!
//! ```text
//!  connect(VM, service) ─► its vsock.sock, "CONNECT 5000" ─► AF_VSOCK in the guest
//!  Listener (VM, service) ◄─ its vsock.sock_5000 ◄─ the guest's connect to CID 2
//! ```
//!
//! An [`Address`] is what `SOCKADDR_HV` is on Hyper-V: a VM and a service. Where
//! Hyper-V has special VM ids, there are these:
//!
//! | Hyper-V | Here | |
//! |---|---|---|
//! | a VM's id | [`VmId::Name`], [`VmId::Socket`] | a VM by its `--name`, or by its `--vsock` socket |
//! | `HV_GUID_WILDCARD`, `HV_GUID_CHILDREN` | [`VmId::Wildcard`], [`VmId::Children`] | to listen: all VMs of this user, those that start later too; to connect: the only one |
//! | `HV_GUID_PARENT`, `HV_GUID_LOOPBACK` | | nothing: they are a guest's |
//!
//! Every VM is the host's child, so wildcard and children are the same here.
//! What comes from a listener or a connection is a plain [`UnixStream`].
//!
//! ```no_run
//! use std::io::{Read, Write};
//! use vmm::hvsocket::{Address, Listener, VmId, connect};
//!
//! // A service of the guest `web`.
//! let mut stream = connect(&Address::new("web", 5000))?;
//! stream.write_all(b"hello")?;
//!
//! // A service for all guests.
//! let mut listener = Listener::bind(&Address::new(VmId::Wildcard, 6000))?;
//! let (mut stream, peer) = listener.accept()?;
//! println!("{peer} says:");
//! std::io::copy(&mut stream, &mut std::io::stdout())?;
//! # Ok::<(), std::io::Error>(())
//! ```

mod listener;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use vmbus::hvsock::{port_of, service_of_port};
pub use vmbus::wire::Guid;

use crate::api::socket::{VSOCK, known_in, places};
use crate::vsock::registry::parse_service;
pub use listener::{Listener, Peer};

/// More than any answer is long.
const MAX_ANSWER: usize = 200;
/// A guest has 4 s to take a connection; more than that is a VM that hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum VmId {
    /// All VMs of this user to listen, or the only one to connect.
    Wildcard,
    /// The same: every VM is a child of its host.
    Children,
    /// The VM of this name, also before it runs.
    Name(String),
    /// The VM with this socket (`vmm --vsock`), wherever that is.
    Socket(PathBuf),
}

impl From<&str> for VmId {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

impl From<&Path> for VmId {
    fn from(socket: &Path) -> Self {
        Self::Socket(socket.to_owned())
    }
}

/// Which service: a GUID, of which those of a certain form are vsock ports.
///
/// ```
/// use vmm::hvsocket::ServiceId;
/// let echo = ServiceId::from(5000);
/// assert_eq!(echo, "00001388-facb-11e6-bd58-64006a7986d3".parse()?);
/// assert_eq!((echo.port(), echo.to_string()), (Some(5000), "5000".into()));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(Guid);

impl ServiceId {
    /// The GUID.
    pub fn guid(&self) -> Guid {
        self.0
    }

    /// The vsock port that it is, if it is one.
    pub fn port(&self) -> Option<u32> {
        port_of(&self.0)
    }
}

impl From<u32> for ServiceId {
    fn from(port: u32) -> Self {
        Self(service_of_port(port))
    }
}

impl From<Guid> for ServiceId {
    fn from(guid: Guid) -> Self {
        Self(guid)
    }
}

impl FromStr for ServiceId {
    type Err = io::Error;

    /// A port, or a GUID.
    fn from_str(text: &str) -> io::Result<Self> {
        let guid = parse_service(text);
        guid.map(Self)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
    }
}

impl fmt::Display for ServiceId {
    /// The port if it is one, else the GUID: as `CONNECT` and listeners' paths have it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port() {
            Some(port) => port.fmt(f),
            None => self.0.fmt(f),
        }
    }
}

/// A service of a VM, or for one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// Which VM.
    pub vm: VmId,
    /// Which service.
    pub service: ServiceId,
}

impl Address {
    /// The service `service` of, or for, the VM `vm`.
    pub fn new(vm: impl Into<VmId>, service: impl Into<ServiceId>) -> Self {
        Self {
            vm: vm.into(),
            service: service.into(),
        }
    }
}

/// Connects to a service of a guest.
///
/// Fails with [`NotFound`](io::ErrorKind::NotFound) if there is no such VM, and
/// with [`ConnectionRefused`](io::ErrorKind::ConnectionRefused) and the VM's words
/// if nobody in the guest takes the connection: that is known within 5 s.
pub fn connect(address: &Address) -> io::Result<UnixStream> {
    connect_in(&places(), address)
}

fn connect_in(places: &[PathBuf], address: &Address) -> io::Result<UnixStream> {
    let socket = match &address.vm {
        VmId::Socket(path) => path.clone(),
        VmId::Name(name) => {
            let found = running_in(places).into_iter().find(|vm| vm.name == *name);
            let none = || not_found(format!("no VM named '{name}' is running"));
            found.ok_or_else(none)?.socket
        }
        VmId::Wildcard | VmId::Children => {
            let mut all = running_in(places);
            match (all.pop(), all.len()) {
                (Some(only), 0) => only.socket,
                (None, _) => return Err(not_found("no VM is running".into())),
                (Some(_), more) => {
                    let message = format!("{} VMs are running: name one of them", more + 1);
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
                }
            }
        }
    };
    connect_at(&socket, &address.service.to_string())
}

/// Connects to the service of the VM with this socket, as that names services:
/// by port, by GUID, or by registered name.
pub fn connect_at(socket: &Path, service: &str) -> io::Result<UnixStream> {
    if service.contains('\n') {
        let message = "a service's name is one line";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("CONNECT {service}\n").as_bytes())?;
    let answer = line(&mut stream)?;
    if answer.starts_with("OK ") {
        stream.set_read_timeout(None)?;
        return Ok(stream);
    }
    let why = answer.strip_prefix("ERR ").unwrap_or("the VM ended");
    let why = why.trim_end().to_owned();
    Err(io::Error::new(io::ErrorKind::ConnectionRefused, why))
}

/// A line, and nothing of what follows it.
fn line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < MAX_ANSWER && stream.read(&mut byte)? == 1 {
        line.extend(byte);
        if byte == *b"\n" {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn not_found(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, message)
}

/// Whether somebody listens for streams at a Unix socket. Asks in a way that the
/// listener does not see: a datagram socket is told that it is of the wrong kind.
pub fn is_listening(path: &Path) -> bool {
    let probe = UnixDatagram::unbound().and_then(|probe| probe.connect(path));
    matches!(probe, Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE))
}

/// A VM that runs, and its socket.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Running {
    name: String,
    socket: PathBuf,
}

/// The VMs in these places that run and have a socket.
fn running_in(places: &[PathBuf]) -> Vec<Running> {
    let all = known_in(places).into_iter();
    let running = all.filter(|(_, api)| is_listening(api));
    let with_socket = running.filter_map(|(name, api)| {
        let socket = resolved(&api.with_file_name(VSOCK));
        is_listening(&socket).then_some(Running { name, socket })
    });
    with_socket.collect()
}

/// Where a VM's socket is: `--vsock` may have moved it, then there is a link.
fn resolved(socket: &Path) -> PathBuf {
    fs::read_link(socket).unwrap_or_else(|_| socket.to_owned())
}
