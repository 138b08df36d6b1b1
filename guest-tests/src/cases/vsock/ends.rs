// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How connections end: one after the other, cut in the middle, and slowly.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{
    GUEST_PORT, HOST_PORT, at_rest, boot, connect, one, serve, serve_as, serve_in_guest,
    serve_in_guest_as,
};
use crate::cases::measured::Measured;
use crate::cases::vmbus::{note, open_files, sh_long};
use crate::ensure;
use crate::suite::{Context, Failure, Outcome, Vm};

/// Where a service of the host's closes its connections early.
const CUT_PORT: u32 = 6003;
/// Where a service of the guest's does.
const CUT_GUEST_PORT: u32 = 6004;
/// Where a service of the host's sleeps before it reads.
const NAP_PORT: u32 = 6005;
/// Where a service of the guest's does.
const NAP_GUEST_PORT: u32 = 6006;
/// More than sockets and rings hold between two programs.
const MUCH: usize = 2 << 20;
/// What a closing side has read, or written, by then.
const PART: u64 = 100_000;

/// What the guest has left, in KiB.
fn available(vm: &mut Vm) -> Outcome<u64> {
    let said = vm.sh_ok("sed -n 's/^MemAvailable: *\\([0-9]*\\).*/\\1/p' /proc/meminfo")?;
    said.parse()
        .map_err(|_| Failure(format!("MemAvailable is {said:?}")))
}

pub(super) fn short(context: &Context) -> Outcome {
    let connections = context.times(40, 10_000);
    let (mut vm, path) = boot(context)?;
    serve(&path)?;
    serve_in_guest(&mut vm)?;
    // What the first ones allocate stays.
    vm.sh_ok(&format!("/init vsock-short {HOST_PORT} 5"))?;
    one(&path, 0, 16)?;
    at_rest(&mut vm)?;
    let before = (Measured::of(&mut vm)?, available(&mut vm)?);
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
    // After 120 s the guest's kernel complains of who waits in vain.
    thread::sleep(Duration::from_secs(context.times(0, 130)));
    at_rest(&mut vm)?;
    let after = (Measured::of(&mut vm)?, available(&mut vm)?);
    note(&format!(
        "{}, and the guest {} KiB left instead of {}",
        after.0, after.1, before.1
    ));
    after.0.check(&before.0)?;
    ensure!(
        after.1 + (32 << 10) > before.1,
        "the guest had {} KiB left, and has {}",
        before.1,
        after.1
    );
    vm.power_off()
}

/// Connections that one side closes while the other writes, or has written what
/// was not read: so many for each side that connects and each that closes.
pub(super) fn cut(vm: &mut Vm, path: &Path, connections: u64) -> Outcome {
    let files = open_files(vm)?;
    // The guest connects and closes; what came back is not read.
    let limit = Duration::from_secs(60 + 10 * connections);
    let script = format!("/init vsock-break {HOST_PORT} {connections} {PART}");
    let said = sh_long(vm, &script, limit)?;
    ensure!(said == "broken=0", "{script}: {said}");
    // The guest connects, the host closes.
    serve_as(path, CUT_PORT, |client| {
        io::copy(&mut client.take(PART), &mut io::sink()).map(drop)
    })?;
    let script = format!("/init vsock-break {CUT_PORT} {connections} {MUCH}");
    let said = sh_long(vm, &script, limit)?;
    ensure!(said == format!("broken={connections}"), "{script}: {said}");
    // The host connects and closes.
    let part = usize::try_from(PART).unwrap_or(MUCH);
    for _ in 0..connections {
        connect(path, GUEST_PORT)?.write_all(&vec![7; part])?;
    }
    // The host connects, the guest closes: Linux then waits for 8 s whether the
    // other side closes too, so all at once.
    serve_in_guest_as(vm, "vsock-cut", CUT_GUEST_PORT, &PART.to_string())?;
    let writers: Vec<_> = (0..connections)
        .map(|_| Ok(send(&connect(path, CUT_GUEST_PORT)?)?))
        .collect::<Outcome<_>>()?;
    for writer in writers {
        let wrote = writer.join();
        ensure!(
            matches!(&wrote, Ok(Err(error)) if error.kind() != io::ErrorKind::WouldBlock),
            "{MUCH} bytes to a guest that closed after {PART}: {wrote:?}"
        );
    }
    one(path, 1, 10_000)?;
    at_rest(vm)?;
    let now = open_files(vm)?;
    ensure!(
        now <= files,
        "vmm has {now} files open, before it had {files}"
    );
    note(&format!("{} cut in the middle", 4 * connections));
    Ok(())
}

pub(super) fn slow(context: &Context) -> Outcome {
    let nap = Duration::from_secs(context.times(3, 30));
    let (mut vm, path) = boot(context)?;
    serve_in_guest(&mut vm)?;
    neither_reads(&path, nap)?;
    // The guest writes to a host that sleeps, and its stream comes back after
    // its own end.
    serve_as(&path, NAP_PORT, move |mut client| {
        thread::sleep(nap);
        let mut all = Vec::new();
        client.read_to_end(&mut all)?;
        client.write_all(&all)?;
        client.shutdown(Shutdown::Write)
    })?;
    let start = Instant::now();
    let script = format!("/init vsock-exchange {NAP_PORT} 1 {MUCH}");
    sh_long(&mut vm, &script, nap + Duration::from_secs(60))?;
    let took = start.elapsed();
    ensure!(took >= nap, "a host that sleeps had read all in {took:?}");
    // The other way about.
    let args = nap.as_secs().to_string();
    serve_in_guest_as(&mut vm, "vsock-nap", NAP_GUEST_PORT, &args)?;
    let mut sleeper = connect(&path, NAP_GUEST_PORT)?;
    let sent = send(&sleeper)?;
    all_back(&mut sleeper)?;
    blocked(sent, nap)?;
    drop(sleeper);
    at_rest(&mut vm)?;
    vm.power_off()
}

/// The host does not read what comes back: the guest's echo blocks in its
/// write, then the host's writes block too. Others are served.
fn neither_reads(path: &Path, nap: Duration) -> Outcome {
    let mut sleeper = connect(path, GUEST_PORT)?;
    let sent = send(&sleeper)?;
    thread::sleep(nap);
    ensure!(
        !sent.is_finished(),
        "{MUCH} bytes went to who does not read"
    );
    one(path, 1, 10_000)?;
    // All of it comes back, the end of the other direction long since seen.
    all_back(&mut sleeper)?;
    blocked(sent, nap)
}

/// Sends much, then the end; how long that took.
fn send(stream: &UnixStream) -> io::Result<JoinHandle<io::Result<Duration>>> {
    let mut writer = stream.try_clone()?;
    Ok(thread::spawn(move || {
        let start = Instant::now();
        writer.write_all(&vec![7; MUCH])?;
        writer.shutdown(Shutdown::Write)?;
        Ok(start.elapsed())
    }))
}

/// What was sent comes back whole.
fn all_back(stream: &mut UnixStream) -> Outcome {
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    ensure!(
        back.len() == MUCH && back.iter().all(|byte| *byte == 7),
        "{} of {MUCH} bytes came back",
        back.len()
    );
    Ok(())
}

/// The writer was held up as long as the reader slept.
fn blocked(sent: JoinHandle<io::Result<Duration>>, nap: Duration) -> Outcome {
    let took = sent
        .join()
        .map_err(|_| Failure("the writer panicked".to_owned()))??;
    ensure!(took >= nap, "the writer was done after {took:?}");
    Ok(())
}
