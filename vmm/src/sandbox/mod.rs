// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Seccomp: each thread may make the system calls that it needs, and no other.
//!
//! ```text
//!  main ── enter(Main) ── all that comes after the start
//!   ├─ console, stderr, events   Output   write, and what every thread needs
//!   ├─ api                       Api      its clients' sockets
//!   ├─ vcpuN                     Vcpu     KVM_RUN and a few more of KVM's calls
//!   └─ bus                       Bus      eventfds, Unix sockets
//! ```
//!
//! A filter passes on to the threads that are started after it, so the main
//! thread's allows what its threads are allowed. What no thread may do once the
//! guest runs: start a program or a process, open a file, make memory
//! executable, make a socket that is not a Unix one. Some calls are answered with
//! "no such call" instead of an end: `open` and its kin, which a C library and a
//! panic's backtrace can do without, and `clone3`, whose flags a filter cannot
//! see; `clone` takes its place, and only for threads.
//!
//! A forbidden call ends the process with a line that names thread and call. With `--seccomp log` it is let through, and the
//! kernel's log names it.

mod calls;

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::sys;

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
    /// Runs a vCPU.
    Vcpu,
    /// Has the bus and the Hyper-V sockets.
    Bus,
    /// Serves the control API.
    Api,
    /// Writes to one file.
    Output,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Main, Self::Vcpu, Self::Bus, Self::Api, Self::Output];
}

/// Why there are no filters.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The lists cannot be made a program.
    #[error("--seccomp: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// The kernel does not take it.
    #[error("--seccomp: {0}; --seccomp false does without")]
    Kernel(#[from] seccompiler::Error),
    /// No new privileges, or no handler.
    #[error("host: {0}")]
    Io(#[from] io::Error),
}

/// The process's filters: there is one set of them, since that is how the
/// kernel has them too. Empty until [`init`]: a test's threads are free.
static FILTERS: OnceLock<Vec<(Kind, Vec<BpfProgram>)>> = OnceLock::new();

/// Makes the filters, before the first thread starts. Whatever the mode, no
/// program that this process starts gains privileges from now on.
pub fn init(mode: Mode) -> Result<(), SandboxError> {
    sys::no_new_privileges()?;
    if mode == Mode::Off {
        return Ok(());
    }
    let mut filters = Vec::new();
    for kind in Kind::ALL {
        filters.push((kind, programs(kind, mode)?));
    }
    if mode == Mode::Enforce {
        sys::trap::install()?;
    }
    let _ = FILTERS.set(filters);
    Ok(())
}

/// Puts the calling thread under the filters of its kind.
pub fn enter(kind: Kind) -> Result<(), SandboxError> {
    let filters = FILTERS.get().into_iter().flatten();
    for (_, programs) in filters.filter(|(of, _)| *of == kind) {
        for program in programs {
            seccompiler::apply_filter(program)?;
        }
    }
    Ok(())
}

/// Bytes of a thread's stack: plenty, and too few for the kernel to make a huge
/// page of, which would be most of what `vmm` takes.
pub const STACK: usize = 512 << 10;

/// Starts a thread that is under the filters of its kind before it does anything.
pub fn spawn(
    kind: Kind,
    name: String,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let (sender, entered) = sync_channel(1);
    let builder = thread::Builder::new().name(name).stack_size(STACK);
    let handle = builder.spawn(move || {
        let result = enter(kind);
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

fn programs(kind: Kind, mode: Mode) -> Result<Vec<BpfProgram>, SandboxError> {
    let enforced = mode == Mode::Enforce;
    let otherwise = if enforced {
        SeccompAction::Trap
    } else {
        SeccompAction::Log
    };
    let mut allowed = calls::of(kind)?;
    if !enforced {
        if kind == Kind::Main {
            // How a C library starts a thread where nothing answers it that way.
            allowed.insert(libc::SYS_clone3, vec![]);
        }
        return Ok(vec![compile(allowed, otherwise, SeccompAction::Allow)?]);
    }
    // Of two filters the stricter answer counts, and an error is less strict
    // than an end: the first has to allow what the second answers.
    allowed.extend(calls::ABSENT.map(|call| (call, vec![])));
    let absent = calls::ABSENT.map(|call| (call, vec![])).into_iter();
    let no_such_call = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    Ok(vec![
        compile(absent.collect(), SeccompAction::Allow, no_such_call)?,
        compile(allowed, otherwise, SeccompAction::Allow)?,
    ])
}

fn compile(
    rules: calls::Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, SandboxError> {
    let filter = SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests;
