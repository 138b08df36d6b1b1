// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl`: control a virtual machine started with `vmm`.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use vmm::cli;
use vmm::ctl::cli::Args;
use vmm::ctl::{self, CtlError, commands};

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return cli::usage("vmmctl", &error),
    };
    match commands::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has had enough.
        Err(CtlError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            ctl::tell(&error);
            error.code()
        }
    }
}
