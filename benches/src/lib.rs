// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the benchmarks share: both ends of a channel's rings, and the limit that
//! they are held against.
//!
//! ```text
//!   host's outgoing ring ══ pages ══ guest's incoming ring
//!   host's incoming ring ══ pages ══ guest's outgoing ring
//! ```
//!
//! The guest's end is the host's code with the two rings exchanged, so a packet
//! is written and read by what is measured.

use std::hint::black_box;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmbus::ring::{PacketMeta, RingPair};

/// Payloads of the packets that are measured.
pub const SIZES: [usize; 7] = [16, 40, 64, 256, 1024, 4096, 16384];
/// Pages of each ring, the control page included.
const PAGES: usize = 33;
/// Bytes of a ring's data.
const DATA: usize = (PAGES - 1) * 4096;
const MEMORY: usize = 64 << 20;
/// What a packet adds to its payload: in front of it, and behind.
const HEADER: usize = 16;
const TRAILER: usize = 8;

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
            let pages = 0..PAGES as u64;
            match layout {
                Layout::Contiguous => pages.map(|page| first + page).collect(),
                Layout::Scattered => pages.map(|page| first + 2 * (99 - page)).collect(),
            }
        };
        let (to_host, to_guest) = (pages(100), pages(300));
        let open = |first: &[u64], second: &[u64]| {
            let pages = [first, second].concat();
            let split = u32::try_from(PAGES).unwrap_or(0);
            RingPair::open(memory.clone(), &pages, split).expect("rings")
        };
        Self {
            host: open(&to_host, &to_guest),
            guest: open(&to_guest, &to_host),
        }
    }

    /// A packet from the host to the guest, written and read.
    ///
    /// # Panics
    /// If it does not fit into a ring that is empty.
    #[allow(clippy::unwrap_used)]
    #[inline]
    pub fn pass(&mut self, from: &Buffer, to: &mut Buffer) {
        // Not the slices: a pointer with a length would go through memory in two
        // words and come back as one, which takes as long as a small packet.
        let (from, to) = (black_box(from), black_box(to));
        let meta = PacketMeta::in_band(1);
        self.host.outgoing.write(meta, &[from.get()]).unwrap();
        black_box(self.host.outgoing.publish().unwrap());
        let packet = self.guest.incoming.peek().unwrap().unwrap();
        packet.payload.copy_to(to.get_mut());
        self.guest.incoming.advance();
        black_box(self.guest.incoming.commit().unwrap());
    }
}

/// Bytes that begin at a cache line.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// So many.
    pub fn new(len: usize) -> Self {
        Self::aligned(len, 64)
    }

    fn aligned(len: usize, to: usize) -> Self {
        let bytes = vec![7; len + to];
        let start = bytes.as_ptr().align_offset(to).min(to);
        Self { bytes, start, len }
    }

    /// To read them.
    pub fn get(&self) -> &[u8] {
        self.bytes
            .get(self.start..self.start + self.len)
            .unwrap_or_default()
    }

    /// To write them.
    pub fn get_mut(&mut self) -> &mut [u8] {
        self.bytes
            .get_mut(self.start..self.start + self.len)
            .unwrap_or_default()
    }
}

/// The limit: the same bytes with `memcpy` into memory like a ring, and out of
/// it, where a packet's payload would be.
#[derive(Debug)]
pub struct Copies {
    ring: Buffer,
    at: usize,
}

impl Default for Copies {
    fn default() -> Self {
        Self {
            ring: Buffer::aligned(DATA, 4096),
            at: 0,
        }
    }
}

impl Copies {
    /// The copies that a packet with these bytes cannot do without.
    #[inline]
    pub fn pass(&mut self, from: &Buffer, to: &mut Buffer) {
        let (from, to) = (black_box(from).get(), black_box(to).get_mut());
        let at = (self.at + HEADER) % DATA;
        let now = from.len().min(DATA - at);
        let ring = self.ring.get_mut();
        if let Some((from, rest)) = from.split_at_checked(now) {
            copy(ring.get_mut(at..at + now), from);
            copy(ring.get_mut(..rest.len()), rest);
        }
        let ring = black_box(&self.ring).get();
        if let Some((to, rest)) = to.split_at_mut_checked(now) {
            let later = rest.len();
            copy(Some(to), ring.get(at..at + now).unwrap_or_default());
            copy(Some(rest), ring.get(..later).unwrap_or_default());
        }
        self.at = (self.at + HEADER + from.len().next_multiple_of(8) + TRAILER) % DATA;
    }
}

fn copy(to: Option<&mut [u8]>, from: &[u8]) {
    if let Some(to) = to.filter(|_| !from.is_empty()) {
        to.copy_from_slice(from);
    }
}
