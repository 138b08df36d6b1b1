// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread of a vCPU: it runs the guest, and forwards what makes it exit.
//!
//! ```text
//! KVM_RUN ─┬─ port      ► devices        power register ► event, then stop
//!          ├─ MSR       ► partition, SynIC
//!          ├─ hypercall ► SynIC
//!          ├─ MMIO      ► nothing there: all ones
//!          └─ failure, triple fault      ► event with registers, then stop
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use kvm_ioctls::{VcpuExit, VcpuFd};
use parking_lot::{Condvar, Mutex};
use vmbus::hyperv::{CrashReport, Fault, GUEST_OS_ID_MSR, HYPERCALL_PORT};
use vmbus_kvm::exit::{self, HypervExit};
use vmbus_kvm::{Hyperv, Mode};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::registers::{self, Snapshot};
use crate::devices::Ports;
use crate::devices::power::PowerRequest;
use crate::sandbox::{self, Kind};
use crate::sys;

/// How long to wait between kicks of a thread that has to leave the guest.
const KICK_INTERVAL: Duration = Duration::from_millis(1);
/// The longest time between two of them.
const MAX_KICK_INTERVAL: Duration = Duration::from_millis(500);

/// What a vCPU tells the machine.
#[derive(Debug)]
pub enum VcpuEvent {
    /// The guest used a power register. The vCPU has stopped.
    Power(PowerRequest),
    /// The guest told that it has crashed. It is still running.
    Crash(CrashReport, Option<Snapshot>),
    /// The CPU shut down for want of a working exception handler. Its registers, if
    /// they are still those of the fault.
    TripleFault(Option<Snapshot>),
    /// KVM cannot go on with this vCPU.
    Failed(String, Option<Snapshot>),
}

/// Events on their way to the machine's loop, and the bell that wakes it.
#[derive(Clone)]
pub struct EventSender {
    /// The queue.
    pub queue: Sender<VcpuEvent>,
    /// The bell.
    pub bell: Arc<EventFd>,
    /// A crash report is in the queue. A guest can make them faster than they
    /// can be shown, so there is one at a time.
    pub crash_pending: Arc<AtomicBool>,
}

impl EventSender {
    /// Something that the machine cannot go on without has failed.
    pub fn failed(&self, what: String) {
        self.send(VcpuEvent::Failed(what, None));
    }

    fn send(&self, event: VcpuEvent) {
        // Both fail only when the machine is gone, and then nobody wants to know.
        let _ = self.queue.send(event);
        let _ = self.bell.write(1);
    }
}

/// A vCPU that is ready to run.
pub struct Vcpu {
    /// KVM's handle.
    pub fd: VcpuFd,
    /// Its number: APIC id and VP index.
    pub id: u32,
    /// Devices at ports.
    pub ports: Arc<Ports>,
    /// The Hyper-V side.
    pub hyperv: Arc<Hyperv>,
    /// Where news goes.
    pub events: EventSender,
}

/// A running vCPU.
pub struct VcpuThread {
    control: Arc<Control>,
    handle: JoinHandle<()>,
}

/// What a vCPU's thread is to do, told from outside.
///
/// ```text
///   Run ◄──► Pause        parked: the thread is out of the guest and waits
///    └─► Stop ◄─┘
/// ```
#[derive(Default)]
struct Control {
    orders: Mutex<Orders>,
    changed: Condvar,
}

#[derive(Default)]
struct Orders {
    stop: bool,
    pause: bool,
    nmi: bool,
    /// The thread has seen that it is to pause, and waits.
    parked: bool,
}

impl Vcpu {
    /// Starts the thread.
    pub fn start(self) -> io::Result<VcpuThread> {
        let control = Arc::new(Control::default());
        let orders = Arc::clone(&control);
        let handle = sandbox::spawn(Kind::Vcpu, format!("vcpu{}", self.id), move || {
            self.run(&orders);
            orders.park_for_good();
        })?;
        Ok(VcpuThread { control, handle })
    }

    fn run(mut self, control: &Control) {
        self.measure_tsc();
        while self.obey(control) {
            match self.step() {
                Step::Continue => {}
                Step::Tell(event) => self.events.send(event),
                Step::Stop(event) => {
                    self.events.send(event);
                    return;
                }
            }
        }
    }

    /// Does what it is told before it enters the guest; false if that is to end.
    fn obey(&mut self, control: &Control) -> bool {
        let mut orders = control.orders.lock();
        if orders.pause && !orders.stop {
            let tsc = registers::tsc(&self.fd);
            if self.id == 0 {
                self.hyperv.hold_timers();
            }
            orders.parked = true;
            control.changed.notify_all();
            while orders.pause && !orders.stop {
                control.changed.wait(&mut orders);
            }
            orders.parked = false;
            // The guest's clock has stood still.
            if let Some(tsc) = tsc
                && let Err(error) = registers::set_tsc(&self.fd, tsc)
            {
                log::warn!("vCPU {}: the TSC has run on: {error}", self.id);
            }
            self.measure_tsc();
            if self.id == 0 {
                self.hyperv.release_timers();
            }
        }
        if std::mem::take(&mut orders.nmi)
            && let Err(error) = self.fd.nmi()
        {
            log::warn!("vCPU {}: NMI: {error}", self.id);
        }
        !orders.stop
    }

    /// Tells the clock how far the guest's TSC is from the host's.
    fn measure_tsc(&self) {
        if self.id == 0
            && let Some(guest) = registers::tsc(&self.fd)
        {
            self.hyperv
                .set_tsc_offset(guest.wrapping_sub(vmbus_kvm::host_tsc()));
        }
    }

    /// Runs the guest until it exits once.
    fn step(&mut self) -> Step {
        let (id, hyperv) = (self.id, &self.hyperv);
        match self.fd.run() {
            Ok(VcpuExit::IoOut(HYPERCALL_PORT, _)) if hyperv.mode() == Mode::User => {
                self.hypercall_by_port()
            }
            Ok(VcpuExit::IoOut(port, data)) => match self.ports.write(port, data) {
                Some(request) => Step::Stop(VcpuEvent::Power(request)),
                None => Step::Continue,
            },
            Ok(VcpuExit::IoIn(port, data)) => {
                self.ports.read(port, data);
                Step::Continue
            }
            Ok(VcpuExit::MmioRead(_, data)) => {
                data.fill(0xFF);
                Step::Continue
            }
            Ok(VcpuExit::X86Rdmsr(exit)) => {
                let index = exit.index;
                // The TSC has to be asked of the vCPU, which the exit borrows.
                let tsc = hyperv
                    .needs_tsc(index)
                    .then(|| registers::tsc(&self.fd))
                    .flatten();
                let result = hyperv.read_msr(id, index, tsc);
                self.finish_rdmsr(result)
            }
            Ok(VcpuExit::X86Wrmsr(exit)) => {
                let index = exit.index;
                let result = hyperv.write_msr(id, index, exit.data);
                *exit.error = u8::from(result.is_err());
                if hyperv.has_told_kvm_its_name(index) {
                    self.learn_name();
                }
                match result {
                    Ok(Some(report)) => {
                        if self.events.crash_pending.swap(true, Ordering::AcqRel) {
                            return Step::Continue;
                        }
                        Step::Tell(VcpuEvent::Crash(report, self.snapshot()))
                    }
                    Ok(None) | Err(_) => Step::Continue,
                }
            }
            Ok(VcpuExit::Hyperv) => self.hyperv_exit(),
            Ok(VcpuExit::Shutdown) => {
                // KVM for AMD has put the vCPU into the state after INIT by now: a
                // shutdown leaves nothing defined in the VMCB.
                let registers = self
                    .snapshot()
                    .filter(|registers| !registers.is_after_init());
                Step::Stop(VcpuEvent::TripleFault(registers))
            }
            Ok(
                VcpuExit::MmioWrite(..)
                | VcpuExit::Hlt
                | VcpuExit::Intr
                | VcpuExit::IrqWindowOpen
                | VcpuExit::IoapicEoi(_),
            ) => Step::Continue,
            Ok(VcpuExit::InternalError) => self.internal_error(),
            Ok(VcpuExit::SystemEvent(kind, _)) => self.failed(&format!("system event {kind}")),
            Ok(exit) => {
                let what = format!("{exit:?}");
                self.failed(&what)
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Step::Continue,
            Err(error) => self.failed(&format!("KVM_RUN: {error}")),
        }
    }

    fn finish_rdmsr(&mut self, result: Result<u64, Fault>) -> Step {
        exit::set_msr_result(self.fd.get_kvm_run(), result.ok());
        Step::Continue
    }

    fn hyperv_exit(&mut self) -> Step {
        match exit::hyperv(self.fd.get_kvm_run()) {
            Some(HypervExit::Synic {
                control,
                event_page,
                message_page,
            }) => {
                self.hyperv
                    .set_synic(self.id, control, event_page, message_page);
                // A guest that sets up its SynIC has told KVM its name.
                self.learn_name();
            }
            Some(HypervExit::Hypercall { input, params }) => {
                let [rdx, r8] = params;
                let result = self.hyperv.hypercall(input, rdx, r8);
                exit::set_hypercall_result(self.fd.get_kvm_run(), result);
            }
            _ => {}
        }
        Step::Continue
    }

    fn learn_name(&self) {
        if let Some(id) = registers::msr(&self.fd, GUEST_OS_ID_MSR) {
            self.hyperv.set_guest_os_id(id);
        }
    }

    /// A hypercall by the OUT of our own hypercall page. KVM skips the
    /// instruction when the vCPU goes on, as long as RIP stays as it is.
    fn hypercall_by_port(&mut self) -> Step {
        let state = self
            .fd
            .get_regs()
            .and_then(|regs| Ok((regs, self.fd.get_sregs()?)));
        let (mut regs, sregs) = match state {
            Ok(state) => state,
            Err(error) => return self.failed(&format!("registers of a hypercall: {error}")),
        };
        if !self.hyperv.is_hypercall(regs.rip, sregs.ss.dpl) {
            // Somebody wrote to a port where nothing is.
            return Step::Continue;
        }
        regs.rax = self.hyperv.hypercall(regs.rcx, regs.rdx, regs.r8);
        match self.fd.set_regs(&regs) {
            Ok(()) => Step::Continue,
            Err(error) => self.failed(&format!("result of a hypercall: {error}")),
        }
    }

    fn internal_error(&mut self) -> Step {
        const EMULATION: u32 = 1;
        const DELIVERY: u32 = 3;
        let what = match sys::internal_error(self.fd.get_kvm_run()) {
            Some(EMULATION) => {
                "KVM cannot emulate an instruction of the guest's; a KVM that shows this \
                 while a stock kernel boots may be made for paravirtual guests only"
            }
            Some(DELIVERY) => "KVM cannot deliver an event to the guest",
            _ => "KVM has an internal error",
        };
        self.failed(what)
    }

    fn failed(&self, what: &str) -> Step {
        Step::Stop(VcpuEvent::Failed(
            format!("vCPU {}: {what}", self.id),
            self.snapshot(),
        ))
    }

    fn snapshot(&self) -> Option<Snapshot> {
        Snapshot::take(&self.fd, self.id).ok()
    }
}

enum Step {
    Continue,
    /// Send the event and go on.
    Tell(VcpuEvent),
    /// Send the event; this vCPU has ended.
    Stop(VcpuEvent),
}

impl Control {
    fn order(&self, give: impl FnOnce(&mut Orders)) {
        give(&mut self.orders.lock());
        self.changed.notify_all();
    }

    /// A thread that has ended does not run the guest: who waits for it to park need not.
    fn park_for_good(&self) {
        self.order(|orders| orders.parked = true);
    }

    fn is_parked(&self) -> bool {
        self.orders.lock().parked
    }
}

impl VcpuThread {
    /// Makes the thread leave the guest and wait; returns when it does.
    pub fn pause(&self) {
        self.control.order(|orders| orders.pause = true);
        self.kick_until(|| self.control.is_parked());
    }

    /// Makes it go on.
    pub fn resume(&self) {
        self.control.order(|orders| orders.pause = false);
    }

    /// Gives the vCPU a non-maskable interrupt.
    pub fn nmi(&self) {
        self.control.order(|orders| orders.nmi = true);
        self.kick_until(|| !self.control.orders.lock().nmi);
    }

    /// Makes the thread leave the guest for good and waits for it.
    pub fn stop(self) -> thread::Result<()> {
        self.control.order(|orders| orders.stop = true);
        self.kick_until(|| false);
        self.handle.join()
    }

    /// Interrupts the guest until it is done, or the thread has ended. A kick
    /// that comes between a look at the orders and KVM_RUN is lost, so repeat it.
    fn kick_until(&self, done: impl Fn() -> bool) {
        let (mut next, mut gap) = (Instant::now(), KICK_INTERVAL);
        while !self.handle.is_finished() && !done() {
            if Instant::now() >= next {
                if let Err(error) = self.handle.kill(kick_signal()) {
                    log::debug!("kick: {error}");
                }
                // They queue up, and a thread that hardly gets a CPU would do
                // nothing but take them.
                next = Instant::now() + gap;
                gap = (gap * 2).min(MAX_KICK_INTERVAL);
            }
            thread::sleep(KICK_INTERVAL);
        }
    }
}

fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the handler whose only purpose is to interrupt `KVM_RUN`.
pub fn prepare_kicks() -> Result<(), vmm_sys_util::errno::Error> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(kick_signal(), nothing)
}
