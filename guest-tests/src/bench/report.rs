// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The figures as tables, in `docs/performance.md`.

use std::fmt::Write as _;
use std::fs;

use serde_json::Value;

use crate::error::{Context, Result, failed};
use crate::paths;

const LAYER: &str = "bench";
const BEGIN: &str = "<!-- figures: written by `cargo xtask bench --guest` -->\n";
const END: &str = "<!-- end of figures -->\n";

/// Puts the tables where the last ones were.
pub(super) fn write(tables: &str) -> Result<()> {
    write_between(BEGIN, tables, END)
}

/// Puts `tables` between two lines of the page.
pub(super) fn write_between(begin: &str, tables: &str, end: &str) -> Result<()> {
    let path = paths::workspace().join("docs/performance.md");
    let text = fs::read_to_string(&path).context(LAYER, path.display())?;
    let parts = text
        .split_once(begin)
        .and_then(|(before, rest)| Some((before, rest.split_once(end)?.1)));
    let Some((before, after)) = parts else {
        let why = format!("{} has no place for figures", path.display());
        return Err(failed(LAYER, why));
    };
    let text = format!("{before}{begin}{tables}{end}{after}");
    fs::write(&path, text).context(LAYER, path.display())
}

/// All tables. What was not measured is a dash.
pub(super) fn tables(found: &Value, about: &str) -> String {
    let mut text = format!("{about}\n\n");
    streams(&mut text, found);
    counts(&mut text, found);
    boot(&mut text, found);
    memory(&mut text, found);
    services(&mut text, found);
    text
}

fn streams(text: &mut String, found: &Value) {
    text.push_str(
        "| Streams | guest to host, MB/s | host to guest, MB/s | 64 B from the host, µs | from the guest, µs |\n\
         |---|---|---|---|---|\n",
    );
    let kinds = ["to-host", "to-guest", "host-ping", "guest-ping"];
    for (part, name) in [
        ("streams-vmm", "vmm, hv_sock"),
        ("streams-pc", "QEMU pc, vhost-vsock (PCI)"),
        ("streams-microvm", "QEMU microvm, vhost-vsock (MMIO)"),
    ] {
        let cells = kinds.map(|kind| number(found, &[part, kind], 1));
        let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
    }
    let ratios = kinds.map(|kind| ratio(found, &["streams-vmm", kind], &["streams-pc", kind]));
    let _ = writeln!(text, "| vmm to QEMU pc | {} |", ratios.join(" | "));
    let _ = writeln!(
        text,
        "\nThe machine's limits by the same clock: a Unix socket alone {} MB/s, a plain copy {} MB/s.\n",
        number(found, &["limit-socket"], 0),
        number(found, &["limit-copy"], 0)
    );
}

fn counts(text: &mut String, found: &Value) {
    text.push_str(
        "| What it takes | guest's signals | interrupts | exits | exits to user space |\n\
         |---|---|---|---|---|\n",
    );
    for (kind, name) in [
        ("to-host", "a MiB to the host"),
        ("to-guest", "a MiB to the guest"),
        ("host-ping", "a round trip from the host"),
        ("guest-ping", "a round trip from the guest"),
    ] {
        let cell = |event: &str, key: &str| count(found, &["streams-counts", kind], event, key);
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} |",
            cell("kvm_hv_hypercall", "93"),
            cell("kvm_hv_synic_set_irq", "all"),
            cell("kvm_exit", "all"),
            cell("kvm_userspace_exit", "all")
        );
    }
    text.push_str(
        "\nConnecting is in these figures: its messages are the exits to user space.\n\n",
    );
}

fn boot(text: &mut String, found: &Value) {
    text.push_str("| Boot, ms from exec | bzImage | ELF |\n|---|---|---|\n");
    let mut row = |name: &str, cells: [String; 2]| {
        let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
    };
    let both = |machine: &str, what: &str| {
        ["bzimage", "elf"]
            .map(|format| number(found, &[&format!("boot-{machine}-{format}"), what], 0))
    };
    row(
        "vmm: first instruction of the guest",
        ["share-bzimage", "share-elf"].map(|part| number(found, &[part], 1)),
    );
    row("vmm: init", both("vmm", "init"));
    row("vmm: `hv_utils` ready", both("vmm", "ready"));
    row("vmm: exit", both("vmm", "exit"));
    row("QEMU microvm: init", both("microvm", "init"));
    let ratios = ["bzimage", "elf"].map(|format| {
        let [ours, theirs] = ["vmm", "microvm"].map(|machine| format!("boot-{machine}-{format}"));
        ratio(found, &[&ours, "init"], &[&theirs, "init"])
    });
    row("vmm to microvm, to init", ratios);
    text.push_str("\n| Exits to user space until init | |\n|---|---|\n");
    let kinds = found
        .pointer("/boot-counts/kvm_userspace_exit")
        .and_then(Value::as_object);
    for (key, count) in kinds.into_iter().flatten() {
        let count = count.as_f64().unwrap_or(0.0);
        let _ = writeln!(text, "| {} | {count:.0} |", exit_name(key));
    }
    text.push('\n');
}

fn memory(text: &mut String, found: &Value) {
    text.push_str("| Beside the guest's memory | resident, KiB | private, KiB | threads |\n|---|---|---|---|\n");
    for (part, name) in [
        ("memory-1", "vmm, 1 vCPU, all services"),
        ("memory-4", "vmm, 4 vCPUs"),
        ("memory-microvm", "QEMU microvm, 1 vCPU"),
    ] {
        let cells = ["resident", "private", "threads"].map(|what| number(found, &[part, what], 0));
        let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
    }
    let _ = writeln!(
        text,
        "\nThe program `vmm`, stripped: {} KiB.\n",
        number(found, &["size"], 0)
    );
}

fn services(text: &mut String, found: &Value) {
    text.push_str(
        "| Services, by the control API | | signals | interrupts | exits to user space |\n\
         |---|---|---|---|---|\n",
    );
    for (name, unit, about) in [
        ("kvp-set", " µs", "data exchange: an item set, of 200"),
        ("kvp-get", " µs", "data exchange: an item read"),
        ("fcopy", " MB/s", "file copy of 3 MiB; each fragment"),
        ("beat", "", "a heartbeat"),
        ("shutdown", " µs", "shutdown, until the guest has accepted"),
    ] {
        let value = match unit {
            "" => String::new(),
            unit => number(found, &["services", name, "value"], 1) + unit,
        };
        let counts = ["services", name, "counts"];
        let cell = |event: &str, key: &str| count(found, &counts, event, key);
        let _ = writeln!(
            text,
            "| {about} | {value} | {} | {} | {} |",
            cell("kvm_hv_hypercall", "93"),
            cell("kvm_hv_synic_set_irq", "all"),
            cell("kvm_userspace_exit", "all")
        );
    }
    text.push('\n');
}

/// The kinds that a Linux guest causes.
fn exit_name(reason: &str) -> String {
    let name = match reason {
        "2" => "port I/O",
        "6" => "MMIO",
        "10" => "interrupted",
        "27" => "Hyper-V: messages and SynIC registers",
        "29" => "MSR read",
        "30" => "MSR written",
        "all" => "all",
        _ => return format!("kind {reason}"),
    };
    name.to_owned()
}

fn get(found: &Value, path: &[&str]) -> Option<f64> {
    path.iter()
        .try_fold(found, |value, name| value.get(name))?
        .as_f64()
}

fn number(found: &Value, path: &[&str], digits: usize) -> String {
    get(found, path).map_or("–".to_owned(), |value| format!("{value:.digits$}"))
}

/// How often something was counted for each operation. What never came has no
/// counter.
fn count(found: &Value, part: &[&str], event: &str, key: &str) -> String {
    let counts = part
        .iter()
        .try_fold(found, |value, name| value.get(name))
        .and_then(|counts| counts.get(event)?.as_object());
    counts.map_or("–".to_owned(), |counts| {
        let count = counts.get(key).and_then(Value::as_f64);
        format!("{:.2}", count.unwrap_or(0.0))
    })
}

fn ratio(found: &Value, ours: &[&str], theirs: &[&str]) -> String {
    let both = get(found, ours).zip(get(found, theirs));
    both.map_or("–".to_owned(), |(ours, theirs)| {
        format!("{:.2}", ours / theirs)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_not_measured_is_a_dash() {
        let found = json!({"streams-vmm": {"to-host": 200.0}, "streams-pc": {"to-host": 100.0}});
        let text = tables(&found, "here");
        assert!(
            text.contains("| vmm, hv_sock | 200.0 | – | – | – |"),
            "{text}"
        );
        let pings = json!({"kvm_hv_hypercall": {"92": 1.0}});
        let found_counts = json!({"streams-counts": {"host-ping": pings}});
        let counted = tables(&found_counts, "here");
        // That it was counted and never came is a figure.
        let row = "| a round trip from the host | 0.00 | – | – | – |";
        assert!(counted.contains(row), "{counted}");
        assert!(
            text.contains("| vmm to QEMU pc | 2.00 | – | – | – |"),
            "{text}"
        );
    }
}
