// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A mock guest in memory that the guests of other inputs have used before it:
//! to make memory takes longer than most inputs.

use std::cell::Cell;
use std::fmt::Debug;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmbus::bus::BusConfig;
use vmbus::mock::MockGuest;

/// The size of a page.
pub const PAGE: u64 = 4096;

thread_local! {
    static SPARE: Cell<Option<Arc<GuestMemoryMmap>>> = const { Cell::new(None) };
}

/// A guest that leaves its memory to the next.
pub struct Guest {
    guest: Option<MockGuest>,
    spoilt: bool,
}

impl Guest {
    /// As [`MockGuest::new`].
    pub fn new(vps: u32) -> Self {
        let config = BusConfig {
            vps,
            ..BusConfig::default()
        };
        let guest = match SPARE.take() {
            Some(memory) => MockGuest::in_memory(memory, config),
            None => MockGuest::with_config(config),
        };
        Self {
            guest: Some(guest),
            spoilt: false,
        }
    }

    /// From now on anything may be written anywhere: nobody else gets the memory.
    pub fn spoil(&mut self) {
        self.spoilt = true;
    }
}

impl Deref for Guest {
    type Target = MockGuest;

    fn deref(&self) -> &MockGuest {
        self.guest.as_ref().expect("it is there until the end")
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut MockGuest {
        self.guest.as_mut().expect("it is there until the end")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let guest = self.guest.take().filter(|_| !self.spoilt);
        SPARE.set(guest.map(MockGuest::into_memory));
    }
}

/// Forgets what was reached until now, which all inputs reach: libFuzzer looks at
/// each place after each input.
pub fn forget_what_was_reached() {
    #[cfg(fuzzing)]
    {
        // SAFETY: the linker makes symbols of these names for a section of this
        // name, which the compiler's pass puts its counters into.
        unsafe extern "C" {
            static mut __start___sancov_cntrs: [u8; 0];
            static mut __stop___sancov_cntrs: [u8; 0];
        }
        let first: *mut u8 = std::hint::black_box((&raw mut __start___sancov_cntrs).cast());
        let len = (&raw const __stop___sancov_cntrs).addr() - first.addr();
        // SAFETY: the linker puts the two around the counters, which are plain
        // bytes that only this thread's code counts up.
        unsafe { first.write_bytes(0, len) };
    }
}

/// Makes these pages empty again.
pub fn wipe(memory: &impl Bytes<GuestAddress, E: Debug>, pages: Range<u64>) {
    for page in pages {
        let at = GuestAddress(page * PAGE);
        memory.write_slice(&[0; 4096], at).expect("in memory");
    }
}

/// A page that the next guest of this thread would not find empty.
pub fn dirty_page() -> Option<u64> {
    let memory = SPARE.take()?;
    let dirty = (0..memory.last_addr().0 / PAGE).find(|page| {
        let mut bytes = [0; 4096];
        let read = memory.read_slice(&mut bytes, GuestAddress(page * PAGE));
        read.is_err() || bytes != [0; 4096]
    });
    SPARE.set(Some(memory));
    dirty
}
