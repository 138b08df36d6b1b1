// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A thread that makes a system call which its filter does not know, under the
//! filters of `vmm --seccomp log`. The guest test `seccomp-noticed` starts it, to
//! see that a run with `XTASK_SECCOMP=log` would notice such a call.

use std::io;
use std::os::unix::process::parent_id;
use std::process::ExitCode;

use vmm::sandbox::{self, Kind, Mode};

fn main() -> ExitCode {
    match stray() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("seccomp_stray: {error}");
            ExitCode::FAILURE
        }
    }
}

fn stray() -> io::Result<()> {
    sandbox::init(Mode::Log).map_err(io::Error::other)?;
    let thread = sandbox::spawn(Kind::Bus, "stray".to_owned(), || {
        // No thread of a `vmm` asks for its parent.
        println!("getppid gives {}", parent_id());
    })?;
    thread
        .join()
        .map_err(|_| io::Error::other("the thread panicked"))
}
