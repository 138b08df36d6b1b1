// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each message and packet format from bytes written out by hand.

use std::fmt::Write;

use crate::wire::*;

/// Little-endian words in a row.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn padded(mut bytes: Vec<u8>, size: usize) -> Vec<u8> {
    bytes.resize(size, 0);
    bytes
}

/// One whole message of each kind that a guest sends.
#[allow(clippy::too_many_lines)] // one table, one entry per message
fn guest_messages() -> Vec<(Vec<u8>, GuestMessage)> {
    let endpoint = Guid::from_u128(0x0000_1388_facb_11e6_bd58_6400_6a79_86d3);
    let mut connect = words(&[21, 0]);
    connect.extend(endpoint.to_bytes());
    connect.extend([7; 16]);
    let mut with_silo = connect.clone();
    with_silo.extend([9; 16]);
    let connected = |silo| {
        GuestMessage::TlConnectRequest(TlConnectRequest {
            endpoint,
            service: Guid::from_bytes([7; 16]),
            silo,
        })
    };
    vec![
        (words(&[3, 0]), GuestMessage::RequestOffers),
        (
            padded(words(&[5, 0, 11, 11, 0xe1e10, 1, 4]), 148),
            GuestMessage::OpenChannel(OpenChannel {
                relid: Relid(11),
                open_id: 11,
                gpadl: GpadlId(0xe1e10),
                target_vp: VpIndex(1),
                downstream_offset: 4,
                user_data: [0; 120],
            }),
        ),
        (
            words(&[7, 0, 11]),
            GuestMessage::CloseChannel { relid: Relid(11) },
        ),
        (
            // range_buflen 24 and rangecount 1 share a word; two page numbers.
            words(&[
                8,
                0,
                11,
                0xe1e10,
                0x0001_0018,
                0x2000,
                0,
                0x1234,
                0,
                0x1235,
                1,
            ]),
            GuestMessage::GpadlHeader(GpadlHeader {
                relid: Relid(11),
                gpadl: GpadlId(0xe1e10),
                range_buflen: 24,
                range_count: 1,
                byte_count: 0x2000,
                byte_offset: 0,
                pfns: PfnList::new(&[0x1234, 0x1_0000_1235]).unwrap(),
            }),
        ),
        (
            words(&[9, 0, 0, 0xe1e10, 0x77, 0]),
            GuestMessage::GpadlBody(GpadlBody {
                message_number: 0,
                gpadl: GpadlId(0xe1e10),
                pfns: PfnList::new(&[0x77]).unwrap(),
            }),
        ),
        (
            words(&[11, 0, 11, 0xe1e10]),
            GuestMessage::GpadlTeardown {
                relid: Relid(11),
                gpadl: GpadlId(0xe1e10),
            },
        ),
        (
            words(&[13, 0, 11]),
            GuestMessage::RelidReleased { relid: Relid(11) },
        ),
        (
            words(&[14, 0, 0x0005_0003, 1, 0x0000_0002, 0, 0x3000, 0, 0x4000, 0]),
            GuestMessage::InitiateContact(InitiateContact {
                version: ProtocolVersion::V5_3,
                target_vp: VpIndex(1),
                target: ContactTarget::Sint {
                    sint: 2,
                    vtl: 0,
                    feature_flags: 0,
                },
                monitor_pages: [0x3000, 0x4000],
            }),
        ),
        (
            words(&[14, 0, 0x0005_0000, 0, 0x0000_0110, 0x21, 0, 0, 0, 0]),
            GuestMessage::InitiateContact(InitiateContact {
                version: ProtocolVersion::V5_0,
                target_vp: VpIndex(0),
                target: ContactTarget::Sint {
                    sint: 16,
                    vtl: 1,
                    feature_flags: 0x21,
                },
                monitor_pages: [0, 0],
            }),
        ),
        (
            words(&[14, 0, 0x0004_0001, 0, 0x2000, 1, 0x3000, 0, 0x4000, 0]),
            GuestMessage::InitiateContact(InitiateContact {
                version: ProtocolVersion::V4_1,
                target_vp: VpIndex(0),
                target: ContactTarget::InterruptPage(0x1_0000_2000),
                monitor_pages: [0x3000, 0x4000],
            }),
        ),
        (words(&[16, 0]), GuestMessage::Unload),
        (connect, connected(None)),
        (with_silo, connected(Some(Guid::from_bytes([9; 16])))),
        (
            words(&[22, 0, 11, 3]),
            GuestMessage::ModifyChannel(ModifyChannel {
                relid: Relid(11),
                target_vp: VpIndex(3),
            }),
        ),
    ]
}

#[test]
fn what_a_guest_sends_is_read_from_its_bytes() {
    for (bytes, message) in guest_messages() {
        assert_eq!(GuestMessage::parse(&bytes), Ok(message));
        assert_eq!(message.emit().as_slice(), bytes, "{message:?}");
    }
}

#[test]
fn bytes_behind_a_message_are_ignored() {
    for (mut bytes, message) in guest_messages() {
        let list = matches!(
            message,
            GuestMessage::GpadlHeader(_)
                | GuestMessage::GpadlBody(_)
                | GuestMessage::TlConnectRequest(_)
        );
        if !list {
            bytes.extend([0xee; 16]);
            assert_eq!(GuestMessage::parse(&bytes), Ok(message));
        }
    }
}

#[test]
fn a_message_cut_short_anywhere_is_refused() {
    for (bytes, message) in guest_messages() {
        let least = message.message_type().min_size().unwrap();
        for cut in 0..least {
            let error = GuestMessage::parse(&bytes[..cut]).unwrap_err();
            let expected = if cut < 8 {
                ParseError::NoHeader(cut)
            } else {
                ParseError::TooShort {
                    message_type: message.message_type(),
                    size: cut,
                }
            };
            assert_eq!(error, expected);
        }
    }
}

#[test]
fn a_torn_page_number_is_refused() {
    let bytes = words(&[9, 0, 0, 0xe1e10, 0x77, 0, 1]);
    assert_eq!(
        GuestMessage::parse(&bytes),
        Err(ParseError::TornPageList(MessageType::GPADL_BODY))
    );
}

#[test]
fn a_guest_that_sends_a_hosts_message_is_told_apart() {
    for kind in MessageType::ALL {
        let bytes = padded(words(&[kind.0, 0]), kind.min_size().unwrap());
        let parsed = GuestMessage::parse(&bytes);
        match kind.direction().unwrap() {
            Direction::HostToGuest => {
                assert_eq!(parsed, Err(ParseError::WrongDirection(*kind)));
            }
            Direction::GuestToHost => {
                assert!(parsed.is_ok() || parsed == Err(ParseError::Unsupported(*kind)));
            }
        }
    }
    for number in [0, 30, 0x8000_0010, u32::MAX] {
        let parsed = GuestMessage::parse(&words(&[number, 0]));
        assert_eq!(parsed, Err(ParseError::Unsupported(MessageType(number))));
    }
}

/// One of each kind that a host sends, but the offer.
fn host_messages() -> Vec<(Vec<u8>, HostMessage)> {
    let relid = Relid(11);
    let gpadl = GpadlId(0xe1e10);
    let mut refused = words(&[23, 0]);
    refused.extend([1; 16]);
    refused.extend([2; 16]);
    refused.extend([0x36, 0x02, 0, 0xc0]);
    vec![
        (
            words(&[2, 0, 11]),
            HostMessage::RescindChannelOffer { relid },
        ),
        (words(&[4, 0]), HostMessage::AllOffersDelivered),
        (
            words(&[6, 0, 11, 12, 0]),
            HostMessage::OpenChannelResult {
                relid,
                open_id: 12,
                status: 0,
            },
        ),
        (
            words(&[10, 0, 11, 0xe1e10, 1]),
            HostMessage::GpadlCreated {
                relid,
                gpadl,
                status: 1,
            },
        ),
        (
            words(&[12, 0, 0xe1e10]),
            HostMessage::GpadlTorndown { gpadl },
        ),
        (
            words(&[15, 0, 1, 4]),
            HostMessage::VersionResponse(VersionResponse {
                supported: true,
                connection_state: 0,
                connection_id: 4,
            }),
        ),
        (words(&[17, 0]), HostMessage::UnloadResponse),
        (
            refused,
            HostMessage::TlConnectResult(TlConnectResult {
                endpoint: Guid::from_bytes([1; 16]),
                service: Guid::from_bytes([2; 16]),
                status: 0xc000_0236_u32.cast_signed(),
            }),
        ),
        (
            words(&[24, 0, 11, 0]),
            HostMessage::ModifyChannelResponse { relid, status: 0 },
        ),
    ]
}

#[test]
fn what_the_host_sends_has_these_bytes() {
    for (bytes, message) in host_messages() {
        assert_eq!(message.emit().as_slice(), bytes, "{message:?}");
        assert_eq!(HostMessage::parse(&bytes), Ok(message));
    }
}

#[test]
fn an_offer_of_the_heartbeat_has_these_bytes() {
    let mut user_defined = [0; USER_DEFINED_SIZE];
    user_defined[0] = 4;
    let offer = Offer {
        interface_type: "57164f39-9115-4e78-ab55-382f3bd5422d".parse().unwrap(),
        instance: "fd149e91-82e0-4a7d-afa6-2a4166cbd7c0".parse().unwrap(),
        flags: ChannelFlags::ENUMERATE_DEVICE_INTERFACE | ChannelFlags::NAMED_PIPE_MODE,
        mmio_megabytes: 0,
        user_defined,
        sub_channel_index: 0,
        relid: Relid(2),
        monitor_id: None,
        dedicated_interrupt: true,
        connection_id: 0x12,
    };
    let mut expected = words(&[1, 0]);
    expected.extend([
        0x39, 0x4f, 0x16, 0x57, 0x15, 0x91, 0x78, 0x4e, 0xab, 0x55, 0x38, 0x2f, 0x3b, 0xd5, 0x42,
        0x2d,
    ]);
    expected.extend([
        0x91, 0x9e, 0x14, 0xfd, 0xe0, 0x82, 0x7d, 0x4a, 0xaf, 0xa6, 0x2a, 0x41, 0x66, 0xcb, 0xd7,
        0xc0,
    ]);
    expected = padded(expected, 56);
    expected.extend([0x11, 0, 0, 0]);
    expected.extend(words(&[4]));
    expected = padded(expected, 184);
    expected.extend(words(&[2]));
    expected.extend([0xff, 0, 1, 0]);
    expected.extend(words(&[0x12]));
    let message = HostMessage::OfferChannel(offer);
    assert_eq!(message.emit().as_slice(), expected);
    assert_eq!(HostMessage::parse(&expected), Ok(message));
}

#[test]
fn guids_of_appendix_a_have_these_bytes() {
    let table = [
        (
            "57164f39-9115-4e78-ab55-382f3bd5422d",
            "394f16571591784eab55382f3bd5422d",
        ),
        (
            "eb765408-105f-49b6-b4aa-c123b64d17d4",
            "085476eb5f10b649b4aac123b64d17d4",
        ),
        (
            "00000000-facb-11e6-bd58-64006a7986d3",
            "00000000cbfae611bd5864006a7986d3",
        ),
    ];
    for (text, hex) in table {
        let guid: Guid = text.parse().unwrap();
        let digits: String = guid.to_bytes().map(|byte| format!("{byte:02x}")).concat();
        assert_eq!(digits, hex);
        assert_eq!(guid.to_string(), text);
        assert_eq!(text.to_uppercase().parse(), Ok(guid));
        assert_eq!(format!("{{{text}}}").parse(), Ok(guid));
    }
}

#[test]
fn text_that_is_no_guid_is_refused() {
    for text in [
        "",
        "57164f39-9115-4e78-ab55-382f3bd5422",
        "57164f39-9115-4e78-ab55-382f3bd5422dd",
        "57164f3991154e78ab55382f3bd5422d",
        "57164f39-9115-4e78-ab55382f3bd5-422d",
        "57164f3g-9115-4e78-ab55-382f3bd5422d",
        "+7164f39-9115-4e78-ab55-382f3bd5422d",
        "{57164f39-9115-4e78-ab55-382f3bd5422d",
        "5716é39-9115-4e78-ab55-382f3bd5422d",
    ] {
        assert_eq!(text.parse::<Guid>(), Err(GuidError), "{text}");
    }
}

#[test]
fn versions_read_and_order_as_numbers() {
    assert_eq!("5.3".parse(), Ok(ProtocolVersion(0x0005_0003)));
    assert_eq!("0.13".parse(), Ok(ProtocolVersion::V0_13));
    assert_eq!(ProtocolVersion::V2_4.to_string(), "2.4");
    assert!(ProtocolVersion::V5_3 < ProtocolVersion::V6_0);
    for text in ["", "5", "5.", ".3", "5.x", "70000.1"] {
        assert_eq!(text.parse::<ProtocolVersion>(), Err(VersionError), "{text}");
    }
}

#[test]
fn a_packet_header_has_these_bytes() {
    let header = PacketHeader {
        packet_type: PacketType::IN_BAND,
        offset8: 2,
        len8: 5,
        flags: PacketFlags::COMPLETION_REQUESTED,
        transaction_id: 0x0102_0304_0506_0708,
    };
    let bytes = [6, 0, 2, 0, 5, 0, 1, 0, 8, 7, 6, 5, 4, 3, 2, 1];
    assert_eq!(header.to_bytes(), bytes);
    assert_eq!(PacketHeader::from_bytes(bytes), header);
    assert_eq!((header.payload_offset(), header.packet_len()), (16, 40));
}

#[test]
fn a_pipe_frame_says_how_much_of_the_padding_is_meant() {
    let payload = [1, 0, 0, 0, 3, 0, 0, 0, b'a', b'b', b'c', 0, 0, 0, 0, 0];
    let (header, data) = PipeHeader::parse(&payload).unwrap();
    assert_eq!((header, data), (PipeHeader::data(3), &b"abc"[..]));
    assert_eq!(header.to_bytes(), payload[..8]);
    for cut in 0..11 {
        assert_eq!(PipeHeader::parse(&payload[..cut]), None, "{cut}");
    }
}

#[test]
fn a_message_describes_its_fields_in_wire_order() {
    let contact = words(&[14, 0, 0x0005_0003, 1, 2, 0, 0, 0, 0, 0]);
    let contact = GuestMessage::parse(&contact).unwrap();
    let mut text = contact.name().to_string();
    contact.fields(&mut |name, value| write!(text, " {name}={value:?}").unwrap());
    assert_eq!(
        text,
        "INITIATE_CONTACT version=5.3 target_vcpu=1 target_sint=2 target_vtl=0 \
         feature_flags=0 monitor_page1=0 monitor_page2=0"
    );
}
