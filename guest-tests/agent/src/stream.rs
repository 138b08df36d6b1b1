// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Measuring streams between a guest and its host, whatever carries them: the
//! same program at both ends, and the same for Hyper-V and for virtio sockets.
//!
//! ```text
//!  host: vsock-drive WHERE KIND COUNT ── connects ──► guest: vsock-bench PORT
//!        'r' N   the guest reads N bytes, then sends one back
//!        's' N   the guest sends N bytes
//!        'e' N   the guest sends each of N pings back
//!        'p' N   the guest sends N pings, and at last how long they took
//! ```

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Instant;

use rustix::net;

use crate::raw::{vsock_bind, vsock_connect_to};

/// Bytes per write and per read.
const CHUNK: usize = 64 * 1024;
/// Bytes of a ping.
const PING: usize = 64;

/// The guest's end: serves clients for ever.
pub fn serve(port: u32) -> io::Result<()> {
    let listener = vsock_bind(port)?;
    net::listen(&listener, 8)?;
    println!("listening on {port}");
    loop {
        let client = File::from(net::accept(&listener)?);
        thread::spawn(move || answer(&client));
    }
}

fn answer(mut client: &File) -> io::Result<()> {
    let mut order = [0; 9];
    client.read_exact(&mut order)?;
    let [kind, count @ ..] = order;
    let count = u64::from_le_bytes(count);
    match kind {
        b'r' => {
            drain(client, count)?;
            client.write_all(&[1])
        }
        b's' => fill(client, count),
        b'e' => {
            let mut ping = [0; PING];
            for _ in 0..count {
                client.read_exact(&mut ping)?;
                client.write_all(&ping)?;
            }
            Ok(())
        }
        _ => {
            let start = Instant::now();
            for _ in 0..count {
                ping(client)?;
            }
            client.write_all(&nanoseconds(start).to_le_bytes())
        }
    }
}

/// The host's end: one measurement, as a line with nanoseconds.
pub fn drive(args: &[OsString]) -> io::Result<()> {
    let usage = "usage: vsock-drive unix:PATH:PORT|vsock:CID:PORT to-guest|to-host|host-ping|guest-ping COUNT";
    let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    let [place, kind, count] = words.as_slice() else {
        return Err(io::Error::other(usage));
    };
    let count: u64 = count.parse().map_err(|_| io::Error::other(usage))?;
    let mut stream = connect(place).ok_or_else(|| io::Error::other(usage))??;
    let letter = match kind.as_ref() {
        "to-guest" => b'r',
        "to-host" => b's',
        "host-ping" => b'e',
        "guest-ping" => b'p',
        _ => return Err(io::Error::other(usage)),
    };
    let mut order = vec![letter];
    order.extend(count.to_le_bytes());
    stream.write_all(&order)?;
    // One ping's time for pings, else that of all bytes.
    let took = match letter {
        b'r' => {
            let start = Instant::now();
            fill(&stream, count)?;
            stream.read_exact(&mut [0])?;
            nanoseconds(start)
        }
        b's' => {
            let start = Instant::now();
            drain(&stream, count)?;
            nanoseconds(start)
        }
        b'e' => {
            let mut times = Vec::new();
            for _ in 0..count {
                let start = Instant::now();
                ping(&stream)?;
                times.push(nanoseconds(start));
            }
            times.sort_unstable();
            times.get(times.len() / 2).copied().unwrap_or(0)
        }
        _ => {
            let mut ping = [0; PING];
            for _ in 0..count {
                stream.read_exact(&mut ping)?;
                stream.write_all(&ping)?;
            }
            let mut took = [0; 8];
            stream.read_exact(&mut took)?;
            u64::from_le_bytes(took) / count.max(1)
        }
    };
    println!("{took}");
    Ok(())
}

/// `None` if the words name no place.
fn connect(place: &str) -> Option<io::Result<File>> {
    let (kind, rest) = place.split_once(':')?;
    let (to, port) = rest.rsplit_once(':')?;
    let port = port.parse().ok()?;
    match kind {
        "vsock" => Some(vsock_connect_to(to.parse().ok()?, port).map(File::from)),
        "unix" => Some(connect_hybrid(to, port)),
        _ => None,
    }
}

fn connect_hybrid(path: &str, port: u32) -> io::Result<File> {
    let mut stream = UnixStream::connect(path)?;
    writeln!(stream, "CONNECT {port}")?;
    let mut byte = [0];
    let mut line = Vec::new();
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    if line.starts_with(b"OK ") {
        Ok(File::from(OwnedFd::from(stream)))
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&line)))
    }
}

fn ping(mut stream: &File) -> io::Result<()> {
    let mut ping = [7; PING];
    stream.write_all(&ping)?;
    stream.read_exact(&mut ping)
}

fn fill(mut stream: &File, bytes: u64) -> io::Result<()> {
    let chunk = vec![7; CHUNK];
    let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
    while left > 0 {
        let now = left.min(CHUNK);
        stream.write_all(chunk.get(..now).unwrap_or_default())?;
        left -= now;
    }
    Ok(())
}

fn drain(mut stream: &File, bytes: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => left = left.saturating_sub(read as u64),
        }
    }
    Ok(())
}

fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
