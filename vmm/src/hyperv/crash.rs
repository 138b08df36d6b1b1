// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The crash MSRs: how a panicking guest tells its host why.
//!
//! Five parameters, then a write to the control register with the notify bit.
//! With the message bit P3 and P4 are address and length of a page that holds
//! the end of the kernel's log; without it they are registers.

use vm_memory::{Bytes, GuestAddress};

use crate::escape;
use crate::memory::GuestMemory;

/// `HV_X64_MSR_CRASH_P0`; the others follow.
pub const P0: u32 = 0x4000_0100;
/// `HV_X64_MSR_CRASH_CTL`.
pub const CTL: u32 = 0x4000_0105;

const NOTIFY: u64 = 1 << 63;
const MESSAGE: u64 = 1 << 62;
/// A message is at most a page, also as it is shown: what is escaped takes the place
/// of what came earlier.
const MAX_MESSAGE: u16 = 4096;

/// What a crashed guest told.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CrashReport {
    /// P0 to P4 as the guest wrote them.
    pub parameters: [u64; 5],
    /// The end of the guest's log, when it sent one, as it may be shown.
    pub message: Option<String>,
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
        memory: &GuestMemory,
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

    fn message(&self, memory: &GuestMemory) -> Option<String> {
        let [.., address, length] = self.parameters;
        let mut text = vec![0; usize::try_from(length.min(MAX_MESSAGE.into())).ok()?];
        memory.read_slice(&mut text, GuestAddress(address)).ok()?;
        let end = text.iter().rposition(|byte| *byte != 0)?;
        text.truncate(end.saturating_add(1));
        // The words end on somebody's terminal.
        Some(escape::tail(text, MAX_MESSAGE.into()))
    }
}

fn slot(index: u32) -> Option<usize> {
    usize::try_from(index.checked_sub(P0)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemory {
        crate::memory::map(4 << 20, false).unwrap()
    }

    #[test]
    fn a_message_is_taken_from_guest_memory() {
        let (memory, mut registers) = (memory(), CrashRegisters::default());
        memory
            .write_slice(b"Kernel panic\n\0\0", GuestAddress(0x5000))
            .unwrap();
        assert_eq!(registers.write(&memory, P0 + 3, 0x5000), Some(None));
        assert_eq!(registers.write(&memory, P0 + 4, 15), Some(None));
        let report = registers.write(&memory, CTL, 3 << 62).unwrap().unwrap();
        assert_eq!(report.message.as_deref(), Some("Kernel panic\n"));
        assert_eq!(report.parameters, [0, 0, 0, 0x5000, 15]);
    }

    #[test]
    fn a_message_that_is_nowhere_or_endless_is_left_out_or_cut() {
        let (memory, mut registers) = (memory(), CrashRegisters::default());
        for (address, length) in [(u64::MAX, 10), (0x3F_FFFF, 4096), (1 << 40, 1), (0, 0)] {
            registers.write(&memory, P0 + 3, address);
            registers.write(&memory, P0 + 4, length);
            let report = registers.write(&memory, CTL, 3 << 62).unwrap().unwrap();
            assert_eq!(report.message, None);
        }
        memory.write_slice(&[b'x'; 8192], GuestAddress(0)).unwrap();
        registers.write(&memory, P0 + 3, 0);
        registers.write(&memory, P0 + 4, u64::MAX);
        let report = registers.write(&memory, CTL, 3 << 62).unwrap().unwrap();
        assert_eq!(report.message.unwrap().len(), 4096);
    }

    #[test]
    fn no_bytes_make_a_message_longer_than_its_limit() {
        let (memory, mut registers) = (memory(), CrashRegisters::default());
        registers.write(&memory, P0 + 3, 0);
        registers.write(&memory, P0 + 4, 4096);
        // Not UTF-8; controls of two bytes each; a direction of three.
        for text in ["\u{9b}", "\u{202e}", "\u{1b}", "\u{e0001}"].map(str::as_bytes) {
            memory
                .write_slice(&text.repeat(4096 / text.len()), GuestAddress(0))
                .unwrap();
            let report = registers.write(&memory, CTL, 3 << 62).unwrap().unwrap();
            let shown = report.message.unwrap();
            assert!(shown.len() <= 4096 && shown.chars().all(escape::is_plain));
        }
        memory.write_slice(&[0xff; 4093], GuestAddress(0)).unwrap();
        memory.write_slice(b"end", GuestAddress(4093)).unwrap();
        let report = registers.write(&memory, CTL, 3 << 62).unwrap().unwrap();
        let shown = report.message.unwrap();
        assert!(
            shown.len() <= 4096 && shown.ends_with("\\xff\\xffend"),
            "{shown}"
        );
    }

    #[test]
    fn a_message_cannot_steer_a_terminal() {
        let (memory, mut registers) = (memory(), CrashRegisters::default());
        let text = "a\u{1b}]0;title\u{7}\r\u{9b}31m\tb\n".as_bytes();
        memory.write_slice(text, GuestAddress(0x5000)).unwrap();
        registers.write(&memory, P0 + 3, 0x5000);
        registers.write(&memory, P0 + 4, 100);
        let report = registers.write(&memory, CTL, 3 << 62).unwrap().unwrap();
        assert_eq!(
            report.message.as_deref(),
            Some("a\\u{1b}]0;title\\u{7}\\r\\u{9b}31m\tb\n")
        );
    }

    #[test]
    fn without_the_notify_bit_nothing_happens() {
        assert_eq!(
            CrashRegisters::default().write(&memory(), CTL, 1 << 62),
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
