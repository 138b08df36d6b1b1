// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The synthetic timers of the mode `User`: one alarm of this host's for each VP.
//!
//! ```text
//!  WRMSR ─► vCPU ─► SyntheticTimers ─► timerfd of the VP
//!                         ▲                │ edge
//!                         └─ timers' thread ◄┘ ─► KVM_SIGNAL_MSI
//! ```
//!
//! In the mode `Kernel` the timers are KVM's. While the machine is paused its time
//! stands still, and so do they.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use vmbus::synic::SyntheticTimers;
use vmm_sys_util::timerfd::TimerFd;

use crate::KvmError;

const NS_PER_UNIT: u64 = 100;
/// The longest alarm. A guest may ask for any time; when this one rings there is
/// only another.
const LONGEST: Duration = Duration::from_secs(3600);
/// An alarm of no time would be none.
const SHORTEST: Duration = Duration::from_nanos(1);

/// The timers of all VPs.
pub(crate) struct Timers {
    vps: Vec<Alarm>,
    held: AtomicBool,
}

struct Alarm {
    fd: RawFd,
    state: Mutex<(SyntheticTimers, TimerFd)>,
}

impl Timers {
    pub(crate) fn new(cpus: u32) -> Result<Self, KvmError> {
        let alarm = |_| {
            let timer =
                TimerFd::new().map_err(|error| KvmError::Timer(std::io::Error::from(error)))?;
            Ok(Alarm {
                fd: timer.as_raw_fd(),
                state: Mutex::new((SyntheticTimers::default(), timer)),
            })
        };
        Ok(Self {
            vps: (0..cpus).map(alarm).collect::<Result<_, KvmError>>()?,
            held: AtomicBool::new(false),
        })
    }

    /// Whether an MSR is a timer's.
    pub(crate) fn owns_msr(index: u32) -> bool {
        SyntheticTimers::owns_msr(index)
    }

    /// The alarms, of VP 0 and on. They ring by their edges and need not be read.
    pub(crate) fn alarms(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.vps.iter().map(|alarm| alarm.fd)
    }

    pub(crate) fn read_msr(&self, vp: u32, index: u32) -> Option<u64> {
        self.vp(vp)?.state.lock().0.read_msr(index)
    }

    /// The guest writes an MSR at the reference time `now`; `interrupt` is called with
    /// the vectors of what has expired. False is a fault.
    pub(crate) fn write_msr(
        &self,
        vp: u32,
        index: u32,
        value: u64,
        now: u64,
        interrupt: impl FnMut(u8),
    ) -> bool {
        let Some(alarm) = self.vp(vp) else {
            return false;
        };
        let mut state = alarm.state.lock();
        let (timers, alarm) = &mut *state;
        let written = timers.write_msr(index, value, now).is_ok();
        self.serve(timers, alarm, now, interrupt);
        written
    }

    /// A VP's alarm rings, or what it was set by has changed.
    pub(crate) fn ring(&self, vp: u32, now: u64, interrupt: impl FnMut(u8)) {
        if let Some(alarm) = self.vp(vp) {
            let mut state = alarm.state.lock();
            let (timers, alarm) = &mut *state;
            self.serve(timers, alarm, now, interrupt);
        }
    }

    /// The machine's time stands still, or goes on: then all are to [`ring`](Self::ring).
    pub(crate) fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Release);
    }

    fn vp(&self, vp: u32) -> Option<&Alarm> {
        usize::try_from(vp).ok().and_then(|vp| self.vps.get(vp))
    }

    fn serve(
        &self,
        timers: &mut SyntheticTimers,
        alarm: &mut TimerFd,
        now: u64,
        mut interrupt: impl FnMut(u8),
    ) {
        if self.held.load(Ordering::Acquire) {
            return;
        }
        while let Some(vector) = timers.poll_expired(now) {
            interrupt(vector);
        }
        let set = match timers.next_expiry() {
            Some(at) => alarm.reset(delay(now, at), None),
            None => alarm.clear(),
        };
        if let Err(error) = set {
            log::warn!("a synthetic timer cannot be set: {error}");
        }
    }
}

/// From one reference time to another.
fn delay(now: u64, at: u64) -> Duration {
    let units = at.saturating_sub(now);
    Duration::from_nanos(units.saturating_mul(NS_PER_UNIT)).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbus::synic::timer_msr::{CONFIG0, COUNT0};

    /// Enabled by each count, direct, vector 0xed.
    const CONFIG: u64 = 0x1ed8;

    fn write(timers: &Timers, index: u32, value: u64, now: u64) -> Vec<u8> {
        let mut vectors = Vec::new();
        assert!(timers.write_msr(1, index, value, now, |vector| vectors.push(vector)));
        vectors
    }

    fn ring(timers: &Timers, now: u64) -> Vec<u8> {
        let mut vectors = Vec::new();
        timers.ring(1, now, |vector| vectors.push(vector));
        vectors
    }

    #[test]
    fn an_alarm_is_set_for_when_a_timer_expires() {
        let timers = Timers::new(2).unwrap();
        assert!(write(&timers, CONFIG0, CONFIG, 0).is_empty());
        // In a millisecond.
        assert!(write(&timers, COUNT0, 10_000, 0).is_empty());
        assert_eq!(timers.vp(1).unwrap().state.lock().1.wait().unwrap(), 1);
        // The alarm's clock may be ahead of the guest's: then it rings once more.
        assert!(ring(&timers, 9_999).is_empty());
        assert_eq!(timers.vp(1).unwrap().state.lock().1.wait().unwrap(), 1);
        assert_eq!(ring(&timers, 10_000), [0xed]);
        assert!(!timers.vp(1).unwrap().state.lock().1.is_armed().unwrap());
    }

    #[test]
    fn a_count_in_the_past_needs_no_alarm() {
        let timers = Timers::new(2).unwrap();
        write(&timers, CONFIG0, CONFIG, 0);
        assert_eq!(write(&timers, COUNT0, 5, 10), [0xed]);
    }

    #[test]
    fn nothing_expires_while_time_stands_still() {
        let timers = Timers::new(2).unwrap();
        write(&timers, CONFIG0, CONFIG, 0);
        write(&timers, COUNT0, 10, 0);
        timers.hold(true);
        assert!(ring(&timers, 1_000_000).is_empty());
        timers.hold(false);
        // The guest's time is what it was.
        assert!(ring(&timers, 9).is_empty());
        assert_eq!(ring(&timers, 10), [0xed]);
    }

    #[test]
    fn a_time_that_never_comes_is_no_overflow() {
        assert_eq!(delay(0, u64::MAX), LONGEST);
        assert_eq!(delay(5, 5), SHORTEST);
        assert_eq!(delay(0, 10), Duration::from_micros(1));
    }

    #[test]
    fn a_vp_that_there_is_not_has_no_timers() {
        let timers = Timers::new(2).unwrap();
        assert!(!timers.write_msr(2, COUNT0, 1, 0, |_| ()));
        assert_eq!(timers.read_msr(2, COUNT0), None);
        assert_eq!(timers.read_msr(1, COUNT0), Some(0));
    }
}
