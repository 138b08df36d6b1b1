// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that is on the bus starts anew: by kexec, and after a panic.
//!
//! Both tell the host first, and wait for its answer: kexec for ever, a panic
//! for 100 seconds. So both also prove that the answer comes.

use std::fs;
use std::time::{Duration, Instant};

use super::channel::has_uio;
use super::{check_connected, check_echo, check_log, clear_log, load, newest, note};
use crate::cases::boot::{check_timers, with_timers};
use crate::cpio::Archive;
use crate::ensure;
use crate::suite::{Case, Context, Outcome, Vm};

pub(crate) const CASES: &[Case] = &[
    Case::new(
        "vmbus-kexec",
        "a kernel that was started by kexec connects again, within seconds",
        kexec,
    )
    .with_both_synics_in_full(),
    Case::new(
        "vmbus-panic",
        "a guest that reboots after a panic connects again, within seconds",
        panic,
    )
    .with_both_synics_in_full(),
];

/// Seconds, and more in a nest under load; less than the 100 s that a panic waits
/// for an answer of the host's.
const LIMIT: Duration = Duration::from_secs(90);

fn kexec(context: &Context) -> Outcome {
    // The kernel and the RAM disk that are to be loaded are in a second one.
    let mut image = fs::read(&context.initramfs)?;
    let mut files = Archive::default();
    files.file("next/vmlinuz", 0o644, &fs::read(&context.vmlinuz)?);
    files.file("next/initrd", 0o644, &image);
    image.extend(files.finish());
    let both = std::env::temp_dir().join(format!("kexec-{}.cpio", std::process::id()));
    fs::write(&both, image)?;
    let setup = with_timers(context.setup()).initramfs(Some(both.clone()));
    let vm = setup.args(&["--ic", "none", "--device", "echo"]).boot();
    fs::remove_file(&both)?;
    let mut vm = vm?;

    load(&mut vm)?;
    check_echo(&mut vm)?;
    busy(context, &mut vm)?;
    let start = Instant::now();
    vm.sh_last("exec /init kexec /next/vmlinuz /next/initrd \"$(cat /proc/cmdline) agent.kexec\"")?;
    vm.wait_agent()?;
    let took = start.elapsed();
    let cmdline = vm.sh_ok("cat /proc/cmdline")?;
    ensure!(
        cmdline.ends_with(" agent.kexec"),
        "not the kernel that was started: {cmdline:?}"
    );
    again(context, &mut vm, "kexec", took)?;
    vm.power_off()
}

fn panic(context: &Context) -> Outcome {
    let setup = with_timers(context.setup()).cmdline("panic=1");
    let args = [
        "--ic",
        "none",
        "--device",
        "echo",
        "--on-crash",
        "continue",
        "--on-reset",
        "reset",
    ];
    let mut vm = setup.args(&args).boot()?;
    load(&mut vm)?;
    check_echo(&mut vm)?;
    busy(context, &mut vm)?;
    let start = Instant::now();
    vm.sh_last("echo c > /proc/sysrq-trigger")?;
    vm.wait_agent()?;
    again(context, &mut vm, "panic", start.elapsed())?;
    vm.power_off()
}

/// Lets the channel be in use when the kernel ends, where the kernel can.
fn busy(context: &Context, vm: &mut Vm) -> Outcome {
    if has_uio(context) {
        vm.sh_ok(
            "modprobe uio_hv_generic
            /init uio-signals 1000000000 > /dev/null 2>&1 &
            sleep 1; kill -0 $!",
        )?;
    }
    Ok(())
}

/// The new kernel must have come soon, and must connect as the old one did.
fn again(context: &Context, vm: &mut Vm, how: &str, took: Duration) -> Outcome {
    ensure!(took < LIMIT, "{how}: up again only after {took:?}");
    clear_log(vm)?;
    let start = Instant::now();
    load(vm)?;
    check_connected(vm, newest(context))?;
    check_echo(vm)?;
    check_timers(vm, context.cpus)?;
    check_log(vm, &[])?;
    note(&format!(
        "{how}: up after {:.1} s, connected after {:.1} s more",
        took.as_secs_f64(),
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}
