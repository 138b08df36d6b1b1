// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Faults of the host: each is survived, or ends `vmm` with one clear line.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::ensure;
use crate::runner::NOTE;
use crate::suite::{Case, Context, Control, Failure, Outcome, Vm};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "fault-full-disk",
        "logs, traces and a console on a full disk do not hold up the guest",
        full_disk,
    )
    .once(),
    Case::new(
        "fault-descriptors",
        "too few descriptors are told at the start, and clients survive them later",
        descriptors,
    )
    .once(),
    Case::new(
        "fault-memory",
        "a host without memory for the guest says so",
        memory,
    )
    .once(),
    Case::new(
        "fault-clock",
        "steps of the host's clock disturb nothing",
        clock,
    )
    .once(),
    Case::new(
        "fault-starved",
        "a VM whose vCPUs get no CPU is still in its user's hands",
        starved,
    )
    .once(),
];

/// Every file that it writes is on a full disk.
fn full_disk(context: &Context) -> Outcome {
    let control = Control::new(context);
    let socket = control.socket().display().to_string();
    let setup = context
        .setup()
        .cmdline("agent.modules=hv_utils loglevel=7")
        .args(&["--api-socket", &socket, "--vmbus-trace", "/dev/full"])
        .args(&["--serial", "file=/dev/full", "-vv"]);
    let (command, events) = setup.command();
    let log = command.get_args().position(|arg| arg == "--event-log");
    let mut again = Command::new(command.get_program());
    for (at, arg) in command.get_args().enumerate() {
        let replaced = log.is_some_and(|log| at == log + 1);
        again.arg(if replaced { "/dev/full".as_ref() } else { arg });
    }
    let mut vm = Vm::start(again, events)?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while control.status().is_err() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
    }
    control.until_health("ok", Duration::from_secs(120))?;
    // Past the moment at which the console's queue would be full.
    thread::sleep(Duration::from_secs(3));
    control.until_health("ok", Duration::from_secs(10))?;
    let said = vm.said();
    for what in ["console: ", "events: ", "VMBus trace: "] {
        ensure!(
            said.lines()
                .any(|line| line.contains(what) && line.contains("No space left")),
            "no warning of {what}: {said}"
        );
    }
    control.ok(&["kill"])?;
    vm.expect_exit(130)
}

/// The command in a shell that has set a limit before, hard and soft.
fn limited(limit: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(format!("ulimit {limit} && exec \"$0\" \"$@\""));
    shell.arg(command.get_program()).args(command.get_args());
    shell
}

/// Ends by itself, at once, with one line that has the words.
fn ends_with(context: &Context, limit: &str, words: &str) -> Outcome {
    let (command, _) = context.setup().command();
    let output = limited(limit, &command).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1) && said.lines().count() == 1 && said.contains(words),
        "ulimit {limit}: ended with {} and said: {said}",
        output.status
    );
    Ok(())
}

fn descriptors(context: &Context) -> Outcome {
    for limit in [8, 20] {
        ends_with(context, &format!("-n {limit}"), "Too many open files")?;
    }
    let control = Control::new(context);
    let socket = control.socket().display().to_string();
    let setup = context.setup().cmdline("agent.modules=hv_utils");
    let vsock = std::env::temp_dir().join(format!("descriptors-{}", std::process::id()));
    let text = vsock.display().to_string();
    let args = ["--api-socket", &socket, "--vsock", &text];
    let (command, events) = setup.args(&args).command();
    let mut vm = Vm::start(limited("-n 96", &command), events)?;
    vm.wait_agent()?;
    control.until_health("ok", Duration::from_secs(60))?;
    // More clients than there are descriptors left, silent all.
    let clients: Vec<_> = (0..120)
        .map(|_| UnixStream::connect(control.socket()))
        .collect();
    thread::sleep(Duration::from_secs(1));
    // There is nobody to go for a client of the guest's, who has to wait.
    let mut waiting = UnixStream::connect(&vsock)?;
    waiting.write_all(b"CONNECT 6009\n")?;
    waiting.set_read_timeout(Some(Duration::from_secs(20)))?;
    thread::sleep(Duration::from_secs(1));
    // The silent ones have to go for one who asks.
    let start = Instant::now();
    control.until_health("ok", Duration::from_secs(20))?;
    println!("{NOTE}answered after {:?}", start.elapsed());
    drop(clients);
    let start = Instant::now();
    let mut answer = String::new();
    waiting.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("ERR"), "it is told {answer:?}");
    println!(
        "{NOTE}the one who waited is told {answer:?} after {:?}",
        start.elapsed()
    );
    vm.sh_ok("true")?;
    vm.power_off()
}

fn memory(context: &Context) -> Outcome {
    // 512 MiB for the guest do not go into 400.
    ends_with(context, "-v 400000", "host memory: ")
}

fn clock(context: &Context) -> Outcome {
    if std::env::var_os("XTASK_PLACE").is_none_or(|place| place != "nest") {
        println!("{NOTE}left out: this machine's clock is not ours to set");
        return Ok(());
    }
    let control = Control::new(context);
    let socket = control.socket().display().to_string();
    let setup = context.setup().cmdline("agent.modules=hv_utils");
    let mut vm = setup
        .args(&["--api-socket", &socket, "--timeout", "30m"])
        .boot()?;
    control.until_health("ok", Duration::from_secs(60))?;
    for step in [7200, -14400, 7200] {
        set_clock(step)?;
        let seen = control.until_health("ok", Duration::from_secs(1));
        thread::sleep(Duration::from_secs(3));
        let still = control.until_health("ok", Duration::from_secs(1));
        seen.and(still)?;
        vm.sh_ok("true")?;
        // The guest is given the host's time, whichever way that went.
        control.ok(&["time", "sync"])?;
        let guest: i64 = vm.sh_ok("date +%s")?.parse().unwrap_or(0);
        let host = now()?;
        ensure!(
            guest.abs_diff(host) < 10 || step < 0,
            "after a step of {step} s the guest is at {guest}, the host at {host}"
        );
    }
    vm.power_off()
}

fn now() -> Outcome<i64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = now.ok().and_then(|now| i64::try_from(now.as_secs()).ok());
    seconds.ok_or_else(|| Failure("the clock is before 1970".to_owned()))
}

fn set_clock(step: i64) -> Outcome {
    let to = format!("@{}", now()? + step);
    let set = Command::new("date").args(["-s", &to]).output()?;
    ensure!(set.status.success(), "the clock cannot be set");
    Ok(())
}

fn starved(context: &Context) -> Outcome {
    let control = Control::new(context);
    let socket = control.socket().display().to_string();
    let setup = context.setup().cmdline("agent.modules=hv_utils");
    let mut vm = setup.args(&["--api-socket", &socket]).boot()?;
    control.until_health("ok", Duration::from_secs(60))?;
    let busy = Busy::start()?;
    for thread in vcpu_threads(vm.pid())? {
        let idle = Command::new("chrt")
            .args(["-i", "-p", "0", &thread])
            .status()?;
        ensure!(idle.success(), "thread {thread} cannot be made idle");
    }
    let (mut slowest, end) = (Duration::ZERO, Instant::now() + Duration::from_secs(10));
    while Instant::now() < end {
        let start = Instant::now();
        control.status()?;
        slowest = slowest.max(start.elapsed());
        thread::sleep(Duration::from_millis(100));
    }
    ensure!(
        slowest < Duration::from_secs(5),
        "an answer took {slowest:?}"
    );
    println!("{NOTE}slowest answer {slowest:?}");
    control.ok(&["pause"])?;
    control.ok(&["resume"])?;
    drop(busy);
    // Where it was.
    vm.sh_ok("true")?;
    control.until_health("ok", Duration::from_secs(30))?;
    vm.power_off()
}

fn vcpu_threads(pid: u32) -> Outcome<Vec<String>> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let path: PathBuf = task?.path();
        let name = std::fs::read_to_string(path.join("comm"))?;
        if name.starts_with("vcpu") {
            let number = path.file_name().and_then(|name| name.to_str());
            found.push(number.unwrap_or_default().to_owned());
        }
    }
    ensure!(!found.is_empty(), "no vCPU threads");
    Ok(found)
}

/// Programs that use up every CPU, for as long as it lives.
struct Busy(Vec<Child>);

impl Busy {
    fn start() -> Outcome<Self> {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let spin = || {
            Command::new("sh")
                .args(["-c", "while :; do :; done"])
                .spawn()
        };
        Ok(Self((0..cpus).map(|_| spin()).collect::<Result<_, _>>()?))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
