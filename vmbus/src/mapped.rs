// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest pages as host memory, resolved once: the only unsafe code of the crate.
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
//! * **Lifetime.** [`GuestPages`] owns a reference to the memory object and the
//!   pointer guards that it gave out. A `GuestMemoryBackend` may not change while
//!   it is borrowed, and a shared owner keeps it from being mutably borrowed, so
//!   the addresses stay mapped for as long as the struct lives.
//! * **Bounds.** An address is only ever formed from a page of the table and a
//!   length that was compared with the rest of that page's run.
//! * **A guest that writes at the same time.** Control words are atomics. Headers
//!   are read with volatile loads, once. Payloads are copied into host buffers,
//!   and a compiler fence behind the copy keeps the optimiser from reading guest
//!   memory again in the copy's place. No reference to guest bytes other than to
//!   atomics is ever made. Torn bytes are possible and harmless: they are what a
//!   guest that writes at the wrong moment has sent.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, compiler_fence};

use vm_memory::volatile_memory::PtrGuardMut;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// Bytes of a page of the bus, whatever the host's pages are.
pub(crate) const PAGE_SIZE: usize = 4096;
const PAGE_MASK: usize = PAGE_SIZE - 1;
const PAGE_SHIFT: u32 = 12;

/// The pages cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
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
    // Held, not used: dropped after `pages`, in this order.
    #[cfg_attr(not(test), allow(dead_code))]
    guards: Vec<PtrGuardMut>,
    _memory: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the pointers lead to guest memory, which belongs to no thread: every
// vCPU and the host access it at any time, in the ways the module docs describe.
// The guards are addresses and lengths; the memory object itself is Send + Sync.
unsafe impl Send for GuestPages {}

impl GuestPages {
    /// Resolves the pages numbered `pfns`.
    pub(crate) fn map<M>(memory: &Arc<M>, pfns: &[u64]) -> Result<Self, MapError>
    where
        M: GuestMemoryBackend + Send + Sync + 'static,
    {
        let mut pages = Vec::with_capacity(pfns.len());
        let mut guards = Vec::new();
        let neighbours = |a: &u64, b: &u64| a.checked_add(1) == Some(*b);
        for run in pfns.chunk_by(neighbours) {
            // A run that crosses from one region into the next is no run of host
            // memory: take its pages one by one.
            if map_run(&**memory, run, &mut pages, &mut guards).is_err() {
                for pfn in run {
                    map_run(
                        &**memory,
                        std::slice::from_ref(pfn),
                        &mut pages,
                        &mut guards,
                    )?;
                }
            }
        }
        guards.shrink_to_fit();
        Ok(Self {
            pages: pages.into(),
            guards,
            _memory: Arc::clone(memory) as Arc<dyn Any + Send + Sync>,
        })
    }

    /// Bytes of all pages together.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.pages.len() * PAGE_SIZE
    }

    /// Stretches of contiguous host memory.
    #[cfg(test)]
    pub(crate) fn runs(&self) -> usize {
        self.guards.len()
    }

    /// The first page as control words; `None` if there is no page.
    #[inline]
    pub(crate) fn control(&self) -> Option<&ControlBlock> {
        let page = self.pages.first()?;
        // SAFETY: the page is PAGE_SIZE bytes of mapped memory that outlives the
        // borrow of self, and 8-aligned (checked by map_run). ControlBlock fits
        // into it, consists of atomics only, and so is valid for any bytes and
        // under changes made by anyone at any time.
        Some(unsafe { page.host.cast::<ControlBlock>().as_ref() })
    }

    /// Copies from `offset` into `to`; false if it is not all there.
    #[inline]
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) -> bool {
        match self.stretch(offset, to.len()) {
            Some(stretch) => stretch.read(0, to),
            None => self.read_in_pieces(offset, to),
        }
    }

    /// Copies `from` to `offset`; false if it does not all fit.
    #[inline]
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
    fn contiguous(&self, offset: usize) -> usize {
        self.pages
            .get(offset >> PAGE_SHIFT)
            .map_or(0, |page| page.run - (offset & PAGE_MASK))
    }

    /// The `len` bytes at `offset`, if they are one stretch of host memory.
    #[inline]
    pub(crate) fn stretch(&self, offset: usize, len: usize) -> Option<Stretch<'_>> {
        let page = self.pages.get(offset >> PAGE_SHIFT)?;
        let within = offset & PAGE_MASK;
        if len > page.run - within {
            return None;
        }
        Some(Stretch {
            // SAFETY: `within` is less than a page, and a run has at least a page,
            // so the result is inside the run that `host` points into.
            host: unsafe { page.host.add(within) },
            len,
            pages: PhantomData,
        })
    }
}

/// Contiguous bytes of guest memory, for as long as the pages are borrowed.
#[derive(Clone, Copy)]
pub(crate) struct Stretch<'a> {
    host: NonNull<u8>,
    /// Bytes that are mapped from `host` on.
    len: usize,
    pages: PhantomData<&'a GuestPages>,
}

impl Stretch<'_> {
    /// Copies from `at` into `to`; false if it is not all there.
    #[inline]
    pub(crate) fn read(self, at: usize, to: &mut [u8]) -> bool {
        let Some(from) = self.span(at, to.len()) else {
            return false;
        };
        let len = to.len();
        // SAFETY: `span` vouches for `len` mapped bytes. `to` is host memory
        // borrowed for writing, so it cannot be guest memory, to which this crate
        // makes no references but to atomics: the two do not overlap.
        unsafe { from.as_ptr().copy_to_nonoverlapping(to.as_mut_ptr(), len) };
        // The caller works on the copy. Behind this fence the optimiser must
        // assume that guest memory has changed, and cannot go back to it.
        compiler_fence(Ordering::SeqCst);
        true
    }

    /// Copies `from` to `at`; false if it does not all fit.
    #[inline]
    pub(crate) fn write(self, at: usize, from: &[u8]) -> bool {
        let Some(to) = self.span(at, from.len()) else {
            return false;
        };
        let len = from.len();
        // SAFETY: `span` vouches for `len` mapped, writable bytes. `from` is host
        // memory, as in `read`, so the two do not overlap.
        unsafe { to.as_ptr().copy_from_nonoverlapping(from.as_ptr(), len) };
        true
    }

    /// Copies 16 bytes from `at`, reading each once; `None` if they are not all
    /// there, or not at a multiple of 8.
    #[inline]
    pub(crate) fn read_16(self, at: usize) -> Option<[u8; 16]> {
        let words = [self.read_word(at)?, self.read_word(at + 8)?];
        Some(zerocopy::transmute!(words))
    }

    #[inline]
    fn read_word(self, at: usize) -> Option<u64> {
        let word = self.span(at, 8)?.cast::<u64>();
        if !word.is_aligned() {
            return None;
        }
        // SAFETY: `span` vouches for 8 mapped bytes, and they are aligned. Any
        // bytes are a u64.
        Some(unsafe { word.read_volatile() })
    }

    /// Writes 8 bytes to `at`; false if they do not fit, or `at` is not at a
    /// multiple of 8.
    #[inline]
    pub(crate) fn write_8(self, at: usize, bytes: [u8; 8]) -> bool {
        let word = self.span(at, 8).map(NonNull::cast::<u64>);
        let Some(word) = word.filter(|word| word.is_aligned()) else {
            return false;
        };
        let value = zerocopy::transmute!(bytes);
        // SAFETY: as in `read_word`; the memory is writable guest memory.
        unsafe { word.write_volatile(value) };
        true
    }

    /// The address of `at`, if `len` bytes are there.
    #[inline]
    fn span(self, at: usize, len: usize) -> Option<NonNull<u8>> {
        if at > self.len || len > self.len - at {
            return None;
        }
        // SAFETY: `at` is at most the stretch's length, so the result is inside
        // it or at its end.
        Some(unsafe { self.host.add(at) })
    }
}

impl fmt::Debug for GuestPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestPages({} pages)", self.pages.len())
    }
}

/// Resolves a run of neighbouring pages within one region.
fn map_run<M: GuestMemoryBackend>(
    memory: &M,
    run: &[u64],
    pages: &mut Vec<Page>,
    guards: &mut Vec<PtrGuardMut>,
) -> Result<(), MapError> {
    let first = run.first().copied().unwrap_or(0);
    let missing = MapError::NotMemory(first);
    let len = run.len() * PAGE_SIZE;
    let start = first
        .checked_mul(PAGE_SIZE as u64)
        .map(GuestAddress)
        .ok_or(missing)?;
    let slice = memory.get_slice(start, len).map_err(|_| missing)?;
    let guard = slice.ptr_guard_mut();
    let host = NonNull::new(guard.as_ptr())
        .filter(|_| slice.len() == len)
        .ok_or(missing)?;
    if !host.cast::<u64>().is_aligned() {
        return Err(MapError::Misaligned(first));
    }
    for index in 0..run.len() {
        let offset = index * PAGE_SIZE;
        pages.push(Page {
            // SAFETY: `offset` is less than `len`, and the slice has `len` bytes
            // in one region, which is one mapping.
            host: unsafe { host.add(offset) },
            run: len - offset,
        });
    }
    guards.push(guard);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryMmap};

    const PAGE: u64 = PAGE_SIZE as u64;

    fn memory() -> Arc<GuestMemoryMmap> {
        // Two regions that are neighbours in the guest, and one that is not.
        let ranges = [(0, 8), (8, 8), (32, 4)];
        let ranges = ranges.map(|(first, pages)| {
            (
                GuestAddress(first * PAGE),
                usize::try_from(pages * PAGE).unwrap(),
            )
        });
        Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
    }

    #[test]
    fn neighbouring_pages_of_a_region_are_one_run() {
        for (pfns, runs) in [
            (&[1, 2, 3][..], 1),
            (&[3, 2, 1], 3),
            (&[1, 2, 4, 5, 32], 3),
            (&[2, 2, 3], 2),
            (&[6, 7, 8, 9], 4), // crosses into another region
        ] {
            let pages = GuestPages::map(&memory(), pfns).unwrap();
            assert_eq!(pages.runs(), runs, "{pfns:?}");
            assert_eq!(pages.len(), pfns.len() * PAGE_SIZE);
        }
    }

    #[test]
    fn bytes_land_in_the_pages_of_the_list_whatever_their_order() {
        let memory = memory();
        let pages = GuestPages::map(&memory, &[5, 33, 2, 3, 8]).unwrap();
        let bytes: Vec<u8> = (0..5 * PAGE_SIZE)
            .map(|i| u8::try_from(i % 251).unwrap())
            .collect();
        assert!(pages.write(0, &bytes));
        let mut there = vec![0; PAGE_SIZE];
        memory
            .read_slice(&mut there, GuestAddress(33 * PAGE))
            .unwrap();
        assert_eq!(there, bytes[PAGE_SIZE..2 * PAGE_SIZE]);
        for (offset, len) in [(0, 1), (4000, 200), (8190, 8200), (0, 5 * PAGE_SIZE)] {
            let mut back = vec![0; len];
            assert!(pages.read(offset, &mut back));
            assert_eq!(back, bytes[offset..offset + len]);
        }
        let stretch = pages.stretch(0, 64).unwrap();
        assert_eq!(stretch.read_16(8).unwrap(), bytes[8..24]);
    }

    #[test]
    fn a_page_listed_twice_is_the_same_memory() {
        let pages = GuestPages::map(&memory(), &[4, 4]).unwrap();
        assert!(pages.write(8, &[77; 8]));
        assert_eq!(
            pages.stretch(PAGE_SIZE, 64).unwrap().read_16(8).unwrap()[..8],
            [77; 8]
        );
    }

    #[test]
    fn nothing_is_reachable_behind_the_end() {
        let pages = GuestPages::map(&memory(), &[1, 3]).unwrap();
        let end = pages.len();
        assert!(!pages.write(end - 8, &[1; 9]));
        assert!(!pages.read(end, &mut [0]));
        assert!(pages.stretch(end, 1).is_none());
        let last = pages.stretch(end - 16, 16).unwrap();
        assert!(last.write_8(8, [1; 8]));
        assert!(!last.write_8(16, [1; 8]));
        assert!(!last.write_8(4, [1; 8]), "misaligned");
        assert!(!last.write(9, &[1; 8]) && !last.read(17, &mut []));
        assert_eq!(last.read_16(8), None);
        assert_eq!(last.read_16(usize::MAX), None);
        assert!(!pages.read(usize::MAX, &mut [0; 4]));
    }

    #[test]
    fn pages_outside_memory_are_refused() {
        for pfn in [16, 31, 36, 1 << 52, u64::MAX] {
            assert_eq!(
                GuestPages::map(&memory(), &[1, pfn]).unwrap_err(),
                MapError::NotMemory(pfn)
            );
        }
    }

    #[test]
    fn the_memory_outlives_its_other_owners() {
        let memory = memory();
        let pages = GuestPages::map(&memory, &[1]).unwrap();
        drop(memory);
        assert!(pages.write(0, &[5; 8]));
        assert_eq!(
            pages.stretch(0, 16).unwrap().read_16(0).unwrap()[..8],
            [5; 8]
        );
    }
}
