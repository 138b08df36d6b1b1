// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Answers for people.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use crate::api::types::{ServiceEntry, TimeStatus, VmState, VmStatus};
use crate::escape;

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
        let _ = writeln!(text, "{name:<8} {}", escape::line(value));
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

/// A table of VMs: what each has answered, or the name of one that has not.
pub(super) fn vms(vms: &[Result<VmStatus, String>]) -> String {
    let rows = vms.iter().map(|vm| match vm {
        Ok(vm) => [
            vm.name.clone(),
            state(vm.state).into(),
            vm.health.clone(),
            time(vm.uptime_ms),
        ],
        Err(name) => [name.clone(), "no answer".into(), "-".into(), "-".into()],
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

/// An event in a line.
pub(super) fn event(event: &Value) -> String {
    let seconds = Duration::from_millis(event["uptime_ms"].as_u64().unwrap_or_default());
    let mut text = format!("{:>10.3}  {}", seconds.as_secs_f64(), word(&event["event"]));
    fields(&mut text, event, &["uptime_ms", "time_unix_ms", "event"]);
    text
}

/// Something that passed on the bus, in a line.
pub(super) fn traffic(line: &Value) -> String {
    if let Some(lost) = line["lost"].as_u64() {
        return format!(
            "{:>13}  {lost} lines were lost: this reader is too slow",
            ""
        );
    }
    let seconds = Duration::from_micros(line["time_us"].as_u64().unwrap_or_default());
    let what = ["message", "packet", "malformed"];
    let what = what.into_iter().find_map(|key| line.get(key));
    let what = what.map_or_else(|| "signal".into(), word);
    let from = word(&line["from"]);
    let mut text = format!("{:>13.6}  {from:<5}  {what}", seconds.as_secs_f64());
    let told = [
        "time_us",
        "from",
        "message",
        "packet",
        "malformed",
        "signal",
    ];
    fields(&mut text, line, &told);
    text
}

/// Adds what an object has besides `told`.
fn fields(text: &mut String, object: &Value, told: &[&str]) {
    for (key, value) in object.as_object().into_iter().flatten() {
        if told.contains(&key.as_str()) {
            continue;
        }
        if value.is_object() {
            let _ = write!(text, "  {}:", escape::line(key));
            fields(text, value, &[]);
        } else {
            let _ = write!(text, " {}={}", escape::line(key), word(value));
        }
    }
}

/// A value without quotes if it needs none. What a guest has written is never
/// shown as it is: a terminal would obey it.
fn word(value: &Value) -> String {
    let plain = |text: &&str| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
    match value.as_str().filter(plain) {
        Some(text) => text.to_owned(),
        None => escape::json(value.to_string()),
    }
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

/// Columns as wide as what is in them. A cell may be a guest's text.
pub(super) fn table<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut all = vec![head.map(str::to_owned)];
    all.extend(rows.map(|row| row.map(escape::line)));
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
    fn no_cell_steers_a_terminal_or_turns_a_line_around() {
        let rows = [["a\u{1b}[2J\u{9b}".to_owned(), "\u{202e}b\n".to_owned()]];
        assert_eq!(
            table(["NAME", "X"], rows.into_iter()),
            "NAME              X\na\\u{1b}[2J\\u{9b}  \\u{202e}b\\n\n"
        );
    }

    #[test]
    fn events_and_traffic_are_told_in_a_line_that_no_terminal_obeys() {
        let line = serde_json::json!({
            "event": "service", "uptime_ms": 1500, "time_unix_ms": 7,
            "name": "kvp", "detail": "a b\u{1b}[2J\u{e9}\u{9b}\u{202e}",
        });
        assert_eq!(
            event(&line),
            "     1.500  service detail=\"a b\\u001b[2J\u{e9}\\u009b\\u202e\" name=kvp"
        );
        let line = serde_json::json!({
            "time_us": 2_000_001, "from": "guest", "packet": "in-band", "relid": 2,
            "service": {"message": "heartbeat", "status": 0},
        });
        assert_eq!(
            traffic(&line),
            "     2.000001  guest  in-band relid=2  service: message=heartbeat status=0"
        );
        let line = serde_json::json!({"time_us": 1, "from": "host", "signal": true, "relid": 1});
        assert_eq!(traffic(&line), "     0.000001  host   signal relid=1");
        assert!(traffic(&serde_json::json!({"lost": 3})).contains("3 lines were lost"));
    }

    #[test]
    fn times_are_told_in_fitting_units() {
        assert_eq!(time(1234), "1.2 s");
        assert_eq!(time(61_000), "1 min 1 s");
        assert_eq!(time(3_660_000), "1 h 1 min");
    }
}
