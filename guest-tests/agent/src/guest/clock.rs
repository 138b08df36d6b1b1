// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading a clock when the test says so: with one raw byte, answered by one.
//!
//! ```text
//!  test   t0 ──byte──┐            ┌──► t1         t0 ≤ guest's reading - offset ≤ t1
//!  agent             └► read clock ┘
//! ```
//!
//! A byte is as little as a console can carry, so the test's two readings are as
//! close to the guest's as they can be.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::time::{ClockId, DynamicClockId, clock_gettime, clock_gettime_dynamic};

use super::Console;

impl Console {
    /// `N`: the system's clock, N times. `N /dev/ptp0`: that device's.
    pub(super) fn clock(&mut self, id: u32, request: &[u8]) -> io::Result<()> {
        let request = String::from_utf8_lossy(request).into_owned();
        let (count, path) = request.split_once(' ').unwrap_or((&request, ""));
        let device = match path {
            "" => None,
            path => match File::open(path) {
                Ok(file) => Some(file),
                Err(error) => {
                    self.answer(id, "err", format!("{path}: {error}").as_bytes())?;
                    return self.answer(id, "exit", b"1");
                }
            },
        };
        self.answer(id, "go", b"")?;
        let mut readings = String::new();
        for _ in 0..count.parse().unwrap_or(0) {
            if self.pending.is_empty() {
                self.fill()?;
            }
            let reading = read(device.as_ref());
            self.pending.drain(..1);
            self.tty.write_all(b".")?;
            match reading {
                Ok(nanoseconds) => drop(writeln!(readings, "{nanoseconds}")),
                Err(error) => drop(writeln!(readings, "{error}")),
            }
        }
        for chunk in readings.as_bytes().chunks(guest_agent::line::CHUNK) {
            self.answer(id, "out", chunk)?;
        }
        self.answer(id, "exit", b"0")
    }
}

/// Nanoseconds since 1970.
fn read(device: Option<&File>) -> io::Result<i128> {
    let now = match device {
        None => clock_gettime(ClockId::Realtime),
        Some(device) => clock_gettime_dynamic(DynamicClockId::Dynamic(device.as_fd()))?,
    };
    Ok(i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec))
}
