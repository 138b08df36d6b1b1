// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench`: runs criterion's benchmarks of rings, bus and services,
//! and puts their figures into `docs/performance.md`, beside the limit.
//!
//! A figure is the fastest sample: what else runs on a machine only makes things
//! slower. The median is told too; a large distance between the two says that the
//! machine was busy.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::command::{Wish, machine};
use super::report;
use crate::build;
use crate::error::{Context, Result, failed};
use crate::paths;

const LAYER: &str = "bench";
const BEGIN: &str = "<!-- rings: written by `cargo xtask bench` -->\n";
const END: &str = "<!-- end of rings -->\n";

const SIZES: [u32; 7] = [16, 40, 64, 256, 1024, 4096, 16384];

/// Nanoseconds of one iteration.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Time {
    fastest: f64,
    median: f64,
}

/// By criterion's full names: `group/function/parameter`.
type Times = BTreeMap<String, Time>;

/// Measures, prints, and writes the tables if everything was measured.
pub(super) fn measure(wish: &Wish) -> Result<u8> {
    let home = paths::scratch()?.join("criterion");
    // What an earlier run has left would pass for measured.
    let _ = fs::remove_dir_all(&home);
    let mut command = build::cargo();
    command
        .args(["bench", "--package", "vmbus-benches", "--locked", "--"])
        .args(["--warm-up-time", "0.5", "--measurement-time", "2"])
        .env("CRITERION_HOME", &home);
    if !wish.only.is_empty() {
        // It takes one regular expression.
        command.arg(wish.only.join("|"));
    }
    if wish.json {
        command.stdout(std::io::stderr());
    }
    let status = command.status().context(LAYER, "cargo bench")?;
    if !status.success() {
        return Ok(1);
    }
    let times = collect(&home)?;
    if wish.json {
        println!("{:#}", to_json(&times));
    }
    // A part of the figures replaces nothing.
    if wish.only.is_empty() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let about = format!("{}, {cores} of its cores.", machine());
        let tables = tables(&times, &about);
        if !wish.json {
            println!("{tables}");
        }
        report::write_between(BEGIN, &tables, END)?;
    }
    Ok(0)
}

/// What criterion keeps of a benchmark.
#[derive(Deserialize)]
struct Sample {
    iters: Vec<f64>,
    times: Vec<f64>,
}

#[derive(Deserialize)]
struct About {
    full_id: String,
}

fn collect(home: &Path) -> Result<Times> {
    let mut times = Times::new();
    for dir in measured(home)? {
        let about: About = read(&dir.join("benchmark.json"))?;
        let sample: Sample = read(&dir.join("sample.json"))?;
        let time = time(&sample).ok_or_else(|| {
            let why = format!("{} has no samples", dir.display());
            failed(LAYER, why)
        })?;
        times.insert(about.full_id, time);
    }
    Ok(times)
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).context(LAYER, path.display())?;
    let parsed = serde_json::from_str(&text);
    parsed.map_err(|error| failed(LAYER, format!("{}: {error}", path.display())))
}

/// The directories of all benchmarks' newest figures, however deep.
fn measured(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).context(LAYER, dir.display())? {
        let path = entry.context(LAYER, dir.display())?.path();
        if path.is_dir() {
            if path.ends_with("new") {
                found.push(path);
            } else {
                found.append(&mut measured(&path)?);
            }
        }
    }
    Ok(found)
}

fn time(sample: &Sample) -> Option<Time> {
    let each = sample.times.iter().zip(&sample.iters);
    let mut each: Vec<f64> = each.map(|(time, count)| time / count).collect();
    each.sort_by(f64::total_cmp);
    Some(Time {
        fastest: *each.first()?,
        median: *each.get(each.len() / 2)?,
    })
}

fn to_json(times: &Times) -> Value {
    let entries = times.iter().map(|(name, time)| {
        let value = json!({"fastest-ns": time.fastest, "median-ns": time.median});
        (name.clone(), value)
    });
    Value::Object(entries.collect())
}

fn tables(times: &Times, about: &str) -> String {
    let mut text = format!("{about}\n\n");
    packets(&mut text, times);
    plot(&mut text, times);
    others(&mut text, times);
    text
}

fn nanoseconds(time: Option<&Time>) -> String {
    time.map_or("–".to_owned(), |time| {
        format!("{:.1} ({:.1})", time.fastest, time.median)
    })
}

fn ratio(over: Option<&Time>, under: Option<&Time>) -> Option<f64> {
    over.zip(under)
        .map(|(over, under)| over.fastest / under.fastest)
}

fn packets(text: &mut String, times: &Times) {
    text.push_str(
        "| Payload, bytes | two `memcpy`, ns | a packet, ns | of `memcpy`'s speed | scattered pages, ns | two threads, ns |\n\
         |---|---|---|---|---|---|\n",
    );
    for size in SIZES {
        let get = |name: &str| times.get(&format!("packet/{name}/{size}"));
        let limit = ratio(get("memcpy"), get("one thread"));
        let _ = writeln!(
            text,
            "| {size} | {} | {} | {} | {} | {} |",
            nanoseconds(get("memcpy")),
            nanoseconds(get("one thread")),
            limit.map_or("–".to_owned(), |limit| format!("{limit:.2}")),
            nanoseconds(get("scattered pages")),
            nanoseconds(get("two threads")),
        );
    }
    text.push_str("\nThe fastest sample, and in parentheses the median.\n\n");
}

/// How much of the time of a packet is its copies.
fn plot(text: &mut String, times: &Times) {
    const WIDTH: f64 = 40.0;
    text.push_str("```text\nhow much of a packet's time its copies alone take\n");
    for size in SIZES {
        let get = |name: &str| times.get(&format!("packet/{name}/{size}"));
        let Some(limit) = ratio(get("memcpy"), get("one thread")) else {
            continue;
        };
        let bar: String = (0..40)
            .map(|at| {
                if f64::from(at) < limit * WIDTH {
                    '█'
                } else {
                    '░'
                }
            })
            .collect();
        let _ = writeln!(text, "{size:>6} {bar} {:.0} %", limit * 100.0);
    }
    text.push_str("```\n\n");
}

/// What one iteration of a benchmark does, in a unit that people count in.
enum Unit {
    /// So many of something.
    Each(f64, &'static str),
    /// So many bytes.
    Bytes(f64),
}

fn others(text: &mut String, times: &Times) {
    use Unit::{Bytes, Each};
    text.push_str("| What | time | rate |\n|---|---|---|\n");
    for (name, id, unit) in [
        (
            "16 packets of 16 bytes, one signal",
            "batch of 16/16",
            Each(16.0, "packets"),
        ),
        (
            "16 packets of 4096 bytes, one signal",
            "batch of 16/4096",
            Each(16.0, "packets"),
        ),
        (
            "256 bytes through a ring that stays full",
            "full ring/256",
            Each(1.0, "packets"),
        ),
        (
            "connect, offers, open, close, unload",
            "bus/connect, offers, open, close, unload",
            Each(1.0, "cycles"),
        ),
        ("open, close", "bus/open, close", Each(1.0, "cycles")),
        (
            "64 bytes through a device and back",
            "bus/a packet there and back through a device",
            Each(1.0, "packets"),
        ),
        (
            "KVP: 200 items set",
            "services/KVP, 200 items set",
            Each(200.0, "items"),
        ),
        (
            "KVP: 200 items listed",
            "services/KVP, 200 items listed",
            Each(200.0, "items"),
        ),
        (
            "file copy: 100 MB",
            "services/file copy, 100 MB",
            Bytes(1e8),
        ),
        (
            "hv_sock: 64 KiB to the host",
            "hv_sock/64 KiB to the host",
            Bytes(65536.0),
        ),
        (
            "hv_sock: 64 KiB to the guest",
            "hv_sock/64 KiB to the guest",
            Bytes(65536.0),
        ),
        (
            "hv_sock: 64 bytes there and back",
            "hv_sock/64 bytes there and back",
            Each(1.0, "round trips"),
        ),
    ] {
        let (time, rate) = times.get(id).map_or(("–".into(), "–".into()), |time| {
            let rate = match unit {
                Each(count, what) => format!("{} {what}/s", grouped(count * 1e9 / time.fastest)),
                Bytes(count) => format!("{} MB/s", grouped(count * 1e3 / time.fastest)),
            };
            (duration(time.fastest), rate)
        });
        let _ = writeln!(text, "| {name} | {time} | {rate} |");
    }
    text.push('\n');
}

fn duration(nanoseconds: f64) -> String {
    match nanoseconds {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.1} µs", ns / 1e3),
        ns => format!("{:.1} ms", ns / 1e6),
    }
}

/// A whole number with its thousands apart.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times() -> Times {
        let time = |fastest| Time {
            fastest,
            median: fastest * 1.5,
        };
        [
            ("packet/memcpy/4096", time(90.0)),
            ("packet/one thread/4096", time(100.0)),
            ("hv_sock/64 KiB to the host", time(65_536.0)),
            ("open, close", time(1.0)),
        ]
        .map(|(name, time)| (name.to_owned(), time))
        .into()
    }

    #[test]
    fn a_packet_is_held_against_its_copies() {
        let text = tables(&times(), "here");
        assert!(text.starts_with("here\n\n| Payload"), "{text}");
        let row = "| 4096 | 90.0 (135.0) | 100.0 (150.0) | 0.90 | – | – |";
        assert!(text.contains(row), "{text}");
        assert!(text.contains("| 16 | – | – | – | – | – |"), "{text}");
        assert!(text.contains(&"█".repeat(36)), "{text}");
        assert!(text.contains("░ 90 %"), "{text}");
        let row = "| hv_sock: 64 KiB to the host | 65.5 µs | 1 000 MB/s |";
        assert!(text.contains(row), "{text}");
        assert!(text.contains("| file copy: 100 MB | – | – |"), "{text}");
    }

    #[test]
    fn the_fastest_sample_counts_and_samples_may_differ_in_length() {
        let sample = Sample {
            iters: vec![10.0, 20.0, 30.0],
            times: vec![100.0, 100.0, 600.0],
        };
        let time = time(&sample).unwrap();
        assert_eq!((time.fastest, time.median), (5.0, 10.0));
        let none = Sample {
            iters: vec![],
            times: vec![],
        };
        assert_eq!(super::time(&none), None);
    }

    #[test]
    fn numbers_are_grouped() {
        let all = [0.4, 999.0, 1000.0, 1_234_567.0].map(grouped);
        assert_eq!(all, ["0", "999", "1 000", "1 234 567"]);
    }

    #[test]
    fn the_page_has_a_place_for_the_tables() {
        let page = paths::workspace().join("docs/performance.md");
        let text = fs::read_to_string(page).unwrap();
        let (_, rest) = text.split_once(BEGIN).unwrap();
        assert!(rest.contains(END));
    }
}
