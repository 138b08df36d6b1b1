// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/init` of our test machines: the nest (L1) and the guests in it (L2).
//!
//! PID 1 prepares the machine, starts itself once more as the server of its
//! role, reaps orphans, obeys signals, and powers off when the server ends. The kernel's
//! command line decides: `agent.role=nest` or `agent.role=batch`, else a guest. Called as a program
//! it does what tests need in a guest: `/init uio-…`, `/init vsock-…`,
//! `/init kvp-pool …`, `/init kvp-fill …`, `/init kvp-serve …` and `/init kexec …`.
#![deny(unsafe_code)]
// The library half has the public surface; what is public here is internal.
#![allow(unreachable_pub)]

mod child;
mod guest;
mod kexec;
mod kvpd;
mod machine;
mod nest;
mod pool;
mod power;
mod process;
#[allow(unsafe_code)] // Each block says why it is sound.
mod raw;
mod stream;
mod uio;
mod vsock;

use std::process::{Command, ExitCode};

/// Where the agent finds itself in every image.
const SELF: &str = "/init";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let mode = args.next();
    match mode.as_deref().and_then(|mode| mode.to_str()) {
        Some("--job") => child::become_job(args.collect()),
        Some("--serve-nest") => nest::serve(),
        Some("--serve-batch") => nest::batch::serve(),
        Some("--serve-guest") => guest::serve(),
        Some("kvp-pool") => pool::run(&args.collect::<Vec<_>>()),
        Some("kvp-fill") => pool::fill(&args.collect::<Vec<_>>()),
        Some("kvp-serve") => kvpd::run(&args.collect::<Vec<_>>()),
        Some("kexec") => kexec::run(&args.collect::<Vec<_>>()),
        Some(name) if name.starts_with("vsock-") => vsock::run(name, &args.collect::<Vec<_>>()),
        Some(name) if name.starts_with("uio-") => uio::run(name, &args.collect::<Vec<_>>()),
        _ if std::process::id() == 1 => init(),
        _ => {
            eprintln!("guest-agent: runs as /init of a test machine, see `cargo xtask --help`");
            ExitCode::from(2)
        }
    }
}

fn init() -> ExitCode {
    machine::mount_basics();
    let role = machine::cmdline_value("agent.role").unwrap_or_default();
    let server = match role.as_str() {
        "nest" => {
            nest::prepare();
            "--serve-nest"
        }
        "batch" => {
            nest::batch::prepare();
            "--serve-batch"
        }
        _ => {
            guest::prepare();
            power::obey();
            "--serve-guest"
        }
    };
    match Command::new(SELF).arg(server).spawn() {
        Ok(server) => process::reap_until(server.id()),
        Err(error) => eprintln!("agent: cannot start {SELF} {server}: {error}"),
    }
    power::server_ended()
}
