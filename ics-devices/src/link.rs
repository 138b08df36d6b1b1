// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One channel as every service sees it: versions are agreed on, then one
//! request at a time is answered (protocol 6.2, 6.3).
//!
//! ```text
//!  Closed ─ open ─► Negotiating ─ versions ─► Ready ─ send ─► Ready, waiting
//!    ▲                   │                      ▲ ▲──answer──────┤
//!    │                   └─ nonsense ─► Failed  │                │ deadline
//!    └──────────── close, from anywhere         └─late answer─ Ready, owed
//! ```
//!
//! * The negotiation is sent once and has no deadline: where a daemon answers
//!   it, it stays in the ring until there is a daemon, and a second one would be
//!   answered as well.
//! * A guest driver reads one packet per signal, so there is never more than one
//!   that is not answered. After a deadline the guest owes an answer, and until
//!   it comes nothing is sent.
//! * A driver that does not read without its daemon is known by the ring: the
//!   request is still in it when the guest has had the time to read it.
//! * An answer is recognised by its transaction id and type; the ring's own id
//!   is not reliable. Whatever answers nothing is counted and ignored.
//! * While the VM is paused nothing is sent, and the guest's time stands still. A
//!   user's deadline comes all the same.

use std::time::Duration;

use vmbus::host::{Channel, SendError};
use vmbus::ring::PacketMeta;
use vmbus::wire::PacketType;

use crate::protocol::Deadline;
use crate::status::ServiceError;
use crate::wire::{
    IcFlags, IcHeader, IcMessage, IcVersion, MessageType, NegotiateError, Versions, negotiate_body,
    parse_negotiated,
};

/// Where packets go: an open channel, or a test.
pub trait Port {
    /// Sends a packet whose payload is `parts` one after the other.
    fn send(&mut self, meta: PacketMeta, parts: &[&[u8]]) -> Result<(), SendError>;

    /// Whether the guest has read every packet that was sent.
    fn is_read(&mut self) -> bool;
}

impl Port for Channel<'_> {
    fn send(&mut self, meta: PacketMeta, parts: &[&[u8]]) -> Result<(), SendError> {
        Channel::send(self, meta, parts)
    }

    fn is_read(&mut self) -> bool {
        Channel::is_read(self)
    }
}

/// Why a channel is of no use until it is opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The negotiation failed.
    #[error(transparent)]
    Negotiate(#[from] NegotiateError),
    /// The guest's ring has no room for a negotiation.
    #[error("the guest's ring is too small")]
    SmallRing,
}

/// What passed on a channel, over all its openings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Negotiations and requests that were sent.
    pub sent: u64,
    /// Answers in time.
    pub answered: u64,
    /// Answers that came after their deadline.
    pub late: u64,
    /// Packets that answer nothing, or are none.
    pub ignored: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Negotiating {
        since: Duration,
        /// The request's id, once it is in the ring.
        id: Option<u8>,
    },
    Ready {
        versions: Versions,
        pending: Pending,
    },
    Failed(LinkError),
}

/// What the guest has not answered.
#[derive(Clone, Copy, Debug)]
enum Pending {
    None,
    /// Somebody waits for it.
    Waiting {
        id: u8,
        deadline: Deadline,
        /// When to look whether the guest has read it at all.
        read_by: Option<Duration>,
    },
    /// Nobody waits for it any more.
    Owed {
        id: u8,
        /// The guest had not even read it: its daemon is not there.
        unread: bool,
    },
}

/// What a packet of the guest led to.
pub(crate) enum Received<'a> {
    /// Nothing that concerns the service.
    Nothing,
    /// The versions are agreed on.
    Connected(Versions),
    /// The outstanding request is answered.
    Answer(IcMessage<'a>),
    /// A request that was given up is answered.
    Late(IcMessage<'a>),
}

/// The channel's state.
#[derive(Debug)]
pub(crate) struct Link {
    message_type: MessageType,
    frameworks: &'static [IcVersion],
    services: &'static [IcVersion],
    /// The newest service version to offer.
    highest: Option<IcVersion>,
    state: State,
    last_id: u8,
    /// The ring had no room; wait until it has.
    blocked: bool,
    paused_at: Option<Duration>,
    counts: Counts,
    scratch: Vec<u8>,
}

impl Link {
    pub(crate) fn new(
        message_type: MessageType,
        frameworks: &'static [IcVersion],
        services: &'static [IcVersion],
    ) -> Self {
        Self {
            message_type,
            frameworks,
            services,
            highest: None,
            state: State::Closed,
            last_id: 0,
            blocked: false,
            paused_at: None,
            counts: Counts::default(),
            scratch: Vec::new(),
        }
    }

    pub(crate) fn limit_version(&mut self, highest: IcVersion) {
        self.highest = Some(highest);
    }

    /// The channel was opened: everything starts over.
    pub(crate) fn open(&mut self, now: Duration) {
        self.blocked = false;
        self.state = State::Negotiating {
            since: now,
            id: None,
        };
    }

    pub(crate) fn close(&mut self) {
        self.blocked = false;
        self.state = State::Closed;
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Since when the guest has had a negotiation that it has not answered.
    pub(crate) fn negotiating_since(&self) -> Option<Duration> {
        match self.state {
            State::Negotiating { since, .. } => Some(since),
            _ => None,
        }
    }

    pub(crate) fn error(&self) -> Option<LinkError> {
        match self.state {
            State::Failed(error) => Some(error),
            _ => None,
        }
    }

    pub(crate) fn versions(&self) -> Option<Versions> {
        match self.state {
            State::Ready { versions, .. } => Some(versions),
            _ => None,
        }
    }

    /// What was agreed on, or why nothing was.
    pub(crate) fn check(&self) -> Result<Versions, ServiceError> {
        match self.state {
            State::Closed => Err(ServiceError::NotOpen),
            State::Negotiating { .. } | State::Failed(_) => Err(ServiceError::NotNegotiated),
            State::Ready { .. } if self.is_unread() => Err(ServiceError::NoDaemon),
            State::Ready { versions, .. } => Ok(versions),
        }
    }

    /// The guest has not even read the last request, and had the time to.
    pub(crate) fn is_unread(&self) -> bool {
        let State::Ready { pending, .. } = self.state else {
            return false;
        };
        matches!(pending, Pending::Owed { unread: true, .. })
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether a request may be sent now, and with which versions.
    pub(crate) fn idle(&self) -> Option<Versions> {
        match self.state {
            State::Ready {
                versions,
                pending: Pending::None,
            } if !self.blocked && !self.is_paused() => Some(versions),
            _ => None,
        }
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused_at.is_some()
    }

    /// The guest's time stands still from now on.
    pub(crate) fn pause(&mut self, now: Duration) {
        self.paused_at.get_or_insert(now);
    }

    /// The guest's time goes on. How long it stood still, if it did.
    pub(crate) fn resume(&mut self, now: Duration) -> Option<Duration> {
        let slept = now.saturating_sub(self.paused_at.take()?);
        if let State::Ready {
            pending: Pending::Waiting {
                deadline, read_by, ..
            },
            ..
        } = &mut self.state
        {
            let guests = match deadline {
                Deadline::Guest(at) => Some(at),
                Deadline::Never | Deadline::User(_) => None,
            };
            for at in [guests, read_by.as_mut()].into_iter().flatten() {
                *at = at.saturating_add(slept);
            }
        }
        Some(slept)
    }

    /// When [`expire`](Self::expire) is to be called.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let State::Ready {
            pending: Pending::Waiting {
                deadline, read_by, ..
            },
            ..
        } = self.state
        else {
            return None;
        };
        let (users, guests) = match deadline {
            Deadline::Never => (None, None),
            Deadline::Guest(at) => (None, Some(at)),
            Deadline::User(at) => (Some(at), None),
        };
        let guests = [guests, read_by].into_iter().flatten().min();
        let guests = guests.filter(|_| !self.is_paused());
        users.into_iter().chain(guests).min()
    }

    /// Gives the outstanding request up, though its time has not come; whether there
    /// was one.
    pub(crate) fn give_up(&mut self) -> bool {
        let State::Ready { pending, .. } = &mut self.state else {
            return false;
        };
        let Pending::Waiting { id, .. } = *pending else {
            return false;
        };
        let unread = false;
        *pending = Pending::Owed { id, unread };
        true
    }

    /// Gives the outstanding request up if its time has come, and says why.
    pub(crate) fn expire(&mut self, now: Duration, port: &mut dyn Port) -> Option<ServiceError> {
        let paused = self.is_paused();
        let State::Ready { pending, .. } = &mut self.state else {
            return None;
        };
        let Pending::Waiting {
            id,
            deadline,
            read_by,
        } = pending
        else {
            return None;
        };
        let is_read_due = !paused && read_by.is_some_and(|at| at <= now);
        let unread = is_read_due && !port.is_read();
        if is_read_due {
            *read_by = None;
        }
        let is_over = match *deadline {
            Deadline::Never => false,
            Deadline::Guest(at) => !paused && at <= now,
            Deadline::User(at) => at <= now,
        };
        if !unread && !is_over {
            return None;
        }
        let id = *id;
        *pending = Pending::Owed { id, unread };
        Some(if unread {
            ServiceError::NoDaemon
        } else {
            ServiceError::Timeout
        })
    }

    /// The ring may have room again.
    pub(crate) fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Sends the negotiation, if it is due.
    pub(crate) fn negotiate(&mut self, port: &mut dyn Port) -> Result<(), SendError> {
        let State::Negotiating { since, id: None } = self.state else {
            return Ok(());
        };
        if self.blocked {
            return Ok(());
        }
        let services = self.offered();
        let mut body = std::mem::take(&mut self.scratch);
        body.clear();
        negotiate_body(self.frameworks, services, &mut body);
        let sent = self.transmit(port, MessageType::NEGOTIATE, Versions::NONE, &body);
        self.scratch = body;
        match sent {
            Ok(id) => {
                let id = Some(id);
                self.state = State::Negotiating { since, id };
                Ok(())
            }
            Err(SendError::TooLarge) => {
                self.state = State::Failed(LinkError::SmallRing);
                Err(SendError::TooLarge)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends a request with this body; [`idle`](Self::idle) said that it may.
    pub(crate) fn request(
        &mut self,
        port: &mut dyn Port,
        body: &[u8],
        deadline: Deadline,
        read_by: Option<Duration>,
    ) -> Result<(), SendError> {
        let versions = self.versions().unwrap_or(Versions::NONE);
        let id = self.transmit(port, self.message_type, versions, body)?;
        let pending = Pending::Waiting {
            id,
            deadline,
            read_by,
        };
        self.state = State::Ready { versions, pending };
        Ok(())
    }

    /// A packet came. Whatever it is, it is done with afterwards.
    pub(crate) fn receive<'a>(
        &mut self,
        packet_type: PacketType,
        payload: &'a [u8],
    ) -> Received<'a> {
        let message = match IcMessage::parse(payload) {
            Ok(message) if packet_type == PacketType::IN_BAND => message,
            Ok(_) => return self.ignore("no in-band packet"),
            Err(error) => return self.ignore(error),
        };
        let IcHeader {
            message_type,
            transaction_id,
            flags,
            ..
        } = message.header;
        if !flags.contains(IcFlags::RESPONSE) {
            return self.ignore("no answer");
        }
        match self.state {
            State::Negotiating { id: Some(id), .. }
                if id == transaction_id && message_type == MessageType::NEGOTIATE =>
            {
                self.counts.answered += 1;
                self.negotiated(&message)
            }
            State::Ready { versions, pending } if message_type == self.message_type => {
                match pending {
                    Pending::Waiting { id, .. } if id == transaction_id => {
                        self.counts.answered += 1;
                        self.settle(versions);
                        Received::Answer(message)
                    }
                    Pending::Owed { id, .. } if id == transaction_id => {
                        self.counts.late += 1;
                        self.settle(versions);
                        Received::Late(message)
                    }
                    _ => self.ignore("answers nothing"),
                }
            }
            _ => self.ignore("not expected"),
        }
    }

    /// The answer that [`receive`](Self::receive) gave out makes no sense.
    pub(crate) fn count_bad_answer(&mut self) {
        self.counts.answered -= 1;
        self.counts.ignored += 1;
    }

    fn settle(&mut self, versions: Versions) {
        let pending = Pending::None;
        self.state = State::Ready { versions, pending };
    }

    fn negotiated<'a>(&mut self, message: &IcMessage<'a>) -> Received<'a> {
        match parse_negotiated(message).and_then(|versions| self.offered_those(versions)) {
            Ok(versions) => {
                self.settle(versions);
                Received::Connected(versions)
            }
            Err(error) => {
                log::debug!("{:?}: {error}", self.message_type);
                self.state = State::Failed(error.into());
                Received::Nothing
            }
        }
    }

    /// The service versions that the guest may choose from.
    fn offered(&self) -> impl Iterator<Item = IcVersion> + use<> {
        let highest = self.highest;
        let services = self.services.iter().copied();
        services.filter(move |version| highest.is_none_or(|highest| *version <= highest))
    }

    fn offered_those(&self, versions: Versions) -> Result<Versions, NegotiateError> {
        if !self.frameworks.contains(&versions.framework) {
            return Err(NegotiateError::NotOffered(versions.framework));
        }
        if !self.offered().any(|version| version == versions.service) {
            return Err(NegotiateError::NotOffered(versions.service));
        }
        Ok(versions)
    }

    fn ignore<'a>(&mut self, why: impl std::fmt::Display) -> Received<'a> {
        log::debug!("{:?}: ignored a packet: {why}", self.message_type);
        self.counts.ignored += 1;
        Received::Nothing
    }

    /// Puts a message into the ring; its id.
    fn transmit(
        &mut self,
        port: &mut dyn Port,
        message_type: MessageType,
        versions: Versions,
        body: &[u8],
    ) -> Result<u8, SendError> {
        let id = self.last_id.wrapping_add(1);
        let header = IcHeader::request(message_type, versions, id);
        let header = header.emit(body.len()).ok_or(SendError::TooLarge)?;
        let meta = PacketMeta::in_band(self.counts.sent + 1);
        match port.send(meta, &[&header, body]) {
            Ok(()) => {
                self.last_id = id;
                self.counts.sent += 1;
                Ok(id)
            }
            Err(error) => {
                self.blocked = error == SendError::Full;
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests;
