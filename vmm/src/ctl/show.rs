// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Answers for people.

use std::fmt::Write as _;
use std::time::Duration;

use crate::api::types::{ServiceEntry, TimeStatus, VmState, VmStatus};

/// The VM in a few lines, then its services.
pub(super) fn status(vm: &VmStatus) -> String {
    let mut text = String::new();
    let resets = match vm.resets {
        0 => String::new(),
        1 => ", reset once".into(),
        n => format!(", reset {n} times"),
    };
    let bus = vm.vmbus.version.as_ref().map_or_else(
        || "not connected".into(),
        |version| {
            format!(
                "version {version}, {} channels open",
                vm.vmbus.channels_open
            )
        },
    );
    let lines = [
        ("name", format!("{} (pid {})", vm.name, vm.pid)),
        (
            "state",
            format!("{}, up {}{resets}", state(vm.state), time(vm.uptime_ms)),
        ),
        ("health", vm.health.clone()),
        (
            "machine",
            format!(
                "{} vCPUs, {} MiB, {} SynIC",
                vm.vcpus, vm.memory_mib, vm.synic
            ),
        ),
        (
            "guest",
            vm.vmbus
                .guest_os
                .clone()
                .unwrap_or_else(|| "not known yet".into()),
        ),
        ("VMBus", bus),
    ];
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<8} {value}");
    }
    if vm.vmbus.violations > 0 {
        let _ = writeln!(
            text,
            "         the guest broke the protocol {} times",
            vm.vmbus.violations
        );
    }
    text.push('\n');
    text.push_str(&services(&vm.services));
    text
}

/// A table of services.
pub(super) fn services(services: &[ServiceEntry]) -> String {
    let rows = services.iter().map(|service| {
        [
            service.name.clone(),
            service.state.clone(),
            service.version.clone().unwrap_or_default(),
            service.detail.clone(),
        ]
    });
    table(["SERVICE", "STATE", "VERSION", "DETAIL"], rows)
}

/// A table of VMs.
pub(super) fn vms(vms: &[VmStatus]) -> String {
    let rows = vms.iter().map(|vm| {
        [
            vm.name.clone(),
            state(vm.state).into(),
            vm.health.clone(),
            time(vm.uptime_ms),
        ]
    });
    table(["NAME", "STATE", "HEARTBEAT", "UPTIME"], rows)
}

/// What is known of the guest's clock.
pub(super) fn clock(status: &TimeStatus) -> String {
    let mut text = match status.guest_offset_us {
        Some(offset) => format!("the guest's clock is {offset} µs from the host's\n"),
        None => "the guest does not tell its clock (Linux never does)\n".into(),
    };
    let last = match status.last_message_ms {
        Some(ms) => format!("last told the time {} ago", time(ms)),
        None => "not told the time yet".into(),
    };
    let (syncs, samples) = (status.syncs, status.samples);
    let _ = writeln!(
        text,
        "{last}; {syncs} times stepped, {samples} samples sent"
    );
    text
}

fn state(state: VmState) -> &'static str {
    match state {
        VmState::Starting => "starting",
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Stopping => "stopping",
        VmState::Stopped => "stopped",
        VmState::Crashed => "crashed",
    }
}

fn time(ms: u64) -> String {
    let duration = Duration::from_millis(ms);
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// Columns as wide as what is in them.
pub(super) fn table<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut all = vec![head.map(str::to_owned)];
    all.extend(rows);
    let mut widths = [0; N];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &all {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "long cell".to_owned()]];
        assert_eq!(
            table(["NAME", "X"], rows.into_iter()),
            "NAME  X\na     long cell\n"
        );
    }

    #[test]
    fn times_are_told_in_fitting_units() {
        assert_eq!(time(1234), "1.2 s");
        assert_eq!(time(61_000), "1 min 1 s");
        assert_eq!(time(3_660_000), "1 h 1 min");
    }
}
