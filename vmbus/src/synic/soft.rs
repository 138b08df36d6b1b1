// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A complete SynIC in software, for hosts whose hypervisor has none.
//!
//! Feed it the guest's accesses to the MSRs 0x40000080 to 0x4000009F (protocol
//! 1.6 and 3.7), post messages and signal events, and deliver the interrupts
//! that it asks for.
//!
//! ```text
//!   SCONTROL, SIMP, SIEFP, SINTx ──► what is open ──► VpSynic ──► Interrupt{vp, vector}
//!   EOM ──────────────────────────► next message
//! ```

use std::collections::VecDeque;

use super::{SynicError, SynicMessage, SynicRegs, VpSynic};
use crate::memory::GuestMemory;
use crate::wire::{Payload, Sint, VpIndex};

/// The MSRs of the SynIC.
pub mod msr {
    /// Bit 0 enables the SynIC of this processor.
    pub const SCONTROL: u32 = 0x4000_0080;
    /// Version, read-only.
    pub const SVERSION: u32 = 0x4000_0081;
    /// Event-flags page.
    pub const SIEFP: u32 = 0x4000_0082;
    /// Message page.
    pub const SIMP: u32 = 0x4000_0083;
    /// End of message.
    pub const EOM: u32 = 0x4000_0084;
    /// The first of sixteen interrupt sources.
    pub const SINT0: u32 = 0x4000_0090;
    /// The last of sixteen interrupt sources.
    pub const SINT15: u32 = 0x4000_009f;
}

/// What SVERSION reads as.
const VERSION: u64 = 1;

/// The access is an error: the guest gets #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MsrFault {
    /// The MSR is not one of the SynIC's: another part of the host may know it.
    #[error("MSR {0:#x} is not one of the SynIC's")]
    NotOurs(u32),
    /// The MSR is ours, but cannot be written, or not with this value.
    #[error("MSR {0:#x} cannot take this value")]
    BadWrite(u32),
}

/// What the host is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SynicAction {
    /// Interrupt a virtual processor, edge-triggered, fixed delivery.
    Interrupt {
        /// Which one.
        vp: VpIndex,
        /// From which source.
        sint: Sint,
        /// With which vector.
        vector: u8,
        /// The handler will not write EOI: the host must see to it. A host that
        /// cannot should set the "auto-EOI deprecated" hint (protocol 1.5).
        auto_eoi: bool,
    },
}

/// A SINT register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SintReg(u64);

impl SintReg {
    const RESET: Self = Self(1 << 16);
    /// Vectors below are exceptions, which no interrupt can have.
    const FIRST_VECTOR: u8 = 16;

    fn vector(self) -> u8 {
        let [vector, ..] = self.0.to_le_bytes();
        vector
    }

    fn masked(self) -> bool {
        self.0 & (1 << 16) != 0
    }

    fn auto_eoi(self) -> bool {
        self.0 & (1 << 17) != 0
    }

    /// The guest looks by itself and wants no interrupt.
    fn polling(self) -> bool {
        self.0 & (1 << 18) != 0
    }

    fn is_valid(self) -> bool {
        self.masked() || self.polling() || self.vector() >= Self::FIRST_VECTOR
    }
}

#[derive(Debug)]
struct Vp {
    sints: [SintReg; Sint::COUNT as usize],
    sender: VpSynic,
}

impl Vp {
    fn new() -> Self {
        Self {
            sints: [SintReg::RESET; Sint::COUNT as usize],
            sender: VpSynic::new(0),
        }
    }

    fn sint(&self, sint: Sint) -> SintReg {
        let reg = self.sints.get(usize::from(sint.number()));
        reg.copied().unwrap_or(SintReg::RESET)
    }

    fn open_sints(&self) -> u16 {
        Sint::all()
            .filter(|sint| !self.sint(*sint).masked())
            .fold(0, |mask, sint| mask | 1 << sint.number())
    }
}

/// The SynICs of all virtual processors of a VM.
///
/// Four kinds of calls, in this order whenever something happens:
/// 1. the guest did something: [`read_msr`](Self::read_msr), [`write_msr`](Self::write_msr);
/// 2. the host wants something: [`post_message`](Self::post_message),
///    [`signal_event`](Self::signal_event), [`discard_messages`](Self::discard_messages);
/// 3. [`poll_action`](Self::poll_action) until there is nothing left;
/// 4. [`reset`](Self::reset) when the machine is reset.
///
/// # Example
/// ```
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
/// use vmbus::synic::{SoftSynic, SynicAction, msr};
/// use vmbus::wire::{Payload, Sint, VpIndex};
///
/// let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)])?;
/// let mut synic = SoftSynic::new(1);
/// let vp = VpIndex(0);
///
/// // What Linux writes when hv_vmbus is loaded.
/// synic.write_msr(&mem, vp, msr::SIMP, 0x8001)?;
/// synic.write_msr(&mem, vp, msr::SIEFP, 0x9001)?;
/// synic.write_msr(&mem, vp, msr::SINT0 + 2, 0xf3)?;
/// synic.write_msr(&mem, vp, msr::SCONTROL, 1)?;
///
/// let payload = Payload::new(&[4, 0, 0, 0, 0, 0, 0, 0]).unwrap();
/// synic.post_message(&mem, vp, Sint::VMBUS, 1, payload)?;
/// assert!(matches!(
///     synic.poll_action(),
///     Some(SynicAction::Interrupt { vector: 0xf3, .. })
/// ));
/// let message_type: u32 = mem.read_obj(GuestAddress(0x8200))?;
/// assert_eq!(message_type, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SoftSynic {
    vps: Vec<Vp>,
    actions: VecDeque<SynicAction>,
}

impl SoftSynic {
    /// SynICs for the virtual processors 0 to `vps` - 1.
    pub fn new(vps: u32) -> Self {
        Self {
            vps: (0..vps).map(|_| Vp::new()).collect(),
            actions: VecDeque::new(),
        }
    }

    /// Whether accesses to MSR `index` belong here.
    pub const fn owns_msr(index: u32) -> bool {
        matches!(index, msr::SCONTROL..=msr::EOM | msr::SINT0..=msr::SINT15)
    }

    /// What the guest reads from an MSR; `None` if it is not ours.
    pub fn read_msr(&self, vp: VpIndex, index: u32) -> Option<u64> {
        let vp = self.vps.get(usize::try_from(vp.0).ok()?)?;
        let regs = vp.sender.regs();
        Some(match index {
            msr::SCONTROL => regs.scontrol,
            msr::SVERSION => VERSION,
            msr::SIEFP => regs.siefp,
            msr::SIMP => regs.simp,
            msr::EOM => 0,
            _ => vp.sint(sint_of(index)?).0,
        })
    }

    /// The guest writes an MSR. On error it gets #GP, unless the MSR is not
    /// ours and another part of the host knows it.
    pub fn write_msr(
        &mut self,
        mem: &dyn GuestMemory,
        vp: VpIndex,
        index: u32,
        value: u64,
    ) -> Result<(), MsrFault> {
        if !Self::owns_msr(index) {
            return Err(MsrFault::NotOurs(index));
        }
        let at = vp;
        let vp = self.vp(at).map_err(|_| MsrFault::BadWrite(index))?;
        let regs = vp.sender.regs();
        let set = |vp: &mut Vp, regs| vp.sender.set_regs(mem, regs);
        match index {
            msr::SCONTROL => set(
                vp,
                SynicRegs {
                    scontrol: value,
                    ..regs
                },
            ),
            msr::SIEFP => set(
                vp,
                SynicRegs {
                    siefp: value,
                    ..regs
                },
            ),
            msr::SIMP => set(
                vp,
                SynicRegs {
                    simp: value,
                    ..regs
                },
            ),
            msr::EOM => vp.sender.end_of_message(mem),
            _ => {
                let reg = SintReg(value);
                let register = sint_of(index)
                    .filter(|_| reg.is_valid())
                    .and_then(|sint| vp.sints.get_mut(usize::from(sint.number())))
                    .ok_or(MsrFault::BadWrite(index))?;
                *register = reg;
                let open = vp.open_sints();
                vp.sender.set_open_sints(mem, open);
            }
        }
        self.collect(at);
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
            self.vp(vp)?.sender.post(mem, message)?;
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
        self.vp(vp)?.sender.signal(mem, sint, flag)?;
        self.collect(vp);
        Ok(())
    }

    /// Messages that wait for the guest to read what is in the slot.
    pub fn queued_messages(&self, vp: VpIndex) -> usize {
        let vp = usize::try_from(vp.0).ok().and_then(|vp| self.vps.get(vp));
        vp.map_or(0, |vp| vp.sender.queued())
    }

    /// Forgets the messages that wait, on every processor: the session they
    /// belong to is over.
    pub fn discard_messages(&mut self) {
        for vp in &mut self.vps {
            vp.sender.discard_messages();
        }
    }

    /// The state after a reset of the machine.
    pub fn reset(&mut self) {
        self.vps.iter_mut().for_each(|vp| *vp = Vp::new());
        self.actions.clear();
    }

    /// What the host is to do next.
    pub fn poll_action(&mut self) -> Option<SynicAction> {
        self.actions.pop_front()
    }

    fn vp(&mut self, vp: VpIndex) -> Result<&mut Vp, SynicError> {
        usize::try_from(vp.0)
            .ok()
            .and_then(|vp| self.vps.get_mut(vp))
            .ok_or(SynicError::NoSuchVp)
    }

    /// Turns the SINTs that `at` raised into interrupts.
    fn collect(&mut self, at: VpIndex) {
        let Ok(vp) = self.vp(at) else { return };
        let raised = vp.sender.take_raised();
        if raised == 0 {
            return;
        }
        for sint in Sint::all().filter(|sint| raised & 1 << sint.number() != 0) {
            let Ok(vp) = self.vp(at) else { return };
            let reg = vp.sint(sint);
            let action = SynicAction::Interrupt {
                vp: at,
                sint,
                vector: reg.vector(),
                auto_eoi: reg.auto_eoi(),
            };
            // Interrupts that nobody has fetched yet would coalesce anyway.
            if !reg.polling() && !self.actions.contains(&action) {
                self.actions.push_back(action);
            }
        }
    }
}

fn sint_of(index: u32) -> Option<Sint> {
    let number = index.checked_sub(msr::SINT0)?;
    Sint::new(u8::try_from(number).ok()?)
}

#[cfg(test)]
mod tests;
