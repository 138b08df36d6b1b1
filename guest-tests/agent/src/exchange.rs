// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sending much over a stream whose other end sends it back, and checking it:
//! the same at both ends of a Hyper-V socket.

use std::io::{self, Read, Write};
use std::thread;

/// Bytes per write.
const CHUNK: usize = 64 * 1024;

/// Bytes after which a stream repeats: a prime, so that no packet, page or ring
/// that is lost or comes twice goes unseen.
const PERIOD: usize = 65_521;

/// What a stream consists of.
struct Pattern(Vec<u8>);

impl Pattern {
    /// Of the stream number `seed`, as much as a stream of `len` bytes needs.
    fn of(seed: u64, len: u64) -> Self {
        let byte = |at: usize| {
            let mixed = ((at % PERIOD) as u64 ^ (seed << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed.to_be_bytes()[0]
        };
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        Self((0..size.min(PERIOD + CHUNK)).map(byte).collect())
    }

    /// At most so many bytes from `at` on.
    fn part(&self, at: u64, len: u64) -> &[u8] {
        let start = usize::try_from(at % PERIOD as u64).unwrap_or(0);
        let len = usize::try_from(len).map_or(CHUNK, |len| len.min(CHUNK));
        self.0.get(start..start + len).unwrap_or_default()
    }
}

/// Sends `len` bytes, then the end, and reads them all back, then the end.
pub fn exchange<W: Write + Send>(
    seed: u64,
    len: u64,
    mut reader: impl Read,
    mut writer: W,
    close: impl FnOnce(W) -> io::Result<()> + Send,
) -> io::Result<()> {
    let pattern = &Pattern::of(seed, len);
    thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let mut at = 0;
            while at < len {
                let part = pattern.part(at, len - at);
                writer.write_all(part)?;
                at += part.len() as u64;
            }
            close(writer)
        });
        let read = check(pattern, len, &mut reader);
        let sent = sending
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the sender panicked")));
        read.and(sent)
    })
    .map_err(|error| io::Error::new(error.kind(), format!("stream {seed}: {error}")))
}

fn check(pattern: &Pattern, len: u64, reader: &mut impl Read) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let got = reader.read(&mut bytes)?;
        if got == 0 {
            break;
        }
        if bytes.get(..got) != Some(pattern.part(at, got as u64)) {
            return Err(io::Error::other(format!("it differs after byte {at}")));
        }
        at += got as u64;
    }
    if at == len {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "it ended after {at} of {len} bytes"
        )))
    }
}

/// Sends back whatever comes, until the end; how much it was.
pub fn echo(mut reader: impl Read, mut writer: impl Write) -> io::Result<u64> {
    io::copy(&mut reader, &mut writer)
}
