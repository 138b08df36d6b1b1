// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sessions: INITIATE_CONTACT, REQUESTOFFERS, UNLOAD (protocol 4.2 to 4.5, 4.11).
//!
//! A contact in any state starts over: after a kexec or a crash without UNLOAD
//! it is the first thing that the host hears of the new kernel. The answer goes
//! to the processor that the contact names, as does everything after it.

use super::{Action, Bus, ChannelState, MESSAGE_CONNECTION_V5, Violation};
use crate::wire::{
    ContactTarget, HostMessage, InitiateContact, MessageType, ProtocolVersion, Relid, Sint,
    VersionResponse, VpIndex,
};

/// Versions that this host speaks. 0.13 and 1.1 lack event connections of the
/// channels' own; 6.0 adds features that must be answered at length.
const VERSIONS: [ProtocolVersion; 8] = [
    ProtocolVersion::V2_4,
    ProtocolVersion::V3_0,
    ProtocolVersion::V4_0,
    ProtocolVersion::V4_1,
    ProtocolVersion::V5_0,
    ProtocolVersion::V5_1,
    ProtocolVersion::V5_2,
    ProtocolVersion::V5_3,
];

/// What guest and host have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// The version.
    pub version: ProtocolVersion,
    /// Where all messages go.
    pub target_vp: VpIndex,
    /// To which slot.
    pub sint: Sint,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Connection {
    Disconnected,
    /// A version is agreed on; the guest has not asked for offers.
    Connected(Session),
    /// The guest has got all offers; further ones are sent at once.
    OffersSent(Session),
}

impl Connection {
    pub(super) fn session(&self) -> Option<&Session> {
        match self {
            Self::Disconnected => None,
            Self::Connected(session) | Self::OffersSent(session) => Some(session),
        }
    }

    pub(super) fn offers_sent(&self) -> bool {
        matches!(self, Self::OffersSent(_))
    }
}

impl Bus {
    pub(super) fn initiate_contact(&mut self, contact: &InitiateContact) {
        self.end_session();
        self.connection = Connection::Disconnected;
        let version = contact.version;
        let session = Session {
            version,
            target_vp: contact.target_vp,
            sint: Sint::VMBUS,
        };
        let accepted = self.check_contact(contact);
        if accepted {
            self.connection = Connection::Connected(session);
            self.actions.push_back(Action::SessionStarted { version });
        }
        // Linux looks at `supported` alone, and takes whatever follows for the
        // connection id only if the version is new enough.
        let connection_id = if accepted && version >= ProtocolVersion::V5_0 {
            MESSAGE_CONNECTION_V5
        } else {
            version.0
        };
        // A processor that does not exist hears nothing, so the boot processor does.
        let vp = if self.vp_exists(contact.target_vp) {
            contact.target_vp
        } else {
            VpIndex::BSP
        };
        self.actions.push_back(Action::PostMessage {
            vp,
            sint: session.sint,
            message: HostMessage::VersionResponse(VersionResponse {
                supported: accepted,
                connection_state: 0,
                connection_id,
            }),
        });
    }

    fn check_contact(&mut self, contact: &InitiateContact) -> bool {
        if !self.vp_exists(contact.target_vp) {
            self.violate(Violation::NoSuchVp(
                MessageType::INITIATE_CONTACT,
                contact.target_vp,
            ));
            return false;
        }
        if let ContactTarget::Sint { sint, vtl, .. } = contact.target
            && (sint != Sint::VMBUS.number() || vtl != 0)
        {
            self.violate(Violation::BadTarget { sint, vtl });
            return false;
        }
        let version = contact.version;
        version <= self.config.max_version && VERSIONS.contains(&version)
    }

    pub(super) fn request_offers(&mut self) {
        let Connection::Connected(session) = self.connection else {
            self.violate(Violation::OutOfPlace(MessageType::REQUESTOFFERS));
            return;
        };
        self.connection = Connection::OffersSent(session);
        let relids: Vec<Relid> = self.channels.keys().copied().collect();
        for relid in relids {
            self.send_offer(relid);
        }
        self.post(HostMessage::AllOffersDelivered);
    }

    pub(super) fn unload(&mut self) {
        // A kernel that panics before it got a session may wait for an answer
        // all the same, on the boot processor or wherever its contact went.
        let session = self.connection.session().copied();
        self.end_session();
        self.connection = Connection::Disconnected;
        self.actions.push_back(Action::PostMessage {
            vp: session.map_or(VpIndex::BSP, |session| session.target_vp),
            sint: session.map_or(Sint::VMBUS, |session| session.sint),
            message: HostMessage::UnloadResponse,
        });
    }

    /// Drops everything that belongs to the session: channels close, page lists
    /// and messages are forgotten, offers become unknown to the guest.
    pub(super) fn end_session(&mut self) {
        let relids: Vec<Relid> = self.channels.keys().copied().collect();
        // What was to be sent is void. Other actions stay: the host relies on
        // hearing of every channel that opens, closes or goes.
        self.actions.retain(|action| {
            !matches!(
                action,
                Action::PostMessage { .. } | Action::SignalEvent { .. } | Action::ConnectRequest(_)
            )
        });
        for relid in relids {
            self.end_channel(relid);
        }
        self.gpadls.clear();
        self.connects.clear();
        if self.connection.session().is_some() {
            self.actions.push_back(Action::SessionEnded);
        }
        self.actions.push_back(Action::DiscardMessages);
    }

    fn end_channel(&mut self, relid: Relid) {
        let Some(channel) = self.channels.get_mut(&relid) else {
            return;
        };
        let session_only = channel.spec.session_only;
        let (open, gone) = match channel.state {
            ChannelState::NotOffered | ChannelState::Offered => (false, session_only),
            ChannelState::Open(_) => (true, session_only),
            ChannelState::RescindedOpen(_) => (true, true),
            // A new kernel has never heard of it.
            ChannelState::Rescinded => (false, true),
        };
        channel.state = ChannelState::NotOffered;
        if open {
            self.close(relid);
        }
        if gone {
            self.release(relid);
        }
    }

    pub(super) fn vp_exists(&self, vp: VpIndex) -> bool {
        vp.0 < self.config.vps
    }
}
