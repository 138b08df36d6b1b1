// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Literal bytes, from the protocol's tables.

use proptest::prelude::*;

use super::*;

const V1: IcVersion = IcVersion::new(1, 0);
const V3: IcVersion = IcVersion::new(3, 0);

/// The heartbeat's negotiation as in protocol 6.3, with its padding.
const NEGOTIATE: [u8; 56] = [
    0x01, 0, 0, 0, 0x2c, 0, 0, 0, // pipe: flags 1, size 44
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x18, 0, // 0.0, type 0, 0.0, size 24
    0, 0, 0, 0, 0x01, 0x03, 0, 0, // status 0, transaction 1, request
    2, 0, 2, 0, 0, 0, 0, 0, // two and two
    1, 0, 0, 0, 3, 0, 0, 0, // framework 1.0, 3.0
    1, 0, 0, 0, 3, 0, 0, 0, // service 1.0, 3.0
    0, 0, 0, 0, // padding to 8
];

/// What Linux makes of it.
fn linux_answer() -> [u8; 56] {
    let mut answer = NEGOTIATE;
    answer[18] = 0x10;
    answer[25] = 5;
    answer[28..32].copy_from_slice(&[1, 0, 1, 0]);
    answer[36..44].copy_from_slice(&[3, 0, 0, 0, 3, 0, 0, 0]);
    answer
}

fn parsed(payload: &[u8]) -> Result<Versions, NegotiateError> {
    parse_negotiated(&IcMessage::parse(payload).unwrap())
}

#[test]
fn a_negotiation_is_emitted_as_the_protocol_has_it() {
    let mut body = Vec::new();
    negotiate_body(&[V1, V3], [V1, V3].into_iter(), &mut body);
    let header = IcHeader::request(MessageType::NEGOTIATE, Versions::NONE, 1);
    let bytes = [&header.emit(body.len()).unwrap()[..], &body].concat();
    assert_eq!(bytes, NEGOTIATE[..52]);
}

#[test]
fn a_request_parses_back_to_what_was_emitted() {
    let message = IcMessage::parse(&NEGOTIATE).unwrap();
    let header = IcHeader::request(MessageType::NEGOTIATE, Versions::NONE, 1);
    assert_eq!(message.header, header);
    assert_eq!(message.body, &NEGOTIATE[28..52]);
}

#[test]
fn linux_chooses_one_version_of_each_kind() {
    let answer = linux_answer();
    let message = IcMessage::parse(&answer).unwrap();
    assert_eq!(message.header.flags.bits(), 5);
    assert_eq!(message.body.len(), 16);
    let versions = Versions {
        framework: V3,
        service: V3,
    };
    assert_eq!(parse_negotiated(&message), Ok(versions));
}

#[test]
fn counts_of_zero_say_that_nothing_is_in_common() {
    for at in [28, 30] {
        let mut answer = linux_answer();
        answer[at] = 0;
        assert_eq!(parsed(&answer), Err(NegotiateError::NoneInCommon));
    }
}

#[test]
fn choosing_several_versions_is_malformed() {
    let mut answer = linux_answer();
    answer[28] = 2;
    assert_eq!(parsed(&answer), Err(NegotiateError::Malformed));
}

#[test]
fn an_answer_without_its_versions_is_malformed() {
    for size in 0..16 {
        let mut answer = linux_answer();
        answer[18] = size;
        assert_eq!(parsed(&answer), Err(NegotiateError::Malformed));
    }
}

#[test]
fn a_failed_negotiation_tells_its_status() {
    let mut answer = linux_answer();
    answer[20..24].copy_from_slice(&[0x05, 0x40, 0x00, 0x80]);
    let error = parsed(&answer).unwrap_err();
    assert_eq!(error, NegotiateError::Status(HResult::FAIL));
    assert!(error.to_string().contains("0x80004005"));
}

#[test]
fn a_frame_longer_than_the_packet_is_refused() {
    let mut bytes = NEGOTIATE;
    bytes[4] = 49;
    let error = ParseError::NoFrame { len: 56 };
    assert_eq!(IcMessage::parse(&bytes), Err(error));
    assert!(IcMessage::parse(&NEGOTIATE[..7]).is_err());
    assert!(IcMessage::parse(&[]).is_err());
}

#[test]
fn a_frame_that_is_not_data_is_refused() {
    let mut bytes = NEGOTIATE;
    bytes[0] = 2;
    let error = ParseError::NotData { flags: 2 };
    assert_eq!(IcMessage::parse(&bytes), Err(error));
}

#[test]
fn a_frame_shorter_than_the_header_is_refused() {
    let mut bytes = NEGOTIATE;
    bytes[4] = 19;
    assert_eq!(
        IcMessage::parse(&bytes),
        Err(ParseError::NoHeader { len: 19 })
    );
}

#[test]
fn a_body_longer_than_the_frame_is_refused() {
    let mut bytes = NEGOTIATE;
    bytes[18] = 25;
    let error = ParseError::ShortBody {
        announced: 25,
        len: 24,
    };
    assert_eq!(IcMessage::parse(&bytes), Err(error));
}

#[test]
fn a_body_too_long_for_a_packet_is_not_emitted() {
    let header = IcHeader::request(MessageType::VSS, Versions::NONE, 0);
    assert!(header.emit(MAX_BODY).is_some());
    assert!(header.emit(MAX_BODY + 1).is_none());
    assert!(header.emit(1 << 20).is_none());
}

#[test]
fn a_message_describes_itself_for_a_trace() {
    let message = IcMessage::parse(&NEGOTIATE[..]).unwrap();
    let mut fields = Vec::new();
    message.fields(&mut |name, value| fields.push(format!("{name}={value:?}")));
    assert_eq!(message.name(), "negotiate");
    assert!(fields.join(" ").starts_with(
        "type=0 framework=0.0 version=0.0 status=0 transaction_id=1 flags=3 body=[02,"
    ));
}

#[test]
fn a_status_tells_number_and_meaning() {
    assert_eq!(
        HResult(0x8007_0070).to_string(),
        "0x80070070 (the disk is full)"
    );
    assert_eq!(
        HResult(0x8abc_0001).to_string(),
        "0x8abc0001 (unknown failure)"
    );
    assert!(HResult(1).is_ok());
    assert!(!HResult::FAIL.is_ok());
}

proptest! {
    #[test]
    fn any_bytes_parse_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        if let Ok(message) = IcMessage::parse(&bytes) {
            prop_assert!(message.body.len() <= bytes.len() - 28);
            let _ = parse_negotiated(&message);
        }
    }

    #[test]
    fn a_flipped_byte_parses_or_is_refused(at in 0..56usize, value: u8) {
        let mut bytes = linux_answer();
        bytes[at] = value;
        let _ = IcMessage::parse(&bytes).map(|message| parse_negotiated(&message));
    }

    #[test]
    fn every_header_parses_back(
        major: u16, minor: u16, message_type: u16, status: u32, id: u8, flags: u8,
        body in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let header = IcHeader {
            framework: IcVersion::new(major, minor),
            message_type: MessageType(message_type),
            version: IcVersion::new(minor, major),
            status: HResult(status),
            transaction_id: id,
            flags: IcFlags::from_bits_retain(flags),
        };
        let bytes = [&header.emit(body.len()).unwrap()[..], &body].concat();
        let message = IcMessage::parse(&bytes).unwrap();
        prop_assert_eq!(message, IcMessage { header, body: &body });
    }
}

#[test]
fn a_trace_names_the_operation() {
    let shown = |message_type, first: u8| {
        let header = IcHeader::request(message_type, Versions::NONE, 1);
        let mut payload = header.emit(8).unwrap().to_vec();
        payload.extend([first, 0, 0, 0, 0, 0, 0, 0]);
        let mut operation = None;
        IcMessage::parse(&payload)
            .unwrap()
            .fields(&mut |name, value| {
                if let ("operation", FieldValue::Text(text)) = (name, value) {
                    operation = Some(text.to_string());
                }
            });
        operation
    };
    assert_eq!(shown(MessageType::KVP, 3).as_deref(), Some("enumerate"));
    assert_eq!(shown(MessageType::VSS, 5).as_deref(), Some("freeze"));
    assert_eq!(shown(MessageType::FCOPY, 1).as_deref(), Some("write"));
    assert_eq!(shown(MessageType::FCOPY, 9), None);
    assert_eq!(shown(MessageType::HEARTBEAT, 1), None);
}
