// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The CMOS clock of a PC (MC146818), read-only: a kernel reads the wall clock
//! here when it boots. It runs on UTC, tells BCD in 24-hour form, and its
//! "update in progress" flag is never set, since every read is whole.

use std::time::{SystemTime, UNIX_EPOCH};

/// Port that selects a register.
pub const INDEX: u16 = 0x70;
/// Port that reads it.
pub const DATA: u16 = 0x71;
/// Register of the century, named in the FADT.
pub const CENTURY: u8 = 0x32;

/// Bit 7 of the index port masks NMIs and is not part of the register number.
const INDEX_MASK: u8 = 0x7F;
/// Register A: the usual 32 kHz time base; no update in progress.
const STATUS_A: u8 = 0x26;
/// Register B: 24-hour form, BCD, no interrupts.
const STATUS_B: u8 = 0x02;
/// Register D: the battery is good.
const STATUS_D: u8 = 0x80;

/// The clock's only state: which register is selected.
#[derive(Debug, Default)]
pub struct Cmos {
    index: u8,
}

impl Cmos {
    /// Selects a register.
    pub fn select(&mut self, index: u8) {
        self.index = index & INDEX_MASK;
    }

    /// Reads the selected register at a time of the host's clock.
    pub fn read(&self, now: SystemTime) -> u8 {
        let time = Civil::from(now);
        let value = match self.index {
            0x00 => time.second,
            0x02 => time.minute,
            0x04 => time.hour,
            0x06 => time.weekday,
            0x07 => time.day,
            0x08 => time.month,
            0x09 => time.year % 100,
            CENTURY => time.year / 100,
            0x0A => return STATUS_A,
            0x0B => return STATUS_B,
            0x0D => return STATUS_D,
            _ => return 0,
        };
        bcd(value)
    }
}

/// A two-digit number as binary-coded decimal.
fn bcd(value: u64) -> u8 {
    u8::try_from(((value / 10 % 10) << 4) | (value % 10)).unwrap_or(0)
}

/// A moment of UTC in the calendar.
#[derive(Debug, PartialEq, Eq)]
struct Civil {
    year: u64,
    month: u64,
    day: u64,
    /// 1 is Sunday.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl From<SystemTime> for Civil {
    fn from(time: SystemTime) -> Self {
        // A host clock before 1970 is no clock.
        let seconds = time
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
        // Count years from March so that a leap day ends one, and whole
        // 400-year cycles of 146097 days from 1 March of year 0, which is
        // 719468 days before 1970.
        let shifted = days + 719_468;
        let (cycle, day_of_cycle) = (shifted / 146_097, shifted % 146_097);
        let year_of_cycle = (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524
            - day_of_cycle / 146_096)
            / 365;
        let day_of_year =
            day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
        // Months from March have 31,30,31,30,31 days, repeating: 153 in five.
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = (month_from_march + 2) % 12 + 1;
        Self {
            year: cycle * 400 + year_of_cycle + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            weekday: (days + 4) % 7 + 1,
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn read(index: u8, seconds: u64) -> u8 {
        let mut cmos = Cmos::default();
        cmos.select(index);
        cmos.read(UNIX_EPOCH + Duration::from_secs(seconds))
    }

    fn registers(seconds: u64) -> [u8; 8] {
        [CENTURY, 9, 8, 7, 6, 4, 2, 0].map(|index| read(index, seconds))
    }

    #[test]
    fn known_moments_read_as_their_date() {
        // Thursday, 1 January 1970, 00:00:00.
        assert_eq!(registers(0), [0x19, 0x70, 0x01, 0x01, 5, 0, 0, 0]);
        // Tuesday, 29 February 2000, 23:59:59.
        let leap_day = [0x20, 0x00, 0x02, 0x29, 3, 0x23, 0x59, 0x59];
        assert_eq!(registers(951_868_799), leap_day);
        // Friday, 20 November 2026, 13:12:00.
        let date = [0x20, 0x26, 0x11, 0x20, 6, 0x13, 0x12, 0x00];
        assert_eq!(registers(1_795_180_320), date);
        // Monday, 1 March 2100: a year that is no leap year.
        let no_leap = [0x21, 0x00, 0x03, 0x01, 2, 0, 0, 0];
        assert_eq!(registers(4_107_542_400), no_leap);
    }

    #[test]
    fn days_follow_each_other_for_two_centuries() {
        let date = |day: u64| Civil::from(UNIX_EPOCH + Duration::from_secs(day * 86_400));
        for day in 1..73_000 {
            let (before, after) = (date(day - 1), date(day));
            let next_day = after.day == before.day + 1 && after.month == before.month;
            let next_month = after.day == 1 && (27..32).contains(&before.day);
            assert!(next_day || next_month, "{before:?} {after:?}");
        }
    }

    #[test]
    fn the_nmi_bit_is_not_part_of_the_index() {
        assert_eq!(read(0x8B, 0), STATUS_B);
    }
}
