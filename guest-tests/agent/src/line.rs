// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lines between a test and the agent in its guest, over the serial console.
//!
//! ```text
//! test  → agent:  @Q ID sh BASE64 CRC        run this with busybox' shell
//!                 @Q ID echo BASE64 CRC      send the next N raw bytes back (N in the text)
//!                 @Q ID clock BASE64 CRC     likewise, reading a clock at each (N and a PTP device)
//! agent → test:   @A ID out BASE64 CRC       a piece of standard output (`err`: of standard error)
//!                 @A ID exit BASE64 CRC      its status, in decimal
//!                 @A 0 hello BASE64 CRC      the agent is up; facts about the guest
//! ```
//!
//! The CRC covers everything before it, so a byte that the console lost or
//! doubled is noticed. Whatever is not such a line is the kernel's talk.

/// Data bytes in one line; a guest's input buffer holds 4 KiB without a reader.
pub const CHUNK: usize = 768;

/// One parsed line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// `Q` or `A`.
    pub direction: char,
    /// Which request it belongs to.
    pub id: u32,
    /// What the data is.
    pub word: String,
    /// The data.
    pub data: Vec<u8>,
}

/// Why a line that starts like ours is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// The checksum is missing or does not fit: bytes were lost or changed.
    #[error("console line damaged: {0:?}")]
    Damaged(String),
}

impl Line {
    /// A request of a test.
    pub fn request(id: u32, word: &str, data: &[u8]) -> Self {
        Self::new('Q', id, word, data)
    }

    /// An answer of the agent.
    pub fn answer(id: u32, word: &str, data: &[u8]) -> Self {
        Self::new('A', id, word, data)
    }

    fn new(direction: char, id: u32, word: &str, data: &[u8]) -> Self {
        Self {
            direction,
            id,
            word: word.to_owned(),
            data: data.to_vec(),
        }
    }

    /// The line as it is sent, with its end.
    pub fn encode(&self) -> String {
        let data = to_base64(&self.data);
        let body = format!("@{} {} {} {data}", self.direction, self.id, self.word);
        format!("{body} {:08x}\n", crc32(body.as_bytes()))
    }

    /// Parses a line of the console; `None` if it is not one of ours.
    ///
    /// A kernel message may have been cut in two by our line, so the start is
    /// looked for anywhere in it.
    pub fn parse(text: &str, direction: char) -> Option<Result<Self, LineError>> {
        let start = text.rfind(&format!("@{direction} "))?;
        let text = text.get(start..)?.trim_end();
        Some(Self::parse_exact(text).ok_or_else(|| LineError::Damaged(text.to_owned())))
    }

    fn parse_exact(text: &str) -> Option<Self> {
        let (body, crc) = text.rsplit_once(' ')?;
        if u32::from_str_radix(crc, 16).ok()? != crc32(body.as_bytes()) {
            return None;
        }
        let mut parts = body.strip_prefix('@')?.split(' ');
        let direction = parts.next()?.chars().next()?;
        let id = parts.next()?.parse().ok()?;
        let word = parts.next()?.to_owned();
        let data = from_base64(parts.next()?)?;
        Some(Self {
            direction,
            id,
            word,
            data,
        })
    }
}

/// The CRC of Ethernet and zip, bit by bit: short, and fast enough for lines.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn to_base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 4 / 3 + 4);
    for group in bytes.chunks(3) {
        let mut word = 0_u32;
        for index in 0..3 {
            word = (word << 8) | group.get(index).map_or(0, |byte| u32::from(*byte));
        }
        for digit in 0..4 {
            let value = (word >> (18 - 6 * digit)) & 63;
            let known = digit <= group.len();
            let digit = usize::try_from(value).ok().and_then(|v| DIGITS.get(v));
            out.push(digit.filter(|_| known).map_or('=', |d| char::from(*d)));
        }
    }
    if out.is_empty() {
        out.push('='); // so that the field is never empty
    }
    out
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let mut word = 0_u32;
    let mut bits = 0;
    for byte in text.bytes() {
        let value = DIGITS.iter().position(|digit| *digit == byte)?;
        word = (word << 6) | u32::try_from(value).ok()?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push(u8::try_from((word >> bits) & 0xff).ok()?);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_the_one_of_ethernet() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn base64_matches_the_rfc_4648_vectors() {
        for (plain, coded) in [
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(to_base64(plain.as_bytes()), coded);
            assert_eq!(from_base64(coded).unwrap(), plain.as_bytes());
        }
    }

    #[test]
    fn every_byte_survives_a_line() {
        let data: Vec<u8> = (0..=255).collect();
        let line = Line::request(7, "sh", &data);
        let parsed = Line::parse(&line.encode(), 'Q').unwrap().unwrap();
        assert_eq!(parsed, line);
        let empty = Line::answer(7, "out", b"");
        assert_eq!(Line::parse(&empty.encode(), 'A').unwrap(), Ok(empty));
    }

    #[test]
    fn a_line_is_found_after_an_unfinished_kernel_message() {
        let text = format!(
            "[    1.2] foo: bar{}",
            Line::answer(1, "exit", b"0").encode()
        );
        let parsed = Line::parse(&text, 'A').unwrap().unwrap();
        assert_eq!(parsed.word, "exit");
        assert_eq!(parsed.data, b"0");
    }

    #[test]
    fn a_lost_byte_is_noticed() {
        let line = Line::answer(1, "out", b"hello").encode();
        for index in 3..line.trim_end().len() {
            let mut damaged = line.clone();
            damaged.remove(index);
            let parsed = Line::parse(&damaged, 'A').unwrap();
            assert!(parsed.is_err(), "{damaged}");
        }
    }

    #[test]
    fn kernel_messages_are_not_lines() {
        assert_eq!(Line::parse("[    0.0] Linux version 6.1", 'A'), None);
        assert_eq!(Line::parse("mail me @ home", 'A'), None);
    }
}
