// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An integration service as a device on the bus: a [`Link`] that carries the
//! requests of a [`Protocol`].

use std::fmt;
use std::time::Duration;

use vmbus::bus::OfferSpec;
use vmbus::host::{Channel, Device, DeviceError, Flow, Packet, SendError};
use vmbus::wire::PacketType;

use crate::link::{Counts, Link, LinkError, Port, Received};
use crate::protocol::{Answer, Protocol};
use crate::service::Service;
use crate::slot::{Cancelled, Requests, Ticket};
use crate::status::{ServiceError, ServiceState, ServiceStatus};
use crate::wire::{IcVersion, Versions};

/// A guest whose daemon runs negotiates within this time: the kernel's part
/// takes milliseconds.
const DAEMON_GRACE: Duration = Duration::from_secs(2);
/// And it reads a request within this time.
const READ_GRACE: Duration = Duration::from_millis(1500);

/// An integration service.
///
/// Three kinds of methods:
/// 1. [`Device`]'s, called by [`vmbus::host::Host`];
/// 2. those that want something: [`pause`](Self::pause), [`resume`](Self::resume),
///    [`watch`](Self::watch), [`cancel`](Self::cancel), and what the service has of its own. [`Host::poke`](vmbus::host::Host::poke)
///    it afterwards;
/// 3. those that look: [`status`](Self::status), and what the service has of its
///    own. Take outcomes after every call of the host's.
pub struct Ic<P> {
    link: Link,
    pub(crate) protocol: P,
    body: Vec<u8>,
}

impl<P: Protocol> Ic<P> {
    /// The service that speaks `protocol`.
    pub fn from_protocol(protocol: P) -> Self {
        let message_type = P::SERVICE.message_type();
        Self {
            link: Link::new(message_type, P::FRAMEWORKS, P::VERSIONS),
            protocol,
            body: Vec::new(),
        }
    }

    /// Offers no service version above `highest`.
    #[must_use]
    pub fn up_to_version(mut self, highest: IcVersion) -> Self {
        self.link.limit_version(highest);
        self
    }

    /// Which service it is.
    pub fn service(&self) -> Service {
        P::SERVICE
    }

    /// What was agreed on with the guest; the error names what is missing.
    pub fn versions(&self) -> Result<Versions, ServiceError> {
        let waits = P::WAITS_FOR_DAEMON && self.link.negotiating_since().is_some();
        self.link
            .check()
            .map_err(|error| if waits { ServiceError::NoDaemon } else { error })
    }

    /// The same, for somebody who wants something of the guest now: of one that
    /// stands still nothing can be had.
    pub(crate) fn admit(&self) -> Result<Versions, ServiceError> {
        if self.link.is_paused() {
            return Err(ServiceError::Paused);
        }
        self.versions()
    }

    /// Nobody waits for this request any more: what is not in the ring will not be,
    /// and what the guest makes of the rest is not told. To the service it is as if
    /// its time was up.
    pub fn cancel(&mut self, now: Duration, ticket: Ticket) {
        match self.protocol.cancel(ticket) {
            Cancelled::Nothing => {}
            Cancelled::Unsent => self.protocol.ended_unsent(),
            Cancelled::Sent => {
                if self.link.give_up() {
                    self.protocol.failed(now, ServiceError::Cancelled);
                }
            }
        }
    }

    /// Why the service is in the state `error`.
    pub fn link_error(&self) -> Option<LinkError> {
        self.link.error()
    }

    /// What passed so far.
    pub fn counts(&self) -> Counts {
        self.link.counts()
    }

    /// The VM is paused: nothing is sent, nothing more can be asked, and no deadline
    /// passes but those of users.
    pub fn pause(&mut self, now: Duration) {
        if !self.link.is_paused() {
            self.link.pause(now);
            self.protocol.paused(now);
        }
    }

    /// The VM goes on.
    pub fn resume(&mut self, now: Duration) {
        if let Some(slept) = self.link.resume(now) {
            self.protocol.resumed(now, slept);
        }
    }

    /// Whether somebody wants to know if the guest's daemon is there: at first
    /// somebody does. While nobody does, looks are sent only when the driver
    /// connects, and once a minute where the guest has items of the host's; the
    /// state is as of the last answer.
    pub fn watch(&mut self, watched: bool) {
        if let Some(look) = self.protocol.look() {
            look.watch(watched);
        }
    }

    /// Whether the guest was asked and will answer soon, if its daemon is there:
    /// the state may be another one then.
    pub fn is_looking(&mut self) -> bool {
        !self.link.is_paused() && self.protocol.look().is_some_and(|look| look.is_asked())
    }

    /// Whether the VM is paused.
    pub fn is_paused(&self) -> bool {
        self.link.is_paused()
    }

    /// How far the service got.
    pub fn state(&self, now: Duration) -> ServiceState {
        self.condition(now).0
    }

    /// The service in a status listing.
    pub fn status(&self, now: Duration) -> ServiceStatus {
        let (state, detail) = self.condition(now);
        let versions = self.link.versions();
        ServiceStatus {
            service: P::SERVICE,
            state,
            framework: versions.map(|versions| versions.framework),
            version: versions.map(|versions| versions.service),
            detail,
            ignored: self.link.counts().ignored,
        }
    }

    fn condition(&self, now: Duration) -> (ServiceState, String) {
        if self.link.is_closed() {
            let detail = "no driver of the guest has opened it";
            return (ServiceState::Offered, detail.into());
        }
        if let Some(error) = self.link.error() {
            return (ServiceState::Error, error.to_string());
        }
        if let Some(since) = self.link.negotiating_since() {
            return if P::WAITS_FOR_DAEMON && now.saturating_sub(since) >= DAEMON_GRACE {
                let detail = "waiting for the guest's daemon";
                (ServiceState::NoDaemon, detail.into())
            } else {
                let detail = "waiting for the guest to choose versions";
                (ServiceState::Open, detail.into())
            };
        }
        if self.link.is_unread() {
            let detail = "the guest's daemon has stopped";
            return (ServiceState::NoDaemon, detail.into());
        }
        self.protocol.condition(now)
    }

    /// Sends what can be sent: at most one packet, as there is at most one that
    /// is not answered.
    fn pump(&mut self, now: Duration, port: &mut dyn Port) -> Result<(), SendError> {
        self.link.negotiate(port)?;
        let Some(versions) = self.link.idle() else {
            return Ok(());
        };
        self.body.clear();
        let Some(request) = self.protocol.request(now, versions, &mut self.body) else {
            return Ok(());
        };
        let read_by = P::WAITS_FOR_DAEMON.then(|| now.saturating_add(READ_GRACE));
        let sent = self
            .link
            .request(port, &self.body, request.deadline, read_by);
        match sent {
            Ok(()) => self.protocol.sent(now),
            Err(SendError::TooLarge) => {
                let error = ServiceError::Unsupported("the guest's ring is too small");
                self.protocol.failed(now, error);
            }
            Err(SendError::Full | SendError::Ring(_)) => {}
        }
        sent
    }

    pub(crate) fn handle_opened(
        &mut self,
        now: Duration,
        port: &mut dyn Port,
    ) -> Result<(), SendError> {
        if !self.link.is_closed() {
            self.handle_closed(now);
        }
        self.link.open(now);
        self.pump(now, port)
    }

    pub(crate) fn handle_closed(&mut self, now: Duration) {
        self.link.close();
        self.protocol.disconnected(now);
    }

    pub(crate) fn handle_packet(
        &mut self,
        now: Duration,
        port: &mut dyn Port,
        packet_type: PacketType,
        payload: &[u8],
    ) -> Result<(), SendError> {
        match self.link.receive(packet_type, payload) {
            Received::Nothing => {}
            Received::Connected(versions) => self.protocol.connected(now, versions),
            Received::Answer(message) => {
                let answer = Answer {
                    status: message.header.status,
                    body: message.body,
                };
                if self.protocol.answered(now, &answer).is_err() {
                    self.link.count_bad_answer();
                }
            }
            Received::Late(message) => {
                let answer = Answer {
                    status: message.header.status,
                    body: message.body,
                };
                self.protocol.late(now, &answer);
            }
        }
        self.pump(now, port)
    }

    pub(crate) fn handle_poll(
        &mut self,
        now: Duration,
        port: &mut dyn Port,
    ) -> Result<(), SendError> {
        self.link.unblock();
        if let Some(error) = self.link.expire(now, port) {
            self.protocol.failed(now, error);
        }
        let requests = self.protocol.requests_mut();
        if requests.is_some_and(|requests| requests.expire(now)) {
            self.protocol.ended_unsent();
        }
        if self.link.is_paused() {
            return Ok(());
        }
        if self.link.versions().is_some() {
            self.protocol.tick(now);
        }
        self.pump(now, port)
    }

    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.link.versions()?;
        let guests = self.protocol.deadline();
        let deadlines = [
            self.link.deadline(),
            self.protocol.requests().and_then(Requests::deadline),
            guests.filter(|_| !self.link.is_paused()),
        ];
        deadlines.into_iter().flatten().min()
    }
}

impl<P: Protocol> Device for Ic<P> {
    fn offer(&self) -> OfferSpec {
        P::SERVICE.offer()
    }

    fn opened(&mut self, now: Duration, channel: &mut Channel<'_>) -> Result<(), SendError> {
        self.handle_opened(now, channel)
    }

    /// Never fails: what the guest sends can at worst be ignored.
    fn packet(
        &mut self,
        now: Duration,
        channel: &mut Channel<'_>,
        packet: &Packet<'_>,
    ) -> Result<Flow, DeviceError> {
        self.protocol.arrived(packet.transaction_id);
        let sent = self.handle_packet(now, channel, packet.packet_type, packet.payload);
        if let Err(error) = sent {
            log::debug!("{}: cannot send: {error}", P::SERVICE);
        }
        Ok(Flow::Done)
    }

    fn poll(&mut self, now: Duration, channel: &mut Channel<'_>) -> Result<(), SendError> {
        self.handle_poll(now, channel)
    }

    fn deadline(&self) -> Option<Duration> {
        self.next_deadline()
    }

    fn closed(&mut self, now: Duration) {
        self.handle_closed(now);
    }
}

impl<P: Protocol> fmt::Debug for Ic<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ic")
            .field("service", &P::SERVICE)
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}
