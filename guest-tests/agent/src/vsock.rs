// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hyper-V sockets from the guest's side: AF_VSOCK.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use guest_agent::exchange::{echo, exchange};
use rustix::net;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::raw::{vsock_bind, vsock_connect};
use crate::stream;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

const USAGE: &str = "usage: /init vsock-echo PORT, or vsock-nap PORT SECONDS, or vsock-cut PORT \
    BYTES, or vsock-exchange PORT CONNECTIONS BYTES, or vsock-short PORT CONNECTIONS, or \
    vsock-break PORT CONNECTIONS BYTES, or vsock-hold PORT CONNECTIONS";

/// `/init vsock-NAME ARG…`.
pub fn run(name: &str, args: &[OsString]) -> ExitCode {
    let number = |place: usize| -> io::Result<u64> {
        let arg = args.get(place).map(|arg| arg.to_string_lossy());
        arg.and_then(|arg| arg.parse().ok())
            .ok_or_else(|| io::Error::other(USAGE))
    };
    let port = || number(0).map(|port| u32::try_from(port).unwrap_or(u32::MAX));
    let result = match name {
        "vsock-echo" => port().and_then(|port| serve(port, |client| sent_back(&client))),
        "vsock-nap" => port().and_then(|port| {
            let nap = Duration::from_secs(number(1)?);
            serve(port, move |client| after_a_nap(&client, nap))
        }),
        "vsock-cut" => port().and_then(|port| {
            let len = number(1)?;
            serve(port, move |client| cut(&client, len))
        }),
        "vsock-break" => port().and_then(|port| break_off(port, number(1)?, number(2)?)),
        "vsock-exchange" => port().and_then(|port| many(port, number(1)?, number(2)?)),
        "vsock-hold" => port().and_then(|port| hold(port, number(1)?)),
        "vsock-short" => port().and_then(|port| short(port, number(1)?)),
        "vsock-bench" => port().and_then(stream::serve),
        "vsock-drive" => stream::drive(args),
        _ => Err(io::Error::other("no such role")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn end(socket: &File) -> io::Result<()> {
    Ok(net::shutdown(socket.as_fd(), net::Shutdown::Write)?)
}

/// Does the same for every client, for ever.
fn serve<F>(port: u32, client: F) -> io::Result<()>
where
    F: Fn(File) -> io::Result<()> + Clone + Send + 'static,
{
    let listener = vsock_bind(port)?;
    net::listen(&listener, BACKLOG)?;
    println!("listening on {port}");
    loop {
        let socket: OwnedFd = net::accept(&listener)?;
        let client = client.clone();
        thread::spawn(move || client(File::from(socket)));
    }
}

fn sent_back(client: &File) -> io::Result<()> {
    echo(client, client)?;
    end(client)
}

/// Reads nothing for a while, then all, and sends it back after the end.
fn after_a_nap(mut client: &File, nap: Duration) -> io::Result<()> {
    thread::sleep(nap);
    let mut all = Vec::new();
    client.read_to_end(&mut all)?;
    client.write_all(&all)?;
    end(client)
}

/// Closes the connection after so many bytes, whatever is still under way.
fn cut(client: &File, len: u64) -> io::Result<()> {
    io::copy(&mut client.take(len), &mut io::sink()).map(drop)
}

/// Connects so often, and keeps what it has until it is killed.
fn hold(port: u32, connections: u64) -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum })?;
    let held = (0..connections).map(|_| vsock_connect(port));
    let held: Vec<OwnedFd> = held.collect::<io::Result<_>>()?;
    println!("held={}", held.len());
    loop {
        thread::park();
    }
}

/// Connects so often, and writes so much each time without reading: then it
/// closes, or the other side has.
fn break_off(port: u32, connections: u64, len: u64) -> io::Result<()> {
    let mut broken = 0;
    for _ in 0..connections {
        let mut socket = File::from(vsock_connect(port)?);
        if io::copy(&mut io::repeat(7).take(len), &mut socket).is_err() {
            broken += 1;
        }
    }
    println!("broken={broken}");
    Ok(())
}

/// Connects so often and exchanges so many bytes each way on each, all at once.
fn many(port: u32, connections: u64, len: u64) -> io::Result<()> {
    let start = Instant::now();
    // One after the other: Linux waits for each for 2 s, which is little for
    // fifty on an emulated processor.
    let sockets: Vec<_> = (0..connections)
        .map(|_| vsock_connect(port).map(File::from))
        .collect::<io::Result<_>>()?;
    let threads: Vec<_> = (0..)
        .zip(sockets)
        .map(|(seed, socket)| thread::spawn(move || exchange_on(socket, seed, len)))
        .collect();
    for thread in threads {
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a connection panicked")))?;
    }
    println!(
        "connections={connections} bytes={len} seconds={:.3}",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn one(port: u32, seed: u64, len: u64) -> io::Result<()> {
    exchange_on(File::from(vsock_connect(port)?), seed, len)
}

fn exchange_on(reader: File, seed: u64, len: u64) -> io::Result<()> {
    let writer = reader.try_clone()?;
    exchange(seed, len, reader, writer, |writer| end(&writer))
}

/// Connects so often, one after the other, with a few bytes on each.
fn short(port: u32, connections: u64) -> io::Result<()> {
    let start = Instant::now();
    for seed in 0..connections {
        one(port, seed, 16)?;
    }
    println!(
        "connections={connections} seconds={:.3}",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}
