// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writes and reads packets and does nothing else: for those who count its
//! instructions (`cargo xtask bench --instructions`).

use std::process::ExitCode;

use vmbus_benches::{Buffer, Ends, Layout};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let (Some(Ok(size)), Some(Ok(count))) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: ring-packets PAYLOAD_BYTES PACKETS");
        return ExitCode::from(2);
    };
    let mut ends = Ends::new(Layout::Contiguous);
    let (from, mut to) = (Buffer::new(size), Buffer::new(size));
    for _ in 0..count {
        ends.pass(&from, &mut to);
    }
    ExitCode::SUCCESS
}
