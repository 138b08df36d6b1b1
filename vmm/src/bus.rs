// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bus thread: it owns the bus, the devices on it and all their channels.
//!
//! ```text
//!  messages (queue + bell) ─┐                    ┌─► SynIC: messages, event flags
//!  a channel's eventfd ─────┼─► epoll ─► Host ───┤
//!  EOM, where KVM has it ───┤      ▲             └─► eventfds bound and unbound
//!  Unix sockets ────────────┤      │
//!  calls, deadlines ────────┘      └─ sleeps otherwise: nothing is polled
//! ```
//!
//! No device state is shared with another thread, so none is locked.

mod asked;
mod turns;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Sender, unbounded};
use vmbus::bus::BusConfig;
use vmbus::host::Host;
use vmbus::wire::ProtocolVersion;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::api::{Call, Reply};
use crate::cli::TestDevice;
use crate::cpu::vcpu::EventSender;
use crate::events::EventHub;
use crate::memory::GuestMemory;
use crate::sandbox::{self, Kind};
use crate::services::data::{Data, Items};
use crate::services::{Services, SharedSet};
use crate::trace::Trace;
use crate::vsock::{SocketSettings, Sockets};
use asked::Asked;
pub use asked::Question;
use turns::{BELL, CALLS, END_OF_MESSAGE, LISTENER, Loop, Offered, SOCKETS, STOP, watch};
use vmbus_kvm::{FromGuest, Hyperv};

/// Something that other threads want of the bus.
#[derive(Debug)]
pub enum BusCall {
    /// An operation of the API's on a service.
    Service(Call),
    /// A question about the state of things.
    Ask(Question, Reply),
    /// The vCPUs stand still, or go on.
    Paused(bool),
}

/// What the bus of a machine is to be like.
#[derive(Clone)]
pub struct BusSettings {
    /// The newest protocol version to accept.
    pub max_version: ProtocolVersion,
    /// Services to offer; what clients change stays for the next machine.
    pub services: SharedSet,
    /// Where Hyper-V sockets end, and the names of their services.
    pub sockets: SocketSettings,
    /// Items of the host's for the guest; what is changed stays for the next
    /// machine.
    pub items: Items,
    /// Test devices to offer.
    pub devices: Vec<TestDevice>,
    /// Where to show what passes.
    pub trace: Trace,
    /// Where to tell of what happens.
    pub hub: EventHub,
}

/// A running bus thread.
pub struct BusThread {
    stop: EventFd,
    calls: Sender<BusCall>,
    call_bell: Arc<EventFd>,
    handle: JoinHandle<()>,
}

impl BusThread {
    /// Starts the bus of a machine with `cpus` vCPUs.
    pub fn start(
        settings: &BusSettings,
        memory: &GuestMemory,
        cpus: u32,
        hyperv: Arc<Hyperv>,
        from_guest: FromGuest,
        events: EventSender,
    ) -> io::Result<Self> {
        let stop = eventfd()?;
        let call_bell = Arc::new(eventfd()?);
        let (sender, calls) = unbounded();
        let config = BusConfig {
            vps: cpus,
            max_version: settings.max_version,
        };
        let host = Host::new(Arc::new(memory.clone()), config);
        for audience in [settings.trace.audience(), settings.hub.audience()] {
            audience.set_bell(Arc::clone(&call_bell));
        }
        let epoll = Arc::new(Epoll::new()?);
        watch(&epoll, from_guest.bell.as_raw_fd(), BELL)?;
        watch(&epoll, stop.as_raw_fd(), STOP)?;
        watch(&epoll, call_bell.as_raw_fd(), CALLS)?;
        if let Some(event) = hyperv.end_of_message_event() {
            let nothing = EpollEvent::new(EventSet::empty(), END_OF_MESSAGE);
            epoll.ctl(ControlOperation::Add, event.as_raw_fd(), nothing)?;
        }
        let data = Data::new(settings.items.clone(), Arc::clone(&call_bell));
        let services = Arc::clone(&settings.services);
        let hub = settings.hub.clone();
        let sockets = Sockets::start(
            &settings.sockets,
            Arc::clone(&services),
            &epoll,
            (LISTENER, SOCKETS),
            hub.clone(),
        )?;
        let bus = Loop {
            host,
            asked: Asked::new(hub.audience().clone()),
            services: Services::new(services, Arc::clone(&hyperv), hub, data),
            hyperv,
            from_guest,
            calls,
            call_bell: Arc::clone(&call_bell),
            epoll,
            channels: BTreeMap::new(),
            sockets,
            test_devices: settings.devices.iter().map(Offered::new).collect(),
            trace: settings.trace.clone(),
            traced: false,
            cpus,
            stale: true,
            posted: false,
            watches_eom: false,
            start: Instant::now(),
        };
        let handle = sandbox::spawn(Kind::Bus, "bus".into(), move || {
            let alarm = Alarm(events);
            if let Err(error) = bus.run() {
                alarm.0.failed(format!("the bus thread: {error}"));
            }
        })?;
        Ok(Self {
            stop,
            calls: sender,
            call_bell,
            handle,
        })
    }

    /// Asks something of the bus.
    pub fn send(&self, call: BusCall) {
        // A bus that has ended drops the call, and so answers it.
        let _ = self.calls.send(call);
        let _ = self.call_bell.write(1);
    }

    /// Ends the thread and waits for it.
    pub fn stop(self) -> thread::Result<()> {
        // The counter cannot be full: nobody else writes it.
        let _ = self.stop.write(1);
        self.handle.join()
    }
}

/// Tells the machine if the thread ends by a panic.
struct Alarm(EventSender);

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.failed("the bus thread panicked".into());
        }
    }
}

fn eventfd() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}
