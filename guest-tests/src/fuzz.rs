// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask fuzz`: libFuzzer on the stable toolchain, a target after the other.
//!
//! The coverage that libFuzzer needs comes from the compiler's own passes, so
//! neither a nightly toolchain nor cargo-fuzz is needed. New inputs and what
//! fails are kept under target/fuzz; the seeds in the repository stay as they are.

use std::path::PathBuf;
use std::process::Command;

use crate::build;
use crate::error::{Context, Result, failed};
use crate::paths;
use crate::progress::{say, step};
use crate::tools::CXX;

const LAYER: &str = "fuzz";
/// Cargo's profile for them.
const PROFILE: &str = "fuzz";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The targets, in the order in which they are run.
pub const TARGETS: [&str; 13] = [
    "control_messages",
    "ring",
    "synic",
    "kernel_image",
    "kvp",
    "vss",
    "fcopy",
    "service_replies",
    "tar",
    "hvsock",
    "ring_race",
    "http",
    "boot_tables",
];

/// What makes the compiler count what is reached.
const FLAGS: &str = "--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

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

/// Runs one target or all of them, each so much.
pub fn fuzz(target: Option<&str>, budget: Budget) -> Result<u8> {
    if let Some(name) = target
        && !TARGETS.contains(&name)
    {
        let names = TARGETS.join(", ");
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
    for name in TARGETS
        .iter()
        .filter(|name| target.is_none_or(|wish| wish == **name))
    {
        run(&dir, name, budget)?;
    }
    Ok(0)
}

fn run(dir: &std::path::Path, name: &str, budget: Budget) -> Result<()> {
    let found: PathBuf = dir.join("corpus").join(name);
    let artifacts = dir.join("artifacts").join(name);
    for path in [&found, &artifacts] {
        std::fs::create_dir_all(path).context(LAYER, path.display())?;
    }
    let seeds = paths::workspace().join("fuzz/corpus").join(name);
    std::fs::create_dir_all(&seeds).context(LAYER, seeds.display())?;
    say(format_args!("fuzzing {name} {budget}"));
    let status = Command::new(dir.join(TRIPLE).join(PROFILE).join(name))
        .arg(match budget {
            Budget::Seconds(seconds) => format!("-max_total_time={seconds}"),
            Budget::Runs(runs) => format!("-runs={runs}"),
        })
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-print_final_stats=1", "-timeout=20", "-verbosity=0"])
        .args([&found, &seeds])
        .status()
        .context(LAYER, name)?;
    if status.success() {
        return Ok(());
    }
    Err(failed(
        LAYER,
        format!(
            "{name}: {status}; the input is under {}",
            artifacts.display()
        ),
    ))
}
