// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hyper-V sockets: streams between the guest's AF_VSOCK and Unix sockets.

mod examples;
mod service;

use std::fmt::Display;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use guest_agent::exchange::{echo, exchange};

use super::vmbus::{note, open_files, sh_long};
use crate::ensure;
use crate::suite::{Case, Context, Control, Failure, Outcome, Vm};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "vsock-streams",
        "many connections at once, each way, every byte checked",
        streams,
    )
    .with_cpus(&[1, 4])
    .with_both_synics_in_full()
    .within(240),
    Case::new(
        "vsock-short",
        "connections one after the other leave nothing behind",
        short,
    )
    .with_both_synics_in_full()
    .within(240),
    Case::new(
        "vsock-slow",
        "a reader that sleeps stops its writer, and half-closed streams go on",
        slow,
    ),
    Case::new(
        "vsock-refused",
        "nobody listens: both sides hear it, and silent clients hold up nobody",
        refused,
    ),
    Case::new(
        "ssh-none",
        "vmmctl ssh and cp tell what a guest without sshd lacks",
        no_sshd,
    )
    .once(),
    Case::new(
        "vsock-service",
        "switched off and on at run time, and services called by name",
        service::run,
    ),
    Case::new(
        "vsock-examples",
        "the documentation's echo services, in Rust and with socat, on both sides",
        examples::run,
    )
    .once(),
];

/// Where the guest's connections to the host go.
const HOST_PORT: u32 = 6000;
/// Where the guest listens.
const GUEST_PORT: u32 = 6001;

/// A guest with its socket modules loaded, and the path of the host's socket.
fn boot(context: &Context) -> Outcome<(Vm, PathBuf)> {
    // Not beside the logs: that file system may have no sockets.
    let path = std::env::temp_dir().join(format!("vsock-{}", std::process::id()));
    let text = path.display().to_string();
    let mut vm = context
        .setup()
        .args(&["--ic", "vsock", "--vsock", &text])
        .boot()?;
    vm.sh_ok("modprobe hv_sock")?;
    Ok((vm, path))
}

/// The host's service: sends everything back.
fn serve(path: &Path) -> Outcome {
    serve_as(path, &HOST_PORT.to_string())
}

fn serve_as(path: &Path, service: &str) -> Outcome {
    let path = format!("{}_{service}", path.display());
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(path)?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || {
                echo(&client, &client)?;
                client.shutdown(Shutdown::Write)
            });
        }
    });
    Ok(())
}

/// The guest's service: sends everything back.
fn serve_in_guest(vm: &mut Vm) -> Outcome {
    vm.sh_ok(&format!("/init vsock-echo {GUEST_PORT} >/tmp/echo 2>&1 &"))?;
    vm.sh_ok("n=0; until grep -q listening /tmp/echo; do n=$((n+1)); [ $n -lt 500 ] || exit 1; usleep 10000; done")
        .map(drop)
}

/// Connects to a port of the guest.
pub(super) fn connect(path: &Path, service: impl Display) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    writeln!(stream, "CONNECT {service}")?;
    let mut line = String::new();
    // Byte by byte: what follows the line is the stream's.
    let mut byte = [0];
    while !line.ends_with('\n') && stream.read(&mut byte)? == 1 {
        line.push(char::from(byte[0]));
    }
    if line.starts_with("OK ") {
        Ok(stream)
    } else {
        Err(io::Error::other(format!("the answer is {line:?}")))
    }
}

fn one(path: &Path, seed: u64, len: u64) -> io::Result<()> {
    let reader = connect(path, GUEST_PORT)?;
    let writer = reader.try_clone()?;
    let close = |writer: UnixStream| writer.shutdown(Shutdown::Write);
    exchange(seed, len, reader, writer, close)
}

/// The same from the host's side as the agent does from the guest's.
fn many(path: &Path, connections: u64, len: u64) -> Outcome<f64> {
    let start = Instant::now();
    let threads: Vec<_> = (0..connections)
        .map(|seed| {
            let path = path.to_owned();
            thread::spawn(move || one(&path, seed, len))
        })
        .collect();
    for thread in threads {
        thread
            .join()
            .map_err(|_| Failure("a connection panicked".to_owned()))??;
    }
    Ok(start.elapsed().as_secs_f64())
}

fn streams(context: &Context) -> Outcome {
    let connections = context.times(10, 50);
    let len = context.times(128 << 10, 20 << 20);
    let (mut vm, path) = boot(context)?;
    serve(&path)?;
    let limit = Duration::from_secs(60 + connections * len / 1_000_000);
    let script = format!("/init vsock-exchange {HOST_PORT} {connections} {len}");
    let said = sh_long(&mut vm, &script, limit)?;
    note(&format!("from the guest: {said}"));
    serve_in_guest(&mut vm)?;
    let seconds = many(&path, connections, len)?;
    note(&format!(
        "from the host: connections={connections} bytes={len} seconds={seconds:.3}"
    ));
    at_rest(&mut vm)?;
    vm.power_off()
}

fn short(context: &Context) -> Outcome {
    let connections = context.times(40, 10_000);
    let (mut vm, path) = boot(context)?;
    serve(&path)?;
    serve_in_guest(&mut vm)?;
    let files = open_files(&vm)?;
    let limit = Duration::from_secs(60 + connections / 5);
    let script = format!("/init vsock-short {HOST_PORT} {connections}");
    let said = sh_long(&mut vm, &script, limit)?;
    note(&format!("from the guest: {said}"));
    let start = Instant::now();
    for seed in 0..connections {
        one(&path, seed, 16)?;
    }
    note(&format!(
        "from the host: connections={connections} seconds={:.3}",
        start.elapsed().as_secs_f64()
    ));
    at_rest(&mut vm)?;
    let now = open_files(&vm)?;
    ensure!(
        now <= files,
        "vmm has {now} files open, before it had {files}"
    );
    vm.power_off()
}

/// No channel is left on the guest's bus, and the kernel has not complained.
fn at_rest(vm: &mut Vm) -> Outcome {
    let script = "n=0; until [ -z \"$(ls /sys/bus/vmbus/devices)\" ]; do
        n=$((n+1)); [ $n -lt 1500 ] || break; usleep 10000; done; ls /sys/bus/vmbus/devices";
    let left = vm.sh_ok(script)?;
    ensure!(left.is_empty(), "channels are left: {left}");
    let bad = vm.sh("dmesg | grep -E 'Call Trace|BUG:|WARNING:|blocked for'")?;
    ensure!(
        bad.stdout.is_empty(),
        "the guest complains:\n{}",
        bad.stdout
    );
    Ok(())
}

fn slow(context: &Context) -> Outcome {
    let nap = Duration::from_secs(context.times(3, 30));
    let len: usize = 2 << 20;
    let (mut vm, path) = boot(context)?;
    serve_in_guest(&mut vm)?;
    // The host does not read: the guest's echo blocks in its write, then the
    // host's writes block too.
    let sleeper = connect(&path, GUEST_PORT)?;
    let mut writer = sleeper.try_clone()?;
    let sent = thread::spawn(move || -> io::Result<Duration> {
        let start = Instant::now();
        writer.write_all(&vec![7; len])?;
        writer.shutdown(Shutdown::Write)?;
        Ok(start.elapsed())
    });
    thread::sleep(nap);
    ensure!(!sent.is_finished(), "2 MiB went to a reader that sleeps");
    // Meanwhile others are served.
    one(&path, 1, 10_000)?;
    // All of it comes back, the end of the other direction long since seen.
    let mut back = Vec::new();
    (&sleeper).read_to_end(&mut back)?;
    ensure!(
        back.len() == len && back.iter().all(|byte| *byte == 7),
        "{} of {len} bytes came back",
        back.len()
    );
    let waited = sent
        .join()
        .map_err(|_| Failure("the writer panicked".to_owned()))??;
    ensure!(waited >= nap, "the writer was done after {waited:?}");
    drop(sleeper);
    at_rest(&mut vm)?;
    vm.power_off()
}

fn refused(context: &Context) -> Outcome {
    let (mut vm, path) = boot(context)?;
    let said = vm.sh("/init vsock-short 6009 1")?;
    ensure!(
        said.status != 0,
        "a connect to a port where nobody listens succeeded"
    );
    let start = Instant::now();
    let error = connect(&path, 6009).err();
    let took = start.elapsed();
    ensure!(
        error
            .as_ref()
            .is_some_and(|error| error.to_string().contains("ERR"))
            && took < Duration::from_secs(5),
        "a connect to a port where nobody listens: {error:?} after {took:?}"
    );
    // Silent clients do not hold up others.
    serve_in_guest(&mut vm)?;
    let before = time_of_one(&path)?;
    let silent: Vec<UnixStream> = (0..200)
        .map(|_| UnixStream::connect(&path))
        .collect::<io::Result<_>>()?;
    let with = time_of_one(&path)?;
    note(&format!(
        "a connection takes {before:?}, beside {} silent ones {with:?}",
        silent.len()
    ));
    ensure!(
        with < before + Duration::from_millis(50),
        "with silent clients a connection takes {with:?} instead of {before:?}"
    );
    for nonsense in [
        "GET / HTTP/1.1\r\n\r\n",
        "CONNECT x\n",
        "CONNECT 99999999999\n",
    ] {
        let mut client = UnixStream::connect(&path)?;
        client.write_all(nonsense.as_bytes())?;
        let mut answer = String::new();
        BufReader::new(&client).read_line(&mut answer)?;
        ensure!(answer.starts_with("ERR "), "{nonsense:?}: {answer:?}");
    }
    drop(silent);
    one(&path, 3, 1000)?;
    at_rest(&mut vm)?;
    vm.power_off()
}

/// A guest without an sshd, and one that has not got that far.
fn no_sshd(context: &Context) -> Outcome {
    let control = Control::new(context);
    let socket = control.socket().display().to_string();
    let mut vm = context.setup().args(&["--api-socket", &socket]).boot()?;
    let expect = |args: &[&str], code: i32, words: &str| -> Outcome {
        let start = Instant::now();
        let ran = control.run(args)?;
        ensure!(
            ran.code == code && ran.stderr.contains(words),
            "{args:?}, expecting {code}, {words}: {ran:?}"
        );
        // Of ssh itself and its start, not of the guest's 4 s.
        let took = start.elapsed();
        ensure!(took < Duration::from_secs(30), "{args:?} took {took:?}");
        Ok(())
    };
    expect(&["ssh", "true"], 255, "22: the guest is not connected")?;
    vm.sh_ok("modprobe hv_sock")?;
    expect(
        &["ssh", "true"],
        255,
        "vsock port 22: it takes an openssh-server",
    )?;
    expect(
        &["cp", "guest:/etc/passwd", "/tmp/"],
        1,
        "takes an openssh-server",
    )?;
    vm.power_off()
}

/// The best of some tries.
fn time_of_one(path: &Path) -> Outcome<Duration> {
    let mut best = Duration::MAX;
    for seed in 0..5 {
        let start = Instant::now();
        one(path, seed, 16)?;
        best = best.min(start.elapsed());
    }
    Ok(best)
}
