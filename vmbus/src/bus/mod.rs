// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control plane of the bus as one pure state machine (protocol 4).
//!
//! ```text
//!                 INITIATE_CONTACT, any state: everything of the old session goes
//!              ┌────────────────────────────────────────────────┐
//!              ▼                                                │
//!   Disconnected ──► Connected ── REQUESTOFFERS ──► Connected, offers sent
//!        ▲              │ UNLOAD, reset                  │ UNLOAD, reset
//!        └──────────────┴────────────────────────────────┘
//! ```
//!
//! What a channel goes through is in [`ChannelState`]. The bus owns no thread,
//! no clock and no file descriptor: bytes go in, [`Action`]s come out.

mod action;
mod channel;
mod connection;
mod handlers;
mod violation;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::gpadl::GpadlTable;
use crate::memory::GuestMemory;
use crate::synic::HvStatus;
use crate::wire::{
    ChannelFlags, GpadlId, GuestMessage, Guid, HostMessage, Offer, PIPE_MODE_MESSAGE,
    ProtocolVersion, Relid, Sint, TlConnectRequest, TlConnectResult, USER_DEFINED_SIZE, VpIndex,
};
pub use action::Action;
use channel::Channel;
pub use channel::{ChannelInfo, ChannelState, Opened};
use connection::Connection;
pub use connection::Session;
pub use violation::{Violation, Violations};

/// The message connection of versions before 5.0.
pub const MESSAGE_CONNECTION: u32 = 1;
/// The message connection of versions from 5.0 on.
pub const MESSAGE_CONNECTION_V5: u32 = 4;
/// A channel's event connection is this plus its relid, out of the way of the
/// small ids that have a meaning of their own.
pub const EVENT_CONNECTION_BASE: u32 = 0x1_0000;

/// Actions that may wait before the guest's posts are refused for the moment.
/// One post causes a few, but for a contact and a request for offers, which
/// cause some per channel. A host that polls after every call has none waiting.
pub const MAX_PENDING_ACTIONS: usize = 256;

/// The same for what ends a session. It voids all messages that wait, but the
/// host is still to hear of each channel that closes.
const MAX_PENDING_ACTIONS_OF_ENDS: usize = 3 * Relid::END as usize;

/// Requests for a connection that the host has not answered. As many may be
/// under way as other hosts allow several times over; the next is refused.
pub const MAX_PENDING_CONNECTS: usize = 64;

/// What does not change while a VM runs.
#[derive(Clone, Copy, Debug)]
pub struct BusConfig {
    /// Virtual processors: those below this index exist.
    pub vps: u32,
    /// The newest version to accept. Beyond 5.3 it changes nothing.
    pub max_version: ProtocolVersion,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self {
            vps: 1,
            max_version: ProtocolVersion::V5_3,
        }
    }
}

/// What a host offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfferSpec {
    /// Which driver it is for.
    pub interface_type: Guid,
    /// Which device it is; unique among everything offered.
    pub instance: Guid,
    /// Flags. Bits that kernels refuse (0x2 and 0x4) are left out.
    pub flags: ChannelFlags,
    /// The device's own bytes. A pipe's begin with its mode.
    pub user_defined: [u8; USER_DEFINED_SIZE],
    /// The offer ends with the guest's session, as that of a socket does; the
    /// others are repeated in the next one.
    pub session_only: bool,
}

impl OfferSpec {
    /// A message pipe, which all integration services are.
    pub fn message_pipe(interface_type: Guid, instance: Guid) -> Self {
        let mut user_defined = [0; USER_DEFINED_SIZE];
        for (to, from) in user_defined.iter_mut().zip(PIPE_MODE_MESSAGE.to_le_bytes()) {
            *to = from;
        }
        Self {
            interface_type,
            instance,
            flags: ChannelFlags::ENUMERATE_DEVICE_INTERFACE | ChannelFlags::NAMED_PIPE_MODE,
            user_defined,
            session_only: false,
        }
    }
}

/// Why nothing was offered. The host is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// A guest takes a second channel with the instance for the first one. A
    /// rescinded one blocks its instance until the guest has released it.
    #[error("a channel with instance {0} exists")]
    InstanceInUse(Guid),
    /// All 2047 numbers are taken.
    #[error("there is no free channel number")]
    NoRelid,
    /// A socket can only be offered to a guest that is connected.
    #[error("there is no session")]
    NoSession,
}

/// There is no such channel, or it is not in a state for this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not there, or not open")]
pub struct NoChannel(pub Relid);

/// The host's side of the bus.
///
/// Four kinds of methods, in this order whenever something happens:
/// 1. the guest did something: [`handle_message`](Self::handle_message),
///    [`handle_signal`](Self::handle_signal);
/// 2. the host wants something: [`offer`](Self::offer), [`rescind`](Self::rescind),
///    [`signal_guest`](Self::signal_guest), [`refuse_connect`](Self::refuse_connect),
///    [`reset`](Self::reset);
/// 3. [`poll_action`](Self::poll_action) until there is nothing left;
/// 4. looking: [`session`](Self::session), [`channels`](Self::channels),
///    [`violations`](Self::violations).
///
/// Most hosts want [`Host`](crate::host::Host), which adds devices and rings.
///
/// # Memory
/// Whatever a guest does, the bus keeps less than 8 MiB for it: page lists
/// 1.5 MiB ([`MAX_PAGES`](crate::gpadl::MAX_PAGES)) and 0.5 MiB for their table,
/// actions 2 MiB, channels 2 MiB. Open rings take up to 32 bytes per page beside
/// that.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
/// use vmbus::bus::{Action, Bus, BusConfig, OfferSpec};
/// use vmbus::wire::*;
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)])?;
/// let mut bus = Bus::new(Arc::new(memory), BusConfig::default());
/// let relid = bus.offer(OfferSpec::message_pipe(
///     Guid::from_u128(0x57164f39_9115_4e78_ab55_382f3bd5422d),
///     Guid::from_u128(0xfd149e91_82e0_4a7d_afa6_2a4166cbd7c0),
/// ))?;
///
/// // The guest says hello.
/// let contact = GuestMessage::InitiateContact(InitiateContact {
///     version: ProtocolVersion::V5_3,
///     target_vp: VpIndex(0),
///     target: ContactTarget::Sint { sint: 2, vtl: 0, feature_flags: 0 },
///     monitor_pages: [0, 0],
/// });
/// bus.handle_message(4, contact.emit().as_slice());
/// assert_eq!(bus.poll_action(), Some(Action::DiscardMessages));
/// let version = ProtocolVersion::V5_3;
/// assert_eq!(bus.poll_action(), Some(Action::SessionStarted { version }));
/// let answer = HostMessage::VersionResponse(VersionResponse {
///     supported: true,
///     connection_state: 0,
///     connection_id: 4,
/// });
/// assert!(matches!(
///     bus.poll_action(),
///     Some(Action::PostMessage { message, .. }) if message == answer
/// ));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Bus {
    memory: Arc<dyn GuestMemory>,
    config: BusConfig,
    connection: Connection,
    channels: BTreeMap<Relid, Channel>,
    gpadls: GpadlTable,
    /// Requests that the host has not answered.
    connects: Vec<TlConnectRequest>,
    actions: VecDeque<Action>,
    violations: Violations,
}

impl Bus {
    /// A bus that nobody is connected to and that offers nothing.
    pub fn new(memory: Arc<dyn GuestMemory>, config: BusConfig) -> Self {
        Self {
            memory,
            config,
            connection: Connection::Disconnected,
            channels: BTreeMap::new(),
            gpadls: GpadlTable::new(),
            connects: Vec::new(),
            actions: VecDeque::new(),
            violations: Violations::default(),
        }
    }

    /// The guest's memory is another object from now on. Rings that are open stay in
    /// the old one; lists of pages hold page numbers, which are looked up in the new
    /// one when a channel opens.
    pub fn set_memory(&mut self, memory: Arc<dyn GuestMemory>) {
        self.memory = memory;
    }

    /// Whether the bus takes messages on `connection_id`. A host that queues
    /// messages asks this before it tells the guest that its post succeeded.
    pub const fn is_message_connection(connection_id: u32) -> bool {
        matches!(connection_id, MESSAGE_CONNECTION | MESSAGE_CONNECTION_V5)
    }

    /// The guest posted a message of type
    /// [`VMBUS_MESSAGE_TYPE`](crate::synic::VMBUS_MESSAGE_TYPE). Returns what
    /// the hypercall returns.
    ///
    /// Messages that are malformed, or make no sense in the present state, are
    /// counted as violations and otherwise ignored: the post itself succeeded.
    pub fn handle_message(&mut self, connection_id: u32, payload: &[u8]) -> HvStatus {
        self.handle_with_backlog(connection_id, payload, 0)
    }

    /// The same for a host that has `backlog` actions of ours waiting.
    pub(crate) fn handle_with_backlog(
        &mut self,
        connection_id: u32,
        payload: &[u8],
        backlog: usize,
    ) -> HvStatus {
        if !Self::is_message_connection(connection_id) {
            return HvStatus::INVALID_CONNECTION_ID;
        }
        let message = GuestMessage::parse(payload);
        // What ends a session also empties the queue, so it gets by.
        let ends = matches!(
            message,
            Ok(GuestMessage::InitiateContact(_) | GuestMessage::Unload)
        );
        let most = if ends {
            MAX_PENDING_ACTIONS_OF_ENDS
        } else {
            MAX_PENDING_ACTIONS
        };
        if self.actions.len() + backlog >= most {
            return HvStatus::INSUFFICIENT_BUFFERS;
        }
        match message {
            Ok(message) => self.dispatch(&message),
            Err(error) => self.violate(Violation::Malformed(error)),
        }
        HvStatus::SUCCESS
    }

    /// The guest signalled `connection_id`. The channel that is meant, or what
    /// the hypercall returns instead.
    pub fn handle_signal(&self, connection_id: u32, flag: u16) -> Result<Relid, HvStatus> {
        let relid = connection_id
            .checked_sub(EVENT_CONNECTION_BASE)
            .map(Relid)
            .filter(|relid| self.channels.contains_key(relid))
            .ok_or(HvStatus::INVALID_CONNECTION_ID)?;
        // Each of our connections has the one flag that Linux uses.
        if flag == 0 {
            Ok(relid)
        } else {
            Err(HvStatus::INVALID_PORT_ID)
        }
    }

    /// Offers a channel: at once if the guest has got its offers already,
    /// otherwise when it asks for them.
    pub fn offer(&mut self, spec: OfferSpec) -> Result<Relid, OfferError> {
        if spec.session_only && !self.connection.offers_sent() {
            return Err(OfferError::NoSession);
        }
        let same = |channel: &Channel| channel.spec.instance == spec.instance;
        if self.channels.values().any(same) {
            return Err(OfferError::InstanceInUse(spec.instance));
        }
        let relid = (1..Relid::END)
            .map(Relid)
            .find(|relid| !self.channels.contains_key(relid))
            .ok_or(OfferError::NoRelid)?;
        self.connects.retain(|request| {
            (request.endpoint, request.service) != (spec.instance, spec.interface_type)
        });
        self.channels.insert(relid, Channel::new(spec));
        if self.connection.offers_sent() {
            self.send_offer(relid);
        }
        Ok(relid)
    }

    /// Takes an offer back. The number and the instance are free again when
    /// [`Action::ChannelReleased`] comes; until then an open channel stays
    /// open at the guest's end, and is closed by it.
    pub fn rescind(&mut self, relid: Relid) -> Result<(), NoChannel> {
        let channel = self.channels.get_mut(&relid).ok_or(NoChannel(relid))?;
        match channel.state.clone() {
            ChannelState::NotOffered => self.release(relid),
            ChannelState::Offered => {
                channel.state = ChannelState::Rescinded;
                self.post(HostMessage::RescindChannelOffer { relid });
            }
            ChannelState::Open(opened) => {
                channel.state = ChannelState::RescindedOpen(opened);
                self.post(HostMessage::RescindChannelOffer { relid });
            }
            ChannelState::Rescinded | ChannelState::RescindedOpen(_) => {
                return Err(NoChannel(relid));
            }
        }
        Ok(())
    }

    /// Raises the event of an open channel at the processor that the guest
    /// chose for it. Nothing happens if it wants no interrupts.
    pub fn signal_guest(&mut self, relid: Relid) -> Result<(), NoChannel> {
        let channel = self.channels.get(&relid);
        let opened = channel.and_then(|channel| channel.state.opened());
        let target = opened.ok_or(NoChannel(relid))?.target_vp;
        if let Some(vp) = target {
            self.signal(vp, relid);
        }
        Ok(())
    }

    /// Refuses a connection that the guest asked for with
    /// [`Action::ConnectRequest`]. Windows looks at the answer; Linux waits for
    /// its timeout.
    pub fn refuse_connect(&mut self, request: &TlConnectRequest) {
        let before = self.connects.len();
        self.connects.retain(|pending| pending != request);
        if self.connects.len() != before {
            self.post_refusal(request);
        }
    }

    /// The machine was reset: the session ends without a word. Channels close;
    /// offers stay for the next session.
    pub fn reset(&mut self) {
        self.end_session();
        self.connection = Connection::Disconnected;
    }

    /// What the host is to do next. `None` when there is nothing left.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Puts an action back as the next one: the host cannot do it now.
    pub fn defer(&mut self, action: Action) {
        self.actions.push_front(action);
    }

    /// Actions that wait.
    pub fn pending_actions(&self) -> usize {
        self.actions.len()
    }

    /// The guest's session, if there is one.
    pub fn session(&self) -> Option<&Session> {
        self.connection.session()
    }

    /// A channel.
    pub fn channel(&self, relid: Relid) -> Option<ChannelInfo<'_>> {
        let channel = self.channels.get(&relid)?;
        Some(channel.info(relid))
    }

    /// All channels in order of their numbers.
    pub fn channels(&self) -> impl Iterator<Item = ChannelInfo<'_>> {
        self.channels
            .iter()
            .map(|(relid, channel)| channel.info(*relid))
    }

    /// The rings of a channel that was opened, for whoever serves it. They can
    /// be taken once per [`Action::ChannelOpened`].
    pub fn take_rings(&mut self, relid: Relid) -> Option<crate::ring::RingPair> {
        self.channels.get_mut(&relid)?.rings.take()
    }

    /// The pages of a list that the guest made for a channel.
    pub fn page_list(&self, relid: Relid, gpadl: GpadlId) -> Option<&crate::gpadl::PageList> {
        self.gpadls.get(relid, gpadl)
    }

    /// How many page lists there are, complete or not.
    pub fn page_lists(&self) -> usize {
        self.gpadls.len()
    }

    /// What the guest did wrong so far.
    pub fn violations(&self) -> &Violations {
        &self.violations
    }

    /// The guest memory that rings are in.
    pub fn memory(&self) -> &Arc<dyn GuestMemory> {
        &self.memory
    }

    pub(crate) fn violate(&mut self, violation: Violation) {
        log::debug!("guest: {violation}");
        self.violations.count(violation);
    }

    /// Sends a message in the present session.
    fn post(&mut self, message: HostMessage) {
        if let Some(session) = self.connection.session() {
            let (vp, sint) = (session.target_vp, session.sint);
            self.actions
                .push_back(Action::PostMessage { vp, sint, message });
        }
    }

    fn signal(&mut self, vp: VpIndex, relid: Relid) {
        let sint = self.connection.session().map_or(Sint::VMBUS, |s| s.sint);
        // Relids end at 2047, as the flags do.
        if let Ok(flag) = u16::try_from(relid.0) {
            let action = Action::SignalEvent { vp, sint, flag };
            // A guest can cause these by signals, for which nothing is refused.
            if !self.actions.contains(&action) {
                self.actions.push_back(action);
            }
        }
    }

    fn send_offer(&mut self, relid: Relid) {
        let Some(channel) = self.channels.get_mut(&relid) else {
            return;
        };
        channel.state = ChannelState::Offered;
        let spec = channel.spec;
        self.post(HostMessage::OfferChannel(Offer {
            interface_type: spec.interface_type,
            instance: spec.instance,
            flags: spec.flags & !channel::REFUSED_FLAGS,
            mmio_megabytes: 0,
            user_defined: spec.user_defined,
            sub_channel_index: 0,
            relid,
            monitor_id: None,
            dedicated_interrupt: true,
            connection_id: EVENT_CONNECTION_BASE + relid.0,
        }));
    }

    fn post_refusal(&mut self, request: &TlConnectRequest) {
        self.post(HostMessage::TlConnectResult(TlConnectResult {
            endpoint: request.endpoint,
            service: request.service,
            status: STATUS_CONNECTION_REFUSED,
        }));
    }

    /// Whoever serves the channel must stop before anything else happens.
    fn close(&mut self, relid: Relid) {
        if let Some(channel) = self.channels.get_mut(&relid) {
            channel.rings = None;
        }
        self.actions.push_back(Action::ChannelClosed { relid });
    }

    /// The channel is gone: its number and instance are free.
    fn release(&mut self, relid: Relid) {
        self.gpadls.remove_channel(relid);
        self.channels.remove(&relid);
        self.actions.push_back(Action::ChannelReleased { relid });
    }
}

/// NTSTATUS of a refused connection, 0xC0000236.
const STATUS_CONNECTION_REFUSED: i32 = 0xc000_0236_u32.cast_signed();

#[cfg(test)]
mod tests;
