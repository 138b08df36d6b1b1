// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Protocol versions (protocol 4.2): major in the upper half, minor in the lower.

use std::fmt;
use std::str::FromStr;

/// A version of the VMBus protocol. Versions order as their numbers do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProtocolVersion(pub u32);

/// The text is not a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a version is two numbers with a point between them, such as 5.3")]
pub struct VersionError;

impl ProtocolVersion {
    /// Windows Server 2008; refused here.
    pub const V0_13: Self = Self::new(0, 13);
    /// Windows 7; refused here.
    pub const V1_1: Self = Self::new(1, 1);
    /// Windows 8: channels have their own connection ids and target processors.
    pub const V2_4: Self = Self::new(2, 4);
    /// Windows 8.1: UNLOAD, and with it reconnecting.
    pub const V3_0: Self = Self::new(3, 0);
    /// Windows 10: Hyper-V sockets.
    pub const V4_0: Self = Self::new(4, 0);
    /// Adds MODIFYCHANNEL.
    pub const V4_1: Self = Self::new(4, 1);
    /// The contact names a SINT; the response names a connection.
    pub const V5_0: Self = Self::new(5, 0);
    /// As 5.0 for Linux.
    pub const V5_1: Self = Self::new(5, 1);
    /// A silo id in Windows' socket requests.
    pub const V5_2: Self = Self::new(5, 2);
    /// MODIFYCHANNEL is acknowledged.
    pub const V5_3: Self = Self::new(5, 3);
    /// Feature flags; refused here.
    pub const V6_0: Self = Self::new(6, 0);

    /// Version `major`.`minor`.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self((major as u32) << 16 | minor as u32)
    }

    /// The number before the point.
    pub const fn major(self) -> u32 {
        self.0 >> 16
    }

    /// The number behind the point.
    pub const fn minor(self) -> u32 {
        self.0 & 0xffff
    }
}

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())
    }
}

impl fmt::Debug for ProtocolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ProtocolVersion {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let (major, minor) = text.split_once('.').ok_or(VersionError)?;
        let number = |text: &str| text.parse().map_err(|_| VersionError);
        Ok(Self::new(number(major)?, number(minor)?))
    }
}
