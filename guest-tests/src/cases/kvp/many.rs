// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A pool with as many of the longest items as are listed, and clients that do not read.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::super::services::{boot, load};
use super::super::vmbus::note;
use super::{READY, pool_file};
use crate::ensure;
use crate::suite::{Context, Outcome, Vm};

/// As many as are listed of a pool.
const MANY: usize = 4096;
/// As many clients as the API serves.
const SILENT: usize = 64;
/// Less than a test's guest has, and more than any mapping of `vmm`'s own.
const GUEST_KIB: u64 = 128 << 10;
/// What may wait for all of them, and half as much again.
const GROWTH_KIB: u64 = 24 << 10;

/// The distribution's daemon reads the pool's whole file for each item, 10 MiB of it,
/// for which the nest takes ten minutes and more: one of ours is in its place, unless
/// there is time.
pub(super) fn many(context: &Context) -> Outcome {
    let (mut vm, control) = boot(context, |setup| setup)?;
    load(&mut vm)?;
    if context.long {
        vm.sh_ok(&format!(
            "mkdir -p /var/lib/hyperv && /init kvp-fill {} {MANY} && hv_kvp_daemon",
            pool_file(1)
        ))?;
    } else {
        vm.sh_ok(&format!(
            "/init kvp-serve {MANY} </dev/null >/dev/null 2>&1 &"
        ))?;
    }
    control.until_ready(&["kvp"], READY)?;
    let before = own_kib(&vm)?;
    let began = Instant::now();
    let mut silent = Vec::new();
    for number in 0..SILENT {
        let mut stream = UnixStream::connect(control.socket())?;
        stream.write_all(b"GET /v1/kvp/guest HTTP/1.1\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        ensure!(
            head == *b"HTTP/1.1 200",
            "client {number}: {}",
            String::from_utf8_lossy(&head)
        );
        silent.push(stream);
    }
    let asked = began.elapsed();
    let held = own_kib(&vm)?;
    let began = Instant::now();
    let said = control.ok(&["kvp", "list", "--pool", "guest"])?;
    let took = began.elapsed();
    let after = own_kib(&vm)?;
    let mut lines = said.lines().skip(1);
    for number in 0..MANY {
        let line = lines.next().unwrap_or_default();
        ensure!(
            line.starts_with(&format!("{number:04}")),
            "item {number} is listed as {line:?}"
        );
    }
    let rest: Vec<&str> = lines.collect();
    ensure!(rest.is_empty(), "after the items there is {rest:?}");
    let grown = held.max(after).saturating_sub(before);
    ensure!(
        grown < GROWTH_KIB,
        "vmm has grown from {before} to {held} and {after} KiB"
    );
    ensure!(control.health()? == "ok", "the guest has suffered");
    drop(silent);
    note(&format!(
        "{SILENT} who do not read in {:.1} s, a list of {MANY} in {:.1} s; vmm has grown by {grown} KiB",
        asked.as_secs_f64(),
        took.as_secs_f64()
    ));
    vm.power_off()
}

/// KiB of memory that `vmm` uses for itself: without the one large mapping that is
/// its guest's memory.
fn own_kib(vm: &Vm) -> Outcome<u64> {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", vm.pid()))?;
    let number = |line: &str, name: &str| -> Option<u64> {
        let rest = line.strip_prefix(name)?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let (mut size, mut sum) = (0, 0);
    for line in maps.lines() {
        if let Some(kib) = number(line, "Size:") {
            size = kib;
        } else if let Some(kib) = number(line, "Rss:")
            && size < GUEST_KIB
        {
            sum += kib;
        }
    }
    ensure!(sum > 0, "no memory in {} bytes of smaps", maps.len());
    Ok(sum)
}
