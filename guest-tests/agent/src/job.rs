// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A command for the nest: what to run, where, with which environment.
//!
//! Encoded as counted byte strings, since neither arguments nor paths need be
//! UTF-8: `flags rows cols cwd argc argv… envc name value…`, numbers as u32.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What to run in the nest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// The program and its arguments.
    pub argv: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// The directory to start in.
    pub cwd: OsString,
    /// Rows and columns when the command gets a terminal; else it gets pipes.
    pub terminal: Option<(u16, u16)>,
}

impl Spec {
    /// The bytes of a [`crate::frame::Kind::Run`] frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let (rows, cols) = self.terminal.unwrap_or((0, 0));
        put_number(&mut out, u32::from(self.terminal.is_some()));
        put_number(&mut out, u32::from(rows));
        put_number(&mut out, u32::from(cols));
        put(&mut out, &self.cwd);
        put_number(&mut out, count(self.argv.len()));
        for arg in &self.argv {
            put(&mut out, arg);
        }
        put_number(&mut out, count(self.env.len()));
        for (name, value) in &self.env {
            put(&mut out, name);
            put(&mut out, value);
        }
        out
    }

    /// What [`Spec::encode`] wrote, or `None` if the bytes are not that.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let terminal = take_number(&mut rest)? != 0;
        let rows = u16::try_from(take_number(&mut rest)?).ok()?;
        let cols = u16::try_from(take_number(&mut rest)?).ok()?;
        let cwd = take(&mut rest)?;
        let mut argv = Vec::new();
        for _ in 0..take_number(&mut rest)? {
            argv.push(take(&mut rest)?);
        }
        let mut env = Vec::new();
        for _ in 0..take_number(&mut rest)? {
            env.push((take(&mut rest)?, take(&mut rest)?));
        }
        rest.is_empty().then_some(Self {
            argv,
            env,
            cwd,
            terminal: terminal.then_some((rows, cols)),
        })
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn put_number(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put(out: &mut Vec<u8>, string: &OsStr) {
    put_number(out, count(string.len()));
    out.extend_from_slice(string.as_bytes());
}

fn take_number(rest: &mut &[u8]) -> Option<u32> {
    let (head, tail) = rest.split_at_checked(4)?;
    *rest = tail;
    Some(u32::from_le_bytes(head.try_into().ok()?))
}

fn take(rest: &mut &[u8]) -> Option<OsString> {
    let length = usize::try_from(take_number(rest)?).ok()?;
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(OsString::from_vec(head.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Spec {
        Spec {
            argv: vec![
                "sh".into(),
                "-c".into(),
                OsString::from_vec(vec![0xff, b'x']),
            ],
            env: vec![("HOME".into(), "/root".into()), ("EMPTY".into(), "".into())],
            cwd: "/tmp".into(),
            terminal: Some((24, 80)),
        }
    }

    #[test]
    fn a_spec_survives_with_bytes_that_are_not_utf8() {
        assert_eq!(Spec::decode(&example().encode()), Some(example()));
        assert_eq!(
            Spec::decode(&Spec::default().encode()),
            Some(Spec::default())
        );
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = example().encode();
        for length in 0..bytes.len() {
            assert_eq!(Spec::decode(&bytes[..length]), None, "{length}");
        }
    }
}
