// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the start of a VMM to the guest's init, to its services, to the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::machine::Machine;
use super::trace::{self, FirstEntry};
use super::{Ground, tell};
use crate::suite::vm::read_events;
use crate::suite::{Failure, Outcome, Vm};

/// What the agent says first, told to do so by `agent.mark`.
const MARK: &str = "agent: init";
/// For a guest of ours: load the services' driver, then power off.
const WORDS: &str = "agent.mark agent.modules=hv_utils agent.poweroff";

/// By the nest's clock, and far more than any of them takes.
const LIMIT: Duration = Duration::from_secs(60);

/// Boots of which the median is taken. The first reader of a file pays for those
/// that read it after it.
const ROUNDS: usize = 3;

/// Times of a boot in milliseconds.
pub(super) fn time(ground: &Ground, machine: Machine, elf: bool) -> Outcome<Value> {
    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for (what, time) in time_once(ground, machine, elf)? {
            times.entry(what).or_default().push(time);
        }
    }
    let medians = times.into_iter().map(|(what, mut times)| {
        times.sort_by(f64::total_cmp);
        (what, json!(times.get(times.len() / 2)))
    });
    let found = Value::from(medians.collect::<Map<_, _>>());
    tell(&format!("{} {}: {found}", machine.name(), format(elf)));
    Ok(found)
}

fn time_once(ground: &Ground, machine: Machine, elf: bool) -> Outcome<BTreeMap<String, f64>> {
    let began = SystemTime::now().duration_since(UNIX_EPOCH);
    let began = began.unwrap_or_default().as_secs_f64() * 1000.0;
    let start = Instant::now();
    let mut vm = start_machine(ground, machine, elf)?;
    let mut found = BTreeMap::new();
    found.insert("init".to_owned(), milliseconds(start));
    if machine == Machine::Ours {
        while vm.console.line(start + LIMIT).is_ok() {}
        vm.expect_exit(0)?;
        found.insert("exit".to_owned(), milliseconds(start));
        found.insert("ready".to_owned(), ready(ground)? - began);
    }
    Ok(found)
}

/// The VMM's own share: milliseconds to the first entry into the guest.
pub(super) fn share(ground: &Ground, machine: Machine, elf: bool) -> Outcome<Value> {
    let first = FirstEntry::watch()?;
    drop(start_machine(ground, machine, elf)?);
    let share = first.milliseconds()?;
    tell(&format!(
        "{} {}: first instruction after {share:.1} ms",
        machine.name(),
        format(elf)
    ));
    Ok(json!(share))
}

/// What happens until init runs: exits by their kinds.
pub(super) fn count(ground: &Ground, machine: Machine) -> Outcome<Value> {
    let (vm, counts) = trace::count(|| start_machine(ground, machine, false))?;
    let counts = counts.per(1.0);
    drop(vm);
    tell(&format!("{}: until init {counts}", machine.name()));
    Ok(counts)
}

/// What happens until init runs, by the time.
pub(super) fn timeline(ground: &Ground, machine: Machine, elf: bool) -> Outcome<Value> {
    let file = ground.timeline(machine, if elf { "boot-elf" } else { "boot" });
    trace::timeline(&file, || start_machine(ground, machine, elf).map(drop))?;
    Ok(Value::Null)
}

/// A guest that has got to its init. Dropping it kills it.
fn start_machine(ground: &Ground, machine: Machine, elf: bool) -> Outcome<Vm> {
    let mut vm = Vm::start(machine.command(ground, elf, WORDS), ground.events())?;
    vm.console.expect(MARK, Instant::now() + LIMIT)?;
    Ok(vm)
}

/// When the last of the driver's own services was ready, by the wall clock.
fn ready(ground: &Ground) -> Outcome<f64> {
    let mut last: Option<f64> = None;
    for event in read_events(&ground.events())? {
        let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default();
        let own = ["heartbeat", "shutdown", "timesync"].contains(&text("name"));
        if own && text("state") == "ready" {
            last = event.get("time_unix_ms").and_then(Value::as_f64).or(last);
        }
    }
    last.ok_or_else(|| Failure("no service became ready".to_owned()))
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

fn format(elf: bool) -> &'static str {
    if elf { "ELF" } else { "bzImage" }
}
