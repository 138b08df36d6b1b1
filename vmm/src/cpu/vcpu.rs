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
use std::time::Duration;

use crossbeam_channel::Sender;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::registers::{self, Snapshot};
use crate::devices::Ports;
use crate::devices::power::PowerRequest;
use crate::hyperv::msr::{HYPERCALL_OUT_OFFSET, HYPERCALL_PORT};
use crate::hyperv::{CrashReport, Hyperv, SynicMode};
use crate::sys::{self, HypervExit};

/// How long to wait between kicks of a thread that has to leave the guest.
const KICK_INTERVAL: Duration = Duration::from_millis(1);

/// What a vCPU tells the machine.
#[derive(Debug)]
pub enum VcpuEvent {
    /// The guest used a power register. The vCPU has stopped.
    Power(PowerRequest),
    /// The guest told that it has crashed. It is still running.
    Crash(CrashReport, Option<Snapshot>),
    /// The CPU shut down for want of a working exception handler.
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
    stop: Arc<AtomicBool>,
    handle: JoinHandle<()>,
}

impl Vcpu {
    /// Starts the thread.
    pub fn start(self) -> io::Result<VcpuThread> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let handle = thread::Builder::new()
            .name(format!("vcpu{}", self.id))
            .spawn(move || self.run(&stopped))?;
        Ok(VcpuThread { stop, handle })
    }

    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
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

    /// Runs the guest until it exits once.
    fn step(&mut self) -> Step {
        let (id, hyperv) = (self.id, &self.hyperv);
        match self.fd.run() {
            Ok(VcpuExit::IoOut(HYPERCALL_PORT, _)) if hyperv.mode() == SynicMode::User => {
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
                let result = hyperv.write_msr(id, exit.index, exit.data);
                *exit.error = u8::from(result.is_err());
                match result {
                    Ok(Some(report)) => Step::Tell(VcpuEvent::Crash(report, self.snapshot())),
                    Ok(None) | Err(_) => Step::Continue,
                }
            }
            Ok(VcpuExit::Hyperv) => self.hyperv_exit(),
            Ok(VcpuExit::Shutdown) => Step::Stop(VcpuEvent::TripleFault(self.snapshot())),
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

    fn finish_rdmsr(&mut self, result: Result<u64, crate::hyperv::Fault>) -> Step {
        sys::set_msr_result(self.fd.get_kvm_run(), result.ok());
        Step::Continue
    }

    fn hyperv_exit(&mut self) -> Step {
        match sys::hyperv_exit(self.fd.get_kvm_run()) {
            Some(HypervExit::Synic {
                control,
                event_page,
                message_page,
            }) => self
                .hyperv
                .set_synic(self.id, control, event_page, message_page),
            Some(HypervExit::Hypercall { input, params }) => {
                let [rdx, r8] = params;
                let result = self.hyperv.hypercall(input, rdx, r8);
                sys::set_hypercall_result(self.fd.get_kvm_run(), result);
            }
            Some(HypervExit::Other(_)) | None => {}
        }
        Step::Continue
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
        let from_page = regs.rip & 0xFFF == HYPERCALL_OUT_OFFSET && sregs.ss.dpl == 0;
        if !from_page || !self.hyperv.hypercalls_enabled() {
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

impl VcpuThread {
    /// Makes the thread leave the guest for good and waits for it.
    pub fn stop(self) -> thread::Result<()> {
        self.stop.store(true, Ordering::Release);
        // A kick that comes between the check of the flag and KVM_RUN is lost, so repeat it.
        while !self.handle.is_finished() {
            if let Err(error) = self.handle.kill(kick_signal()) {
                log::debug!("kick: {error}");
            }
            thread::sleep(KICK_INTERVAL);
        }
        self.handle.join()
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
