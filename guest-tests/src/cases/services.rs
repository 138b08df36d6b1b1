// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The services that every guest kernel serves by itself, and what the host
//! says of them while a guest is well, paused, stopped or gone.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

pub(super) mod errors;
pub(super) mod shutdown;
pub(super) mod time;
pub(super) mod toggle;

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::vmbus::{check_log, clear_log, note};
use crate::ensure;
use crate::suite::{Case, Context, Control, Outcome, Setup, Vm};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "services-ready",
        "the newest version of each service, and health ok within 5 s",
        ready,
    )
    .with_cpus(&[1, 4])
    .with_both_synics(),
    Case::new(
        "services-lost-panic",
        "health is lost within 10 s after a panic",
        lost_by_panic,
    )
    .with_cpus(&[1, 4])
    .with_both_synics_in_full(),
    Case::new(
        "services-lost-halt",
        "health is lost within 10 s after all vCPUs have turned interrupts off",
        lost_by_halt,
    )
    .with_cpus(&[1, 4])
    .with_both_synics_in_full(),
    Case::new(
        "services-pause",
        "a paused guest is never lost, and gets the time when it goes on",
        pause,
    )
    .with_both_synics_in_full(),
    Case::new(
        "services-stopped-host",
        "all services come back after vmm itself was stopped",
        stopped_host,
    )
    .with_both_synics_in_full(),
];

/// What a guest's kernel serves, the newest version of each, and its own words.
pub(super) const NEWEST: [(&str, &str, &str); 3] = [
    ("heartbeat", "3.0", "Heartbeat"),
    ("shutdown", "3.2", "Shutdown"),
    ("timesync", "4.0", "TimeSync"),
];
/// Their names.
pub(super) const NAMES: [&str; 3] = ["heartbeat", "shutdown", "timesync"];
/// From hv_utils' loading on.
const OK_WITHIN: Duration = Duration::from_secs(5);
/// From a guest's last words on.
const LOST_WITHIN: Duration = Duration::from_secs(10);

/// A guest with these services, and the way to its `vmm`.
pub(super) fn boot(
    context: &Context,
    change: impl FnOnce(Setup<'_>) -> Setup<'_>,
) -> Outcome<(Vm, Control)> {
    let control = Control::new(context);
    let socket = control.socket().display().to_string();
    let setup = context.setup().args(&["--api-socket", &socket]);
    let vm = change(setup).boot()?;
    Ok((vm, control))
}

/// The same, with its drivers loaded and every service ready.
pub(super) fn boot_ready(
    context: &Context,
    change: impl FnOnce(Setup<'_>) -> Setup<'_>,
) -> Outcome<(Vm, Control)> {
    let (mut vm, control) = boot(context, change)?;
    clear_log(&mut vm)?;
    load(&mut vm)?;
    control.until_ready(&NAMES, OK_WITHIN)?;
    control.until_health("ok", OK_WITHIN)?;
    Ok((vm, control))
}

pub(super) fn load(vm: &mut Vm) -> Outcome {
    vm.sh_ok("modprobe hv_utils").map(drop)
}

fn ready(context: &Context) -> Outcome {
    let (mut vm, control) = boot(context, |setup| setup)?;
    let status = control.status()?;
    ensure!(
        status["health"] == "no-contact" && status["state"] == "running",
        "before the drivers are there: {status}"
    );
    clear_log(&mut vm)?;
    let start = Instant::now();
    load(&mut vm)?;
    control.until_health("ok", OK_WITHIN)?;
    control.until_ready(&NAMES, OK_WITHIN.saturating_sub(start.elapsed()))?;
    let took = start.elapsed();
    for (name, version, words) in NEWEST {
        let said = vm.sh_ok(&format!("dmesg | grep -o '{words} IC version.*'"))?;
        ensure!(
            said == format!("{words} IC version {version}"),
            "the guest says {said:?} of {name}"
        );
        let entry = control.service(name)?;
        ensure!(
            entry["version"] == version && entry["framework"] == "3.0",
            "the status says {entry} of {name}"
        );
    }
    let shown = control.ok(&["status"])?;
    ensure!(
        NAMES.iter().all(|name| shown.contains(name)) && shown.contains("ok"),
        "vmmctl status shows {shown}"
    );
    check_log(&mut vm, &[])?;
    note(&format!("ok {:.1} s after loading", took.as_secs_f64()));
    vm.power_off()
}

fn lost_by_panic(context: &Context) -> Outcome {
    lost(context, "echo c > /proc/sysrq-trigger", "crashed")
}

/// The last act of each CPU is to turn interrupts off, and then to halt.
fn lost_by_halt(context: &Context) -> Outcome {
    lost(context, "halt -f", "running")
}

fn lost(context: &Context, script: &str, state: &str) -> Outcome {
    let (mut vm, control) = boot_ready(context, |setup| setup.args(&["--on-crash", "continue"]))?;
    vm.sh_last(script)?;
    let took = control.until_health("lost", LOST_WITHIN)?;
    control.until(state, Duration::from_secs(1), |vm| vm["state"] == state)?;
    // Who cannot answer any more is reported, and ended all the same.
    let ran = control.run(&["wait", "heartbeat", "--timeout", "100ms"])?;
    ensure!(ran.code == 3, "waiting for it ended with {}", ran.code);
    let ran = control.run(&["shutdown", "--timeout", "500ms", "--then-kill"])?;
    ensure!(
        ran.code == 0 && ran.stdout.contains("ended"),
        "--then-kill: {ran:?}"
    );
    note(&format!("lost after {:.1} s", took.as_secs_f64()));
    vm.expect_exit(0)
}

/// Seconds of the guest's that a program of its sleeps, and where it says when it woke.
const NAP_SECONDS: f64 = 5.0;
const NAP: &str = "/tmp/nap";
const UPTIME: &str = "cut -d' ' -f1 /proc/uptime";

fn pause(context: &Context) -> Outcome {
    let length = Duration::from_secs(context.times(12, 60));
    let (mut vm, control) = boot_ready(context, |setup| setup)?;
    let uptime = uptime(&mut vm)?;
    let before = control.status()?;
    let syncs = control.ask("GET", "/v1/time", "")?.1["syncs"].as_u64();
    // A timer that runs through the pause.
    vm.sh_ok(&format!(
        "rm -f {NAP}; (sleep {NAP_SECONDS}; {UPTIME} >{NAP}) >/dev/null 2>&1 &"
    ))?;
    let napping = self::uptime(&mut vm)?;
    control.ok(&["pause"])?;
    let start = Instant::now();
    while start.elapsed() < length {
        let status = control.status()?;
        ensure!(
            status["health"] == "paused" && status["state"] == "paused",
            "while it is paused: {status}"
        );
        thread::sleep(Duration::from_millis(500));
    }
    control.ok(&["resume"])?;
    let resumed = Instant::now();
    while resumed.elapsed() < Duration::from_secs(3) {
        let health = control.health()?;
        ensure!(health == "ok", "it is {health} after it was paused");
        thread::sleep(Duration::from_millis(100));
    }
    let health: Vec<Value> = vm.events()?;
    let mut told = health.iter().filter(|event| event["event"] == "health");
    ensure!(
        told.all(|event| event["health"] != "lost"),
        "it was called lost: {health:?}"
    );
    let now = control.ask("GET", "/v1/time", "")?.1["syncs"].as_u64();
    ensure!(
        now == syncs.map(|syncs| syncs + 1),
        "{now:?} SYNCs after {syncs:?} before the pause"
    );
    let woke = vm.sh_ok(&format!(
        "until [ -s {NAP} ]; do usleep 20000; done; cat {NAP}"
    ))?;
    let nap = woke.parse::<f64>().unwrap_or(0.0) - napping;
    ensure!(
        (NAP_SECONDS - 1.0..NAP_SECONDS + 3.0).contains(&nap),
        "a nap of {NAP_SECONDS} s that was paused took {nap:.1} s of the guest's time"
    );
    // Nobody has asked for the time.
    let offset = time::check(&mut vm, "")?;
    let slept = start.elapsed().as_secs_f64() - (self::uptime(&mut vm)? - uptime);
    ensure!(
        slept > length.as_secs_f64() - 2.0,
        "the guest's uptime went on in the pause: {slept:.1} s are missing"
    );
    ensure!(
        before["resets"] == 0 && control.status()?["resets"] == 0,
        "it was reset"
    );
    check_log(&mut vm, &[])?;
    note(&format!(
        "after {} s of pause the clock is off by {offset}",
        length.as_secs()
    ));
    vm.power_off()
}

/// Seconds that the guest has run.
fn uptime(vm: &mut Vm) -> Outcome<f64> {
    let text = vm.sh_ok(UPTIME)?;
    Ok(text.trim().parse().unwrap_or(f64::NAN))
}

fn stopped_host(context: &Context) -> Outcome {
    let length = Duration::from_secs(context.times(10, 30));
    let (mut vm, control) = boot_ready(context, |setup| setup)?;
    vm.signal(Signal::STOP)?;
    thread::sleep(length);
    vm.signal(Signal::CONT)?;
    let start = Instant::now();
    control.until_health("ok", Duration::from_secs(5))?;
    // A beat and a sample come by themselves, and the guest can be asked.
    let samples = || Ok(control.ask("GET", "/v1/time", "")?.1["samples"].as_u64());
    let before: Outcome<Option<u64>> = samples();
    let before = before?;
    while samples()? <= before {
        ensure!(
            start.elapsed() < Duration::from_secs(12),
            "no more samples after vmm was stopped"
        );
        thread::sleep(Duration::from_millis(200));
    }
    control.until_ready(&NAMES, Duration::from_secs(1))?;
    ensure!(control.health()? == "ok", "it does not stay well");
    control.ok(&["time", "sync"])?;
    time::check(&mut vm, "")?;
    check_log(&mut vm, &[])?;
    control.ok(&["shutdown"])?;
    vm.expect_exit(0)
}
