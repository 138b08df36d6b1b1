// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a channel goes through (protocol 4.5 to 4.10, 4.15).
//!
//! ```text
//!                REQUESTOFFERS, hot add          OPENCHANNEL
//!   NotOffered ───────────────────────► Offered ────────────► Open
//!       ▲ new session                      │    ◄────────────  │
//!       └──────────────────────────────────┤     CLOSECHANNEL  │
//!                                  rescind │                   │ rescind
//!                                          ▼     CLOSECHANNEL  ▼
//!                                      Rescinded ◄──────── RescindedOpen
//!                                          │ RELID_RELEASED     │
//!                                          └──────► gone ◄──────┘
//! ```

use super::{EVENT_CONNECTION_BASE, OfferSpec};
use crate::ring::RingPair;
use crate::wire::{ChannelFlags, GpadlId, Relid, USER_DEFINED_SIZE, VpIndex};

/// What was said when a channel was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The page list with the rings.
    pub gpadl: GpadlId,
    /// Who is interrupted; `None` if nobody is to be.
    pub target_vp: Option<VpIndex>,
    /// The driver's own bytes.
    pub user_data: [u8; USER_DEFINED_SIZE],
}

/// Where a channel is between its offer and its end.
#[derive(Clone, Debug, PartialEq, Eq)]
// The large ones are the ones that channels spend their lives in.
#[allow(clippy::large_enum_variant)]
pub enum ChannelState {
    /// The guest does not know of it: there is no session, or it has not asked.
    NotOffered,
    /// The guest knows of it.
    Offered,
    /// The guest has opened it; packets flow.
    Open(Opened),
    /// Taken back while it was open. The guest has not closed it yet.
    RescindedOpen(Opened),
    /// Taken back. The guest has not released it yet, so its number and its
    /// instance cannot be used again.
    Rescinded,
}

impl ChannelState {
    /// What was said when it was opened, if it is open at the guest's end.
    pub const fn opened(&self) -> Option<&Opened> {
        match self {
            Self::Open(opened) | Self::RescindedOpen(opened) => Some(opened),
            Self::NotOffered | Self::Offered | Self::Rescinded => None,
        }
    }

    /// Whether the guest may make page lists for it.
    pub(super) const fn is_known_to_guest(&self) -> bool {
        match self {
            Self::Offered | Self::Open(_) | Self::RescindedOpen(_) | Self::Rescinded => true,
            Self::NotOffered => false,
        }
    }

    /// A short name for a status display.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NotOffered => "not offered",
            Self::Offered => "offered",
            Self::Open(_) => "open",
            Self::RescindedOpen(_) | Self::Rescinded => "rescinded",
        }
    }
}

/// A channel seen from outside.
#[derive(Clone, Copy, Debug)]
pub struct ChannelInfo<'a> {
    /// Its number.
    pub relid: Relid,
    /// What was offered.
    pub spec: &'a OfferSpec,
    /// Where it is.
    pub state: &'a ChannelState,
    /// What the guest names when it signals it.
    pub event_connection_id: u32,
}

/// Old meanings of these were given up; kernels from 7.x on refuse offers that
/// have them, and one such refusal upsets all later rescinds.
pub(super) const REFUSED_FLAGS: ChannelFlags = ChannelFlags::from_bits_retain(0x0006);

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) spec: OfferSpec,
    pub(super) state: ChannelState,
    /// From opening until whoever serves the channel takes them.
    pub(super) rings: Option<RingPair>,
}

impl Channel {
    pub(super) fn new(spec: OfferSpec) -> Self {
        Self {
            spec,
            state: ChannelState::NotOffered,
            rings: None,
        }
    }

    pub(super) fn info(&self, relid: Relid) -> ChannelInfo<'_> {
        ChannelInfo {
            relid,
            spec: &self.spec,
            state: &self.state,
            event_connection_id: EVENT_CONNECTION_BASE + relid.0,
        }
    }
}
