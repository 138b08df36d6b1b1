// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A channel driven by guest code: the agent as a driver in user space, with
//! `uio_hv_generic` bound to the echo device.

use std::time::Duration;

use super::exits::Exits;
use super::{check_log, clear_log, load, note, sh_long};
use crate::ensure;
use crate::suite::{Case, Context, Failure, Outcome, Vm};

pub(crate) const CASES: &[Case] = &[
    Case::new(
        "vmbus-echo",
        "100,000 packets (a million with --long) come back whole and in order",
        echo,
    )
    .with_both_synics(),
    Case::new(
        "vmbus-no-exits",
        "guest to host signals don't exit to vmm with KVM's SynIC",
        no_exits,
    ),
    Case::new(
        "vmbus-hotplug",
        "the channel is taken away and offered again while it is used",
        hotplug,
    )
    .with_both_synics_in_full(),
];

/// Whether this kernel's uio driver takes a channel that signals by hypercall;
/// those before 6.10 want one whose host polls memory.
pub(super) fn has_uio(context: &Context) -> bool {
    context.version() >= (6, 10)
}

/// The same, told to whoever reads the results.
fn can_run(context: &Context) -> bool {
    let can = has_uio(context);
    if !can {
        note(&format!(
            "not with {}: its uio_hv_generic takes no channels that signal by hypercall",
            context.release
        ));
    }
    can
}

/// A guest whose driver is ready for the echo device.
fn boot(context: &Context, args: &[&str]) -> Outcome<Vm> {
    let mut vm = context.setup().args(args).boot()?;
    clear_log(&mut vm)?;
    load(&mut vm)?;
    vm.sh_ok("modprobe uio_hv_generic")?;
    Ok(vm)
}

/// `name=number` in a line of the agent's.
fn value(line: &str, name: &str) -> Outcome<f64> {
    let mut words = line.split_whitespace();
    words
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        .ok_or_else(|| Failure(format!("no {name}= in {line:?}")))
}

fn echo(context: &Context) -> Outcome {
    if !can_run(context) {
        return Ok(());
    }
    let packets = context.times(100_000, 1_000_000);
    let mut vm = boot(context, &["--ic", "none", "--device", "echo"])?;
    let limit = Duration::from_secs(60 + packets / 1000);
    let said = sh_long(&mut vm, &format!("/init uio-echo {packets}"), limit)?;
    let mut all = 0.0;
    for line in said.lines() {
        if let (Ok(packets), Ok(seconds)) = (value(line, "packets"), value(line, "seconds")) {
            note(&format!(
                "{line} per-second={:.0}",
                packets / seconds.max(0.001)
            ));
            all = packets;
        } else {
            note(line);
        }
    }
    #[allow(clippy::cast_precision_loss)] // A million is exact.
    let wanted = packets as f64;
    ensure!(all >= wanted, "not all packets were exchanged: {said}");
    check_log(&mut vm, &[])?;
    vm.power_off()
}

fn no_exits(context: &Context) -> Outcome {
    if !can_run(context) {
        return Ok(());
    }
    let signals = context.times(3000, 100_000);
    let count = |synic: &str| -> Outcome<Exits> {
        let mut vm = boot(
            context,
            &["--ic", "none", "--device", "echo", "--synic", synic],
        )?;
        // Once before: what a first time needs is not what is measured.
        vm.sh_ok("/init uio-signals 10")?;
        let (said, exits) = Exits::during(|| {
            let script = format!("/init uio-signals {signals}");
            sh_long(&mut vm, &script, Duration::from_secs(60 + signals / 100))
        })?;
        note(&format!("--synic {synic}: {said}; {exits}"));
        vm.power_off()?;
        Ok(exits)
    };
    let (kernel, user) = (count("kernel")?, count("user")?);
    ensure!(
        kernel.signals >= signals,
        "KVM saw {} signals instead of {signals}",
        kernel.signals
    );
    // The channel is opened and closed by messages.
    ensure!(
        kernel.hyperv <= kernel.messages,
        "{} of {signals} signals exited to vmm: {kernel}",
        kernel.hyperv - kernel.messages
    );
    // The commands themselves pass through the serial port.
    ensure!(
        kernel.all < signals / 5,
        "{} exits to vmm with {signals} signals: {kernel}",
        kernel.all
    );
    // So that the counters are known to count.
    ensure!(
        user.all >= signals,
        "{signals} signals with our SynIC, but no more than {} exits",
        user.all
    );
    Ok(())
}

fn hotplug(context: &Context) -> Outcome {
    if !can_run(context) {
        return Ok(());
    }
    let rounds = context.times(5, 50);
    let mut vm = boot(context, &["--ic", "none", "--device", "echo:toggle=1500ms"])?;
    let limit = Duration::from_secs(90 + 8 * rounds);
    let said = sh_long(&mut vm, &format!("/init uio-hotplug {rounds}"), limit)?;
    note(&said);
    ensure!(
        value(&said, "packets")? > 0.0,
        "no packets were exchanged: {said}"
    );
    // It may go while the driver takes it.
    check_log(&mut vm, &["probe failed for device"])?;
    vm.power_off()
}
