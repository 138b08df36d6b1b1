// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Extended packet headers: what lies between the 16-byte header and the
//! payload of packets whose data is elsewhere (protocol 5.2).
//!
//! ```text
//! transfer pages  set id u16 | owns u8 | 0 u8 | count u32 | { bytes u32, offset u32 } × count
//! GPA direct      0 u32 | count u32 | { bytes u32, offset u32, pfn u64 × pages } × count
//! ```
//!
//! The iterators end at the first range that is cut short; [`GpaDirect::parse`]
//! and [`TransferPages::parse`] refuse a packet that has one.

use zerocopy::FromBytes;

use super::raw;

const PAGE_SIZE: u64 = 4096;

/// A stretch of a page set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// How many bytes.
    pub byte_count: u32,
    /// Where they begin.
    pub byte_offset: u32,
}

/// The extended header of [`PacketType::TRANSFER_PAGES`](super::PacketType::TRANSFER_PAGES).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferPages<'a> {
    /// Which set of pages.
    pub set_id: u16,
    /// Whether the sender owns the set.
    pub sender_owns_set: bool,
    ranges: &'a [u8],
}

impl<'a> TransferPages<'a> {
    /// Parses what follows the 16-byte header; `None` if it is cut short.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = raw::TransferPages::read_from_prefix(bytes).ok()?;
        let size = usize::try_from(head.range_count.get())
            .ok()?
            .checked_mul(size_of::<raw::Range>())?;
        Some(Self {
            set_id: head.set_id.get(),
            sender_owns_set: head.sender_owns_set != 0,
            ranges: rest.get(..size)?,
        })
    }

    /// The ranges in order.
    pub fn ranges(&self) -> impl Iterator<Item = Range> + use<'a> {
        let (chunks, _) = self.ranges.as_chunks::<{ size_of::<raw::Range>() }>();
        chunks
            .iter()
            .filter_map(|bytes| Some(range(raw::Range::read_from_bytes(bytes).ok()?)))
    }
}

/// The extended header of [`PacketType::GPA_DIRECT`](super::PacketType::GPA_DIRECT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpaDirect<'a> {
    count: u32,
    ranges: &'a [u8],
}

/// Bytes in guest pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpaRange<'a> {
    /// How many bytes, and where in the first page they begin.
    pub range: Range,
    pfns: &'a [u8],
}

impl<'a> GpaDirect<'a> {
    /// Parses what follows the 16-byte header; `None` if it is cut short.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (head, ranges) = raw::GpaDirect::read_from_prefix(bytes).ok()?;
        let count = head.range_count.get();
        let direct = Self { count, ranges };
        // Each range takes at least 8 bytes, so a huge count ends quickly.
        let whole = direct.ranges().count();
        (u32::try_from(whole) == Ok(count)).then_some(direct)
    }

    /// The ranges in order.
    pub fn ranges(&self) -> impl Iterator<Item = GpaRange<'a>> + use<'a> {
        let mut left = self.count;
        let mut bytes = self.ranges;
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let (head, rest) = raw::Range::read_from_prefix(bytes).ok()?;
            let range = range(head);
            let end = u64::from(range.byte_offset) + u64::from(range.byte_count);
            let size = usize::try_from(end.div_ceil(PAGE_SIZE) * 8).ok()?;
            let (pfns, rest) = rest.split_at_checked(size)?;
            bytes = rest;
            Some(GpaRange { range, pfns })
        })
    }
}

impl<'a> GpaRange<'a> {
    /// The page numbers in order.
    pub fn pfns(&self) -> impl Iterator<Item = u64> + use<'a> {
        let (chunks, _) = self.pfns.as_chunks::<8>();
        chunks.iter().map(|bytes| u64::from_le_bytes(*bytes))
    }
}

fn range(raw: raw::Range) -> Range {
    Range {
        byte_count: raw.byte_count.get(),
        byte_offset: raw.byte_offset.get(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfer_page_ranges_are_read_in_order() {
        let bytes = [
            0xad, 0xde, 1, 0, 2, 0, 0, 0, // set, owner, count
            0x10, 0, 0, 0, 0, 0, 0, 0, // range 0
            0x20, 0, 0, 0, 0, 0x10, 0, 0, // range 1
            9, 9, // payload
        ];
        let pages = TransferPages::parse(&bytes).unwrap();
        assert_eq!((pages.set_id, pages.sender_owns_set), (0xdead, true));
        let second = Range {
            byte_count: 0x20,
            byte_offset: 0x1000,
        };
        assert_eq!(pages.ranges().nth(1), Some(second));
        for cut in 0..24 {
            assert_eq!(TransferPages::parse(&bytes[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn gpa_direct_ranges_have_as_many_pages_as_they_touch() {
        let mut bytes = vec![0, 0, 0, 0, 1, 0, 0, 0];
        bytes.extend([0, 0x10, 0, 0, 0x80, 0, 0, 0]); // 4096 bytes from 0x80: two pages
        bytes.extend(7u64.to_le_bytes());
        bytes.extend(3u64.to_le_bytes());
        let direct = GpaDirect::parse(&bytes).unwrap();
        let range = direct.ranges().next().unwrap();
        assert_eq!(range.pfns().collect::<Vec<_>>(), [7, 3]);
        for cut in 0..bytes.len() {
            assert_eq!(GpaDirect::parse(&bytes[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn an_absurd_range_count_is_refused_at_once() {
        let mut bytes = vec![0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        bytes.extend([0; 64]);
        assert_eq!(GpaDirect::parse(&bytes), None);
        assert_eq!(TransferPages::parse(&bytes), None);
    }
}
