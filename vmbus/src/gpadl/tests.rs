// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page lists of honest and of hostile guests.

use super::*;
use crate::wire::PfnList;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const PAGES: u64 = 16_384;

fn memory() -> GuestMemoryMmap {
    let size = usize::try_from(PAGES).unwrap() * PAGE_SIZE;
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap()
}

fn header(gpadl: u32, total: u16, pfns: &[u64]) -> GpadlHeader {
    GpadlHeader {
        relid: Relid(1),
        gpadl: GpadlId(gpadl),
        range_buflen: 8 + 8 * total,
        range_count: 1,
        byte_count: u32::from(total) * 4096,
        byte_offset: 0,
        pfns: PfnList::new(pfns).unwrap(),
    }
}

fn body(gpadl: u32, pfns: &[u64]) -> GpadlBody {
    GpadlBody {
        message_number: 0,
        gpadl: GpadlId(gpadl),
        pfns: PfnList::new(pfns).unwrap(),
    }
}

const COMPLETE: Result<Progress, GpadlError> = Ok(Progress::Complete { relid: Relid(1) });
const UNFINISHED: Result<Progress, GpadlError> = Ok(Progress::Unfinished);

#[test]
fn a_short_list_is_complete_with_its_header() {
    let mut table = GpadlTable::new();
    assert_eq!(table.begin(&memory(), &header(7, 3, &[9, 2, 5])), COMPLETE);
    let list = table.get(Relid(1), GpadlId(7)).unwrap();
    assert_eq!(list.pfns(), [9, 2, 5]);
    assert_eq!((list.byte_count(), list.byte_offset()), (3 * 4096, 0));
    assert_eq!(table.get(Relid(2), GpadlId(7)), None, "another channel's");
}

#[test]
fn the_largest_list_of_linux_comes_in_284_parts() {
    let memory = memory();
    let pfns: Vec<u64> = (100..100 + 7936).collect();
    let mut table = GpadlTable::new();
    assert_eq!(
        table.begin(&memory, &header(7, 7936, &pfns[..26])),
        UNFINISHED
    );
    let bodies: Vec<_> = pfns[26..].chunks(28).collect();
    assert_eq!(bodies.len(), 283);
    for (index, part) in bodies.iter().enumerate() {
        assert_eq!(table.get(Relid(1), GpadlId(7)), None);
        let progress = table.extend(&memory, &body(7, part));
        assert_eq!(progress == COMPLETE, index == 282);
    }
    assert_eq!(table.get(Relid(1), GpadlId(7)).unwrap().pfns(), pfns);
}

#[test]
fn parts_of_two_lists_may_come_mixed() {
    let memory = memory();
    let mut table = GpadlTable::new();
    assert_eq!(table.begin(&memory, &header(1, 3, &[1])), UNFINISHED);
    assert_eq!(table.begin(&memory, &header(2, 2, &[2])), UNFINISHED);
    assert_eq!(table.extend(&memory, &body(1, &[3])), UNFINISHED);
    assert_eq!(table.extend(&memory, &body(2, &[4])), COMPLETE);
    assert_eq!(table.extend(&memory, &body(1, &[5])), COMPLETE);
    assert_eq!(table.get(Relid(1), GpadlId(1)).unwrap().pfns(), [1, 3, 5]);
}

#[test]
fn ranges_that_make_no_sense_are_refused() {
    let memory = memory();
    let good = header(7, 2, &[1, 2]);
    let cases = [
        GpadlHeader {
            range_count: 0,
            ..good
        },
        GpadlHeader {
            range_count: 2,
            ..good
        },
        GpadlHeader {
            range_buflen: 0,
            ..good
        },
        GpadlHeader {
            range_buflen: 8,
            ..good
        },
        GpadlHeader {
            range_buflen: 23,
            ..good
        },
        GpadlHeader {
            byte_count: 8193,
            ..good
        },
        GpadlHeader {
            byte_count: u32::MAX,
            ..good
        },
        GpadlHeader {
            byte_offset: 1,
            ..good
        },
        GpadlHeader {
            byte_offset: 4096,
            byte_count: 1,
            ..good
        },
        GpadlHeader {
            byte_offset: u32::MAX,
            ..good
        },
    ];
    for case in cases {
        let mut table = GpadlTable::new();
        assert_eq!(
            table.begin(&memory, &case),
            Err(GpadlError::BadRange),
            "{case:?}"
        );
        assert!(table.is_empty());
    }
    let within = GpadlHeader {
        byte_offset: 96,
        byte_count: 8096,
        ..good
    };
    assert_eq!(GpadlTable::new().begin(&memory, &within), COMPLETE);
}

#[test]
fn pages_outside_memory_end_the_list() {
    let memory = memory();
    for pfn in [PAGES, u64::MAX, 1 << 52, u64::MAX >> 12] {
        let mut table = GpadlTable::new();
        let refused = Err(GpadlError::NotMemory(pfn));
        assert_eq!(table.begin(&memory, &header(7, 2, &[1, pfn])), refused);
        assert_eq!(table.begin(&memory, &header(7, 2, &[1])), UNFINISHED);
        assert_eq!(table.extend(&memory, &body(7, &[pfn])), refused);
        assert!(table.is_empty(), "its number can be used again");
        assert_eq!(table.pages, 0);
    }
}

#[test]
fn more_pages_than_announced_end_the_list() {
    let memory = memory();
    let mut table = GpadlTable::new();
    assert_eq!(
        table.begin(&memory, &header(7, 2, &[1, 2, 3])),
        Err(GpadlError::TooManyPages)
    );
    assert_eq!(table.begin(&memory, &header(7, 2, &[1])), UNFINISHED);
    assert_eq!(
        table.extend(&memory, &body(7, &[2, 3])),
        Err(GpadlError::TooManyPages)
    );
    assert!(table.is_empty());
}

#[test]
fn a_complete_list_cannot_be_changed_and_its_number_not_used_twice() {
    let memory = memory();
    let mut table = GpadlTable::new();
    assert_eq!(table.begin(&memory, &header(7, 1, &[1])), COMPLETE);
    assert_eq!(
        table.extend(&memory, &body(7, &[2])),
        Err(GpadlError::Complete)
    );
    assert_eq!(
        table.begin(&memory, &header(7, 1, &[2])),
        Err(GpadlError::Exists)
    );
    assert_eq!(table.get(Relid(1), GpadlId(7)).unwrap().pfns(), [1]);
    assert_eq!(table.remove(Relid(2), GpadlId(7)), Err(GpadlError::Unknown));
    assert_eq!(table.remove(Relid(1), GpadlId(7)), Ok(()));
    assert_eq!(table.remove(Relid(1), GpadlId(7)), Err(GpadlError::Unknown));
    assert_eq!(
        table.extend(&memory, &body(7, &[2])),
        Err(GpadlError::Unknown)
    );
}

#[test]
fn of_100_000_unfinished_lists_64_are_kept_and_cost_what_they_sent() {
    let memory = memory();
    let mut table = GpadlTable::new();
    let mut kept = 0;
    for gpadl in 0..100_000 {
        kept += usize::from(table.begin(&memory, &header(gpadl, 8000, &[1])) == UNFINISHED);
    }
    // The pages of a channel are the narrower limit here: 8 lists of 8000.
    assert_eq!((kept, table.len()), (8, 8));
    let stored: usize = table.lists.values().map(|e| e.list.pfns.capacity()).sum();
    assert!(stored <= 8 * 8, "{stored}");

    let mut table = GpadlTable::new();
    let kept = (0..100_000)
        .filter(|gpadl| table.begin(&memory, &header(*gpadl, 2, &[1])) == UNFINISHED)
        .count();
    assert_eq!(kept, MAX_UNFINISHED_GPADLS);
}

#[test]
fn a_channel_gets_no_more_pages_than_its_share_and_all_no_more_than_there_are() {
    let memory = memory();
    let mut table = GpadlTable::new();
    let mut gpadl = 0;
    let mut kept = |relid| {
        let accepted = (0..20).filter(|_| {
            gpadl += 1;
            let mut header = header(gpadl, 8188, &[1]);
            header.relid = Relid(relid);
            table.begin(&memory, &header).is_ok()
        });
        accepted.count()
    };
    assert_eq!(kept(1), MAX_PAGES_PER_CHANNEL / 8188);
    assert_eq!((kept(2), kept(3)), (8, 8));
    // Three shares are all that there is.
    assert_eq!(kept(4), 0);
}

#[test]
fn all_limits_hold_together_and_are_given_back() {
    let memory = memory();
    let mut table = GpadlTable::new();
    let pfns: Vec<u64> = (0..26).collect();
    let mut accepted = 0;
    for gpadl in 0..100_000 {
        let mut header = header(gpadl, 26, &pfns);
        header.relid = Relid(gpadl % 2047);
        accepted += usize::from(table.begin(&memory, &header).is_ok());
    }
    assert_eq!(accepted, MAX_GPADLS);
    assert_eq!(table.pages, MAX_GPADLS * 26);
    for relid in 0..2047 {
        table.remove_channel(Relid(relid));
    }
    assert_eq!((table.len(), table.pages, table.unfinished), (0, 0, 0));
    assert!(table.channel_pages.is_empty());
}

#[test]
fn a_channels_share_is_used_to_the_last_page_and_given_back() {
    let memory = memory();
    let mut table = GpadlTable::new();
    let begin = |table: &mut GpadlTable, relid, gpadl, total| {
        let header = GpadlHeader {
            relid: Relid(relid),
            ..header(gpadl, total, &[1])
        };
        table.begin(&memory, &header).map(drop)
    };
    // Eight lists of 8188 pages and one of the rest are a share, three shares are all.
    let rest = u16::try_from(MAX_PAGES_PER_CHANNEL - 8 * 8188).unwrap();
    for relid in 1..4 {
        for list in 0..8 {
            assert_eq!(begin(&mut table, relid, 10 * relid + list, 8188), Ok(()));
        }
        let full = Err(GpadlError::Limit("pages of a channel"));
        assert_eq!(begin(&mut table, relid, 10 * relid + 8, rest + 1), full);
        assert_eq!(begin(&mut table, relid, 10 * relid + 8, rest), Ok(()));
        assert_eq!(begin(&mut table, relid, 10 * relid + 9, 1), full);
    }
    assert_eq!(table.pages, MAX_PAGES);
    let all = Err(GpadlError::Limit("pages"));
    assert_eq!(begin(&mut table, 4, 50, 1), all);
    // What one gives back, it or another may have again, and no more.
    assert_eq!(table.remove(Relid(2), GpadlId(28)), Ok(()));
    let left = MAX_PAGES_PER_CHANNEL - usize::from(rest);
    assert_eq!(table.channel_pages.get(&Relid(2)), Some(&left));
    assert_eq!(begin(&mut table, 4, 50, rest + 1), all);
    assert_eq!(begin(&mut table, 4, 50, rest), Ok(()));
    table.remove_channel(Relid(4));
    assert_eq!(begin(&mut table, 2, 28, rest), Ok(()));
    assert_eq!(table.channel_pages.len(), 3);
}

#[test]
fn a_list_that_waits_for_parts_counts_until_it_is_complete_or_gone() {
    let memory = memory();
    let mut table = GpadlTable::new();
    let fill = |table: &mut GpadlTable, from: u32| {
        (from..from + 100)
            .filter(|gpadl| table.begin(&memory, &header(*gpadl, 2, &[1])) == UNFINISHED)
            .count()
    };
    assert_eq!(fill(&mut table, 0), MAX_UNFINISHED_GPADLS);
    let full = Err(GpadlError::Limit("unfinished lists"));
    assert_eq!(table.begin(&memory, &header(500, 1, &[1])), full);
    assert_eq!(table.extend(&memory, &body(0, &[2])), COMPLETE);
    assert_eq!(table.remove(Relid(1), GpadlId(1)), Ok(()));
    // A complete one counted no more.
    assert_eq!(table.remove(Relid(1), GpadlId(0)), Ok(()));
    assert_eq!(fill(&mut table, 1000), 2);
}

#[test]
fn a_table_tells_what_is_in_it_until_it_is_cleared() {
    let memory = memory();
    let mut table = GpadlTable::new();
    assert!(table.is_empty());
    assert_eq!(table.begin(&memory, &header(7, 2, &[1])), UNFINISHED);
    assert!(!table.is_empty());
    assert_eq!(table.len(), 1);
    assert_eq!(table.owner(GpadlId(7)), Some(Relid(1)));
    assert_eq!(table.owner(GpadlId(8)), None);
    table.clear();
    assert_eq!((table.len(), table.pages, table.unfinished), (0, 0, 0));
    assert_eq!(table.owner(GpadlId(7)), None);
}

#[test]
fn neighbouring_pages_are_one_stretch() {
    let memory = memory();
    let mut table = GpadlTable::new();
    let pfns = [4, 5, 9, 3, 2, 3];
    assert_eq!(table.begin(&memory, &header(7, 6, &pfns)), COMPLETE);
    let list = table.get(Relid(1), GpadlId(7)).unwrap();
    let runs: Vec<_> = list.runs().collect();
    let wanted = [
        (0x4000, 0x2000),
        (0x9000, 0x1000),
        (0x3000, 0x1000),
        (0x2000, 0x2000),
    ];
    assert_eq!(runs, wanted);
}
