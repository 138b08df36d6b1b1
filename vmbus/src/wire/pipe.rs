// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pipe framing: the 8 bytes that message pipes and sockets put in front of
//! their data (protocol 6.2 and 7.5).
//!
//! A packet's payload is padded to 8 bytes; the frame says how many are meant.

use zerocopy::IntoBytes;

use super::raw;

/// Bytes of the frame's header.
pub const PIPE_HEADER_SIZE: usize = 8;
/// The frame carries data.
pub const PIPE_DATA: u32 = 1;

/// The header of a pipe frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PipeHeader {
    /// [`PIPE_DATA`], or something unknown.
    pub flags: u32,
    /// Bytes that follow.
    pub size: u32,
}

impl PipeHeader {
    /// A frame with `size` bytes of data.
    pub const fn data(size: u32) -> Self {
        Self {
            flags: PIPE_DATA,
            size,
        }
    }

    /// The header at the start of `payload` and the data that it announces;
    /// `None` if there is less than it says.
    pub fn parse(payload: &[u8]) -> Option<(Self, &[u8])> {
        let (bytes, rest) = payload.split_first_chunk()?;
        let header = Self::from_bytes(*bytes);
        let data = rest.get(..usize::try_from(header.size).ok()?)?;
        Some((header, data))
    }

    /// Of the bytes on the wire.
    #[inline]
    pub fn from_bytes(bytes: [u8; PIPE_HEADER_SIZE]) -> Self {
        let raw: raw::PipeHeader = zerocopy::transmute!(bytes);
        Self {
            flags: raw.flags.get(),
            size: raw.size.get(),
        }
    }

    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; PIPE_HEADER_SIZE] {
        let raw = raw::PipeHeader {
            flags: self.flags.into(),
            size: self.size.into(),
        };
        let mut bytes = [0; PIPE_HEADER_SIZE];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }
}
