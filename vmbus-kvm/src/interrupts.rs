// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a SynIC's interrupts get to a vCPU.
//!
//! | SynIC | Interrupt | Slot is free again |
//! |---|---|---|
//! | KVM's | eventfd ─ irqfd ─► route to {VP, SINT 2} | any EOM write ─► resample eventfd |
//! | this process' | `KVM_SIGNAL_MSI` to the VP's APIC | the EOM write is ours to see |
//!
//! One resample eventfd serves all VPs: EOM is written seldom, only when more
//! than one message was waiting, and it costs little to look at each queue.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_HYPERV_SYNIC2, KVM_CAP_X2APIC_API, KVM_IRQ_ROUTING_HV_SINT,
    KVM_X2APIC_API_USE_32BIT_IDS, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_hv_sint, kvm_msi,
};
use vmbus::wire::Sint;
use vmm_sys_util::eventfd::EventFd;

use crate::error::Doing;
use crate::hyperv::VmHandle;
use crate::{KvmError, Mode, sys};

/// Where MSIs are written to.
pub const MSI_BASE: u32 = 0xFEE0_0000;
/// Bits of an APIC id in the low half of an MSI's address.
const MSI_LOW_ID: u32 = 0xFF;
/// With more VPs than this some have an APIC id that an MSI cannot name without help.
const LARGE_APIC_ID: u32 = 255;

/// Interrupt lines of KVM's SynIC: one for each VP's SINT 2.
pub(crate) struct SintLines {
    lines: Vec<EventFd>,
    /// Written when a guest has written EOM.
    pub(crate) end_of_message: Arc<EventFd>,
}

impl SintLines {
    /// The lines of `cpus` VPs, which lead nowhere yet.
    pub(crate) fn new(cpus: u32) -> Result<Self, KvmError> {
        Ok(Self {
            lines: (0..cpus).map(|_| eventfd()).collect::<Result<_, _>>()?,
            end_of_message: Arc::new(eventfd()?),
        })
    }

    /// The routes from interrupts `first` and on to the VPs.
    pub(crate) fn routes(&self, first: u32) -> Vec<kvm_irq_routing_entry> {
        let vps = (0..).zip(&self.lines);
        vps.map(|(vp, _)| sint_route(first.saturating_add(vp), vp))
            .collect()
    }

    /// Wires them to the VPs, on all of which the SynIC is enabled, by routes that the
    /// VM has. What was raised before is seen then. It takes a while: KVM waits for all
    /// that look at its routes.
    pub(crate) fn wire(&self, vm: &VmHandle, first: u32) -> Result<(), KvmError> {
        for (vp, line) in (0u32..).zip(&self.lines) {
            sys::register_irqfd(vm, line, &self.end_of_message, first.saturating_add(vp))
                .doing("wiring a SynIC's interrupt")?;
        }
        Ok(())
    }

    /// Raises SINT 2 of a VP.
    pub(crate) fn raise(&self, vp: u32) {
        let line = usize::try_from(vp).ok().and_then(|vp| self.lines.get(vp));
        if let Some(Err(error)) = line.map(|line| line.write(1)) {
            log::warn!("SynIC of VP {vp}: {error}");
        }
    }
}

/// Enables the SynIC of a vCPU, unless the mode has none in KVM: before any interrupt is
/// routed to it, and before the guest runs.
pub fn enable_synic(vcpu: &impl AsRawFd, mode: Mode) -> Result<(), KvmError> {
    if mode.has_kvms_hypercalls() {
        sys::enable_cap(vcpu, KVM_CAP_HYPERV_SYNIC2, 0).doing("enabling a vCPU's SynIC")?;
    }
    Ok(())
}

/// Lets MSIs name the APIC ids of so many VPs, if some are above 255.
pub(crate) fn allow_large_apic_ids(vm: &VmHandle, cpus: u32) -> Result<(), KvmError> {
    if cpus > LARGE_APIC_ID {
        sys::enable_cap(vm, KVM_CAP_X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS.into())
            .doing("enabling 32-bit APIC ids")?;
    }
    Ok(())
}

/// Sends a vector to the APIC with the number of a VP.
pub(crate) fn send_msi(vm: &VmHandle, vp: u32, vector: u8) {
    let msi = kvm_msi {
        address_lo: MSI_BASE | ((vp & MSI_LOW_ID) << 12),
        // Only meant as an id once large ids have been allowed, and zero before.
        address_hi: vp & !MSI_LOW_ID,
        data: vector.into(),
        ..kvm_msi::default()
    };
    if let Err(error) = sys::signal_msi(vm, &msi) {
        log::debug!("interrupt {vector:#x} to VP {vp}: {error}");
    }
}

fn sint_route(gsi: u32, vp: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_HV_SINT,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            hv_sint: kvm_irq_routing_hv_sint {
                vcpu: vp,
                sint: Sint::VMBUS.number().into(),
            },
        },
        ..kvm_irq_routing_entry::default()
    }
}

fn eventfd() -> Result<EventFd, KvmError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(KvmError::Eventfd)
}
