// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The last steps of a job before it becomes the command: `--job`.
//!
//! A process of its own does what std's `Command` can't do without unsafe code:
//! take a controlling terminal and change the root.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// `--job`'s arguments: `pty|pipe ROOT CWD PROGRAM ARG…`.
pub fn become_job(args: Vec<OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let (Some(mode), Some(root), Some(cwd), Some(program)) =
        (args.next(), args.next(), args.next(), args.next())
    else {
        eprintln!("agent: --job: too few arguments");
        return ExitCode::from(125);
    };
    if mode == "pty" {
        let terminal = rustix::process::setsid()
            .and_then(|_| rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()));
        if let Err(error) = terminal {
            eprintln!("agent: no controlling terminal: {error}");
        }
    }
    if let Err(error) = rustix::process::chroot(&root) {
        eprintln!("agent: chroot {}: {error}", root.display());
        return ExitCode::from(125);
    }
    if let Err(error) = std::env::set_current_dir(&cwd) {
        eprintln!(
            "xtask exec: {}: {error} (as seen in the nest)",
            cwd.display()
        );
        return ExitCode::from(125);
    }
    let error = Command::new(&program).args(args).exec();
    eprintln!("xtask exec: {}: {error}", program.display());
    // As a shell has it: 127 not found, 126 found but not to be run.
    ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound {
        127
    } else {
        126
    })
}
