// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams between guest and host: throughput, round trips, and what they cost.

use std::process::Command;

use serde_json::{Map, Value, json};

use super::machine::Machine;
use super::trace;
use super::{Ground, tell};
use crate::suite::{Failure, Outcome};

/// Mebibytes of a timed stream.
const TIMED: u32 = 64;
/// Of a counted one.
const COUNTED: u32 = 16;
/// Round trips.
const PINGS: u32 = 1000;
const MIB: u32 = 1 << 20;

/// Throughput and round trips of one machine.
pub(super) fn measure(ground: &Ground, machine: Machine) -> Outcome<Value> {
    let vm = machine.boot(ground, &[])?;
    let mut found = Map::new();
    for (kind, count) in [
        ("to-host", TIMED * MIB),
        ("to-guest", TIMED * MIB),
        ("host-ping", PINGS),
        ("guest-ping", PINGS),
    ] {
        let took = drive(ground, machine, kind, count)?;
        let (value, unit) = if count == PINGS {
            (took / 1000.0, "µs")
        } else {
            (f64::from(TIMED) * f64::from(MIB) / took * 1000.0, "MB/s")
        };
        tell(&format!("{}: {kind} {value:.1} {unit}", machine.name()));
        found.insert(kind.to_owned(), json!(value));
    }
    drop(vm);
    Ok(found.into())
}

/// What each MiB costs in exits, signals and interrupts.
pub(super) fn count(ground: &Ground, machine: Machine) -> Outcome<Value> {
    let vm = machine.boot(ground, &[])?;
    let mut found = Map::new();
    for (kind, count) in [
        ("to-host", COUNTED * MIB),
        ("to-guest", COUNTED * MIB),
        ("host-ping", PINGS),
        ("guest-ping", PINGS),
    ] {
        let ((), counts) = trace::count(|| drive(ground, machine, kind, count).map(drop))?;
        let units = if count == PINGS {
            f64::from(PINGS)
        } else {
            f64::from(COUNTED)
        };
        let counts = counts.per(units);
        tell(&format!("{}: {kind} {counts}", machine.name()));
        found.insert(kind.to_owned(), counts);
    }
    drop(vm);
    Ok(found.into())
}

/// What happens in a few round trips and a short stream each way, by the time.
pub(super) fn timeline(ground: &Ground, machine: Machine) -> Outcome<Value> {
    let vm = machine.boot(ground, &[])?;
    for (kind, count) in [
        ("to-host", 1 << 20),
        ("to-guest", 1 << 20),
        ("host-ping", 20),
        ("guest-ping", 20),
    ] {
        let file = ground.timeline(machine, kind);
        trace::timeline(&file, || drive(ground, machine, kind, count).map(drop))?;
    }
    drop(vm);
    Ok(Value::Null)
}

/// One measurement in nanoseconds.
fn drive(ground: &Ground, machine: Machine, kind: &str, count: u32) -> Outcome<f64> {
    let output = Command::new(&ground.agent)
        .args(["vsock-drive", &machine.place(), kind, &count.to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        Failure(format!("{} {kind}: {}", machine.name(), said.trim()))
    })
}
