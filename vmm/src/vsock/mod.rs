// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hyper-V sockets as Unix sockets of this host.
//!
//! ```text
//!  client ─ "CONNECT 5000\n" ─► PATH ─► Greeting ─► offer ─► guest's listener
//!  client ◄─ "OK 5000\n", stream ◄──────────────── opened
//!
//!  guest's connect to port 5000 ─► PATH_5000, else PATH_<GUID>, else PATH_<NAME>
//! ```
//!
//! All of it runs on the bus thread and nothing in it blocks. Sockets are watched
//! by edges: one that nobody can write to costs nothing until that changes.

pub mod greeting;
pub mod registry;
mod service;
pub mod stream;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use vmbus::host::{Host, StreamingDevice};
use vmbus::hvsock::{Socket, port_of};
use vmbus::wire::{Guid, Relid, TlConnectRequest};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::services::RESUME;
use crate::sys;
use greeting::{Greeting, Heard, Wanted};
use registry::{Registry, ServiceName};
pub use service::{SocketSettings, Sockets};
use stream::{Signs, UnixEnd};

type Bus = Host;

/// Clients that have not said yet what they want. When there are more, the one
/// that has been silent the longest has to go.
const MAX_GREETINGS: usize = 512;
/// Connections, if the process may open enough files.
const MAX_CONNECTIONS: usize = 1500;
/// After which there may be files again.
const STARVED: Duration = Duration::from_secs(1);
/// Clients that are taken before others get their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Files that are needed for other things: the control API's clients, clients
/// that greet, and what every machine has.
const FILES_KEPT: u64 = 256 + MAX_GREETINGS as u64;
/// A vCPU takes its own, its interrupt's and its timers'.
const FILES_PER_CPU: u64 = 3;
/// A connection takes its socket and its channel's eventfd, which is kept.
const FILES_PER_CONNECTION: u64 = 2;

/// What is the same for every machine of the process.
#[derive(Debug)]
pub struct VsockSettings {
    listener: UnixListener,
    path: PathBuf,
    max_connections: usize,
}

impl VsockSettings {
    /// Listens at a path that is bound already.
    pub fn new(listener: UnixListener, path: PathBuf, cpus: u32) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let kept = FILES_KEPT + FILES_PER_CPU * u64::from(cpus);
        let files = sys::raise_file_limit()?.saturating_sub(kept);
        let most = usize::try_from(files / FILES_PER_CONNECTION).unwrap_or(usize::MAX);
        Ok(Self {
            listener,
            path,
            max_connections: most.min(MAX_CONNECTIONS),
        })
    }

    /// Where a guest's connection to a service is taken to: by port, else by GUID,
    /// else by name.
    fn peers(&self, service: &Guid, name: Option<&ServiceName>) -> impl Iterator<Item = PathBuf> {
        let port = port_of(service).map(|port| peer(&self.path, port));
        let name = name.map(|name| peer(&self.path, name));
        let guid = peer(&self.path, service);
        port.into_iter().chain([guid]).chain(name)
    }

    /// The socket that clients connect to.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Where a program listens for what the guest of the socket `path` connects to.
pub(crate) fn peer(path: &Path, service: impl Display) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!("_{service}"));
    PathBuf::from(name)
}

/// One end on this host.
enum End {
    Greeting(Greeting),
    Connection(Connection),
}

/// A connection, as far as the epoll loop knows it.
struct Connection {
    relid: Relid,
    service: Guid,
    signs: Arc<Signs>,
}

/// The sockets of one machine.
struct Vsock {
    settings: Arc<VsockSettings>,
    registry: Arc<Mutex<Registry>>,
    /// Connections are taken.
    enabled: bool,
    /// The guest cannot take any.
    paused: bool,
    epoll: Arc<Epoll>,
    /// The loop's token of the end 0.
    base: u64,
    next: u64,
    ends: BTreeMap<u64, End>,
    connections: BTreeMap<Relid, u64>,
    greetings: usize,
    instances: Instances,
    listener: u64,
    /// There was no file for a client: the listener is not watched until then, or
    /// until something ends.
    starved: Option<Duration>,
}

impl Vsock {
    /// Watches the listener as `listener`, and its ends as `base` and more.
    fn start(
        settings: Arc<VsockSettings>,
        registry: Arc<Mutex<Registry>>,
        enabled: bool,
        epoll: Arc<Epoll>,
        listener: u64,
        base: u64,
    ) -> io::Result<Self> {
        let event = EpollEvent::new(EventSet::IN, listener);
        let fd = settings.listener.as_raw_fd();
        epoll.ctl(ControlOperation::Add, fd, event)?;
        Ok(Self {
            settings,
            registry,
            enabled,
            paused: false,
            epoll,
            base,
            next: 0,
            ends: BTreeMap::new(),
            connections: BTreeMap::new(),
            greetings: 0,
            instances: Instances::seeded()?,
            listener,
            starved: None,
        })
    }

    /// Takes clients that wait.
    fn accept(&mut self, now: Duration) {
        for taken in 0..ACCEPTS_PER_TURN {
            match self.settings.listener.accept() {
                Ok((client, _)) => {
                    if let Err(error) = self.greet(client) {
                        log::debug!("vsock: a client could not be taken: {error}");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Out of files, most likely, which is said before it is looked
                // whether somebody waits: if so, that is told again.
                Err(_) if taken > 0 => return,
                // Who is silent has to go, else the rest is taken when some
                // connection has ended, or later.
                Err(error) => {
                    if !self.evict() {
                        log::warn!("vsock: a client could not be taken: {error}");
                        self.watch_listener(Some(now.saturating_add(STARVED)));
                        return;
                    }
                }
            }
        }
    }

    /// Watches the listener, or leaves it alone until `again`.
    fn watch_listener(&mut self, again: Option<Duration>) {
        if self.starved.is_some() == again.is_some() {
            return;
        }
        let events = if again.is_none() {
            EventSet::IN
        } else {
            EventSet::empty()
        };
        let event = EpollEvent::new(events, self.listener);
        let fd = self.settings.listener.as_raw_fd();
        match self.epoll.ctl(ControlOperation::Modify, fd, event) {
            Ok(()) => self.starved = again,
            Err(error) => log::warn!("vsock: {error}"),
        }
    }

    /// Looks again whether there are files.
    fn tick(&mut self, now: Duration) {
        if self.starved.is_some_and(|at| at <= now) {
            self.watch_listener(None);
        }
    }

    /// Ends the client that has been silent the longest, if there is one.
    fn evict(&mut self) -> bool {
        let silent = |(id, end): (&u64, &End)| matches!(end, End::Greeting(_)).then_some(*id);
        let oldest = self.ends.iter().find_map(silent);
        oldest.is_some_and(|id| {
            self.dismiss(id, "");
            true
        })
    }

    fn greet(&mut self, client: UnixStream) -> io::Result<()> {
        client.set_nonblocking(true)?;
        if self.greetings >= MAX_GREETINGS {
            self.evict();
        }
        let id = self.new_id();
        self.watch(&client, id, ControlOperation::Add)?;
        self.ends.insert(id, End::Greeting(Greeting::new(client)));
        self.greetings += 1;
        Ok(())
    }

    fn new_id(&mut self) -> u64 {
        let id = self.next;
        self.next += 1;
        id
    }

    fn watch(&self, socket: &UnixStream, id: u64, how: ControlOperation) -> io::Result<()> {
        let event = EpollEvent::new(stream::WATCHED, self.base + id);
        self.epoll.ctl(how, socket.as_raw_fd(), event)
    }

    /// Something happened to an end.
    fn event(&mut self, host: &mut Bus, now: Duration, token: u64, events: EventSet) {
        let id = token.wrapping_sub(self.base);
        match self.ends.get_mut(&id) {
            Some(End::Connection(connection)) => {
                connection.signs.note(events);
                host.poke(now, connection.relid);
            }
            Some(End::Greeting(greeting)) => match greeting.hear() {
                // It has closed its end, and so will not say the rest.
                Heard::NotYet if stream::is_end(events) => self.dismiss(id, ""),
                Heard::NotYet => {}
                Heard::Nonsense => self.dismiss(id, "expected CONNECT and a port, GUID or name"),
                Heard::Gone => self.dismiss(id, ""),
                Heard::Connect(wanted) => match self.resolve(wanted) {
                    Ok(service) => self.connect(host, now, id, service, events),
                    Err(why) => self.dismiss(id, &why),
                },
            },
            // An event from before it went.
            None => {}
        }
    }

    /// The service that a client wants, if it can be had.
    fn resolve(&self, wanted: Wanted) -> Result<Guid, String> {
        if !self.enabled {
            return Err("disabled: vsock is not enabled for this VM".into());
        }
        if self.paused {
            return Err(format!("busy: the VM is paused{RESUME}"));
        }
        if self.connections.len() >= self.settings.max_connections {
            return Err("too many connections".into());
        }
        match wanted {
            Wanted::Service(service) => Ok(service),
            Wanted::Named(name) => {
                let found = self.registry.lock().find(name.as_str());
                found.ok_or_else(|| format!("no service is registered as '{name}'"))
            }
        }
    }

    /// Ends a greeting.
    fn dismiss(&mut self, id: u64, why: &str) {
        if let Some(End::Greeting(greeting)) = self.ends.remove(&id) {
            self.greetings -= 1;
            if !why.is_empty() {
                greeting.refuse(why);
            }
            self.watch_listener(None);
        }
    }

    /// A client wants a service of the guest.
    fn connect(&mut self, host: &mut Bus, now: Duration, id: u64, service: Guid, events: EventSet) {
        let Some(End::Greeting(greeting)) = self.ends.remove(&id) else {
            return;
        };
        self.greetings -= 1;
        let signs = Arc::new(Signs::new());
        signs.note(events);
        let stream = UnixEnd::new(
            greeting.into_client(),
            Arc::clone(&self.epoll),
            self.base + id,
            Arc::clone(&signs),
        );
        let name = port_of(&service).map_or_else(|| service.to_string(), |port| port.to_string());
        let stream = Box::new(stream.answering(&name));
        let socket = Socket::connecting(now, service, self.instances.next(), stream);
        match host.offer_streaming(now, Box::new(socket)) {
            Ok(relid) => self.connected(id, relid, service, signs),
            // The client hears it from the stream, which is dropped with the device.
            Err(error) => log::debug!("vsock: {error}"),
        }
    }

    /// The guest wants a service of this host.
    fn request(&mut self, host: &mut Bus, now: Duration, request: &TlConnectRequest) {
        match self.find_peer(request) {
            Ok(client) => {
                let id = self.new_id();
                if let Err(error) = self.take(host, now, request, client, id) {
                    log::debug!("vsock: {}: {error}", request.service);
                    host.refuse_connect(now, request);
                }
            }
            Err(error) => {
                log::debug!("vsock: nobody listens for {}: {error}", request.service);
                host.refuse_connect(now, request);
            }
        }
    }

    fn find_peer(&self, request: &TlConnectRequest) -> io::Result<UnixStream> {
        if !self.enabled {
            return Err(io::Error::other("disabled"));
        }
        if self.connections.len() >= self.settings.max_connections {
            return Err(io::Error::other("too many connections"));
        }
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        let name = self.registry.lock().name(&request.service).cloned();
        for path in self.settings.peers(&request.service, name.as_ref()) {
            match sys::connect_unix(&path) {
                Ok(client) => return Ok(client),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn take(
        &mut self,
        host: &mut Bus,
        now: Duration,
        request: &TlConnectRequest,
        client: UnixStream,
        id: u64,
    ) -> io::Result<()> {
        self.watch(&client, id, ControlOperation::Add)?;
        let signs = Arc::new(Signs::new());
        let stream = UnixEnd::new(
            client,
            Arc::clone(&self.epoll),
            self.base + id,
            Arc::clone(&signs),
        );
        let socket = Socket::accepting(now, request, Box::new(stream));
        let relid = host
            .offer_streaming(now, Box::new(socket))
            .map_err(io::Error::other)?;
        self.connected(id, relid, request.service, signs);
        Ok(())
    }

    fn connected(&mut self, id: u64, relid: Relid, service: Guid, signs: Arc<Signs>) {
        if let Some(before) = self.connections.insert(relid, id) {
            // Its release is on its way to us, and its number in use again.
            self.ends.remove(&before);
        }
        let connection = Connection {
            relid,
            service,
            signs,
        };
        self.ends.insert(id, End::Connection(connection));
    }

    /// Takes connections from now on, or ends all that there are and takes none.
    fn set_enabled(&mut self, host: &mut Bus, now: Duration, enabled: bool) {
        self.enabled = enabled;
        if enabled {
            return;
        }
        for relid in self.connections.keys().copied().collect::<Vec<_>>() {
            // Also where the guest has not answered yet, or does not let go.
            if let Some(socket) = host.device_mut::<Socket>(relid) {
                socket.not_opened(now);
                // It may be on its way to the end already.
                let _ = host.rescind(now, relid);
            }
        }
    }

    /// The guest has released a channel.
    fn released(&mut self, relid: Relid) {
        if let Some(id) = self.connections.remove(&relid) {
            self.ends.remove(&id);
            self.watch_listener(None);
        }
    }

    /// Connections to a service, offered or open.
    fn connections_of(&self, service: &Guid) -> usize {
        let to = |end: &&End| matches!(end, End::Connection(one) if one.service == *service);
        self.ends.values().filter(to).count()
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        // The listener lives on and is watched by the next machine's loop.
        let _ = self.epoll.ctl(
            ControlOperation::Delete,
            self.settings.listener.as_raw_fd(),
            EpollEvent::default(),
        );
    }
}

/// Instance GUIDs for connections that this host makes: unique, and not to be
/// guessed. Their first 32 bits count, and are what the guest sees as our port.
struct Instances {
    random: u128,
    count: u32,
}

impl Instances {
    fn seeded() -> io::Result<Self> {
        let mut bytes = [0; 16];
        sys::random(&mut bytes)?;
        Ok(Self {
            random: u128::from_ne_bytes(bytes) >> 32,
            count: 0x4000_0000,
        })
    }

    fn next(&mut self) -> Guid {
        self.count = self.count.wrapping_add(1);
        Guid::from_u128(u128::from(self.count) << 96 | self.random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_that_was_left_alone_is_watched_again() {
        const LISTENER: u64 = 7;
        let path = std::env::temp_dir().join(format!("vmm-starved-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let settings = VsockSettings::new(listener, path.clone(), 1).unwrap();
        let epoll = Arc::new(Epoll::new().unwrap());
        let mut vsock = Vsock::start(
            Arc::new(settings),
            Arc::default(),
            true,
            Arc::clone(&epoll),
            LISTENER,
            100,
        )
        .unwrap();
        let waiting = || {
            let mut ready = [EpollEvent::default(); 2];
            epoll.wait(0, &mut ready).unwrap() == 1 && ready[0].data() == LISTENER
        };
        let _client = UnixStream::connect(&path).unwrap();
        assert!(waiting());
        vsock.watch_listener(Some(STARVED));
        assert!(!waiting());
        vsock.tick(STARVED.saturating_sub(Duration::from_millis(1)));
        assert!(!waiting());
        vsock.tick(STARVED);
        assert!(waiting());
        vsock.accept(STARVED);
        assert!(!waiting());
        let _ = std::fs::remove_file(&path);
    }
}
