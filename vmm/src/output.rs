// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Output by a thread of its own: a reader that has stopped holds up nobody who
//! must not be held up.
//!
//! ```text
//!  writers ──► bounded queue ──► thread ──► terminal, pipe, file
//! ```
//!
//! The guest's serial port waits for room, but not when its vCPU is to stop.
//! This program's own words and the event log never wait: what does not fit is
//! dropped, and that is told.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::sandbox::{self, Kind};

/// Bytes that wait for the thread: a few screens of text.
pub const QUEUE_LIMIT: usize = 64 << 10;
/// How long the end waits for a reader that has stopped.
const LINGER: Duration = Duration::from_secs(2);

/// Bytes on their way out.
#[derive(Clone, Default)]
pub struct Queue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<QueueState>,
    /// Something to write, or the end.
    filled: Condvar,
    /// Room again.
    emptied: Condvar,
}

#[derive(Default)]
struct QueueState {
    bytes: Vec<u8>,
    /// No more is to come, or none is wanted.
    closed: bool,
    /// Nobody is to wait for room.
    through: bool,
    /// The thread has written its last byte.
    finished: bool,
}

impl Queue {
    /// Adds bytes, or drops them if there is no room; false if they were dropped.
    pub fn write_or_drop(&self, bytes: &[u8]) -> bool {
        let mut state = self.0.state.lock();
        let fits = state.bytes.len().saturating_add(bytes.len()) <= QUEUE_LIMIT;
        if fits && !state.closed {
            state.bytes.extend_from_slice(bytes);
            self.0.filled.notify_one();
        }
        fits && !state.closed
    }

    /// While set, nobody waits for room: a vCPU that is to stop must not depend
    /// on a reader.
    pub fn let_through(&self, through: bool) {
        self.0.state.lock().through = through;
        self.0.emptied.notify_all();
    }

    /// Waits until there is room.
    pub fn wait_for_room(&self) {
        let mut state = self.0.state.lock();
        while state.bytes.len() >= QUEUE_LIMIT && !state.closed && !state.through {
            self.0.emptied.wait(&mut state);
        }
    }

    /// Takes all that is queued, waiting for something; `None` at the end.
    fn take(&self, reuse: Vec<u8>) -> Option<Vec<u8>> {
        let mut state = self.0.state.lock();
        while state.bytes.is_empty() {
            if state.closed {
                return None;
            }
            self.0.filled.wait(&mut state);
        }
        let bytes = std::mem::replace(&mut state.bytes, reuse);
        self.0.emptied.notify_all();
        Some(bytes)
    }

    fn close(&self) {
        self.0.state.lock().closed = true;
        self.0.filled.notify_all();
        self.0.emptied.notify_all();
    }

    fn finish(&self) {
        let mut state = self.0.state.lock();
        (state.closed, state.finished) = (true, true);
        self.0.emptied.notify_all();
    }

    /// Waits until the thread has finished, but not for ever.
    fn wait_finished(&self) {
        let mut state = self.0.state.lock();
        let deadline = Instant::now() + LINGER;
        while !state.finished {
            if self.0.emptied.wait_until(&mut state, deadline).timed_out() {
                log::warn!(
                    "nobody reads the last {} bytes of output",
                    state.bytes.len()
                );
                return;
            }
        }
    }
}

impl Write for Queue {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state.lock();
        if !state.closed {
            state.bytes.extend_from_slice(bytes);
            self.0.filled.notify_one();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread and its queue. Dropping it writes what is left.
pub struct Output {
    queue: Queue,
}

impl Output {
    /// Starts the thread `name`, which writes to `sink`.
    pub fn start(name: &'static str, mut sink: Box<dyn Write + Send>) -> io::Result<Self> {
        let queue = Queue::default();
        let source = queue.clone();
        sandbox::spawn(Kind::Output, name.into(), move || {
            let mut bytes = Vec::new();
            while let Some(taken) = source.take(bytes) {
                bytes = taken;
                if let Err(error) = sink.write_all(&bytes).and_then(|()| sink.flush()) {
                    log::warn!("{name}: {error}; output is dropped from here on");
                    break;
                }
                bytes.clear();
            }
            source.finish();
        })?;
        Ok(Self { queue })
    }

    /// A way into it.
    pub fn queue(&self) -> Queue {
        self.queue.clone()
    }
}

impl Drop for Output {
    /// Writes what is left.
    fn drop(&mut self) {
        self.queue.close();
        self.queue.wait_finished();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_must_not_wait_is_told_that_there_is_no_room() {
        let (release, stuck) = mpsc::channel();
        let output = Output::start("test", Box::new(Stuck(stuck))).unwrap();
        let queue = output.queue();
        let taken = (0..1000)
            .take_while(|_| queue.write_or_drop(&[0; 1000]))
            .count();
        // What the thread has taken and what the queue holds.
        assert!((60..=200).contains(&taken), "{taken}");
        drop(release);
    }
}
