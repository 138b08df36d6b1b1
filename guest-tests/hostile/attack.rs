// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The attacks: each call makes one, chosen by chance.

use super::bus::*;
use super::*;

/// xorshift64*.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 32) % end
    }

    /// A number at which things go wrong.
    fn edge(&mut self) -> u32 {
        match self.below(8) {
            0 => 0,
            1 => u32::MAX,
            2 => 0x7FFF_FFFF,
            3 => 1 << self.below(32),
            4 => 4096,
            5 => self.next() as u32,
            _ => self.below(32) as u32,
        }
    }

    /// A page that is none, or one of those that are fought over.
    fn page(&mut self) -> u64 {
        match self.below(8) {
            0 => u64::MAX >> 12,
            1 => 1 << self.below(52).max(15),
            2 => 0xC_0000,
            3 => 0xFEE0_0000 >> 12,
            4 => (self.next() >> 12) | 1 << 40,
            _ => FIELD / 4096 + self.below(FIELD_PAGES),
        }
    }

    fn relid(&mut self) -> u32 {
        self.below(RELIDS) as u32
    }

    fn gpadl(&mut self) -> u32 {
        BAD_GPADLS + self.below(16) as u32
    }
}

/// A message that could be right.
fn likely(random: &mut Random) -> (Message, u32) {
    let (relid, gpadl) = (random.relid(), random.gpadl());
    let mut message = [0; 256];
    let size = match random.below(10) {
        0..3 => {
            let pages = 2 + random.below(30);
            message = page_list(relid, gpadl, FIELD + random.below(200) * 4096, pages);
            if random.below(3) == 0 {
                let page = random.page().to_le_bytes();
                message[28..36].copy_from_slice(&page);
            }
            28 + 8 * pages.min(26) as u32
        }
        3 => {
            set_word(&mut message, 0, 9);
            set_word(&mut message, 12, gpadl);
            for at in (16..240).step_by(8) {
                message[at..at + 8].copy_from_slice(&random.page().to_le_bytes());
            }
            16 + 8 * random.below(29) as u32
        }
        4..7 => {
            message = open(relid, gpadl, random.below(10) as u32);
            148
        }
        kind => {
            set_word(&mut message, 0, [7, 11, 22][kind as usize % 3]);
            set_word(&mut message, 8, relid);
            set_word(&mut message, 12, gpadl);
            16
        }
    };
    (message, size)
}

fn attack_bus(random: &mut Random, cpu: u64, wild: bool) {
    let (mut message, mut size) = likely(random);
    match random.below(6) {
        0 => {
            set_word(&mut message, 0, random.below(28) as u32);
            for at in (8..240).step_by(4) {
                set_word(&mut message, at, random.edge());
            }
            size = random.below(260) as u32;
        }
        1 => {
            for _ in 0..=random.below(6) {
                message[random.below(200) as usize] = random.next() as u8;
            }
        }
        2 if wild => {
            message = contact([0x5_0003, 0x5_0000, 0x4_0001, 0x6_0000][random.below(4) as usize]);
            set_word(&mut message, 12, random.below(6) as u32);
            size = 40;
        }
        3 if wild => {
            set_word(&mut message, 0, [3, 16, 21, 13][random.below(4) as usize]);
            size = 240;
        }
        _ => {}
    }
    if !wild {
        // The session and the good channel are another's.
        let good = GOOD_RELID.load(Ordering::Relaxed);
        if matches!(word(&message, 0), 14 | 16) {
            set_word(&mut message, 0, 5);
        }
        if word(&message, 8) == good {
            set_word(&mut message, 8, good + 1);
        }
    }
    let connection = match random.below(16) {
        0 => random.edge(),
        1 => 1,
        _ => CONNECTION.load(Ordering::Relaxed),
    };
    post(cpu, connection, &message, size);
}

fn attack_msrs(random: &mut Random, wild: bool) {
    let index = match random.below(3) {
        0 => SCONTROL + random.below(0x20) as u32,
        1 => [SIMP_MSR, SIEFP_MSR, SINT2, SCONTROL, EOM][random.below(5) as usize],
        _ => GUEST_OS_ID + random.below(u64::from(LAST_MSR - GUEST_OS_ID) + 1) as u32,
    };
    read_msr(index);
    // An interrupt command could stop the vCPU that behaves; without the
    // hypercall page there is no attack.
    if index == ICR || matches!(index, GUEST_OS_ID | HYPERCALL) && !wild {
        return;
    }
    let page = random.page() << 12 | random.below(4);
    write_msr(
        index,
        if random.below(8) == 0 {
            random.next() | 1 << 50
        } else {
            page
        },
    );
    if matches!(index, GUEST_OS_ID | HYPERCALL) {
        hello();
    }
}

/// Makes the memory that the host looks at change under its eyes.
fn scribble(random: &mut Random) {
    let page = FIELD + random.below(FIELD_PAGES) * 4096;
    if random.below(2) == 0 {
        // A ring's indices, masks and sizes.
        for at in [0, 4, 8, 12] {
            poke(page + at, random.edge());
        }
        return;
    }
    for at in (0..4096).step_by(8) {
        let word = match random.below(3) {
            // An in-band packet's descriptor, more or less.
            0 => 6 | 2 << 16 | random.below(64) << 32,
            1 => random.next(),
            _ => u64::from(random.edge()),
        };
        poke(page + at, word);
    }
}

fn attack_ports(random: &mut Random) {
    let port = random.next() as u16;
    // The power registers and the reset lines are for the wild mode's resets.
    if matches!(port, 0x60..=0x64 | 0x3F8..=0x3FF | 0x600..=0x602 | 0xCF9) {
        return;
    }
    input(port);
    out(port, random.next() as u8);
}

/// One attack, of whatever kind comes.
pub(super) fn attack(random: &mut Random, cpu: u64, wild: bool) {
    match random.below(16) {
        0..8 => attack_bus(random, cpu, wild),
        8..11 => {
            let connection = random.below(64) as u32 | 0x1_0000;
            let flag = if random.below(4) == 0 {
                random.next() as u16
            } else {
                0
            };
            signal(
                if random.below(4) == 0 {
                    random.edge()
                } else {
                    connection
                },
                flag,
            );
        }
        11..13 => scribble(random),
        13 => attack_msrs(random, wild),
        14 => {
            // An odd hypercall, or one whose block is nowhere.
            let code = [0x5C, 0x5D, 0x1_005D, random.next()][random.below(4) as usize];
            hypercall(
                code,
                random.page() << 12 | random.below(4096),
                random.next(),
            );
        }
        _ => attack_ports(random),
    }
}
