// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sending side for a hypervisor that keeps the SynIC's MSRs itself.
//!
//! KVM's in-kernel SynIC (protocol 3.3) owns the registers and injects the
//! interrupts, but writes no messages of the bus. It tells user space the values
//! of SCONTROL, SIEFP and SIMP when the guest writes one of them, and of an EOM
//! through a resample notification. SINT registers stay unknown: injecting into
//! a masked one fails silently, and Linux programs them first.
//!
//! ```text
//!   exit: SCONTROL, SIEFP, SIMP ──► set_regs ─┐
//!   resample notification ────────► end_of_message ─► VpSynic ──► RaiseSint{vp, sint}
//! ```

use std::collections::VecDeque;

use super::{SynicError, SynicMessage, SynicRegs, VpSynic};
use crate::memory::GuestMemory;
use crate::wire::{Payload, Sint, VpIndex};

/// The host is to raise this source, for example through its irqfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaiseSint {
    /// Of which processor.
    pub vp: VpIndex,
    /// Which source.
    pub sint: Sint,
}

/// Message queues and pages of all virtual processors, without their MSRs.
///
/// The same calls as [`SoftSynic`](super::SoftSynic), with
/// [`set_regs`](Self::set_regs) and [`end_of_message`](Self::end_of_message) in
/// the place of MSR accesses.
///
/// # Example
/// ```
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
/// use vmbus::synic::{ExternalSynic, RaiseSint, SynicRegs};
/// use vmbus::wire::{Sint, VpIndex};
///
/// let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)])?;
/// let mut synic = ExternalSynic::new(1);
/// let vp = VpIndex(0);
///
/// // Too early: held until the guest has named its pages.
/// synic.signal_event(&mem, vp, Sint::VMBUS, 7)?;
/// assert_eq!(synic.poll_action(), None);
///
/// let regs = SynicRegs { scontrol: 1, siefp: 0x9001, simp: 0x8001 };
/// synic.set_regs(&mem, vp, regs)?;
/// assert_eq!(synic.poll_action(), Some(RaiseSint { vp, sint: Sint::VMBUS }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ExternalSynic {
    vps: Vec<VpSynic>,
    raised: VecDeque<RaiseSint>,
}

impl ExternalSynic {
    /// Queues for the virtual processors 0 to `vps` - 1.
    pub fn new(vps: u32) -> Self {
        Self {
            vps: (0..vps).map(|_| VpSynic::new(u16::MAX)).collect(),
            raised: VecDeque::new(),
        }
    }

    /// The guest wrote SCONTROL, SIEFP or SIMP of `vp`.
    pub fn set_regs(
        &mut self,
        mem: &dyn GuestMemory,
        vp: VpIndex,
        regs: SynicRegs,
    ) -> Result<(), SynicError> {
        self.vp(vp)?.set_regs(mem, regs);
        self.collect(vp);
        Ok(())
    }

    /// The guest wrote EOM on `vp`, or may have.
    pub fn end_of_message(&mut self, mem: &dyn GuestMemory, vp: VpIndex) -> Result<(), SynicError> {
        self.vp(vp)?.end_of_message(mem);
        self.collect(vp);
        Ok(())
    }

    /// Sends a message of type `message_type` to `sint` of `vp`.
    ///
    /// # Errors
    /// [`SynicError::QueueFull`] if the guest does not read; the message was not taken.
    pub fn post_message(
        &mut self,
        mem: &dyn GuestMemory,
        vp: VpIndex,
        sint: Sint,
        message_type: u32,
        payload: Payload,
    ) -> Result<(), SynicError> {
        // A message of type "none" is no message.
        if let Some(message) = SynicMessage::new(sint, message_type, payload) {
            self.vp(vp)?.post(mem, message)?;
            self.collect(vp);
        }
        Ok(())
    }

    /// Sets event flag `flag` of `sint` of `vp`.
    pub fn signal_event(
        &mut self,
        mem: &dyn GuestMemory,
        vp: VpIndex,
        sint: Sint,
        flag: u16,
    ) -> Result<(), SynicError> {
        self.vp(vp)?.signal(mem, sint, flag)?;
        self.collect(vp);
        Ok(())
    }

    /// Messages that wait for the guest to read what is in the slot.
    pub fn queued_messages(&self, vp: VpIndex) -> usize {
        let vp = usize::try_from(vp.0).ok().and_then(|vp| self.vps.get(vp));
        vp.map_or(0, VpSynic::queued)
    }

    /// Forgets the messages that wait, on every processor: the session they
    /// belong to is over.
    pub fn discard_messages(&mut self) {
        self.vps.iter_mut().for_each(VpSynic::discard_messages);
    }

    /// The state after a reset of the machine.
    pub fn reset(&mut self) {
        self.vps.iter_mut().for_each(VpSynic::reset);
        self.raised.clear();
    }

    /// What the host is to do next.
    pub fn poll_action(&mut self) -> Option<RaiseSint> {
        self.raised.pop_front()
    }

    fn vp(&mut self, vp: VpIndex) -> Result<&mut VpSynic, SynicError> {
        usize::try_from(vp.0)
            .ok()
            .and_then(|vp| self.vps.get_mut(vp))
            .ok_or(SynicError::NoSuchVp)
    }

    fn collect(&mut self, at: VpIndex) {
        let Ok(vp) = self.vp(at) else { return };
        let raised = vp.take_raised();
        for sint in Sint::all().filter(|sint| raised & 1 << sint.number() != 0) {
            let action = RaiseSint { vp: at, sint };
            // Interrupts that nobody has fetched yet would coalesce anyway.
            if !self.raised.contains(&action) {
                self.raised.push_back(action);
            }
        }
    }
}
