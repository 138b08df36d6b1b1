// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What this machine can do at most: a plain copy, and a Unix socket alone.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use super::tell;
use crate::suite::Outcome;

const CHUNK: usize = 64 << 10;
const CHUNKS: usize = 256;
/// All of them.
const MEGABYTES: f64 = 16.777_216;

/// MB/s of a library's copy.
pub(super) fn copy() -> Value {
    let (from, mut to) = (vec![7_u8; CHUNK], vec![0_u8; CHUNK]);
    let start = Instant::now();
    for _ in 0..CHUNKS {
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&mut to);
    }
    said("a plain copy", start)
}

/// MB/s through a Unix socket between two threads.
pub(super) fn socket() -> Outcome<Value> {
    let (mut reader, mut writer) = UnixStream::pair()?;
    let start = Instant::now();
    let writing = thread::spawn(move || {
        let chunk = vec![7; CHUNK];
        (0..CHUNKS).try_for_each(|_| writer.write_all(&chunk))
    });
    let mut chunk = vec![0; CHUNK];
    while reader.read(&mut chunk)? != 0 {}
    drop(writing.join());
    Ok(said("a Unix socket", start))
}

fn said(what: &str, start: Instant) -> Value {
    let rate = MEGABYTES / start.elapsed().as_secs_f64();
    tell(&format!("{what}: {rate:.0} MB/s"));
    json!(rate)
}
