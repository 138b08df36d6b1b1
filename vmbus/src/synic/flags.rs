// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Event flags: 2048 bits per SINT that the host sets and the guest clears (protocol 3.7).
//!
//! A bit is set with one atomic OR. Only the change from 0 to 1 needs an
//! interrupt: a bit that is still set belongs to an interrupt whose handler has
//! not come to it yet.

use std::sync::atomic::Ordering;

use super::slot;
use crate::memory::GuestMemory;
use crate::wire::Sint;

/// Flags of one SINT.
pub(crate) const FLAGS_PER_SINT: u16 = 2048;
const WORD_BITS: u16 = 64;

/// Sets `bits` in word `index` of the flags of `sint` in the page at `page`.
/// Says which were clear before; `None` if the page is not memory.
pub(crate) fn set_bits(
    mem: &dyn GuestMemory,
    page: u64,
    sint: Sint,
    index: u16,
    bits: u64,
) -> Option<u64> {
    let address = slot::address(page, sint)?.checked_add(u64::from(index) * 8)?;
    let word = mem.atomic_u64(address)?;
    // Release: whoever sees the flag sees what it announces.
    let before = word.fetch_or(bits, Ordering::AcqRel);
    mem.mark_dirty(address, 8);
    Some(bits & !before)
}

/// The word and the bit of flag `flag`.
pub(crate) fn position(flag: u16) -> (u16, u64) {
    (flag / WORD_BITS, 1 << (flag % WORD_BITS))
}

/// Flags that wait until the guest has a page for them.
#[derive(Debug, Default)]
pub(crate) struct HeldFlags {
    /// Per SINT that has any, its 32 words: nothing is allocated for the rest.
    sints: Vec<(Sint, Box<[u64; 32]>)>,
}

impl HeldFlags {
    pub(crate) fn hold(&mut self, sint: Sint, flag: u16) {
        let (index, bit) = position(flag);
        let known = self.sints.iter().position(|(held, _)| *held == sint);
        let known = known.unwrap_or_else(|| {
            self.sints.push((sint, Box::new([0; 32])));
            self.sints.len() - 1
        });
        let word = self
            .sints
            .get_mut(known)
            .and_then(|(_, words)| words.get_mut(usize::from(index)));
        if let Some(word) = word {
            *word |= bit;
        }
    }

    /// Takes the flags of the sources that `open` admits.
    pub(crate) fn take(&mut self, open: impl Fn(Sint) -> bool) -> Vec<(Sint, Box<[u64; 32]>)> {
        self.sints.extract_if(.., |(sint, _)| open(*sint)).collect()
    }
}
