// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The outer half of `cargo xtask bench --guest`: builds, starts the nest in
//! deterministic time, and reports.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::root::{self, Root};
use super::{report, rings};
use crate::build;
use crate::error::{Context, Result, failed, output_of};
use crate::exec::{self, Exec};
use crate::image::Image;
use crate::kernels::{self, Kernel};
use crate::paths;
use crate::progress::step;
use crate::tools::QEMU;

const LAYER: &str = "bench";

/// What a user wants measured.
#[derive(Debug, Default)]
pub struct Wish {
    /// Print the figures as JSON.
    pub json: bool,
    /// Only parts whose names contain one of these.
    pub only: Vec<String>,
}

/// Measures guests.
pub fn guest(wish: &Wish) -> Result<u8> {
    let qemu = QEMU.require()?;
    let image = Image::bench()?;
    let (vmm, agent, suite) = step("building vmm as it is released", || {
        Ok((
            build::released("vmm", "vmm")?,
            build::agent()?,
            build::program("guest-tests", "guest-suite")?,
        ))
    })?;
    let with_daemons = Image::bench_with_daemons()?.initramfs;
    let vmlinux = image.kernel.vmlinux()?;
    let out = paths::scratch()?.join("bench.json");
    let _ = fs::remove_file(&out);
    let mut root = Root::default();
    for program in [&vmm, &agent, &suite, &qemu] {
        root.program(program);
    }
    root.peers_firmware();
    let kernels = [image.kernel.vmlinuz(), vmlinux];
    for file in kernels.iter().chain([&image.initramfs, &with_daemons]) {
        root.file(file);
    }
    let [vmlinuz, vmlinux] = kernels;
    let mut argv: Vec<OsString> = vec![suite.into(), "bench".into()];
    let mut pair = |name: &str, value: OsString| argv.extend([name.into(), value]);
    pair("--vmm", vmm.into());
    pair("--agent", agent.into());
    pair("--vmlinuz", vmlinuz.into());
    pair("--vmlinux", vmlinux.into());
    pair("--initramfs", image.initramfs.into());
    pair("--with-daemons", with_daemons.into());
    pair("--qemu", qemu.into());
    pair("--out", root::RESULTS.into());
    argv.extend(wish.only.iter().map(OsString::from));
    let status = exec::exec(&Exec {
        argv: root.command(argv, &out),
        icount: true,
        ..Exec::default()
    })?;
    if status != 0 {
        return Ok(status);
    }
    let text = fs::read_to_string(&out).context(LAYER, out.display())?;
    let found: Value =
        serde_json::from_str(&text).map_err(|error| failed(LAYER, error.to_string()))?;
    let about = format!(
        "An AMD CPU, emulated by {} on {}; the nest runs Linux {}, the guest Linux {} with 1 vCPU and 256 MiB.",
        version(&PathBuf::from("qemu-system-x86_64")),
        machine(),
        Kernel::get(kernels::NEST)?.release,
        image.kernel.release
    );
    let tables = report::tables(&found, &about);
    if wish.json {
        println!("{found:#}");
    } else {
        println!("{tables}");
    }
    // A part of the figures replaces nothing.
    if wish.only.is_empty() {
        report::write(&tables)?;
    }
    Ok(0)
}

/// The protocol's own speed: criterion's benchmarks.
pub fn protocol(wish: &Wish) -> Result<u8> {
    rings::measure(wish)
}

/// What this machine's CPU calls itself.
pub(super) fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let name = model.and_then(|line| line.split_once(": "));
    name.map_or("an unknown CPU", |(_, name)| name).to_owned()
}

/// The first line of what a program says of its version.
fn version(program: &Path) -> String {
    let said = output_of(LAYER, Command::new(program).arg("--version")).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    said.lines().next().unwrap_or("QEMU").to_owned()
}
