// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bus thread's loop: what has happened is given to the bus, and what the bus
//! wants is done, before it sleeps again.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use vmbus::bus::Action;
use vmbus::host::{EchoDevice, Host};
use vmbus::hvsock::Socket;
use vmbus::synic::{SynicError, VMBUS_MESSAGE_TYPE};
use vmbus::wire::Relid;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::BusCall;
use super::asked::{Asked, Question};
use crate::api::types::{Answer, BusStatus, ServiceEntry, VmState, VmStatus, answer};
use crate::api::{Call, Op, Reply};
use crate::cli::TestDevice;
use crate::services::Services;
use crate::trace::Trace;
use crate::vsock::Sockets;
use vmbus_kvm::{FromGuest, Hyperv};

/// Tokens of the loop; a channel's is its relid behind these.
pub(super) const BELL: u64 = 0;
pub(super) const STOP: u64 = 1;
pub(super) const END_OF_MESSAGE: u64 = 2;
pub(super) const CALLS: u64 = 3;
pub(super) const LISTENER: u64 = 4;
const CHANNELS: u64 = 16;
/// Beyond every channel.
pub(super) const SOCKETS: u64 = 1 << 32;
/// Messages taken before channels get their turn.
const MESSAGES_PER_TURN: usize = 64;
/// How often services are asked for news before the bus sleeps. An offer or a
/// release is done with after two; a guest that leaves its messages unread must
/// not keep the bus awake.
const PASSES: usize = 4;

/// The bus and what is on it, as the thread has them.
pub(super) struct Loop {
    pub(super) host: Host,
    pub(super) services: Services,
    pub(super) asked: Asked,
    pub(super) calls: Receiver<BusCall>,
    pub(super) call_bell: Arc<EventFd>,
    pub(super) hyperv: Arc<Hyperv>,
    pub(super) from_guest: FromGuest,
    pub(super) epoll: Arc<Epoll>,
    /// The eventfds of open channels.
    pub(super) channels: BTreeMap<Relid, Bound>,
    pub(super) sockets: Sockets,
    pub(super) test_devices: Vec<Offered>,
    pub(super) trace: Trace,
    pub(super) traced: bool,
    pub(super) cpus: u32,
    /// There may be something new to learn from the services. While there is
    /// not, streams run past them.
    pub(super) stale: bool,
    /// Messages were posted, and may wait for their slot.
    pub(super) posted: bool,
    /// EOM is listened to.
    pub(super) watches_eom: bool,
    pub(super) start: Instant,
}

impl Loop {
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut ready = [EpollEvent::default(); 32];
        loop {
            self.trace();
            self.watch();
            self.toggle_test_devices();
            self.sockets.tick(self.start.elapsed());
            self.settle();
            self.answer();
            self.watch_end_of_message()?;
            if self.traced {
                self.trace.flush();
            }
            let count = match self.epoll.wait(self.wait_ms(), &mut ready) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for event in ready.iter().take(count) {
                match event.data() {
                    BELL => self.messages()?,
                    STOP => {
                        self.answer_as_known();
                        return Ok(());
                    }
                    CALLS => self.take_calls(),
                    END_OF_MESSAGE => {
                        if let Some(event) = self.hyperv.end_of_message_event() {
                            let _ = event.read();
                        }
                        self.hyperv.end_of_message(self.cpus);
                        self.stale = true;
                    }
                    LISTENER => {
                        let now = self.now();
                        self.sockets.accept(now);
                    }
                    token if token >= SOCKETS => self.socket(token, event.event_set()),
                    channel => self.channel(channel),
                }
                self.do_actions();
            }
            let now = self.now();
            if self.host.next_deadline().is_some_and(|at| at <= now) {
                self.host.handle_timeout(now);
            }
        }
    }

    /// Before the bus sleeps: what was done may be news to the services, and what
    /// they then want may be again.
    fn settle(&mut self) {
        for _ in 0..PASSES {
            self.do_actions();
            if !self.stale {
                break;
            }
        }
    }

    /// Shows what passes as long as somebody looks.
    fn trace(&mut self) {
        let wanted = self.trace.audience().count() > 0;
        if wanted != self.traced {
            let tracer = wanted.then(|| self.trace.tracer(self.services.relids()));
            self.host.set_tracer(tracer);
            self.traced = wanted;
        }
    }

    /// Looks for the guest's daemons as long as somebody wants to know.
    fn watch(&mut self) {
        if let Some(watched) = self.asked.change(|| self.start.elapsed()) {
            let now = self.now();
            self.services.set_watched(&mut self.host, now, watched);
        }
    }

    /// Answers what is asked, if all is known that will be known soon.
    fn answer(&mut self) {
        if self.asked.is_open() {
            let looking = self.services.is_looking(&mut self.host);
            self.answer_if(looking);
        }
    }

    /// Answers what is asked with what is known.
    fn answer_as_known(&mut self) {
        self.answer_if(false);
    }

    fn answer_if(&mut self, looking: bool) {
        let now = self.now();
        for (question, reply) in self.asked.take(now, looking) {
            self.tell(now, question, reply);
        }
    }

    fn ask(&mut self, now: Duration, question: Question, reply: Reply) {
        if let Some((question, reply)) = self.asked.ask(now, question, reply) {
            self.tell(now, question, reply);
        }
    }

    fn tell(&self, now: Duration, question: Question, reply: Reply) {
        reply.send(match question {
            Question::Status(status, _) => self.status(now, *status),
            Question::Services => answer(&self.list(now)),
        });
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Milliseconds to the next deadline, rounded up; -1 without one.
    fn wait_ms(&self) -> i32 {
        let toggles = self.test_devices.iter().filter_map(|device| device.next);
        let others = toggles
            .chain(self.sockets.deadline())
            .chain(self.asked.deadline());
        let next = self.host.next_deadline().into_iter().chain(others).min();
        next.map_or(-1, |at| {
            let left = at.saturating_sub(self.now());
            let ms = left.as_micros().div_ceil(1000);
            i32::try_from(ms).unwrap_or(i32::MAX)
        })
    }

    /// KVM tells of each interrupt that a guest has seen to, not only of messages
    /// read. So it is listened to only while messages wait for their slot; what
    /// it has told meanwhile is in the eventfd's count, and looked at first.
    fn watch_end_of_message(&mut self) -> io::Result<()> {
        if !self.posted {
            return Ok(());
        }
        let Some(event) = self.hyperv.end_of_message_event() else {
            return Ok(());
        };
        let waiting = self.hyperv.has_queued_messages(self.cpus);
        self.posted = waiting;
        if self.watches_eom != waiting {
            let events = if waiting {
                EventSet::IN
            } else {
                EventSet::empty()
            };
            let event_of = EpollEvent::new(events, END_OF_MESSAGE);
            self.epoll
                .ctl(ControlOperation::Modify, event.as_raw_fd(), event_of)?;
            self.watches_eom = waiting;
        }
        Ok(())
    }

    fn messages(&mut self) -> io::Result<()> {
        let _ = self.from_guest.bell.read();
        for _ in 0..MESSAGES_PER_TURN {
            let Ok(posted) = self.from_guest.messages.try_recv() else {
                return Ok(());
            };
            let now = self.now();
            let status =
                self.host
                    .handle_message(now, posted.connection_id, posted.payload.as_slice());
            if !status.is_success() {
                // Only a flood gets here: see `set_congested`.
                log::debug!("a message of the guest's was dropped: {status}");
            }
            self.do_actions();
        }
        // There may be more, and the bell has been read.
        self.from_guest.bell.write(1)
    }

    fn take_calls(&mut self) {
        self.stale = true;
        let _ = self.call_bell.read();
        while let Ok(call) = self.calls.try_recv() {
            let now = self.now();
            match call {
                BusCall::Service(call) => {
                    self.call(now, call);
                    // It may have an outcome already, and the next call another one.
                    self.do_actions();
                    self.stale = true;
                }
                BusCall::Ask(question, reply) => self.ask(now, question, reply),
                BusCall::Paused(paused) => {
                    // What is open was asked before.
                    self.answer_as_known();
                    self.services.set_paused(&mut self.host, now, paused);
                    self.sockets.set_paused(paused);
                }
            }
        }
    }

    fn call(&mut self, now: Duration, call: Call) {
        match self.sockets.call(&mut self.host, now, call) {
            None => {}
            Some(call) if call.op == Op::Services => {
                self.ask(now, Question::Services, call.reply);
            }
            Some(Call { op, reply }) => self.services.call(&mut self.host, now, op, reply),
        }
    }

    /// The services and, last, the sockets.
    fn list(&self, now: Duration) -> Vec<ServiceEntry> {
        let mut all = self.services.list(&self.host, now);
        all.push(self.sockets.entry(&self.host));
        all
    }

    /// Adds what is known here to a status.
    fn status(&self, now: Duration, mut status: VmStatus) -> Answer {
        status.health = self.services.health(&self.host).name().into();
        status.services = self.list(now);
        status.vmbus = self.bus_status();
        if self.services.is_stopping() && status.state == VmState::Running {
            status.state = VmState::Stopping;
        }
        answer(&status)
    }

    fn bus_status(&self) -> BusStatus {
        let session = self.host.session();
        let channels = self.host.bus().channels();
        BusStatus {
            version: session.map(|session| session.version.to_string()),
            guest_os: self.hyperv.guest_os(),
            channels_open: channels.filter(|c| c.state.opened().is_some()).count(),
            violations: self.host.violations().total(),
        }
    }

    fn socket(&mut self, token: u64, events: EventSet) {
        let now = self.now();
        self.sockets.event(&mut self.host, now, token, events);
    }

    fn channel(&mut self, token: u64) {
        let Some(relid) = token
            .checked_sub(CHANNELS)
            .and_then(|relid| u32::try_from(relid).ok())
            .map(Relid)
        else {
            return;
        };
        // It may have been closed by an event before this one.
        if self.channels.contains_key(&relid) {
            self.host.handle_event(self.now(), relid);
        }
    }

    /// Does what the bus wants, until there is nothing left or the guest has to
    /// read its messages first.
    fn do_actions(&mut self) {
        let now = self.now();
        if std::mem::take(&mut self.stale) | self.host.take_touched() {
            self.services.offer(&mut self.host, now);
            self.services.settle(&mut self.host, now);
            self.sockets.tell(&self.host, now);
        }
        while let Some(action) = self.host.poll_action() {
            // Signals are many and change nothing here.
            self.stale |= !matches!(action, Action::SignalEvent { .. });
            match action {
                Action::DiscardMessages => self.hyperv.discard_messages(),
                Action::PostMessage { vp, sint, message } => {
                    self.posted = true;
                    let payload = message.emit();
                    match self
                        .hyperv
                        .post_message(vp, sint, VMBUS_MESSAGE_TYPE, payload)
                    {
                        Ok(()) => {}
                        Err(SynicError::QueueFull) => {
                            self.host.defer(action);
                            self.hyperv.set_congested(true);
                            return;
                        }
                        Err(error) => log::debug!("message to {vp}: {error}"),
                    }
                }
                Action::SignalEvent { vp, sint, flag } => {
                    if let Err(error) = self.hyperv.signal_event(vp, sint, flag) {
                        log::debug!("event {flag} to {vp}: {error}");
                    }
                }
                Action::ChannelOpened {
                    relid,
                    event_connection_id,
                } => {
                    if let Err(error) = self.bind(relid, event_connection_id) {
                        // Out of files, most likely. The guest can try again.
                        log::warn!("{relid} cannot be served: {error}");
                        let _ = self.host.rescind(now, relid);
                    }
                }
                Action::ChannelClosed { relid } => self.unbind(relid),
                Action::ChannelReleased { relid } => {
                    log::debug!("{relid} released");
                    // The number may be in use again.
                    if self.host.device::<Socket>(relid).is_none() {
                        self.sockets.released(relid);
                    }
                }
                Action::ConnectRequest(request) => {
                    self.sockets.request(&mut self.host, now, &request);
                }
                Action::SessionStarted { version } => {
                    log::info!("VMBus: connected, version {version}");
                    self.services.session_started();
                }
                Action::SessionEnded => log::info!("VMBus: disconnected"),
            }
        }
        self.hyperv.set_congested(false);
    }

    fn bind(&mut self, relid: Relid, connection_id: u32) -> io::Result<()> {
        let event = self.hyperv.bind_signal(connection_id)?;
        // By its edges, so that it never has to be read.
        let token = CHANNELS + u64::from(relid.0);
        let edges = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, token);
        let watched = self
            .epoll
            .ctl(ControlOperation::Add, event.as_raw_fd(), edges);
        if let Err(error) = watched {
            self.hyperv.unbind_signal(connection_id);
            return Err(error);
        }
        self.channels.insert(
            relid,
            Bound {
                event,
                connection_id,
            },
        );
        // What the guest signalled before is not lost.
        self.host.poke(self.now(), relid);
        Ok(())
    }

    /// Nobody watches the channel's eventfd any more, which stays open for the next
    /// channel of this number.
    fn unbind(&mut self, relid: Relid) {
        if let Some(channel) = self.channels.remove(&relid) {
            self.hyperv.unbind_signal(channel.connection_id);
            let fd = channel.event.as_raw_fd();
            if let Err(error) = self
                .epoll
                .ctl(ControlOperation::Delete, fd, EpollEvent::default())
            {
                log::debug!("{relid}: {error}");
            }
        }
    }

    /// Offers test devices, and takes those that come and go away and back.
    fn toggle_test_devices(&mut self) {
        let now = self.now();
        for device in &mut self.test_devices {
            if device.next.is_none_or(|at| at > now) {
                continue;
            }
            device.next = device.toggle.map(|every| now.saturating_add(every));
            match device.relid.take() {
                Some(relid) => {
                    // It is offered, so there is something to take back.
                    let _ = self.host.rescind(now, relid);
                }
                // The instance is in use until the guest has released it: then
                // it is offered at the next turn.
                None => match self.host.offer(now, Box::<EchoDevice>::default()) {
                    Ok(relid) => device.relid = Some(relid),
                    Err(error) => log::debug!("echo: {error}"),
                },
            }
        }
    }
}

/// An open channel's eventfd, and the connection that it is bound to.
pub(super) struct Bound {
    event: Arc<EventFd>,
    connection_id: u32,
}

/// A test device and whether it is on the bus.
pub(super) struct Offered {
    toggle: Option<Duration>,
    relid: Option<Relid>,
    next: Option<Duration>,
}

impl Offered {
    pub(super) fn new(device: &TestDevice) -> Self {
        let TestDevice::Echo { toggle } = *device;
        Self {
            toggle,
            relid: None,
            next: Some(Duration::ZERO),
        }
    }
}

pub(super) fn watch(epoll: &Epoll, fd: RawFd, token: u64) -> io::Result<()> {
    epoll.ctl(
        ControlOperation::Add,
        fd,
        EpollEvent::new(EventSet::IN, token),
    )
}
