// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The query of a request's target: each parameter is known to its path and is
//! there once, a flag is `true` or `false`, a count is a number from 1 on. What
//! is misspelt is refused, not ignored: whoever wrote `?overwrit=true` meant it.

use super::types::ApiError;

/// Parameters that the path takes, decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(&'static str, String)>);

impl Query {
    /// Of a target whose path takes these parameters.
    pub fn parse(query: &str, known: &[&'static str]) -> Result<Self, ApiError> {
        let mut pairs: Vec<(&'static str, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decoded(name)?, decoded(value)?);
            let Some(name) = known.iter().find(|known| **known == name) else {
                let there = match known {
                    [] => "there are none".to_owned(),
                    [one] => format!("there is {one}"),
                    all => format!("there are {}", listed(all, "and")),
                };
                return Err(wrong(&format!("'{name}' is no parameter here: {there}")));
            };
            if pairs.iter().any(|(other, _)| other == name) {
                return Err(wrong(&format!("{name} is there twice")));
            }
            pairs.push((name, value));
        }
        Ok(Self(pairs))
    }

    /// A parameter's text, if it is there.
    pub fn text(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(other, _)| *other == name);
        found.map(|(_, value)| value.as_str())
    }

    /// `true`, `false`, or what it is if it is not there.
    pub fn flag(&self, name: &str, otherwise: bool) -> Result<bool, ApiError> {
        match self.text(name) {
            None => Ok(otherwise),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(value) => Err(wrong(&format!("{name} is true or false, not '{value}'"))),
        }
    }

    /// A number from 0 to `most`, and 0 if it is not there.
    pub fn index(&self, name: &str, most: u32) -> Result<u32, ApiError> {
        let text = self.text(name).unwrap_or("0");
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(index) if index <= most && digits => Ok(index),
            _ => Err(wrong(&format!(
                "{name} is a number from 0 to {most}, not '{text}'"
            ))),
        }
    }

    /// A number from 1 on, if it is there.
    pub fn count(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        // A sign in front of it would be taken too.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(count) if count > 0 && digits => Ok(Some(count)),
            _ => Err(wrong(&format!(
                "{name} is a number from 1 on, not '{text}'"
            ))),
        }
    }
}

fn wrong(why: &str) -> ApiError {
    ApiError::bad_request(format!("the query: {why}"))
}

/// `a`, `a and b`, `a, b and c`.
pub fn listed(words: &[&str], last: &str) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [before @ .., end] => format!("{} {last} {end}", before.join(", ")),
    }
}

/// Text with its `%XX` put right.
pub fn decoded(text: &str) -> Result<String, ApiError> {
    let wrong = || ApiError::bad_request(format!("'{text}' is not percent-encoded UTF-8"));
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            let value = digit().zip(digit()).map(|(high, low)| high * 16 + low);
            let value = value.and_then(|value| u8::try_from(value).ok());
            bytes.push(value.ok_or_else(wrong)?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

/// Text for a path or a query.
pub fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_known() {
        let query = Query::parse("path=%2Fa%2F%C3%BC&&mkdir=true", &["path", "mkdir"]).unwrap();
        assert_eq!(query.text("path"), Some("/a/\u{fc}"));
        assert_eq!(query.flag("mkdir", false), Ok(true));
        assert_eq!(query.flag("overwrite", false), Ok(false));
        assert_eq!(query.count("lines"), Ok(None));
        let error = |query| Query::parse(query, &["path", "mkdir"]).unwrap_err();
        assert!(
            error("mkdri=true")
                .message
                .contains("'mkdri' is no parameter here: there are path and mkdir")
        );
        assert_eq!(error("path=%zz").status, 400);
        assert_eq!(error("path=%ff").status, 400);
    }

    #[test]
    fn a_count_has_digits_only() {
        let count = |text: &str| {
            Query::parse(&format!("n={text}"), &["n"])
                .unwrap()
                .count("n")
        };
        assert_eq!(count("1"), Ok(Some(1)));
        assert_eq!(count("18446744073709551615"), Ok(Some(u64::MAX)));
        for text in ["0", "", "+1", "-1", "1.0", "x", "18446744073709551616"] {
            assert!(count(text).is_err(), "{text}");
        }
    }
}
