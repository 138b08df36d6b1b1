// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest that has taken over a thread of `vmm` finds: filters, and
//! nothing that it could hand on.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::build::HOSTILE;
use crate::ensure;
use crate::runner::NOTE;
use crate::suite::seccomp::KernelLog;
use crate::suite::{Case, Context, Control, Failure, Outcome, Vm};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "sandbox",
        "threads are filtered, descriptors close on exec, sockets and directories are private",
        sandbox,
    )
    .once(),
    Case::new(
        "seccomp-noticed",
        "a system call that no filter knows fails a run with XTASK_SECCOMP=log",
        noticed,
    )
    .once(),
    Case::new(
        "hostile-beside",
        "vCPUs attack the bus, and a channel that behaves goes on beside them",
        beside,
    )
    .once()
    .with_cpus(&[3])
    .with_both_synics(),
    Case::new(
        "hostile-wild",
        "vCPUs attack everything and reset the machine again and again",
        wild,
    )
    .once()
    .with_cpus(&[3])
    .with_both_synics(),
];

/// How long an attack lasts.
const ATTACK: Duration = Duration::from_secs(15);
/// A host that is attacked answers its user within this time; most of it is the
/// nest's, whose one CPU the attackers have too.
const PROMPT: Duration = Duration::from_secs(5);
/// More memory than this, and it grows with the attack: the guest's own and what
/// the limits allow is in use after the first seconds.
const GROWTH_KIB: u64 = 24 << 10;

/// `Seccomp:` of a thread that is under a filter.
const FILTERED: &str = "2";
/// `O_CLOEXEC` in `/proc/PID/fdinfo`.
const CLOSE_ON_EXEC: u32 = 0o2_000_000;

fn sandbox(context: &Context) -> Outcome {
    let runtime = std::env::temp_dir().join(format!("run-{}", std::process::id()));
    fs::create_dir_all(&runtime)?;
    let log = context.dir.join("log");
    let trace = context.dir.join("trace");
    let [log, trace] = [log, trace].map(|path| path.display().to_string());
    let setup = context.setup().cmdline("agent.modules=hv_utils").args(&[
        "--name",
        "sandboxed",
        "--log-file",
        &log,
        "--vmbus-trace",
        &trace,
        "--ic",
        "all",
    ]);
    let (mut command, events) = setup.command();
    command.env("XDG_RUNTIME_DIR", &runtime);
    let mut vm = Vm::start(command, events)?;
    vm.wait_agent()?;
    let socket = runtime.join("vmm/sandboxed/api.sock");
    let control = Control::at(context, &socket);
    control.until_ready(&["heartbeat"], Duration::from_secs(60))?;

    let filtered = threads(vm.pid())?;
    for kind in [
        "console", "stderr", "events", "api", "bus", "vcpu0", "vcpu1",
    ] {
        ensure!(
            filtered.iter().any(|thread| thread.name == kind),
            "no thread {kind} among {filtered:?}"
        );
    }
    for thread in &filtered {
        ensure!(
            thread.seccomp == FILTERED && thread.no_new_privileges == "1",
            "not under a filter: {thread:?}"
        );
    }
    let count = descriptors_close(vm.pid())?;
    ensure!(count > 20, "only {count} descriptors were looked at");

    // The directories down to the sockets, and the sockets.
    let owner = fs::metadata("/proc/self")?.uid();
    for path in [
        runtime.join("vmm"),
        runtime.join("vmm/sandboxed"),
        socket.clone(),
        runtime.join("vmm/sandboxed/vsock.sock"),
    ] {
        is_private(&path, owner)?;
    }
    control.ok(&["kill"])?;
    vm.expect_exit(130)?;
    let left = fs::read_dir(runtime.join("vmm"))?.count();
    ensure!(left == 0, "{left} files of the VM's are left");
    fs::remove_dir_all(&runtime)?;
    Ok(())
}

#[derive(Debug)]
struct Thread {
    name: String,
    seccomp: String,
    no_new_privileges: String,
}

fn threads(pid: u32) -> Outcome<Vec<Thread>> {
    let mut threads = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let field = |name: &str| {
            let mut lines = status.lines();
            let value = lines.find_map(|line| line.strip_prefix(name));
            value.unwrap_or_default().trim().to_owned()
        };
        threads.push(Thread {
            name: field("Name:"),
            seccomp: field("Seccomp:"),
            no_new_privileges: field("NoNewPrivs:"),
        });
    }
    Ok(threads)
}

/// Every descriptor but the three standard ones is closed when a program is
/// started; how many there are.
fn descriptors_close(pid: u32) -> Outcome<usize> {
    let mut count = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str());
        let number: u32 = number.and_then(|n| n.parse().ok()).unwrap_or_default();
        // One that has just been closed.
        let Ok(info) = fs::read_to_string(&path) else {
            continue;
        };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        let target = fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap_or_default();
        ensure!(
            number <= 2 || flags.is_some_and(|flags| flags & CLOSE_ON_EXEC != 0),
            "descriptor {number} ({}) is not closed on exec: {info}",
            target.display()
        );
        count += 1;
    }
    Ok(count)
}

fn is_private(path: &Path, owner: u32) -> Outcome {
    let meta = fs::symlink_metadata(path)?;
    let others = meta.permissions().mode() & 0o077;
    ensure!(
        others == 0 && meta.uid() == owner,
        "{} is open to others: mode {:o}",
        path.display(),
        meta.permissions().mode()
    );
    ensure!(
        meta.is_dir() || meta.file_type().is_socket(),
        "{} is no socket",
        path.display()
    );
    Ok(())
}

/// The control of `XTASK_SECCOMP=log`, which would be as green if it saw nothing.
fn noticed(_: &Context) -> Outcome {
    if std::env::var_os("XTASK_PLACE").is_none_or(|place| place != "nest") {
        println!("{NOTE}left out: this machine's kernel log may not be ours to read");
        return Ok(());
    }
    // By its name it is a `vmm`, as far as the kernel can tell.
    let dir = std::env::temp_dir().join(format!("stray-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let program = dir.join("vmm");
    let built = std::env::current_exe()?.with_file_name("examples/seccomp_stray");
    fs::copy(built, &program)?;
    let log = KernelLog::mark_on_purpose()?;
    log.expect_nothing()?;
    let output = Command::new(&program).output()?;
    ensure!(output.status.success(), "it strays, and {output:?}");
    let said = match log.expect_nothing() {
        Ok(()) => return Err(Failure("nobody has noticed the call".to_owned())),
        Err(failure) => failure.to_string(),
    };
    // getppid, which is number 110.
    ensure!(said.contains("syscall=110 "), "noticed, but: {said}");
    fs::remove_dir_all(&dir)?;
    Ok(())
}

/// A hostile guest under attack orders, and its control.
fn hostile(context: &Context, order: &str) -> Outcome<(Vm, Control)> {
    let control = Control::new(context);
    let socket = control.socket().display().to_string();
    let mut vm = context
        .setup()
        .kernel(context.vmm.with_file_name(HOSTILE))
        .initramfs(None)
        .memory("64M")
        .cmdline(order)
        .args(&[
            "--api-socket",
            &socket,
            "--on-crash",
            "continue",
            "--ic",
            "all",
        ])
        .launch()?;
    let deadline = Instant::now() + Duration::from_secs(60);
    vm.console.expect("hostile: attack", deadline)?;
    Ok((vm, control))
}

/// Watches a VM for the time of an attack: it answers, and does not grow.
/// Calls `look` with each status.
fn endure(
    vm: &Vm,
    control: &Control,
    mut look: impl FnMut(&Value) -> Outcome,
) -> Outcome<Duration> {
    let warm = Instant::now() + ATTACK / 3;
    let end = Instant::now() + ATTACK;
    let (mut slowest, mut before) = (Duration::ZERO, None);
    while Instant::now() < end {
        let start = Instant::now();
        let status = control.status()?;
        slowest = slowest.max(start.elapsed());
        ensure!(slowest < PROMPT, "an answer took {slowest:?}");
        look(&status)?;
        if before.is_none() && Instant::now() > warm {
            before = Some(resident_kib(vm.pid())?);
        }
        thread::sleep(Duration::from_millis(200));
    }
    let (before, after) = (before.unwrap_or(0), resident_kib(vm.pid())?);
    ensure!(
        after < before + GROWTH_KIB,
        "vmm has grown from {before} to {after} KiB"
    );
    Ok(slowest)
}

fn resident_kib(pid: u32) -> Outcome<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut lines = status.lines();
    let field = lines.find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = field.and_then(|field| field.split_whitespace().next()?.parse().ok());
    kib.ok_or_else(|| Failure("no VmRSS".to_owned()))
}

fn finish(mut vm: Vm, control: &Control) -> Outcome {
    control.ok(&["kill"])?;
    vm.expect_exit(130)?;
    let said = vm.said();
    ensure!(!said.contains("panicked"), "vmm panicked: {said}");
    Ok(())
}

fn beside(context: &Context) -> Outcome {
    let (vm, control) = hostile(context, "beside")?;
    control.until_health("ok", Duration::from_secs(60))?;
    let slowest = endure(&vm, &control, |status| {
        let health = &status["health"];
        ensure!(health == "ok", "under attack the heartbeat is {health}");
        Ok(())
    })?;
    let status = control.status()?;
    let violations = status["vmbus"]["violations"].as_u64().unwrap_or(0);
    ensure!(violations > 100, "no attack was noticed: {status}");
    ensure!(status["resets"] == 0, "the guest has reset: {status}");
    println!("{NOTE}{violations} violations, slowest answer {slowest:?}");
    finish(vm, &control)
}

/// Fewer, and the attack is not what it is meant to be.
const RESETS: u64 = 3;

fn wild(context: &Context) -> Outcome {
    let (vm, control) = hostile(context, "wild")?;
    let mut resets = 0;
    let slowest = endure(&vm, &control, |status| {
        let now = status["resets"].as_u64().unwrap_or(0);
        ensure!(now >= resets, "{now} resets after {resets}");
        resets = now;
        Ok(())
    })?;
    again_and_again(resets, &vm.events()?, &vm.console.text())?;
    println!("{NOTE}{resets} resets, slowest answer {slowest:?}");
    finish(vm, &control)
}

/// Whether the status, the events and the guest itself agree on how often it was
/// reset: each time another machine came, and the attack began anew.
fn again_and_again(resets: u64, events: &[Value], said: &str) -> Outcome {
    ensure!(
        resets >= RESETS,
        "the machine was reset {resets} times, not {RESETS}"
    );
    let count = |many: usize| u64::try_from(many).unwrap_or(0);
    let named = |name: &'static str| events.iter().filter(move |event| event["event"] == name);
    let told = count(named("reset").count());
    let runs: Vec<_> = named("running")
        .filter_map(|event| event["resets"].as_u64())
        .collect();
    ensure!(
        told >= resets
            && count(runs.len()) > resets
            && runs.iter().copied().eq((0..).take(runs.len())),
        "the status has {resets} resets, the events {told} and the runs {runs:?}"
    );
    // One that others have ended before it could say so is rare.
    let attacks = count(said.matches("hostile: wild").count());
    ensure!(
        attacks * 2 > resets,
        "after {resets} resets the attack began only {attacks} times"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest leaves behind that was reset so often.
    fn traces(resets: u64) -> (Vec<Value>, String) {
        let run = |resets| serde_json::json!({"event": "running", "resets": resets});
        let mut events = vec![run(0)];
        let mut said = "hostile: wild\n".to_owned();
        for reset in 1..=resets {
            events.push(serde_json::json!({"event": "reset"}));
            events.push(run(reset));
            said += "hostile: attack\nhostile: reset\nhostile: wild\n";
        }
        (events, said)
    }

    #[test]
    fn resets_count_when_status_events_and_guest_agree() {
        let (events, said) = traces(RESETS);
        again_and_again(RESETS, &events, &said).unwrap();
        let none = again_and_again(RESETS - 1, &events, &said);
        assert!(none.is_err(), "too few");
        let more = again_and_again(RESETS + 1, &events, &said);
        assert!(more.is_err(), "more than the events have");
        for at in 0..events.len() {
            let mut fewer = events.clone();
            fewer.remove(at);
            let found = again_and_again(RESETS, &fewer, &said);
            assert!(found.is_err(), "without event {at}");
        }
        let once = again_and_again(RESETS, &events, "hostile: wild\n");
        assert!(once.is_err(), "only the first machine attacks");
    }
}
