// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One pair of rings over memory that the guest fills as it likes.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmbus::ring::{PacketMeta, RingPair};

use crate::guest::wipe;
use crate::step::{Step, array, blob, steps, write_blob};

/// Something that the guest or the host does to the rings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ring {
    /// The host opens rings on four pages of eight, in this order.
    Open([u8; 4]),
    /// The guest writes bytes: page, 8-byte word.
    Write(u8, u16, Vec<u8>),
    /// The guest sets a control word: page, word, value.
    Control(u8, u8, u16),
    /// The host reads up to so many packets.
    Read(u8),
    /// The host gives the space back.
    Commit,
    /// The host starts over at the last commit.
    Rewind,
    /// The host masks, or unmasks and looks again.
    Mask(bool),
    /// The host writes a packet of such a size.
    Send(u16),
    /// The host shows what it wrote.
    Publish,
    /// The host asks for room.
    Room(u16),
}

pub(crate) const FIRST: u64 = 4;
pub(crate) const PAGES: u64 = 8;

impl Step for Ring {
    fn read(input: &mut Unstructured<'_>) -> Result<Self> {
        let [op] = array(input)?;
        Ok(match op % 10 {
            0 => Self::Open(array(input)?),
            1 => {
                let [page, low, high] = array(input)?;
                Self::Write(page, u16::from_le_bytes([low, high]), blob(input)?)
            }
            2 => {
                let [page, word, low, high] = array(input)?;
                Self::Control(page, word, u16::from_le_bytes([low, high]))
            }
            3 => Self::Read(array::<1>(input)?[0]),
            4 => Self::Commit,
            5 => Self::Rewind,
            6 => Self::Mask(array::<1>(input)?[0] & 1 != 0),
            7 => Self::Send(u16::from_le_bytes(array(input)?)),
            8 => Self::Publish,
            _ => Self::Room(u16::from_le_bytes(array(input)?)),
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Open(pages) => {
                out.push(0);
                out.extend(pages);
            }
            Self::Write(page, word, bytes) => {
                out.extend([1, *page]);
                out.extend(word.to_le_bytes());
                write_blob(out, bytes);
            }
            Self::Control(page, word, value) => {
                out.extend([2, *page, *word]);
                out.extend(value.to_le_bytes());
            }
            Self::Read(count) => out.extend([3, *count]),
            Self::Commit => out.push(4),
            Self::Rewind => out.push(5),
            Self::Mask(masked) => out.extend([6, u8::from(*masked)]),
            Self::Send(size) => {
                out.push(7);
                out.extend(size.to_le_bytes());
            }
            Self::Publish => out.push(8),
            Self::Room(size) => {
                out.push(9);
                out.extend(size.to_le_bytes());
            }
        }
    }
}

/// Runs the steps in `data`; memory around the rings must stay as it was.
pub fn run(data: &[u8]) {
    thread_local! {
        static MEMORY: Arc<GuestMemoryMmap> = memory();
    }
    MEMORY.with(|memory| run_in(memory, data));
}

/// The rings' pages with some before and behind.
pub(crate) fn memory() -> Arc<GuestMemoryMmap> {
    let size = usize::try_from((FIRST + PAGES + FIRST) * 4096).expect("small");
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).expect("memory");
    Arc::new(memory)
}

/// Runs the steps in `data` on empty pages.
pub(crate) fn run_in(memory: &Arc<GuestMemoryMmap>, data: &[u8]) {
    wipe(&**memory, FIRST..FIRST + PAGES);
    let mut rings = None;
    for step in steps(data) {
        perform(memory, &mut rings, step);
    }
    check_around(memory);
}

fn check_around(memory: &GuestMemoryMmap) {
    for page in (0..FIRST).chain(FIRST + PAGES..2 * FIRST + PAGES) {
        let mut bytes = [0; 4096];
        let at = GuestAddress(page * 4096);
        memory.read_slice(&mut bytes, at).expect("in memory");
        assert_eq!(bytes, [0; 4096], "page {page} was written");
    }
}

fn perform(memory: &Arc<GuestMemoryMmap>, rings: &mut Option<RingPair>, step: Ring) {
    let page = |n: u8| FIRST + u64::from(n) % PAGES;
    match (step, rings) {
        (Ring::Open(pages), rings) => {
            *rings = RingPair::open(memory.clone(), &pages.map(page), 2).ok();
        }
        (Ring::Write(n, word, mut bytes), _) => {
            let offset = u64::from(word % 512) * 8;
            bytes.truncate(usize::try_from(4096 - offset).expect("small"));
            let at = GuestAddress(page(n) * 4096 + offset);
            memory.write_slice(&bytes, at).expect("in memory");
        }
        (Ring::Control(n, word, value), _) => {
            let at = GuestAddress(page(n) * 4096 + u64::from(word % 4) * 4);
            memory.write_obj(u32::from(value), at).expect("in memory");
        }
        (_, None) => {}
        (Ring::Read(count), Some(rings)) => {
            for _ in 0..count {
                let Ok(Some(packet)) = rings.incoming.peek() else {
                    break;
                };
                assert!(packet.payload.len() + packet.extended_header.len() + 16 <= 4096 - 8);
                let payload = packet.payload.to_vec();
                assert_eq!(payload.len(), packet.payload.len());
                packet.extended_header.to_vec();
                rings.incoming.advance();
            }
            assert!(rings.incoming.uncommitted() < 4096);
        }
        (Ring::Commit, Some(rings)) => drop(rings.incoming.commit()),
        (Ring::Rewind, Some(rings)) => rings.incoming.rewind(),
        (Ring::Mask(true), Some(rings)) => rings.incoming.mask(),
        (Ring::Mask(false), Some(rings)) => drop(rings.incoming.unmask()),
        (Ring::Send(size), Some(rings)) => {
            let payload = vec![0x5a; size.into()];
            let written = rings.outgoing.write(PacketMeta::in_band(1), &[&payload]);
            assert!(written.is_err() || payload.len() <= 4096 - 32);
        }
        (Ring::Publish, Some(rings)) => drop(rings.outgoing.publish()),
        (Ring::Room(size), Some(rings)) => drop(rings.outgoing.request_space(size.into())),
    }
}

/// Rings worth starting from.
pub fn seeds() -> Vec<(&'static str, Vec<Ring>)> {
    use Ring as R;
    let packet = |len8: u8| {
        let mut bytes = vec![6, 0, 2, 0, len8, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        bytes.resize(usize::from(len8) * 8 + 8, 0x77);
        bytes
    };
    let open = R::Open([0, 1, 2, 3]);
    vec![
        (
            "read",
            vec![
                open.clone(),
                R::Write(1, 0, packet(4)),
                R::Write(1, 5, packet(2)),
                R::Control(0, 0, 64),
                R::Mask(true),
                R::Read(9),
                R::Commit,
                R::Mask(false),
            ],
        ),
        (
            "wrap",
            vec![
                R::Control(0, 0, 4080),
                R::Control(0, 1, 4080),
                open.clone(),
                R::Write(1, 510, packet(4)[..16].to_vec()),
                R::Write(1, 0, packet(4)[16..].to_vec()),
                R::Control(0, 0, 24),
                R::Read(1),
                R::Rewind,
                R::Read(1),
                R::Commit,
            ],
        ),
        (
            "full",
            vec![
                open.clone(),
                R::Send(1000),
                R::Send(3000),
                R::Publish,
                R::Send(1000),
                R::Room(1024),
                R::Control(2, 1, 1024),
                R::Room(1024),
                R::Send(1000),
                R::Publish,
            ],
        ),
        (
            "waiting",
            vec![
                open.clone(),
                R::Write(1, 0, packet(20)),
                R::Control(0, 0, 168),
                R::Control(0, 3, 4000),
                R::Read(1),
                R::Commit,
            ],
        ),
        (
            "one-page",
            vec![
                R::Open([5, 5, 5, 5]),
                R::Send(40),
                R::Publish,
                R::Read(3),
                R::Commit,
            ],
        ),
        (
            "lies",
            vec![
                open,
                R::Write(1, 0, vec![6, 0, 9, 0, 2, 0]),
                R::Control(0, 0, 512),
                R::Read(1),
                R::Control(0, 0, 0xffff),
                R::Read(1),
                R::Mask(false),
            ],
        ),
    ]
}
