// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a machine ends, or doesn't: reset in place, crash, timeout, signals.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::boot::{check_timers, with_timers};
use crate::ensure;
use crate::suite::{Case, Context, Outcome, Vm};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "reboot-in-place",
        "5 reboots in the same process, each from a clean state",
        reboot,
    ),
    Case::new(
        "crash",
        "a panic ends vmm with 20 and is in the event log",
        crash,
    ),
    Case::new(
        "no-root",
        "a kernel without anything to run panics, and says so",
        no_root,
    )
    .once(),
    Case::new(
        "triple-fault",
        "a triple fault ends vmm with 20",
        triple_fault,
    )
    .once(),
    Case::new(
        "on-reset",
        "--on-reset exit ends vmm with 10, exit:CODE with CODE",
        on_reset,
    )
    .once(),
    Case::new(
        "on-shutdown",
        "--on-shutdown exit:CODE and reset",
        on_shutdown,
    )
    .once(),
    Case::new(
        "on-crash",
        "--on-crash reset boots again after a panic",
        on_crash,
    )
    .once(),
    Case::new("timeout", "--timeout ends vmm with 30", timeout).once(),
    Case::new("signals", "SIGTERM and SIGINT end vmm with 130", signals).once(),
];

fn reboot(context: &Context) -> Outcome {
    let mut vm = with_timers(context.setup()).launch()?;
    let mut boots = BTreeSet::new();
    for round in 0..=5 {
        let hello = vm.wait_agent()?;
        ensure!(
            hello.cpus == context.cpus,
            "round {round}: {} CPUs",
            hello.cpus
        );
        let (guest, host) = hello.clocks;
        ensure!(
            guest.abs_diff(host) <= 2,
            "round {round}: the clock is {guest}, not {host}"
        );
        let boot = vm.sh_ok("cat /proc/sys/kernel/random/boot_id")?;
        ensure!(
            boots.insert(boot),
            "round {round}: the guest has not booted anew"
        );
        check_clean(&mut vm, round)?;
        check_timers(&mut vm, context.cpus)?;
        if round < 5 {
            vm.sh_last("reboot -f")?;
        }
    }
    let starts = vm
        .events()?
        .iter()
        .filter(|event| event["event"] == "running")
        .count();
    ensure!(
        starts == 6,
        "the event log has {starts} starts instead of 6"
    );
    vm.power_off()
}

/// Nothing of the run before may be left in the devices.
fn check_clean(vm: &mut Vm, round: u32) -> Outcome {
    let uptime = vm.sh_ok("cut -d. -f1 /proc/uptime")?;
    let uptime: u64 = uptime.parse().unwrap_or(u64::MAX);
    ensure!(uptime < 100, "round {round}: up for {uptime} s already");
    let words = "unchecked MSR access|Call Trace|spurious|nobody cared";
    let trouble = vm.sh(&format!("dmesg | grep -E '{words}'"))?.stdout;
    ensure!(trouble.is_empty(), "round {round}: {trouble}");
    // The reference clock starts again too: sched_clock is taken from it.
    let first = vm.sh_ok("dmesg | head -n 1 | cut -c 2-13")?;
    let seconds: f64 = first.trim().parse().unwrap_or(f64::MAX);
    ensure!(seconds < 1.0, "round {round}: the log starts at {first} s");
    Ok(())
}

fn crash(context: &Context) -> Outcome {
    let mut setup = context.setup();
    if context.version() < (6, 5) {
        // Older kernels tell the host of a panic through this module only.
        setup = setup.cmdline("agent.modules=hv_vmbus");
    }
    let mut vm = setup.boot()?;
    vm.sh_last("echo c > /proc/sysrq-trigger")?;
    vm.expect_exit(20)?;
    let text = "sysrq triggered crash";
    ensure!(
        vm.said().contains(text),
        "vmm doesn't show \"{text}\" but: {}",
        vm.said()
    );
    ensure!(
        vm.said().to_lowercase().contains("rip"),
        "vmm shows no registers"
    );
    check_crash_event(&vm, text)
}

/// The event log must have a crash with this text of the kernel's.
pub(super) fn check_crash_event(vm: &Vm, text: &str) -> Outcome {
    let events = vm.events()?;
    let crash = events.iter().find(|event| event["event"] == "crashed");
    let message = crash
        .and_then(|crash| crash["message"].as_str())
        .unwrap_or_default();
    ensure!(
        message.contains(text),
        "no crash with \"{text}\" in the event log: {events:?}"
    );
    let last = events.last().map(|event| &event["code"]);
    ensure!(last == Some(&20.into()), "the event log ends with {last:?}");
    Ok(())
}

fn no_root(context: &Context) -> Outcome {
    let mut vm = context.setup().initramfs(None).launch()?;
    vm.expect_exit(20)?;
    let said = vm.said();
    ensure!(
        said.contains("Kernel panic"),
        "the kernel's panic is not shown, but: {said}"
    );
    ensure!(
        vm.console.text().contains("Unable to mount root fs"),
        "no word of the root file system"
    );
    Ok(())
}

fn triple_fault(context: &Context) -> Outcome {
    let mut vm = context.setup().cmdline("reboot=triple").boot()?;
    vm.sh_last("reboot -f")?;
    vm.expect_exit(20)?;
    let events = vm.events()?;
    ensure!(
        events
            .iter()
            .any(|event| event["event"] == "crashed" && event["cause"] == "triple-fault"),
        "no triple fault in the event log: {events:?}"
    );
    // On AMD KVM has reset the vCPU by then. Its registers are told only where they
    // are those of the fault.
    let crash = events.iter().find(|event| event["event"] == "crashed");
    let registers = crash.map(|crash| &crash["registers"]);
    let rip = registers.and_then(|registers| registers["rip"].as_u64());
    let said = vm.said();
    ensure!(
        match rip {
            Some(rip) => rip > 0xFFFF_0000_0000_0000 && said.contains("RIP"),
            None => said.contains("its registers were lost") && !said.contains("RIP"),
        },
        "registers {registers:?}, and vmm said: {said}"
    );
    Ok(())
}

fn on_reset(context: &Context) -> Outcome {
    for (wish, code) in [("exit", 10), ("exit:77", 77)] {
        let mut vm = context.setup().args(&["--on-reset", wish]).boot()?;
        vm.sh_last("reboot -f")?;
        vm.expect_exit(code)?;
    }
    Ok(())
}

fn on_shutdown(context: &Context) -> Outcome {
    let mut vm = context.setup().args(&["--on-shutdown", "exit:42"]).boot()?;
    vm.sh_last("poweroff -f")?;
    vm.expect_exit(42)?;
    let mut vm = context.setup().args(&["--on-shutdown", "reset"]).boot()?;
    vm.sh_last("poweroff -f")?;
    vm.wait_agent().map(drop)
}

fn on_crash(context: &Context) -> Outcome {
    let mut vm = context.setup().args(&["--on-crash", "reset"]).boot()?;
    vm.sh_last("echo c > /proc/sysrq-trigger")?;
    vm.wait_agent()?;
    vm.power_off()
}

fn timeout(context: &Context) -> Outcome {
    let start = Instant::now();
    let mut vm = context.setup().args(&["--timeout", "3s"]).launch()?;
    vm.expect_exit(30)?;
    let took = start.elapsed();
    ensure!(
        took >= Duration::from_secs(3) && took < Duration::from_secs(20),
        "--timeout 3s took {took:?}"
    );
    let events = vm.events()?;
    ensure!(
        events.iter().any(|event| event["event"] == "timed-out"),
        "no timeout in the event log: {events:?}"
    );
    Ok(())
}

fn signals(context: &Context) -> Outcome {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut vm = context.setup().boot()?;
        vm.signal(signal)?;
        vm.expect_exit(130)?;
    }
    // And while the kernel is still starting.
    let mut vm = context.setup().cmdline("loglevel=7").launch()?;
    vm.console
        .expect("Linux version", Instant::now() + Duration::from_secs(60))?;
    vm.signal(Signal::TERM)?;
    vm.expect_exit(130)
}
