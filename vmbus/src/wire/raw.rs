// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The messages field by field, exactly as they lie in memory (protocol 4.3 to 4.12).
//!
//! Little-endian and unaligned, without padding of the compiler's. The offsets
//! are checked against the protocol's tables in the tests.

use zerocopy::byteorder::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Guid;

macro_rules! raw {
    ($($name:ident { $($field:ident: $ty:ty),* $(,)? })*) => {$(
        #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub(crate) struct $name { $(pub(crate) $field: $ty),* }
    )*};
}

raw! {
    Header { message_type: U32, padding: U32 }
    RelidOnly { header: Header, relid: U32 }
    OfferChannel {
        header: Header,
        interface_type: Guid,
        instance: Guid,
        reserved: [U64; 2],
        flags: U16,
        mmio_megabytes: U16,
        user_defined: [u8; 120],
        sub_channel_index: U16,
        mmio_megabytes_optional: U16,
        relid: U32,
        monitor_id: u8,
        monitor_allocated: u8,
        dedicated_interrupt: U16,
        connection_id: U32,
    }
    OpenChannel {
        header: Header,
        relid: U32,
        open_id: U32,
        gpadl: U32,
        target_vp: U32,
        downstream_offset: U32,
        user_data: [u8; 120],
    }
    ThreeWords { header: Header, first: U32, second: U32, third: U32 }
    TwoWords { header: Header, first: U32, second: U32 }
    GpadlHeader {
        header: Header,
        relid: U32,
        gpadl: U32,
        range_buflen: U16,
        range_count: U16,
        byte_count: U32,
        byte_offset: U32,
    }
    GpadlBody { header: Header, message_number: U32, gpadl: U32 }
    InitiateContact {
        header: Header,
        version: U32,
        target_vp: U32,
        interrupt_page: U64,
        monitor_pages: [U64; 2],
    }
    ContactTarget { sint: u8, vtl: u8, reserved: U16, feature_flags: U32 }
    VersionResponse {
        header: Header,
        supported: u8,
        connection_state: u8,
        padding: U16,
        connection_id: U32,
    }
    TlConnectRequest { header: Header, endpoint: Guid, service: Guid }
    TlConnectResult { header: Header, endpoint: Guid, service: Guid, status: I32 }
    PacketHeader {
        packet_type: U16,
        offset8: U16,
        len8: U16,
        flags: U16,
        transaction_id: U64,
    }
    PipeHeader { flags: U32, size: U32 }
    TransferPages { set_id: U16, sender_owns_set: u8, reserved: u8, range_count: U32 }
    GpaDirect { reserved: U32, range_count: U32 }
    Range { byte_count: U32, byte_offset: U32 }
}
