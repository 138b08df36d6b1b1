// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One machine: from power-on to power-off or reset.
//!
//! A reset makes a new machine in the same process. Nothing is carried over,
//! neither memory nor the state of a device or of KVM, so there is no state that
//! a reset could forget to clear.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, bounded, unbounded};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_clock_data,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmbus::hyperv::cpuid::HostSupport;
use vmbus_kvm::{BusPort, Config, Hyperv, VmHandle};
use vmm_sys_util::eventfd::EventFd;

use crate::acpi::{self, AcpiError};
use crate::boot::{BootError, BootSource, Entry};
use crate::bus::{BusCall, BusSettings, BusThread};
use crate::cpu::cpuid::CpuidTemplate;
use crate::cpu::vcpu::EventSender;
use crate::cpu::{Vcpu, VcpuEvent, VcpuThread, registers};
use crate::devices::Ports;
use crate::devices::serial::{self, Com1};
use crate::kvm::{Doing, Host, KvmError};
use crate::memory::{self, GuestMemory, MemoryError};
use crate::output::Output;
use crate::sandbox::{self, Kind};
use crate::sys;
use crate::timers::TimerThread;

/// Pins of the IO-APIC; interrupts of their numbers are routed as KVM does by default.
const IO_APIC_PINS: u32 = 24;

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its kernel.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Its ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A descriptor or a thread.
    #[error("host: {0}")]
    Io(#[from] io::Error),
}

/// What a machine is made of.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// vCPUs.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Whether in huge pages.
    pub hugepages: bool,
}

/// The bells that wake the event loop; they outlive a machine.
pub struct Bells {
    /// A vCPU has sent an event.
    pub events: Arc<EventFd>,
    /// The guest has read all input of COM1.
    pub drained: EventFd,
}

impl Bells {
    /// Makes them.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            events: Arc::new(eventfd()?),
            drained: eventfd()?,
        })
    }
}

/// A VM in the making. KVM makes a thread of its own for each, and waits for it
/// and for its readers, most of all that comes before a guest runs: a thread of
/// ours waits for KVM while there is other work.
pub struct VmMaking {
    thread: JoinHandle<()>,
    made: Receiver<Result<VmFd, KvmError>>,
}

impl VmMaking {
    /// Begins.
    pub fn start(host: &Arc<Host>) -> io::Result<Self> {
        let host = Arc::clone(host);
        let (sender, made) = bounded(1);
        let thread = sandbox::spawn(Kind::Maker, "maker".into(), move || {
            // Nobody waits for it if the process is about to end.
            let _ = sender.send(host.create_vm());
        })?;
        Ok(Self { thread, made })
    }

    fn finish(self) -> Result<VmFd, MachineError> {
        let ended = self.thread.join().ok();
        let made = ended.and_then(|()| self.made.try_recv().ok());
        Ok(made.ok_or_else(|| io::Error::other("making the VM: a panic"))??)
    }
}

/// A running machine.
pub struct Machine {
    vcpus: Vec<VcpuThread>,
    bus: BusThread,
    /// Of our own synthetic timers.
    timers: Option<TimerThread>,
    events: Receiver<VcpuEvent>,
    /// A crash report is on its way; a guest that sends more is not heard.
    crash_pending: Arc<AtomicBool>,
    /// KVM's clock, while the vCPUs stand still.
    clock: Option<kvm_clock_data>,
    ports: Arc<Ports>,
    // Dropped last: KVM holds the memory as long as the VM exists.
    vm: Arc<VmFd>,
    _memory: GuestMemory,
}

impl Machine {
    /// Makes a machine, loads it and starts its vCPUs.
    pub fn start(
        host: &Host,
        making: VmMaking,
        shape: Shape,
        source: &BootSource,
        bus: &BusSettings,
        output: &Output,
        bells: &Bells,
    ) -> Result<Self, MachineError> {
        let memory = memory::map(shape.memory, shape.hugepages)?;
        let rsdp = acpi::write(&memory, shape.cpus)?;
        let entry = source.load(&memory, shape.memory, rsdp)?;
        let vm = Arc::new(making.finish()?);
        sys::set_memory(&vm, &memory).doing("giving the VM its memory")?;
        let fds = create_vcpus(host, &vm, shape.cpus, entry)?;
        let (port, from_guest) = BusPort::new()?;
        let config = Config {
            mode: host.synic,
            cpus: shape.cpus,
            tsc_hz: tsc_hz(&fds)?,
            first_gsi: IO_APIC_PINS,
            timers: host.timers,
        };
        let hyperv = Hyperv::new(
            config,
            VmHandle::new(vm.clone()),
            Arc::new(memory.clone()),
            port,
        );
        let hyperv = Arc::new(hyperv.map_err(KvmError::from)?);
        let irq = eventfd()?;
        vm.register_irqfd(&irq, serial::GSI)
            .doing("wiring COM1's interrupt")?;
        let com1 = Com1::new(irq, bells.drained.try_clone()?, output);
        let ports = Arc::new(Ports::new(com1));

        let (queue, events) = unbounded();
        let crash_pending = Arc::new(AtomicBool::new(false));
        let sender = EventSender {
            queue,
            crash_pending: Arc::clone(&crash_pending),
            bell: Arc::clone(&bells.events),
        };
        let bus = BusThread::start(
            bus,
            &memory,
            shape.cpus,
            Arc::clone(&hyperv),
            from_guest,
            sender.clone(),
        )?;
        let timers = TimerThread::start(&hyperv)?;
        let mut vcpus = Vec::with_capacity(fds.len());
        for (id, fd) in (0..).zip(fds) {
            let vcpu = Vcpu {
                fd,
                id,
                ports: Arc::clone(&ports),
                hyperv: Arc::clone(&hyperv),
                events: sender.clone(),
            };
            vcpus.push(vcpu.start()?);
        }
        let machine = Self {
            vcpus,
            bus,
            timers,
            events,
            crash_pending,
            clock: None,
            ports,
            vm,
            _memory: memory,
        };
        // The guest need not wait for this: it has no use for the bus for a while.
        if let Err(error) = wire_interrupts(&machine.vm, &hyperv) {
            machine.stop();
            return Err(error.into());
        }
        Ok(machine)
    }

    /// The next event of a vCPU, if there is one.
    pub fn next_event(&self) -> Option<VcpuEvent> {
        self.events.try_recv().ok()
    }

    /// The serial port.
    pub fn com1(&self) -> &Com1 {
        &self.ports.com1
    }

    /// The bus thread.
    pub fn bus(&self) -> &BusThread {
        &self.bus
    }

    /// Makes all vCPUs stand still, and the guest's clocks with them.
    pub fn pause(&mut self) {
        self.bus.send(BusCall::Paused(true));
        self.com1().let_writers_through(true);
        for vcpu in &self.vcpus {
            vcpu.pause();
        }
        self.com1().let_writers_through(false);
        self.clock = match self.vm.get_clock() {
            Ok(clock) => Some(clock),
            Err(error) => {
                log::warn!("the guest's clock runs on: {error}");
                None
            }
        };
    }

    /// Lets them go on where they were.
    pub fn resume(&mut self) {
        if let Some(clock) = self.clock.take() {
            let clock = kvm_clock_data {
                clock: clock.clock,
                ..kvm_clock_data::default()
            };
            if let Err(error) = self.vm.set_clock(&clock) {
                log::warn!("the guest's clock has run on: {error}");
            }
        }
        for vcpu in &self.vcpus {
            vcpu.resume();
        }
        self.bus.send(BusCall::Paused(false));
    }

    /// Gives every vCPU a non-maskable interrupt.
    pub fn nmi(&self) {
        self.com1().let_writers_through(true);
        for vcpu in &self.vcpus {
            vcpu.nmi();
        }
        self.com1().let_writers_through(false);
    }

    /// A crash report was taken: there may be another.
    pub fn crash_taken(&self) {
        self.crash_pending.store(false, Ordering::Release);
    }

    /// Stops all threads for good.
    pub fn stop(self) {
        self.com1().let_writers_through(true);
        for vcpu in self.vcpus {
            if vcpu.stop().is_err() {
                log::error!("a vCPU thread panicked");
            }
        }
        if self.bus.stop().is_err() {
            log::error!("the bus thread panicked");
        }
        if self.timers.is_some_and(|timers| timers.stop().is_err()) {
            log::error!("the timers' thread panicked");
        }
    }
}

/// The frequency of the guest's TSC.
fn tsc_hz(vcpus: &[VcpuFd]) -> Result<u64, KvmError> {
    let khz = vcpus
        .first()
        .map(VcpuFd::get_tsc_khz)
        .transpose()
        .doing("reading the TSC's frequency")?
        .unwrap_or(0);
    Ok(u64::from(khz) * 1000)
}

/// Lets the bus' interrupts reach the vCPUs.
fn wire_interrupts(vm: &VmFd, hyperv: &Hyperv) -> Result<(), KvmError> {
    let ours = hyperv.routes();
    if !ours.is_empty() {
        let entries: Vec<_> = (0..IO_APIC_PINS).map(io_apic_route).chain(ours).collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| KvmError::Missing("room for an interrupt route per vCPU"))?;
        vm.set_gsi_routing(&routing)
            .doing("routing the SynIC's interrupts")?;
    }
    Ok(hyperv.wire_interrupts()?)
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

fn create_vcpus(
    host: &Host,
    vm: &VmFd,
    cpus: u32,
    entry: Entry,
) -> Result<Vec<VcpuFd>, MachineError> {
    let template = CpuidTemplate::new(&host.cpuid, cpus, host.tsc_deadline, |invariant_tsc| {
        HostSupport {
            timers: host.timers,
            ..host.capabilities.host_support(host.synic, invariant_tsc)
        }
    });
    let mut fds = Vec::new();
    for id in 0..cpus {
        let vcpu = vm.create_vcpu(id.into()).doing("creating a vCPU")?;
        let cpuid = template
            .for_vcpu(id)
            .map_err(|error| io::Error::other(format!("CPUID: {error:?}")))?;
        vcpu.set_cpuid2(&cpuid).doing("setting a vCPU's CPUID")?;
        vmbus_kvm::enable_synic(&vcpu, host.synic).map_err(KvmError::from)?;
        registers::init(&vcpu).doing("setting a vCPU's registers")?;
        registers::set_msrs(&vcpu).doing("setting a vCPU's MSRs")?;
        if id == 0 {
            registers::set_entry(&vcpu, entry).doing("setting the boot CPU's registers")?;
        }
        fds.push(vcpu);
    }
    Ok(fds)
}

fn eventfd() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}
