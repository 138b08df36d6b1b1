// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames between `cargo xtask` and the agent in the nest.
//!
//! ```text
//! ┌──────────────┬──────┬────────────┬───────────────────┐
//! │ length (u32) │ kind │ job (u32)  │ payload           │   little endian
//! └──────────────┴──────┴────────────┴───────────────────┘
//!   of all that follows it
//! ```
//!
//! A job is one command. Its standard input is sent against credit, so that a
//! command which doesn't read its input never holds up the others.

use std::io::{self, Read, Write};

/// The longest payload of one frame; longer data is sent in several.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// The most input in flight to one job: what the agent will hold for it.
pub const STDIN_WINDOW: u32 = 512 * 1024;

const HEADER: usize = 5;

/// What a frame is about. The payload's form is named with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To the nest: start a command; an encoded [`crate::job::Spec`].
    Run = 1,
    /// To the nest: bytes for the command's standard input.
    Stdin = 2,
    /// To the nest: end of the standard input.
    StdinEof = 3,
    /// To the nest: send the command's process group a signal; u32.
    Signal = 4,
    /// To the nest: the terminal's new size; two u16, rows and columns.
    Resize = 5,
    /// To the nest: write everything back, say [`Kind::Bye`] and stop.
    Stop = 6,
    /// From the nest: the machine is ready; text about it.
    Hello = 16,
    /// From the nest: still alive; u64, a count.
    Heartbeat = 17,
    /// From the nest: bytes of the command's standard output.
    Stdout = 18,
    /// From the nest: bytes of the command's standard error.
    Stderr = 19,
    /// From the nest: so many more bytes of input may be sent; u32.
    Credit = 20,
    /// From the nest: the command ended; u32, 128 + n for signal n.
    Exit = 21,
    /// From the nest: everything is written back.
    Bye = 22,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Kind; 13] = [
            Kind::Run,
            Kind::Stdin,
            Kind::StdinEof,
            Kind::Signal,
            Kind::Resize,
            Kind::Stop,
            Kind::Hello,
            Kind::Heartbeat,
            Kind::Stdout,
            Kind::Stderr,
            Kind::Credit,
            Kind::Exit,
            Kind::Bye,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is about.
    pub kind: Kind,
    /// The command it belongs to; 0 for the machine itself.
    pub job: u32,
    /// The data.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame without data.
    pub fn empty(kind: Kind, job: u32) -> Self {
        Self::new(kind, job, Vec::new())
    }

    /// A frame with data, which must not be longer than [`MAX_PAYLOAD`].
    pub fn new(kind: Kind, job: u32, payload: Vec<u8>) -> Self {
        Self { kind, job, payload }
    }

    /// A frame whose data is one number.
    pub fn number(kind: Kind, job: u32, number: u32) -> Self {
        Self::new(kind, job, number.to_le_bytes().to_vec())
    }

    /// The number in a frame made by [`Frame::number`].
    pub fn as_number(&self) -> Option<u32> {
        Some(u32::from_le_bytes(self.payload.get(..4)?.try_into().ok()?))
    }

    /// Writes the frame with a single call, so that frames of several threads
    /// don't mix if the writer is shared under a lock.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let length = u32::try_from(HEADER + self.payload.len())
            .ok()
            .filter(|_| self.payload.len() <= MAX_PAYLOAD)
            .ok_or_else(|| malformed("payload too long"))?;
        let mut bytes = Vec::with_capacity(4 + HEADER + self.payload.len());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.push(self.kind as u8);
        bytes.extend_from_slice(&self.job.to_le_bytes());
        bytes.extend_from_slice(&self.payload);
        out.write_all(&bytes)?;
        out.flush()
    }

    /// Reads the next frame; `None` at a clean end of the stream.
    pub fn read_from(input: &mut impl Read) -> io::Result<Option<Self>> {
        let mut length = [0; 4];
        match input.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        let Some(payload_length) = length
            .checked_sub(HEADER)
            .filter(|length| *length <= MAX_PAYLOAD)
        else {
            return Err(malformed("impossible length"));
        };
        let mut kind = [0; 1];
        let mut job = [0; 4];
        let mut payload = vec![0; payload_length];
        input.read_exact(&mut kind)?;
        input.read_exact(&mut job)?;
        input.read_exact(&mut payload)?;
        let [kind] = kind;
        Ok(Some(Self {
            kind: Kind::from_byte(kind).ok_or_else(|| malformed("unknown kind"))?,
            job: u32::from_le_bytes(job),
            payload,
        }))
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("frame: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_length_kind_job_payload() {
        let mut bytes = Vec::new();
        Frame::new(Kind::Stdout, 0x0102, b"hi".to_vec())
            .write_to(&mut bytes)
            .unwrap();
        assert_eq!(bytes, [7, 0, 0, 0, 18, 2, 1, 0, 0, b'h', b'i']);
        let read = Frame::read_from(&mut bytes.as_slice()).unwrap().unwrap();
        assert_eq!(read.kind, Kind::Stdout);
        assert_eq!(read.job, 0x0102);
        assert_eq!(read.payload, b"hi");
    }

    #[test]
    fn the_end_between_frames_is_clean_and_within_one_is_an_error() {
        assert!(Frame::read_from(&mut [].as_slice()).unwrap().is_none());
        let cut = [7, 0, 0, 0, 18, 2];
        assert!(Frame::read_from(&mut cut.as_slice()).is_err());
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        for length in [0_u32, 4, 5 + 64 * 1024 + 1, u32::MAX] {
            let bytes = length.to_le_bytes();
            let error = Frame::read_from(&mut bytes.as_slice()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{length}");
        }
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let bytes = [5, 0, 0, 0, 99, 0, 0, 0, 0];
        assert!(Frame::read_from(&mut bytes.as_slice()).is_err());
    }

    #[test]
    fn numbers_survive() {
        let frame = Frame::number(Kind::Exit, 1, 143);
        assert_eq!(frame.as_number(), Some(143));
        assert_eq!(Frame::empty(Kind::Exit, 1).as_number(), None);
    }
}
