// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Control messages that the host sends (protocol 4.4 to 4.12).
//!
//! [`HostMessage::emit`] gives the bytes, never fewer than the guest's least
//! size for the type; [`HostMessage::parse`] is its inverse, for mock guests.

use zerocopy::byteorder::little_endian::U64;

use super::guest::{Body, header, message_type, two_words};
use super::{
    ChannelFlags, Describe, Direction, FieldValue, GpadlId, Guid, MessageType, Offer, ParseError,
    Payload, Relid, raw,
};

/// A message to the guest.
// These wait in short queues as bytes, not as this type.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostMessage {
    /// Offers a channel.
    OfferChannel(Offer),
    /// Takes an offer back.
    RescindChannelOffer {
        /// Which channel's.
        relid: Relid,
    },
    /// These were all.
    AllOffersDelivered,
    /// Whether a channel is open.
    OpenChannelResult {
        /// Which channel.
        relid: Relid,
        /// From the request.
        open_id: u32,
        /// 0 if it is open.
        status: u32,
    },
    /// Whether a page list was accepted.
    GpadlCreated {
        /// Which channel's.
        relid: Relid,
        /// Which list.
        gpadl: GpadlId,
        /// 0 if it was.
        status: u32,
    },
    /// The pages of a list are the guest's again.
    GpadlTorndown {
        /// Which list's.
        gpadl: GpadlId,
    },
    /// Whether a version will do.
    VersionResponse(VersionResponse),
    /// The session has ended.
    UnloadResponse,
    /// Why a connection was refused.
    TlConnectResult(TlConnectResult),
    /// A channel was moved, or not.
    ModifyChannelResponse {
        /// Which channel.
        relid: Relid,
        /// 0 if it was.
        status: u32,
    },
}

/// Whether a version will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionResponse {
    /// It will.
    pub supported: bool,
    /// 0 is success; Linux looks at `supported` only.
    pub connection_state: u8,
    /// From 5.0 on the connection for further messages, before it the version.
    pub connection_id: u32,
}

/// Why a connection was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlConnectResult {
    /// From the request.
    pub endpoint: Guid,
    /// From the request.
    pub service: Guid,
    /// An NTSTATUS.
    pub status: i32,
}

impl HostMessage {
    /// The type of the message.
    pub const fn message_type(&self) -> MessageType {
        match self {
            Self::OfferChannel(_) => MessageType::OFFERCHANNEL,
            Self::RescindChannelOffer { .. } => MessageType::RESCIND_CHANNELOFFER,
            Self::AllOffersDelivered => MessageType::ALLOFFERS_DELIVERED,
            Self::OpenChannelResult { .. } => MessageType::OPENCHANNEL_RESULT,
            Self::GpadlCreated { .. } => MessageType::GPADL_CREATED,
            Self::GpadlTorndown { .. } => MessageType::GPADL_TORNDOWN,
            Self::VersionResponse(_) => MessageType::VERSION_RESPONSE,
            Self::UnloadResponse => MessageType::UNLOAD_RESPONSE,
            Self::TlConnectResult(_) => MessageType::TL_CONNECT_RESULT,
            Self::ModifyChannelResponse { .. } => MessageType::MODIFYCHANNEL_RESPONSE,
        }
    }

    /// The bytes on the wire.
    pub fn emit(&self) -> Payload {
        let header = header(self.message_type());
        match *self {
            Self::AllOffersDelivered | Self::UnloadResponse => Payload::of(&header, &[]),
            Self::OfferChannel(offer) => Payload::of(&emit_offer(header, &offer), &[]),
            Self::RescindChannelOffer { relid } => relid_only(header, relid.0),
            Self::GpadlTorndown { gpadl } => relid_only(header, gpadl.0),
            Self::OpenChannelResult {
                relid,
                open_id,
                status,
            } => three_words(header, relid.0, open_id, status),
            Self::GpadlCreated {
                relid,
                gpadl,
                status,
            } => three_words(header, relid.0, gpadl.0, status),
            Self::ModifyChannelResponse { relid, status } => two_words(header, relid.0, status),
            Self::VersionResponse(response) => Payload::of(
                &raw::VersionResponse {
                    header,
                    supported: response.supported.into(),
                    connection_state: response.connection_state,
                    padding: 0.into(),
                    connection_id: response.connection_id.into(),
                },
                &[],
            ),
            Self::TlConnectResult(result) => Payload::of(
                &raw::TlConnectResult {
                    header,
                    endpoint: result.endpoint,
                    service: result.service,
                    status: result.status.into(),
                },
                &[],
            ),
        }
    }

    /// Parses what a guest finds in its message slot.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let message_type = message_type(bytes, Direction::HostToGuest)?;
        let body = Body {
            message_type,
            bytes,
        };
        Ok(match message_type {
            MessageType::OFFERCHANNEL => Self::OfferChannel(parse_offer(&body.read()?.0)),
            MessageType::RESCIND_CHANNELOFFER => Self::RescindChannelOffer {
                relid: body.relid()?,
            },
            MessageType::ALLOFFERS_DELIVERED => Self::AllOffersDelivered,
            MessageType::OPENCHANNEL_RESULT => {
                let (raw, _) = body.read::<raw::ThreeWords>()?;
                Self::OpenChannelResult {
                    relid: Relid(raw.first.get()),
                    open_id: raw.second.get(),
                    status: raw.third.get(),
                }
            }
            MessageType::GPADL_CREATED => {
                let (raw, _) = body.read::<raw::ThreeWords>()?;
                Self::GpadlCreated {
                    relid: Relid(raw.first.get()),
                    gpadl: GpadlId(raw.second.get()),
                    status: raw.third.get(),
                }
            }
            MessageType::GPADL_TORNDOWN => Self::GpadlTorndown {
                gpadl: GpadlId(body.relid()?.0),
            },
            MessageType::VERSION_RESPONSE => {
                let (raw, _) = body.read::<raw::VersionResponse>()?;
                Self::VersionResponse(VersionResponse {
                    supported: raw.supported != 0,
                    connection_state: raw.connection_state,
                    connection_id: raw.connection_id.get(),
                })
            }
            MessageType::UNLOAD_RESPONSE => Self::UnloadResponse,
            MessageType::TL_CONNECT_RESULT => {
                let (raw, _) = body.read::<raw::TlConnectResult>()?;
                Self::TlConnectResult(TlConnectResult {
                    endpoint: raw.endpoint,
                    service: raw.service,
                    status: raw.status.get(),
                })
            }
            MessageType::MODIFYCHANNEL_RESPONSE => {
                let (raw, _) = body.read::<raw::TwoWords>()?;
                Self::ModifyChannelResponse {
                    relid: Relid(raw.first.get()),
                    status: raw.second.get(),
                }
            }
            other => return Err(ParseError::Unsupported(other)),
        })
    }
}

/// What the monitor id is when there is none.
const NO_MONITOR: u8 = 0xff;

fn emit_offer(header: raw::Header, offer: &Offer) -> raw::OfferChannel {
    raw::OfferChannel {
        header,
        interface_type: offer.interface_type,
        instance: offer.instance,
        reserved: [U64::ZERO; 2],
        flags: offer.flags.bits().into(),
        mmio_megabytes: offer.mmio_megabytes.into(),
        user_defined: offer.user_defined,
        sub_channel_index: offer.sub_channel_index.into(),
        mmio_megabytes_optional: 0.into(),
        relid: offer.relid.0.into(),
        monitor_id: offer.monitor_id.unwrap_or(NO_MONITOR),
        monitor_allocated: offer.monitor_id.is_some().into(),
        dedicated_interrupt: u16::from(offer.dedicated_interrupt).into(),
        connection_id: offer.connection_id.into(),
    }
}

fn parse_offer(raw: &raw::OfferChannel) -> Offer {
    Offer {
        interface_type: raw.interface_type,
        instance: raw.instance,
        flags: ChannelFlags::from_bits_retain(raw.flags.get()),
        mmio_megabytes: raw.mmio_megabytes.get(),
        user_defined: raw.user_defined,
        sub_channel_index: raw.sub_channel_index.get(),
        relid: Relid(raw.relid.get()),
        monitor_id: (raw.monitor_allocated & 1 != 0).then_some(raw.monitor_id),
        dedicated_interrupt: raw.dedicated_interrupt.get() & 1 != 0,
        connection_id: raw.connection_id.get(),
    }
}

fn relid_only(header: raw::Header, relid: u32) -> Payload {
    let raw = raw::RelidOnly {
        header,
        relid: relid.into(),
    };
    Payload::of(&raw, &[])
}

fn three_words(header: raw::Header, first: u32, second: u32, third: u32) -> Payload {
    let raw = raw::ThreeWords {
        header,
        first: first.into(),
        second: second.into(),
        third: third.into(),
    };
    Payload::of(&raw, &[])
}

impl Describe for HostMessage {
    fn name(&self) -> &'static str {
        self.message_type().name().unwrap_or("?")
    }

    fn fields(&self, visit: &mut dyn FnMut(&'static str, FieldValue<'_>)) {
        match self {
            Self::AllOffersDelivered | Self::UnloadResponse => {}
            Self::OfferChannel(offer) => {
                visit("interface_type", FieldValue::Text(&offer.interface_type));
                visit("instance", FieldValue::Text(&offer.instance));
                visit("flags", offer.flags.bits().into());
                visit("mmio_megabytes", offer.mmio_megabytes.into());
                visit("user_defined", FieldValue::Bytes(&offer.user_defined));
                visit("sub_channel_index", offer.sub_channel_index.into());
                visit("relid", offer.relid.0.into());
                visit(
                    "monitor_allocated",
                    FieldValue::Bool(offer.monitor_id.is_some()),
                );
                visit(
                    "dedicated_interrupt",
                    FieldValue::Bool(offer.dedicated_interrupt),
                );
                visit("connection_id", offer.connection_id.into());
            }
            Self::RescindChannelOffer { relid } => visit("relid", relid.0.into()),
            Self::OpenChannelResult {
                relid,
                open_id,
                status,
            } => {
                visit("relid", relid.0.into());
                visit("openid", (*open_id).into());
                visit("status", (*status).into());
            }
            Self::GpadlCreated {
                relid,
                gpadl,
                status,
            } => {
                visit("relid", relid.0.into());
                visit("gpadl", gpadl.0.into());
                visit("status", (*status).into());
            }
            Self::GpadlTorndown { gpadl } => visit("gpadl", gpadl.0.into()),
            Self::VersionResponse(response) => {
                visit("supported", FieldValue::Bool(response.supported));
                visit(
                    "connection_state",
                    u32::from(response.connection_state).into(),
                );
                visit("connection_id", response.connection_id.into());
            }
            Self::TlConnectResult(result) => {
                visit("guest_endpoint", FieldValue::Text(&result.endpoint));
                visit("host_service", FieldValue::Text(&result.service));
                visit("status", FieldValue::Signed(result.status.into()));
            }
            Self::ModifyChannelResponse { relid, status } => {
                visit("relid", relid.0.into());
                visit("status", (*status).into());
            }
        }
    }
}
