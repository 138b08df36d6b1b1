// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Seccomp: each thread may make the system calls that it needs, and no other.
//!
//! ```text
//!  main ── enter(Main), as soon as all files are open
//!   ├─ maker                     Maker    KVM's calls that make a VM; ends with it
//!   ├─ console, stderr, events   Output   write, and what every thread needs
//!   ├─ api                       Api      its clients' sockets
//!   ├─ vcpuN                     Vcpu     KVM_RUN and a few more of KVM's calls
//!   ├─ timers                    Timers   KVM_SIGNAL_MSI; only with `--synic user`
//!   └─ bus                       Bus      eventfds, Unix sockets
//! ```
//!
//! A filter passes on to the threads that are started after it, so the main
//! thread's allows what its threads are allowed. It comes first, but for the
//! threads of the events and of the first VM's maker: the kernel tries a new filter
//! on every call that those before it allow, which takes longer where there are none.
//!
//! What no thread may do once the guest runs: start a program or a process, open a
//! file, make memory executable, make a socket that is not a Unix one. Some calls
//! are answered with "no such call" instead of an end: `open` and its kin, which a C
//! library and a panic's backtrace can do without, and `clone3`, whose flags a
//! filter cannot see; `clone` takes its place, and only for threads.
//!
//! A forbidden call ends the process with a line that names thread and call. With
//! `--seccomp log` it is let through, and the kernel's log names it.

mod calls;
mod program;

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};

use seccompiler::BpfProgram;
use vmm_sys_util::signal::{self, block_signal};

use crate::sys;
use program::Verdict;

/// What happens at a system call that a thread has no use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The process ends.
    Enforce,
    /// The kernel's log names the call, which goes through.
    Log,
    /// Nothing: there are no filters.
    Off,
}

/// What a thread is for, and so what it may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Makes machines and ends them.
    Main,
    /// Makes one VM.
    Maker,
    /// Runs a vCPU.
    Vcpu,
    /// Has the bus and the Hyper-V sockets.
    Bus,
    /// Has the synthetic timers of `--synic user`.
    Timers,
    /// Serves the control API.
    Api,
    /// Writes to one file.
    Output,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Main,
        Self::Maker,
        Self::Vcpu,
        Self::Bus,
        Self::Timers,
        Self::Api,
        Self::Output,
    ];
}

/// Why there are no filters.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel does not take it.
    #[error("--seccomp: {0}; --seccomp false does without")]
    Kernel(#[from] seccompiler::Error),
    /// No new privileges, or no handler.
    #[error("host: {0}")]
    Io(#[from] io::Error),
}

/// The process's filters: there is one set of them, since that is how the
/// kernel has them too. Empty until [`init`]: a test's threads are free.
static FILTERS: OnceLock<[(Kind, BpfProgram); 7]> = OnceLock::new();

/// Makes the filters, before the first thread starts. Whatever the mode, no
/// program that this process starts gains privileges from now on.
pub fn init(mode: Mode) -> Result<(), SandboxError> {
    sys::no_new_privileges()?;
    if mode == Mode::Off {
        return Ok(());
    }
    if mode == Mode::Enforce {
        sys::trap::install()?;
    }
    let _ = FILTERS.set(Kind::ALL.map(|kind| (kind, program(kind, mode))));
    Ok(())
}

/// Puts the calling thread under the filter of its kind.
pub fn enter(kind: Kind) -> Result<(), SandboxError> {
    let filters = FILTERS.get().into_iter().flatten();
    for (_, program) in filters.filter(|(of, _)| *of == kind) {
        seccompiler::apply_filter(program)?;
    }
    Ok(())
}

/// Bytes of a thread's stack: plenty, and too few for the kernel to make a huge
/// page of, which would be most of what `vmm` takes.
pub const STACK: usize = 512 << 10;

/// Signals that the main thread sees to. Their handler makes a system call that
/// other threads may not make.
pub const SIGNALS: [i32; 5] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGTSTP,
];

/// Starts a thread that is under the filter of its kind before it does anything,
/// and that leaves [`SIGNALS`] to others.
pub fn spawn(
    kind: Kind,
    name: String,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let (sender, entered) = sync_channel(1);
    let builder = thread::Builder::new().name(name).stack_size(STACK);
    let handle = builder.spawn(move || {
        let result = leave_signals().and_then(|()| enter(kind));
        let ready = result.is_ok();
        let _ = sender.send(result);
        if ready {
            run();
        }
    })?;
    // An error is a thread that has ended and had nothing to do.
    entered
        .recv()
        .map_err(io::Error::other)?
        .map_err(io::Error::other)?;
    Ok(handle)
}

fn leave_signals() -> Result<(), SandboxError> {
    for signal in SIGNALS {
        match block_signal(signal) {
            // That it was blocked before is all right.
            Ok(()) | Err(signal::Error::SignalAlreadyBlocked(_)) => {}
            Err(error) => return Err(io::Error::other(error.to_string()).into()),
        }
    }
    Ok(())
}

fn program(kind: Kind, mode: Mode) -> BpfProgram {
    let mut rules = calls::of(kind);
    if mode == Mode::Enforce {
        return program::compile(&rules, libc::SECCOMP_RET_TRAP);
    }
    // Calls that are answered are no news for the log, but a thread's start by
    // another than the main thread is.
    for verdict in rules.values_mut().filter(|it| **it == Verdict::Absent) {
        *verdict = Verdict::Allow;
    }
    if kind != Kind::Main {
        rules.remove(&calls::number(libc::SYS_clone3));
    }
    program::compile(&rules, libc::SECCOMP_RET_LOG)
}

#[cfg(test)]
mod tests;
