// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is sent: packets of which every bit follows from their number.
//!
//! ```text
//!  type, offset8, len8, flags │ transaction id │ payload … │ trailer
//!                               = number         by a generator
//! ```
//!
//! So whoever receives packet n knows what it must be without having kept it,
//! and one that was lost, doubled, changed or overtaken is noticed.

const IN_BAND: u16 = 0x6;
const COMPLETION: u16 = 0xb;
const COMPLETION_REQUESTED: u16 = 1;
/// Words of a plain header.
const HEADER: u16 = 2;

/// The first two words of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    packet_type: u16,
    offset8: u16,
    len8: u16,
    flags: u16,
    transaction_id: u64,
}

impl Header {
    fn of_request(seq: u64) -> Self {
        Self {
            packet_type: IN_BAND,
            offset8: HEADER,
            len8: HEADER + payload_words(seq),
            flags: if wants_completion(seq) {
                COMPLETION_REQUESTED
            } else {
                0
            },
            transaction_id: seq,
        }
    }

    /// What the echo of packet `seq` begins with.
    pub fn of_answer(seq: u64) -> Self {
        Self {
            packet_type: if wants_completion(seq) {
                COMPLETION
            } else {
                IN_BAND
            },
            flags: 0,
            ..Self::of_request(seq)
        }
    }

    /// The words that it is.
    pub fn to_words(self) -> [u64; 2] {
        let first = u64::from(self.packet_type)
            | u64::from(self.offset8) << 16
            | u64::from(self.len8) << 32
            | u64::from(self.flags) << 48;
        [first, self.transaction_id]
    }
}

fn wants_completion(seq: u64) -> bool {
    seq.is_multiple_of(5)
}

/// Bits that follow from `x` and look like chance (SplitMix64's last step).
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Mostly small, some of a few pages, few large: 8 bytes to 32 KiB.
fn payload_words(seq: u64) -> u16 {
    let chance = mix(seq ^ 0x51ed_270b);
    let most = match chance & 0xff {
        0 => 4096,
        1..16 => 512,
        _ => 32,
    };
    let words = (chance >> 8) % most + 1;
    u16::try_from(words).unwrap_or(1)
}

/// The payload of packet `seq`.
pub fn payload(seq: u64) -> impl Iterator<Item = u64> {
    let mut state = mix(seq);
    (0..payload_words(seq)).map(move |_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(state)
    })
}

/// What follows a packet that starts at `start`.
pub fn trailer(start: u32) -> u64 {
    u64::from(start) << 32
}

/// Everything that goes into the ring for packet `seq`.
pub fn words(seq: u64, start: u32) -> impl Iterator<Item = u64> {
    let header = Header::of_request(seq).to_words();
    header
        .into_iter()
        .chain(payload(seq))
        .chain(std::iter::once(trailer(start)))
}

/// How much of the ring packet `seq` takes.
pub fn ring_bytes(seq: u64) -> u32 {
    (u32::from(HEADER) + u32::from(payload_words(seq)) + 1) * 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_takes_the_words_that_it_has() {
        for seq in 0..2000 {
            let words = words(seq, 64).count();
            assert_eq!(words * 8, ring_bytes(seq) as usize, "{seq}");
        }
    }

    #[test]
    fn a_header_is_laid_out_as_the_protocol_says() {
        let header = Header {
            packet_type: IN_BAND,
            offset8: 2,
            len8: 0x1234,
            flags: 1,
            transaction_id: 7,
        };
        assert_eq!(header.to_words(), [0x0001_1234_0002_0006, 7]);
    }

    #[test]
    fn sizes_are_mixed_and_payloads_differ() {
        let sizes: std::collections::BTreeSet<u16> = (0..20_000).map(payload_words).collect();
        assert!(sizes.len() > 300, "{}", sizes.len());
        assert!(sizes.first() == Some(&1) && sizes.last() > Some(&3500));
        assert!(payload(1).next() != payload(2).next());
    }
}
