// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory of rust-vmm's crate `vm-memory`.

use std::ptr::NonNull;

use ::vm_memory::bitmap::Bitmap;
use ::vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::GuestMemory;

// SAFETY: a region is a mapping that is there until the region is dropped, and the
// collection neither drops regions nor gives them away while it is shared. All that
// vm-memory itself makes of it are volatile accesses. (With vm-memory's feature `xen`
// a region may be mapped only while it is accessed: its address is null then, and so
// is no memory here.)
unsafe impl<B: Bitmap + Send + Sync + 'static> GuestMemory for GuestMemoryMmap<B> {
    fn host_address(&self, address: u64, len: usize) -> Option<NonNull<u8>> {
        let slice = self.get_slice(GuestAddress(address), len).ok()?;
        NonNull::new(slice.ptr_guard_mut().as_ptr())
    }

    fn mark_dirty(&self, address: u64, len: usize) {
        if let Ok(slice) = self.get_slice(GuestAddress(address), len) {
            slice.bitmap().mark_dirty(0, len);
        }
    }
}
