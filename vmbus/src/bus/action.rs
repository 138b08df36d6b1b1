// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one outlet of the bus: what it wants from its host.

use crate::wire::{HostMessage, ProtocolVersion, Relid, Sint, TlConnectRequest, VpIndex};

/// What the host is to do, in the order in which it comes.
// The large variant is the common one.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Forget all messages that wait for the guest, on every processor: the
    /// session they belong to is over.
    DiscardMessages,
    /// Send a message to the guest. The host's queue being full, give the
    /// action to [`Bus::defer`](super::Bus::defer) and go on after an EOM.
    PostMessage {
        /// To which processor.
        vp: VpIndex,
        /// To which of its slots.
        sint: Sint,
        /// The message; [`HostMessage::emit`] gives the bytes.
        message: HostMessage,
    },
    /// Set an event flag.
    SignalEvent {
        /// At which processor.
        vp: VpIndex,
        /// Of which SINT.
        sint: Sint,
        /// Which flag: the channel's number.
        flag: u16,
    },
    /// The guest opened a channel. Its signals come with `event_connection_id`;
    /// a host can bind it to an eventfd now.
    ChannelOpened {
        /// Which channel.
        relid: Relid,
        /// What the guest names in HvSignalEvent.
        event_connection_id: u32,
    },
    /// A channel is closed: its rings must not be touched any more, and must
    /// have been dropped before the next action is polled. A host that has
    /// bound its event connection unbinds it.
    ChannelClosed {
        /// Which channel.
        relid: Relid,
    },
    /// A channel is gone; its number and its instance GUID can be used again.
    ChannelReleased {
        /// Which channel.
        relid: Relid,
    },
    /// The guest wants to connect to a service. Answer with
    /// [`Bus::offer`](super::Bus::offer), of the service as type and the
    /// endpoint as instance, or with [`Bus::refuse_connect`](super::Bus::refuse_connect).
    ConnectRequest(TlConnectRequest),
    /// A session began.
    SessionStarted {
        /// With this version.
        version: ProtocolVersion,
    },
    /// The session ended. Its channels were closed before.
    SessionEnded,
}
