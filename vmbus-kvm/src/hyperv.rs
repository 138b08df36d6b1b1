// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Hyper-V side of a machine: what vCPU threads and the bus thread share.
//!
//! | | `Kernel` | `Hybrid` | `User` |
//! |---|---|---|---|
//! | guest id, hypercall page, VP index, reference time, frequencies | KVM | KVM | [`Partition`] |
//! | SynIC MSRs, injection | KVM | [`SoftSynic`], MSI | [`SoftSynic`], MSI |
//! | synthetic timers | KVM | none | [`vmbus::synic`], a timerfd and MSI |
//! | crash MSRs, TSC control | [`Partition`] | [`Partition`] | [`Partition`] |
//!
//! An MSR filter sends the accesses that are ours to user space in all modes, so a host
//! kernel with or without Hyper-V emulation takes the same path.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvm_bindings::{KVM_CLOCK_REALTIME, kvm_irq_routing_entry};
use parking_lot::{Mutex, RwLock};
use vmbus::hyperv::{
    CrashReport, Fault, HYPERCALL_OUT_OFFSET, Partition, TIME_REF_COUNT, guest_os_name,
};
use vmbus::memory::GuestMemory;
use vmbus::synic::{
    ExternalSynic, Hypercall, RaiseSint, SoftSynic, SynicAction, SynicError, SynicRegs, decode, msr,
};
use vmbus::wire::{Sint, VpIndex};
use vmm_sys_util::eventfd::EventFd;

use crate::interrupts::{self, SintLines};
use crate::port::BusPort;
use crate::timers::Timers;
use crate::{KvmError, Mode, sys};

/// A VM's descriptor, shared.
#[derive(Clone)]
pub struct VmHandle(Arc<dyn AsRawFd + Send + Sync>);

impl VmHandle {
    /// Of anything that has the VM's descriptor and keeps it open: an `Arc<VmFd>`, as a
    /// rule.
    pub fn new(vm: Arc<dyn AsRawFd + Send + Sync>) -> Self {
        Self(vm)
    }
}

impl AsRawFd for VmHandle {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// What does not change while a machine runs.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Who does what.
    pub mode: Mode,
    /// vCPUs; their numbers in KVM, their APIC ids and their VP indices are the same.
    pub cpus: u32,
    /// How fast their TSC runs.
    pub tsc_hz: u64,
    /// In the mode `Kernel` the number of the first of `cpus` interrupts that nobody else
    /// uses: 24 where only an IO-APIC has any.
    pub first_gsi: u32,
    /// The guest's CPUID shows synthetic timers. In the mode `Hybrid` it must not.
    pub timers: bool,
}

/// Two clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockSample {
    /// The host's wall clock, since 1970.
    pub unix: Duration,
    /// The guest's reference counter, in units of 100 ns.
    pub reference: u64,
}

/// The Hyper-V side of a machine; vCPU threads and the bus thread share one.
pub struct Hyperv {
    config: Config,
    vm: VmHandle,
    memory: RwLock<Arc<dyn GuestMemory>>,
    partition: Mutex<Partition>,
    synic: Synic,
    port: BusPort,
    /// Guest's TSC less the host's, modulo 2^64.
    tsc_offset: AtomicU64,
}

/// The two ways to a SynIC. Messages and events are sent by the same code in
/// `vmbus`; they differ in who holds the registers and raises the interrupt.
enum Synic {
    Kernel(Mutex<ExternalSynic>, SintLines),
    Soft(Mutex<SoftSynic>, Option<Timers>),
}

impl Hyperv {
    /// For a machine whose vCPUs have been made. What the guest sends to the bus goes to
    /// `port`.
    pub fn new(
        config: Config,
        vm: VmHandle,
        memory: Arc<dyn GuestMemory>,
        port: BusPort,
    ) -> Result<Self, KvmError> {
        let cpus = config.cpus;
        let synic = match config.mode {
            Mode::Kernel => {
                let lines = SintLines::new(cpus)?;
                Synic::Kernel(Mutex::new(ExternalSynic::new(cpus)), lines)
            }
            Mode::Hybrid => Synic::Soft(Mutex::new(SoftSynic::new(cpus)), None),
            Mode::User => {
                let timers = config.timers.then(|| Timers::new(cpus)).transpose()?;
                Synic::Soft(Mutex::new(SoftSynic::new(cpus)), timers)
            }
        };
        interrupts::allow_large_apic_ids(&vm, cpus)?;
        Ok(Self {
            partition: Mutex::new(Partition::new(cpus, config.tsc_hz)),
            config,
            vm,
            memory: RwLock::new(memory),
            synic,
            port,
            tsc_offset: AtomicU64::new(0),
        })
    }

    /// The guest's memory is another object from now on, as
    /// [`Host::set_memory`](vmbus::host::Host::set_memory) has it for the bus.
    pub fn set_memory(&self, memory: Arc<dyn GuestMemory>) {
        *self.memory.write() = memory;
    }

    /// The interrupt routes that the VM needs beside its own, in the mode `Kernel`; none
    /// in the others. `KVM_SET_GSI_ROUTING` takes all routes of a VM at once.
    pub fn routes(&self) -> Vec<kvm_irq_routing_entry> {
        match &self.synic {
            Synic::Kernel(_, lines) => lines.routes(self.config.first_gsi),
            Synic::Soft(..) => Vec::new(),
        }
    }

    /// Lets interrupts reach the vCPUs, once the VM has its [`routes`](Self::routes). Until
    /// then they wait, so the guest may run.
    pub fn wire_interrupts(&self) -> Result<(), KvmError> {
        match &self.synic {
            Synic::Kernel(_, lines) => lines.wire(&self.vm, self.config.first_gsi),
            Synic::Soft(..) => Ok(()),
        }
    }

    /// Who does what.
    pub fn mode(&self) -> Mode {
        self.config.mode
    }

    /// Tells how far the guest's TSC is from the host's: when it starts, and
    /// when it goes on after a pause.
    pub fn set_tsc_offset(&self, offset: u64) {
        self.tsc_offset.store(offset, Ordering::Release);
    }

    /// The guest's time stands still, and so do our synthetic timers.
    pub fn hold_timers(&self) {
        if let Some(timers) = self.timers() {
            timers.hold(true);
        }
    }

    /// The guest's time goes on, by the TSC that was told before.
    pub fn release_timers(&self) {
        if let Some(timers) = self.timers() {
            timers.hold(false);
            for (vp, _) in (0..).zip(timers.alarms()) {
                self.timer_rings(vp);
            }
        }
    }

    /// What tells that a synthetic timer of VP 0, 1, … may have expired; empty if there are
    /// none in this process. They are watched by their edges, and never read.
    pub fn alarms(&self) -> Vec<RawFd> {
        self.timers()
            .map(|timers| timers.alarms().collect())
            .unwrap_or_default()
    }

    /// A VP's alarm rings.
    pub fn timer_rings(&self, vp: u32) {
        if let Some(timers) = self.timers() {
            timers.ring(vp, self.reference_time(), |vector| {
                interrupts::send_msi(&self.vm, vp, vector);
            });
        }
    }

    fn timers(&self) -> Option<&Timers> {
        match &self.synic {
            Synic::Kernel(..) => None,
            Synic::Soft(_, timers) => timers.as_ref(),
        }
    }

    /// The reference counter now, by the host's TSC.
    fn reference_time(&self) -> u64 {
        let offset = self.tsc_offset.load(Ordering::Acquire);
        let tsc = sys::host_tsc().wrapping_add(offset);
        self.partition.lock().reference_time(tsc)
    }

    /// The guest's name for itself, once it has told it.
    pub fn guest_os(&self) -> Option<String> {
        guest_os_name(self.partition.lock().guest_os_id())
    }

    /// Whether the guest has told KVM its name, by now, in the MSR
    /// [`GUEST_OS_ID_MSR`](vmbus::hyperv::GUEST_OS_ID_MSR): when it sets up a SynIC of
    /// ours, to which it has just written `index`. With KVM's SynIC it has done so at the
    /// first [`set_synic`](Self::set_synic).
    pub fn has_told_kvm_its_name(&self, index: u32) -> bool {
        self.mode() == Mode::Hybrid && index == msr::SCONTROL
    }

    /// What the guest has told KVM.
    pub fn set_guest_os_id(&self, id: u64) {
        self.partition.lock().set_guest_os_id(id);
    }

    /// Host's wall clock and guest's reference counter at one moment.
    pub fn clock_sample(&self) -> ClockSample {
        let now = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            since.unwrap_or_default()
        };
        if self.mode() == Mode::User {
            return ClockSample {
                unix: now(),
                reference: self.reference_time(),
            };
        }
        // KVM's reference counter is its clock in units of 100 ns.
        let clock = sys::clock(&self.vm).unwrap_or_default();
        let together = clock.flags & KVM_CLOCK_REALTIME != 0;
        ClockSample {
            unix: if together {
                Duration::from_nanos(clock.realtime)
            } else {
                now()
            },
            reference: clock.clock / 100,
        }
    }

    /// Whether reading an MSR needs the guest's TSC.
    pub fn needs_tsc(&self, index: u32) -> bool {
        index == TIME_REF_COUNT
    }

    /// Reads an MSR for a VP.
    pub fn read_msr(&self, vp: u32, index: u32, tsc: Option<u64>) -> Result<u64, Fault> {
        match &self.synic {
            Synic::Soft(synic, _) if SoftSynic::owns_msr(index) => {
                synic.lock().read_msr(VpIndex(vp), index).ok_or(Fault)
            }
            Synic::Soft(_, Some(timers)) if Timers::owns_msr(index) => {
                timers.read_msr(vp, index).ok_or(Fault)
            }
            _ => self.partition.lock().read(vp, index, tsc),
        }
    }

    /// Writes an MSR for a VP; a crash report comes back when the guest told one.
    pub fn write_msr(&self, vp: u32, index: u32, value: u64) -> Result<Option<CrashReport>, Fault> {
        match &self.synic {
            Synic::Soft(synic, _) if SoftSynic::owns_msr(index) => {
                let mut synic = synic.lock();
                let memory = self.memory.read();
                let written = synic.write_msr(&**memory, VpIndex(vp), index, value);
                self.interrupt_by_msi(&mut synic);
                if index == msr::EOM {
                    self.port.ring_if_congested();
                }
                written.map(|()| None).map_err(|_| Fault)
            }
            Synic::Soft(_, Some(timers)) if Timers::owns_msr(index) => {
                let now = self.reference_time();
                let interrupt = |vector| interrupts::send_msi(&self.vm, vp, vector);
                let written = timers.write_msr(vp, index, value, now, interrupt);
                written.then_some(None).ok_or(Fault)
            }
            _ => {
                let memory = self.memory.read();
                self.partition.lock().write(&**memory, vp, index, value)
            }
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
            log_failure(vp, synic.set_regs(&**self.memory.read(), VpIndex(vp), regs));
            raise_lines(&mut synic, lines);
        }
    }

    /// The eventfd that tells of free message slots, where KVM has to tell.
    pub fn end_of_message_event(&self) -> Option<&Arc<EventFd>> {
        match &self.synic {
            Synic::Kernel(_, lines) => Some(&lines.end_of_message),
            Synic::Soft(..) => None,
        }
    }

    /// A guest has written EOM on one of `cpus` VPs: fill the free slots again.
    pub fn end_of_message(&self, cpus: u32) {
        if let Synic::Kernel(synic, lines) = &self.synic {
            let mut synic = synic.lock();
            for vp in (0..cpus).map(VpIndex) {
                if synic.queued_messages(vp) > 0 {
                    log_failure(vp.0, synic.end_of_message(&**self.memory.read(), vp));
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
            Synic::Soft(..) => false,
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
                let posted =
                    synic.post_message(&**self.memory.read(), vp, sint, message_type, payload);
                raise_lines(&mut synic, lines);
                posted
            }
            Synic::Soft(synic, _) => {
                let mut synic = synic.lock();
                let posted =
                    synic.post_message(&**self.memory.read(), vp, sint, message_type, payload);
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
                let signalled = synic.signal_event(&**self.memory.read(), vp, sint, flag);
                raise_lines(&mut synic, lines);
                signalled
            }
            Synic::Soft(synic, _) => {
                let mut synic = synic.lock();
                let signalled = synic.signal_event(&**self.memory.read(), vp, sint, flag);
                self.interrupt_by_msi(&mut synic);
                signalled
            }
        }
    }

    /// Forgets the messages that wait for the guest.
    pub fn discard_messages(&self) {
        match &self.synic {
            Synic::Kernel(synic, _) => synic.lock().discard_messages(),
            Synic::Soft(synic, _) => synic.lock().discard_messages(),
        }
    }

    /// The eventfd that the guest's signals to a connection write, until it is
    /// unbound. It may hold signals from before.
    pub fn bind_signal(&self, connection_id: u32) -> io::Result<Arc<EventFd>> {
        self.port.bind(connection_id, self.in_kernel_vm())
    }

    /// The connection is no more. This takes no time: KVM keeps the eventfd.
    pub fn unbind_signal(&self, connection_id: u32) {
        self.port.unbind(connection_id);
    }

    /// Whether the guest has to read its messages before it may post more.
    pub fn set_congested(&self, congested: bool) {
        self.port.set_congested(congested);
    }

    /// Whether a write to [`HYPERCALL_PORT`](vmbus::hyperv::HYPERCALL_PORT) is a hypercall, by
    /// where the guest is and with which privilege.
    pub fn is_hypercall(&self, rip: u64, cpl: u8) -> bool {
        self.mode() == Mode::User
            && rip & 0xFFF == HYPERCALL_OUT_OFFSET
            && cpl == 0
            && self.partition.lock().hypercalls_enabled()
    }

    /// Makes a hypercall: control word, RDX and R8; the result is for RAX.
    pub fn hypercall(&self, control: u64, rdx: u64, r8: u64) -> u64 {
        let call = decode(&**self.memory.read(), control, rdx, r8);
        let status = match call {
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

    /// The VM, if KVM takes the guest's signals.
    fn in_kernel_vm(&self) -> Option<&VmHandle> {
        self.mode().has_kvms_hypercalls().then_some(&self.vm)
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
