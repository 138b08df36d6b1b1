// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest page lists: put together from their parts, checked, limited
//! (protocol 4.6).
//!
//! ```text
//!            HEADER                BODY …               TEARDOWN
//!   (none) ─────────► unfinished ────────► created ──────────────► (none)
//!                        │ wrong, or beyond a limit
//!                        └──────────────────────────► refused: (none)
//! ```
//!
//! A list belongs to a channel from its first part on, open or not, and goes
//! when the channel goes. What a guest can make us keep is bounded by the four
//! limits below: page numbers are stored as they arrive, never reserved on a
//! guest's word, and the sum of all announced pages is limited beforehand.

use std::collections::BTreeMap;

use crate::memory::{GuestMemory, PAGE_SIZE, page_address};
use crate::wire::{GpadlBody, GpadlHeader, GpadlId, Relid};

/// The most page lists of all channels together. Every relid may have two: a
/// ring and a buffer.
pub const MAX_GPADLS: usize = 4096;

/// The most lists that wait for further parts. Linux sends the parts of a list
/// in one go, so there are at most as many as processors that create one at the
/// same moment.
pub const MAX_UNFINISHED_GPADLS: usize = 64;

/// The most pages of one channel: 256 MiB of guest memory. The largest known
/// user, a network card, has 47 MiB of buffers beside its ring.
pub const MAX_PAGES_PER_CHANNEL: usize = 65_536;

/// The most pages of all channels: 768 MiB of guest memory, sixteen times the
/// buffers of a network card. Their numbers take 1.5 MiB here, and 6 MiB more if
/// all of them are in open rings and no two are neighbours.
pub const MAX_PAGES: usize = 196_608;

/// Why a page list is refused. The guest is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpadlError {
    /// There is a list with this number.
    #[error("the list exists already")]
    Exists,
    /// There is no list with this number, or not of this channel.
    #[error("there is no such list")]
    Unknown,
    /// All parts of the list have come.
    #[error("the list is complete already")]
    Complete,
    /// More page numbers than were announced.
    #[error("more pages than announced")]
    TooManyPages,
    /// Lengths that contradict each other, or more than one range.
    #[error("the list's range makes no sense")]
    BadRange,
    /// A page that is not guest memory.
    #[error("page {0:#x} is not guest memory")]
    NotMemory(u64),
    /// One of this module's limits.
    #[error("a limit is reached: {0}")]
    Limit(&'static str),
}

/// What became of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Further parts are expected.
    Unfinished,
    /// The list is complete, and every page is guest memory.
    Complete {
        /// The channel it belongs to.
        relid: Relid,
    },
}

/// A range of guest memory given by its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageList {
    pfns: Vec<u64>,
    byte_count: u32,
    byte_offset: u32,
}

impl PageList {
    /// The page numbers in order.
    pub fn pfns(&self) -> &[u64] {
        &self.pfns
    }

    /// Bytes of the range.
    pub fn byte_count(&self) -> u32 {
        self.byte_count
    }

    /// Where in its first page the range begins.
    pub fn byte_offset(&self) -> u32 {
        self.byte_offset
    }

    /// The list as stretches of neighbouring pages: address and bytes of each.
    ///
    /// ```
    /// # use vmbus::gpadl::GpadlTable;
    /// # use vmbus::wire::{GpadlHeader, GpadlId, PfnList, Relid};
    /// # use vm_memory::{GuestAddress, GuestMemoryMmap};
    /// # let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)])?;
    /// # let mut table = GpadlTable::new();
    /// # let header = GpadlHeader {
    /// #     relid: Relid(1), gpadl: GpadlId(7), range_buflen: 32, range_count: 1,
    /// #     byte_count: 0x3000, byte_offset: 0, pfns: PfnList::new(&[4, 5, 9]).unwrap(),
    /// # };
    /// table.begin(&memory, &header)?;
    /// let list = table.get(Relid(1), GpadlId(7)).unwrap();
    /// assert_eq!(list.pfns(), [4, 5, 9]);
    /// let runs: Vec<_> = list.runs().collect();
    /// assert_eq!(runs, [(0x4000, 0x2000), (0x9000, 0x1000)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn runs(&self) -> impl Iterator<Item = (u64, usize)> + '_ {
        self.pfns
            .chunk_by(|a, b| a.checked_add(1) == Some(*b))
            .filter_map(|run| Some((page_address(*run.first()?)?, run.len() * PAGE_SIZE)))
    }
}

#[derive(Debug)]
struct Entry {
    relid: Relid,
    /// Pages announced; complete when so many have come.
    expected: usize,
    list: PageList,
}

impl Entry {
    fn is_complete(&self) -> bool {
        self.list.pfns.len() == self.expected
    }
}

/// All page lists of a session.
#[derive(Debug, Default)]
pub struct GpadlTable {
    lists: BTreeMap<GpadlId, Entry>,
    /// Lists that wait for parts.
    unfinished: usize,
    /// Pages announced by all lists.
    pages: usize,
    /// Pages announced by the lists of each channel that has any.
    channel_pages: BTreeMap<Relid, usize>,
}

impl GpadlTable {
    /// A table without lists.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the first part of a list.
    pub fn begin(
        &mut self,
        memory: &dyn GuestMemory,
        header: &GpadlHeader,
    ) -> Result<Progress, GpadlError> {
        if self.lists.contains_key(&header.gpadl) {
            return Err(GpadlError::Exists);
        }
        let expected = announced_pages(header)?;
        self.check_limits(header.relid, expected)?;
        let entry = Entry {
            relid: header.relid,
            expected,
            list: PageList {
                pfns: Vec::new(),
                byte_count: header.byte_count,
                byte_offset: header.byte_offset,
            },
        };
        self.pages += expected;
        *self.channel_pages.entry(header.relid).or_default() += expected;
        self.unfinished += 1;
        self.lists.insert(header.gpadl, entry);
        self.add(memory, header.gpadl, header.pfns.as_slice())
    }

    /// Takes a further part of a list.
    pub fn extend(
        &mut self,
        memory: &dyn GuestMemory,
        body: &GpadlBody,
    ) -> Result<Progress, GpadlError> {
        self.add(memory, body.gpadl, body.pfns.as_slice())
    }

    /// The channel of a list, complete or not.
    pub fn owner(&self, gpadl: GpadlId) -> Option<Relid> {
        self.lists.get(&gpadl).map(|entry| entry.relid)
    }

    /// The complete list `gpadl` of channel `relid`.
    pub fn get(&self, relid: Relid, gpadl: GpadlId) -> Option<&PageList> {
        let entry = self.lists.get(&gpadl)?;
        (entry.relid == relid && entry.is_complete()).then_some(&entry.list)
    }

    /// Forgets the list `gpadl` of channel `relid`, complete or not.
    pub fn remove(&mut self, relid: Relid, gpadl: GpadlId) -> Result<(), GpadlError> {
        match self.owner(gpadl) {
            Some(owner) if owner == relid => {
                self.forget(gpadl);
                Ok(())
            }
            _ => Err(GpadlError::Unknown),
        }
    }

    /// Forgets all lists of a channel.
    pub fn remove_channel(&mut self, relid: Relid) {
        let lists = self.lists.iter();
        let gone: Vec<GpadlId> = lists
            .filter(|(_, entry)| entry.relid == relid)
            .map(|(gpadl, _)| *gpadl)
            .collect();
        for gpadl in gone {
            self.forget(gpadl);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// How many lists there are, complete or not.
    pub fn len(&self) -> usize {
        self.lists.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    fn check_limits(&self, relid: Relid, expected: usize) -> Result<(), GpadlError> {
        let of_channel = self.channel_pages.get(&relid).copied().unwrap_or(0);
        if self.lists.len() >= MAX_GPADLS {
            Err(GpadlError::Limit("lists"))
        } else if self.unfinished >= MAX_UNFINISHED_GPADLS {
            Err(GpadlError::Limit("unfinished lists"))
        } else if of_channel + expected > MAX_PAGES_PER_CHANNEL {
            Err(GpadlError::Limit("pages of a channel"))
        } else if self.pages + expected > MAX_PAGES {
            Err(GpadlError::Limit("pages"))
        } else {
            Ok(())
        }
    }

    /// Adds page numbers to a list, which is forgotten if they are no good.
    fn add(
        &mut self,
        memory: &dyn GuestMemory,
        gpadl: GpadlId,
        pfns: &[u64],
    ) -> Result<Progress, GpadlError> {
        let entry = self.lists.get_mut(&gpadl).ok_or(GpadlError::Unknown)?;
        if entry.is_complete() {
            // Somebody may be using it: it stays.
            return Err(GpadlError::Complete);
        }
        let room = entry.expected - entry.list.pfns.len();
        let bad = pfns.iter().find(|pfn| !memory.is_page(**pfn));
        if pfns.len() > room || bad.is_some() {
            self.forget(gpadl);
            return Err(bad.map_or(GpadlError::TooManyPages, |pfn| GpadlError::NotMemory(*pfn)));
        }
        entry.list.pfns.extend_from_slice(pfns);
        Ok(if entry.is_complete() {
            entry.list.pfns.shrink_to_fit();
            self.unfinished -= 1;
            Progress::Complete { relid: entry.relid }
        } else {
            Progress::Unfinished
        })
    }

    fn forget(&mut self, gpadl: GpadlId) {
        let Some(entry) = self.lists.remove(&gpadl) else {
            return;
        };
        self.unfinished -= usize::from(!entry.is_complete());
        self.pages -= entry.expected;
        if let Some(pages) = self.channel_pages.get_mut(&entry.relid) {
            *pages -= entry.expected;
            if *pages == 0 {
                self.channel_pages.remove(&entry.relid);
            }
        }
    }
}

/// Bytes of a range's head in the range buffer: byte_count and byte_offset.
const RANGE_HEAD: u16 = 8;

/// The pages that a header announces, if its range makes sense.
fn announced_pages(header: &GpadlHeader) -> Result<usize, GpadlError> {
    let bytes = header
        .range_buflen
        .checked_sub(RANGE_HEAD)
        .filter(|bytes| header.range_count == 1 && bytes.is_multiple_of(8))
        .ok_or(GpadlError::BadRange)?;
    let pages = usize::from(bytes / 8);
    // What the range covers must lie in its pages.
    let end = u64::from(header.byte_offset) + u64::from(header.byte_count);
    let page = PAGE_SIZE as u64;
    let fits = u64::from(header.byte_offset) < page && end <= u64::from(bytes / 8) * page;
    if pages == 0 || !fits {
        return Err(GpadlError::BadRange);
    }
    Ok(pages)
}

#[cfg(test)]
mod tests;
