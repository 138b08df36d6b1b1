// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest does in a session: contact, offers, page lists, channels, packets.

use super::{GuestChannel, GuestPacket, GuestRing, MockGuest};
use crate::synic::HvStatus;
use crate::wire::{
    ContactTarget, GpadlBody, GpadlHeader, GpadlId, GuestMessage, HostMessage, InitiateContact,
    MAX_BODY_PFNS, MAX_HEADER_PFNS, Offer, OpenChannel, PfnList, ProtocolVersion, Relid, Sint,
    VpIndex,
};

impl MockGuest {
    /// INITIATE_CONTACT from the boot processor; whether the host accepts.
    pub fn connect(&mut self, version: ProtocolVersion) -> bool {
        self.connect_on(version, VpIndex::BSP)
    }

    /// INITIATE_CONTACT that names a processor; whether the host accepts.
    pub fn connect_on(&mut self, version: ProtocolVersion, target_vp: VpIndex) -> bool {
        let target = if version >= ProtocolVersion::V5_0 {
            ContactTarget::Sint {
                sint: Sint::VMBUS.number(),
                vtl: 0,
                feature_flags: 0,
            }
        } else {
            ContactTarget::InterruptPage(0)
        };
        self.post(&GuestMessage::InitiateContact(InitiateContact {
            version,
            target_vp,
            target,
            monitor_pages: [0, 0],
        }));
        match self.recv() {
            Some(HostMessage::VersionResponse(response)) => {
                self.connection_id = 1;
                if response.supported && version >= ProtocolVersion::V5_0 {
                    self.connection_id = response.connection_id;
                }
                response.supported
            }
            other => panic!("instead of a version response: {other:?}"),
        }
    }

    /// REQUESTOFFERS and what comes of it.
    pub fn request_offers(&mut self) -> Vec<Offer> {
        self.post(&GuestMessage::RequestOffers);
        let mut offers = Vec::new();
        loop {
            match self.recv() {
                Some(HostMessage::OfferChannel(offer)) => offers.push(offer),
                Some(HostMessage::AllOffersDelivered) => return offers,
                other => panic!("instead of an offer: {other:?}"),
            }
        }
    }

    /// Zeroed pages that nobody uses.
    pub fn alloc(&mut self, pages: u64) -> Vec<u64> {
        let first = self.next_page;
        self.next_page += pages;
        (first..self.next_page).collect()
    }

    /// Makes a page list; what the host says to it.
    pub fn create_gpadl(&mut self, relid: Relid, pfns: &[u64]) -> Result<GpadlId, u32> {
        let gpadl = GpadlId(self.next_gpadl);
        self.next_gpadl += 1;
        for message in gpadl_messages(relid, gpadl, pfns) {
            assert_eq!(self.post(&message), HvStatus::SUCCESS);
        }
        match self.recv() {
            Some(HostMessage::GpadlCreated {
                relid: of,
                gpadl: created,
                status,
            }) => {
                assert_eq!((of, created), (relid, gpadl));
                if status == 0 { Ok(gpadl) } else { Err(status) }
            }
            other => panic!("instead of a created list: {other:?}"),
        }
    }

    /// Makes rings of `pages` pages each and opens the channel on them.
    pub fn open(&mut self, relid: Relid, pages: u64) -> Result<GuestChannel, u32> {
        let pfns = self.alloc(2 * pages);
        self.open_on(relid, &pfns, VpIndex::BSP)
    }

    /// Opens the channel on these pages, the first half of which is the ring to
    /// the host.
    pub fn open_on(
        &mut self,
        relid: Relid,
        pfns: &[u64],
        target_vp: VpIndex,
    ) -> Result<GuestChannel, u32> {
        let gpadl = self.create_gpadl(relid, pfns)?;
        let (outgoing, incoming) = pfns.split_at(pfns.len() / 2);
        let channel = GuestChannel {
            relid,
            gpadl,
            outgoing: GuestRing::init(&self.memory, outgoing),
            incoming: GuestRing::init(&self.memory, incoming),
        };
        let open = OpenChannel {
            relid,
            open_id: relid.0,
            gpadl,
            target_vp,
            downstream_offset: u32::try_from(outgoing.len()).expect("a small ring"),
            user_data: [0; 120],
        };
        self.post(&GuestMessage::OpenChannel(open));
        match self.recv() {
            Some(HostMessage::OpenChannelResult { status: 0, .. }) => Ok(channel),
            Some(HostMessage::OpenChannelResult { status, .. }) => Err(status),
            other => panic!("instead of an open result: {other:?}"),
        }
    }

    /// Closes a channel and takes its pages back.
    pub fn close(&mut self, channel: &GuestChannel) {
        let relid = channel.relid;
        self.post(&GuestMessage::CloseChannel { relid });
        self.teardown(relid, channel.gpadl);
    }

    /// Takes the pages of a list back.
    pub fn teardown(&mut self, relid: Relid, gpadl: GpadlId) {
        self.post(&GuestMessage::GpadlTeardown { relid, gpadl });
        assert_eq!(self.recv(), Some(HostMessage::GpadlTorndown { gpadl }));
    }

    /// Sends a packet and signals if that is called for. False if there is no
    /// room; then the host is asked for a signal when there is.
    pub fn send(&mut self, channel: &mut GuestChannel, id: u64, payload: &[u8]) -> bool {
        match channel.outgoing.write(id, payload) {
            Some(true) => {
                self.signal(channel.relid);
                true
            }
            Some(false) => true,
            None => channel.outgoing.request_space(payload) && self.send(channel, id, payload),
        }
    }

    /// Reads a packet, and signals if the host waits for the room.
    pub fn receive(&mut self, channel: &mut GuestChannel) -> Option<GuestPacket> {
        let packet = channel.incoming.read()?;
        if channel.incoming.commit() {
            self.signal(channel.relid);
        }
        Some(packet)
    }
}

/// The messages that make a page list of `pfns`.
pub fn gpadl_messages(relid: Relid, gpadl: GpadlId, pfns: &[u64]) -> Vec<GuestMessage> {
    let (head, rest) = pfns.split_at(pfns.len().min(MAX_HEADER_PFNS));
    let header = GuestMessage::GpadlHeader(GpadlHeader {
        relid,
        gpadl,
        range_buflen: u16::try_from(8 + 8 * pfns.len()).expect("a list of one range"),
        range_count: 1,
        byte_count: u32::try_from(pfns.len() * 4096).expect("a list of one range"),
        byte_offset: 0,
        pfns: PfnList::new(head).expect("few enough"),
    });
    let bodies = rest.chunks(MAX_BODY_PFNS).map(|part| {
        GuestMessage::GpadlBody(GpadlBody {
            message_number: 0,
            gpadl,
            pfns: PfnList::new(part).expect("few enough"),
        })
    });
    std::iter::once(header).chain(bodies).collect()
}
