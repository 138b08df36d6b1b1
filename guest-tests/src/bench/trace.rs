// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KVM's tracepoints as counters: what exits, and what is injected, counted by
//! the kernel and not by those who are measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value, json};

use crate::suite::{Failure, Outcome};

const TRACING: &str = "/sys/kernel/tracing";

/// Tracepoints, and by what they are counted.
const EVENTS: [(&str, &str); 5] = [
    ("kvm/kvm_userspace_exit", "reason"),
    ("kvm/kvm_exit", "exit_reason"),
    ("kvm/kvm_hv_hypercall", "code"),
    ("kvm/kvm_hv_synic_set_irq", "sint"),
    ("sched/sched_switch", "prev_pid"),
];

/// Counts of one stretch of time: by tracepoint, then by key.
#[derive(Debug, Default)]
pub struct Counts(Vec<(&'static str, Vec<(String, f64)>)>);

/// Makes tracing accessible.
fn mount() -> Outcome {
    if !Path::new(TRACING).join("events/kvm").exists() {
        let args = ["-t", "tracefs", "tracefs", TRACING];
        let mounted = Command::new("mount").args(args).status()?;
        if !mounted.success() {
            return Err(Failure(format!("{TRACING} cannot be mounted")));
        }
    }
    Ok(())
}

/// Counts what happens while something runs.
pub fn count<T>(run: impl FnOnce() -> Outcome<T>) -> Outcome<(T, Counts)> {
    mount()?;
    for (event, key) in EVENTS {
        // Truncating it, as this does, removes what was there.
        fs::write(file(event, "trigger"), format!("hist:keys={key}"))
            .map_err(|error| Failure(format!("counting {event}: {error}")))?;
    }
    let result = run();
    let mut counts = Counts::default();
    for (event, _) in EVENTS {
        let text = fs::read_to_string(file(event, "hist"))?;
        let name = event.rsplit('/').next().unwrap_or(event);
        counts.0.push((name, parse(&text)));
        // Opening it for writing is what removes the counter.
        drop(fs::File::create(file(event, "trigger"))?);
    }
    Ok((result?, counts))
}

/// Writes down what happens while something runs, with the time.
pub(super) fn timeline(to: &Path, run: impl FnOnce() -> Outcome) -> Outcome {
    const WATCHED: [&str; 13] = [
        "sched/sched_switch",
        "sched/sched_waking",
        "kvm/kvm_exit",
        "kvm/kvm_entry",
        "kvm/kvm_hv_hypercall",
        "kvm/kvm_userspace_exit",
        "kvm/kvm_hv_synic_set_irq",
        "kvm/kvm_msr",
        "kvm/kvm_pio",
        "kvm/kvm_eoi",
        "kvm/kvm_apic",
        "raw_syscalls/sys_enter",
        "raw_syscalls/sys_exit",
    ];
    mount()?;
    set("trace_clock", "mono")?;
    set("buffer_size_kb", "65536")?;
    for event in WATCHED {
        set(&format!("events/{event}/enable"), "1")?;
    }
    let result = run();
    for event in WATCHED {
        set(&format!("events/{event}/enable"), "0")?;
    }
    fs::copy(Path::new(TRACING).join("trace"), to)?;
    set("trace", "")?;
    result
}

/// Tells when the first vCPU runs.
#[derive(Debug)]
pub(super) struct FirstEntry {
    /// What to look for.
    event: &'static str,
}

impl FirstEntry {
    /// From now on.
    pub(super) fn watch() -> Outcome<Self> {
        mount()?;
        set("trace_clock", "mono")?;
        set("trace", "")?;
        // What comes first is kept; there is no room for all.
        set("options/overwrite", "0")?;
        set("buffer_size_kb", "64")?;
        let event = "kvm_entry";
        set(&format!("events/kvm/{event}/enable"), "1")?;
        set("trace_marker", START)?;
        Ok(Self { event })
    }

    /// The time from the call of `watch`.
    pub(super) fn milliseconds(self) -> Outcome<f64> {
        let Self { event } = self;
        set(&format!("events/kvm/{event}/enable"), "0")?;
        set("options/overwrite", "1")?;
        let text = fs::read_to_string(Path::new(TRACING).join("trace"))?;
        let at = |what: &str| -> Option<f64> {
            let line = text.lines().find(|line| line.contains(what))?;
            let before = line.get(..line.find(what)?)?;
            before
                .split_whitespace()
                .last()?
                .trim_end_matches(':')
                .parse()
                .ok()
        };
        let times = at("tracing_mark_write:").zip(at(&format!("{event}:")));
        let (start, entry) = times.ok_or_else(|| Failure("no entry was traced".to_owned()))?;
        Ok((entry - start) * 1000.0)
    }
}

/// Where a stretch of time begins.
const START: &str = "the VMM is started";

fn set(name: &str, value: &str) -> Outcome {
    fs::write(Path::new(TRACING).join(name), value)
        .map_err(|error| Failure(format!("{TRACING}/{name}: {error}")))
}

impl Counts {
    /// Divided by a number of operations.
    pub fn per(&self, units: f64) -> Value {
        let mut all = Map::new();
        for (event, counts) in &self.0 {
            let mut total = 0.0;
            let mut by_key = Map::new();
            for (key, count) in counts {
                total += count;
                by_key.insert(key.clone(), json!(round(*count / units)));
            }
            by_key.insert("all".to_owned(), json!(round(total / units)));
            // Whose they are says little.
            if *event == "sched_switch" {
                by_key.retain(|key, _| key == "all");
            }
            all.insert((*event).to_owned(), by_key.into());
        }
        all.into()
    }
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn file(event: &str, name: &str) -> PathBuf {
    Path::new(TRACING).join("events").join(event).join(name)
}

/// Lines such as `{ reason:          2 } hitcount:        123`.
fn parse(text: &str) -> Vec<(String, f64)> {
    text.lines()
        .filter_map(|line| {
            let (key, count) = line.strip_prefix("{ ")?.split_once("} hitcount:")?;
            let (_, key) = key.split_once(':')?;
            Some((key.trim().to_owned(), count.trim().parse().ok()?))
        })
        .collect()
}
