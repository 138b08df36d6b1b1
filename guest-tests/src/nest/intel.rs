// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The second nest: an emulated machine with an Intel CPU, for what KVM does
//! otherwise there.
//!
//! ```text
//!  cargo xtask ── Bochs ── L1: stock Linux, kvm-intel, our agent ── vmm ── guest
//!    │  └ a disc: kernel, programs, images, plan ─┘ │
//!    └────────── lines of the second serial port ───┘
//! ```
//!
//! Bochs emulates VMX with EPT, which QEMU does not. It has neither virtio nor
//! 9p, so everything is on a disc that is made for one batch of commands, and
//! nothing gets in later. The console is the first serial port; both ports are
//! watched as the other nest's are, see [`super::watch`].

mod disc;
mod emulator;
mod progress;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use guest_agent::batch::{self, Plan};

use super::watch::{ConsoleWatch, Pulse};
use crate::error::{HarnessError, Result, failed};
use crate::progress::whisper;
pub use disc::{Contents, Guest};
use emulator::Machine;
use progress::{Port, Progress, Step};

pub(crate) const LAYER: &str = "intel nest";

/// How often ports and health are looked at.
const CHECK: Duration = Duration::from_millis(100);

/// How long the nest may take to come up, on a machine that is busy with others.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// The nest ends a command by its own clock. If its clock stands still, nobody
/// does, so this many times the command's limit by ours is a hang.
const TIMES: u32 = 6;

/// A command of the batch, as `cargo xtask` knows it.
#[derive(Clone, Debug)]
pub struct Job {
    /// The command itself.
    pub command: batch::Command,
    /// For people.
    pub name: String,
}

/// How a command ended: status and output, or why the nest did not survive it.
pub type End = Result<(u32, String)>;

/// Runs all commands, in their order, and tells of each when it has ended.
///
/// Nothing is run twice. If the nest hangs, the command that was running has
/// failed, and those after it are run in a new nest.
pub fn run(
    contents: &Contents,
    jobs: &[Job],
    tell: &mut dyn FnMut(&Job, End, Duration),
) -> Result<()> {
    let emulator = emulator::bochs()?;
    let mut left = jobs;
    while !left.is_empty() {
        let plan = Plan {
            env: Contents::environment(),
            commands: left.iter().map(|job| job.command.clone()).collect(),
        };
        let machine = Machine::start(&emulator, contents, &plan)?;
        let done = serve(machine, left, tell)?;
        left = left.get(done..).unwrap_or_default();
    }
    Ok(())
}

/// Serves one nest to its end; how many commands have ended, well or not.
fn serve(
    mut machine: Machine,
    jobs: &[Job],
    tell: &mut dyn FnMut(&Job, End, Duration),
) -> Result<usize> {
    let ids = jobs.iter().map(|job| job.command.id).collect();
    let mut progress = Progress::new(ids);
    let mut port = Port::new(&machine.port);
    let mut console = ConsoleWatch::new(&machine.console);
    let mut pulse = Pulse::start(false);
    let mut since = Instant::now();
    let why = loop {
        thread::sleep(CHECK);
        // Looked at before the port is read: what it said last is in the port then.
        let ended = machine.ended();
        let mut bad = None;
        for line in port.lines() {
            pulse.beat();
            match progress.take(&line) {
                Ok(None) => {}
                Ok(Some(Step::Up(facts))) => {
                    whisper(format_args!("the Intel nest is up: {facts}"));
                    since = Instant::now();
                }
                Ok(Some(Step::Started)) => since = Instant::now(),
                Ok(Some(Step::Ended(index, status, output))) => {
                    if let Some(job) = jobs.get(index) {
                        tell(job, Ok((status, output)), since.elapsed());
                    }
                    since = Instant::now();
                }
                Ok(Some(Step::Bye)) => {
                    machine.finish();
                    return Ok(jobs.len());
                }
                Err(error) => bad = Some(error),
            }
        }
        let running = progress.running().and_then(|index| jobs.get(index));
        let limit = running.map_or(BOOT_LIMIT, |job| {
            Duration::from_secs(job.command.limit) * TIMES
        });
        let slow = || {
            let seconds = since.elapsed().as_secs();
            (since.elapsed() > limit).then(|| format!("nothing came of it in {seconds} s"))
        };
        let silent = || progress.is_up().then(|| pulse.check()).flatten();
        let found = bad.or_else(|| console.check());
        let found = found.or_else(|| ended.map(|how| format!("the emulator ended: {how}")));
        if let Some(why) = found.or_else(silent).or_else(slow) {
            break why;
        }
    };
    let running = progress.running().and_then(|index| jobs.get(index));
    let error = HarnessError::Hung {
        why: format!("{why}{}", machine.last_words()),
        running: running
            .map_or("nothing", |job| job.name.as_str())
            .to_owned(),
        console: machine.console.display().to_string(),
    };
    match running {
        Some(job) => {
            let output = progress.output();
            let error = failed(LAYER, format!("{error}\n{output}"));
            tell(job, Err(error), since.elapsed());
            Ok(progress.ended() + 1)
        }
        // It failed by itself: another nest would do no better, or hide why.
        None => Err(error),
    }
}

/// Where a program is in the nest.
pub fn program(name: &str) -> PathBuf {
    disc::program(name)
}
