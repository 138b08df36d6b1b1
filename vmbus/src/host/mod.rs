// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A bus with devices on it: what most hosts want.
//!
//! [`Host`] owns the [`Bus`], the [`Device`]s and the rings of open channels. It
//! carries packets between rings and devices, and keeps the signalling rules, so
//! that a device only sees packets come and go.
//!
//! ```text
//!   guest ── post, signal ──► Host ──► Bus ── channel opened, closed ─┐
//!                              │                                      ▼
//!                              ├──── packets ◄──► rings ◄──────► Device
//!                              ▼
//!                       poll_action: messages, events, channels to bind
//! ```
//!
//! # Work per wake-up
//! A signalled channel is served at once, for [`MAX_PACKETS_PER_TURN`] packets.
//! What is left then is served when [`Host::handle_timeout`] is called, for which
//! [`Host::next_deadline`] asks at once: a guest that never stops sending cannot
//! keep the host from its other channels.
//!
//! # Back-pressure
//! A device whose answer does not fit into the ring says [`Flow::Later`]: the
//! packet stays in its ring and is shown again when the guest has made room, and
//! the guest finds its own ring full. Nothing is buffered in between.

mod channel;
mod device;
mod echo;
mod serve;
mod streaming;
mod trace;

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::bus::{
    Action, Bus, BusConfig, ChannelState, NoChannel, OfferError, Session, Violations,
};
use crate::memory::GuestMemory;
use crate::synic::HvStatus;
use crate::wire::{GuestMessage, Relid, TlConnectRequest};
pub use channel::{Channel, SendError};
use device::AnyDevice;
pub use device::{Device, DeviceError, Flow, Packet};
pub use echo::{ECHO_INSTANCE, ECHO_TYPE, EchoDevice};
use serve::{OpenChannel, Scratch, Served};
pub use streaming::{Batch, MAX_BATCH, StreamingDevice};
pub use trace::{TraceEvent, Tracer};

/// Packets of one channel that are served before the others get their turn.
/// About as many as fit into the rings of an integration service: enough to be
/// worth the wake-up, little enough to pass unnoticed by the other channels.
pub const MAX_PACKETS_PER_TURN: usize = 256;

/// A device and its channel.
struct Slot {
    device: AnyDevice,
    open: Option<OpenChannel>,
    /// In the queue of channels that have more to do.
    ready: bool,
    /// Taken back: the device is only told that its channel closed.
    rescinded: bool,
}

/// A bus with devices on it.
///
/// Four kinds of methods, in this order whenever something happens:
/// 1. the guest did something: [`handle_message`](Self::handle_message),
///    [`handle_signal`](Self::handle_signal), or, when an eventfd is bound to a
///    channel, [`handle_event`](Self::handle_event);
/// 2. time has passed: [`handle_timeout`](Self::handle_timeout);
/// 3. the host wants something: [`offer`](Self::offer), [`rescind`](Self::rescind),
///    [`device_mut`](Self::device_mut) and then [`poke`](Self::poke), [`reset`](Self::reset);
/// 4. [`poll_action`](Self::poll_action) until there is nothing left, then
///    [`next_deadline`](Self::next_deadline).
///
/// Times are durations since some moment that the host chooses, and never go back.
///
/// # Example
/// `examples/embed.rs` is a complete use. In short:
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
/// use vmbus::bus::{Action, BusConfig};
/// use vmbus::host::{EchoDevice, Host};
/// use vmbus::synic::HvStatus;
/// use vmbus::wire::{ContactTarget, GuestMessage, InitiateContact, ProtocolVersion, VpIndex};
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)])?;
/// let mut host = Host::new(Arc::new(memory), BusConfig::default());
/// let now = Duration::ZERO;
/// let relid = host.offer(now, Box::new(EchoDevice::default()))?;
///
/// // A guest connects and asks what there is.
/// let contact = GuestMessage::InitiateContact(InitiateContact {
///     version: ProtocolVersion::V5_3,
///     target_vp: VpIndex(0),
///     target: ContactTarget::Sint { sint: 2, vtl: 0, feature_flags: 0 },
///     monitor_pages: [0, 0],
/// });
/// for message in [contact, GuestMessage::RequestOffers] {
///     let status = host.handle_message(now, 4, message.emit().as_slice());
///     assert_eq!(status, HvStatus::SUCCESS);
/// }
/// let mut messages = Vec::new();
/// while let Some(action) = host.poll_action() {
///     if let Action::PostMessage { message, .. } = action {
///         messages.push(message.message_type().to_string());
///     }
/// }
/// assert_eq!(messages, ["VERSION_RESPONSE", "OFFERCHANNEL", "ALLOFFERS_DELIVERED"]);
/// assert!(!host.is_open(relid), "the guest has not opened it");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Host {
    bus: Bus,
    slots: BTreeMap<Relid, Slot>,
    /// Channels that have more to do.
    ready: VecDeque<Relid>,
    /// Empty: memory for those whose deadline has come.
    due: Vec<Relid>,
    actions: VecDeque<Action>,
    scratch: Scratch,
    tracer: Option<Box<dyn Tracer>>,
    /// A simple device was served.
    touched: bool,
}

impl Host {
    /// A host without devices.
    pub fn new(memory: Arc<dyn GuestMemory>, config: BusConfig) -> Self {
        Self {
            bus: Bus::new(memory, config),
            slots: BTreeMap::new(),
            ready: VecDeque::new(),
            due: Vec::new(),
            actions: VecDeque::new(),
            scratch: Scratch::default(),
            tracer: None,
            touched: false,
        }
    }

    /// Shows every message and packet to `tracer` from now on.
    pub fn set_tracer(&mut self, tracer: Option<Box<dyn Tracer>>) {
        self.tracer = tracer;
    }

    /// The guest posted a message; see [`Bus::handle_message`].
    pub fn handle_message(&mut self, now: Duration, connection: u32, payload: &[u8]) -> HvStatus {
        if let Some(tracer) = &mut self.tracer {
            let message = GuestMessage::parse(payload);
            let event = match &message {
                Ok(message) => TraceEvent::GuestMessage(message),
                Err(error) => TraceEvent::Malformed(*error, payload),
            };
            tracer.trace(now, event);
        }
        let backlog = self.actions.len();
        let status = self.bus.handle_with_backlog(connection, payload, backlog);
        self.collect(now);
        status
    }

    /// The guest signalled a connection. Returns what the hypercall returns.
    pub fn handle_signal(&mut self, now: Duration, connection: u32, flag: u16) -> HvStatus {
        match self.bus.handle_signal(connection, flag) {
            Ok(relid) => {
                self.handle_event(now, relid);
                HvStatus::SUCCESS
            }
            Err(status) => status,
        }
    }

    /// The guest signalled a channel. A channel that is not open ignores it.
    pub fn handle_event(&mut self, now: Duration, relid: Relid) {
        if let Some(tracer) = &mut self.tracer {
            tracer.trace(now, TraceEvent::GuestSignal(relid));
        }
        self.serve(now, relid);
        self.collect(now);
    }

    /// Serves channels that have more to do and devices whose time has come.
    pub fn handle_timeout(&mut self, now: Duration) {
        for _ in 0..self.ready.len() {
            let Some(relid) = self.ready.pop_front() else {
                break;
            };
            if let Some(slot) = self.slots.get_mut(&relid) {
                slot.ready = false;
            }
            self.serve(now, relid);
        }
        let is_due = |slot: &Slot| slot.deadline().is_some_and(|deadline| deadline <= now);
        let slots = self.slots.iter().filter(|(_, slot)| is_due(slot));
        let mut due = std::mem::take(&mut self.due);
        due.extend(slots.map(|(relid, _)| *relid));
        for relid in due.drain(..) {
            match self.slots.get_mut(&relid) {
                Some(slot) if slot.open.is_none() => slot.device.not_opened(now),
                _ => self.poke(now, relid),
            }
            self.retire(now, relid);
        }
        self.due = due;
        self.collect(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if ever.
    /// Zero, and so at once, while there are channels with more to do.
    pub fn next_deadline(&self) -> Option<Duration> {
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        self.slots.values().filter_map(Slot::deadline).min()
    }

    /// What the host is to do next. `None` when there is nothing left.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Puts an action back as the next one: the host cannot do it now.
    pub fn defer(&mut self, action: Action) {
        self.actions.push_front(action);
    }

    /// Whether a [`Device`] was served since the last call: if not, there is nothing
    /// new to ask of any. Streaming devices do not count.
    pub fn take_touched(&mut self) -> bool {
        std::mem::take(&mut self.touched)
    }

    /// Actions that wait.
    pub fn pending_actions(&self) -> usize {
        self.actions.len()
    }

    /// Offers a device to the guest.
    pub fn offer(&mut self, now: Duration, device: Box<dyn Device>) -> Result<Relid, OfferError> {
        self.offer_any(now, AnyDevice::Simple(device))
    }

    /// Offers a device of the second level to the guest.
    pub fn offer_streaming(
        &mut self,
        now: Duration,
        device: Box<dyn StreamingDevice>,
    ) -> Result<Relid, OfferError> {
        self.offer_any(now, AnyDevice::Streaming(device))
    }

    fn offer_any(&mut self, now: Duration, device: AnyDevice) -> Result<Relid, OfferError> {
        let relid = self.bus.offer(device.offer())?;
        let slot = Slot {
            device,
            open: None,
            ready: false,
            rescinded: false,
        };
        self.slots.insert(relid, slot);
        self.collect(now);
        Ok(relid)
    }

    /// Takes a device back. It is closed at once, whatever the guest does, and
    /// is dropped when the guest has released the channel; until then neither
    /// its number nor its instance can be offered again.
    pub fn rescind(&mut self, now: Duration, relid: Relid) -> Result<(), NoChannel> {
        self.bus.rescind(relid)?;
        if let Some(slot) = self.slots.get_mut(&relid) {
            slot.close(now);
            slot.rescinded = true;
        }
        self.collect(now);
        Ok(())
    }

    /// The device behind a channel, if it is a `T`. After changing what it
    /// wants to send, [`poke`](Self::poke) it.
    pub fn device_mut<T: Any>(&mut self, relid: Relid) -> Option<&mut T> {
        let slot = self.slots.get_mut(&relid)?;
        slot.device.as_any_mut().downcast_mut()
    }

    /// The device behind a channel, if it is a `T`.
    pub fn device<T: Any>(&self, relid: Relid) -> Option<&T> {
        let slot = self.slots.get(&relid)?;
        slot.device.as_any().downcast_ref()
    }

    /// The channel of the device that is a `T`, if there is one.
    pub fn find<T: Any>(&self) -> Option<Relid> {
        let mut slots = self.slots.iter();
        let found = slots.find(|(_, slot)| slot.device.as_any().is::<T>() && !slot.rescinded);
        found.map(|(relid, _)| *relid)
    }

    /// Gives a device with an open channel the opportunity to send, and shows it
    /// the packets that it put off.
    pub fn poke(&mut self, now: Duration, relid: Relid) {
        if let Some(open) = self
            .slots
            .get_mut(&relid)
            .and_then(|slot| slot.open.as_mut())
        {
            open.poll_soon();
            self.serve(now, relid);
        }
        self.collect(now);
    }

    /// The guest's memory is another object from now on: memory was added, or taken
    /// away where no channel has pages. See [`crate::memory`].
    pub fn set_memory(&mut self, memory: Arc<dyn GuestMemory>) {
        self.bus.set_memory(memory);
    }

    /// Tells the memory which pages of open rings may have been written since they
    /// were opened: to be called with no vCPU running, before the log of dirty pages
    /// is read. See [`crate::memory`].
    pub fn mark_rings_dirty(&self) {
        for open in self.slots.values().filter_map(|slot| slot.open.as_ref()) {
            open.mark_dirty();
        }
    }

    /// Refuses a connection that the guest asked for.
    pub fn refuse_connect(&mut self, now: Duration, request: &TlConnectRequest) {
        self.bus.refuse_connect(request);
        self.collect(now);
    }

    /// The machine was reset.
    pub fn reset(&mut self, now: Duration) {
        self.bus.reset();
        self.collect(now);
    }

    /// Whether a channel is open and its rings are sound.
    pub fn is_open(&self, relid: Relid) -> bool {
        self.slots
            .get(&relid)
            .is_some_and(|slot| slot.open.is_some())
    }

    /// Where a channel is between its offer and its end.
    pub fn channel_state(&self, relid: Relid) -> Option<&ChannelState> {
        self.bus.channel(relid).map(|channel| channel.state)
    }

    /// The guest's session, if there is one.
    pub fn session(&self) -> Option<&Session> {
        self.bus.session()
    }

    /// What the guest did wrong so far.
    pub fn violations(&self) -> &Violations {
        self.bus.violations()
    }

    /// The control plane, to look at.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    fn serve(&mut self, now: Duration, relid: Relid) {
        if let Some(slot) = self.slots.get_mut(&relid) {
            let mut tracer = self.tracer.as_deref_mut();
            let served = slot.serve(now, relid, &mut self.scratch, &mut tracer);
            self.finish(now, relid, &served);
        }
    }

    /// Does what serving a channel led to.
    fn finish(&mut self, now: Duration, relid: Relid, served: &Served) {
        if served.signal {
            // It is open, or nothing would have been served.
            let _ = self.bus.signal_guest(relid);
        }
        if let Some(violation) = served.violation {
            self.bus.violate(violation);
        }
        let Some(slot) = self.slots.get_mut(&relid) else {
            return;
        };
        self.touched |= slot.device.has_news();
        if served.violation.is_some() {
            slot.close(now);
        }
        if served.more && !slot.ready {
            slot.ready = true;
            self.ready.push_back(relid);
        }
        self.retire(now, relid);
    }

    /// Takes a channel back whose device has finished.
    fn retire(&mut self, now: Duration, relid: Relid) {
        let slot = self.slots.get_mut(&relid);
        if let Some(slot) = slot.filter(|slot| !slot.rescinded && slot.device.is_finished()) {
            slot.close(now);
            slot.rescinded = true;
            // There is such a channel, or there would be no device.
            let _ = self.bus.rescind(relid);
        }
    }

    /// Takes the bus's actions, does those that are about devices, and passes
    /// all of them on.
    fn collect(&mut self, now: Duration) {
        while let Some(action) = self.bus.poll_action() {
            match action {
                Action::DiscardMessages => self.actions.retain(|action| {
                    !matches!(
                        action,
                        Action::PostMessage { .. }
                            | Action::SignalEvent { .. }
                            | Action::ConnectRequest(_)
                    )
                }),
                Action::PostMessage { message, .. } => {
                    if let Some(tracer) = &mut self.tracer {
                        tracer.trace(now, TraceEvent::HostMessage(&message));
                    }
                }
                Action::SignalEvent { flag, .. } => {
                    // What waits already serves for this one, too.
                    if self.actions.contains(&action) {
                        continue;
                    }
                    if let Some(tracer) = &mut self.tracer {
                        tracer.trace(now, TraceEvent::HostSignal(Relid(flag.into())));
                    }
                }
                Action::ChannelOpened { relid, .. } => self.opened(now, relid),
                Action::ChannelClosed { relid } => {
                    if let Some(slot) = self.slots.get_mut(&relid) {
                        slot.close(now);
                    }
                    self.retire(now, relid);
                }
                Action::ChannelReleased { relid } => {
                    self.slots.remove(&relid);
                }
                Action::ConnectRequest(_)
                | Action::SessionStarted { .. }
                | Action::SessionEnded => {}
            }
            self.actions.push_back(action);
        }
    }

    fn opened(&mut self, now: Duration, relid: Relid) {
        let Some(rings) = self.bus.take_rings(relid) else {
            return;
        };
        let Some(info) = self.bus.channel(relid) else {
            return;
        };
        let user_data = info.state.opened().map_or([0; 120], |open| open.user_data);
        let Some(slot) = self.slots.get_mut(&relid) else {
            return;
        };
        slot.open = Some(OpenChannel::new(rings, user_data));
        let mut tracer = self.tracer.as_deref_mut();
        let served = slot.opened(now, relid, &mut self.scratch, &mut tracer);
        self.finish(now, relid, &served);
        // The guest may have sent before it heard that the channel is open.
        self.serve(now, relid);
    }
}

#[cfg(test)]
mod tests;
