// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask test`: what runs, where, and what came of it.
//!
//! Each guest test is one command, `guest-suite run CASE …`, so it runs here or
//! in the nest alike. Nests have one CPU each, so there is one for each of this
//! machine's, and they share the tests. A nest serves many; if it hangs, or
//! a test fails in it, it is replaced, and the test is run once more. Such retries
//! are counted and shown. The Intel nest runs a batch, and nothing twice.

mod host;
mod intel;
mod plan;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::image::{Image, SYSTEMD};
use crate::nest::{self, Nest, Options};
use crate::place::{self, Place};
use crate::progress::{say, step};
use crate::tools::{CURL, SSH};
use crate::{build, examples, kernels, paths, rootfs, schemathesis};
use plan::Run;
pub use plan::Wish;

/// Lines of a case's output that are shown though it passed.
pub const NOTE: &str = "note: ";

/// How much longer a case may take with `--long`.
const LONG: u64 = 8;

/// What came of all tests.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    passed: u64,
    failed: u64,
    retries: u64,
}

/// Runs the tests; whether all passed.
pub fn test(wish: &Wish) -> Result<bool> {
    let start = Instant::now();
    let mut tally = Tally::default();
    // A wish that cannot be had is told before anything is built.
    let place = wish.place()?;
    let in_batch = place == place::Wish::Intel;
    let runs = if in_batch {
        plan::plan_intel(wish)?
    } else {
        plan::plan(wish)?
    };
    if !wish.guest_only && !in_batch && wish.api_fuzz.is_none() {
        let (passed, failed) = host::cargo_test(wish.filter.as_deref())?;
        tally.passed += passed;
        tally.failed += failed;
    }
    if in_batch {
        intel::test(&runs, wish.long, &mut tally)?;
    } else if !runs.is_empty() {
        guest_tests(&runs, place, wish, &mut tally)?;
    }
    if tally.retries > 0 {
        println!(
            "{} tests were run once more, marked AGAIN above: the nest hung, or they failed in it",
            tally.retries
        );
    }
    println!("in {:.0} s:", start.elapsed().as_secs_f64());
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally.failed == 0)
}

fn guest_tests(runs: &[Run], place: place::Wish, wish: &Wish, tally: &mut Tally) -> Result<()> {
    let names = plan::kernels_of(runs);
    if wish.api_fuzz.is_some() {
        schemathesis::prepare()?;
    }
    if runs.iter().any(|run| run.case.name == "api-curl") {
        CURL.require()?;
    }
    let with_ssh = ["systemd-ssh", "systemd-cp", "ssh-none"];
    if runs.iter().any(|run| with_ssh.contains(&run.case.name)) {
        SSH.require()?;
    }
    if runs.iter().any(|run| run.case.name == "seccomp-noticed") {
        build::example("vmm", "seccomp_stray")?;
    }
    if runs.iter().any(|run| run.case.name == "vsock-examples") {
        examples::prepare()?;
    }
    step(
        &format!("preparing the images of {}", names.join(", ")),
        || {
            for name in &names {
                Image::guest(name)?.kernel.vmlinux()?;
            }
            let on_systemd =
                |run: &Run| run.case.name.starts_with("systemd-") && run.kernel == rootfs::RELEASE;
            if runs.iter().any(on_systemd)
                && let Err(error) = Image::guest(SYSTEMD)
            {
                // It takes root to make, once. Only what needs it fails.
                say(error);
            }
            Ok(())
        },
    )?;
    let Programs { vmm, suite, .. } = programs()?;
    let place = place::decide_as(place)?;
    let jobs = match &place {
        // Cases about time want the machine for themselves.
        Place::Here => 1,
        Place::Nest(_) => jobs(),
    };
    println!("{} guest tests {}", runs.len(), about(&place, jobs));
    let ground = || Ground {
        suite: suite.clone(),
        vmm: vmm.clone(),
        long: wish.long,
        minutes: wish.api_fuzz.unwrap_or(0),
        in_nest: place != Place::Here,
        nest: None,
    };
    let (next, tally) = (AtomicUsize::new(0), Mutex::new(tally));
    thread::scope(|scope| {
        for _ in 0..jobs.min(runs.len()) {
            scope.spawn(|| {
                let mut ground = ground();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(run) = runs.get(number) else { break };
                    let label = format!("[{}/{}] {run}", number + 1, runs.len());
                    guest_test(&mut ground, run, &label, &tally);
                }
                ground.close();
            });
        }
    });
    Ok(())
}

/// What runs the tests, and what they test.
struct Programs {
    suite: PathBuf,
    vmm: PathBuf,
    vmmctl: PathBuf,
    hostile: PathBuf,
}

fn programs() -> Result<Programs> {
    step("building vmm and the guest tests", || {
        Ok(Programs {
            vmmctl: build::program("vmm", "vmmctl")?,
            vmm: build::program("vmm", "vmm")?,
            hostile: build::hostile()?,
            suite: build::program("guest-tests", "guest-suite")?,
        })
    })
}

/// How many nests at a time: one for each CPU, as far as there is memory.
fn jobs() -> usize {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    cpus.min(nest::at_once()).max(1)
}

fn about(place: &Place, jobs: usize) -> String {
    match place {
        Place::Here => "on this machine's /dev/kvm".to_owned(),
        Place::Nest(why) => format!("in the nest, {jobs} at a time ({why})"),
    }
}

/// Runs one test and says what came of it.
fn guest_test(ground: &mut Ground, run: &Run, label: &str, tally: &Mutex<&mut Tally>) {
    let start = Instant::now();
    let mut end = ground.run(run);
    if let Some(why) = ground.doubt(&end) {
        println!("AGAIN {label}: {why}");
        tally.lock().unwrap_or_else(PoisonError::into_inner).retries += 1;
        end = ground.run(run);
    }
    // Whole lines of one test stay together.
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tell(label, end, start.elapsed(), &mut tally);
}

/// Says and counts what came of a test.
fn tell(label: &str, end: Result<(u32, String)>, took: Duration, tally: &mut Tally) {
    let took = took.as_secs_f64();
    let output = match end {
        Ok((0, output)) => {
            println!("ok   {label}  {took:.1} s");
            // What it has measured.
            for note in output.lines().filter_map(|line| line.strip_prefix(NOTE)) {
                println!("     {note}");
            }
            tally.passed += 1;
            return;
        }
        Ok((_, output)) => output,
        Err(error) => error.to_string(),
    };
    tally.failed += 1;
    println!("FAIL {label}  {took:.1} s");
    for line in output.lines() {
        println!("     {line}");
    }
}

/// Where the tests are run.
struct Ground {
    suite: PathBuf,
    vmm: PathBuf,
    long: bool,
    /// For the case that is as long as is wished.
    minutes: u64,
    in_nest: bool,
    nest: Option<Nest>,
}

impl Ground {
    /// The test's status and output. An error is the place's, not the test's.
    fn run(&mut self, run: &Run) -> Result<(u32, String)> {
        let argv = self.argv(run);
        let times = if self.long { LONG } else { 1 };
        let limit = Duration::from_secs(run.case.limit * times + self.minutes * 60);
        if !self.in_nest {
            return host::run(&argv, limit);
        }
        let nest = match self.nest.take() {
            Some(nest) => nest,
            None => Nest::start(&Options::usual()?)?,
        };
        // A nest that failed, or is still at it, is dropped here, and so ended.
        let exit = nest.run(&nest.spec(argv), limit)?;
        if exit.status != nest::TOO_LONG {
            self.nest = Some(nest);
        }
        let mut output = String::from_utf8_lossy(&exit.stdout).into_owned();
        output.push_str(&String::from_utf8_lossy(&exit.stderr));
        Ok((exit.status, output))
    }

    /// Why a run does not count: the nest hung, or the test failed in it. Times
    /// in the nest are those of a busy emulator, so there a failure has to happen
    /// twice, in two nests. That it happened once is told.
    fn doubt(&mut self, end: &Result<(u32, String)>) -> Option<String> {
        match end {
            _ if !self.in_nest => None,
            // What it has found is to be seen, not whether it finds it again.
            Ok(_) if self.minutes > 0 => None,
            Ok((0, _)) => None,
            Ok((_, output)) => {
                self.nest = None;
                let lines: Vec<&str> = output.lines().take(3).collect();
                Some(lines.join(" | "))
            }
            Err(error) => Some(error.to_string()),
        }
    }

    fn argv(&self, run: &Run) -> Vec<OsString> {
        let mut argv = argv(run, &self.suite, &self.vmm, self.long);
        if self.minutes > 0 {
            argv.extend(["--minutes".into(), self.minutes.to_string().into()]);
        }
        argv
    }

    fn close(self) {
        if let Some(nest) = self.nest {
            nest.stop();
        }
    }
}

/// The command that runs a test, with these programs.
fn argv(run: &Run, suite: &Path, vmm: &Path, long: bool) -> Vec<OsString> {
    let mut argv: Vec<OsString> = vec![suite.into(), "run".into(), run.case.name.into()];
    argv.extend(["--kernel".into(), run.kernel.into()]);
    argv.extend(["--cpus".into(), run.cpus.to_string().into()]);
    argv.extend(["--vmm".into(), vmm.into()]);
    if let Some(synic) = run.synic {
        argv.extend(["--synic".into(), synic.into()]);
    }
    if long {
        argv.push("--long".into());
    }
    argv
}

/// For `guest-suite`: the image that the runner has prepared, without building.
pub fn prepared(name: &str) -> Result<(kernels::Kernel, PathBuf)> {
    let kernel = kernels::Kernel::cached(name)?;
    let initramfs = Image::guest_path(name)?;
    Ok((kernel, initramfs))
}

/// A directory for one case's logs, in what is writable everywhere, and apart
/// from those of others that test at the same time.
pub fn log_dir(label: &str) -> Result<PathBuf> {
    let run = std::env::var("XTASK_RUN").unwrap_or_else(|_| "by-hand".to_owned());
    let dir = paths::scratch()?.join("cases").join(run).join(label);
    paths::fresh(&dir)?;
    Ok(dir)
}
