// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory as the bus needs it, and the only unsafe code of the crate.
//!
//! ```text
//!  embedder's memory ──(GuestMemory)──► host_address, mark_dirty
//!        │
//!        ├─ synic, gpadl: one word, one message, "is this memory?"   [`dyn GuestMemory`]
//!        └─ rings: a list of pages, resolved once when a channel opens    [`pages`]
//!                       └─ contiguous bytes of it                      [`GuestSlice`]
//! ```
//!
//! The bus names no version of any crate of guest memory: an embedder implements
//! [`GuestMemory`] for what it has, which takes one method, or uses the feature
//! `vm-memory`, which implements it for `vm_memory::GuestMemoryMmap` of 0.18 (and of
//! 0.17.2 and newer 0.17, which are the same types).
//!
//! # Memory that changes
//! A VMM that adds memory while the guest runs makes a new memory object and gives
//! it to [`Host::set_memory`](crate::host::Host::set_memory). Channels that are open
//! keep the object that they were opened in; it is dropped with the last of them.
//!
//! # Dirty pages
//! A VMM that logs the pages it writes itself, for a snapshot or a migration,
//! implements [`GuestMemory::mark_dirty`]. Messages and event flags are marked when
//! they are written. Rings are written through addresses resolved beforehand, and
//! marking each packet would cost more than the packet: before the log is read,
//! [`Host::mark_rings_dirty`](crate::host::Host::mark_rings_dirty) marks the pages of
//! open rings, and a channel that closes marks its own.

mod pages;
mod slice;
#[cfg(any(test, feature = "vm-memory"))]
mod vm_memory;

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

pub use pages::MapError;
pub(crate) use pages::{ControlBlock, GuestPages};
pub use slice::GuestSlice;

/// Bytes of a page of the bus, whatever the host's pages are.
pub(crate) const PAGE_SIZE: usize = 4096;

/// The memory of a guest, as a VMM has it.
///
/// # Example
/// A VMM with one mapping that it made itself:
/// ```
/// use std::ptr::NonNull;
/// use vmbus::memory::GuestMemory;
///
/// struct OneMapping { start: NonNull<u8>, size: usize }
/// // SAFETY: what `start` leads to belongs to no thread.
/// unsafe impl Send for OneMapping {}
/// // SAFETY: as above.
/// unsafe impl Sync for OneMapping {}
///
/// // SAFETY: `size` bytes are mapped at `start` until the value is dropped, and the
/// // VMM makes no references to them.
/// unsafe impl GuestMemory for OneMapping {
///     fn host_address(&self, address: u64, len: usize) -> Option<NonNull<u8>> {
///         let at = usize::try_from(address).ok()?;
///         let end = at.checked_add(len)?;
///         // SAFETY: `at` lies within the mapping.
///         (end <= self.size).then(|| unsafe { self.start.add(at) })
///     }
/// }
/// # // A mapping of two pages.
/// # let layout = std::alloc::Layout::from_size_align(8192, 4096)?;
/// # // SAFETY: the layout is not empty.
/// # let start = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).unwrap();
/// # let memory = OneMapping { start, size: 8192 };
/// let memory: &dyn GuestMemory = &memory;
/// assert!(memory.write(4094, &[1, 2, 3]));
/// let mut bytes = [0; 2];
/// assert!(memory.read(4095, &mut bytes));
/// assert_eq!(bytes, [2, 3]);
/// assert!(!memory.write(8191, &[1, 2]), "that is not all memory");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Safety
/// When [`host_address`](Self::host_address) gives an address, `len` bytes from
/// there on are mapped in this process, readable and writable, for as long as the
/// value lives, wherever it is moved. Nobody makes references to them other than to
/// atomics: guest and host may write there at any time.
pub unsafe trait GuestMemory: Send + Sync {
    /// Where the `len` bytes of guest memory from `address` on are in this process,
    /// if all of them are memory and lie together. Bytes within one page of 4 KiB
    /// do, wherever there is memory.
    fn host_address(&self, address: u64, len: usize) -> Option<NonNull<u8>>;

    /// The bus has written, or may have, `len` bytes from `address` on.
    fn mark_dirty(&self, address: u64, len: usize) {
        let _ = (address, len);
    }
}

impl dyn GuestMemory + '_ {
    /// The `len` bytes from `address` on, if they lie together.
    pub fn slice(&self, address: u64, len: usize) -> Option<GuestSlice<'_>> {
        let host = self.host_address(address, len)?;
        // SAFETY: so much the trait's implementor vouches for, and `self` is
        // borrowed for as long as the slice.
        Some(unsafe { GuestSlice::new(host, len) })
    }

    /// Copies from `address` on into `to`; false, and something in `to`, if not all
    /// of it is memory.
    pub fn read(&self, address: u64, to: &mut [u8]) -> bool {
        let mut rest = &mut *to;
        let mut at = address;
        while !rest.is_empty() {
            let len = within_page(at, rest.len());
            let Some((now, later)) = rest.split_at_mut_checked(len) else {
                return false;
            };
            let slice = self.slice(at, len);
            if !slice.is_some_and(|slice| slice.read(0, now)) {
                return false;
            }
            let Some(next) = at.checked_add(len as u64) else {
                return later.is_empty();
            };
            (rest, at) = (later, next);
        }
        true
    }

    /// Copies `from` to `address` on; false, and perhaps a part of it copied, if not
    /// all of that is memory.
    pub fn write(&self, address: u64, from: &[u8]) -> bool {
        let mut rest = from;
        let mut at = address;
        while !rest.is_empty() {
            let len = within_page(at, rest.len());
            let Some((now, later)) = rest.split_at_checked(len) else {
                return false;
            };
            let slice = self.slice(at, len);
            if !slice.is_some_and(|slice| slice.write(0, now)) {
                return false;
            }
            self.mark_dirty(at, len);
            let Some(next) = at.checked_add(len as u64) else {
                return later.is_empty();
            };
            (rest, at) = (later, next);
        }
        true
    }

    /// Whether the page with this number is memory.
    pub(crate) fn is_page(&self, pfn: u64) -> bool {
        page_address(pfn).is_some_and(|start| self.host_address(start, PAGE_SIZE).is_some())
    }

    /// The word at `address`, if it is one.
    pub(crate) fn atomic_u64(&self, address: u64) -> Option<&AtomicU64> {
        self.slice(address, 8)?.atomic_u64(0)
    }
}

impl fmt::Debug for dyn GuestMemory + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuestMemory")
    }
}

/// Where the page with this number begins.
pub(crate) fn page_address(pfn: u64) -> Option<u64> {
    pfn.checked_mul(PAGE_SIZE as u64)
}

/// As many of `len` bytes from `address` on as are in its page.
fn within_page(address: u64, len: usize) -> usize {
    let page = PAGE_SIZE as u64;
    let here = page - address % page;
    usize::try_from(here).map_or(len, |here| here.min(len))
}

#[cfg(test)]
mod tests;
