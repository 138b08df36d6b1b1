// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl forward`: a TCP port of this host that leads to a Hyper-V socket of the
//! guest, for tools that know nothing but host and port.
//!
//! ```text
//!  tool ─► 127.0.0.1:PORT ─► vmmctl forward ─► vsock.sock ─► AF_VSOCK in the guest
//! ```
//!
//! Each connection has two threads, one for each direction: a reader that stops stops
//! its writer and nobody else, and one direction may end before the other.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Args as ClapArgs;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use rustix::net::sockopt::set_socket_linger;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::client::{AS_KNOWN, Client};
use super::commands::{parse, print};
use super::{CtlError, tell};
use crate::api::types::VmStatus;
use crate::hvsocket::{connect_at, is_listening};
use crate::sys;

/// Between two looks whether the VM is there.
const LOOK: Duration = Duration::from_millis(500);
/// Connections at once; those beyond wait to be accepted.
const MAX_CONNECTIONS: usize = 512;
/// Of them, those that wait for the guest: it has 4 s to take one, and a guest with one
/// slow processor needs them for fewer than come at once.
const MAX_CONNECTING: usize = 8;
/// Bytes of a connection on their way, in each direction.
const BUFFER: usize = 32 << 10;
/// A thread here calls nothing deep.
const STACK: usize = 128 << 10;
/// Before the next try to accept when there is no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// `vmmctl forward`.
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Whoever can connect to the port gets to the guest's service: any user of this host with 127.0.0.1,
which is where it listens unless ADDR says otherwise, and any machine that reaches it with 0.0.0.0.
Port 0 takes a free one; the first line says which. It ends with Ctrl-C, and when the VM ends.

Examples:
  vmmctl forward 8080 80
  vmmctl forward 0 22
  vmmctl --json forward 0 echo
  vmmctl forward [::1]:2222 22

Exit codes: 0 ended by a signal, or the VM has ended, 1 failed, 2 usage.")]
pub struct Forward {
    /// Where to listen: a TCP port of this host [default address: 127.0.0.1]
    #[arg(value_name = "[ADDR:]PORT", value_parser = listen_at)]
    listen: SocketAddr,
    /// Where it leads: a vsock port of the guest, a service's GUID, or the name that it is
    /// registered by
    #[arg(value_name = "GUESTPORT|GUID|NAME")]
    service: String,
}

fn listen_at(text: &str) -> Result<SocketAddr, String> {
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let port = text.strip_prefix("localhost:").unwrap_or(text);
    match (port.parse(), text.parse()) {
        (Ok(port), _) => Ok(local(port)),
        (_, Ok(address)) => Ok(address),
        _ => Err("expected PORT or ADDR:PORT, as 8080, 192.0.2.1:8080 or [::1]:8080".into()),
    }
}

/// Runs `vmmctl forward`.
pub fn run(vm: &Client, what: &Forward, json: bool) -> Result<(), CtlError> {
    let status: VmStatus = parse(&vm.get(AS_KNOWN)?)?;
    let Some(socket) = status.vsock.map(PathBuf::from) else {
        let why = "this VM has no Hyper-V sockets: vsock is not in its --ic";
        return Err(CtlError::Refused(why.into()));
    };
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let listen = what.listen;
    let listener = TcpListener::bind(listen)
        .map_err(|error| CtlError::Some(format!("cannot listen at {listen}: {error}")))?;
    let local = listener.local_addr()?;
    let service = &what.service;
    let told = json!({"address": local.ip().to_string(), "port": local.port(), "service": service});
    print(json, &told, || {
        let name = &status.name;
        Ok(format!(
            "{local} leads to {service} in the guest '{name}'; Ctrl-C ends it\n"
        ))
    })?;
    if !local.ip().is_loopback() {
        tell(format_args!(
            "whoever reaches {local} over the network reaches {service} in the guest, unasked"
        ));
    }
    // Where it stays as it is, fewer connections fit.
    let _ = sys::raise_file_limit();
    let (ended, end) = bounded(1);
    thread::spawn(move || {
        let _ = signals.forever().next().map(|_| ended.send(()));
    });
    let target = Target::new(socket.clone(), service.clone());
    thread::spawn(move || accept(&listener, &target));
    loop {
        match end.recv_timeout(LOOK) {
            Err(RecvTimeoutError::Timeout) if is_listening(&socket) => {}
            Err(RecvTimeoutError::Timeout) => {
                tell("the VM has ended");
                return Ok(());
            }
            // With this process its connections end.
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// Where connections lead; and who is on the way.
struct Target {
    socket: PathBuf,
    service: String,
    /// Why the last connection was refused, which is told once.
    refusal: Mutex<String>,
    open: Places,
    connecting: Places,
}

impl Target {
    fn new(socket: PathBuf, service: String) -> Arc<Self> {
        Arc::new(Self {
            socket,
            service,
            refusal: Mutex::default(),
            open: Places::new(MAX_CONNECTIONS),
            connecting: Places::new(MAX_CONNECTING),
        })
    }

    fn tell(&self, why: impl fmt::Display) {
        let why = why.to_string();
        let mut last = self.refusal.lock();
        if *last != why {
            tell(format_args!("{}: {why}", self.service));
            *last = why;
        }
    }
}

/// So many may do something at once, and the others wait.
struct Places(Sender<()>, Receiver<()>);

/// One that does it, until it is dropped.
struct Place(Receiver<()>);

impl Places {
    fn new(most: usize) -> Self {
        let (enter, leave) = bounded(most);
        Self(enter, leave)
    }

    fn enter(&self) -> Place {
        // The other end is here too, so this does not fail.
        let _ = self.0.send(());
        Place(self.1.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.0.try_recv();
    }
}

fn accept(listener: &TcpListener, target: &Arc<Target>) {
    loop {
        let place = target.open.enter();
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(error) => {
                // One that has gone before it was accepted, or no descriptors.
                target.tell(format_args!("a connection is not accepted: {error}"));
                thread::sleep(PAUSE);
                continue;
            }
        };
        let (target, told) = (Arc::clone(target), Arc::clone(target));
        let thread = thread::Builder::new().stack_size(STACK);
        let started = thread.spawn(move || {
            serve(&client, &target);
            drop(place);
        });
        if let Err(error) = started {
            told.tell(format_args!("a connection is not served: {error}"));
        }
    }
}

fn serve(client: &TcpStream, target: &Target) {
    let connecting = target.connecting.enter();
    let guest = match connect_at(&target.socket, &target.service) {
        Ok(guest) => guest,
        Err(error) => {
            target.tell(error);
            return reset(client);
        }
    };
    drop(connecting);
    if let Err(error) = both_ways(client, &guest) {
        log::debug!("{}: {error}", target.service);
        reset(client);
    }
}

/// Lets the client see that this was no regular end, when it is closed.
fn reset(client: &TcpStream) {
    let _ = set_socket_linger(client, Some(Duration::ZERO));
}

/// Until both directions have ended.
fn both_ways(client: &TcpStream, guest: &UnixStream) -> Result<(), Broken> {
    // What has come is passed on at once.
    client.set_nodelay(true).map_err(Broken::From)?;
    thread::scope(|scope| {
        let to_guest = thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, || {
                match pass(client, guest, |guest| guest.shutdown(Shutdown::Write)) {
                    // The guest reads no more, and what it has said is still on its way.
                    Ok(()) | Err(Broken::To(_)) => Ok(()),
                    Err(error) => {
                        let _ = guest.shutdown(Shutdown::Both);
                        Err(error)
                    }
                }
            });
        let to_client = match &to_guest {
            Ok(_) => pass(guest, client, |client| client.shutdown(Shutdown::Write)),
            Err(error) => Err(Broken::From(error.kind().into())),
        };
        if to_client.is_err() {
            let _ = guest.shutdown(Shutdown::Both);
            // Ends the other thread's wait, and tells the client nothing yet.
            let _ = client.shutdown(Shutdown::Read);
        }
        let to_guest = to_guest.map_err(Broken::From)?.join();
        to_client.and(to_guest.unwrap_or(Ok(())))
    })
}

/// Why a direction has not come to its end.
#[derive(Debug, thiserror::Error)]
enum Broken {
    /// What is read from.
    #[error("reading: {0}")]
    From(io::Error),
    /// What is written to.
    #[error("writing: {0}")]
    To(io::Error),
}

/// All that one sends to the other, then its end.
fn pass<F: Read, T: Write + Copy>(
    mut from: F,
    mut to: T,
    end: impl FnOnce(T) -> io::Result<()>,
) -> Result<(), Broken> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return end(to).map_err(Broken::To),
            Ok(len) => {
                let data = buffer.get(..len).unwrap_or_default();
                to.write_all(data).map_err(Broken::To)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Broken::From(error)),
        }
    }
}

#[cfg(test)]
mod tests;
