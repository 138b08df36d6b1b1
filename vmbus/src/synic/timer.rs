// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Synthetic timers in software (TLFS, "Timers"), for hosts whose hypervisor has
//! none.
//!
//! A virtual processor has four of them, each with two MSRs. Time is the
//! partition's reference time, in units of 100 ns:
//!
//! ```text
//!            CONFIG, COUNT ──► armed, until ──► vector, to be sent as an MSI
//!  one-shot  COUNT is when                      then disabled
//!  periodic  COUNT is how often                 then armed again
//! ```
//!
//! Only "direct" timers are served: those that interrupt with a vector of their own.
//! The other kind sends a message to a SINT; no Linux asks for it where there are
//! direct ones.

use super::MsrFault;

/// The MSRs of the first timer; the other three's follow.
pub mod timer_msr {
    /// How the first timer behaves.
    pub const CONFIG0: u32 = 0x4000_00b0;
    /// When it expires, or how often.
    pub const COUNT0: u32 = 0x4000_00b1;
    /// The last MSR of the last timer.
    pub const LAST: u32 = 0x4000_00b7;
}

/// Timers of a virtual processor.
const TIMERS: usize = 4;
/// The shortest period, 100 µs: a guest that asks for less does not get it. Each
/// expiry takes a host's thread some microseconds, and a guest's clock ticks every
/// millisecond at most.
const MIN_PERIOD: u64 = 1000;

/// A CONFIG register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Config(u64);

impl Config {
    const ENABLE: u64 = 1;
    const PERIODIC: u64 = 1 << 1;
    const AUTO_ENABLE: u64 = 1 << 3;
    const DIRECT: u64 = 1 << 12;
    /// Vectors below are exceptions, which no interrupt can have.
    const FIRST_VECTOR: u8 = 16;

    fn is(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    fn vector(self) -> u8 {
        let [vector, ..] = (self.0 >> 4).to_le_bytes();
        vector
    }

    fn enabled(self, enabled: bool) -> Self {
        if enabled {
            Self(self.0 | Self::ENABLE)
        } else {
            Self(self.0 & !Self::ENABLE)
        }
    }

    /// What is not enabled, and does not enable itself, may be anything.
    fn is_valid(self) -> bool {
        !self.is(Self::ENABLE | Self::AUTO_ENABLE)
            || self.is(Self::DIRECT) && self.vector() >= Self::FIRST_VECTOR
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Timer {
    config: Config,
    count: u64,
    /// When it expires, while it is armed.
    expiry: Option<u64>,
}

impl Timer {
    fn set_config(&mut self, config: Config, now: u64) {
        self.config = config;
        self.arm(now);
    }

    fn set_count(&mut self, count: u64, now: u64) {
        self.count = count;
        if count == 0 {
            self.config = self.config.enabled(false);
        } else if self.config.is(Config::AUTO_ENABLE) {
            self.config = self.config.enabled(true);
        }
        self.arm(now);
    }

    fn arm(&mut self, now: u64) {
        let armed = self.config.is(Config::ENABLE) && self.count != 0;
        self.expiry = armed.then(|| {
            if self.config.is(Config::PERIODIC) {
                now.saturating_add(self.period())
            } else {
                self.count
            }
        });
    }

    fn period(&self) -> u64 {
        self.count.max(MIN_PERIOD)
    }

    /// The vector, if it has expired. Periods that nobody saw are not made up for.
    fn expire(&mut self, now: u64) -> Option<u8> {
        let expiry = self.expiry.filter(|at| *at <= now)?;
        if self.config.is(Config::PERIODIC) {
            let period = self.period();
            let over = now.saturating_sub(expiry).checked_rem(period).unwrap_or(0);
            self.expiry = Some(now.saturating_add(period - over));
        } else {
            self.config = self.config.enabled(false);
            self.expiry = None;
        }
        Some(self.config.vector())
    }
}

/// The synthetic timers of one virtual processor.
///
/// Tell it what the guest writes and when, wait until [`next_expiry`](Self::next_expiry),
/// and send the interrupts that [`poll_expired`](Self::poll_expired) then gives.
///
/// # Example
/// ```
/// use vmbus::synic::{SyntheticTimers, timer_msr};
///
/// let mut timers = SyntheticTimers::default();
/// // What Linux writes: direct, vector 0xed, armed by each write of COUNT.
/// timers.write_msr(timer_msr::CONFIG0, 0x1ed9, 0)?;
/// timers.write_msr(timer_msr::COUNT0, 5_000, 1_000)?;
/// assert_eq!(timers.next_expiry(), Some(5_000));
/// assert_eq!(timers.poll_expired(4_999), None);
/// assert_eq!(timers.poll_expired(5_000), Some(0xed));
/// assert_eq!(timers.next_expiry(), None);
/// # Ok::<(), vmbus::synic::MsrFault>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct SyntheticTimers {
    timers: [Timer; TIMERS],
}

impl SyntheticTimers {
    /// Whether accesses to MSR `index` belong here.
    pub const fn owns_msr(index: u32) -> bool {
        matches!(index, timer_msr::CONFIG0..=timer_msr::LAST)
    }

    /// What the guest reads from an MSR; `None` if it is not one of these.
    pub fn read_msr(&self, index: u32) -> Option<u64> {
        let (at, is_count) = place(index)?;
        let timer = self.timers.get(at)?;
        Some(if is_count {
            timer.count
        } else {
            timer.config.0
        })
    }

    /// The guest writes an MSR at the reference time `now`. On error it gets #GP.
    pub fn write_msr(&mut self, index: u32, value: u64, now: u64) -> Result<(), MsrFault> {
        let (at, is_count) = place(index).ok_or(MsrFault::NotOurs(index))?;
        let timer = self.timers.get_mut(at).ok_or(MsrFault::NotOurs(index))?;
        if is_count {
            timer.set_count(value, now);
            return Ok(());
        }
        let config = Config(value);
        if !config.is_valid() {
            return Err(MsrFault::BadWrite(index));
        }
        timer.set_config(config, now);
        Ok(())
    }

    /// The reference time at which the next one expires.
    pub fn next_expiry(&self) -> Option<u64> {
        self.timers.iter().filter_map(|timer| timer.expiry).min()
    }

    /// The vector of one that has expired at `now`, each once.
    pub fn poll_expired(&mut self, now: u64) -> Option<u8> {
        self.timers.iter_mut().find_map(|timer| timer.expire(now))
    }
}

/// Which timer an MSR is of, and whether it is the COUNT.
fn place(index: u32) -> Option<(usize, bool)> {
    let offset = index.checked_sub(timer_msr::CONFIG0)?;
    Some((usize::try_from(offset / 2).ok()?, offset % 2 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As Linux has it: enabled, auto-enable, direct, vector 0xed.
    const LINUX: u64 = 0x1ed9;
    const PERIODIC: u64 = 0x1ed3;

    fn with(config: u64) -> SyntheticTimers {
        let mut timers = SyntheticTimers::default();
        timers.write_msr(timer_msr::CONFIG0, config, 0).unwrap();
        timers
    }

    #[test]
    fn a_count_arms_once_and_the_next_count_again() {
        let mut timers = with(LINUX);
        assert_eq!(timers.next_expiry(), None, "there is no count yet");
        for at in [100, 5_000, 10_000_000] {
            timers.write_msr(timer_msr::COUNT0, at, at - 50).unwrap();
            assert_eq!(timers.next_expiry(), Some(at));
            assert_eq!(timers.poll_expired(at - 1), None);
            assert_eq!(timers.poll_expired(at + 3), Some(0xed));
            assert_eq!(timers.poll_expired(u64::MAX), None);
            assert_eq!(timers.read_msr(timer_msr::CONFIG0), Some(LINUX & !1));
        }
    }

    #[test]
    fn a_count_in_the_past_expires_at_once() {
        let mut timers = with(LINUX);
        timers.write_msr(timer_msr::COUNT0, 1, 1_000).unwrap();
        assert_eq!(timers.poll_expired(1_000), Some(0xed));
    }

    #[test]
    fn a_count_of_zero_disarms() {
        let mut timers = with(LINUX);
        timers.write_msr(timer_msr::COUNT0, 100, 0).unwrap();
        timers.write_msr(timer_msr::COUNT0, 0, 0).unwrap();
        assert_eq!(timers.next_expiry(), None);
        assert_eq!(timers.read_msr(timer_msr::CONFIG0), Some(LINUX & !1));
        assert_eq!(timers.poll_expired(u64::MAX), None);
    }

    #[test]
    fn a_config_without_enable_disarms() {
        let mut timers = with(LINUX);
        timers.write_msr(timer_msr::COUNT0, 100, 0).unwrap();
        timers.write_msr(timer_msr::CONFIG0, 0, 0).unwrap();
        assert_eq!(timers.next_expiry(), None);
    }

    #[test]
    fn a_periodic_timer_goes_on_and_skips_what_nobody_saw() {
        let mut timers = with(PERIODIC);
        timers.write_msr(timer_msr::COUNT0, 10_000, 500).unwrap();
        assert_eq!(timers.next_expiry(), Some(10_500));
        assert_eq!(timers.poll_expired(10_600), Some(0xed));
        assert_eq!(timers.next_expiry(), Some(20_500));
        assert_eq!(timers.poll_expired(55_000), Some(0xed));
        assert_eq!(timers.poll_expired(55_000), None);
        assert_eq!(timers.next_expiry(), Some(60_500));
    }

    #[test]
    fn a_period_that_is_too_short_is_longer() {
        let mut timers = with(PERIODIC);
        timers.write_msr(timer_msr::COUNT0, 1, 0).unwrap();
        assert_eq!(timers.next_expiry(), Some(MIN_PERIOD));
        assert_eq!(timers.read_msr(timer_msr::COUNT0), Some(1));
    }

    #[test]
    fn messages_and_exception_vectors_are_refused() {
        let mut timers = SyntheticTimers::default();
        // By message to SINT 2; the vector of an exception; the same, enabled later.
        for config in [0x2_0001, 0x10f1, 0x2_0008] {
            let written = timers.write_msr(timer_msr::CONFIG0, config, 0);
            assert_eq!(written, Err(MsrFault::BadWrite(timer_msr::CONFIG0)));
            assert_eq!(timers.read_msr(timer_msr::CONFIG0), Some(0));
        }
        assert_eq!(
            timers.write_msr(0x4000_00b8, 1, 0),
            Err(MsrFault::NotOurs(0x4000_00b8))
        );
        assert_eq!(timers.read_msr(0x4000_00af), None);
    }

    #[test]
    fn four_timers_are_apart() {
        let mut timers = SyntheticTimers::default();
        for (n, index) in (0u64..4).zip((timer_msr::CONFIG0..).step_by(2)) {
            timers.write_msr(index, LINUX + (n << 4), 0).unwrap();
            timers.write_msr(index + 1, 100 * (4 - n), 0).unwrap();
        }
        assert_eq!(timers.next_expiry(), Some(100));
        let expired: Vec<_> = std::iter::from_fn(|| timers.poll_expired(200)).collect();
        assert_eq!(expired, [0xef, 0xf0]);
        assert_eq!(timers.next_expiry(), Some(300));
    }

    proptest! {
        #[test]
        fn nothing_expires_early_or_without_end(
            writes in prop::collection::vec((0u32..8, any::<u64>(), any::<u64>()), 0..32),
            now: u64,
        ) {
            let mut timers = SyntheticTimers::default();
            for (offset, value, at) in writes {
                let _ = timers.write_msr(timer_msr::CONFIG0 + offset, value, at);
            }
            let due = timers.next_expiry().is_some_and(|at| at <= now);
            let mut expired = 0;
            while timers.poll_expired(now).is_some() {
                expired += 1;
                prop_assert!(expired <= TIMERS);
                if now == u64::MAX { break; }
            }
            prop_assert_eq!(due, expired > 0);
            if now != u64::MAX {
                prop_assert!(timers.next_expiry().is_none_or(|at| at > now));
            }
        }
    }
}
