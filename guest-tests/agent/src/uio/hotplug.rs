// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/init uio-hotplug ROUNDS`: uses the channel until it is taken away, and
//! again when it is back.
//!
//! The guest's kernel frees the rings' pages when the device goes, although
//! they are mapped here: a program that writes on then writes into memory of
//! somebody else. So this one runs with a real-time priority on CPU 0, where
//! the kernel removes devices in a work queue: between a look at the device and
//! the end of a short exchange the kernel cannot get ahead.

use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use super::echo::Link;
use super::ring::both;
use super::{Device, find, is_gone, wait_for_device};
use crate::raw::become_real_time;

/// The driver shows its device before it has finished probing, and an interrupt
/// then is one too early for it: the guest crashes.
const PROBING: Duration = Duration::from_millis(100);

/// As long as a device may take to go or to come back.
const LIMIT: Duration = Duration::from_secs(30);

/// Goes through so many removals of a device that was in use.
pub fn run(rounds: u64) -> io::Result<()> {
    let mut first = CpuSet::new();
    first.set(0);
    sched_setaffinity(None, &first)?;
    become_real_time()?;
    let start = Instant::now();
    let (mut used, mut packets) = (0, 0);
    let mut deadline = Instant::now() + LIMIT;
    while used < rounds {
        let node = wait_for_device(LIMIT)?;
        thread::sleep(PROBING);
        match until_gone(&node) {
            // The kernel was still making it, or unmaking it.
            Ok(0) => thread::sleep(Duration::from_millis(5)),
            Ok(exchanged) => {
                used += 1;
                packets += exchanged;
                wait_until_gone(&node)?;
                deadline = Instant::now() + LIMIT;
            }
            Err(error) => return Err(io::Error::other(format!("round {used}: {error}"))),
        }
        if Instant::now() >= deadline {
            return Err(io::Error::other(format!("not to be opened for {LIMIT:?}")));
        }
    }
    println!(
        "rounds={used} packets={packets} seconds={:.3}",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Exchanges packets until the device goes, and says how many.
fn until_gone(node: &Path) -> io::Result<u64> {
    let (device, mapping, len) = match Device::open(node) {
        Ok(opened) => opened,
        Err(error) if is_gone(&error) => return Ok(0),
        Err(error) => return Err(error),
    };
    let (sender, receiver) = both(&mapping, len)?;
    let mut link = Link::new(device, sender, receiver);
    loop {
        let start = Instant::now();
        let turn = link.look().and_then(|()| link.stream(64, 16, false));
        match turn {
            // Lets others run, for as long as it ran: a real-time process that
            // sleeps less than a twentieth of the time is put aside by the
            // kernel in the middle of anything.
            Ok(()) => thread::sleep(start.elapsed().max(Duration::from_millis(1))),
            Err(error) if is_gone(&error) => return Ok(link.received()),
            Err(error) => return Err(error),
        }
    }
}

fn wait_until_gone(node: &Path) -> io::Result<()> {
    let deadline = Instant::now() + LIMIT;
    let name = node.file_name().unwrap_or_default();
    while find().is_some_and(|found| *name == *found) {
        if Instant::now() >= deadline {
            return Err(io::Error::other(format!("still there after {LIMIT:?}")));
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
