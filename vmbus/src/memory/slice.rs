// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Contiguous guest memory: as bytes to copy, or as words.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence};

/// The longest piece that is left to one `memcpy`. For more than this some of
/// them turn to `rep movsb`, which takes up to three times as long on CPUs that
/// compare addresses modulo a page.
const PIECE: usize = 2048;

/// Contiguous bytes of guest memory. The guest can change them at any time: they are
/// copied, or given to system calls that take them from where they are.
///
/// It has the layout of the C library's `iovec`: an address, then a length.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct GuestSlice<'a> {
    host: NonNull<u8>,
    /// Bytes that are mapped from `host` on.
    len: usize,
    memory: PhantomData<&'a ()>,
}

impl<'a> GuestSlice<'a> {
    /// No bytes.
    pub const EMPTY: Self = Self {
        host: NonNull::dangling(),
        len: 0,
        memory: PhantomData,
    };

    /// # Safety
    /// `len` bytes of guest memory are mapped at `host` for as long as `'a`.
    #[inline]
    pub(super) unsafe fn new(host: NonNull<u8>, len: usize) -> Self {
        Self {
            host,
            len,
            memory: PhantomData,
        }
    }

    /// How many bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where they are in this process.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.host.as_ptr()
    }

    /// The bytes from `at` on; `None` if there are not so many.
    #[inline]
    pub fn skip(&self, at: usize) -> Option<Self> {
        let host = self.span(at, 0)?;
        // SAFETY: `at` is at most the slice's length, and what is behind it is
        // mapped as the slice is.
        Some(unsafe { Self::new(host, self.len - at) })
    }

    /// Copies as many bytes as there are, or as `to` has room for. Says how many.
    #[inline]
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let len = self.len.min(to.len());
        to.get_mut(..len).map_or(0, |to| {
            self.read(0, to);
            len
        })
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

    /// The 64-bit word at `at`, if it is all there, and aligned.
    pub(crate) fn atomic_u64(self, at: usize) -> Option<&'a AtomicU64> {
        let word = self.span(at, size_of::<u64>())?.cast::<AtomicU64>();
        if !word.is_aligned() {
            return None;
        }
        // SAFETY: as in `words`.
        Some(unsafe { word.as_ref() })
    }

    /// The 32-bit word at `at`, if it is all there, and aligned.
    pub(crate) fn atomic_u32(self, at: usize) -> Option<&'a AtomicU32> {
        let word = self.span(at, size_of::<u32>())?.cast::<AtomicU32>();
        if !word.is_aligned() {
            return None;
        }
        // SAFETY: as in `words`.
        Some(unsafe { word.as_ref() })
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
        // SAFETY: `at` is at most the slice's length, so the result is inside
        // it or at its end.
        Some(unsafe { self.host.add(at) })
    }
}

impl<'a> From<&'a mut [u8]> for GuestSlice<'a> {
    /// Bytes of the host's in the place of a guest's, for tests.
    fn from(bytes: &'a mut [u8]) -> Self {
        let (len, memory) = (bytes.len(), PhantomData);
        let host = NonNull::from(bytes).cast();
        Self { host, len, memory }
    }
}

impl fmt::Debug for GuestSlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestSlice({} bytes)", self.len)
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
