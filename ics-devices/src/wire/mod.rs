// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What all integration services put in front of their messages
//! (protocol 6.2).
//!
//! ```text
//!  0 pipe: flags u32, size u32
//!  8 framework version | 12 type | 14 service version | 18 size of the body
//! 20 status u32 | 24 transaction id u8 | 25 flags u8 | 26 reserved | 28 body …
//! ```
//!
//! The guest edits a request in place and sends as many bytes back: its answer
//! has a field only if the request had room for it.

mod hresult;
mod negotiate;

use std::fmt;

use vmbus::wire::{Describe, FieldValue, PIPE_DATA, PipeHeader};
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use hresult::HResult;
pub use negotiate::{MAX_VERSIONS, NegotiateError, Versions, negotiate_body, parse_negotiated};

/// Bytes of the header between the pipe's and the body.
pub const IC_HEADER_SIZE: usize = 20;
/// The longest body: a pipe frame's size must fit into the ring's length field.
pub const MAX_BODY: usize = 0xffff - 64;

/// A version of the framework or of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IcVersion {
    /// The first number.
    pub major: u16,
    /// The second number.
    pub minor: u16,
}

impl IcVersion {
    /// `major.minor`.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for IcVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a message is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageType(pub u16);

impl MessageType {
    /// Agreeing on versions.
    pub const NEGOTIATE: Self = Self(0);
    /// Heartbeat.
    pub const HEARTBEAT: Self = Self(1);
    /// Key-value data exchange.
    pub const KVP: Self = Self(2);
    /// Shutdown.
    pub const SHUTDOWN: Self = Self(3);
    /// Time synchronisation.
    pub const TIME_SYNC: Self = Self(4);
    /// Backup.
    pub const VSS: Self = Self(5);
    /// Guest services: file copy.
    pub const FCOPY: Self = Self(7);

    /// The name, if there is one.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::NEGOTIATE => "negotiate",
            Self::HEARTBEAT => "heartbeat",
            Self::KVP => "kvp",
            Self::SHUTDOWN => "shutdown",
            Self::TIME_SYNC => "timesync",
            Self::VSS => "vss",
            Self::FCOPY => "fcopy",
            _ => return None,
        })
    }
}

impl fmt::Debug for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "message type {}", self.0),
        }
    }
}

bitflags::bitflags! {
    /// Flags of a message.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct IcFlags: u8 {
        /// Belongs to a transaction.
        const TRANSACTION = 1;
        /// Asks for something.
        const REQUEST = 2;
        /// Answers something.
        const RESPONSE = 4;
        /// Others are kept as they are.
        const _ = !0;
    }
}

/// Bytes that are no message of an integration service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// No whole pipe frame.
    #[error("{len} bytes hold no pipe frame")]
    NoFrame {
        /// Bytes of the packet.
        len: usize,
    },
    /// A pipe frame that is not data.
    #[error("a pipe frame with flags {flags:#x}")]
    NotData {
        /// From the frame.
        flags: u32,
    },
    /// The frame is shorter than the header.
    #[error("a frame of {len} bytes")]
    NoHeader {
        /// Bytes of the frame.
        len: usize,
    },
    /// The header announces more than the frame holds.
    #[error("a body of {announced} bytes, {len} are there")]
    ShortBody {
        /// From the header.
        announced: u16,
        /// Bytes behind the header.
        len: usize,
    },
}

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcHeader {
    /// Version of the framework; 0.0 while negotiating.
    pub framework: IcVersion,
    /// What it is about.
    pub message_type: MessageType,
    /// Version of the service; 0.0 while negotiating.
    pub version: IcVersion,
    /// How it went, in an answer.
    pub status: HResult,
    /// The host's number for the transaction.
    pub transaction_id: u8,
    /// Request or answer.
    pub flags: IcFlags,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawVersion {
    major: U16,
    minor: U16,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    framework: RawVersion,
    message_type: U16,
    version: RawVersion,
    size: U16,
    status: U32,
    transaction_id: u8,
    flags: u8,
    reserved: U16,
}

const _: () = assert!(size_of::<RawHeader>() == IC_HEADER_SIZE);

impl From<IcVersion> for RawVersion {
    fn from(version: IcVersion) -> Self {
        Self {
            major: version.major.into(),
            minor: version.minor.into(),
        }
    }
}

impl From<RawVersion> for IcVersion {
    fn from(raw: RawVersion) -> Self {
        Self::new(raw.major.get(), raw.minor.get())
    }
}

impl IcHeader {
    /// A request of the host.
    pub const fn request(
        message_type: MessageType,
        versions: Versions,
        transaction_id: u8,
    ) -> Self {
        Self {
            framework: versions.framework,
            message_type,
            version: versions.service,
            status: HResult::OK,
            transaction_id,
            flags: IcFlags::TRANSACTION.union(IcFlags::REQUEST),
        }
    }

    /// Pipe frame and header in front of `body_len` bytes, or `None` if that is
    /// more than [`MAX_BODY`].
    pub fn emit(&self, body_len: usize) -> Option<[u8; 8 + IC_HEADER_SIZE]> {
        let size = u16::try_from(body_len).ok()?;
        if body_len > MAX_BODY {
            return None;
        }
        let raw = RawHeader {
            framework: self.framework.into(),
            message_type: self.message_type.0.into(),
            version: self.version.into(),
            size: size.into(),
            status: self.status.0.into(),
            transaction_id: self.transaction_id,
            flags: self.flags.bits(),
            reserved: U16::ZERO,
        };
        let frame = u32::try_from(IC_HEADER_SIZE + body_len).ok()?;
        let mut bytes = [0; 8 + IC_HEADER_SIZE];
        let (pipe, header) = bytes.split_at_mut(8);
        pipe.copy_from_slice(&PipeHeader::data(frame).to_bytes());
        header.copy_from_slice(raw.as_bytes());
        Some(bytes)
    }
}

/// A message whose lengths are checked.
///
/// ```
/// use ics_devices::wire::{IcMessage, MessageType};
///
/// let payload = [
///     1, 0, 0, 0, 28, 0, 0, 0, // pipe: data, 28 bytes
///     3, 0, 0, 0, 1, 0, 3, 0, 0, 0, 8, 0, // 3.0, heartbeat, 3.0, body of 8 bytes
///     0, 0, 0, 0, 7, 5, 0, 0, // status 0, transaction 7, an answer
///     42, 0, 0, 0, 0, 0, 0, 0, // sequence number
///     0, 0, 0, 0, // padding
/// ];
/// let message = IcMessage::parse(&payload)?;
/// assert_eq!(message.header.message_type, MessageType::HEARTBEAT);
/// assert_eq!(message.body, [42, 0, 0, 0, 0, 0, 0, 0]);
/// # Ok::<(), ics_devices::wire::ParseError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcMessage<'a> {
    /// The header.
    pub header: IcHeader,
    /// As many bytes as the header announces.
    pub body: &'a [u8],
}

impl<'a> IcMessage<'a> {
    /// The message in a ring packet's payload, which may have padding behind it.
    pub fn parse(payload: &'a [u8]) -> Result<Self, ParseError> {
        let len = payload.len();
        let (pipe, frame) = PipeHeader::parse(payload).ok_or(ParseError::NoFrame { len })?;
        if pipe.flags != PIPE_DATA {
            return Err(ParseError::NotData { flags: pipe.flags });
        }
        let len = frame.len();
        let (raw, rest) =
            RawHeader::read_from_prefix(frame).map_err(|_| ParseError::NoHeader { len })?;
        let announced = raw.size.get();
        let len = rest.len();
        let body = rest
            .get(..usize::from(announced))
            .ok_or(ParseError::ShortBody { announced, len })?;
        let header = IcHeader {
            framework: raw.framework.into(),
            message_type: MessageType(raw.message_type.get()),
            version: raw.version.into(),
            status: HResult(raw.status.get()),
            transaction_id: raw.transaction_id,
            flags: IcFlags::from_bits_retain(raw.flags),
        };
        Ok(Self { header, body })
    }
}

/// For a trace of service packets.
impl Describe for IcMessage<'_> {
    fn name(&self) -> &'static str {
        self.header.message_type.name().unwrap_or("unknown")
    }

    fn fields(&self, visit: &mut dyn FnMut(&'static str, FieldValue<'_>)) {
        let header = &self.header;
        visit("type", header.message_type.0.into());
        visit("framework", FieldValue::Text(&header.framework));
        visit("version", FieldValue::Text(&header.version));
        visit("status", header.status.0.into());
        visit("transaction_id", u16::from(header.transaction_id).into());
        visit("flags", u16::from(header.flags.bits()).into());
        if let Some(operation) = operation(header.message_type, self.body) {
            visit("operation", FieldValue::Text(&operation));
        }
        visit("body", FieldValue::Bytes(self.body));
    }
}

/// The operation's name, of services that have several.
fn operation(message_type: MessageType, body: &[u8]) -> Option<&'static str> {
    let names: &[&str] = match message_type {
        MessageType::KVP => &["get", "set", "delete", "enumerate", "get-ip", "set-ip"],
        MessageType::VSS => &[
            "create",
            "delete",
            "check",
            "get-dm-info",
            "complete",
            "freeze",
            "thaw",
            "auto-recover",
        ],
        MessageType::FCOPY => &["start", "write", "complete", "cancel"],
        _ => &[],
    };
    names.get(usize::from(*body.first()?)).copied()
}

#[cfg(test)]
mod tests;
