// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A pool of data exchange as the guest's daemon keeps it in a file: records of
//! 512 bytes of key and 2048 of value, each text ended by a zero. What is behind
//! the zero is the daemon's memory.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

const KEY: usize = 512;
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
