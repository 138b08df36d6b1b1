// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The partition's reference time, in units of 100 ns, and the page by which a
//! guest reads it without leaving its CPU.
//!
//! ```text
//! time = ((TSC × scale) >> 64) + offset
//! page: 0 sequence u32 (0: invalid) · 8 scale u64 · 16 offset i64
//! ```
//!
//! KVM starts a guest's TSC at zero with the machine, so the offset is zero: the
//! MSR and the page tell one time, the time since the machine was made.

/// Bytes of the page that mean something.
const PAGE_BYTES: usize = 24;
/// Any sequence but zero says that the page is valid.
const SEQUENCE: u32 = 1;
const HUNDRED_NS_PER_SECOND: u128 = 10_000_000;

/// The conversion from the guest's TSC to reference time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReferenceTime {
    scale: u64,
}

impl ReferenceTime {
    /// For a TSC of this frequency; `None` if it does not run fast enough to
    /// count 100 ns with it.
    pub fn new(tsc_hz: u64) -> Option<Self> {
        let scale = (HUNDRED_NS_PER_SECOND << 64).checked_div(u128::from(tsc_hz))?;
        Some(Self {
            scale: u64::try_from(scale).ok()?,
        })
    }

    /// The time at a value of the guest's TSC.
    pub fn at(self, tsc: u64) -> u64 {
        let product = u128::from(tsc) * u128::from(self.scale);
        u64::try_from(product >> 64).unwrap_or(u64::MAX)
    }

    /// The start of the reference TSC page; the rest of it is zero.
    pub fn page(self) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        let (sequence, scale) = (SEQUENCE.to_le_bytes(), self.scale.to_le_bytes());
        let fields = sequence.into_iter().chain([0; 4]).chain(scale);
        for (at, byte) in page.iter_mut().zip(fields) {
            *at = byte;
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_second_of_tsc_is_ten_million_units() {
        for hz in [20_000_000, 1_000_000_000, 2_100_000_000, 5_700_000_000] {
            let time = ReferenceTime::new(hz).unwrap();
            let second = time.at(hz);
            assert!((9_999_999..=10_000_000).contains(&second), "{hz}: {second}");
        }
    }

    #[test]
    fn a_tsc_that_stands_or_crawls_is_refused() {
        assert_eq!(ReferenceTime::new(0), None);
        assert_eq!(ReferenceTime::new(9_999_999), None);
    }

    #[test]
    fn the_page_of_a_ten_megahertz_step() {
        // 20 MHz: half a unit per tick, so the scale is 2^63.
        let page = ReferenceTime::new(20_000_000).unwrap().page();
        let mut expected = [0; 24];
        expected[0] = 1;
        expected[15] = 0x80;
        assert_eq!(page, expected);
    }

    proptest! {
        #[test]
        fn time_never_goes_back(hz in 10_000_001u64..10_000_000_000, a: u64, b: u64) {
            let time = ReferenceTime::new(hz).unwrap();
            prop_assert!(time.at(a.min(b)) <= time.at(a.max(b)));
        }
    }
}
