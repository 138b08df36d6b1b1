// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A stock kernel comes up, finds itself on Hyper-V, and has nothing to complain of.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use crate::ensure;
use crate::suite::vm::{Hello, Setup};
use crate::suite::{Case, Context, Failure, Outcome, Vm};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "boot",
        "boots, detects Hyper-V, complains of nothing, powers off",
        boot,
    )
    .with_cpus(&[2, 1, 4]),
    Case::new("boot-elf", "boots from an ELF vmlinux", boot_elf).once(),
    Case::new(
        "one-command",
        "the README's line for one command in a bare guest",
        one_command,
    )
    .once(),
    Case::new("boot-64-cpus", "boots with 64 vCPUs", boot_64)
        .once()
        .with_cpus(&[64])
        .within(600),
];

/// Kernel messages of level "warning" or worse that a machine like ours gets
/// whatever we do, each with the reason.
const HARMLESS: &[&str] = &[
    // No firmware tables but ACPI's: there is no firmware.
    "DMI not present or invalid",
    // Of any virtual AMD CPU: its performance levels are the host's business.
    "amd_pstate: the _CPC object is not present",
    // The nest's emulated CPU, passed through: says what the kernel does about it.
    "Speculative Store Bypass",
    "Spectre V2",
    "RETBleed",
    "MDS CPU bug present",
    "TAA CPU bug present",
    "MMIO Stale Data CPU bug present",
    "L1TF CPU bug present",
    "Register File Data Sampling",
    // A vCPU did not run for a while: four share the nest's one CPU.
    "hrtimer: interrupt took",
    // 5.10 and 6.1 say so of every machine without an i8042.
    "i8042: No controller found",
    // Debian's kernels are built with these keys expired or absent.
    "Unable to open file: /etc/keys",
    "blacklist: Problem",
];

/// With Hyper-V's timers, which have to last through all that a kernel does but the end
/// of `hv_vmbus`.
pub(super) fn with_timers(setup: Setup<'_>) -> Setup<'_> {
    setup.args(&["--timers", "hyperv"])
}

fn boot(context: &Context) -> Outcome {
    let mut vm = with_timers(context.setup()).launch()?;
    let hello = vm.wait_agent()?;
    check_hello(context, &hello)?;
    check_log(&mut vm)?;
    check_timers(&mut vm, context.cpus)?;
    check_firmware(&mut vm)?;
    vm.power_off()
}

/// The line as it stands there, with our files; its exit code says how the command went.
fn one_command(context: &Context) -> Outcome {
    let readme = include_str!("../../../README.md");
    let blocks = readme.split("```sh\n").skip(1);
    let mut blocks = blocks.filter_map(|rest| rest.split("```").next());
    let Some(line) = blocks.find(|block| block.contains("rdinit=")) else {
        return Err(Failure("the README has no such line any more".to_owned()));
    };
    let (command, _) = context.setup().command();
    let args: Vec<&OsStr> = command.get_args().collect();
    let file = |flag: &str| {
        let at = args.iter().position(|arg| *arg == flag);
        let path = at.and_then(|at| args.get(at + 1));
        path.map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let line = line.replacen("bzImage", &file("--kernel"), 1);
    let line = line.replacen("rd.img", &file("--initramfs"), 1);
    let line = line.replacen("vmm ", &format!("{} ", context.vmm.display()), 1);
    for (command, code) in [("uname -a", 0), ("uname -a && false", 10)] {
        let line = line.replacen("uname -a", command, 1);
        let output = Command::new("sh")
            .args(["-c", &line])
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.code() == Some(code) && said.contains(&context.release),
            "{command}: expecting {code}: {output:?}"
        );
    }
    Ok(())
}

fn check_hello(context: &Context, hello: &Hello) -> Outcome {
    ensure!(
        hello.release == context.release,
        "the kernel is {} instead of {}",
        hello.release,
        context.release
    );
    ensure!(
        hello.cpus == context.cpus,
        "the guest sees {} CPUs instead of {}",
        hello.cpus,
        context.cpus
    );
    ensure!(
        matches!(
            hello.clocksource.as_str(),
            "tsc" | "hyperv_clocksource_tsc_page" | "hyperv_clocksource_msr"
        ),
        "the clocksource is {}",
        hello.clocksource
    );
    let (guest, host) = hello.clocks;
    ensure!(
        guest.abs_diff(host) <= 2,
        "the guest's clock says {guest}, the host's {host}"
    );
    Ok(())
}

fn check_log(vm: &mut Vm) -> Outcome {
    // Chosen in the guest: the whole log takes seconds on the console.
    let bad = vm.sh("dmesg -r | grep '^<[0-4]>'")?.stdout;
    let bad: Vec<&str> = bad.lines().filter(|line| is_complaint(line)).collect();
    ensure!(bad.is_empty(), "the kernel complains:\n{}", bad.join("\n"));
    let trouble = vm.sh("dmesg | grep -E 'unchecked MSR access|Call Trace|BUG:|WARNING:'")?;
    ensure!(
        trouble.stdout.is_empty(),
        "the kernel is in trouble:\n{}",
        trouble.stdout
    );
    let hyperv = vm.sh_ok("dmesg | grep -E 'Hypervisor detected|Hyper-V:'")?;
    ensure!(
        hyperv.contains("Hypervisor detected: Microsoft Hyper-V"),
        "Hyper-V was not detected: {hyperv}"
    );
    // Bit 9: "don't use auto-EOI", which no virtual APIC can combine with
    // hardware acceleration.
    let hints = number_after(&hyperv, "hints 0x").unwrap_or(0);
    ensure!(
        hints & (1 << 9) != 0,
        "hints {hints:#x} don't deprecate auto-EOI"
    );
    Ok(())
}

/// `<level>text`: level 4 is a warning, and less is worse.
fn is_complaint(line: &str) -> bool {
    let level = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
    let level = level
        .and_then(|(level, _)| level.parse::<u32>().ok())
        .unwrap_or(7);
    let text = line.split_once(']').map_or(line, |(_, text)| text.trim());
    // The CPUs' numbers that follow "smp: Bringing up …": 5.10 gives them a level
    // of their own if the line before was printed long ago.
    let cpu_number = text
        .strip_prefix('#')
        .is_some_and(|number| number.parse::<u32>().is_ok());
    level & 7 <= 4 && !cpu_number && !HARMLESS.iter().any(|text| line.contains(text))
}

fn number_after(text: &str, prefix: &str) -> Option<u64> {
    let rest = text.get(text.find(prefix)? + prefix.len()..)?;
    let digits = rest.split(|c: char| !c.is_ascii_hexdigit()).next()?;
    u64::from_str_radix(digits, 16).ok()
}

/// Each CPU's timer is the synthetic one, which takes fewer steps than the local
/// APIC's, and the kernel still has work for it.
pub(super) fn check_timers(vm: &mut Vm, cpus: u32) -> Outcome {
    let devices = "cat /sys/devices/system/clockevents/clockevent[0-9]*/current_device";
    let devices = vm.sh_ok(devices)?;
    let synthetic = devices.lines().filter(|name| *name == "Hyper-V clockevent");
    ensure!(
        u32::try_from(synthetic.count()) == Ok(cpus),
        "the timers of {cpus} CPUs are {devices:?}"
    );
    let ticks = "grep 'Hyper-V stimer0' /proc/interrupts";
    let before = vm.sh_ok(ticks)?;
    vm.sh_ok("usleep 50000")?;
    let after = vm.sh_ok(ticks)?;
    ensure!(before != after, "no timer has expired: {after:?}");
    Ok(())
}

/// What the guest's firmware tables must name.
fn check_firmware(vm: &mut Vm) -> Outcome {
    let devices = vm.sh_ok("cat /sys/bus/acpi/devices/*/hid")?;
    ensure!(
        devices.lines().any(|id| id.eq_ignore_ascii_case("VMBUS")),
        "no VMBUS device in ACPI, only {devices:?}"
    );
    ensure!(
        devices.lines().any(|id| id == "PNP0501"),
        "no serial port in ACPI, only {devices:?}"
    );
    let console = vm.sh_ok("cd /sys/class/tty/ttyS0 && echo $(cat port) $(cat irq)")?;
    // Which number the kernel gives to GSI 4 is its own affair; 0 is polling.
    ensure!(
        console.starts_with("0x3F8 ") && !console.ends_with(" 0"),
        "COM1 is at {console:?}"
    );
    Ok(())
}

fn boot_elf(context: &Context) -> Outcome {
    let mut vm = context.setup().kernel(&context.vmlinux).launch()?;
    let hello = vm.wait_agent()?;
    check_hello(context, &hello)?;
    vm.power_off()
}

fn boot_64(context: &Context) -> Outcome {
    if !context.long {
        println!("note: not run: it takes minutes; give --long for it");
        return Ok(());
    }
    let mut vm = context.setup().memory("1G").launch()?;
    let hello = vm.wait_agent()?;
    check_hello(context, &hello)?;
    vm.sh_ok("dmesg | grep -i 'x2apic enabled'")?;
    vm.power_off()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_warnings_and_worse() {
        assert!(is_complaint("<4>[    0.1] something odd"));
        assert!(is_complaint("<3>[    0.1] an error"));
        assert!(!is_complaint("<6>[    0.1] news"));
        assert!(!is_complaint("<4>[    0.1] DMI not present or invalid."));
        assert!(is_complaint("<12>[    0.1] user.warning"));
    }

    #[test]
    fn hints_are_read_from_either_form_of_the_line() {
        let new =
            "Hyper-V: privilege flags low 0x2e7f, high 0x3b8030, hints 0xe2c, misc 0xe0bed7b2";
        assert_eq!(number_after(new, "hints 0x"), Some(0xe2c));
        let old = "Hyper-V: features 0x2e7f, hints 0x2c2c, misc 0xed7b2";
        assert_eq!(number_after(old, "hints 0x"), Some(0x2c2c));
    }
}
