// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control words of a ring, as few operations with their ordering
//! (protocol 5.1 and 5.7).
//!
//! The index protocol is written against [`Words`], so that it runs on guest
//! memory and under loom alike.

use std::sync::atomic::{Ordering, fence};

use crate::memory::ControlBlock;

/// The words that writer and reader share.
pub(crate) trait Words {
    /// Acquire: the packets up to this index can be read.
    fn write_index(&self) -> u32;
    /// Release: the packets up to this index were written.
    fn set_write_index(&self, index: u32);
    /// Acquire: the space up to this index can be written.
    fn read_index(&self) -> u32;
    /// Release: the packets up to this index were read.
    fn set_read_index(&self, index: u32);
    fn interrupt_mask(&self) -> u32;
    fn set_interrupt_mask(&self, mask: u32);
    fn pending_send_sz(&self) -> u32;
    fn set_pending_send_sz(&self, size: u32);
    /// A full barrier: earlier stores are seen before later loads are made.
    fn barrier(&self);
}

impl Words for ControlBlock {
    #[inline]
    fn write_index(&self) -> u32 {
        u32::from_le(self.write_index.load(Ordering::Acquire))
    }

    #[inline]
    fn set_write_index(&self, index: u32) {
        self.write_index.store(index.to_le(), Ordering::Release);
    }

    #[inline]
    fn read_index(&self) -> u32 {
        u32::from_le(self.read_index.load(Ordering::Acquire))
    }

    #[inline]
    fn set_read_index(&self, index: u32) {
        self.read_index.store(index.to_le(), Ordering::Release);
    }

    #[inline]
    fn interrupt_mask(&self) -> u32 {
        self.interrupt_mask.load(Ordering::Acquire)
    }

    #[inline]
    fn set_interrupt_mask(&self, mask: u32) {
        self.interrupt_mask.store(mask.to_le(), Ordering::Release);
    }

    #[inline]
    fn pending_send_sz(&self) -> u32 {
        u32::from_le(self.pending_send_sz.load(Ordering::Acquire))
    }

    #[inline]
    fn set_pending_send_sz(&self, size: u32) {
        self.pending_send_sz.store(size.to_le(), Ordering::Release);
    }

    #[inline]
    fn barrier(&self) {
        fence(Ordering::SeqCst);
    }
}
