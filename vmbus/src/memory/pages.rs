// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lists of guest pages as host memory, resolved once.
//!
//! A ring is a list of guest pages, in any order, some perhaps twice. Looking up
//! each access in the memory map would cost more than the copy, so a channel's
//! pages are resolved when it opens. Runs of pages that are neighbours in one
//! region become one stretch of host memory, and most copies are one `memcpy`.
//!
//! ```text
//!   pfns      7  8  9  3  4        page table: host address, bytes to the end of its run
//!             └──┬──┘  └─┬┘
//!             run      run         offset ─► page ─► address + what is contiguous there
//! ```
//!
//! What makes this sound:
//! * **Lifetime.** [`GuestPages`] owns a reference to the memory object, whose
//!   addresses stay mapped for as long as it lives ([`GuestMemory`]'s promise).
//! * **Bounds.** An address is only ever formed from a page of the table and a
//!   length that was compared with the rest of that page's run.
//! * **A guest that writes at the same time.** Control words, and the words of
//!   packets' headers, are atomics, and each is loaded once. Payloads are copied
//!   into host buffers, and a compiler fence behind the copy keeps the optimiser
//!   from reading guest memory again in the copy's place, or are handed to a system
//!   call as [`GuestSlice`]s. No reference to guest bytes other than to atomics is
//!   ever made. Torn bytes are possible and harmless: they are what a
//!   guest that writes at the wrong moment has sent.

use std::fmt;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use super::{GuestMemory, GuestSlice, PAGE_SIZE, page_address};

const PAGE_MASK: usize = PAGE_SIZE - 1;
const PAGE_SHIFT: u32 = 12;

/// The pages cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// There are no pages.
    #[error("the list is empty")]
    Empty,
    /// A page is not, or not wholly, guest memory.
    #[error("page {0:#x} is not guest memory")]
    NotMemory(u64),
    /// The host has mapped a page at an odd address. The host is at fault.
    #[error("page {0:#x} is mapped at an address that is no multiple of 8")]
    Misaligned(u64),
}

/// The control words at the start of a ring's first page (protocol 5.1).
#[derive(Debug)]
#[repr(C)]
pub(crate) struct ControlBlock {
    pub(crate) write_index: AtomicU32,
    pub(crate) read_index: AtomicU32,
    pub(crate) interrupt_mask: AtomicU32,
    pub(crate) pending_send_sz: AtomicU32,
    reserved: [AtomicU32; 12],
    pub(crate) feature_bits: AtomicU32,
}

const _: () = assert!(std::mem::offset_of!(ControlBlock, feature_bits) == 64);
const _: () = assert!(size_of::<ControlBlock>() <= PAGE_SIZE);

#[derive(Clone, Copy)]
struct Page {
    host: NonNull<u8>,
    /// Bytes from the start of this page to the end of its run; at least a page.
    run: usize,
}

/// A list of guest pages as one address space from 0, resolved to host memory.
pub(crate) struct GuestPages {
    pages: Box<[Page]>,
    /// The first page.
    control: NonNull<ControlBlock>,
    /// Runs of guest pages: address and bytes of each. Few, as a rule.
    runs: Box<[(u64, usize)]>,
    // Dropped last.
    memory: Arc<dyn GuestMemory>,
}

// SAFETY: the pointers lead to guest memory, which belongs to no thread: every
// vCPU and the host access it at any time, in the ways the module docs describe.
// The memory object itself is Send + Sync.
unsafe impl Send for GuestPages {}

impl GuestPages {
    /// Resolves the pages numbered `pfns`.
    pub(crate) fn map(memory: &Arc<dyn GuestMemory>, pfns: &[u64]) -> Result<Self, MapError> {
        let mut pages = Vec::with_capacity(pfns.len());
        let mut runs = Vec::new();
        let neighbours = |a: &u64, b: &u64| a.checked_add(1) == Some(*b);
        for run in pfns.chunk_by(neighbours) {
            // A run that crosses from one region into the next is no run of host
            // memory: take its pages one by one.
            if map_run(&**memory, run, &mut pages, &mut runs).is_err() {
                for pfn in run {
                    map_run(&**memory, slice::from_ref(pfn), &mut pages, &mut runs)?;
                }
            }
        }
        let first: &Page = pages.first().ok_or(MapError::Empty)?;
        Ok(Self {
            control: first.host.cast(),
            pages: pages.into(),
            runs: runs.into(),
            memory: Arc::clone(memory),
        })
    }

    /// The host has written to any of them, or may have.
    pub(crate) fn mark_dirty(&self) {
        for (address, len) in &self.runs {
            self.memory.mark_dirty(*address, *len);
        }
    }

    /// The host has written control words, or may have.
    pub(crate) fn mark_control_dirty(&self) {
        if let Some((address, _)) = self.runs.first() {
            self.memory.mark_dirty(*address, size_of::<ControlBlock>());
        }
    }

    /// Bytes of all pages together.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.pages.len() * PAGE_SIZE
    }

    /// Stretches of contiguous host memory.
    #[cfg(test)]
    pub(crate) fn runs(&self) -> usize {
        self.runs.len()
    }

    /// The first page as control words.
    #[inline]
    pub(crate) fn control(&self) -> &ControlBlock {
        // SAFETY: the first page is PAGE_SIZE bytes of mapped memory that outlives
        // the borrow of self, and 8-aligned (checked by map_run). ControlBlock fits
        // into it, consists of atomics only, and so is valid for any bytes and
        // under changes made by anyone at any time.
        unsafe { self.control.as_ref() }
    }

    /// Copies from `offset` into `to`; false if it is not all there.
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) -> bool {
        match self.stretch(offset, to.len()) {
            Some(stretch) => stretch.read(0, to),
            None => self.read_in_pieces(offset, to),
        }
    }

    /// Copies `from` to `offset`; false if it does not all fit.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> bool {
        match self.stretch(offset, from.len()) {
            Some(stretch) => stretch.write(0, from),
            None => self.write_in_pieces(offset, from),
        }
    }

    #[cold]
    fn read_in_pieces(&self, mut offset: usize, mut to: &mut [u8]) -> bool {
        while !to.is_empty() {
            let here = self.contiguous(offset).min(to.len());
            let Some((now, later)) = to.split_at_mut_checked(here).filter(|_| here != 0) else {
                return false;
            };
            if !self.read(offset, now) {
                return false;
            }
            offset += here;
            to = later;
        }
        true
    }

    #[cold]
    fn write_in_pieces(&self, mut offset: usize, mut from: &[u8]) -> bool {
        while !from.is_empty() {
            let here = self.contiguous(offset).min(from.len());
            let Some((now, later)) = from.split_at_checked(here).filter(|_| here != 0) else {
                return false;
            };
            if !self.write(offset, now) {
                return false;
            }
            offset += here;
            from = later;
        }
        true
    }

    /// Bytes of contiguous host memory from `offset` on; 0 behind the end.
    #[inline]
    fn contiguous(&self, offset: usize) -> usize {
        self.pages
            .get(offset >> PAGE_SHIFT)
            .map_or(0, |page| page.run - (offset & PAGE_MASK))
    }

    /// What lies together in host memory from `offset` on, `most` bytes at most;
    /// nothing behind the end.
    #[inline]
    pub(crate) fn piece(&self, offset: usize, most: usize) -> Option<GuestSlice<'_>> {
        let len = self.contiguous(offset).min(most);
        self.stretch(offset, len).filter(|_| len != 0)
    }

    /// The `len` bytes at `offset`, if they are one stretch of host memory.
    #[inline]
    pub(crate) fn stretch(&self, offset: usize, len: usize) -> Option<GuestSlice<'_>> {
        let page = self.pages.get(offset >> PAGE_SHIFT)?;
        let within = offset & PAGE_MASK;
        if len > page.run - within {
            return None;
        }
        // SAFETY: `within` is less than a page, and a run has at least a page,
        // so the result is inside the run that `host` points into.
        let host = unsafe { page.host.add(within) };
        // SAFETY: the run has `len` bytes from there on, which stay mapped for as
        // long as self lives.
        Some(unsafe { GuestSlice::new(host, len) })
    }
}

impl fmt::Debug for GuestPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestPages({} pages)", self.pages.len())
    }
}

/// Resolves a run of neighbouring pages within one region.
fn map_run(
    memory: &dyn GuestMemory,
    run: &[u64],
    pages: &mut Vec<Page>,
    runs: &mut Vec<(u64, usize)>,
) -> Result<(), MapError> {
    let first = run.first().copied().unwrap_or(0);
    let missing = MapError::NotMemory(first);
    let len = run.len() * PAGE_SIZE;
    let start = page_address(first).ok_or(missing)?;
    let host = memory.host_address(start, len).ok_or(missing)?;
    if !host.cast::<u64>().is_aligned() {
        return Err(MapError::Misaligned(first));
    }
    for index in 0..run.len() {
        let offset = index * PAGE_SIZE;
        pages.push(Page {
            // SAFETY: `offset` is less than `len`, and the memory vouches for `len`
            // bytes that lie together.
            host: unsafe { host.add(offset) },
            run: len - offset,
        });
    }
    runs.push((start, len));
    Ok(())
}

#[cfg(test)]
mod tests;
