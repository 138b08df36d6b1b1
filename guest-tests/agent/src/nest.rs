// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The nest's role: the host's files under `/host`, commands by frames.
//!
//! ```text
//! /host            9p, read-only: the machine that runs `cargo xtask`
//! /host/{dev,proc,sys,run,…}   this machine's own
//! /host/tmp        what the host has there, writes kept in memory
//! /host/<scratch>  9p, writable
//! ```

pub mod batch;
mod jobs;
mod port;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::mount::{MountFlags, mount_bind_recursive};

use crate::machine::{cmdline_value, load_modules, loopback_up, mount_on};

/// Where the host's files are.
pub const HOST: &str = "/host";

/// The largest message that virtio carries for 9p in Linux 6.1.
const NINEP: &str = "trans=virtio,version=9p2000.L,msize=512000";

/// Loads the modules and mounts the host's files.
pub fn prepare() {
    load_modules();
    let none = MountFlags::empty();
    let options = format!("{NINEP},cache=loose");
    mount_on("host", HOST, "9p", MountFlags::RDONLY, &options);
    mount_on("debugfs", "/sys/kernel/debug", "debugfs", none, "");
    mount_on("tracefs", "/sys/kernel/tracing", "tracefs", none, "");
    mount_on("cgroup2", "/sys/fs/cgroup", "cgroup2", none, "");
    for dir in ["/dev", "/proc", "/sys", "/run"] {
        let target = format!("{HOST}{dir}");
        if let Err(error) = mount_bind_recursive(dir, &target) {
            eprintln!("agent: bind {dir} to {target}: {error}");
        }
    }
    mount_on("rw", "/rw", "tmpfs", none, "mode=0755");
    copy_on_write("tmp");
    copy_on_write("var/tmp");
    if let Some(scratch) = scratch() {
        let target = format!("{HOST}{}", scratch.display());
        let options = format!("{NINEP},cache=mmap");
        mount_on("scratch", &target, "9p", none, &options);
    }
    loopback_up();
}

/// A writable view of one of the host's directories; nothing is written back.
fn copy_on_write(dir: &str) {
    let target = format!("{HOST}/{dir}");
    let upper = format!("/rw/{dir}/upper");
    let work = format!("/rw/{dir}/work");
    for made in [&upper, &work] {
        if let Err(error) = fs::create_dir_all(made) {
            eprintln!("agent: {made}: {error}");
        }
    }
    let _ = fs::set_permissions(&upper, std::os::unix::fs::PermissionsExt::from_mode(0o1777));
    let options = format!("lowerdir={target},upperdir={upper},workdir={work}");
    let none = MountFlags::empty();
    if !mount_on("overlay", &target, "overlay", none, &options) {
        mount_on("tmp", &target, "tmpfs", none, "mode=1777");
    }
}

/// The scratch directory's path: hexadecimal on the command line, as paths
/// may have bytes that a command line can't.
fn scratch() -> Option<PathBuf> {
    let hex = cmdline_value("agent.scratch")?;
    let bytes: Option<Vec<u8>> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok())
        .collect();
    Some(PathBuf::from(OsString::from_vec(bytes?)))
}

/// Serves commands until the host says stop or goes away.
pub fn serve() -> ExitCode {
    match port::open("xtask") {
        Ok(port) => jobs::serve(port),
        Err(error) => eprintln!("agent: no port to the host: {error}"),
    }
    ExitCode::SUCCESS
}
