// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bodies of data exchange (protocol 6.6).
//!
//! ```text
//!  0 operation u8 | 1 pool u8 | 2 reserved u16
//!  set        4 type u32 | 8 key size u32 | 12 value size u32 | 16 key[512] | 528 value[2048]
//!  delete     4 key size u32 | 8 key[512]
//!  enumerate  4 index u32 | 8 type u32 | 12 key size u32 | 16 value size u32
//!             20 key[512] | 532 value[2048]
//! ```
//!
//! The answer to an enumeration is written over the request: it is sent at full
//! length, all zeros. Get is not used: Linux answers it with an empty text.

use zerocopy::FromBytes;
use zerocopy::byteorder::little_endian::U32;

use super::item::{Item, Key, Pool, Value};
use crate::protocol::BadAnswer;

const SET: u8 = 1;
const DELETE: u8 = 2;
const ENUMERATE: u8 = 3;

const KEY_SIZE: usize = 512;
const VALUE_SIZE: usize = 2048;

/// Value types.
const TEXT: u32 = 1;
const U32_VALUE: u32 = 4;
/// Linux's, unlike Windows' 11.
const U64_VALUE: u32 = 8;
const WINDOWS_U64_VALUE: u32 = 11;

/// Appends a field of `size` bytes with `text` in it; its size with the zero.
pub(super) fn put_text(body: &mut Vec<u8>, text: &str, size: usize) -> u32 {
    let start = body.len();
    body.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
    // Texts are checked to fit; a cut one still ends in a zero.
    body.truncate(start + size.saturating_sub(2));
    let used = body.len() - start + 2;
    body.resize(start + size, 0);
    u32::try_from(used).unwrap_or(0)
}

/// The text in a field: up to a zero or the field's end.
pub(crate) fn get_text(field: &[u8]) -> Result<String, BadAnswer> {
    let units = field.chunks_exact(2).filter_map(|unit| {
        let bytes: [u8; 2] = unit.try_into().ok()?;
        Some(u16::from_le_bytes(bytes))
    });
    char::decode_utf16(units.take_while(|unit| *unit != 0))
        .collect::<Result<String, _>>()
        .map_err(|_| BadAnswer)
}

fn put_u32(body: &mut Vec<u8>, value: u32) {
    body.extend_from_slice(&value.to_le_bytes());
}

fn patch_u32(body: &mut [u8], at: usize, value: u32) {
    if let Some(field) = body.get_mut(at..at + 4) {
        field.copy_from_slice(&value.to_le_bytes());
    }
}

/// A request to set an item.
pub fn emit_set(pool: Pool, key: &Key, value: &Value, body: &mut Vec<u8>) {
    let start = body.len();
    body.extend_from_slice(&[SET, pool.number(), 0, 0]);
    body.resize(start + 16, 0);
    let key_size = put_text(body, key.as_str(), KEY_SIZE);
    let value_at = body.len();
    let (value_type, value_size) = match value {
        Value::Text(text) => (TEXT, put_text(body, text.as_str(), VALUE_SIZE)),
        // Linux prints 32 bits as a signed number.
        Value::U32(number) => match i32::try_from(*number) {
            Ok(_) => {
                put_u32(body, *number);
                (U32_VALUE, 4)
            }
            Err(_) => put_u64(body, u64::from(*number)),
        },
        Value::U64(number) => put_u64(body, *number),
    };
    body.resize(value_at + VALUE_SIZE, 0);
    patch_u32(body, start + 4, value_type);
    patch_u32(body, start + 8, key_size);
    patch_u32(body, start + 12, value_size);
}

fn put_u64(body: &mut Vec<u8>, number: u64) -> (u32, u32) {
    body.extend_from_slice(&number.to_le_bytes());
    (U64_VALUE, 8)
}

/// A request to delete an item.
pub fn emit_delete(pool: Pool, key: &Key, body: &mut Vec<u8>) {
    let start = body.len();
    body.extend_from_slice(&[DELETE, pool.number(), 0, 0, 0, 0, 0, 0]);
    let key_size = put_text(body, key.as_str(), KEY_SIZE);
    patch_u32(body, start + 4, key_size);
}

/// A request for the item at an index.
pub fn emit_enumerate(pool: Pool, index: u32, body: &mut Vec<u8>) {
    let start = body.len();
    body.extend_from_slice(&[ENUMERATE, pool.number(), 0, 0]);
    put_u32(body, index);
    body.resize(start + 20 + KEY_SIZE + VALUE_SIZE, 0);
}

/// The item in the answer to an enumeration.
///
/// ```
/// use ics_devices::kvp::wire::parse_item;
///
/// let mut body = [0; 20 + 512 + 2048];
/// body[8..20].copy_from_slice(&[1, 0, 0, 0, 4, 0, 0, 0, 6, 0, 0, 0]);
/// body[20..22].copy_from_slice(b"k\0");
/// body[532..536].copy_from_slice(b"v\0w\0");
/// let item = parse_item(&body)?;
/// assert_eq!((item.key.as_str(), item.value.as_str()), ("k", "vw"));
/// # Ok::<(), ics_devices::protocol::BadAnswer>(())
/// ```
pub fn parse_item(body: &[u8]) -> Result<Item, BadAnswer> {
    let (head, rest) = <[U32; 5]>::read_from_prefix(body).map_err(|_| BadAnswer)?;
    let [_, _, value_type, key_size, value_size] = head.map(U32::get);
    let key = rest.get(..KEY_SIZE).ok_or(BadAnswer)?;
    let value = rest.get(KEY_SIZE..KEY_SIZE + VALUE_SIZE).ok_or(BadAnswer)?;
    let key = get_text(sized(key, key_size)?)?;
    let value = match value_type {
        TEXT => get_text(sized(value, value_size)?)?,
        U32_VALUE => number::<4>(value)?.to_string(),
        U64_VALUE | WINDOWS_U64_VALUE => number::<8>(value)?.to_string(),
        _ => return Err(BadAnswer),
    };
    Ok(Item { key, value })
}

/// As much of a field as the guest says is used.
fn sized(field: &[u8], size: u32) -> Result<&[u8], BadAnswer> {
    let size = usize::try_from(size).map_err(|_| BadAnswer)?;
    field.get(..size).ok_or(BadAnswer)
}

fn number<const N: usize>(field: &[u8]) -> Result<u64, BadAnswer> {
    let mut bytes = [0; 8];
    let source = field.get(..N).ok_or(BadAnswer)?;
    for (byte, from) in bytes.iter_mut().zip(source) {
        *byte = *from;
    }
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    #[test]
    fn a_set_begins_with_these_bytes_and_is_2576_long() {
        let mut body = Vec::new();
        let value = Value::text("x\u{e9}\u{1f980}").unwrap();
        emit_set(Pool::External, &key("ab"), &value, &mut body);
        #[rustfmt::skip]
        assert_eq!(body[..22], [
            1, 0, 0, 0, // set, pool 0
            1, 0, 0, 0, 6, 0, 0, 0, 10, 0, 0, 0, // text, sizes with the zero
            b'a', 0, b'b', 0, 0, 0,
        ]);
        assert_eq!(
            body[528..540],
            [b'x', 0, 0xe9, 0, 0x3e, 0xd8, 0x80, 0xdd, 0, 0, 0, 0]
        );
        assert_eq!(body.len(), 2576);
        assert!(body[22..528].iter().all(|byte| *byte == 0));
        assert!(body[540..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn numbers_have_types_of_their_own() {
        let set = |value| {
            let mut body = Vec::new();
            emit_set(Pool::Guest, &key("n"), &value, &mut body);
            assert_eq!((body.len(), body[1]), (2576, 1));
            (body[4], body[12], body[528..536].to_vec())
        };
        let bytes = vec![4, 3, 2, 1, 0, 0, 0, 0];
        assert_eq!(set(Value::U32(0x0102_0304)), (4, 4, bytes.clone()));
        assert_eq!(set(Value::U64(0x0102_0304)), (8, 8, bytes));
        // Linux would call it -1.
        let bytes = vec![0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        assert_eq!(set(Value::U32(u32::MAX)), (8, 8, bytes));
    }

    #[test]
    fn a_delete_is_520_bytes_long() {
        let mut body = Vec::new();
        emit_delete(Pool::External, &key("ab"), &mut body);
        assert_eq!(body[..14], [2, 0, 0, 0, 6, 0, 0, 0, b'a', 0, b'b', 0, 0, 0]);
        assert_eq!(body.len(), 520);
    }

    #[test]
    fn an_enumeration_has_room_for_the_answer() {
        let mut body = Vec::new();
        emit_enumerate(Pool::Auto, 0x0102, &mut body);
        assert_eq!(body[..10], [3, 2, 0, 0, 2, 1, 0, 0, 0, 0]);
        assert_eq!(body.len(), 2580);
        assert!(body[8..].iter().all(|byte| *byte == 0));
    }

    fn answered(key: &str, value: &str) -> Vec<u8> {
        let mut body = vec![0; 20];
        let key_size = put_text(&mut body, key, KEY_SIZE);
        let value_size = put_text(&mut body, value, VALUE_SIZE);
        patch_u32(&mut body, 8, TEXT);
        patch_u32(&mut body, 12, key_size);
        patch_u32(&mut body, 16, value_size);
        body
    }

    #[test]
    fn nonsense_in_an_answer_is_no_item() {
        let good = answered("k", "v");
        assert_eq!(
            parse_item(&good),
            Ok(Item {
                key: "k".into(),
                value: "v".into()
            })
        );
        for len in 0..good.len() {
            assert_eq!(parse_item(&good[..len]), Err(BadAnswer), "{len}");
        }
        // Sizes beyond the fields, as after a failed conversion in the guest.
        for at in [12, 16] {
            let mut bad = good.clone();
            patch_u32(&mut bad, at, u32::MAX - 41);
            assert_eq!(parse_item(&bad), Err(BadAnswer));
        }
        let mut bad = good.clone();
        patch_u32(&mut bad, 8, 7);
        assert_eq!(parse_item(&bad), Err(BadAnswer), "an unknown type");
        let mut bad = good;
        bad[20..22].copy_from_slice(&[0, 0xd8]);
        assert_eq!(parse_item(&bad), Err(BadAnswer), "half a pair");
    }

    #[test]
    fn numbers_in_an_answer_are_told_in_decimal() {
        let mut body = answered("k", "");
        body[532..540].copy_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0]);
        for (value_type, expected) in [(4, "1"), (8, "4294967297"), (11, "4294967297")] {
            patch_u32(&mut body, 8, value_type);
            assert_eq!(parse_item(&body).unwrap().value, expected);
        }
    }

    #[test]
    fn limits_are_those_of_the_wire_and_of_the_guest() {
        assert!(Key::new(&"k".repeat(255)).is_ok());
        assert!(Key::new(&"k".repeat(256)).is_err());
        // 170 × 3 bytes fit, 171 do not.
        assert!(Key::new(&"\u{20ac}".repeat(170)).is_ok());
        assert_eq!(
            Key::new(&"\u{20ac}".repeat(171)).unwrap_err().to_string(),
            "the key is 513 bytes long in the guest's UTF-8, and 511 are the most"
        );
        assert!(Key::new("").is_err() && Key::new("a\0b").is_err());
        assert!(Value::text("").is_ok());
        assert!(Value::text(&"v".repeat(1023)).is_ok());
        assert!(Value::text(&"v".repeat(1024)).is_err());
        assert!(Value::text(&"\u{20ac}".repeat(682)).is_ok());
        assert!(Value::text(&"\u{20ac}".repeat(683)).is_err());
    }

    proptest! {
        #[test]
        fn what_fits_comes_back_as_it_was(name in "\\PC{1,80}", text in "\\PC{0,300}") {
            if let (Ok(key), Ok(value)) = (Key::new(&name), Value::text(&text)) {
                let mut body = Vec::new();
                emit_set(Pool::External, &key, &value, &mut body);
                // An answer is a request with one field more in front.
                body.splice(4..4, [0; 4]);
                let item = parse_item(&body).unwrap();
                prop_assert_eq!(item, Item { key: name, value: text });
            }
        }

        #[test]
        fn no_answer_is_too_strange(body in prop::collection::vec(any::<u8>(), 2570..2590)) {
            let _ = parse_item(&body);
        }
    }
}
