// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hyper-V sockets: streams between the guest's AF_VSOCK and Unix sockets.

mod ends;
mod examples;
mod forward;
mod many;
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

use super::vmbus::{check_traces, note, sh_long};
use crate::ensure;
use crate::suite::{Case, Context, Control, Failure, Outcome, Vm};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "vsock-streams",
        "many connections at once, each way, every byte checked; others cut in the middle",
        streams,
    )
    .with_cpus(&[1, 4])
    .with_both_synics_in_full()
    .within(480),
    Case::new(
        "vsock-short",
        "connections one after the other leave nothing behind",
        ends::short,
    )
    .with_cpus(&[1, 4])
    .with_both_synics_in_full()
    .within(480),
    Case::new(
        "vsock-many",
        "connections by the hundred that end at once hold up no answer of the API",
        many::run,
    )
    .once()
    .with_cpus(&[1])
    .with_both_synics_in_full()
    .within(900),
    Case::new(
        "vsock-slow",
        "a reader that sleeps stops its writer, and half-closed streams go on",
        ends::slow,
    ),
    Case::new(
        "vsock-forward",
        "vmmctl forward: fifty TCP connections at once, half-closes, slow readers, the VM's end",
        forward::run,
    )
    .with_cpus(&[2])
    .within(480),
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
pub(super) const HOST_PORT: u32 = 6000;
/// Where the guest listens.
pub(super) const GUEST_PORT: u32 = 6001;

/// A stream on which nothing moves for so long is an error.
const STUCK: Duration = Duration::from_secs(100);

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
pub(super) fn serve(path: &Path) -> Outcome {
    serve_as(path, HOST_PORT, send_back)
}

#[allow(clippy::needless_pass_by_value)] // As a service gets it.
fn send_back(client: UnixStream) -> io::Result<()> {
    echo(&client, &client)?;
    client.shutdown(Shutdown::Write)
}

/// A service of the host's that does the same for each of its clients.
fn serve_as<F>(path: &Path, service: impl Display, client: F) -> Outcome
where
    F: Fn(UnixStream) -> io::Result<()> + Clone + Send + 'static,
{
    let path = format!("{}_{service}", path.display());
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(path)?;
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let client = client.clone();
            thread::spawn(move || client(socket));
        }
    });
    Ok(())
}

/// The guest's service: sends everything back.
pub(super) fn serve_in_guest(vm: &mut Vm) -> Outcome {
    serve_in_guest_as(vm, "vsock-echo", GUEST_PORT, "")
}

/// A service of the guest's, which is a role of the agent's.
fn serve_in_guest_as(vm: &mut Vm, role: &str, port: u32, args: &str) -> Outcome {
    vm.sh_ok(&format!(
        "/init {role} {port} {args} >/tmp/{role} 2>&1 &
        n=0; until grep -q listening /tmp/{role}; do
            n=$((n+1)); [ $n -lt 500 ] || exit 1; usleep 10000; done"
    ))
    .map(drop)
}

/// Connects to a port of the guest.
pub(super) fn connect(path: &Path, service: impl Display) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(STUCK))?;
    stream.set_write_timeout(Some(STUCK))?;
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

pub(super) fn one(path: &Path, seed: u64, len: u64) -> io::Result<()> {
    exchange_on(connect(path, GUEST_PORT)?, seed, len)
}

fn exchange_on(reader: UnixStream, seed: u64, len: u64) -> io::Result<()> {
    let writer = reader.try_clone()?;
    let close = |writer: UnixStream| writer.shutdown(Shutdown::Write);
    exchange(seed, len, reader, writer, close)
}

/// The same from the host's side as the agent does from the guest's.
fn many(path: &Path, connections: u64, len: u64) -> Outcome<f64> {
    let start = Instant::now();
    // One after the other: a guest that is busy with fifty streams on an emulated
    // processor does not take another within the 4 s that it has.
    let sockets: Vec<_> = (0..connections)
        .map(|_| connect(path, GUEST_PORT))
        .collect::<io::Result<_>>()?;
    let threads: Vec<_> = (0..)
        .zip(sockets)
        .map(|(seed, socket)| thread::spawn(move || exchange_on(socket, seed, len)))
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
    ends::cut(&mut vm, &path, context.times(5, 25))?;
    at_rest(&mut vm)?;
    vm.power_off()
}

/// No channel is left on the guest's bus, and the kernel has not complained.
fn at_rest(vm: &mut Vm) -> Outcome {
    let script = "n=0; until [ -z \"$(ls /sys/bus/vmbus/devices)\" ]; do
        n=$((n+1)); [ $n -lt 1500 ] || break; usleep 10000; done; ls /sys/bus/vmbus/devices";
    let left = vm.sh_ok(script)?;
    ensure!(left.is_empty(), "channels are left: {left}");
    check_traces(vm)
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
