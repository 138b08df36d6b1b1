// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Control messages that a guest sends (protocol 4.3 to 4.12).
//!
//! [`GuestMessage::parse`] takes the bytes of a post and returns checked owned
//! values; [`GuestMessage::emit`] is its inverse, for mock guests. Longer
//! messages than expected are accepted: later versions append fields.

use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{
    Describe, Direction, FieldValue, GpadlBody, GpadlHeader, GpadlId, Guid, MessageType,
    ParseError, Payload, PfnList, ProtocolVersion, Relid, VpIndex, raw,
};

/// A message from the guest.
// One of these lives at a time, on a stack: a box would cost more than it saves.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestMessage {
    /// Asks for all offers.
    RequestOffers,
    /// Opens a channel.
    OpenChannel(OpenChannel),
    /// Closes a channel.
    CloseChannel {
        /// Which.
        relid: Relid,
    },
    /// Begins a page list.
    GpadlHeader(GpadlHeader),
    /// Continues a page list.
    GpadlBody(GpadlBody),
    /// Wants the pages of a list back.
    GpadlTeardown {
        /// Which channel's.
        relid: Relid,
        /// Which list's.
        gpadl: GpadlId,
    },
    /// Is done with a rescinded channel.
    RelidReleased {
        /// Which.
        relid: Relid,
    },
    /// Begins a session.
    InitiateContact(InitiateContact),
    /// Ends the session.
    Unload,
    /// Connects to a service of the host.
    TlConnectRequest(TlConnectRequest),
    /// Moves a channel to another processor.
    ModifyChannel(ModifyChannel),
}

/// Opens a channel on a page list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenChannel {
    /// Which channel.
    pub relid: Relid,
    /// Comes back in the result.
    pub open_id: u32,
    /// The page list with both rings.
    pub gpadl: GpadlId,
    /// Who is to be interrupted; 0xFFFFFFFF for nobody.
    pub target_vp: VpIndex,
    /// Pages of the first ring, the one from guest to host.
    pub downstream_offset: u32,
    /// The driver's own bytes.
    pub user_data: [u8; super::USER_DEFINED_SIZE],
}

/// Begins a session with a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitiateContact {
    /// The version wished for.
    pub version: ProtocolVersion,
    /// Where all messages of the session go.
    pub target_vp: VpIndex,
    /// What the version makes of the next eight bytes.
    pub target: ContactTarget,
    /// Host to guest and guest to host; not used by this host.
    pub monitor_pages: [u64; 2],
}

/// The part of [`InitiateContact`] that changed with version 5.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContactTarget {
    /// Before 5.0: where the interrupt page is; not used by this host.
    InterruptPage(u64),
    /// From 5.0 on.
    Sint {
        /// Which SINT of the target processor; not checked here.
        sint: u8,
        /// Which trust level.
        vtl: u8,
        /// From 6.0 on; 0 before.
        feature_flags: u32,
    },
}

/// Connects to a service of the host (Hyper-V sockets).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlConnectRequest {
    /// The guest's end.
    pub endpoint: Guid,
    /// The host's service.
    pub service: Guid,
    /// A Windows container; Linux does not send it.
    pub silo: Option<Guid>,
}

/// Moves a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModifyChannel {
    /// Which channel.
    pub relid: Relid,
    /// Where to.
    pub target_vp: VpIndex,
}

impl GuestMessage {
    /// Parses the bytes of a post.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let message_type = message_type(bytes, Direction::GuestToHost)?;
        let body = Body {
            message_type,
            bytes,
        };
        Ok(match message_type {
            MessageType::REQUESTOFFERS => Self::RequestOffers,
            MessageType::OPENCHANNEL => {
                let (raw, _) = body.read::<raw::OpenChannel>()?;
                Self::OpenChannel(OpenChannel {
                    relid: Relid(raw.relid.get()),
                    open_id: raw.open_id.get(),
                    gpadl: GpadlId(raw.gpadl.get()),
                    target_vp: VpIndex(raw.target_vp.get()),
                    downstream_offset: raw.downstream_offset.get(),
                    user_data: raw.user_data,
                })
            }
            MessageType::CLOSECHANNEL => Self::CloseChannel {
                relid: body.relid()?,
            },
            MessageType::GPADL_HEADER => {
                let (raw, rest) = body.read::<raw::GpadlHeader>()?;
                Self::GpadlHeader(GpadlHeader {
                    relid: Relid(raw.relid.get()),
                    gpadl: GpadlId(raw.gpadl.get()),
                    range_buflen: raw.range_buflen.get(),
                    range_count: raw.range_count.get(),
                    byte_count: raw.byte_count.get(),
                    byte_offset: raw.byte_offset.get(),
                    pfns: body.pfns(rest)?,
                })
            }
            MessageType::GPADL_BODY => {
                let (raw, rest) = body.read::<raw::GpadlBody>()?;
                Self::GpadlBody(GpadlBody {
                    message_number: raw.message_number.get(),
                    gpadl: GpadlId(raw.gpadl.get()),
                    pfns: body.pfns(rest)?,
                })
            }
            MessageType::GPADL_TEARDOWN => {
                let (raw, _) = body.read::<raw::TwoWords>()?;
                Self::GpadlTeardown {
                    relid: Relid(raw.first.get()),
                    gpadl: GpadlId(raw.second.get()),
                }
            }
            MessageType::RELID_RELEASED => Self::RelidReleased {
                relid: body.relid()?,
            },
            MessageType::INITIATE_CONTACT => Self::InitiateContact(body.contact()?),
            MessageType::UNLOAD => Self::Unload,
            MessageType::TL_CONNECT_REQUEST => {
                let (raw, rest) = body.read::<raw::TlConnectRequest>()?;
                Self::TlConnectRequest(TlConnectRequest {
                    endpoint: raw.endpoint,
                    service: raw.service,
                    silo: Guid::read_from_prefix(rest).ok().map(|(silo, _)| silo),
                })
            }
            MessageType::MODIFYCHANNEL => {
                let (raw, _) = body.read::<raw::TwoWords>()?;
                Self::ModifyChannel(ModifyChannel {
                    relid: Relid(raw.first.get()),
                    target_vp: VpIndex(raw.second.get()),
                })
            }
            other => return Err(ParseError::Unsupported(other)),
        })
    }

    /// The type of the message.
    pub const fn message_type(&self) -> MessageType {
        match self {
            Self::RequestOffers => MessageType::REQUESTOFFERS,
            Self::OpenChannel(_) => MessageType::OPENCHANNEL,
            Self::CloseChannel { .. } => MessageType::CLOSECHANNEL,
            Self::GpadlHeader(_) => MessageType::GPADL_HEADER,
            Self::GpadlBody(_) => MessageType::GPADL_BODY,
            Self::GpadlTeardown { .. } => MessageType::GPADL_TEARDOWN,
            Self::RelidReleased { .. } => MessageType::RELID_RELEASED,
            Self::InitiateContact(_) => MessageType::INITIATE_CONTACT,
            Self::Unload => MessageType::UNLOAD,
            Self::TlConnectRequest(_) => MessageType::TL_CONNECT_REQUEST,
            Self::ModifyChannel(_) => MessageType::MODIFYCHANNEL,
        }
    }

    /// The bytes on the wire.
    pub fn emit(&self) -> Payload {
        let header = header(self.message_type());
        match *self {
            Self::RequestOffers | Self::Unload => Payload::of(&header, &[]),
            Self::OpenChannel(open) => Payload::of(
                &raw::OpenChannel {
                    header,
                    relid: open.relid.0.into(),
                    open_id: open.open_id.into(),
                    gpadl: open.gpadl.0.into(),
                    target_vp: open.target_vp.0.into(),
                    downstream_offset: open.downstream_offset.into(),
                    user_data: open.user_data,
                },
                &[],
            ),
            Self::CloseChannel { relid } | Self::RelidReleased { relid } => Payload::of(
                &raw::RelidOnly {
                    header,
                    relid: relid.0.into(),
                },
                &[],
            ),
            Self::GpadlHeader(gpadl) => Payload::of(
                &raw::GpadlHeader {
                    header,
                    relid: gpadl.relid.0.into(),
                    gpadl: gpadl.gpadl.0.into(),
                    range_buflen: gpadl.range_buflen.into(),
                    range_count: gpadl.range_count.into(),
                    byte_count: gpadl.byte_count.into(),
                    byte_offset: gpadl.byte_offset.into(),
                },
                &pfn_bytes(&gpadl.pfns),
            ),
            Self::GpadlBody(body) => Payload::of(
                &raw::GpadlBody {
                    header,
                    message_number: body.message_number.into(),
                    gpadl: body.gpadl.0.into(),
                },
                &pfn_bytes(&body.pfns),
            ),
            Self::GpadlTeardown { relid, gpadl } => two_words(header, relid.0, gpadl.0),
            Self::ModifyChannel(modify) => two_words(header, modify.relid.0, modify.target_vp.0),
            Self::InitiateContact(contact) => Payload::of(
                &raw::InitiateContact {
                    header,
                    version: contact.version.0.into(),
                    target_vp: contact.target_vp.0.into(),
                    interrupt_page: contact.target.emit(),
                    monitor_pages: contact.monitor_pages.map(U64::from),
                },
                &[],
            ),
            Self::TlConnectRequest(request) => Payload::of(
                &raw::TlConnectRequest {
                    header,
                    endpoint: request.endpoint,
                    service: request.service,
                },
                request.silo.as_ref().map_or(&[], IntoBytes::as_bytes),
            ),
        }
    }
}

/// The type of the message in `bytes`, if it goes in `direction` and is whole.
pub(super) fn message_type(bytes: &[u8], direction: Direction) -> Result<MessageType, ParseError> {
    let (header, _) =
        raw::Header::read_from_prefix(bytes).map_err(|_| ParseError::NoHeader(bytes.len()))?;
    let message_type = MessageType(header.message_type.get());
    match message_type.direction() {
        None => Err(ParseError::Unsupported(message_type)),
        Some(actual) if actual != direction => Err(ParseError::WrongDirection(message_type)),
        Some(_) if message_type.min_size() > Some(bytes.len()) => Err(ParseError::TooShort {
            message_type,
            size: bytes.len(),
        }),
        Some(_) => Ok(message_type),
    }
}

pub(super) fn header(message_type: MessageType) -> raw::Header {
    raw::Header {
        message_type: message_type.0.into(),
        padding: 0.into(),
    }
}

pub(super) fn two_words(header: raw::Header, first: u32, second: u32) -> Payload {
    let raw = raw::TwoWords {
        header,
        first: first.into(),
        second: second.into(),
    };
    Payload::of(&raw, &[])
}

/// A message whose type and least size are known.
pub(super) struct Body<'a> {
    pub(super) message_type: MessageType,
    pub(super) bytes: &'a [u8],
}

impl<'a> Body<'a> {
    pub(super) fn read<T>(&self) -> Result<(T, &'a [u8]), ParseError>
    where
        T: FromBytes + Immutable + KnownLayout,
    {
        T::read_from_prefix(self.bytes).map_err(|_| ParseError::TooShort {
            message_type: self.message_type,
            size: self.bytes.len(),
        })
    }

    pub(super) fn relid(&self) -> Result<Relid, ParseError> {
        let (raw, _) = self.read::<raw::RelidOnly>()?;
        Ok(Relid(raw.relid.get()))
    }

    fn pfns(&self, bytes: &[u8]) -> Result<PfnList, ParseError> {
        PfnList::from_bytes(bytes).ok_or(ParseError::TornPageList(self.message_type))
    }

    fn contact(&self) -> Result<InitiateContact, ParseError> {
        let (raw, _) = self.read::<raw::InitiateContact>()?;
        let version = ProtocolVersion(raw.version.get());
        Ok(InitiateContact {
            version,
            target_vp: VpIndex(raw.target_vp.get()),
            target: ContactTarget::parse(version, raw.interrupt_page),
            monitor_pages: raw.monitor_pages.map(U64::get),
        })
    }
}

impl ContactTarget {
    fn parse(version: ProtocolVersion, page: U64) -> Self {
        let target = raw::ContactTarget::read_from_bytes(page.as_bytes());
        match target {
            Ok(target) if version >= ProtocolVersion::V5_0 => Self::Sint {
                sint: target.sint,
                vtl: target.vtl,
                feature_flags: target.feature_flags.get(),
            },
            _ => Self::InterruptPage(page.get()),
        }
    }

    fn emit(self) -> U64 {
        match self {
            Self::InterruptPage(page) => page.into(),
            Self::Sint {
                sint,
                vtl,
                feature_flags,
            } => {
                let [a, b, c, d] = feature_flags.to_le_bytes();
                U64::from_bytes([sint, vtl, 0, 0, a, b, c, d])
            }
        }
    }
}

fn pfn_bytes(pfns: &PfnList) -> Vec<u8> {
    let pfns = pfns.as_slice().iter();
    pfns.flat_map(|pfn| pfn.to_le_bytes()).collect()
}

impl Describe for GuestMessage {
    fn name(&self) -> &'static str {
        self.message_type().name().unwrap_or("?")
    }

    fn fields(&self, visit: &mut dyn FnMut(&'static str, FieldValue<'_>)) {
        match self {
            Self::RequestOffers | Self::Unload => {}
            Self::OpenChannel(open) => {
                visit("relid", open.relid.0.into());
                visit("openid", open.open_id.into());
                visit("gpadl", open.gpadl.0.into());
                visit("target_vp", open.target_vp.0.into());
                visit("downstream_offset", open.downstream_offset.into());
                visit("user_data", FieldValue::Bytes(&open.user_data));
            }
            Self::CloseChannel { relid } | Self::RelidReleased { relid } => {
                visit("relid", relid.0.into());
            }
            Self::GpadlHeader(gpadl) => {
                visit("relid", gpadl.relid.0.into());
                visit("gpadl", gpadl.gpadl.0.into());
                visit("range_buflen", gpadl.range_buflen.into());
                visit("rangecount", gpadl.range_count.into());
                visit("byte_count", gpadl.byte_count.into());
                visit("byte_offset", gpadl.byte_offset.into());
                visit("pfns", FieldValue::Text(&format_args!("{:x?}", gpadl.pfns)));
            }
            Self::GpadlBody(body) => {
                visit("msgnumber", body.message_number.into());
                visit("gpadl", body.gpadl.0.into());
                visit("pfns", FieldValue::Text(&format_args!("{:x?}", body.pfns)));
            }
            Self::GpadlTeardown { relid, gpadl } => {
                visit("relid", relid.0.into());
                visit("gpadl", gpadl.0.into());
            }
            Self::InitiateContact(contact) => {
                visit("version", FieldValue::Text(&contact.version));
                visit("target_vcpu", contact.target_vp.0.into());
                match contact.target {
                    ContactTarget::InterruptPage(page) => visit("interrupt_page", page.into()),
                    ContactTarget::Sint {
                        sint,
                        vtl,
                        feature_flags,
                    } => {
                        visit("target_sint", u32::from(sint).into());
                        visit("target_vtl", u32::from(vtl).into());
                        visit("feature_flags", feature_flags.into());
                    }
                }
                let [first, second] = contact.monitor_pages;
                visit("monitor_page1", first.into());
                visit("monitor_page2", second.into());
            }
            Self::TlConnectRequest(request) => {
                visit("guest_endpoint", FieldValue::Text(&request.endpoint));
                visit("host_service", FieldValue::Text(&request.service));
                if let Some(silo) = &request.silo {
                    visit("silo", FieldValue::Text(silo));
                }
            }
            Self::ModifyChannel(modify) => {
                visit("relid", modify.relid.0.into());
                visit("target_vp", modify.target_vp.0.into());
            }
        }
    }
}
