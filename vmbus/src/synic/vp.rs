// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One virtual processor's pages, its queue of messages and what is held back.
//!
//! ```text
//!   post ──► [queue] ──► slot of the SINT ──► raised
//!               ▲            │ busy: pending flag, then look once more
//!               └────────────┘ EOM, or a register that opens the way: pump
//! ```
//!
//! A message waits while the slot is busy, while SCONTROL or SIMP is off, or
//! while its SINT is masked. An event flag waits only for the latter two.
//! Order is kept over the whole processor, not only per SINT.

use std::collections::VecDeque;

use super::flags::{self, FLAGS_PER_SINT, HeldFlags};
use super::slot::{self, AREA_SIZE, GuestSlot};
use crate::memory::GuestMemory;
use crate::wire::{Payload, Sint};

/// The most messages that wait for one virtual processor.
///
/// The longest burst of an honest session is one offer per relid (2047), the
/// note that these were all, and the answers to what the guest posted in the
/// meantime. Twice the relids leaves room for a rescind of each. A guest that
/// does not empty its slot costs 1 MiB, no more.
pub const MAX_QUEUED_MESSAGES: usize = 4096;

/// A message on its way to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynicMessage {
    sint: Sint,
    message_type: u32,
    payload: Payload,
}

impl SynicMessage {
    /// A message, or `None` if `message_type` is 0, which means "no message".
    pub fn new(sint: Sint, message_type: u32, payload: Payload) -> Option<Self> {
        (message_type != 0).then_some(Self {
            sint,
            message_type,
            payload,
        })
    }

    /// A VMBus message for `sint`.
    pub const fn vmbus(sint: Sint, payload: Payload) -> Self {
        Self {
            sint,
            message_type: super::VMBUS_MESSAGE_TYPE,
            payload,
        }
    }

    /// Where it goes.
    pub const fn sint(&self) -> Sint {
        self.sint
    }

    /// What it is; never 0.
    pub const fn message_type(&self) -> u32 {
        self.message_type
    }

    /// What it says.
    pub const fn payload(&self) -> &Payload {
        &self.payload
    }
}

/// Why something cannot be sent. All of these are the host's doing, except a
/// full queue, which is a guest's that does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SynicError {
    /// There is no virtual processor with this index.
    #[error("there is no such virtual processor")]
    NoSuchVp,
    /// Event flags are numbered 0 to 2047.
    #[error("there is no such event flag")]
    NoSuchFlag,
    /// [`MAX_QUEUED_MESSAGES`] wait already. Try again when the guest wrote EOM.
    #[error("the guest's message queue is full")]
    QueueFull,
}

/// The three registers that say where a processor's pages are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynicRegs {
    /// MSR 0x40000080: bit 0 enables the whole.
    pub scontrol: u64,
    /// MSR 0x40000082: event-flags page, bit 0 enables.
    pub siefp: u64,
    /// MSR 0x40000083: message page, bit 0 enables.
    pub simp: u64,
}

impl SynicRegs {
    const ENABLE: u64 = 1;
    const PAGE: u64 = !0xfff;

    fn message_page(&self) -> Option<u64> {
        self.page(self.simp)
    }

    fn flags_page(&self) -> Option<u64> {
        self.page(self.siefp)
    }

    fn page(&self, register: u64) -> Option<u64> {
        let enabled = self.scontrol & register & Self::ENABLE != 0;
        enabled.then_some(register & Self::PAGE)
    }
}

/// The sending side of one virtual processor, whoever keeps its MSRs.
///
/// Calls that may send (`post`, `signal`, `end_of_message`, `set_regs`,
/// `set_open_sints`) are followed by [`VpSynic::take_raised`].
#[derive(Debug)]
pub struct VpSynic {
    regs: SynicRegs,
    /// Bit n: SINT n is not masked.
    open_sints: u16,
    queue: VecDeque<SynicMessage>,
    held: HeldFlags,
    /// Bit n: SINT n is to be raised.
    raised: u16,
}

impl VpSynic {
    /// A processor after reset, with the SINTs of the mask `open_sints` open.
    pub fn new(open_sints: u16) -> Self {
        Self {
            regs: SynicRegs::default(),
            open_sints,
            queue: VecDeque::new(),
            held: HeldFlags::default(),
            raised: 0,
        }
    }

    /// The registers as last set.
    pub fn regs(&self) -> SynicRegs {
        self.regs
    }

    /// Takes new register values and sends what they open the way for.
    pub fn set_regs(&mut self, mem: &dyn GuestMemory, regs: SynicRegs) {
        self.regs = regs;
        self.pump(mem);
    }

    /// Takes a new mask of open SINTs and sends what it opens the way for.
    pub fn set_open_sints(&mut self, mem: &dyn GuestMemory, open: u16) {
        self.open_sints = open;
        self.pump(mem);
    }

    /// Sends `message`, now or as soon as the guest lets us.
    pub fn post(&mut self, mem: &dyn GuestMemory, message: SynicMessage) -> Result<(), SynicError> {
        if self.queue.len() >= MAX_QUEUED_MESSAGES {
            return Err(SynicError::QueueFull);
        }
        self.queue.push_back(message);
        // With others before it, the guest's EOM is what moves the queue on.
        if self.queue.len() == 1 {
            self.pump_messages(mem);
        }
        Ok(())
    }

    /// Sets event flag `flag` of `sint`, now or as soon as the guest lets us.
    pub fn signal(
        &mut self,
        mem: &dyn GuestMemory,
        sint: Sint,
        flag: u16,
    ) -> Result<(), SynicError> {
        if flag >= FLAGS_PER_SINT {
            return Err(SynicError::NoSuchFlag);
        }
        let (index, bits) = flags::position(flag);
        let set = self
            .regs
            .flags_page()
            .filter(|_| self.is_open(sint))
            .and_then(|page| flags::set_bits(mem, page, sint, index, bits));
        match set {
            Some(0) => {}
            Some(_) => self.raise(sint),
            None => self.held.hold(sint, flag),
        }
        Ok(())
    }

    /// The guest wrote EOM: a slot may be free.
    pub fn end_of_message(&mut self, mem: &dyn GuestMemory) {
        self.pump_messages(mem);
    }

    /// Messages that wait.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Forgets the messages that wait (a new session began, or the old one ended).
    pub fn discard_messages(&mut self) {
        // Not `clear`, which keeps the memory of a flood.
        self.queue = VecDeque::new();
    }

    /// Forgets everything but which SINTs are open.
    pub fn reset(&mut self) {
        *self = Self::new(self.open_sints);
    }

    /// Takes the mask of SINTs to raise.
    pub fn take_raised(&mut self) -> u16 {
        std::mem::take(&mut self.raised)
    }

    fn is_open(&self, sint: Sint) -> bool {
        self.open_sints & bit(sint) != 0
    }

    fn raise(&mut self, sint: Sint) {
        self.raised |= bit(sint);
    }

    fn pump(&mut self, mem: &dyn GuestMemory) {
        self.pump_messages(mem);
        self.pump_flags(mem);
    }

    fn pump_messages(&mut self, mem: &dyn GuestMemory) {
        let Some(page) = self.regs.message_page() else {
            return;
        };
        while let Some(message) = self.queue.front() {
            let sint = message.sint();
            if !self.is_open(sint) {
                return;
            }
            let Some(slot) = GuestSlot::new(mem, page, sint) else {
                return;
            };
            let delivered = slot::deliver(&slot, message, self.queue.len() > 1);
            if let Some(address) = slot::address(page, sint) {
                mem.mark_dirty(address, usize::from(AREA_SIZE));
            }
            if !delivered {
                return;
            }
            self.queue.pop_front();
            self.raise(sint);
        }
    }

    fn pump_flags(&mut self, mem: &dyn GuestMemory) {
        let Some(page) = self.regs.flags_page() else {
            return;
        };
        let open = self.open_sints;
        for (sint, words) in self.held.take(|sint| open & bit(sint) != 0) {
            let held = (0..).zip(words.iter()).filter(|(_, bits)| **bits != 0);
            let mut fresh = false;
            for (index, &bits) in held {
                // A page outside memory swallows the flags, as hardware would.
                fresh |= flags::set_bits(mem, page, sint, index, bits).is_some_and(|new| new != 0);
            }
            if fresh {
                self.raise(sint);
            }
        }
    }
}

fn bit(sint: Sint) -> u16 {
    1 << sint.number()
}

#[cfg(test)]
mod tests;
