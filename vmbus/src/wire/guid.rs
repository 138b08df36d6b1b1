// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! GUIDs: mixed-endian on the wire, the usual 8-4-4-4-12 digits as text.
//!
//! ```text
//! text  57164f39-9115-4e78-ab55-382f3bd5422d
//! wire  39 4f 16 57  15 91  78 4e  ab 55  38 2f 3b d5 42 2d
//! ```

use std::fmt;
use std::str::FromStr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A GUID as its sixteen bytes on the wire.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct Guid([u8; 16]);

/// The text is not a GUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a GUID has 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12")]
pub struct GuidError;

impl Guid {
    /// All bits zero.
    pub const ZERO: Self = Self([0; 16]);

    /// The GUID whose text, without its dashes, is the number `digits`.
    ///
    /// ```
    /// use vmbus::wire::Guid;
    /// const HEARTBEAT: Guid = Guid::from_u128(0x57164f39_9115_4e78_ab55_382f3bd5422d);
    /// assert_eq!(HEARTBEAT.to_string(), "57164f39-9115-4e78-ab55-382f3bd5422d");
    /// assert_eq!(HEARTBEAT.to_bytes()[..4], [0x39, 0x4f, 0x16, 0x57]);
    /// ```
    // The letters are the text's bytes in order; names would say no more.
    #[allow(clippy::many_single_char_names)]
    pub const fn from_u128(digits: u128) -> Self {
        let [a, b, c, d, e, f, g, h, rest @ ..] = digits.to_be_bytes();
        let mut bytes = [0; 16];
        let (head, tail) = bytes.split_at_mut(8);
        head.copy_from_slice(&[d, c, b, a, f, e, h, g]);
        tail.copy_from_slice(&rest);
        Self(bytes)
    }

    /// The inverse of [`Guid::from_u128`].
    pub const fn to_u128(self) -> u128 {
        // Swapping bytes twice is swapping them back.
        u128::from_be_bytes(Self::from_u128(u128::from_be_bytes(self.0)).0)
    }

    /// From the sixteen bytes on the wire.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The sixteen bytes on the wire.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", self.to_u128());
        let mut rest = digits.as_str();
        for (group, width) in [8, 4, 4, 4, 12].into_iter().enumerate() {
            let (now, later) = rest.split_at(width);
            f.write_str(if group == 0 { "" } else { "-" })?;
            f.write_str(now)?;
            rest = later;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Guid {
    type Err = GuidError;

    /// Digits in either case, with or without braces around them.
    fn from_str(text: &str) -> Result<Self, GuidError> {
        let bare = text
            .strip_prefix('{')
            .and_then(|text| text.strip_suffix('}'))
            .unwrap_or(text);
        let groups: Vec<&str> = bare.split('-').collect();
        let widths = groups.iter().map(|group| group.len());
        let hex = bare
            .bytes()
            .all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
        if !hex || !widths.eq([8, 4, 4, 4, 12]) {
            return Err(GuidError);
        }
        u128::from_str_radix(&groups.concat(), 16)
            .map(Self::from_u128)
            .map_err(|_| GuidError)
    }
}
