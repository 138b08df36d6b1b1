// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! GPADL_HEADER and GPADL_BODY: page lists in pieces (protocol 4.6).
//!
//! ```text
//! HEADER  relid gpadl buflen count | byte_count byte_offset | pfn … (≤ 26)
//! BODY    number gpadl             | pfn … (≤ 28)
//! ```

use super::{GpadlId, Relid};

/// Page numbers that fit into a header.
pub const MAX_HEADER_PFNS: usize = 26;
/// Page numbers that fit into a body.
pub const MAX_BODY_PFNS: usize = 28;

/// The page numbers of one message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PfnList {
    // Numbers past `len` are zero, so that the derived comparison is right.
    pfns: [u64; MAX_BODY_PFNS],
    len: u8,
}

impl PfnList {
    /// A copy of `pfns`, or `None` if there are more than [`MAX_BODY_PFNS`].
    pub fn new(pfns: &[u64]) -> Option<Self> {
        let mut copy = [0; MAX_BODY_PFNS];
        copy.get_mut(..pfns.len())?.copy_from_slice(pfns);
        let len = u8::try_from(pfns.len()).ok()?;
        Some(Self { pfns: copy, len })
    }

    /// From bytes on the wire; `None` if they are not whole numbers, or too many.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (whole, torn) = bytes.as_chunks::<8>();
        let mut list = Self {
            pfns: [0; MAX_BODY_PFNS],
            len: u8::try_from(whole.len()).ok()?,
        };
        if !torn.is_empty() || whole.len() > MAX_BODY_PFNS {
            return None;
        }
        for (pfn, bytes) in list.pfns.iter_mut().zip(whole) {
            *pfn = u64::from_le_bytes(*bytes);
        }
        Some(list)
    }

    /// The page numbers.
    pub fn as_slice(&self) -> &[u64] {
        self.pfns.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl std::fmt::Debug for PfnList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x?}", self.as_slice())
    }
}

/// The first part of a page list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpadlHeader {
    /// Which channel it is for; the channel need not be open.
    pub relid: Relid,
    /// The list's number.
    pub gpadl: GpadlId,
    /// Bytes of all ranges together.
    pub range_buflen: u16,
    /// How many ranges.
    pub range_count: u16,
    /// Bytes that the first range covers.
    pub byte_count: u32,
    /// Where in its first page the range begins.
    pub byte_offset: u32,
    /// The first page numbers.
    pub pfns: PfnList,
}

/// A further part of a page list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpadlBody {
    /// Linux leaves it 0 in every part: it means nothing.
    pub message_number: u32,
    /// The list's number.
    pub gpadl: GpadlId,
    /// Further page numbers.
    pub pfns: PfnList,
}
