// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest does wrong: counted, shown, and without effect on anybody else.

use crate::gpadl::GpadlError;
use crate::ring::{OpenError, RingError};
use crate::wire::{GpadlId, MessageType, ParseError, ProtocolVersion, Relid, VpIndex};

/// Something that no honest guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Bytes that are no message from a guest.
    #[error("malformed message: {0}")]
    Malformed(ParseError),
    /// A message that makes no sense now.
    #[error("{0} out of place")]
    OutOfPlace(MessageType),
    /// A channel that does not exist, or is not known to the guest.
    #[error("{0} for {1}, which does not exist")]
    NoSuchChannel(MessageType, Relid),
    /// A processor that does not exist.
    #[error("{0} names {1}, which does not exist")]
    NoSuchVp(MessageType, VpIndex),
    /// A SINT or a trust level that the host does not serve.
    #[error("contact wants SINT {sint} of VTL {vtl}")]
    BadTarget {
        /// The SINT.
        sint: u8,
        /// The trust level.
        vtl: u8,
    },
    /// A page list that is refused.
    #[error("{0}: {1}")]
    BadGpadl(GpadlId, GpadlError),
    /// Rings that cannot be opened.
    #[error("{0} cannot be opened: {1}")]
    BadOpen(Relid, OpenError),
    /// A channel opened on a page list that it has not got.
    #[error("{0} opened on {1}, which does not exist")]
    NoSuchGpadl(Relid, GpadlId),
    /// The pages of an open channel's rings were wanted back.
    #[error("{0} of open {1} torn down")]
    GpadlInUse(GpadlId, Relid),
    /// A ring with impossible contents.
    #[error("{0}: {1}")]
    BrokenRing(Relid, RingError),
    /// A packet that makes no sense to its device.
    #[error("{0}: the device refused a packet")]
    BadPacket(Relid),
    /// More connections wanted at a time than the host keeps.
    #[error("too many connection requests")]
    TooManyConnects,
    /// A message of a newer version than the one agreed on.
    #[error("{0} in version {1}")]
    NotInVersion(MessageType, ProtocolVersion),
}

/// How often, and what last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Violations {
    total: u64,
    last: Option<Violation>,
}

impl Violations {
    /// How many there were since the VM began.
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// The last one.
    pub const fn last(&self) -> Option<&Violation> {
        self.last.as_ref()
    }

    pub(crate) fn count(&mut self, violation: Violation) {
        self.total = self.total.saturating_add(1);
        self.last = Some(violation);
    }
}
