// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl shutdown`: guests that do it, refuse it, and ignore it.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{NAMES, boot_ready, load};
use crate::ensure;
use crate::suite::{Case, Context, Outcome};

pub(crate) const CASES: &[Case] = &[
    Case::new(
        "shutdown",
        "vmmctl shutdown --reboot reboots the guest, vmmctl shutdown powers it off",
        shutdown,
    )
    .with_both_synics_in_full(),
    Case::new(
        "shutdown-refused",
        "a guest that cannot hibernate says so, with its status",
        refused,
    ),
    Case::new(
        "shutdown-ignored",
        "a guest that ignores the request is reported, and ended with --then-kill",
        ignored,
    ),
    Case::new(
        "shutdown-ended",
        "vmmctl shutdown tells who has ended the VM, if it was not its guest",
        ended,
    )
    .within(600),
];

fn shutdown(context: &Context) -> Outcome {
    let (mut vm, control) = boot_ready(context, |setup| setup)?;
    let said = control.ok(&["shutdown", "--reboot"])?;
    ensure!(
        said == "accepted by the guest\nrebooted\n",
        "vmmctl shutdown --reboot said {said:?}"
    );
    vm.wait_agent()?;
    let status = control.status()?;
    ensure!(
        status["state"] == "running" && status["resets"] == 1 && status["health"] == "no-contact",
        "after the reboot: {status}"
    );
    load(&mut vm)?;
    control.until_ready(&NAMES, Duration::from_secs(5))?;
    let said = control.ok(&["shutdown"])?;
    ensure!(
        said == "accepted by the guest\nstopped\n",
        "vmmctl shutdown said {said:?}"
    );
    vm.expect_exit(0)?;
    let events = vm.events()?;
    let accepted: Vec<_> = events
        .iter()
        .filter(|event| event["event"] == "shutdown-accepted")
        .map(|event| event["action"].clone())
        .collect();
    ensure!(
        accepted == ["reboot", "shutdown"],
        "accepted, says the event log: {accepted:?}"
    );
    ensure!(!control.socket().exists(), "the socket is left behind");
    // Nobody is there any more, which is what this one waits for.
    let ran = control.run(&["wait", "stopped"])?;
    ensure!(ran.code == 0, "vmmctl wait stopped: {ran:?}");
    let ran = control.run(&["status"])?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("cannot reach the VM"),
        "vmmctl status of nobody: {ran:?}"
    );
    Ok(())
}

fn refused(context: &Context) -> Outcome {
    let (vm, control) = boot_ready(context, |setup| setup)?;
    let ran = control.run(&["shutdown", "--hibernate"])?;
    ensure!(
        ran.code == 1
            && ran.stderr.contains("0x80004005")
            && ran.stderr.contains("unspecified failure")
            && ran.stderr.contains("layer guest"),
        "vmmctl shutdown --hibernate: {ran:?}"
    );
    let body = r#"{"action":"hibernate"}"#;
    let (status, answer) = control.ask("PUT", "/v1/vm/power", body)?;
    let error = &answer["error"];
    ensure!(
        status == 502 && error["code"] == "guest-error" && error["hresult"] == 0x8000_4005_u32,
        "the API answers {status} {answer}"
    );
    let state = control.status()?["state"].clone();
    ensure!(state == "running", "after it was refused it is {state}");
    // No driver, nobody to ask: the layer is another.
    let mut vm = vm;
    vm.sh_ok("rmmod hv_utils")?;
    let ran = control.run(&["shutdown"])?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("not-open") && ran.stderr.contains("layer channel"),
        "without a driver: {ran:?}"
    );
    control.ok(&["ic", "disable", "shutdown"])?;
    let ran = control.run(&["shutdown"])?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("disabled") && ran.stderr.contains("layer host"),
        "without the service: {ran:?}"
    );
    vm.power_off()
}

/// A guest that takes its time, and somebody who does not wait.
fn ended(context: &Context) -> Outcome {
    for (who, why, code) in [
        ("kill", "ended by the API (kill)", 130),
        ("TERM", "ended by SIGTERM", 130),
        ("KILL", "ended without a word", -1),
        ("--timeout", "vmm --timeout passed", 30),
    ] {
        let (mut vm, control) = boot_ready(context, |setup| {
            let setup = setup.cmdline("agent.ignore-shutdown");
            match who {
                "--timeout" => setup.args(&["--timeout", "120s"]),
                _ => setup,
            }
        })?;
        let asked = control
            .command(&["shutdown", "--timeout", "300s"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        control.until("stopping", Duration::from_secs(20), |vm| {
            vm["state"] == "stopping"
        })?;
        match who {
            "kill" => drop(control.ok(&["kill"])?),
            "TERM" => vm.signal(Signal::TERM)?,
            "KILL" => vm.signal(Signal::KILL)?,
            _ => {}
        }
        let ran = asked.wait_with_output()?;
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        ensure!(
            ran.status.code() == Some(1) && said.contains(why),
            "vmmctl shutdown of a VM that {who} ended: {} {said}",
            ran.status
        );
        ensure!(
            ran.stdout == b"accepted by the guest\n",
            "it said {:?}",
            String::from_utf8_lossy(&ran.stdout)
        );
        if code >= 0 {
            vm.expect_exit(code)?;
        }
    }
    Ok(())
}

fn ignored(context: &Context) -> Outcome {
    let (mut vm, control) = boot_ready(context, |setup| setup.cmdline("agent.ignore-shutdown"))?;
    let start = Instant::now();
    let ran = control.run(&["shutdown", "--timeout", "2s"])?;
    let took = start.elapsed();
    ensure!(
        ran.code == 3
            && ran.stdout == "accepted by the guest\n"
            && ran.stderr.contains("has not done it in time"),
        "a guest that ignores it: {ran:?}"
    );
    ensure!(
        took >= Duration::from_secs(2) && took < Duration::from_secs(6),
        "--timeout 2s took {took:?}"
    );
    let status = control.status()?;
    ensure!(
        status["state"] == "stopping" && status["health"] == "ok",
        "a guest that has accepted: {status}"
    );
    let shown = control.ok(&["status"])?;
    ensure!(shown.contains("stopping"), "vmmctl status shows {shown}");
    thread::sleep(Duration::from_millis(100));
    let ran = control.run(&["shutdown", "--timeout", "1s", "--then-kill"])?;
    ensure!(
        ran.code == 0
            && ran.stdout == "accepted by the guest\nended\n"
            && ran.stderr.contains("has not done it in time"),
        "--then-kill: {ran:?}"
    );
    vm.expect_exit(0)
}
