// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Waiting for processes: as PID 1 for everyone's, as a server for one's own.

use std::process::ExitStatus;

use std::os::unix::process::ExitStatusExt;

use rustix::process::{WaitOptions, wait};

/// Reaps whatever ends, until the process `server` does.
pub fn reap_until(server: u32) {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                if u32::try_from(pid.as_raw_nonzero().get()) == Ok(server) {
                    if status.exit_status() != Some(0) {
                        eprintln!("agent: server ended: {status:?}");
                    }
                    return;
                }
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                eprintln!("agent: wait: {error}");
                return;
            }
        }
    }
}

/// A shell's view of how a process ended: its code, or 128 + the signal.
pub fn shell_status(status: ExitStatus) -> u32 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(255);
    u32::try_from(code).unwrap_or(255)
}
