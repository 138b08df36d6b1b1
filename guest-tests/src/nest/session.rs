// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One command in the nest, from here.

use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use guest_agent::frame::{Frame, Kind, MAX_PAYLOAD};
use guest_agent::job::Spec;

use super::link::{Link, Shared};
use crate::error::Result;

/// Something that a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It wrote to its standard output.
    Stdout(Vec<u8>),
    /// It wrote to its standard error.
    Stderr(Vec<u8>),
    /// It ended; 128 + n if signal n ended it.
    Exit(u32),
}

/// A running command. Dropping it doesn't end the command.
pub struct Session<'a> {
    link: &'a Link,
    shared: Arc<Shared>,
    id: u32,
    events: Receiver<Frame>,
}

impl fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// How often a waiting command's nest is checked for life.
const CHECK: Duration = Duration::from_millis(250);

impl<'a> Session<'a> {
    pub(super) fn start(link: &'a Link, spec: &Spec) -> Result<Self> {
        let words: Vec<_> = spec
            .argv
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        let (id, events) = link.add_job(words.join(" "));
        link.send(&Frame::new(Kind::Run, id, spec.encode()))?;
        Ok(Self {
            link,
            shared: link.shared(),
            id,
            events,
        })
    }

    /// The next event; `None` if there is none for that long. A nest that has
    /// locked up is an error.
    pub fn next(&mut self, limit: Duration) -> Result<Option<Event>> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left.min(CHECK)) {
                Ok(frame) => match frame.kind {
                    Kind::Stdout => return Ok(Some(Event::Stdout(frame.payload))),
                    Kind::Stderr => return Ok(Some(Event::Stderr(frame.payload))),
                    _ => {
                        self.shared.forget(self.id);
                        return Ok(Some(Event::Exit(frame.as_number().unwrap_or(255))));
                    }
                },
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    self.link.check()?;
                    if left.is_zero() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Ends the command's standard input.
    pub fn end_input(&self) -> Result<()> {
        self.shared.send(&Frame::empty(Kind::StdinEof, self.id))
    }

    /// Sends the command all that `source` gives, from a thread of its own.
    pub fn feed(&self, mut source: impl Read + Send + 'static) {
        let (shared, id) = (Arc::clone(&self.shared), self.id);
        thread::spawn(move || {
            let mut buffer = vec![0; MAX_PAYLOAD];
            while let Ok(length) = source.read(&mut buffer) {
                let mut rest = buffer.get(..length).unwrap_or_default();
                if rest.is_empty() {
                    break;
                }
                while !rest.is_empty() {
                    let wanted = u32::try_from(rest.len()).unwrap_or(u32::MAX);
                    let Some(taken) = shared.take_credit(id, wanted) else {
                        return;
                    };
                    let taken = usize::try_from(taken).unwrap_or(rest.len());
                    let (now, later) = rest.split_at(taken.min(rest.len()));
                    if shared
                        .send(&Frame::new(Kind::Stdin, id, now.to_vec()))
                        .is_err()
                    {
                        return;
                    }
                    rest = later;
                }
            }
            let _ = shared.send(&Frame::empty(Kind::StdinEof, id));
        });
    }

    /// Sends the command's process group a signal.
    pub fn signal(&self, number: u32) -> Result<()> {
        self.shared
            .send(&Frame::number(Kind::Signal, self.id, number))
    }

    /// Tells the command's terminal its new size.
    pub fn resize(&self, rows: u16, cols: u16) -> Result<()> {
        let size = [rows.to_le_bytes(), cols.to_le_bytes()].concat();
        self.shared.send(&Frame::new(Kind::Resize, self.id, size))
    }
}
