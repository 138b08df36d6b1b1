// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A Unix socket of this machine that leads to one in the nest.
//!
//! ```text
//!  client ─► socket here ═ a command in the nest, its input and output ═ relay ─► socket there
//! ```

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write, stdin, stdout};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::nest::{Event, Nest};
use crate::progress::say;

/// Between two looks for clients.
const LOOK: Duration = Duration::from_millis(50);

/// What leads where.
#[derive(Clone, Debug)]
pub struct Forward {
    /// The socket here.
    pub socket: PathBuf,
    /// The command in the nest that has the other end as its input and output.
    pub relay: Vec<OsString>,
}

impl Forward {
    /// Serves clients until told to stop.
    pub fn serve(&self, nest: &Nest, stop: &AtomicBool) {
        let _ = fs::remove_file(&self.socket);
        let listener = UnixListener::bind(&self.socket)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => return say(format_args!("{}: {error}", self.socket.display())),
        };
        thread::scope(|scope| {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((client, _)) => {
                        scope.spawn(move || self.client(nest, &client, stop));
                    }
                    Err(_) => thread::sleep(LOOK),
                }
            }
        });
        let _ = fs::remove_file(&self.socket);
    }

    fn client(&self, nest: &Nest, mut client: &UnixStream, stop: &AtomicBool) {
        let input = client
            .set_nonblocking(false)
            .and_then(|()| client.try_clone());
        let session = nest.spawn(&nest.spec(self.relay.clone()));
        if let (Ok(input), Ok(mut session)) = (input, session) {
            session.feed(input);
            while !stop.load(Ordering::Relaxed) {
                match session.next(LOOK) {
                    Ok(Some(Event::Stdout(data))) if client.write_all(&data).is_ok() => {}
                    Ok(None | Some(Event::Stderr(_))) => {}
                    Ok(Some(Event::Stdout(_) | Event::Exit(_))) | Err(_) => break,
                }
            }
        }
        let _ = client.shutdown(Shutdown::Both);
    }
}

/// The relay: standard input to the socket, and what it says to standard output.
pub fn relay(socket: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    let mut input = stream.try_clone()?;
    thread::spawn(move || {
        let _ = io::copy(&mut stdin(), &mut input);
        let _ = input.shutdown(Shutdown::Write);
    });
    let mut out = stdout().lock();
    let mut buffer = [0; 4096];
    loop {
        match io::Read::read(&mut stream, &mut buffer)? {
            0 => return Ok(()),
            length => out.write_all(buffer.get(..length).unwrap_or_default())?,
        }
        // Not when the buffer is full: a reader of events waits for a line.
        out.flush()?;
    }
}
