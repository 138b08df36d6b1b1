// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sending much over a stream whose other end sends it back, and checking it:
//! the same at both ends of a Hyper-V socket.

use std::io::{self, Read, Write};
use std::thread;

/// Bytes per write.
const CHUNK: usize = 64 * 1024;

/// The bytes from `at` on of the stream number `seed`.
fn fill(seed: u64, at: u64, bytes: &mut [u8]) {
    for (byte, at) in bytes.iter_mut().zip(at..) {
        let mixed = (at ^ (seed << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        *byte = mixed.to_be_bytes()[0];
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
    thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let mut bytes = vec![0; CHUNK];
            let mut at = 0;
            while at < len {
                let part = usize::try_from(len - at).map_or(CHUNK, |left| left.min(CHUNK));
                let part = bytes.get_mut(..part).unwrap_or_default();
                fill(seed, at, part);
                writer.write_all(part)?;
                at += part.len() as u64;
            }
            close(writer)
        });
        let read = check(seed, len, &mut reader);
        let sent = sending
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the sender panicked")));
        read.and(sent)
    })
}

fn check(seed: u64, len: u64, reader: &mut impl Read) -> io::Result<()> {
    let (mut bytes, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = 0;
    loop {
        let got = reader.read(&mut bytes)?;
        let (Some(bytes), Some(expected)) = (bytes.get(..got), expected.get_mut(..got)) else {
            return Err(io::Error::other("more bytes than there is room for"));
        };
        if got == 0 {
            break;
        }
        fill(seed, at, expected);
        if bytes != expected {
            return Err(io::Error::other(format!(
                "stream {seed} differs after byte {at}"
            )));
        }
        at += got as u64;
    }
    if at == len {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "stream {seed} ended after {at} of {len} bytes"
        )))
    }
}

/// Sends back whatever comes, until the end; how much it was.
pub fn echo(mut reader: impl Read, mut writer: impl Write) -> io::Result<u64> {
    io::copy(&mut reader, &mut writer)
}
