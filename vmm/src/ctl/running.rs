// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program that runs for this one, and that a signal to this one ends: so
//! there is time to remove what is unfinished.

use std::io;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

/// Between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(10);

/// The program, if there is one.
#[derive(Clone, Default)]
pub(super) struct Running {
    child: Arc<Mutex<Option<Child>>>,
    stop: Arc<AtomicBool>,
}

impl Running {
    /// None yet; from now on signals do not end this process.
    pub(super) fn watched() -> io::Result<Self> {
        let running = Self::default();
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT])?;
        let watcher = running.clone();
        thread::spawn(move || {
            for _ in signals.forever() {
                watcher.stop();
            }
        });
        Ok(running)
    }

    /// What reads the program's output sees the end of it.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.kill();
    }

    /// Whether it was a signal.
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// One that was started.
    pub(super) fn set(&self, child: Child) {
        *self.child.lock() = Some(child);
        if self.stopped() {
            self.kill();
        }
    }

    /// Asks it to end.
    pub(super) fn kill(&self) {
        if let Some(child) = self.child.lock().as_ref() {
            // ssh ends its proxy too when it is asked to end.
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
        }
    }

    /// Waits for its end; a signal may still be what ends it.
    pub(super) fn end(&self) -> io::Result<ExitStatus> {
        loop {
            let mut child = self.child.lock();
            let running = child.as_mut().ok_or(io::ErrorKind::NotFound)?;
            if let Some(status) = running.try_wait()? {
                *child = None;
                return Ok(status);
            }
            drop(child);
            thread::sleep(LOOK);
        }
    }
}
