// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/init uio-signals COUNT`: so many packets, each with a signal to the host.

use std::io;
use std::time::Duration;

use super::echo::Link;
use super::ring::both;
use super::{Device, wait_for_device};

/// Sends and receives one packet per signal, whether the host wants it or not.
pub fn run(count: u64) -> io::Result<()> {
    let node = wait_for_device(Duration::from_secs(10))?;
    let (device, mapping, len) = Device::open(&node)?;
    let (sender, receiver) = both(&mapping, len)?;
    let mut link = Link::new(device, sender, receiver);
    while link.signals() < count {
        let before = link.signals();
        link.stream(1, 1, false)?;
        if link.signals() == before {
            link.signal(false)?;
        }
    }
    println!("packets={} signals={}", link.received(), link.signals());
    Ok(())
}
