// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Agreeing on versions: the host lists, the guest picks (protocol 6.3).
//!
//! ```text
//! host   28 F u16 | 30 M u16 | 32 reserved u32 | F framework versions | M service versions
//! guest  28 1     | 30 1     | 32 reserved u32 | framework version    | service version
//!        28 0     | 30 0     |  nothing fits, the rest is left over
//! ```

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{HResult, IcMessage, IcVersion, RawVersion};

/// The most versions that a list of ours has.
pub const MAX_VERSIONS: usize = 16;

/// What host and guest agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// Of the common header.
    pub framework: IcVersion,
    /// Of the service's own messages.
    pub service: IcVersion,
}

impl Versions {
    /// Before anything is agreed on.
    pub const NONE: Self = Self {
        framework: IcVersion::new(0, 0),
        service: IcVersion::new(0, 0),
    };
}

/// Why nothing was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NegotiateError {
    /// The guest knows none of the versions, and says so.
    #[error("host and guest have no version in common")]
    NoneInCommon,
    /// The guest chose what it was not offered.
    #[error("the guest chose version {0}, which it was not offered")]
    NotOffered(IcVersion),
    /// The guest failed.
    #[error("the guest failed to negotiate: {0}")]
    Status(HResult),
    /// The answer is too short, or chooses several versions.
    #[error("the guest's answer to the negotiation makes no sense")]
    Malformed,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawCounts {
    frameworks: U16,
    services: U16,
    reserved: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawChoice {
    framework: RawVersion,
    service: RawVersion,
}

/// Appends the body of a request that lists these versions, at most
/// [`MAX_VERSIONS`] of each kind.
pub fn negotiate_body(
    frameworks: &[IcVersion],
    services: impl Iterator<Item = IcVersion>,
    body: &mut Vec<u8>,
) {
    let frameworks = frameworks.get(..MAX_VERSIONS).unwrap_or(frameworks);
    let services: Vec<IcVersion> = services.take(MAX_VERSIONS).collect();
    let count = |list: &[IcVersion]| u16::try_from(list.len()).unwrap_or_default().into();
    let counts = RawCounts {
        frameworks: count(frameworks),
        services: count(&services),
        reserved: U32::ZERO,
    };
    body.extend_from_slice(counts.as_bytes());
    for version in frameworks.iter().chain(&services) {
        body.extend_from_slice(RawVersion::from(*version).as_bytes());
    }
}

/// What the guest chose. Whether it was offered is the caller's to check.
pub fn parse_negotiated(message: &IcMessage<'_>) -> Result<Versions, NegotiateError> {
    let malformed = NegotiateError::Malformed;
    let (counts, rest) = RawCounts::read_from_prefix(message.body).map_err(|_| malformed)?;
    match (counts.frameworks.get(), counts.services.get()) {
        _ if message.header.status != HResult::OK => {
            Err(NegotiateError::Status(message.header.status))
        }
        (0, _) | (_, 0) => Err(NegotiateError::NoneInCommon),
        (1, 1) => {
            let (choice, _) = RawChoice::read_from_prefix(rest).map_err(|_| malformed)?;
            Ok(Versions {
                framework: choice.framework.into(),
                service: choice.service.into(),
            })
        }
        _ => Err(malformed),
    }
}
