// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A pool of data exchange as the guest's daemon keeps it in a file: records of
//! 512 bytes of key and 2048 of value, each text ended by a zero. What is behind
//! the zero is the daemon's memory.
//!
//! `/init kvp-pool FILE` shows one, `/init kvp-fill FILE COUNT` makes one.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

/// Bytes of a key in a record.
pub const KEY: usize = 512;
const VALUE: usize = 2048;

/// `/init kvp-pool FILE`: the texts, one a line.
pub fn run(args: &[OsString]) -> ExitCode {
    let result = match args {
        [file] => std::fs::read(file).and_then(|pool| io::stdout().lock().write_all(&lines(&pool))),
        _ => Err(io::Error::other("usage: /init kvp-pool FILE")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvp-pool: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `/init kvp-fill FILE COUNT`: as many of the [longest items](record).
pub fn fill(args: &[OsString]) -> ExitCode {
    let count = match args {
        [_, count] => count.to_str().and_then(|count| count.parse::<u32>().ok()),
        _ => None,
    };
    let result = match (args.first(), count) {
        (Some(file), Some(count)) => File::create(file).and_then(|file| {
            let mut file = BufWriter::new(file);
            (0..count).try_for_each(|number| file.write_all(&record(number)))?;
            file.flush()
        }),
        _ => Err(io::Error::other("usage: /init kvp-fill FILE COUNT")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvp-fill: {error}");
            ExitCode::FAILURE
        }
    }
}

/// An item as long as one can be, of the characters that take most room when they
/// are written out.
pub fn record(number: u32) -> Vec<u8> {
    let mut record = format!("{number:04}").into_bytes();
    record.resize(KEY - 1, 1);
    record.push(0);
    record.resize(KEY + VALUE - 1, 1);
    record.push(0);
    record
}

fn lines(pool: &[u8]) -> Vec<u8> {
    let mut lines = Vec::new();
    for record in pool.chunks(KEY + VALUE) {
        let (key, value) = record.split_at(KEY.min(record.len()));
        for text in [key, value] {
            lines.extend(text.iter().take_while(|byte| **byte != 0));
            lines.push(b'\n');
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_item_is_as_long_as_it_can_be() {
        let record = record(7);
        assert_eq!(record.len(), KEY + VALUE);
        let expected = [
            b"0007".as_slice(),
            &[1; KEY - 5],
            b"\n",
            &[1; VALUE - 1],
            b"\n",
        ];
        assert_eq!(lines(&record), expected.concat());
    }

    #[test]
    fn texts_end_at_their_zero() {
        let mut pool = vec![0; 2 * (KEY + VALUE)];
        pool[..5].copy_from_slice(b"key\0x");
        pool[KEY..KEY + 2].copy_from_slice(b"v\0");
        pool[KEY + VALUE..KEY + VALUE + KEY].fill(b'k');
        assert_eq!(
            lines(&pool),
            [b"key\nv\n".as_slice(), &[b'k'; KEY], b"\n\n"].concat()
        );
    }
}
