// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Text of a guest's, or of another stranger's, as it may be shown on a terminal.
//!
//! A terminal obeys control characters, and a reader is deceived by characters
//! that have no shape or that turn the order of others around. Here each of them
//! becomes an escape that can be read, as does each byte that is not UTF-8:
//!
//! ```text
//!  ESC [ 2 J   ──►  \u{1b}[2J          U+202E abc  ──►  \u{202e}abc        0xFF  ──►  \xff
//! ```
//!
//! Whatever shows text that is not this program's own goes through here. What is
//! the guest's terminal by intent does not: the serial console, and the streams of
//! `vmmctl connect` and `vmmctl ssh`.

use std::fmt::Write as _;

/// What has no shape of its own: controls, line and paragraph separators, marks of
/// direction, joiners and fillers, invisible operators, tags and selectors.
///
/// These are Unicode's categories Cc, Zl and Zp, its property
/// `Default_Ignorable_Code_Point`, and the marks of interlinear annotation.
const HIDDEN: [(u32, u32); 23] = [
    (0x00, 0x1f),
    (0x7f, 0x9f),
    (0xad, 0xad),
    (0x34f, 0x34f),
    (0x61c, 0x61c),
    (0x115f, 0x1160),
    (0x17b4, 0x17b5),
    (0x180b, 0x180f),
    (0x200b, 0x200f),
    (0x2028, 0x2029),
    (0x202a, 0x202e),
    (0x2060, 0x206f),
    (0x3164, 0x3164),
    (0xfe00, 0xfe0f),
    (0xfeff, 0xfeff),
    (0xffa0, 0xffa0),
    (0xfff0, 0xfff8),
    (0xfff9, 0xfffb),
    (0x1_bca0, 0x1_bca3),
    (0x1_d173, 0x1_d17a),
    (0xe_0000, 0xe_0fff),
    // Nobody has a shape for these either.
    (0xf_fffe, 0xf_ffff),
    (0x10_fffe, 0x10_ffff),
];

/// Whether a character may be shown as it is.
pub fn is_plain(c: char) -> bool {
    let code = u32::from(c);
    // Most text ends the search at once.
    (0x20..0x7f).contains(&code)
        || !HIDDEN
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&code))
}

/// Text on one line: line ends become escapes too.
///
/// ```
/// assert_eq!(vmm::escape::line("a\u{1b}[2J\n"), "a\\u{1b}[2J\\n");
/// assert_eq!(vmm::escape::line(b"caf\xc3\xa9 \xff"), "café \\xff");
/// ```
pub fn line(text: impl AsRef<[u8]>) -> String {
    escaped(text.as_ref(), |_| false).0
}

/// The same, with no more than `most` bytes as it is shown; that it was cut is
/// shown too.
pub fn line_within(text: impl AsRef<[u8]>, most: usize) -> String {
    // No byte becomes less than one, so more of them are not needed.
    let text = text.as_ref();
    let begin = text.get(..most.saturating_add(4)).unwrap_or(text);
    let (mut shown, starts) = escaped(begin, |_| false);
    if shown.len() > most {
        let room = most.saturating_sub(CUT.len());
        let mut starts = starts.into_iter().rev();
        shown.truncate(starts.find(|at| *at <= room).unwrap_or_default());
        shown.push_str(CUT);
    }
    shown
}

/// The end of a text of several lines, no more than `most` bytes as it is shown:
/// line ends and tabs stay.
pub fn tail(text: impl AsRef<[u8]>, most: usize) -> String {
    let text = text.as_ref();
    let end = text.get(text.len().saturating_sub(most)..);
    let (mut shown, starts) = escaped(end.unwrap_or_default(), |c| matches!(c, '\n' | '\t'));
    if shown.len() > most {
        let from = shown.len().saturating_sub(most);
        let from = starts.into_iter().find(|at| *at >= from);
        shown.drain(..from.unwrap_or(shown.len()));
    }
    shown
}

/// JSON that means the same and has none of these characters: they stand in strings
/// only, where they become JSON's own escapes. Line ends between values stay.
pub fn json(json: String) -> String {
    let stays = |c: char| c == '\n' || is_plain(c);
    // Most of it is plain ASCII, which is quickly seen.
    let ascii = |byte: &u8| matches!(byte, 0x20..0x7f | b'\n');
    if json.as_bytes().iter().all(ascii) || json.chars().all(stays) {
        return json;
    }
    let mut text = String::with_capacity(json.len().saturating_add(64));
    for c in json.chars() {
        if stays(c) {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}

/// What stands for the rest of a text.
const CUT: &str = "…";

/// The text, and where each character's share of it begins.
fn escaped(text: &[u8], stays: impl Fn(char) -> bool) -> (String, Vec<usize>) {
    let mut shown = String::with_capacity(text.len());
    let mut starts = Vec::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            starts.push(shown.len());
            match c {
                c if stays(c) || is_plain(c) => shown.push(c),
                '\n' => shown.push_str("\\n"),
                '\r' => shown.push_str("\\r"),
                '\t' => shown.push_str("\\t"),
                c => shown.extend(c.escape_unicode()),
            }
        }
        for byte in chunk.invalid() {
            starts.push(shown.len());
            // Writing to a string does not fail.
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    (shown, starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    /// What a terminal obeys, what turns text around, and what cannot be seen.
    const BAD: &str = "\0\u{7}\u{8}\r\u{1b}\u{7f}\u{80}\u{85}\u{9b}\u{9d}\u{9f}\u{ad}\u{61c}\u{200b}\
        \u{200d}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202d}\u{202e}\u{2060}\u{2066}\u{2069}\
        \u{feff}\u{fffb}\u{e0041}\u{e01ef}";

    #[test]
    fn what_cannot_be_seen_becomes_an_escape() {
        for c in BAD.chars() {
            assert!(!is_plain(c), "{c:?}");
            let shown = line(c.to_string());
            assert!(shown.is_ascii() && shown.starts_with('\\'), "{shown:?}");
            let shown = json(format!("\"{c}\""));
            assert!(shown.is_ascii() && shown.starts_with("\"\\u"), "{shown:?}");
        }
        assert_eq!(line("\u{202e}txt.exe\n\t\r"), "\\u{202e}txt.exe\\n\\t\\r");
        assert_eq!(line(b"\x9b1m\xc2\x9b1m"), "\\x9b1m\\u{9b}1m");
    }

    #[test]
    fn text_of_any_script_stays() {
        for text in [
            "",
            "plain \\ \"text\"",
            "Größe",
            "日本語",
            "עברית",
            "e\u{301}",
            "a\u{a0}b",
            "🦀",
        ] {
            assert_eq!(line(text), text);
            assert_eq!(tail(text, 100), text);
            assert_eq!(json(text.into()), text);
        }
    }

    #[test]
    fn a_text_keeps_its_lines_and_its_end() {
        assert_eq!(tail("one\n\ttwo\u{1b}\n", 100), "one\n\ttwo\\u{1b}\n");
        assert_eq!(tail("first\nsecond\nlast", 8), "ond\nlast");
        assert_eq!(tail("ééé", 4), "éé");
        assert_eq!(tail("a\u{1b}bc", 4), "bc");
        // Each byte that is not UTF-8 takes four.
        assert_eq!(tail([0xff; 5000], 4096).len(), 4096);
    }

    #[test]
    fn a_long_line_is_cut_where_a_character_ends() {
        assert_eq!(line_within("short", 5), "short");
        assert_eq!(line_within("longer", 5), "lo…");
        assert_eq!(line_within("éééé", 6), "é…");
        assert_eq!(line_within([0xff; 5000], 100).len(), 99);
        assert_eq!(line_within("\u{1b}\u{1b}", 10), "\\u{1b}…");
    }

    #[test]
    fn pairs_of_surrogates_are_json_too() {
        let text = json("\"\u{e0041}\u{9b}\"\n".into());
        assert_eq!(text, "\"\\udb40\\udc41\\u009b\"\n");
        let read: String = serde_json::from_str(&text).unwrap();
        assert_eq!(read, "\u{e0041}\u{9b}");
    }

    /// Bytes of which many are the beginning or the middle of something bad.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            any::<u8>().prop_map(|byte| vec![byte]),
            any::<char>().prop_map(|c| c.to_string().into_bytes()),
            (0..BAD.chars().count())
                .prop_map(|at| { BAD.chars().nth(at).unwrap_or(' ').to_string().into_bytes() }),
        ];
        proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn nothing_else_comes_out(bytes in bytes(), most in 0_usize..80) {
            prop_assert!(line(&bytes).chars().all(is_plain));
            let cut = line_within(&bytes, most.max(CUT.len()));
            prop_assert!(cut.chars().all(is_plain) && cut.len() <= most.max(CUT.len()));
            let end = tail(&bytes, most);
            prop_assert!(end.chars().all(|c| is_plain(c) || matches!(c, '\n' | '\t')));
            prop_assert!(end.len() <= most);
            prop_assert!(tail(&bytes, 10_000).ends_with(&end));
        }

        #[test]
        fn json_means_the_same(bytes in bytes()) {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let before = serde_json::to_string(&text).unwrap();
            let after = json(before);
            prop_assert!(after.chars().all(is_plain));
            let read: String = serde_json::from_str(&after).unwrap();
            prop_assert_eq!(read, text);
        }

        #[test]
        fn no_control_of_unicodes_is_plain(c in any::<char>()) {
            prop_assert!(!(c.is_control() && is_plain(c)));
        }
    }
}
