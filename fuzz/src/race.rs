// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The steps of [`crate::ring`] on rings that another thread overwrites all the
//! while, as a guest's vCPU can: what was checked may be different at the next look.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::ring;

/// One thread for all inputs: to start one takes longer than most of them.
struct Scribbler {
    memory: Arc<GuestMemoryMmap>,
    /// What to scribble; 0 is to stop.
    wanted: AtomicU64,
    /// What the thread does.
    doing: AtomicU64,
}

static SCRIBBLER: LazyLock<Arc<Scribbler>> = LazyLock::new(|| {
    let scribbler = Arc::new(Scribbler {
        memory: ring::memory(),
        wanted: AtomicU64::new(0),
        doing: AtomicU64::new(0),
    });
    let thread = Arc::clone(&scribbler);
    thread::spawn(move || thread.run());
    scribbler
});

/// Runs the steps in `data`; memory around the rings must stay as it was.
pub fn run(data: &[u8]) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let sum = data
        .iter()
        .fold(1u64, |sum, byte| sum.rotate_left(5) ^ u64::from(*byte));
    SCRIBBLER.turn_to(sum | 1);
    // Also when a step panics.
    let _end = End(&SCRIBBLER);
    ring::run_in(&SCRIBBLER.memory, data);
}

struct End<'a>(&'a Scribbler);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.turn_to(0);
    }
}

impl Scribbler {
    /// Returns when the thread does it.
    fn turn_to(&self, what: u64) {
        self.wanted.store(what, Ordering::Release);
        while self.doing.load(Ordering::Acquire) != what {
            thread::yield_now();
        }
    }

    /// Writes indices, descriptors and noise over the rings' pages while told to.
    fn run(&self) {
        let mut random = 0u64;
        loop {
            let wanted = self.wanted.load(Ordering::Acquire);
            if wanted != self.doing.load(Ordering::Relaxed) {
                random = wanted;
                self.doing.store(wanted, Ordering::Release);
            }
            if wanted == 0 {
                thread::yield_now();
                continue;
            }
            let mut next = || {
                random ^= random >> 12;
                random ^= random << 25;
                random ^= random >> 27;
                random
            };
            let at = next();
            let page = ring::FIRST + at % ring::PAGES;
            let (offset, value) = match at >> 60 {
                // One of the control words.
                0..4 => ((at >> 8) % 4 * 4, next() % 8192),
                // A descriptor, more or less.
                4..8 => ((at >> 8) % 512 * 8, 6 | 2 << 16 | (next() % 64) << 32),
                _ => ((at >> 8) % 512 * 8, next()),
            };
            let at = GuestAddress(page * 4096 + offset);
            self.memory.write_obj(value, at).expect("in memory");
        }
    }
}
