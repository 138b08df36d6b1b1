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
//! | synthetic timers | KVM | `vmbus::synic`, a timerfd and MSI |
//! | crash MSRs, TSC control | [`msr`] (KVM keeps no crash message) | [`msr`] |
//! | hypercalls | VMCALL, exits as `KVM_EXIT_HYPERV` | OUT in the hypercall page |
//!
//! An MSR filter sends the accesses that are ours to user space in both modes,
//! so a host kernel with or without Hyper-V emulation takes the same path.

pub mod cpuid;
pub mod crash;
pub mod interrupts;
pub mod msr;
mod port;
pub mod time;
mod timers;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ics_devices::TimeSample;
use kvm_bindings::KVM_CLOCK_REALTIME;
use kvm_ioctls::VmFd;
use parking_lot::Mutex;
use vmbus::synic::{
    ExternalSynic, Hypercall, RaiseSint, SoftSynic, SynicAction, SynicError, SynicRegs, decode,
};
use vmbus::wire::{Sint, VpIndex};
use vmm_sys_util::eventfd::EventFd;

use crate::kvm::KvmError;
use crate::memory::GuestMemory;
use crate::sys;
pub use crash::CrashReport;
use interrupts::SintLines;
pub use msr::Fault;
use msr::Partition;
pub use port::{BusPort, FromGuest, Posted};
use timers::Timers;

/// Who emulates the SynIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SynicMode {
    /// KVM does.
    Kernel,
    /// This process does.
    User,
}

/// The Hyper-V side of a machine; vCPU threads and the bus thread share one.
pub struct Hyperv {
    vm: Arc<VmFd>,
    memory: GuestMemory,
    partition: Partition,
    synic: Synic,
    port: BusPort,
    /// Guest's TSC less the host's, modulo 2^64.
    tsc_offset: AtomicU64,
}

/// The two ways to a SynIC. Messages and events are sent by the same code in
/// `vmbus`; they differ in who holds the registers and raises the interrupt.
enum Synic {
    Kernel(Mutex<ExternalSynic>, SintLines),
    User(Mutex<SoftSynic>, Timers),
}

impl Hyperv {
    /// For a machine whose `cpus` vCPUs have been made, with a TSC that runs at
    /// `tsc_hz`. What the guest sends to the bus goes to `port`.
    pub fn new(
        mode: SynicMode,
        vm: Arc<VmFd>,
        memory: GuestMemory,
        cpus: u32,
        tsc_hz: u64,
        port: BusPort,
    ) -> Result<Self, KvmError> {
        let synic = match mode {
            SynicMode::Kernel => {
                let lines = SintLines::new(cpus)?;
                Synic::Kernel(Mutex::new(ExternalSynic::new(cpus)), lines)
            }
            SynicMode::User => {
                let timers = Timers::new(cpus)?;
                Synic::User(Mutex::new(SoftSynic::new(cpus)), timers)
            }
        };
        Ok(Self {
            partition: Partition::new(memory.clone(), cpus, tsc_hz),
            vm,
            memory,
            synic,
            port,
            tsc_offset: AtomicU64::new(0),
        })
    }

    /// Lets interrupts reach the vCPUs. Until then they wait, so the guest may run.
    pub fn wire_interrupts(&self) -> Result<(), KvmError> {
        match &self.synic {
            Synic::Kernel(_, lines) => lines.wire(&self.vm),
            Synic::User(..) => Ok(()),
        }
    }

    /// Who emulates the SynIC.
    pub fn mode(&self) -> SynicMode {
        match self.synic {
            Synic::Kernel(..) => SynicMode::Kernel,
            Synic::User(..) => SynicMode::User,
        }
    }

    /// Tells how far the guest's TSC is from the host's: when it starts, and
    /// when it goes on after a pause.
    pub fn set_tsc_offset(&self, offset: u64) {
        self.tsc_offset.store(offset, Ordering::Release);
    }

    /// The guest's time stands still, and so do our synthetic timers.
    pub fn hold_timers(&self) {
        if let Synic::User(_, timers) = &self.synic {
            timers.hold(true);
        }
    }

    /// The guest's time goes on, by the TSC that was told before.
    pub fn release_timers(&self) {
        if let Synic::User(_, timers) = &self.synic {
            timers.hold(false);
            for (vp, _) in (0..).zip(timers.alarms()) {
                self.timer_rings(vp);
            }
        }
    }

    /// What tells that a synthetic timer of VP 0, 1, … may have expired; empty if KVM
    /// sees to them. They are watched by their edges, and never read.
    pub fn alarms(&self) -> Vec<RawFd> {
        match &self.synic {
            Synic::Kernel(..) => Vec::new(),
            Synic::User(_, timers) => timers.alarms().collect(),
        }
    }

    /// A VP's alarm rings.
    pub fn timer_rings(&self, vp: u32) {
        if let Synic::User(_, timers) = &self.synic {
            timers.ring(vp, self.reference_time(), |vector| {
                interrupts::send_msi(&self.vm, vp, vector);
            });
        }
    }

    /// The reference counter now, by the host's TSC.
    fn reference_time(&self) -> u64 {
        let offset = self.tsc_offset.load(Ordering::Acquire);
        let tsc = sys::host_tsc().wrapping_add(offset);
        self.partition.reference_time(tsc)
    }

    /// The guest's name for itself, once it has told it.
    pub fn guest_os(&self) -> Option<String> {
        msr::guest_os_name(self.partition.guest_os_id())
    }

    /// With KVM's SynIC it is KVM that the guest tells its name.
    pub fn set_guest_os_id(&self, id: u64) {
        self.partition.set_guest_os_id(id);
    }

    /// Host's wall clock and guest's reference counter at one moment.
    pub fn time_sample(&self) -> TimeSample {
        let now = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
        };
        if self.mode() == SynicMode::User {
            return TimeSample::from_unix(now(), self.reference_time());
        }
        // KVM's reference counter is its clock in units of 100 ns.
        let clock = self.vm.get_clock().unwrap_or_default();
        let together = clock.flags & KVM_CLOCK_REALTIME != 0;
        let host = if together {
            Duration::from_nanos(clock.realtime)
        } else {
            now()
        };
        TimeSample::from_unix(host, clock.clock / 100)
    }

    /// Whether reading an MSR needs the guest's TSC.
    pub fn needs_tsc(&self, index: u32) -> bool {
        index == msr::TIME_REF_COUNT
    }

    /// Reads an MSR for a VP.
    pub fn read_msr(&self, vp: u32, index: u32, tsc: Option<u64>) -> Result<u64, Fault> {
        match &self.synic {
            Synic::User(synic, _) if SoftSynic::owns_msr(index) => {
                synic.lock().read_msr(VpIndex(vp), index).ok_or(Fault)
            }
            Synic::User(_, timers) if Timers::owns_msr(index) => {
                timers.read_msr(vp, index).ok_or(Fault)
            }
            _ => self.partition.read(vp, index, tsc),
        }
    }

    /// Writes an MSR for a VP; a crash report comes back when the guest told one.
    pub fn write_msr(&self, vp: u32, index: u32, value: u64) -> Result<Option<CrashReport>, Fault> {
        match &self.synic {
            Synic::User(synic, _) if SoftSynic::owns_msr(index) => {
                let mut synic = synic.lock();
                let written = synic.write_msr(&self.memory, VpIndex(vp), index, value);
                self.interrupt_by_msi(&mut synic);
                if index == vmbus::synic::msr::EOM {
                    self.port.ring_if_congested();
                }
                written.map(|()| None).map_err(|_| Fault)
            }
            Synic::User(_, timers) if Timers::owns_msr(index) => {
                let now = self.reference_time();
                let interrupt = |vector| interrupts::send_msi(&self.vm, vp, vector);
                let written = timers.write_msr(vp, index, value, now, interrupt);
                written.then_some(None).ok_or(Fault)
            }
            _ => self.partition.write(vp, index, value),
        }
    }

    /// KVM's SynIC of a VP has new register values.
    pub fn set_synic(&self, vp: u32, scontrol: u64, siefp: u64, simp: u64) {
        if let Synic::Kernel(synic, lines) = &self.synic {
            let regs = SynicRegs {
                scontrol,
                siefp,
                simp,
            };
            let mut synic = synic.lock();
            log_failure(vp, synic.set_regs(&self.memory, VpIndex(vp), regs));
            raise_lines(&mut synic, lines);
        }
    }

    /// The eventfd that tells of free message slots, where KVM has to tell.
    pub fn end_of_message_event(&self) -> Option<&Arc<EventFd>> {
        match &self.synic {
            Synic::Kernel(_, lines) => Some(&lines.end_of_message),
            Synic::User(..) => None,
        }
    }

    /// A guest has written EOM on one of `cpus` VPs: fill the free slots again.
    pub fn end_of_message(&self, cpus: u32) {
        if let Synic::Kernel(synic, lines) = &self.synic {
            let mut synic = synic.lock();
            for vp in (0..cpus).map(VpIndex) {
                if synic.queued_messages(vp) > 0 {
                    log_failure(vp.0, synic.end_of_message(&self.memory, vp));
                }
            }
            raise_lines(&mut synic, lines);
        }
    }

    /// Whether messages wait for KVM to tell that a slot is free.
    pub fn has_queued_messages(&self, cpus: u32) -> bool {
        match &self.synic {
            Synic::Kernel(synic, _) => {
                let synic = synic.lock();
                (0..cpus).any(|vp| synic.queued_messages(VpIndex(vp)) > 0)
            }
            Synic::User(..) => false,
        }
    }

    /// Sends a message to a VP.
    pub fn post_message(
        &self,
        vp: VpIndex,
        sint: Sint,
        message_type: u32,
        payload: vmbus::wire::Payload,
    ) -> Result<(), SynicError> {
        match &self.synic {
            Synic::Kernel(synic, lines) => {
                let mut synic = synic.lock();
                let posted = synic.post_message(&self.memory, vp, sint, message_type, payload);
                raise_lines(&mut synic, lines);
                posted
            }
            Synic::User(synic, _) => {
                let mut synic = synic.lock();
                let posted = synic.post_message(&self.memory, vp, sint, message_type, payload);
                self.interrupt_by_msi(&mut synic);
                posted
            }
        }
    }

    /// Sets an event flag at a VP.
    pub fn signal_event(&self, vp: VpIndex, sint: Sint, flag: u16) -> Result<(), SynicError> {
        match &self.synic {
            Synic::Kernel(synic, lines) => {
                let mut synic = synic.lock();
                let signalled = synic.signal_event(&self.memory, vp, sint, flag);
                raise_lines(&mut synic, lines);
                signalled
            }
            Synic::User(synic, _) => {
                let mut synic = synic.lock();
                let signalled = synic.signal_event(&self.memory, vp, sint, flag);
                self.interrupt_by_msi(&mut synic);
                signalled
            }
        }
    }

    /// Forgets the messages that wait for the guest.
    pub fn discard_messages(&self) {
        match &self.synic {
            Synic::Kernel(synic, _) => synic.lock().discard_messages(),
            Synic::User(synic, _) => synic.lock().discard_messages(),
        }
    }

    /// The eventfd that the guest's signals to a connection write, until it is
    /// unbound. It may hold signals from before.
    pub fn bind_signal(&self, connection_id: u32) -> io::Result<Arc<EventFd>> {
        self.port.bind(connection_id, self.in_kernel_vm())
    }

    /// The connection is no more. This takes no time: see [`port`].
    pub fn unbind_signal(&self, connection_id: u32) {
        self.port.unbind(connection_id);
    }

    /// Whether the guest has to read its messages before it may post more.
    pub fn set_congested(&self, congested: bool) {
        self.port.set_congested(congested);
    }

    /// Whether the guest has set up its hypercall page.
    pub fn hypercalls_enabled(&self) -> bool {
        self.partition.hypercalls_enabled()
    }

    /// Makes a hypercall: control word, RDX and R8; the result is for RAX.
    pub fn hypercall(&self, control: u64, rdx: u64, r8: u64) -> u64 {
        let status = match decode(&self.memory, control, rdx, r8) {
            Ok(Hypercall::PostMessage {
                connection_id,
                message_type,
                payload,
            }) => self.port.post(connection_id, message_type, payload),
            Ok(Hypercall::SignalEvent {
                connection_id,
                flag,
            }) => self.port.signal(connection_id, flag),
            Err(status) => status,
        };
        status.to_rax()
    }

    fn in_kernel_vm(&self) -> Option<&VmFd> {
        match self.mode() {
            SynicMode::Kernel => Some(&self.vm),
            SynicMode::User => None,
        }
    }

    fn interrupt_by_msi(&self, synic: &mut SoftSynic) {
        while let Some(SynicAction::Interrupt { vp, vector, .. }) = synic.poll_action() {
            interrupts::send_msi(&self.vm, vp.0, vector);
        }
    }
}

fn raise_lines(synic: &mut ExternalSynic, lines: &SintLines) {
    while let Some(RaiseSint { vp, sint }) = synic.poll_action() {
        if sint == Sint::VMBUS {
            lines.raise(vp.0);
        } else {
            // A guest may ask for another SINT; no Linux does, and none is wired.
            log::debug!("SynIC of {vp}: {sint} is not wired");
        }
    }
}

fn log_failure(vp: u32, result: Result<(), SynicError>) {
    if let Err(error) = result {
        log::debug!("SynIC of VP {vp}: {error}");
    }
}
