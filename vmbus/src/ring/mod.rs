// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A channel's two rings over guest memory (protocol 5).
//!
//! ```text
//!   GPADL pages  0 ……… offset−1 │ offset ………… end
//!                control │ data │ control │ data
//!                └─ Incoming ──┘ └── Outgoing ──┘
//!                guest writes    host writes
//! ```
//!
//! [`Incoming`] is read by peeking and committing, [`Outgoing`] is written by
//! reserving and publishing; a batch of packets costs one commit or publish,
//! and at most one signal. Every index and length that the guest can write is
//! checked; a bad one is a [`RingError`], after which the channel is closed. It
//! is never more than that: the guest harms its own channel.
//!
//! The host writes to rings through addresses resolved beforehand. Memory that
//! logs what is written hears of it when it is told to: [`RingPair::mark_dirty`].
//!
//! # Example
//! ```
//! use std::sync::Arc;
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//! use vmbus::ring::{PacketMeta, RingPair};
//!
//! let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)])?;
//! // Pages 8 to 15 are the list; the first four are the ring from the guest.
//! let pfns: Vec<u64> = (8..16).collect();
//! let mut rings = RingPair::open(Arc::new(memory), &pfns, 4)?;
//!
//! assert!(rings.incoming.peek()?.is_none(), "the guest has sent nothing");
//! rings.outgoing.write(PacketMeta::in_band(1), &[b"hello"])?;
//! let must_signal = rings.outgoing.publish()?;
//! assert!(must_signal, "the ring was empty");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod control;
mod incoming;
mod index;
mod outgoing;

use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use crate::memory::MapError;
use crate::memory::{ControlBlock, GuestMemory, GuestPages, GuestSlice, PAGE_SIZE};
use crate::wire::{PACKET_HEADER_SIZE, PACKET_TRAILER_SIZE, PacketHeader};
pub(crate) use incoming::Place;
pub use incoming::{Incoming, IncomingPacket, PacketPayload};
pub use outgoing::{Outgoing, PacketMeta};

/// Rings as large as this have indices whose sums still fit. A GPADL covers at
/// most 32 MiB.
const MAX_DATA_SIZE: usize = 1 << 30;

/// The guest broke a ring: its channel cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// An index outside the ring, or between packets' boundaries.
    #[error("index {index} in a ring of {size} bytes")]
    BadIndex {
        /// What the guest wrote.
        index: u32,
        /// The ring's data bytes.
        size: u32,
    },
    /// An index moved back, or past the other side's.
    #[error("an index went back")]
    WentBack,
    /// Fewer bytes than a packet's header and trailer.
    #[error("{available} bytes are no packet")]
    Torn {
        /// What is there.
        available: u32,
    },
    /// A header whose lengths contradict each other or what is there.
    #[error("a packet of {len8} x 8 bytes with a header of {offset8} x 8, of {available} bytes")]
    BadLength {
        /// From the header.
        offset8: u16,
        /// From the header.
        len8: u16,
        /// What is there, trailer included.
        available: u32,
    },
}

/// Why a packet was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// There is no space now: see [`Outgoing::request_space`].
    #[error("the ring has no room for {needed} bytes")]
    Full {
        /// Ring bytes of the packet.
        needed: u32,
    },
    /// There can be no space: the packet is larger than the ring, or than a
    /// packet's length field can say. The host is at fault.
    #[error("the packet is larger than the ring")]
    NeverFits,
    /// The guest broke the ring.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// Why rings cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Each ring has a control page and at least one page of data.
    #[error("{pages} pages cannot be split into two rings at {offset}")]
    BadSplit {
        /// Pages of the list.
        pages: usize,
        /// Pages of the first ring.
        offset: u32,
    },
    /// A page cannot be used.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The control page says nonsense.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// Both rings of an open channel.
#[derive(Debug)]
pub struct RingPair {
    /// From guest to host.
    pub incoming: Incoming,
    /// From host to guest.
    pub outgoing: Outgoing,
}

impl RingPair {
    /// Resolves the pages numbered `pfns` and takes the indices that the guest
    /// left in them. The first `downstream_offset` pages are the incoming ring.
    // By value an `Arc` of any memory becomes one of the trait.
    #[expect(clippy::needless_pass_by_value)]
    pub fn open(
        memory: Arc<dyn GuestMemory>,
        pfns: &[u64],
        downstream_offset: u32,
    ) -> Result<Self, OpenError> {
        let bad = OpenError::BadSplit {
            pages: pfns.len(),
            offset: downstream_offset,
        };
        let (incoming, outgoing) = usize::try_from(downstream_offset)
            .ok()
            .and_then(|offset| pfns.split_at_checked(offset))
            .filter(|(incoming, outgoing)| incoming.len() >= 2 && outgoing.len() >= 2)
            .ok_or(bad)?;
        let data = |pfns: &[u64]| -> Result<Data, OpenError> {
            // Runs of pages end where the ring does.
            let pfns = pfns.get(..=MAX_DATA_SIZE / PAGE_SIZE).unwrap_or(pfns);
            Ok(Data {
                size: u32::try_from((pfns.len() - 1) * PAGE_SIZE).map_err(|_| bad)?,
                pages: GuestPages::map(&memory, pfns)?,
            })
        };
        Ok(Self {
            incoming: Incoming::new(data(incoming)?)?,
            outgoing: Outgoing::new(data(outgoing)?)?,
        })
    }
}

impl RingPair {
    /// Tells the memory which pages the host may have written to: all of the
    /// outgoing ring, and the control words of the incoming one.
    pub fn mark_dirty(&self) {
        self.incoming.mark_dirty();
        self.outgoing.mark_dirty();
    }
}

/// The data area of a ring: a byte space that wraps.
#[derive(Debug)]
pub(crate) struct Data {
    pages: GuestPages,
    size: u32,
}

/// Ring bytes of a plain header and of the trailer, in an index's type.
const HEADER: u32 = 16;
const TRAILER: u32 = 8;
const _: () = assert!(HEADER as usize == PACKET_HEADER_SIZE);
const _: () = assert!(TRAILER as usize == PACKET_TRAILER_SIZE);

/// Data begins behind the control page.
const DATA: usize = PAGE_SIZE;

impl Data {
    #[inline]
    fn control(&self) -> &ControlBlock {
        self.pages.control()
    }

    /// Where `at`, below the ring's size, is in its pages.
    #[inline]
    fn offset(at: u32) -> usize {
        // u32 fits into usize on every target with a 64-bit guest.
        DATA + usize::try_from(at).unwrap_or(usize::MAX - DATA)
    }

    /// Bytes from `at` to the wrap.
    #[inline]
    fn before_wrap(&self, at: u32) -> usize {
        usize::try_from(self.size.saturating_sub(at)).unwrap_or(0)
    }

    /// `at` + `by`, wrapped.
    #[inline]
    fn wrap(&self, at: u32, by: u32) -> u32 {
        let sum = at.wrapping_add(by);
        if sum >= self.size {
            sum - self.size
        } else {
            sum
        }
    }

    /// The `len` bytes at `at`, if they do not wrap and are one stretch of memory.
    #[inline]
    fn stretch(&self, at: u32, len: usize) -> Option<GuestSlice<'_>> {
        self.pages.stretch(Self::offset(at), len)
    }

    /// What lies together from `at` on, `most` bytes at most.
    #[inline]
    fn piece(&self, at: u32, most: usize) -> Option<GuestSlice<'_>> {
        let straight = self.before_wrap(at).min(most);
        self.pages.piece(Self::offset(at), straight)
    }

    #[inline]
    fn read_header(&self, at: u32) -> PacketHeader {
        let words = self
            .stretch(at, PACKET_HEADER_SIZE)
            .and_then(GuestSlice::words);
        match words {
            Some([first, second, ..]) => PacketHeader::from_words([
                first.load(Ordering::Relaxed),
                second.load(Ordering::Relaxed),
            ]),
            _ => self.read_header_in_pieces(at),
        }
    }

    /// The word at `at`.
    #[inline]
    fn read_word(&self, at: u32) -> [u8; 8] {
        let words = self.stretch(at, 8).and_then(GuestSlice::words);
        if let Some([word, ..]) = words {
            return word.load(Ordering::Relaxed).to_ne_bytes();
        }
        let mut bytes = [0; 8];
        self.read_in_pieces(at, &mut bytes);
        bytes
    }

    #[cold]
    fn read_header_in_pieces(&self, at: u32) -> PacketHeader {
        let mut bytes = [0; PACKET_HEADER_SIZE];
        self.read_in_pieces(at, &mut bytes);
        PacketHeader::from_bytes(bytes)
    }

    #[inline]
    fn read(&self, at: u32, to: &mut [u8]) {
        match self.stretch(at, to.len()) {
            Some(stretch) => drop(stretch.read(0, to)),
            None => self.read_in_pieces(at, to),
        }
    }

    #[cold]
    fn read_in_pieces(&self, at: u32, to: &mut [u8]) {
        let straight = self.before_wrap(at).min(to.len());
        if let Some((now, later)) = to.split_at_mut_checked(straight) {
            self.pages.read(Self::offset(at), now);
            self.pages.read(DATA, later);
        }
    }

    #[cold]
    fn write_in_pieces(&self, at: u32, from: &[u8]) {
        let straight = self.before_wrap(at).min(from.len());
        if let Some((now, later)) = from.split_at_checked(straight) {
            self.pages.write(Self::offset(at), now);
            self.pages.write(DATA, later);
        }
    }
}

#[cfg(all(test, loom))]
mod model;
#[cfg(test)]
mod tests;
