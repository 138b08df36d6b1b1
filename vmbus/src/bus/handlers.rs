// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each message of the guest does to channels and page lists
//! (protocol 4.6 to 4.12). Those about the session are in `connection`.
//!
//! A request whose answer the guest waits for without a timeout is always
//! answered, with a failure if need be: GPADL_HEADER, GPADL_TEARDOWN,
//! OPENCHANNEL, MODIFYCHANNEL (from 5.3 on).

use super::{
    Action, Bus, ChannelState, EVENT_CONNECTION_BASE, MAX_PENDING_CONNECTS, Opened, Violation,
};
use crate::gpadl::{GpadlError, Progress};
use crate::ring::RingPair;
use crate::wire::{
    GpadlBody, GpadlHeader, GpadlId, GuestMessage, HostMessage, MessageType, ModifyChannel,
    OpenChannel, ProtocolVersion, Relid, TlConnectRequest, VpIndex,
};

/// What a refused request is answered with (STATUS_UNSUCCESSFUL). Linux only
/// tells 0 from others.
const FAILURE: u32 = 0xc000_0001;
/// A target processor that means "no interrupts".
const NO_INTERRUPTS: VpIndex = VpIndex(u32::MAX);

impl Bus {
    pub(super) fn dispatch(&mut self, message: &GuestMessage) {
        match message {
            GuestMessage::InitiateContact(contact) => return self.initiate_contact(contact),
            GuestMessage::Unload => return self.unload(),
            _ if self.connection.session().is_none() => {
                return self.violate(Violation::OutOfPlace(message.message_type()));
            }
            _ => {}
        }
        match message {
            // Handled above.
            GuestMessage::InitiateContact(_) | GuestMessage::Unload => {}
            GuestMessage::RequestOffers => self.request_offers(),
            GuestMessage::GpadlHeader(header) => self.gpadl_header(header),
            GuestMessage::GpadlBody(body) => self.gpadl_body(body),
            GuestMessage::GpadlTeardown { relid, gpadl } => self.gpadl_teardown(*relid, *gpadl),
            GuestMessage::OpenChannel(open) => self.open_channel(open),
            GuestMessage::CloseChannel { relid } => self.close_channel(*relid),
            GuestMessage::RelidReleased { relid } => self.relid_released(*relid),
            GuestMessage::ModifyChannel(modify) => self.modify_channel(*modify),
            GuestMessage::TlConnectRequest(request) => self.tl_connect(request),
        }
    }

    fn state(&self, relid: Relid) -> Option<&ChannelState> {
        let state = &self.channels.get(&relid)?.state;
        state.is_known_to_guest().then_some(state)
    }

    fn gpadl_header(&mut self, header: &GpadlHeader) {
        let (relid, gpadl) = (header.relid, header.gpadl);
        if self.state(relid).is_none() {
            self.violate(Violation::NoSuchChannel(MessageType::GPADL_HEADER, relid));
            return self.gpadl_created(relid, gpadl, FAILURE);
        }
        // A rescinded channel's list is taken like any other. It goes with the
        // channel: the guest sends no teardown for it.
        let progress = self.gpadls.begin(&*self.memory, header);
        self.gpadl_progress(relid, gpadl, progress);
    }

    fn gpadl_body(&mut self, body: &GpadlBody) {
        // The message does not say whose it is; if nobody's, nobody waits.
        let Some(relid) = self.gpadls.owner(body.gpadl) else {
            return self.violate(Violation::BadGpadl(body.gpadl, GpadlError::Unknown));
        };
        let progress = self.gpadls.extend(&*self.memory, body);
        self.gpadl_progress(relid, body.gpadl, progress);
    }

    fn gpadl_progress(
        &mut self,
        relid: Relid,
        gpadl: GpadlId,
        progress: Result<Progress, GpadlError>,
    ) {
        match progress {
            Ok(Progress::Unfinished) => {}
            Ok(Progress::Complete { relid }) => self.gpadl_created(relid, gpadl, 0),
            Err(error) => {
                self.violate(Violation::BadGpadl(gpadl, error));
                self.gpadl_created(relid, gpadl, FAILURE);
            }
        }
    }

    fn gpadl_created(&mut self, relid: Relid, gpadl: GpadlId, status: u32) {
        self.post(HostMessage::GpadlCreated {
            relid,
            gpadl,
            status,
        });
    }

    fn gpadl_teardown(&mut self, relid: Relid, gpadl: GpadlId) {
        let opened = self.state(relid).and_then(ChannelState::opened);
        if opened.is_some_and(|opened| opened.gpadl == gpadl) {
            // The pages are about to be used for something else.
            self.violate(Violation::GpadlInUse(gpadl, relid));
            self.close_channel(relid);
        }
        match self.gpadls.owner(gpadl) {
            Some(owner) if owner != relid => {
                // We go on using it, so we cannot say that we do not.
                self.violate(Violation::BadGpadl(gpadl, GpadlError::Unknown));
            }
            owner => {
                if owner.is_none() {
                    self.violate(Violation::BadGpadl(gpadl, GpadlError::Unknown));
                } else if let Err(error) = self.gpadls.remove(relid, gpadl) {
                    self.violate(Violation::BadGpadl(gpadl, error));
                }
                self.post(HostMessage::GpadlTorndown { gpadl });
            }
        }
    }

    fn open_channel(&mut self, open: &OpenChannel) {
        let relid = open.relid;
        let opened = self.check_open(open);
        let status = if opened.is_ok() { 0 } else { FAILURE };
        self.post(HostMessage::OpenChannelResult {
            relid,
            open_id: open.open_id,
            status,
        });
        match opened {
            Ok((opened, rings)) => {
                if let Some(channel) = self.channels.get_mut(&relid) {
                    channel.state = ChannelState::Open(opened);
                    channel.rings = Some(rings);
                }
                self.actions.push_back(Action::ChannelOpened {
                    relid,
                    event_connection_id: EVENT_CONNECTION_BASE + relid.0,
                });
            }
            Err(violation) => {
                // A channel that was rescinded meanwhile is nobody's fault.
                if let Some(violation) = violation {
                    self.violate(violation);
                }
            }
        }
    }

    fn check_open(&self, open: &OpenChannel) -> Result<(Opened, RingPair), Option<Violation>> {
        const OPEN: MessageType = MessageType::OPENCHANNEL;
        let relid = open.relid;
        match self.state(relid) {
            Some(ChannelState::Offered) => {}
            Some(ChannelState::Rescinded | ChannelState::RescindedOpen(_)) => return Err(None),
            Some(ChannelState::Open(_)) => return Err(Some(Violation::OutOfPlace(OPEN))),
            Some(ChannelState::NotOffered) | None => {
                return Err(Some(Violation::NoSuchChannel(OPEN, relid)));
            }
        }
        let target_vp = self.target(OPEN, open.target_vp)?;
        let list = self
            .gpadls
            .get(relid, open.gpadl)
            .ok_or(Violation::NoSuchGpadl(relid, open.gpadl))?;
        let rings = RingPair::open(self.memory.clone(), list.pfns(), open.downstream_offset)
            .map_err(|error| Violation::BadOpen(relid, error))?;
        let opened = Opened {
            gpadl: open.gpadl,
            target_vp,
            user_data: open.user_data,
        };
        Ok((opened, rings))
    }

    /// The processor to interrupt, `None` for nobody.
    fn target(&self, kind: MessageType, vp: VpIndex) -> Result<Option<VpIndex>, Violation> {
        if vp == NO_INTERRUPTS {
            Ok(None)
        } else if self.vp_exists(vp) {
            Ok(Some(vp))
        } else {
            Err(Violation::NoSuchVp(kind, vp))
        }
    }

    fn close_channel(&mut self, relid: Relid) {
        const CLOSE: MessageType = MessageType::CLOSECHANNEL;
        let next = match self.state(relid) {
            Some(ChannelState::Open(_)) => ChannelState::Offered,
            Some(ChannelState::RescindedOpen(_)) => ChannelState::Rescinded,
            // Crossed with our rescind, after an open that failed for it.
            Some(ChannelState::Rescinded) => return,
            Some(ChannelState::Offered) => return self.violate(Violation::OutOfPlace(CLOSE)),
            Some(ChannelState::NotOffered) | None => {
                return self.violate(Violation::NoSuchChannel(CLOSE, relid));
            }
        };
        if let Some(channel) = self.channels.get_mut(&relid) {
            channel.state = next;
        }
        self.close(relid);
    }

    fn relid_released(&mut self, relid: Relid) {
        const RELEASED: MessageType = MessageType::RELID_RELEASED;
        match self.state(relid) {
            Some(ChannelState::Rescinded) => self.release(relid),
            Some(ChannelState::RescindedOpen(_)) => {
                self.close(relid);
                self.release(relid);
            }
            Some(ChannelState::Offered | ChannelState::Open(_)) => {
                self.violate(Violation::OutOfPlace(RELEASED));
            }
            Some(ChannelState::NotOffered) | None => {
                self.violate(Violation::NoSuchChannel(RELEASED, relid));
            }
        }
    }

    fn modify_channel(&mut self, modify: ModifyChannel) {
        let (relid, vp) = (modify.relid, modify.target_vp);
        let version = self.connection.session().map(|session| session.version);
        if let Some(version) = version.filter(|version| *version < ProtocolVersion::V4_1) {
            let kind = MessageType::MODIFYCHANNEL;
            return self.violate(Violation::NotInVersion(kind, version));
        }
        let moved = self.retarget(relid, vp);
        if let Err(violation) = moved {
            self.violate(violation);
        }
        if version >= Some(ProtocolVersion::V5_3) {
            let status = if moved.is_ok() { 0 } else { FAILURE };
            self.post(HostMessage::ModifyChannelResponse { relid, status });
        }
        if moved.is_ok() {
            // What the old processor was told and has not seen, the new one
            // must see. A needless event is harmless.
            let _ = self.signal_guest(relid);
        }
    }

    fn retarget(&mut self, relid: Relid, vp: VpIndex) -> Result<(), Violation> {
        const MODIFY: MessageType = MessageType::MODIFYCHANNEL;
        let target = self.target(MODIFY, vp)?;
        let channel = self.channels.get_mut(&relid);
        match channel.map(|channel| &mut channel.state) {
            Some(ChannelState::Open(opened) | ChannelState::RescindedOpen(opened)) => {
                opened.target_vp = target;
                Ok(())
            }
            Some(ChannelState::Offered | ChannelState::Rescinded) => {
                Err(Violation::OutOfPlace(MODIFY))
            }
            Some(ChannelState::NotOffered) | None => Err(Violation::NoSuchChannel(MODIFY, relid)),
        }
    }

    fn tl_connect(&mut self, request: &TlConnectRequest) {
        let version = self.connection.session().map(|session| session.version);
        if let Some(version) = version.filter(|version| *version < ProtocolVersion::V4_0) {
            let kind = MessageType::TL_CONNECT_REQUEST;
            return self.violate(Violation::NotInVersion(kind, version));
        }
        if self.connects.contains(request) {
            // The guest tried again before we answered: one answer serves both.
            return;
        }
        if self.connects.len() >= MAX_PENDING_CONNECTS {
            self.violate(Violation::TooManyConnects);
            return self.post_refusal(request);
        }
        self.connects.push(*request);
        self.actions.push_back(Action::ConnectRequest(*request));
    }
}
