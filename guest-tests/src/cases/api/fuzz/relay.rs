// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A TCP port that leads to a VM's Unix socket, for clients that know only TCP.
//!
//! A client whose VM ends is let go, and the next one waits for the next VM. A
//! connection that closes without an answer while the VM lives is a fault, and so
//! is an answer that does not come; both are remembered. A stream that does not end
//! by itself is ended here.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::suite::Outcome;

/// How long a VM may take to be there again.
const RESTART: Duration = Duration::from_secs(180);
/// How long it may take to be seen that a VM has ended.
const SEEN: Duration = Duration::from_secs(20);
/// An answer that takes longer hangs: the longest deadline of the API's own is that
/// of a list of items, two minutes.
const HANG: Duration = Duration::from_secs(150);
/// How long a stream is read.
const STREAM: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(50);
/// How the answer of an endless stream begins.
const ENDLESS: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close";

/// A relay.
pub(super) struct Relay {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    socket: PathBuf,
    /// How many VMs have ended.
    ended: AtomicU64,
    answers: AtomicU64,
    slowest_ms: AtomicU64,
    stop: AtomicBool,
    complaints: Mutex<Vec<String>>,
}

impl Relay {
    /// Starts it.
    pub(super) fn start(socket: &Path) -> Outcome<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            socket: socket.to_owned(),
            ..Shared::default()
        });
        let relay = Self {
            port,
            shared: Arc::clone(&shared),
        };
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.serve(&client));
            }
        });
        Ok(relay)
    }

    /// Where it listens, on the loopback address.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The VM has ended: who waits for an answer of it gets none.
    pub(super) fn vm_ended(&self) {
        self.shared.ended.fetch_add(1, Ordering::SeqCst);
    }

    /// What should not have happened.
    pub(super) fn complaints(&self) -> Vec<String> {
        let complaints = self.shared.complaints.lock();
        complaints.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many answers there were.
    pub(super) fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::Relaxed)
    }

    /// The longest time to an answer.
    pub(super) fn slowest(&self) -> Duration {
        Duration::from_millis(self.shared.slowest_ms.load(Ordering::Relaxed))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn serve(&self, client: &TcpStream) {
        if let Err(error) = self.relay(client) {
            self.complain(format!("no VM within {RESTART:?}: {error}"));
        }
        let _ = client.shutdown(Shutdown::Both);
    }

    fn relay(&self, client: &TcpStream) -> io::Result<()> {
        let ended = self.ended.load(Ordering::SeqCst);
        let vm = self.connect()?;
        let asked: Mutex<Option<(Instant, String)>> = Mutex::new(None);
        thread::scope(|scope| {
            scope.spawn(|| up(client, &vm, &asked));
            self.down(client, &vm, &asked, ended);
            // Ends the other direction, which may wait for either.
            let _ = vm.shutdown(Shutdown::Both);
            let _ = client.shutdown(Shutdown::Both);
        });
        Ok(())
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let began = Instant::now();
        loop {
            match UnixStream::connect(&self.socket) {
                Err(_) if began.elapsed() < RESTART && !self.stop.load(Ordering::Relaxed) => {
                    thread::sleep(LOOK);
                }
                connected => return connected,
            }
        }
    }

    /// Answers, until the VM ends the connection.
    fn down(
        &self,
        mut client: &TcpStream,
        mut vm: &UnixStream,
        asked: &Mutex<Option<(Instant, String)>>,
        ended: u64,
    ) {
        let mut chunk = [0; 16 << 10];
        let mut stream: Option<Instant> = None;
        let _ = vm.set_read_timeout(Some(LOOK));
        loop {
            let waiting = || asked.lock().unwrap_or_else(PoisonError::into_inner).take();
            match vm.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => {
                    let part = chunk.get(..count).unwrap_or_default();
                    if let Some((at, _)) = waiting() {
                        self.answered(at.elapsed());
                    }
                    if part.starts_with(ENDLESS) {
                        stream = Some(Instant::now());
                    }
                    if client.write_all(part).is_err() {
                        return;
                    }
                }
                Err(error) if is_later(&error) => {}
                Err(_) => break,
            }
            if stream.is_some_and(|began| began.elapsed() > STREAM) {
                return;
            }
            let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((at, head)) = asked.as_ref()
                && at.elapsed() > HANG
            {
                return self.complain(format!("no answer within {HANG:?}: {head}"));
            }
        }
        let unanswered = asked.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((_, head)) = unanswered {
            let began = Instant::now();
            while self.ended.load(Ordering::SeqCst) == ended {
                if began.elapsed() > SEEN {
                    return self.complain(format!("closed without an answer: {head}"));
                }
                thread::sleep(LOOK);
            }
        }
    }

    fn answered(&self, after: Duration) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        self.slowest_ms.fetch_max(ms, Ordering::Relaxed);
    }

    fn complain(&self, what: String) {
        // Nobody listens any more.
        if !self.stop.load(Ordering::Relaxed) {
            let complaints = self.complaints.lock();
            complaints
                .unwrap_or_else(PoisonError::into_inner)
                .push(what);
        }
    }
}

/// Requests, until the client ends the connection.
fn up(mut client: &TcpStream, mut vm: &UnixStream, asked: &Mutex<Option<(Instant, String)>>) {
    let mut chunk = [0; 16 << 10];
    while let Ok(count @ 1..) = client.read(&mut chunk) {
        let part = chunk.get(..count).unwrap_or_default();
        let head = part.get(..part.len().min(300)).unwrap_or_default();
        let head = String::from_utf8_lossy(head).into_owned();
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.get_or_insert((Instant::now(), head));
        drop(asked);
        if vm.write_all(part).is_err() {
            return;
        }
    }
    // A client that hangs up waits for nothing.
    asked.lock().unwrap_or_else(PoisonError::into_inner).take();
    let _ = vm.shutdown(Shutdown::Both);
}

fn is_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
