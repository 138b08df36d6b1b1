// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/init kexec KERNEL INITRD CMDLINE`: from this kernel straight into another.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::process::ExitCode;

use rustix::system::{RebootCommand, reboot};

use crate::raw::kexec_file_load;

/// Doesn't return where it works.
pub fn run(args: &[OsString]) -> ExitCode {
    let [kernel, initrd, cmdline] = args else {
        eprintln!("usage: /init kexec KERNEL INITRD CMDLINE");
        return ExitCode::from(2);
    };
    let load = || -> io::Result<()> {
        let cmdline = cmdline.to_string_lossy();
        kexec_file_load(&File::open(kernel)?, &File::open(initrd)?, &cmdline)?;
        Ok(reboot(RebootCommand::Kexec)?)
    };
    if let Err(error) = load() {
        eprintln!("kexec: {error}");
    }
    ExitCode::FAILURE
}
