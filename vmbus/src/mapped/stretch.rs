// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Contiguous guest memory: as bytes to copy, or as words.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use vm_memory::VolatileSlice;

/// The longest piece that is left to one `memcpy`. For more than this some of
/// them turn to `rep movsb`, which takes up to three times as long on CPUs that
/// compare addresses modulo a page.
const PIECE: usize = 2048;

/// Contiguous bytes of guest memory, for as long as the pages are borrowed.
#[derive(Clone, Copy)]
pub(crate) struct Stretch<'a> {
    host: NonNull<u8>,
    /// Bytes that are mapped from `host` on.
    len: usize,
    pages: PhantomData<&'a ()>,
}

impl<'a> Stretch<'a> {
    /// # Safety
    /// `len` bytes of guest memory are mapped at `host` for as long as `'a`.
    #[inline]
    pub(super) unsafe fn new(host: NonNull<u8>, len: usize) -> Self {
        Self {
            host,
            len,
            pages: PhantomData,
        }
    }

    /// Its whole words, if it begins at a multiple of 8.
    #[inline]
    pub(crate) fn words(self) -> Option<&'a [AtomicU64]> {
        let first = self.host.cast::<AtomicU64>();
        if !first.is_aligned() {
            return None;
        }
        // SAFETY: so many words are mapped for 'a, and aligned. Atomics are valid
        // for any bytes and under changes made by anyone at any time.
        Some(unsafe { slice::from_raw_parts(first.as_ptr(), self.len / size_of::<u64>()) })
    }

    /// All of it, for who takes bytes from where they are.
    #[inline]
    pub(crate) fn volatile(self) -> VolatileSlice<'a> {
        // SAFETY: so many bytes are mapped for 'a. Whoever has the slice can only
        // access them as what may change at any time.
        unsafe { VolatileSlice::new(self.host.as_ptr(), self.len) }
    }

    /// Copies from `at` into `to`; false if it is not all there.
    #[inline]
    pub(crate) fn read(self, at: usize, to: &mut [u8]) -> bool {
        let Some(from) = self.span(at, to.len()) else {
            return false;
        };
        // SAFETY: `span` vouches for so many mapped bytes. `to` is host memory
        // borrowed for writing, so it cannot be guest memory, to which this crate
        // makes no references but to atomics: the two do not overlap.
        unsafe { copy(from.as_ptr(), to.as_mut_ptr(), to.len()) };
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
        // SAFETY: `span` vouches for so many mapped, writable bytes. `from` is
        // host memory, as in `read`, so the two do not overlap.
        unsafe { copy(from.as_ptr(), to.as_ptr(), from.len()) };
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

/// Copies `len` bytes. What is read more than once is written more than once.
///
/// # Safety
/// `from` can be read and `to` be written for `len` bytes; they do not overlap.
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    let piece = |at: usize, len: usize| {
        let (from, to) = (from.wrapping_add(at), to.wrapping_add(at));
        // SAFETY: each piece lies within what the caller vouches for.
        unsafe { from.copy_to_nonoverlapping(to, len) };
    };
    match len {
        // Small packets: moves instead of a call.
        16..=32 => {
            piece(0, 16);
            piece(len - 16, 16);
        }
        33..=64 => {
            piece(0, 32);
            piece(len - 32, 32);
        }
        _ if len <= PIECE => piece(0, len),
        _ => {
            let mut at = 0;
            while len - at > PIECE {
                piece(at, PIECE);
                at += PIECE;
                // Else the optimiser makes one call of all.
                compiler_fence(Ordering::SeqCst);
            }
            piece(at, len - at);
        }
    }
}
