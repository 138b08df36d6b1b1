// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench --instructions`: what a ring packet costs in instructions,
//! counted by valgrind, and held against `benches/limits.json`. Unlike a time
//! that is the same on a busy machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::build;
use crate::error::{Context, Result, failed};
use crate::paths;
use crate::progress::say;
use crate::tools::VALGRIND;

const LAYER: &str = "bench";
const LIMITS: &str = "benches/limits.json";
/// Its instructions are our own: no payload is left to the C library.
const HELD: (u64, &str) = (16, "instructions_per_packet");
/// For information: how long copies take differs between C libraries.
const TOLD: [u64; 3] = [64, 256, 4096];
/// The difference of two runs is free of what a program does besides.
const FEW: u64 = 1_000;
const MANY: u64 = 6_000;

/// Counts, and says whether the limit holds.
pub fn instructions() -> Result<u8> {
    let valgrind = match VALGRIND.require() {
        Ok(path) => path,
        Err(error) => {
            say(format_args!("instructions are not counted: {error}"));
            return Ok(0);
        }
    };
    let limit = limit()?;
    let program = build::released("vmbus-benches", "ring-packets")?;
    let per_packet = |size| -> Result<f64> {
        let few = count(&valgrind, &program, size, FEW)?;
        let many = count(&valgrind, &program, size, MANY)?;
        // Counts of some millions.
        #[expect(clippy::cast_precision_loss)]
        let per_packet = many.saturating_sub(few) as f64 / (MANY - FEW) as f64;
        Ok(per_packet)
    };
    let held = per_packet(HELD.0)?;
    println!(
        "a packet of {} bytes: {held:.1} instructions of {limit}",
        HELD.0
    );
    for size in TOLD {
        println!(
            "a packet of {size} bytes: {:.1} instructions",
            per_packet(size)?
        );
    }
    if held <= limit {
        return Ok(0);
    }
    say(format_args!(
        "a packet takes {held:.1} instructions to write and read, and {LIMITS} allows {limit} \
         ({})",
        HELD.1
    ));
    Ok(1)
}

fn limit() -> Result<f64> {
    let path = paths::workspace().join(LIMITS);
    let text = fs::read_to_string(&path).context(LAYER, path.display())?;
    let limits: Value =
        serde_json::from_str(&text).map_err(|error| failed(LAYER, error.to_string()))?;
    let limit = limits.get(HELD.1).and_then(Value::as_f64);
    limit.ok_or_else(|| failed(LAYER, format!("{LIMITS} has no number '{}'", HELD.1)))
}

/// The instructions of a whole run.
fn count(valgrind: &Path, program: &Path, size: u64, packets: u64) -> Result<u64> {
    let mut command = Command::new(valgrind);
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([size, packets].map(|number| number.to_string()));
    let output = command.output().context(LAYER, valgrind.display())?;
    let said = String::from_utf8_lossy(&output.stderr);
    let counted = collected(&said).filter(|_| output.status.success());
    counted.ok_or_else(|| failed(LAYER, format!("valgrind: {}: {said}", output.status)))
}

/// The number in valgrind's line `==1== Collected : 12345`.
fn collected(said: &str) -> Option<u64> {
    let mut lines = said.lines();
    let number = lines.find_map(|line| line.split_once("Collected :"))?.1;
    number.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_what_valgrind_says() {
        let said = "==7== Events    : Ir\n==7== Collected : 123456\n==7==\n";
        assert_eq!(collected(said), Some(123_456));
        assert_eq!(collected("==7== Events    : Ir\n"), None);
    }

    #[test]
    fn there_is_a_limit() {
        assert!(limit().unwrap() > 0.0);
    }
}
