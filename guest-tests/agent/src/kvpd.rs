// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/init kvp-serve COUNT`: a daemon of data exchange in the place of the
//! distribution's, which reads a pool's whole file for each item. Every pool has
//! COUNT items, made as they are asked for.
//!
//! ```text
//!   register ─► the driver's answer ─► request ─► answer, over and over
//! ```
#![allow(clippy::indexing_slicing)] // The messages have a known, sufficient length.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use crate::pool::{KEY, record};

const DEVICE: &str = "/dev/vmbus/hv_kvp";
/// More than the driver's messages are long; it takes what is longer.
const MESSAGE: usize = 8192;
const REGISTER: u8 = 100;
const ENUMERATE: u8 = 3;
/// No such item.
const NO_MORE: u32 = 0x8007_0103;
/// Where a request has the index, and an answer type, sizes, key and value.
const INDEX: usize = 4;
const TYPE: usize = 8;
const TEXT: usize = 20;

/// Serves until it is killed.
pub fn run(args: &[OsString]) -> ExitCode {
    let count = match args {
        [count] => count.to_str().and_then(|count| count.parse().ok()),
        _ => None,
    };
    let result = count.map_or_else(
        || Err(io::Error::other("usage: /init kvp-serve COUNT")),
        serve,
    );
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvp-serve: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(count: u32) -> io::Result<()> {
    let mut device = File::options().read(true).write(true).open(DEVICE)?;
    let mut message = vec![0; MESSAGE];
    message[0] = REGISTER;
    device.write_all(&message)?;
    let _ = device.read(&mut message)?;
    loop {
        message.fill(0);
        let length = device.read(&mut message)?;
        answer(&mut message, count);
        device.write_all(&message[..length])?;
    }
}

/// Puts the answer over a request.
fn answer(message: &mut [u8], count: u32) {
    let is_enumeration = message[0] == ENUMERATE;
    let mut index = [0; 4];
    index.copy_from_slice(&message[INDEX..TYPE]);
    let index = u32::from_le_bytes(index);
    let status = if is_enumeration && index >= count {
        NO_MORE
    } else {
        0
    };
    message[..4].copy_from_slice(&status.to_le_bytes());
    if is_enumeration && index < count {
        let record = record(index);
        let size = |bytes: usize| u32::try_from(bytes).unwrap_or(0);
        let sizes = [1, size(KEY), size(record.len() - KEY)];
        for (at, size) in (TYPE..TEXT).step_by(4).zip(sizes) {
            message[at..at + 4].copy_from_slice(&size.to_le_bytes());
        }
        message[TEXT..TEXT + record.len()].copy_from_slice(&record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_answered_until_there_is_no_more() {
        let mut message = vec![0; MESSAGE];
        message[..8].copy_from_slice(&[ENUMERATE, 1, 0, 0, 7, 0, 0, 0]);
        answer(&mut message, 8);
        assert_eq!(message[..4], [0; 4]);
        assert_eq!(
            message[8..24],
            [1, 0, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, b'0', b'0', b'0', b'7']
        );
        message[..8].copy_from_slice(&[ENUMERATE, 1, 0, 0, 8, 0, 0, 0]);
        answer(&mut message, 8);
        assert_eq!(message[..4], NO_MORE.to_le_bytes());
    }
}
