// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask fuzz`: libFuzzer on the stable toolchain, a target after the other.
//!
//! The coverage that libFuzzer needs comes from the compiler's own passes, so
//! neither a nightly toolchain nor cargo-fuzz is needed. New inputs and what
//! fails are kept under target/fuzz; the seeds in the repository stay as they are.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};
use std::time::Instant;

use crate::build;
use crate::error::{Context, Result, failed};
use crate::paths;
use crate::progress::{say, step};
use crate::tools::CXX;

const LAYER: &str = "fuzz";
/// Cargo's profile for them.
const PROFILE: &str = "fuzz";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// A target.
#[derive(Clone, Copy, Debug)]
struct Target {
    name: &'static str,
    /// The longest input, in bytes. Of steps a hundred are run, which are
    /// shorter than this as a rule; of files and answers whole ones fit.
    max_len: u32,
}

const fn target(name: &'static str, max_len: u32) -> Target {
    Target { name, max_len }
}

/// The targets, in the order in which they are run.
const TARGETS: [Target; 18] = [
    target("control_messages", 512),
    target("ring", 512),
    target("synic", 512),
    target("kernel_image", 8192),
    target("kvp", 512),
    target("vss", 512),
    target("fcopy", 512),
    target("services", 512),
    target("service_replies", 8192),
    target("tar", 8192),
    target("fetch", 8192),
    target("hvsock", 512),
    target("vsock", 512),
    target("hyperv", 512),
    target("trace_decoder", 1024),
    target("ring_race", 512),
    target("http", 1024),
    target("boot_tables", 32),
];

/// What makes the compiler count what is reached. Comparisons are not traced:
/// that halves the inputs a second, and seeds have the magic numbers.
const FLAGS: &str = "--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=3 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table";

/// More than any target needs: one that grows beyond is a finding.
const MEMORY_MIB: u32 = 1024;

/// How much a target is run.
#[derive(Clone, Copy, Debug)]
pub enum Budget {
    /// So many seconds.
    Seconds(u64),
    /// So many inputs.
    Runs(u64),
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Seconds(seconds) => write!(f, "for {seconds} s"),
            Self::Runs(runs) => write!(f, "with {runs} inputs"),
        }
    }
}

/// The targets' names.
pub fn names() -> [&'static str; 18] {
    TARGETS.map(|target| target.name)
}

/// Runs one target or all of them, each so much.
pub fn fuzz(wish: Option<&str>, budget: Budget) -> Result<u8> {
    if let Some(name) = wish
        && !names().contains(&name)
    {
        let names = names().join(", ");
        return Err(failed(
            LAYER,
            format!("no target `{name}`: there are {names}"),
        ));
    }
    CXX.require()?;
    let dir = paths::target().join("fuzz");
    step("building the fuzz targets", || {
        let mut command = build::cargo();
        command
            .args(["build", "--quiet", "--package", "vmbus-fuzz", "--bins"])
            .args(["--profile", PROFILE, "--target", TRIPLE, "--target-dir"])
            .arg(&dir)
            .env("RUSTFLAGS", FLAGS)
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        let status = command.status().context(LAYER, "cargo")?;
        if status.success() {
            Ok(())
        } else {
            Err(failed(LAYER, format!("cargo build: {status}")))
        }
    })?;
    for target in TARGETS {
        if wish.is_none_or(|wish| wish == target.name) {
            run(&dir, target, budget)?;
        }
    }
    Ok(0)
}

fn run(dir: &Path, target: Target, budget: Budget) -> Result<()> {
    let name = target.name;
    let found: PathBuf = dir.join("corpus").join(name);
    let artifacts = dir.join("artifacts").join(name);
    for path in [&found, &artifacts] {
        std::fs::create_dir_all(path).context(LAYER, path.display())?;
    }
    let seeds = paths::workspace().join("fuzz/corpus").join(name);
    std::fs::create_dir_all(&seeds).context(LAYER, seeds.display())?;
    // Words that a target's inputs are made of, where it has them.
    let words = format!("fuzz/dictionaries/{name}.dict");
    let words = paths::workspace().join(words);
    say(format_args!("fuzzing {name} {budget} ..."));
    let begin = Instant::now();
    let mut child = Command::new(dir.join(TRIPLE).join(PROFILE).join(name))
        .arg(match budget {
            Budget::Seconds(seconds) => format!("-max_total_time={seconds}"),
            Budget::Runs(runs) => format!("-runs={runs}"),
        })
        .arg(format!("-max_len={}", target.max_len))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(match budget {
            Budget::Seconds(_) => "-use_counters=1",
            // What is reached counts, not how often: twice as many inputs.
            Budget::Runs(_) => "-use_counters=0",
        })
        .args(["-print_final_stats=1", "-timeout=20"])
        .args(words.exists().then(|| format!("-dict={}", words.display())))
        .args([&found, &seeds])
        .stderr(Stdio::piped())
        .spawn()
        .context(LAYER, name)?;
    let said = child.stderr.take().map(Said::read).unwrap_or_default();
    let status = child.wait().context(LAYER, name)?;
    if status.success() {
        say(format_args!(
            "fuzzing {name}: {} inputs in {} s, {} of {} places reached, {} MiB, nothing found",
            said.inputs,
            begin.elapsed().as_secs(),
            said.reached,
            said.places,
            said.memory
        ));
        return Ok(());
    }
    for line in said.last {
        eprintln!("{line}");
    }
    Err(failed(
        LAYER,
        format!(
            "{name}: {status}; the input is under {}",
            artifacts.display()
        ),
    ))
}

/// What libFuzzer says, as far as anybody wants to know.
#[derive(Debug, Default)]
struct Said {
    inputs: u64,
    reached: u64,
    places: u64,
    memory: u64,
    /// The last lines, which tell of what was found.
    last: VecDeque<String>,
}

impl Said {
    fn read(from: ChildStderr) -> Self {
        let mut said = Self::default();
        // Not as text: it shows inputs.
        for line in BufReader::new(from)
            .split(b'\n')
            .map_while(std::io::Result::ok)
        {
            said.line(String::from_utf8_lossy(&line).into_owned());
        }
        said
    }

    fn line(&mut self, line: String) {
        let number = |before: &str| {
            let (_, rest) = line.split_once(before)?;
            let rest = rest.trim_start();
            let digits = rest.find(|char: char| !char.is_ascii_digit());
            rest.get(..digits.unwrap_or(rest.len()))?.parse().ok()
        };
        for (before, field) in [
            (" cov:", &mut self.reached),
            ("stat::number_of_executed_units:", &mut self.inputs),
            ("stat::peak_rss_mb:", &mut self.memory),
            ("PC tables (", &mut self.places),
        ] {
            if let Some(number) = number(before) {
                *field = number;
            }
        }
        self.last.push_back(line);
        if self.last.len() > 60 {
            self.last.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says_is_understood() {
        let mut said = Said::default();
        for line in [
            "INFO: Loaded 1 modules   (9012 inline 8-bit counters): 9012 [0x1, 0x2), ",
            "INFO: Loaded 1 PC tables (9012 PCs): 9012 [0x1,0x2), ",
            "#2\tINITED cov: 312 ft: 313 corp: 1/1b exec/s: 0 rss: 29Mb",
            "#4000\tDONE   cov: 1312 ft: 9313 corp: 341/41Kb lim: 4096 exec/s: 2000 rss: 30Mb",
            "stat::number_of_executed_units: 4000",
            "stat::peak_rss_mb:              31",
        ] {
            said.line(line.to_owned());
        }
        let numbers = (said.inputs, said.reached, said.places, said.memory);
        assert_eq!(numbers, (4000, 1312, 9012, 31));
    }
}
