// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Backup with the distribution's own `hv_vss_daemon`, and a writer that must
//! stand still.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::services::{boot, load};
use crate::ensure;
use crate::suite::{Case, Context, Control, Outcome, Vm};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "vss-freeze",
        "not one write while it is frozen, and writing goes on after each thaw",
        freeze,
    ),
    Case::new(
        "vss-run",
        "vss run thaws whatever happens to its command, to itself, and to the time",
        run,
    ),
    Case::new(
        "vss-daemon",
        "without a daemon nothing is frozen; one killed while frozen is asked until it thaws",
        daemon,
    ),
];

const READY: Duration = Duration::from_secs(15);

/// A guest with its daemon, and a file system on a RAM disk that is written to
/// all the time.
fn ready(context: &Context) -> Outcome<(Vm, Control)> {
    let (mut vm, control) = boot(context, |setup| setup)?;
    load(&mut vm)?;
    vm.sh_ok(
        "modprobe crc32c_generic; modprobe brd rd_nr=1 rd_size=8192 && modprobe ext4 && mke2fs /dev/ram0 && \
         mount -t ext4 /dev/ram0 /mnt",
    )?;
    vm.sh_ok("hv_vss_daemon")?;
    control.until_ready(&["vss"], READY)?;
    vm.sh_ok(
        "(n=0; while :; do n=$((n+1)); echo $n > /mnt/n; sync; usleep 20000; done) \
         > /dev/null 2>&1 < /dev/null &",
    )?;
    writes(&mut vm, true)?;
    Ok((vm, control))
}

/// What is on the device, past the cache.
fn hash(vm: &mut Vm) -> Outcome<String> {
    vm.sh_ok("echo 1 > /proc/sys/vm/drop_caches; sha256sum < /dev/ram0")
}

/// The writer writes, or does not.
fn writes(vm: &mut Vm, expected: bool) -> Outcome {
    let before = hash(vm)?;
    vm.sh_ok("usleep 600000")?;
    let after = hash(vm)?;
    ensure!(
        (before != after) == expected,
        "the device {} within 0.6 s",
        if expected {
            "does not change"
        } else {
            "changes"
        }
    );
    Ok(())
}

fn state(control: &Control) -> Outcome<String> {
    let (status, answer) = control.ask("GET", "/v1/vss", "")?;
    ensure!(status == 200, "GET /v1/vss: {status} {answer}");
    Ok(answer["filesystems"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

fn until(control: &Control, wanted: &str, limit: Duration) -> Outcome<Duration> {
    let began = Instant::now();
    loop {
        let state = state(control)?;
        if state == wanted {
            return Ok(began.elapsed());
        }
        ensure!(began.elapsed() < limit, "{state} after {limit:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn freeze(context: &Context) -> Outcome {
    let (mut vm, control) = ready(context)?;
    control.ok(&["vss", "check"])?;
    let rounds = context.times(5, 100);
    for _ in 0..rounds {
        control.ok(&["vss", "freeze", "--max", "60s"])?;
        ensure!(state(&control)? == "frozen", "it is not frozen");
        writes(&mut vm, false)?;
        let ran = control.run(&["vss", "freeze"])?;
        ensure!(
            ran.code == 1 && ran.stderr.contains("busy"),
            "frozen twice: {ran:?}"
        );
        let said = control.ok(&["vss", "thaw"])?;
        ensure!(said == "thawed\n", "vss thaw said {said:?}");
        writes(&mut vm, true)?;
    }
    let took = Instant::now();
    control.ok(&["vss", "freeze", "--max", "3s"])?;
    writes(&mut vm, false)?;
    until(&control, "thawed", Duration::from_secs(5))?;
    let took = took.elapsed();
    ensure!(
        took > Duration::from_secs(3) && took < Duration::from_secs(4),
        "a deadline of 3 s came after {took:?}"
    );
    writes(&mut vm, true)?;
    let said = control.ok(&["vss", "thaw"])?;
    ensure!(said.contains("not any more"), "too late, and {said:?}");
    super::vmbus::note(&format!("{rounds} freezes; one of 3 s lasted {took:?}"));
    vm.power_off()
}

fn run(context: &Context) -> Outcome {
    let (mut vm, control) = ready(context)?;
    let ran = control.run(&["vss", "run", "--", "sh", "-c", "sleep 0.2; exit 7"])?;
    ensure!(ran.code == 7, "a command that failed: {ran:?}");
    ensure!(state(&control)? == "thawed", "after a command that failed");
    let ran = control.run(&["vss", "run", "--", "sh", "-c", "kill -9 $$"])?;
    ensure!(ran.code == 137, "a command that was killed: {ran:?}");
    ensure!(state(&control)? == "thawed", "after one that was killed");
    let ran = control.run(&["vss", "run", "--", "/no/such/command"])?;
    ensure!(ran.code == 1, "a command that is none: {ran:?}");
    ensure!(state(&control)? == "thawed", "after one that is none");
    let ran = control.run(&["vss", "run", "--max", "1s", "--", "sleep", "3"])?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("thawed before"),
        "a command that took too long: {ran:?}"
    );
    for (signal, limit) in [(Signal::TERM, 3), (Signal::KILL, 6)] {
        let mut child = control
            .command(&["vss", "run", "--max", "5s", "--", "sleep", "30"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        until(&control, "frozen", Duration::from_secs(10))?;
        writes(&mut vm, false)?;
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, signal)?;
        }
        until(&control, "thawed", Duration::from_secs(limit))?;
        child.wait()?;
        writes(&mut vm, true)?;
    }
    vm.power_off()
}

fn daemon(context: &Context) -> Outcome {
    let (mut vm, control) = ready(context)?;
    control.ok(&["vss", "freeze", "--max", "60s"])?;
    vm.sh_ok("killall -9 hv_vss_daemon")?;
    let ran = control.run(&["vss", "thaw"])?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("no-daemon"),
        "thawing without a daemon: {ran:?}"
    );
    ensure!(state(&control)? == "unknown", "known, without a daemon");
    let ran = control.run(&["ic", "disable", "vss"])?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("busy"),
        "taken back while it may be frozen: {ran:?}"
    );
    vm.sh_ok("hv_vss_daemon")?;
    until(&control, "thawed", Duration::from_secs(5))?;
    writes(&mut vm, true)?;
    vm.sh_ok("killall -9 hv_vss_daemon")?;
    let ran = control.run(&["vss", "run", "--", "true"])?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("no-daemon"),
        "freezing without a daemon: {ran:?}"
    );
    writes(&mut vm, true)?;
    vm.power_off()
}
