// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The steps of [`crate::ring`] on rings that another thread overwrites all the
//! while, as a guest's vCPU can: what was checked may be different at the next look.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::ring;

/// Runs the steps in `data`; memory around the rings must stay as it was.
pub fn run(data: &[u8]) {
    let memory = ring::memory();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| scribble(&memory, data, &done));
        // Also when a step panics: a scope waits for its threads.
        let _end = End(&done);
        ring::run_in(&memory, data);
    });
    ring::check_around(&memory);
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes indices, descriptors and noise over the rings' pages until told to stop.
fn scribble(memory: &GuestMemoryMmap, data: &[u8], done: &AtomicBool) {
    let sum = data
        .iter()
        .fold(1u64, |sum, byte| sum.rotate_left(5) ^ u64::from(*byte));
    let mut random = sum | 1;
    let mut next = || {
        random ^= random >> 12;
        random ^= random << 25;
        random ^= random >> 27;
        random
    };
    while !done.load(Ordering::Relaxed) {
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
        memory.write_obj(value, at).expect("in memory");
    }
}
