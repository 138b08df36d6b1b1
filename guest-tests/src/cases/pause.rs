// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a paused VM owes its users: each command of `vmmctl` ends in its own time,
//! or at once with what to do, and who goes away takes the request along.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::services::{boot_ready, load};
use crate::ensure;
use crate::suite::{Case, Context, Control, Failure, Outcome, Ran, Vm};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "pause-commands",
        "with a VM paused, each vmmctl command ends in its time, or at once with busy",
        commands,
    )
    .within(400),
    Case::new(
        "pause-abandoned",
        "a shutdown that was asked for in a pause, and abandoned, is not done after it",
        abandoned,
    ),
    Case::new(
        "pause-freeze",
        "deadlines of freezes come in a pause, and a client that is gone freezes nothing",
        freeze,
    )
    .within(400),
];

/// More than any command takes that does not wait, in a nest that is busy.
const AT_ONCE: Duration = Duration::from_secs(20);
const READY: Duration = Duration::from_secs(15);

/// How a command is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With 1, `busy` and what to do.
    Busy,
    /// With 1, and says at least that the VM is paused: the words are another
    /// program's.
    Paused,
    /// With 0.
    Done,
    /// With 3, and says that the VM is paused.
    TooLate,
    /// Not by itself: it follows what happens.
    Follows,
}

/// Starts `vmmctl` so that what it says of errors can be read.
fn start(control: &Control, args: &[&str]) -> Outcome<Child> {
    let mut command = control.command(args);
    // Completions are more than a pipe holds.
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    Ok(command.spawn()?)
}

/// How it ended; nothing if it had not after `limit`, and was killed.
fn finish(mut child: Child, limit: Duration) -> Outcome<Option<Ran>> {
    let end = Instant::now() + limit;
    while child.try_wait()?.is_none() {
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
    let mut ran = Ran {
        code: child.wait()?.code().unwrap_or(-1),
        ..Ran::default()
    };
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut ran.stderr)?;
    }
    Ok(Some(ran))
}

fn commands(context: &Context) -> Outcome {
    let (mut vm, control) = boot_ready(context, |setup| setup.args(&["--ic", "+fcopy"]))?;
    let daemons = "hv_kvp_daemon && hv_vss_daemon";
    vm.sh_ok(daemons)?;
    control.until_ready(&["kvp", "vss"], READY)?;
    control.ok(&["pause"])?;
    let file = context.dir.join("file");
    fs::write(&file, "x")?;
    let (file, dir) = (
        file.display().to_string(),
        context.dir.display().to_string(),
    );
    let mac = "00:15:5d:00:00:01";
    let table: &[(End, &[&str])] = &[
        (End::Done, &["list"]),
        (End::Done, &["status"]),
        (End::Done, &["pause"]),
        (End::TooLate, &["wait", "heartbeat", "--timeout", "1s"]),
        (End::TooLate, &["wait", "service=fcopy", "--timeout", "1s"]),
        (End::TooLate, &["wait", "ready", "--timeout", "1s"]),
        (End::TooLate, &["wait", "stopped", "--timeout", "1s"]),
        (End::Busy, &["shutdown"]),
        (End::Busy, &["shutdown", "--reboot", "--timeout", "5s"]),
        (End::Busy, &["shutdown", "--hibernate", "--force"]),
        (End::Busy, &["nmi"]),
        (End::Done, &["ic", "list"]),
        (End::Done, &["ic", "disable", "heartbeat"]),
        (End::Done, &["ic", "enable", "heartbeat"]),
        (End::Done, &["time"]),
        (End::Busy, &["time", "sync"]),
        (End::Paused, &["connect", "22"]),
        // It listens on this host, whatever the guest does; its clients are told.
        (End::Follows, &["forward", "0", "22"]),
        (End::Done, &["hvsocket", "list"]),
        (End::Done, &["hvsocket", "register", "5000", "echo"]),
        (End::Done, &["hvsocket", "unregister", "5000"]),
        (End::Busy, &["kvp", "list"]),
        (End::Busy, &["kvp", "list", "--pool", "auto"]),
        (End::Busy, &["kvp", "get", "key"]),
        (End::Busy, &["kvp", "set", "key", "value"]),
        (End::Busy, &["kvp", "delete", "key"]),
        (End::Busy, &["ip", "get", mac]),
        (End::Busy, &["ip", "set", mac, "--dhcp"]),
        (End::Busy, &["vss", "check"]),
        (End::Busy, &["vss", "freeze", "--max", "5s"]),
        (End::Busy, &["vss", "run", "--", "true"]),
        (End::Busy, &["vss", "thaw"]),
        (End::Done, &["vss", "status"]),
        (End::Busy, &["cp", &file, "guest:/tmp/"]),
        (End::Paused, &["cp", "guest:/etc/os-release", &dir]),
        (End::Paused, &["ssh", "--", "true"]),
        (End::Done, &["events"]),
        (End::Follows, &["events", "--follow"]),
        (End::Follows, &["trace", "-n", "1"]),
        (End::Done, &["completions", "bash"]),
        (End::Done, &["man", &dir]),
    ];
    let mut wrong = Vec::new();
    for (wanted, args) in table {
        if let Err(error) = ends(&control, *wanted, args) {
            wrong.push(error.0);
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    // These end the pause.
    let last = ["resume", "reset", "kill"];
    let all: BTreeSet<&str> = table.iter().map(|(_, args)| args[0]).chain(last).collect();
    let help = control.ok(&["--help"])?;
    let missed: Vec<&str> = command_names(&help)
        .filter(|name| !all.contains(name))
        .collect();
    ensure!(missed.is_empty(), "nobody has tried vmmctl {missed:?}");

    control.ok(&["resume"])?;
    control.until_ready(&["kvp", "vss", "heartbeat"], READY)?;
    for args in [&["time", "sync"][..], &["vss", "check"], &["kvp", "list"]] {
        control.ok(args)?;
    }
    control.ok(&["pause"])?;
    ends(&control, End::Done, &["reset"])?;
    vm.wait_agent()?;
    load(&mut vm)?;
    control.until_ready(&["shutdown"], READY)?;
    control.ok(&["pause"])?;
    let args = ["shutdown", "--timeout", "5s", "--then-kill"];
    ends(&control, End::Done, &args)?;
    // As after a shutdown: who asked for one has got it.
    vm.expect_exit(0)
}

/// Names of `vmmctl`'s commands.
fn command_names(help: &str) -> impl Iterator<Item = &str> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help")
}

fn ends(control: &Control, wanted: End, args: &[&str]) -> Outcome {
    let words = args.join(" ");
    let child = start(control, args)?;
    let limit = match wanted {
        End::Follows => Duration::from_secs(2),
        _ => AT_ONCE,
    };
    let ran = finish(child, limit)?;
    let Some(ran) = ran else {
        ensure!(
            wanted == End::Follows,
            "vmmctl {words} is still there after {limit:?}"
        );
        return Ok(());
    };
    let told = ran.stderr.contains("paused") && ran.stderr.contains("vmmctl resume");
    let fits = match wanted {
        End::Busy => ran.code == 1 && told && ran.stderr.contains("(busy, layer vm)"),
        // Not every machine has an ssh.
        End::Paused => ran.code != 0 && (told || ran.stderr.contains("there is no ssh")),
        End::Done => ran.code == 0,
        End::TooLate => ran.code == 3 && told,
        End::Follows => false,
    };
    ensure!(fits, "vmmctl {words}: not {wanted:?} but {ran:?}");
    Ok(())
}

fn abandoned(context: &Context) -> Outcome {
    let (mut vm, control) = boot_ready(context, |setup| setup)?;
    control.ok(&["pause"])?;
    // A vmmctl that is killed, and a connection that is cut.
    let child = start(&control, &["shutdown", "--timeout", "60s"])?;
    finish(child, Duration::from_secs(2))?;
    let mut stream = UnixStream::connect(control.socket())?;
    let body = r#"{"action":"shutdown"}"#;
    let length = body.len();
    let head = format!("PUT /v1/vm/power HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes())?;
    thread::sleep(Duration::from_secs(1));
    drop(stream);
    thread::sleep(Duration::from_secs(1));
    control.ok(&["resume"])?;
    vm.sh_ok("sleep 3")?;
    control.until_health("ok", READY)?;
    let events = vm.events()?;
    let accepted = events.iter().any(|one| one["event"] == "shutdown-accepted");
    ensure!(!accepted, "the guest accepted what nobody wants any more");
    control.ok(&["shutdown"])?;
    vm.expect_exit(0)
}

fn state(control: &Control) -> Outcome<String> {
    let (_, answer) = control.ask("GET", "/v1/vss", "")?;
    Ok(answer["filesystems"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

fn until_thawed(control: &Control) -> Outcome {
    let end = Instant::now() + READY;
    while state(control)? != "thawed" {
        ensure!(Instant::now() < end, "{} after {READY:?}", state(control)?);
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn daemon(vm: &mut Vm, signal: &str) -> Outcome {
    let script = format!("kill -{signal} $(pidof hv_vss_daemon)");
    vm.sh_ok(&script).map(drop)
}

fn freeze(context: &Context) -> Outcome {
    let (mut vm, control) = boot_ready(context, |setup| setup)?;
    vm.sh_ok("hv_vss_daemon")?;
    control.until_ready(&["vss"], READY)?;
    control.ok(&["vss", "run", "--", "true"])?;

    // The deadline comes in the pause, and the thaw behind it.
    control.ok(&["vss", "freeze", "--max", "3s"])?;
    control.ok(&["pause"])?;
    thread::sleep(Duration::from_secs(4));
    let said = control.ok(&["vss", "status"])?;
    ensure!(
        said == "frozen; thaws as soon as the VM goes on (vmmctl resume)\n",
        "vss status in the pause: {said:?}"
    );
    control.ok(&["resume"])?;
    until_thawed(&control)?;

    // A thaw that is refused in the pause comes behind it, long before the deadline.
    control.ok(&["vss", "freeze", "--max", "600s"])?;
    control.ok(&["pause"])?;
    ends(&control, End::Busy, &["vss", "thaw"])?;
    control.ok(&["resume"])?;
    until_thawed(&control)?;

    // What the guest has not answered when the pause begins ends in its own time.
    daemon(&mut vm, "STOP")?;
    let child = start(&control, &["vss", "freeze", "--max", "5s"])?;
    thread::sleep(Duration::from_secs(1));
    control.ok(&["pause"])?;
    let ran = finish(child, AT_ONCE)?;
    let ran = ran.ok_or_else(|| Failure("a freeze of 5 s is still there in a pause".into()))?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("timeout") && ran.stderr.contains("vmmctl resume"),
        "a freeze that is too late: {ran:?}"
    );
    control.ok(&["resume"])?;
    daemon(&mut vm, "CONT")?;
    until_thawed(&control)?;

    // Who is gone before the answer has frozen nothing.
    daemon(&mut vm, "STOP")?;
    let mut child = start(&control, &["vss", "freeze", "--max", "600s"])?;
    thread::sleep(Duration::from_secs(2));
    child.kill()?;
    child.wait()?;
    thread::sleep(Duration::from_secs(1));
    daemon(&mut vm, "CONT")?;
    thread::sleep(Duration::from_secs(2));
    until_thawed(&control)?;
    control.ok(&["vss", "run", "--", "true"])?;
    vm.power_off()
}
