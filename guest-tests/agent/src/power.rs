// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What PID 1 is told by signals, as busybox' `poweroff`, `reboot` and `halt`
//! tell it: these are what a kernel starts that was asked to shut down.
//!
//! ```text
//!  hv_utils ─► kernel ─► /sbin/poweroff ── SIGUSR2 ──► PID 1 ─► all end, sync, power off
//!                        /sbin/reboot   ── SIGTERM ──►          … reset
//!                        /sbin/halt     ── SIGUSR1 ──►          … stop the CPUs
//! ```
//!
//! With `agent.ignore-shutdown` on the kernel's command line it hears nothing:
//! a guest that has accepted to shut down, and then does not.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::system::RebootCommand;
use signal_hook::consts::{SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::{machine, raw};

/// How long processes may take to end by themselves.
const GRACE: Duration = Duration::from_millis(300);

/// A signal has been obeyed; that the server ends is part of it.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Obeys signals from now on.
pub fn obey() {
    if machine::cmdline_has("agent.ignore-shutdown") {
        // PID 1 has no default actions: what it has no handler for is lost.
        return;
    }
    let mut signals = match Signals::new([SIGUSR1, SIGUSR2, SIGTERM]) {
        Ok(signals) => signals,
        Err(error) => return eprintln!("agent: signals: {error}"),
    };
    thread::spawn(move || {
        let command = match signals.forever().next() {
            Some(SIGUSR2) => RebootCommand::PowerOff,
            Some(SIGTERM) => RebootCommand::Restart,
            _ => RebootCommand::Halt,
        };
        ENDING.store(true, Ordering::SeqCst);
        raw::signal_all(SIGTERM);
        thread::sleep(GRACE);
        raw::signal_all(libc::SIGKILL);
        machine::end(command)
    });
}

/// The server has ended: by itself, which ends the machine, or by a signal's
/// doing, which does that already.
pub fn server_ended() -> ExitCode {
    while ENDING.load(Ordering::SeqCst) {
        thread::park();
    }
    machine::end(RebootCommand::PowerOff)
}
