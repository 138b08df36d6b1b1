// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What makes a guest believe that it runs on Hyper-V: CPUID leaves, synthetic
//! MSRs, hypercalls, a clock.
//!
//! Who serves what:
//!
//! | | `--synic kernel` | `--synic user` |
//! |---|---|---|
//! | CPUID | [`cpuid`] | [`cpuid`] |
//! | guest id, hypercall page, VP index, reference time, frequencies | KVM | [`msr`] |
//! | SynIC MSRs, injection | KVM | `vmbus::synic`, MSI |
//! | crash MSRs, TSC control | [`msr`] (KVM keeps no crash message) | [`msr`] |
//! | hypercalls | VMCALL, exits as `KVM_EXIT_HYPERV` | OUT in the hypercall page |
//!
//! An MSR filter sends the accesses that are ours to user space in both modes,
//! so a host kernel with or without Hyper-V emulation takes the same path.

pub mod cpuid;
pub mod crash;
pub mod msr;
pub mod time;

use parking_lot::Mutex;
use vmbus::synic::{ExternalSynic, HvStatus, Hypercall, SoftSynic, SynicRegs, decode};
use vmbus::wire::VpIndex;

use crate::memory::GuestMemory;
pub use crash::CrashReport;
pub use msr::Fault;
use msr::Partition;

/// Who emulates the SynIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SynicMode {
    /// KVM does.
    Kernel,
    /// This process does.
    User,
}

/// The Hyper-V side of a machine; vCPU threads share one.
pub struct Hyperv {
    memory: GuestMemory,
    partition: Partition,
    synic: Synic,
}

/// The two ways to a SynIC. Messages and events are sent by the same code in
/// `vmbus`; they differ in who holds the registers and raises the interrupt.
enum Synic {
    Kernel(Mutex<ExternalSynic>),
    User(Mutex<SoftSynic>),
}

impl Hyperv {
    /// For a machine with `cpus` vCPUs whose TSC runs at `tsc_hz`.
    pub fn new(mode: SynicMode, memory: GuestMemory, cpus: u32, tsc_hz: u64) -> Self {
        Self {
            partition: Partition::new(memory.clone(), cpus, tsc_hz),
            memory,
            synic: match mode {
                SynicMode::Kernel => Synic::Kernel(Mutex::new(ExternalSynic::new(cpus))),
                SynicMode::User => Synic::User(Mutex::new(SoftSynic::new(cpus))),
            },
        }
    }

    /// Who emulates the SynIC.
    pub fn mode(&self) -> SynicMode {
        match self.synic {
            Synic::Kernel(_) => SynicMode::Kernel,
            Synic::User(_) => SynicMode::User,
        }
    }

    /// Whether reading an MSR needs the guest's TSC.
    pub fn needs_tsc(&self, index: u32) -> bool {
        index == msr::TIME_REF_COUNT
    }

    /// Reads an MSR for a VP.
    pub fn read_msr(&self, vp: u32, index: u32, tsc: Option<u64>) -> Result<u64, Fault> {
        match &self.synic {
            Synic::User(synic) if SoftSynic::owns_msr(index) => {
                synic.lock().read_msr(VpIndex(vp), index).ok_or(Fault)
            }
            _ => self.partition.read(vp, index, tsc),
        }
    }

    /// Writes an MSR for a VP; a crash report comes back when the guest told one.
    pub fn write_msr(&self, vp: u32, index: u32, value: u64) -> Result<Option<CrashReport>, Fault> {
        match &self.synic {
            Synic::User(synic) if SoftSynic::owns_msr(index) => {
                let written = synic
                    .lock()
                    .write_msr(&self.memory, VpIndex(vp), index, value);
                written.map(|()| None).map_err(|_| Fault)
            }
            _ => self.partition.write(vp, index, value),
        }
    }

    /// KVM's SynIC of a VP has new register values.
    pub fn set_synic(&self, vp: u32, scontrol: u64, siefp: u64, simp: u64) {
        if let Synic::Kernel(synic) = &self.synic {
            let regs = SynicRegs {
                scontrol,
                siefp,
                simp,
            };
            let set = synic.lock().set_regs(&self.memory, VpIndex(vp), regs);
            if let Err(error) = set {
                log::debug!("SynIC of VP {vp}: {error}");
            }
        }
    }

    /// Whether the guest has set up its hypercall page.
    pub fn hypercalls_enabled(&self) -> bool {
        self.partition.hypercalls_enabled()
    }

    /// Makes a hypercall: control word, RDX and R8; the result is for RAX.
    pub fn hypercall(&self, control: u64, rdx: u64, r8: u64) -> u64 {
        let status = match decode(&self.memory, control, rdx, r8) {
            // No port is connected, so there is nobody to post to or to signal.
            Ok(Hypercall::PostMessage { .. } | Hypercall::SignalEvent { .. }) => {
                HvStatus::INVALID_CONNECTION_ID
            }
            Err(status) => status,
        };
        status.to_rax()
    }
}
