// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Backup with the distribution's own `hv_vss_daemon`, and writers that must
//! stand still.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::services::{boot, load};
use crate::ensure;
use crate::suite::{Case, Context, Control, Failure, Outcome, Vm};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "vss-freeze",
        "not one write while it is frozen, and writing goes on after each thaw",
        freeze,
    )
    .within(400),
    Case::new(
        "vss-run",
        "vss run thaws whatever happens to its command, or when it is ended",
        run,
    )
    .within(400),
    Case::new(
        "vss-alone",
        "the deadline thaws when the time is up, vmmctl is killed, a connection is cut",
        alone,
    )
    .within(400),
    Case::new(
        "vss-daemon",
        "without a daemon nothing is frozen; one killed while frozen is asked until it thaws",
        daemon,
    ),
    Case::new(
        "vss-disable",
        "a guest that does not thaw cannot keep the service, and a refusal is not remembered",
        disable,
    )
    .within(400),
];

const READY: Duration = Duration::from_secs(15);
/// A thaw may come so long after its deadline.
const LATE: Duration = Duration::from_secs(1);

/// A guest with its daemon, and file systems on RAM disks that are written to all
/// the time: ext4 and xfs.
fn ready(context: &Context) -> Outcome<(Vm, Control)> {
    let (mut vm, control) = boot(context, |setup| setup)?;
    load(&mut vm)?;
    // 300 MB is the least that newer mkfs.xfs make unless they are told otherwise.
    for step in [
        "modprobe crc32c_generic; modprobe ext4 && modprobe xfs",
        "modprobe brd rd_nr=2 rd_size=16384 && mke2fs /dev/ram0 4096",
        "mkfs.xfs --unsupported -q /dev/ram1 2> /dev/null || mkfs.xfs -q /dev/ram1",
        "mkdir /mnt/ext4 /mnt/xfs && mount -t ext4 /dev/ram0 /mnt/ext4 && \
         mount -t xfs /dev/ram1 /mnt/xfs",
    ] {
        vm.sh_ok(step)?;
    }
    vm.sh_ok("hv_vss_daemon")?;
    control.until_ready(&["vss"], READY)?;
    for system in ["ext4", "xfs"] {
        vm.sh_ok(&format!(
            "(n=0; while :; do n=$((n+1)); echo $n > /mnt/{system}/n; \
             sync /mnt/{system}/n; usleep 20000; done) > /dev/null 2>&1 < /dev/null &"
        ))?;
    }
    goes_on(&mut vm)?;
    // So that the hashes are known to tell.
    let (before, began) = (hashes(&mut vm)?, Instant::now());
    let mut now = before.clone();
    while before.0 == now.0 || before.1 == now.1 {
        ensure!(
            began.elapsed() < READY,
            "what is written does not reach both devices: {now:?}"
        );
        now = hashes(&mut vm)?;
    }
    Ok((vm, control))
}

/// What is on the devices, past the cache.
fn hashes(vm: &mut Vm) -> Outcome<(String, String)> {
    let both = vm.sh_ok(
        "echo 1 > /proc/sys/vm/drop_caches; head -c 4194304 /dev/ram0 | md5sum; \
         md5sum < /dev/ram1",
    )?;
    let (ext4, xfs) = both.split_once('\n').unwrap_or_default();
    Ok((ext4.to_owned(), xfs.to_owned()))
}

/// Not one write reaches the devices.
fn stands_still(vm: &mut Vm) -> Outcome {
    let before = hashes(vm)?;
    vm.sh_ok("usleep 300000")?;
    let after = hashes(vm)?;
    ensure!(
        before == after,
        "while frozen, what is on ext4's and xfs' devices changes from {before:?} to {after:?}"
    );
    Ok(())
}

/// Both writers write.
fn goes_on(vm: &mut Vm) -> Outcome {
    let began = Instant::now();
    for system in ["ext4", "xfs"] {
        let count = format!("cat /mnt/{system}/n");
        let before = vm.sh(&count)?.stdout;
        let mut now = before.clone();
        while now == before || now.trim().is_empty() {
            ensure!(
                began.elapsed() < READY,
                "nobody writes to {system}: {before:?}"
            );
            now = vm.sh(&count)?.stdout;
        }
    }
    Ok(())
}

fn state(control: &Control) -> Outcome<String> {
    let (status, answer) = control.ask("GET", "/v1/vss", "")?;
    ensure!(status == 200, "GET /v1/vss: {status} {answer}");
    Ok(answer["filesystems"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

fn until(control: &Control, wanted: &str, limit: Duration) -> Outcome<Duration> {
    let began = Instant::now();
    loop {
        let state = state(control)?;
        if state == wanted {
            return Ok(began.elapsed());
        }
        ensure!(began.elapsed() < limit, "{state} after {limit:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// When it is frozen by now: the time at which it thaws by itself.
fn deadline(control: &Control) -> Outcome<Instant> {
    let (_, answer) = control.ask("GET", "/v1/vss", "")?;
    let left = answer["thawed_in_ms"].as_u64();
    let left = left.ok_or_else(|| Failure(format!("it has no deadline: {answer}")))?;
    Ok(Instant::now() + Duration::from_millis(left))
}

/// It is frozen, and thaws by itself at its deadline, not before. The guest is
/// left in peace meanwhile, so that a slow machine has nothing else to do.
fn thaws_by_itself(vm: &mut Vm, control: &Control, what: &str) -> Outcome<Duration> {
    let deadline = deadline(control)?;
    let counts = "cat /mnt/ext4/n /mnt/xfs/n";
    let before = vm.sh_ok(counts)?;
    vm.sh_ok("usleep 300000")?;
    let after = vm.sh_ok(counts)?;
    // A machine that is too slow to look twice has told nothing.
    ensure!(
        before == after || Instant::now() >= deadline,
        "{what}: while frozen {before:?} becomes {after:?}"
    );
    until(control, "thawed", Duration::from_secs(60))?;
    let late = deadline.elapsed();
    ensure!(
        deadline <= Instant::now(),
        "{what}: thawed before the deadline"
    );
    goes_on(vm)?;
    Ok(late)
}

/// Freezes and leaves it to the deadline. Where a starved machine was late it has
/// two more tries; `late` has all of them.
fn in_time(
    late: &mut Vec<Duration>,
    what: &str,
    mut freeze: impl FnMut() -> Outcome<Duration>,
) -> Outcome {
    for _ in 0..3 {
        let this = freeze()?;
        late.push(this);
        if this < LATE {
            return Ok(());
        }
    }
    Err(Failure(format!(
        "{what}: after the deadline, thawed only {late:?}"
    )))
}

fn freeze(context: &Context) -> Outcome {
    let (mut vm, control) = ready(context)?;
    control.ok(&["vss", "check"])?;
    let rounds = context.times(3, 100);
    for _ in 0..rounds {
        control.ok(&["vss", "freeze", "--max", "120s"])?;
        ensure!(state(&control)? == "frozen", "it is not frozen");
        stands_still(&mut vm)?;
        let ran = control.run(&["vss", "freeze"])?;
        ensure!(
            ran.code == 1 && ran.stderr.contains("busy"),
            "frozen twice: {ran:?}"
        );
        let said = control.ok(&["vss", "thaw"])?;
        ensure!(said == "thawed\n", "vss thaw said {said:?}");
        goes_on(&mut vm)?;
    }
    let said = control.ok(&["vss", "thaw"])?;
    ensure!(said.contains("was not frozen"), "not frozen, and {said:?}");
    super::vmbus::note(&format!("{rounds} freezes of ext4 and xfs"));
    vm.power_off()
}

fn run(context: &Context) -> Outcome {
    let (mut vm, control) = ready(context)?;
    for (script, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -9 $$", 137),
        ("exec /no/such/command", 127),
    ] {
        let go = context.dir.join("go");
        let wait = format!("until [ -e {} ]; do sleep 0.1; done", go.display());
        let script = format!("{wait}; {script}");
        let mut child = in_background(&control, &["--max", "120s", "--", "sh", "-c", &script])?;
        until(&control, "frozen", READY)?;
        stands_still(&mut vm)?;
        fs::write(&go, "")?;
        let ended = child.wait()?.code();
        ensure!(
            ended == Some(code),
            "a command that ends with {code}: {ended:?}"
        );
        ensure!(state(&control)? == "thawed", "not thawed after {script}");
        fs::remove_file(&go)?;
        goes_on(&mut vm)?;
    }
    let ran = control.run(&["vss", "run", "--", "/no/such/command"])?;
    ensure!(ran.code == 1, "a command that is none: {ran:?}");
    ensure!(state(&control)? == "thawed", "after one that is none");
    let mut child = in_background(&control, &["--max", "120s", "--", "sleep", "120"])?;
    until(&control, "frozen", READY)?;
    stands_still(&mut vm)?;
    signal(&child, Signal::TERM)?;
    until(&control, "thawed", Duration::from_secs(5))?;
    child.wait()?;
    goes_on(&mut vm)?;
    vm.power_off()
}

fn in_background(control: &Control, args: &[&str]) -> Outcome<Child> {
    let args = [&["vss", "run"], args].concat();
    let mut command = control.command(&args);
    Ok(command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?)
}

fn signal(child: &Child, signal: Signal) -> Outcome {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Failure("no process".into()))?;
    Ok(kill_process(pid, signal)?)
}

fn alone(context: &Context) -> Outcome {
    let (mut vm, control) = ready(context)?;
    let mut late = Vec::new();
    in_time(&mut late, "the time is up", || {
        let child = control
            .command(&["vss", "run", "--max", "10s", "--", "sleep", "15"])
            .stderr(Stdio::piped())
            .spawn()?;
        until(&control, "frozen", READY)?;
        let late = thaws_by_itself(&mut vm, &control, "the time is up")?;
        let ran = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        ensure!(
            ran.status.code() == Some(1) && said.contains("thawed before"),
            "a command that took too long: {:?} {said}",
            ran.status
        );
        Ok(late)
    })?;
    in_time(&mut late, "vmmctl is killed", || {
        let mut child = in_background(&control, &["--max", "10s", "--", "sleep", "60"])?;
        until(&control, "frozen", READY)?;
        signal(&child, Signal::KILL)?;
        child.wait()?;
        thaws_by_itself(&mut vm, &control, "vmmctl is killed")
    })?;
    // The connection is cut behind the answer, and before it.
    let body = r#"{"max_ms":10000}"#;
    in_time(&mut late, "the connection is cut", || {
        let (status, answer) = control.ask("POST", "/v1/vss/freeze", body)?;
        ensure!(status == 200, "freezing: {status} {answer}");
        thaws_by_itself(&mut vm, &control, "the connection is cut")
    })?;
    let mut stream = UnixStream::connect(control.socket())?;
    let length = body.len();
    let head = format!("POST /v1/vss/freeze HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes())?;
    drop(stream);
    // Whether it was read at all is open. It is known how it ends.
    thread::sleep(Duration::from_secs(2));
    if state(&control)? != "thawed" {
        until(&control, "frozen", READY)?;
        late.push(thaws_by_itself(&mut vm, &control, "it is cut at once")?);
    }
    let (_, answer) = control.ask("GET", "/v1/vss", "")?;
    let expired = u64::try_from(late.len()).unwrap_or(0);
    ensure!(
        answer["expired"] == expired && answer["filesystems"] == "thawed",
        "{expired} freezes have expired: {answer}"
    );
    // The next guest knows nothing of a freeze.
    control.ok(&["vss", "freeze", "--max", "120s"])?;
    control.ok(&["reset"])?;
    vm.wait_agent()?;
    load(&mut vm)?;
    vm.sh_ok("hv_vss_daemon")?;
    control.until_ready(&["vss"], READY)?;
    until(&control, "thawed", Duration::from_secs(3))?;
    control.ok(&["vss", "run", "--", "true"])?;
    super::vmbus::note(&format!("thawed {late:?} after the deadline"));
    vm.power_off()
}

fn daemon(context: &Context) -> Outcome {
    let (mut vm, control) = ready(context)?;
    control.ok(&["vss", "freeze", "--max", "60s"])?;
    vm.sh_ok("killall -9 hv_vss_daemon")?;
    let ran = control.run(&["vss", "thaw"])?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("no-daemon"),
        "thawing without a daemon: {ran:?}"
    );
    ensure!(state(&control)? == "unknown", "known, without a daemon");
    let ran = control.run(&["ic", "disable", "vss"])?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("busy"),
        "taken back while it may be frozen: {ran:?}"
    );
    vm.sh_ok("hv_vss_daemon")?;
    until(&control, "thawed", Duration::from_secs(5))?;
    goes_on(&mut vm)?;
    vm.sh_ok("killall -9 hv_vss_daemon")?;
    let ran = control.run(&["vss", "run", "--", "true"])?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("no-daemon"),
        "freezing without a daemon: {ran:?}"
    );
    goes_on(&mut vm)?;
    vm.power_off()
}

fn disable(context: &Context) -> Outcome {
    let (mut vm, control) = boot(context, |setup| setup)?;
    let start = |vm: &mut Vm| -> Outcome {
        load(vm)?;
        vm.sh_ok("hv_vss_daemon")?;
        control.until_ready(&["vss"], READY).map(drop)
    };
    let refused = |word: &str| -> Outcome {
        let ran = control.run(&["ic", "disable", "vss"])?;
        ensure!(
            ran.code == 1 && ran.stderr.contains("busy") && ran.stderr.contains(word),
            "disabling it while frozen: {ran:?}"
        );
        Ok(())
    };
    start(&mut vm)?;
    control.ok(&["vss", "freeze", "--max", "600s"])?;
    refused("vmmctl vss thaw")?;
    control.ok(&["reset"])?;
    vm.wait_agent()?;
    let vss = control.service("vss")?;
    ensure!(
        vss["enabled"] == true,
        "what was refused is done after a reset: {vss}"
    );
    // What was agreed is remembered.
    control.ok(&["ic", "disable", "timesync"])?;
    control.ok(&["reset"])?;
    vm.wait_agent()?;
    let timesync = control.service("timesync")?;
    ensure!(timesync["enabled"] == false, "after a reset: {timesync}");

    // The daemon dies, and the guest says again and again that it cannot thaw.
    start(&mut vm)?;
    control.ok(&["vss", "freeze", "--max", "2s"])?;
    vm.sh_ok("kill -9 $(pidof hv_vss_daemon)")?;
    until(&control, "unknown", READY)?;
    refused("try again in")?;
    let began = Instant::now();
    while control.run(&["ic", "disable", "vss"])?.code != 0 {
        ensure!(
            began.elapsed() < Duration::from_secs(90),
            "the guest keeps it for {:?}",
            began.elapsed()
        );
        thread::sleep(Duration::from_secs(1));
    }
    // Whoever has it next thaws first. The daemon needs a device to open.
    control.ok(&["ic", "enable", "vss"])?;
    until(&control, "unknown", READY)?;
    vm.sh_ok("until [ -e /dev/vmbus/hv_vss ]; do usleep 100000; done; hv_vss_daemon")?;
    until(&control, "thawed", READY)?;
    control.until_ready(&["vss"], READY)?;
    control.ok(&["vss", "run", "--", "true"])?;
    vm.power_off()
}
