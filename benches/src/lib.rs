// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the benchmarks share: both ends of a channel's rings.
//!
//! ```text
//!   host's outgoing ring ══ pages ══ guest's incoming ring
//!   host's incoming ring ══ pages ══ guest's outgoing ring
//! ```
//!
//! The guest's end is the host's code with the two rings exchanged, so a packet
//! is written and read by what is measured.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmbus::ring::RingPair;

/// Pages of each ring, the control page included.
const PAGES: u64 = 33;
const MEMORY: usize = 64 << 20;

/// How a ring's pages lie in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One after the other: Linux' default.
    Contiguous,
    /// Every other page, backwards: nothing can be coalesced.
    Scattered,
}

/// Two ends of one channel.
#[derive(Debug)]
pub struct Ends {
    /// The host's.
    pub host: RingPair,
    /// The guest's.
    pub guest: RingPair,
}

impl Ends {
    /// Fresh rings.
    ///
    /// # Panics
    /// If there is no memory for the guest.
    #[allow(clippy::expect_used)] // A benchmark without memory has no other way out.
    pub fn new(layout: Layout) -> Self {
        let ranges = [(GuestAddress(0), MEMORY)];
        let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).expect("memory"));
        let pages = |first: u64| -> Vec<u64> {
            let pages = 0..PAGES;
            match layout {
                Layout::Contiguous => pages.map(|page| first + page).collect(),
                Layout::Scattered => pages.map(|page| first + 2 * (PAGES - page)).collect(),
            }
        };
        let (to_host, to_guest) = (pages(100), pages(300));
        let open = |first: &[u64], second: &[u64]| {
            let pages = [first, second].concat();
            let split = u32::try_from(PAGES).unwrap_or(0);
            RingPair::open(&memory, &pages, split).expect("rings")
        };
        Self {
            host: open(&to_host, &to_guest),
            guest: open(&to_guest, &to_host),
        }
    }
}
