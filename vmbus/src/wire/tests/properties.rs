// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is emitted parses to itself, and arbitrary bytes harm nobody.

use crate::wire::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn guid() -> impl Strategy<Value = Guid> {
    any::<u128>().prop_map(Guid::from_u128)
}

fn relid() -> impl Strategy<Value = Relid> {
    any::<u32>().prop_map(Relid)
}

fn gpadl() -> impl Strategy<Value = GpadlId> {
    any::<u32>().prop_map(GpadlId)
}

fn pfns(most: usize) -> impl Strategy<Value = PfnList> {
    vec(any::<u64>(), 0..=most).prop_map(|pfns| PfnList::new(&pfns).unwrap())
}

fn bytes120() -> impl Strategy<Value = [u8; 120]> {
    vec(any::<u8>(), 120).prop_map(|bytes| bytes.try_into().unwrap())
}

fn contact() -> impl Strategy<Value = InitiateContact> {
    let pages = any::<[u64; 2]>();
    (any::<u32>(), any::<u32>(), any::<u64>(), pages).prop_map(|(version, vp, target, pages)| {
        let version = ProtocolVersion(version);
        let target = if version >= ProtocolVersion::V5_0 {
            let [sint, vtl, _, _, a, b, c, d] = target.to_le_bytes();
            ContactTarget::Sint {
                sint,
                vtl,
                feature_flags: u32::from_le_bytes([a, b, c, d]),
            }
        } else {
            ContactTarget::InterruptPage(target)
        };
        InitiateContact {
            version,
            target_vp: VpIndex(vp),
            target,
            monitor_pages: pages,
        }
    })
}

fn guest_message() -> impl Strategy<Value = GuestMessage> {
    let open = (
        relid(),
        any::<u32>(),
        gpadl(),
        any::<u32>(),
        any::<u32>(),
        bytes120(),
    );
    let open = open.prop_map(
        |(relid, open_id, gpadl, vp, downstream_offset, user_data)| {
            GuestMessage::OpenChannel(OpenChannel {
                relid,
                open_id,
                gpadl,
                target_vp: VpIndex(vp),
                downstream_offset,
                user_data,
            })
        },
    );
    let ranges = any::<(u16, u16, u32, u32)>();
    let header = (relid(), gpadl(), ranges, pfns(MAX_HEADER_PFNS));
    let header = header.prop_map(|(relid, gpadl, ranges, pfns)| {
        let (range_buflen, range_count, byte_count, byte_offset) = ranges;
        GuestMessage::GpadlHeader(GpadlHeader {
            relid,
            gpadl,
            range_buflen,
            range_count,
            byte_count,
            byte_offset,
            pfns,
        })
    });
    let body = (any::<u32>(), gpadl(), pfns(MAX_BODY_PFNS));
    let body = body.prop_map(|(message_number, gpadl, pfns)| {
        GuestMessage::GpadlBody(GpadlBody {
            message_number,
            gpadl,
            pfns,
        })
    });
    let connect = (guid(), guid(), proptest::option::of(guid()));
    let connect = connect.prop_map(|(endpoint, service, silo)| {
        GuestMessage::TlConnectRequest(TlConnectRequest {
            endpoint,
            service,
            silo,
        })
    });
    let modify = (relid(), any::<u32>()).prop_map(|(relid, vp)| {
        GuestMessage::ModifyChannel(ModifyChannel {
            relid,
            target_vp: VpIndex(vp),
        })
    });
    prop_oneof![
        Just(GuestMessage::RequestOffers),
        Just(GuestMessage::Unload),
        open,
        header,
        body,
        connect,
        modify,
        relid().prop_map(|relid| GuestMessage::CloseChannel { relid }),
        relid().prop_map(|relid| GuestMessage::RelidReleased { relid }),
        (relid(), gpadl()).prop_map(|(relid, gpadl)| GuestMessage::GpadlTeardown { relid, gpadl }),
        contact().prop_map(GuestMessage::InitiateContact),
    ]
}

fn offer() -> impl Strategy<Value = HostMessage> {
    let numbers = any::<(u16, u16, u16, u32, u32, Option<u8>, bool)>();
    (guid(), guid(), bytes120(), numbers).prop_map(|(kind, instance, user_defined, numbers)| {
        let (flags, mmio, index, relid, connection_id, monitor_id, dedicated) = numbers;
        HostMessage::OfferChannel(Offer {
            interface_type: kind,
            instance,
            flags: ChannelFlags::from_bits_retain(flags),
            mmio_megabytes: mmio,
            user_defined,
            sub_channel_index: index,
            relid: Relid(relid),
            monitor_id,
            dedicated_interrupt: dedicated,
            connection_id,
        })
    })
}

fn host_message() -> impl Strategy<Value = HostMessage> {
    let three = || (relid(), any::<u32>(), any::<u32>());
    prop_oneof![
        offer(),
        Just(HostMessage::AllOffersDelivered),
        Just(HostMessage::UnloadResponse),
        relid().prop_map(|relid| HostMessage::RescindChannelOffer { relid }),
        gpadl().prop_map(|gpadl| HostMessage::GpadlTorndown { gpadl }),
        three().prop_map(|(relid, open_id, status)| HostMessage::OpenChannelResult {
            relid,
            open_id,
            status
        }),
        three().prop_map(|(relid, gpadl, status)| HostMessage::GpadlCreated {
            relid,
            gpadl: GpadlId(gpadl),
            status
        }),
        three().prop_map(|(relid, _, status)| HostMessage::ModifyChannelResponse { relid, status }),
        any::<(bool, u8, u32)>().prop_map(|(supported, connection_state, connection_id)| {
            HostMessage::VersionResponse(VersionResponse {
                supported,
                connection_state,
                connection_id,
            })
        }),
        (guid(), guid(), any::<i32>()).prop_map(|(endpoint, service, status)| {
            HostMessage::TlConnectResult(TlConnectResult {
                endpoint,
                service,
                status,
            })
        }),
    ]
}

proptest! {
    #[test]
    fn a_guests_message_survives_the_wire(message in guest_message()) {
        prop_assert_eq!(GuestMessage::parse(message.emit().as_slice()), Ok(message));
    }

    #[test]
    fn a_hosts_message_survives_the_wire(message in host_message()) {
        prop_assert_eq!(HostMessage::parse(message.emit().as_slice()), Ok(message));
        let least = message.message_type().min_size().unwrap();
        prop_assert!(usize::from(message.emit().len()) >= least);
    }

    #[test]
    fn arbitrary_bytes_parse_or_fail_and_parsed_ones_emit_what_parses_again(
        bytes in vec(any::<u8>(), 0..=MAX_PAYLOAD),
        kind in 0u8..32,
    ) {
        let mut bytes = bytes;
        if let Some(head) = bytes.get_mut(..4) {
            head.copy_from_slice(&[kind, 0, 0, 0]);
        }
        if let Ok(message) = GuestMessage::parse(&bytes) {
            prop_assert_eq!(GuestMessage::parse(message.emit().as_slice()), Ok(message));
        }
        let _ = HostMessage::parse(&bytes);
    }

    #[test]
    fn a_guid_survives_its_text(guid in guid()) {
        prop_assert_eq!(guid.to_string().parse(), Ok(guid));
        prop_assert_eq!(Guid::from_u128(guid.to_u128()), guid);
    }

    #[test]
    fn a_packet_header_survives_the_wire(bytes in any::<[u8; 16]>()) {
        let header = PacketHeader::from_bytes(bytes);
        prop_assert_eq!(header.to_bytes(), bytes);
        let words: [u64; 2] = zerocopy::transmute!(bytes);
        prop_assert_eq!(PacketHeader::from_words(words), header);
        prop_assert_eq!(header.to_words(), words);
    }

    #[test]
    fn extended_headers_from_arbitrary_bytes_harm_nobody(bytes in vec(any::<u8>(), 0..256)) {
        if let Some(direct) = ext::GpaDirect::parse(&bytes) {
            let pages = direct.ranges().map(|range| range.pfns().count());
            prop_assert!(pages.sum::<usize>() <= bytes.len() / 8);
        }
        if let Some(pages) = ext::TransferPages::parse(&bytes) {
            prop_assert!(pages.ranges().count() <= bytes.len() / 8);
        }
    }
}
