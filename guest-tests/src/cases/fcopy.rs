// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! File copy with the distribution's own daemons: `hv_fcopy_daemon` up to 6.9,
//! `hv_fcopy_uio_daemon` in 7.x. Debian's packages for 6.12 have neither.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::api::described;
use super::services::{boot, load};
use super::vmbus::exits::Exits;
use super::vmbus::note;
use crate::ensure;
use crate::suite::{Case, Context, Control, Outcome, Vm};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "fcopy-off",
        "file copy is off by default, and refused with the command that turns it on",
        off,
    ),
    Case::new(
        "fcopy-files",
        "files of all sizes arrive whole, and each refusal is told by its reason",
        files,
    ),
    Case::new(
        "fcopy-cancel",
        "a copy that is cancelled leaves nothing where the daemon can remove it",
        cancel,
    ),
];

const READY: Duration = Duration::from_secs(15);
/// Bytes of a file in one message.
const FRAGMENT: usize = 6144;

fn off(context: &Context) -> Outcome {
    let (mut vm, control) = boot(context, |setup| setup)?;
    load(&mut vm)?;
    let ran = control.run(&["cp", "/bin/sh", "guest:/tmp/"])?;
    ensure!(
        ran.code == 1
            && ran.stderr.contains("disabled")
            && ran.stderr.contains("vmmctl ic enable fcopy"),
        "file copy when it is off: {ran:?}"
    );
    vm.power_off()
}

/// A guest with its daemon: which, if there is one.
fn ready(context: &Context) -> Outcome<(Vm, Control, Option<&'static str>)> {
    let (mut vm, control) = {
        let trace = context.dir.join("trace").display().to_string();
        boot(context, |setup| {
            setup.args(&["--ic", "+fcopy", "--vmbus-trace", &trace])
        })?
    };
    load(&mut vm)?;
    let found = vm.sh("ls /usr/sbin | grep hv_fcopy")?.stdout;
    let daemon = match found.trim() {
        "hv_fcopy_daemon" => Some("hv_fcopy_daemon"),
        "hv_fcopy_uio_daemon" => Some("hv_fcopy_uio_daemon"),
        _ => None,
    };
    Ok((vm, control, daemon))
}

/// Starts the daemon, and gives it what it needs.
fn start(vm: &mut Vm, control: &Control, daemon: &str) -> Outcome {
    if daemon == "hv_fcopy_uio_daemon" {
        vm.sh_ok("modprobe uio_hv_generic; ls /sys/bus/vmbus/devices/eb765408*/uio")?;
        vm.sh_ok(daemon)?;
        let state = || Ok(control.service("fcopy")?["state"].clone());
        let began = Instant::now();
        let mut now: Outcome<serde_json::Value> = state();
        while now
            .as_ref()
            .is_ok_and(|now| now == "offered" || now == "open")
        {
            ensure!(began.elapsed() < READY, "the daemon does not negotiate");
            thread::sleep(Duration::from_millis(200));
            now = state();
        }
        if now? == "error" {
            // Without its locale it cannot read a name, and that is known.
            let ran = control.run(&["cp", "/bin/sh", "guest:/tmp/"])?;
            ensure!(
                ran.code == 1 && ran.stderr.contains("en_US.UTF-8"),
                "without a locale: {ran:?}"
            );
            vm.sh_ok(
                "killall hv_fcopy_uio_daemon; cp -r /usr/lib/locale/C.utf8 \
                 /usr/lib/locale/en_US.utf8; sleep 1; hv_fcopy_uio_daemon",
            )?;
        }
        return control.until_ready(&["fcopy"], READY).map(drop);
    }
    let ran = control.run(&["cp", "/bin/sh", "guest:/tmp/"])?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("no-daemon"),
        "without a daemon: {ran:?}"
    );
    vm.sh_ok(daemon)?;
    control.until_ready(&["fcopy"], READY).map(drop)
}

fn without(mut vm: Vm, control: &Control) -> Outcome {
    let ran = control.run(&["cp", "/bin/sh", "guest:/tmp/"])?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("not-open"),
        "a guest without a daemon: {ran:?}"
    );
    note("the distribution has no daemon for this kernel");
    vm.sh_ok("true")?;
    vm.power_off()
}

fn sum(path: &str) -> Outcome<String> {
    let output = Command::new("sha256sum").arg(path).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

fn files(context: &Context) -> Outcome {
    let (mut vm, control, daemon) = ready(context)?;
    let Some(daemon) = daemon else {
        return without(vm, &control);
    };
    start(&mut vm, &control, daemon)?;
    let dir = context.dir.display().to_string();
    let big = usize::try_from(context.times(2, 100)).unwrap_or(2) << 20;
    let mut cost = String::new();
    for size in [0, 1, 6143, 6144, 6145, big] {
        let path = format!("{dir}/f{size}");
        let data: Vec<u8> = (0..size)
            .map(|n| u8::try_from((n % 253) ^ ((n >> 12) & 0xff)).unwrap_or(0))
            .collect();
        fs::write(&path, data)?;
        cost = copy(&control, &path, size)?;
        let there = vm.sh_ok(&format!("sha256sum /tmp/f{size} | cut -d' ' -f1"))?;
        ensure!(there == sum(&path)?, "{size} bytes arrive otherwise");
    }
    let one = format!("{dir}/f1");
    refusals(&mut vm, &control, &one)?;
    answers(&control)?;
    let count = context.times(50, 1000);
    let small: Vec<String> = (0..count).map(|n| format!("{dir}/small-{n}")).collect();
    for path in &small {
        fs::write(path, path.as_bytes())?;
    }
    let mut args = vec!["cp", "--mkdir"];
    args.extend(small.iter().map(String::as_str));
    args.push("guest:/many/files/");
    let began = Instant::now();
    control.ok(&args)?;
    let took = began.elapsed().as_secs_f64();
    let there = vm.sh_ok("ls /many/files | wc -l")?;
    ensure!(
        there == count.to_string(),
        "{there} of {count} small files are there"
    );
    let last = vm.sh_ok(&format!("cat /many/files/small-{}", count - 1))?;
    ensure!(
        small.last() == Some(&last),
        "the last small file has {last:?}"
    );
    note(&format!(
        "{daemon}: {cost}; {count} small files in {took:.1} s"
    ));
    vm.power_off()
}

/// Copies a file: how fast, and what each fragment cost.
fn copy(control: &Control, path: &str, size: usize) -> Outcome<String> {
    let run = || -> Outcome<Duration> {
        let began = Instant::now();
        control.ok(&["cp", path, "guest:/tmp/"])?;
        Ok(began.elapsed())
    };
    let (took, exits) = if Exits::can_count() {
        let (took, exits) = Exits::during(run)?;
        (took, Some(exits))
    } else {
        (run()?, None)
    };
    #[allow(clippy::cast_precision_loss)] // For people.
    let (rate, fragments) = (
        size as f64 / took.as_secs_f64() / 1e6,
        size.div_ceil(FRAGMENT).max(1) as f64,
    );
    #[allow(clippy::cast_precision_loss)]
    let each = |count: u64| count as f64 / fragments;
    let exits = exits.map(|exits| {
        format!(
            ", {:.2} exits to vmm and {:.2} signals to KVM per fragment",
            each(exits.all),
            each(exits.signals)
        )
    });
    Ok(format!("{rate:.2} MB/s{}", exits.unwrap_or_default()))
}

/// The API's answers are as they are described.
fn answers(control: &Control) -> Outcome {
    let described = described()?;
    for (target, status) in [
        ("/v1/files?path=/tmp/new", 200),
        ("/v1/files?path=/tmp/old", 409),
        ("/v1/files?path=/tmp/old&overwrite=true", 200),
        ("/v1/files?path=/no/dir/new", 404),
        ("/v1/files?path=/ro/new", 502),
        ("/v1/files?path=/full/new", 507),
        ("/v1/files?path=new", 400),
    ] {
        let (found, answer) = control.ask("POST", target, &"x".repeat(8192))?;
        ensure!(
            found == status,
            "POST {target} answers {found} {answer} instead of {status}"
        );
        described.check_answer("POST", target, found, &answer)?;
    }
    Ok(())
}

fn refusals(vm: &mut Vm, control: &Control, file: &str) -> Outcome {
    let refused = |args: &[&str], code: &str, words: &str| -> Outcome {
        let mut all = vec!["cp", file];
        all.extend(args);
        let ran = control.run(&all)?;
        ensure!(
            ran.code == 1 && ran.stderr.contains(code) && ran.stderr.contains(words),
            "cp {args:?}, expecting {code}, {words}: {ran:?}"
        );
        Ok(())
    };
    vm.sh_ok("echo precious > /tmp/old; mkdir -p /full /ro")?;
    refused(&["guest:/tmp/old"], "guest-error", "exists")?;
    ensure!(vm.sh_ok("cat /tmp/old")? == "precious", "it was replaced");
    control.ok(&["cp", file, "guest:/tmp/old", "--overwrite"])?;
    ensure!(vm.sh_ok("wc -c < /tmp/old")? == "1", "it was not replaced");
    refused(&["guest:/no/dir/"], "guest-error", "does not exist")?;
    control.ok(&["cp", file, "guest:/a/new/dir/", "--mkdir"])?;
    vm.sh_ok("ls /a/new/dir/f1")?;
    vm.sh_ok("mount -t tmpfs -o size=64k none /full; mount -t tmpfs -o ro none /ro")?;
    refused(&["guest:/ro/"], "guest-error", "read-only")?;
    vm.sh_ok("head -c 65536 /dev/zero > /full/most")?;
    let big = file.replace("f1", "f6145");
    let ran = control.run(&["cp", &big, "guest:/full/"])?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("disk is full"),
        "on a full disk: {ran:?}"
    );
    let ran = control.run(&["cp", file, "guest:/tmp/.."])?;
    ensure!(
        ran.code == 2 && ran.stderr.contains("without a file's name"),
        "to a path without a name: {ran:?}"
    );
    Ok(())
}

fn cancel(context: &Context) -> Outcome {
    let (mut vm, control, daemon) = ready(context)?;
    let Some(daemon) = daemon else {
        return without(vm, &control);
    };
    start(&mut vm, &control, daemon)?;
    let path = context.dir.join("big").display().to_string();
    fs::write(&path, vec![7; 30 << 20])?;
    for signal in [Signal::INT, Signal::KILL] {
        let mut child = control
            .command(&["cp", &path, "guest:/tmp/big", "--overwrite"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let began = Instant::now();
        while vm.sh("test -s /tmp/big")?.status != 0 {
            ensure!(began.elapsed() < READY, "the copy does not begin");
        }
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, signal)?;
        }
        child.wait()?;
        let began = Instant::now();
        // The next one works, as soon as the guest was told.
        while control
            .run(&["cp", "/etc/hostname", "guest:/tmp/next", "--overwrite"])?
            .code
            != 0
        {
            ensure!(began.elapsed() < READY, "nothing can be copied any more");
        }
        let left = vm.sh("wc -c < /tmp/big")?;
        let removed = left.status != 0;
        ensure!(
            removed == (daemon == "hv_fcopy_daemon"),
            "after a {signal:?} the file has {} bytes",
            left.stdout.trim()
        );
        vm.sh_ok("rm -f /tmp/big")?;
    }
    vm.power_off()
}
