// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a SynIC's interrupts get to a vCPU.
//!
//! | SynIC | Interrupt | Slot is free again |
//! |---|---|---|
//! | KVM's | eventfd ─ irqfd ─► route to {VP, SINT 2} | any EOM write ─► resample eventfd |
//! | ours | `KVM_SIGNAL_MSI` to the VP's APIC | the EOM write is ours to see |
//!
//! One resample eventfd serves all VPs: EOM is written seldom, only when more
//! than one message was waiting, and it costs little to look at each queue.

use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_X2APIC_API, KVM_IRQ_ROUTING_HV_SINT, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC,
    KVM_X2APIC_API_USE_32BIT_IDS, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_hv_sint, kvm_irq_routing_irqchip, kvm_msi,
};
use kvm_ioctls::VmFd;
use vmbus::wire::Sint;
use vmm_sys_util::eventfd::EventFd;

use crate::kvm::{Doing, KvmError};

/// Pins of the IO-APIC; interrupts of their numbers are routed as KVM does by default.
const IO_APIC_PINS: u32 = 24;
/// Where MSIs are written to.
const MSI_BASE: u32 = 0xFEE0_0000;
/// Bits of an APIC id in the low half of an MSI's address.
const MSI_LOW_ID: u32 = 0xFF;

/// Interrupt lines of KVM's SynIC: one for each VP's SINT 2.
pub struct SintLines {
    lines: Vec<EventFd>,
    /// Written when a guest has written EOM.
    pub end_of_message: Arc<EventFd>,
}

impl SintLines {
    /// The lines of `cpus` VPs, which lead nowhere yet.
    pub fn new(cpus: u32) -> Result<Self, KvmError> {
        Ok(Self {
            lines: (0..cpus).map(|_| eventfd()).collect::<Result<_, _>>()?,
            end_of_message: Arc::new(eventfd()?),
        })
    }

    /// Wires them to the VPs, on all of which the SynIC is enabled. What was raised
    /// before is seen then. It takes a while: KVM waits for all that look at its
    /// routes.
    pub fn wire(&self, vm: &VmFd) -> Result<(), KvmError> {
        let pins = (0..IO_APIC_PINS).map(io_apic_route);
        let sints = (0..).zip(&self.lines).map(|(vp, _)| sint_route(vp));
        let entries: Vec<_> = pins.chain(sints).collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| KvmError::Missing("room for an interrupt route per vCPU"))?;
        vm.set_gsi_routing(&routing)
            .doing("routing the SynIC's interrupts")?;
        for (vp, line) in (0..).zip(&self.lines) {
            vm.register_irqfd_with_resample(line, &self.end_of_message, gsi(vp))
                .doing("wiring a SynIC's interrupt")?;
        }
        Ok(())
    }

    /// Raises SINT 2 of a VP.
    pub fn raise(&self, vp: u32) {
        let line = usize::try_from(vp).ok().and_then(|vp| self.lines.get(vp));
        if let Some(Err(error)) = line.map(|line| line.write(1)) {
            log::warn!("SynIC of VP {vp}: {error}");
        }
    }
}

/// Lets MSIs name APIC ids above 255, for machines that have them.
pub fn allow_large_apic_ids(vm: &VmFd) -> Result<(), KvmError> {
    vm.enable_cap(&kvm_enable_cap {
        cap: KVM_CAP_X2APIC_API,
        args: [KVM_X2APIC_API_USE_32BIT_IDS.into(), 0, 0, 0],
        ..kvm_enable_cap::default()
    })
    .doing("enabling 32-bit APIC ids")
}

/// Sends a vector to the APIC with the number of a VP.
pub fn send_msi(vm: &VmFd, vp: u32, vector: u8) {
    let msi = kvm_msi {
        address_lo: MSI_BASE | ((vp & MSI_LOW_ID) << 12),
        // Only meant as an id once large ids have been allowed, and zero before.
        address_hi: vp & !MSI_LOW_ID,
        data: vector.into(),
        ..kvm_msi::default()
    };
    if let Err(error) = vm.signal_msi(msi) {
        log::debug!("interrupt {vector:#x} to VP {vp}: {error}");
    }
}

fn gsi(vp: u32) -> u32 {
    IO_APIC_PINS.saturating_add(vp)
}

fn io_apic_route(pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi: pin,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip {
                irqchip: KVM_IRQCHIP_IOAPIC,
                pin,
            },
        },
        ..kvm_irq_routing_entry::default()
    }
}

fn sint_route(vp: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi: gsi(vp),
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
