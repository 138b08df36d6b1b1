// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sizes and offsets, as the tables of protocol 4 and 5.2 have them.

use crate::wire::{MessageType, raw};
use std::mem::offset_of;

macro_rules! offsets {
    ($($raw:ident, $size:literal: $($field:ident @ $offset:literal),*;)*) => {
        #[test]
        fn every_field_is_where_the_protocol_says() {
            $(
                assert_eq!(size_of::<raw::$raw>(), $size, stringify!($raw));
                assert_eq!(align_of::<raw::$raw>(), 1, stringify!($raw));
                $(
                    assert_eq!(
                        offset_of!(raw::$raw, $field),
                        $offset,
                        concat!(stringify!($raw), ".", stringify!($field))
                    );
                )*
            )*
        }
    };
}

offsets! {
    Header, 8: message_type @ 0, padding @ 4;
    RelidOnly, 12: relid @ 8;
    OfferChannel, 196: interface_type @ 8, instance @ 24, reserved @ 40, flags @ 56,
        mmio_megabytes @ 58, user_defined @ 60, sub_channel_index @ 180,
        mmio_megabytes_optional @ 182, relid @ 184, monitor_id @ 188, monitor_allocated @ 189,
        dedicated_interrupt @ 190, connection_id @ 192;
    OpenChannel, 148: relid @ 8, open_id @ 12, gpadl @ 16, target_vp @ 20,
        downstream_offset @ 24, user_data @ 28;
    ThreeWords, 20: first @ 8, second @ 12, third @ 16;
    TwoWords, 16: first @ 8, second @ 12;
    GpadlHeader, 28: relid @ 8, gpadl @ 12, range_buflen @ 16, range_count @ 18,
        byte_count @ 20, byte_offset @ 24;
    GpadlBody, 16: message_number @ 8, gpadl @ 12;
    InitiateContact, 40: version @ 8, target_vp @ 12, interrupt_page @ 16, monitor_pages @ 24;
    ContactTarget, 8: sint @ 0, vtl @ 1, reserved @ 2, feature_flags @ 4;
    VersionResponse, 16: supported @ 8, connection_state @ 9, padding @ 10, connection_id @ 12;
    TlConnectRequest, 40: endpoint @ 8, service @ 24;
    TlConnectResult, 44: endpoint @ 8, service @ 24, status @ 40;
    PacketHeader, 16: packet_type @ 0, offset8 @ 2, len8 @ 4, flags @ 6, transaction_id @ 8;
    PipeHeader, 8: flags @ 0, size @ 4;
    TransferPages, 8: set_id @ 0, sender_owns_set @ 2, reserved @ 3, range_count @ 4;
    GpaDirect, 8: reserved @ 0, range_count @ 4;
    Range, 8: byte_count @ 0, byte_offset @ 4;
}

#[test]
fn message_types_have_the_protocols_numbers_and_sizes() {
    let table = [
        (1, 196),
        (2, 12),
        (3, 8),
        (4, 8),
        (5, 148),
        (6, 20),
        (7, 12),
        (8, 28),
        (9, 16),
        (10, 20),
        (11, 16),
        (12, 12),
        (13, 12),
        (14, 40),
        (15, 16),
        (16, 8),
        (17, 8),
        (21, 40),
        (22, 16),
        (23, 44),
        (24, 16),
    ];
    for (number, size) in table {
        assert_eq!(MessageType(number).min_size(), Some(size), "type {number}");
    }
    let numbers: Vec<u32> = MessageType::ALL.iter().map(|kind| kind.0).collect();
    assert_eq!(numbers, (1..=29).collect::<Vec<_>>());
    assert_eq!(MessageType(0).name(), None);
    assert_eq!(MessageType(30).name(), None);
}
