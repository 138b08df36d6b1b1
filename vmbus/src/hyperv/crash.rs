// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The crash MSRs: how a panicking guest tells its host why.
//!
//! Five parameters, then a write to the control register with the notify bit.
//! With the message bit P3 and P4 are address and length of a page that holds
//! the end of the kernel's log; without it they are registers.

use crate::memory::GuestMemory;

/// `HV_X64_MSR_CRASH_P0`; the others follow.
pub(super) const P0: u32 = 0x4000_0100;
/// `HV_X64_MSR_CRASH_CTL`.
pub(super) const CTL: u32 = 0x4000_0105;

const NOTIFY: u64 = 1 << 63;
const MESSAGE: u64 = 1 << 62;
/// A message is at most a page.
const MAX_MESSAGE: u64 = 4096;

/// What a crashed guest told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashReport {
    /// P0 to P4 as the guest wrote them.
    pub parameters: [u64; 5],
    /// The end of the guest's log, when it sent one: at most a page of bytes of the
    /// guest's choice. Whoever shows them sees to it that they cannot steer a terminal.
    pub message: Option<Vec<u8>>,
}

/// The registers' state.
#[derive(Debug, Default)]
pub struct CrashRegisters {
    parameters: [u64; 5],
}

impl CrashRegisters {
    /// Reads one of the registers; `None` if it is none of them.
    pub fn read(&self, index: u32) -> Option<u64> {
        if index == CTL {
            // What the host can take: a notification with a message.
            return Some(NOTIFY | MESSAGE);
        }
        self.parameters.get(slot(index)?).copied()
    }

    /// Writes one of the registers. The outer `None` means that it is none of
    /// them; a report means that the guest has crashed.
    pub fn write(
        &mut self,
        memory: &dyn GuestMemory,
        index: u32,
        value: u64,
    ) -> Option<Option<CrashReport>> {
        if index == CTL {
            return Some((value & NOTIFY != 0).then(|| {
                CrashReport {
                    parameters: self.parameters,
                    message: (value & MESSAGE != 0)
                        .then(|| self.message(memory))
                        .flatten(),
                }
            }));
        }
        *self.parameters.get_mut(slot(index)?)? = value;
        Some(None)
    }

    fn message(&self, memory: &dyn GuestMemory) -> Option<Vec<u8>> {
        let [.., address, length] = self.parameters;
        let mut text = vec![0; usize::try_from(length.min(MAX_MESSAGE)).ok()?];
        if !memory.read(address, &mut text) {
            return None;
        }
        let end = text.iter().rposition(|byte| *byte != 0)?;
        text.truncate(end.saturating_add(1));
        Some(text)
    }
}

fn slot(index: u32) -> Option<usize> {
    usize::try_from(index.checked_sub(P0)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    fn memory() -> Box<dyn GuestMemory> {
        let ranges = [(GuestAddress(0), 4 << 20)];
        Box::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap())
    }

    #[test]
    fn a_message_is_taken_from_guest_memory() {
        let (memory, mut registers) = (memory(), CrashRegisters::default());
        assert!(memory.write(0x5000, b"Kernel panic\n\0\0"));
        assert_eq!(registers.write(&*memory, P0 + 3, 0x5000), Some(None));
        assert_eq!(registers.write(&*memory, P0 + 4, 15), Some(None));
        let report = registers.write(&*memory, CTL, 3 << 62).unwrap().unwrap();
        assert_eq!(report.message.as_deref(), Some(&b"Kernel panic\n"[..]));
        assert_eq!(report.parameters, [0, 0, 0, 0x5000, 15]);
    }

    #[test]
    fn a_message_that_is_nowhere_or_endless_is_left_out_or_cut() {
        let (memory, mut registers) = (memory(), CrashRegisters::default());
        for (address, length) in [(u64::MAX, 10), (0x3F_FFFF, 4096), (1 << 40, 1), (0, 0)] {
            registers.write(&*memory, P0 + 3, address);
            registers.write(&*memory, P0 + 4, length);
            let report = registers.write(&*memory, CTL, 3 << 62).unwrap().unwrap();
            assert_eq!(report.message, None);
        }
        assert!(memory.write(0, &[b'x'; 8192]));
        registers.write(&*memory, P0 + 3, 0);
        registers.write(&*memory, P0 + 4, u64::MAX);
        let report = registers.write(&*memory, CTL, 3 << 62).unwrap().unwrap();
        assert_eq!(report.message.unwrap().len(), 4096);
    }

    #[test]
    fn without_the_notify_bit_nothing_happens() {
        assert_eq!(
            CrashRegisters::default().write(&*memory(), CTL, 1 << 62),
            Some(None)
        );
    }

    #[test]
    fn the_control_register_offers_messages() {
        assert_eq!(CrashRegisters::default().read(CTL), Some(3 << 62));
        assert_eq!(CrashRegisters::default().read(CTL + 1), None);
        assert_eq!(CrashRegisters::default().read(P0 - 1), None);
    }
}
