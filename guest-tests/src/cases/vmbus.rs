// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Stock kernels connect to the bus, leave it, and connect again.

pub(super) mod channel;
pub(super) mod exits;
pub(super) mod restart;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::ensure;
use crate::runner::NOTE;
use crate::suite::{Case, Context, Failure, Outcome, Shell, Vm};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "vmbus-connect",
        "hv_vmbus connects with the newest version, and the echo device is there",
        connect,
    )
    .with_cpus(&[1, 4])
    .with_both_synics(),
    Case::new(
        "vmbus-version",
        "--vmbus-version 4.0 is what the guest gets",
        version,
    ),
    Case::new(
        "vmbus-reload",
        "hv_vmbus is unloaded and loaded, again and again",
        reload,
    )
    .with_both_synics_in_full()
    .within(180),
];

/// The echo device's type and instance, as sysfs writes them.
const ECHO_TYPE: &str = "7c5e1a5d-52c6-4b0e-9d3b-0f3c6f865e01";
const ECHO_INSTANCE: &str = "7c5e1a5d-52c6-4b0e-9d3b-0f3c6f865e02";
/// Its directory in sysfs.
const ECHO: &str = "/sys/bus/vmbus/devices/7c5e1a5d-52c6-4b0e-9d3b-0f3c6f865e02";

fn connect(context: &Context) -> Outcome {
    // Beside the other logs, for when it fails.
    let trace = context.dir.join("vm0.trace").display().to_string();
    let args = ["--ic", "none", "--device", "echo", "--vmbus-trace", &trace];
    let mut vm = context.setup().args(&args).boot()?;
    clear_log(&mut vm)?;
    load(&mut vm)?;
    check_connected(&mut vm, newest(context))?;
    check_echo(&mut vm)?;
    check_log(&mut vm, &[])?;
    vm.power_off()
}

fn version(context: &Context) -> Outcome {
    let setup = context.setup();
    let args = ["--ic", "none", "--device", "echo", "--vmbus-version", "4.0"];
    let mut vm = setup.args(&args).boot()?;
    clear_log(&mut vm)?;
    load(&mut vm)?;
    check_connected(&mut vm, "4.0")?;
    check_echo(&mut vm)?;
    check_log(&mut vm, &[])?;
    vm.power_off()
}

fn reload(context: &Context) -> Outcome {
    let times = context.times(10, 200);
    let mut vm = context
        .setup()
        .args(&["--ic", "none", "--device", "echo"])
        .boot()?;
    if is_built_in(&mut vm)? {
        note("not with this kernel: it has hv_vmbus built in");
        return vm.power_off();
    }
    clear_log(&mut vm)?;
    load(&mut vm)?;
    let descriptors = open_files(&vm)?;
    let start = Instant::now();
    sh_long(
        &mut vm,
        &format!(
            "for i in $(seq {times}); do
                rmmod hv_vmbus || {{ echo \"rmmod, round $i\" >&2; exit 1; }}
                [ -e {ECHO} ] && {{ echo \"still there, round $i\" >&2; exit 1; }}
                modprobe hv_vmbus || {{ echo \"modprobe, round $i\" >&2; exit 1; }}
                n=0; until [ -e {ECHO} ]; do
                    n=$((n + 1)); [ $n = 500 ] && {{ echo \"no device, round $i\" >&2; exit 1; }}
                    usleep 10000
                done
            done"
        ),
        Duration::from_secs(120 + 2 * times),
    )?;
    let took = start.elapsed().as_secs_f64();
    let said = format!("Vmbus version:{}", newest(context));
    let connects = vm.sh_ok(&format!("dmesg | grep -c '{said}'"))?;
    ensure!(
        connects == (times + 1).to_string(),
        "\"{said}\" is {connects} times in the log instead of {}",
        times + 1
    );
    check_echo(&mut vm)?;
    check_log(&mut vm, &[])?;
    let now = open_files(&vm)?;
    ensure!(
        now <= descriptors,
        "vmm had {descriptors} open files, and has {now} after {times} reloads"
    );
    note(&format!("{times} reloads in {took:.1} s"));
    vm.power_off()
}

/// The newest version that both the kernel and we know.
fn newest(context: &Context) -> &'static str {
    if context.version() < (5, 15) {
        "5.2"
    } else {
        "5.3"
    }
}

/// Loads the module, unless the kernel has it built in.
pub(super) fn load(vm: &mut Vm) -> Outcome {
    vm.sh_ok("[ -e /sys/bus/vmbus ] || modprobe hv_vmbus")
        .map(drop)
}

fn is_built_in(vm: &mut Vm) -> Outcome<bool> {
    let script = "[ -e /sys/bus/vmbus ] && [ ! -e /sys/module/hv_vmbus/initstate ]";
    Ok(vm.sh(script)?.status == 0)
}

/// The kernel must have said once that it speaks this version, and no other.
fn check_connected(vm: &mut Vm, version: &str) -> Outcome {
    let said = vm.sh_ok("dmesg | grep -o 'Vmbus version:.*'")?;
    ensure!(
        said == format!("Vmbus version:{version}"),
        "the guest says {said:?} instead of version {version}"
    );
    Ok(())
}

/// The echo device, and nothing else of that type, is on the guest's bus.
fn check_echo(vm: &mut Vm) -> Outcome {
    // Older kernels add devices some time after the module was loaded.
    let script = format!(
        "n=0; until [ -e {ECHO}/device_id ] || [ $n = 500 ]; do n=$((n + 1)); usleep 10000; done
        cat {ECHO}/class_id {ECHO}/device_id
        cat /sys/bus/vmbus/devices/*/class_id | grep -c {ECHO_TYPE}"
    );
    let ids = vm.sh_ok(&script)?;
    let expected = format!("{{{ECHO_TYPE}}}\n{{{ECHO_INSTANCE}}}\n1");
    ensure!(
        ids == expected,
        "the echo device's class, instance and number are {ids:?} instead of {expected:?}"
    );
    Ok(())
}

/// What the kernel has said so far is not of interest, unless it is connected.
pub(super) fn clear_log(vm: &mut Vm) -> Outcome {
    vm.sh_ok("[ -e /sys/bus/vmbus ] || dmesg -c > /dev/null")
        .map(drop)
}

/// What kernels say of the bus when there is no screen on it. 5.10 has to be
/// given an address range, and whoever finds one looks for a screen's in it.
const NO_SCREEN: &str = "Unexpected framebuffer mmio base of zero";
/// What is never a fault of the bus. The second is what a guest says whose vCPU
/// did not run for a while, on a loaded host.
const SELDOM: &[&str] = &[NO_SCREEN, "hrtimer: interrupt took"];

/// Nothing of level "warning" or worse may have been said since, but for lines
/// with these texts.
pub(super) fn check_log(vm: &mut Vm, harmless: &[&str]) -> Outcome {
    let bad = vm.sh("dmesg -r | grep -E '^<([0-4]|[0-9]*(8|9|0|1|2))>'")?;
    // With all of a boot in the log, what is not ours is for the boot's test.
    let all = !is_built_in(vm)?;
    let is_ours = |line: &str| {
        ["hv_", "vmbus", "uio"]
            .iter()
            .any(|text| line.contains(text))
    };
    let is_harmless = |line: &str| {
        SELDOM
            .iter()
            .chain(harmless)
            .any(|text| line.contains(text))
    };
    let lines = bad.stdout.lines();
    let bad: Vec<&str> = lines
        .filter(|line| (all || is_ours(line)) && !is_harmless(line))
        .collect();
    ensure!(bad.is_empty(), "the kernel complains:\n{}", bad.join("\n"));
    Ok(())
}

/// The kernel may have said nothing of broken invariants or tasks that hang, all
/// of a boot included.
pub(super) fn check_traces(vm: &mut Vm) -> Outcome {
    let bad = vm.sh("dmesg | grep -E 'Call Trace|BUG:|WARNING:|blocked for'")?;
    ensure!(
        bad.stdout.is_empty(),
        "the guest complains:\n{}",
        bad.stdout
    );
    Ok(())
}

/// A command in the guest that takes longer than most, and must succeed.
pub(super) fn sh_long(vm: &mut Vm, script: &str, limit: Duration) -> Outcome<String> {
    let id = vm.ask("sh", script.as_bytes())?;
    let deadline = Instant::now() + limit;
    let mut shell = Shell::default();
    loop {
        let line = vm.answer(id, deadline).map_err(|error| {
            Failure(format!("{error}; so far it said {:?}", shell.stdout.trim()))
        })?;
        let text = String::from_utf8_lossy(&line.data);
        match line.word.as_str() {
            "out" => shell.stdout.push_str(&text),
            "err" => shell.stderr.push_str(&text),
            "exit" if text == "0" => return Ok(shell.stdout.trim_end().to_owned()),
            _ => {
                let (out, err) = (shell.stdout.trim(), shell.stderr.trim());
                return Err(Failure(format!(
                    "it ended with {} {text} in the guest: {err}\n{out}",
                    line.word
                )));
            }
        }
    }
}

/// How many files `vmm` has open, but for [`eventfds`].
pub(super) fn open_files(vm: &Vm) -> Outcome<usize> {
    let links = descriptors(vm)?;
    Ok(links.iter().filter(|link| !is_eventfd(link)).count())
}

/// How many of them are eventfds: each channel number that was ever in use keeps one.
pub(super) fn eventfds(vm: &Vm) -> Outcome<usize> {
    let links = descriptors(vm)?;
    Ok(links.iter().filter(|link| is_eventfd(link)).count())
}

fn is_eventfd(link: &Path) -> bool {
    link.as_os_str() == "anon_inode:[eventfd]"
}

/// What `vmm`'s descriptors are. One may be closed while they are looked at.
fn descriptors(vm: &Vm) -> Outcome<Vec<PathBuf>> {
    let all = fs::read_dir(format!("/proc/{}/fd", vm.pid()))?;
    let links = all.filter_map(|one| fs::read_link(one.ok()?.path()).ok());
    Ok(links.collect())
}

/// Shown by the runner although the case passed.
pub(super) fn note(text: &str) {
    println!("{NOTE}{text}");
}
