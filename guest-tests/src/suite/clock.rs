// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How far a guest's clock is from this machine's, with bounds that are certain.
//!
//! The guest reads its clock between two readings of ours: before a byte was sent
//! to it, and after one came back. So its offset is between the differences to
//! the two. Several exchanges are made, and the offset is in all their bounds;
//! what the console and an emulated machine add widens the bounds, never moves
//! the offset out of them.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Failure, Outcome, Vm};
use crate::ensure;

/// How long an exchange may take.
const LIMIT: Duration = Duration::from_secs(60);

/// The guest's clock less ours lies between these, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// At least.
    pub low: i128,
    /// At most.
    pub high: i128,
}

impl Offset {
    /// Whether it is certain that the clocks are no further apart than that.
    pub fn within(self, limit: Duration) -> bool {
        let limit = i128::try_from(limit.as_nanos()).unwrap_or(i128::MAX);
        self.low >= -limit && self.high <= limit
    }

    fn and(self, other: Self) -> Self {
        Self {
            low: self.low.max(other.low),
            high: self.high.min(other.high),
        }
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: i128| i64::try_from(ns / 1000).map_or(f64::NAN, micros_to_ms);
        write!(f, "{:.2} to {:.2} ms", ms(self.low), ms(self.high))
    }
}

#[allow(clippy::cast_precision_loss)] // For people.
fn micros_to_ms(micros: i64) -> f64 {
    micros as f64 / 1000.0
}

impl Vm {
    /// The offset of the guest's clock: the system's, or that of a PTP device.
    pub fn clock_offset(&mut self, device: &str) -> Outcome<Offset> {
        self.clock_offset_within(device, LIMIT)
    }

    /// The same, of a guest that may not answer.
    pub fn clock_offset_within(&mut self, device: &str, limit: Duration) -> Outcome<Offset> {
        const ROUNDS: usize = 20;
        let id = self.ask("clock", format!("{ROUNDS} {device}").trim().as_bytes())?;
        let deadline = Instant::now() + limit;
        let line = self.answer(id, deadline)?;
        ensure!(
            line.word == "go",
            "the agent cannot read {device}: {}",
            String::from_utf8_lossy(&line.data)
        );
        let mut ours = Vec::new();
        for _ in 0..ROUNDS {
            let before = now();
            self.type_in(b".")?;
            self.console.bytes(1, deadline)?;
            ours.push((before, now()));
        }
        let mut text = String::new();
        loop {
            let line = self.answer(id, deadline)?;
            match line.word.as_str() {
                "out" => text.push_str(&String::from_utf8_lossy(&line.data)),
                _ => break,
            }
        }
        let theirs: Vec<Result<i128, _>> = text.lines().map(str::parse).collect();
        ensure!(theirs.len() == ROUNDS, "{} readings", theirs.len());
        let mut all = Offset {
            low: i128::MIN,
            high: i128::MAX,
        };
        for (guest, (before, after)) in theirs.into_iter().zip(ours) {
            let guest = guest.map_err(|_| Failure(format!("reading {device}: {text}")))?;
            all = all.and(Offset {
                low: guest - after,
                high: guest - before,
            });
        }
        Ok(all)
    }
}

fn now() -> i128 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| i128::try_from(now.as_nanos()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_in_the_bounds_of_every_exchange() {
        let wide = Offset { low: -5, high: 90 };
        let both = wide.and(Offset { low: -20, high: 7 });
        assert_eq!(both, Offset { low: -5, high: 7 });
        assert!(both.within(Duration::from_nanos(7)));
        assert!(!both.within(Duration::from_nanos(6)));
    }
}
