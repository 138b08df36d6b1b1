// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One client's connection: what has come, what is still to go, and what it waits for.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde::Serialize;
use serde_json::to_string;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::super::http;
use super::super::pipe::Pipe;
use super::super::routes::Stream;
use super::super::types::{Answer, ApiError, ErrorBody};
use super::super::waiter::WaitGuard;
use crate::audience::Watcher;
use crate::escape;

/// Bytes that wait for one client: lines of what it follows, or one answer.
pub const MAX_OUTPUT: usize = 256 << 10;
/// Bytes of an answer's body; the rest is for its head.
pub const MAX_ANSWER: usize = MAX_OUTPUT - (1 << 10);
/// Bytes in which a client is told how many lines it was too slow for.
const TOLD: usize = 40;
/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// A connection.
pub(super) struct Client {
    pub(super) stream: UnixStream,
    pub(super) input: Vec<u8>,
    pub(super) output: Vec<u8>,
    pub(super) state: State,
    /// The client was given leave to send its body.
    pub(super) continued: bool,
    /// When the last request ended.
    pub(super) idle_since: Instant,
    watched: EventSet,
    pub(super) upload: Option<Upload>,
    /// It waits for an answer, and what it asked for goes with it.
    pub(super) waiting: Option<WaitGuard>,
    /// How many lines it still wants of what it follows.
    lines_left: u64,
    /// Lines that it was too slow for, and has not been told of.
    lost: u64,
    /// It makes the bus do what is done for those who follow.
    watcher: Option<Watcher>,
}

/// A body that is passed on while it comes.
pub(super) struct Upload {
    pub(super) pipe: Pipe,
    pub(super) left: u64,
    /// The client waits for leave to send it.
    pub(super) expects: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Reading,
    /// For an answer; whether the connection stays open after it.
    Waiting(bool),
    Streaming(Stream),
    /// Sends a file; whether the connection stays open after the answer.
    Uploading(bool),
    /// What is left is written, then the connection is closed.
    Closing,
}

/// The client is gone, or is to go.
pub(super) struct Gone;

impl Client {
    /// One that has just come, and is watched so.
    pub(super) fn new(stream: UnixStream, watched: EventSet) -> Self {
        Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            state: State::Reading,
            continued: false,
            idle_since: Instant::now(),
            watched,
            upload: None,
            waiting: None,
            lines_left: 0,
            lost: 0,
            watcher: None,
        }
    }

    /// It wants to follow something, for so many lines.
    pub(super) fn follow(&mut self, what: Stream, lines: Option<u64>, watcher: Watcher) {
        self.state = State::Streaming(what);
        self.lines_left = lines.unwrap_or(u64::MAX);
        self.watcher = Some(watcher);
        self.output.extend_from_slice(http::STREAM);
    }

    /// Lines of what it follows.
    pub(super) fn feed(&mut self, lines: &[u8]) -> Result<(), Gone> {
        // Events are few: who does not read them is let go. Traffic is much.
        let may_lose = self.state == State::Streaming(Stream::Trace);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            if self.lines_left == 0 {
                break;
            }
            if may_lose && self.output.len() + line.len() > MAX_OUTPUT - TOLD {
                self.lost += 1;
                continue;
            }
            if self.lost > 0 {
                let lost = std::mem::take(&mut self.lost);
                let told = format!("{{\"lost\":{lost}}}\n");
                self.output.extend_from_slice(told.as_bytes());
            }
            self.lines_left -= 1;
            self.output.extend_from_slice(line);
        }
        if self.lines_left == 0 {
            self.state = State::Closing;
            self.idle_since = Instant::now();
            self.watcher = None;
        }
        self.write()?;
        if self.output.len() > MAX_OUTPUT {
            return Err(Gone);
        }
        Ok(())
    }

    pub(super) fn read(&mut self) -> Result<(), Gone> {
        let mut chunk = [0; CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(Gone),
            Ok(count) => {
                if self.state == State::Reading {
                    let read = chunk.get(..count).unwrap_or_default();
                    self.input.extend_from_slice(read);
                }
                Ok(())
            }
            Err(error) if is_later(&error) => Ok(()),
            Err(_) => Err(Gone),
        }
    }

    /// Passes on as much of a file as there is, and as there is room for.
    pub(super) fn pass_on(&mut self) -> Result<(), Gone> {
        let State::Uploading(keep_alive) = self.state else {
            return Ok(());
        };
        let Some(upload) = &mut self.upload else {
            return Err(Gone);
        };
        let Some(room) = upload.pipe.room() else {
            return Ok(());
        };
        let left = usize::try_from(upload.left).unwrap_or(usize::MAX);
        let most = room.min(left).min(CHUNK);
        let mut chunk = [0; CHUNK];
        let mut count = 0;
        if most > 0 && !self.input.is_empty() {
            // All of it that there is room for: nothing else may come that
            // would bring us back here.
            count = room.min(left).min(self.input.len());
            let early: Vec<u8> = self.input.drain(..count).collect();
            upload.pipe.push(&early);
        } else if most > 0 {
            if std::mem::take(&mut upload.expects) {
                self.output.extend_from_slice(http::CONTINUE);
            }
            let part = chunk.get_mut(..most).unwrap_or_default();
            match self.stream.read(part) {
                Ok(0) => return Err(Gone),
                Ok(read) => {
                    count = read;
                    upload.pipe.push(chunk.get(..read).unwrap_or_default());
                }
                Err(error) if is_later(&error) => {}
                Err(_) => return Err(Gone),
            }
        }
        upload.left = upload.left.saturating_sub(count as u64);
        if upload.left == 0 {
            self.state = State::Waiting(keep_alive);
        }
        self.write()
    }

    fn wants_input(&self) -> bool {
        let room = self.upload.as_ref().and_then(|upload| upload.pipe.room());
        match self.state {
            State::Reading => self.output.is_empty(),
            State::Uploading(_) => room.is_some_and(|room| room > 0),
            State::Waiting(_) | State::Streaming(_) | State::Closing => false,
        }
    }

    pub(super) fn write(&mut self) -> Result<(), Gone> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(Gone),
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if is_later(&error) => return Ok(()),
                Err(_) => return Err(Gone),
            }
        }
        // Who has read a long answer and stays does not keep its memory.
        self.output = Vec::new();
        Ok(())
    }

    pub(super) fn answer(&mut self, answer: Answer, keep_alive: bool) -> Result<(), Gone> {
        self.finish_answer(written(answer, keep_alive), keep_alive)
    }

    /// Refuses a request of which the answer has no body: it ends after the head.
    pub(super) fn refuse_head(&mut self, error: ApiError) -> Result<(), Gone> {
        let mut bytes = written(Err(error), false);
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        bytes.truncate(end.map_or(0, |end| end + 4));
        self.finish_answer(bytes, false)
    }

    pub(super) fn finish_answer(&mut self, bytes: Vec<u8>, keep_alive: bool) -> Result<(), Gone> {
        self.output.extend(bytes);
        self.idle_since = Instant::now();
        self.state = if keep_alive && self.state != State::Closing {
            State::Reading
        } else {
            State::Closing
        };
        self.write()
    }

    /// Waits for what makes sense in this state: a client whose request is in
    /// work is only watched for its end.
    pub(super) fn watch(&mut self, epoll: &Epoll, id: u64) -> io::Result<()> {
        // Its end is reported unasked.
        let mut wanted = if self.wants_input() {
            EventSet::IN
        } else {
            EventSet::empty()
        };
        if !self.output.is_empty() {
            wanted |= EventSet::OUT;
        }
        if wanted != self.watched {
            self.watched = wanted;
            let event = EpollEvent::new(wanted, id);
            epoll.ctl(ControlOperation::Modify, self.fd(), event)?;
        }
        Ok(())
    }

    fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

/// An answer as it goes over the wire.
fn written(answer: Answer, keep_alive: bool) -> Vec<u8> {
    let (mut status, allow, mut json) = match answer {
        Ok(value) => (200, [].as_slice(), json_of(&value)),
        Err(error) => (error.status, error.allow, json_of(&ErrorBody { error })),
    };
    // Whoever answers keeps to less; this is what bounds the memory.
    if json.len() > MAX_ANSWER {
        let message = format!("the answer is longer than {MAX_ANSWER} bytes");
        let error = ApiError::new(500, "too-long", "api", message);
        (status, json) = (error.status, json_of(&ErrorBody { error }));
    }
    json.push('\n');
    http::response(status, json.as_bytes(), allow, keep_alive)
}

pub(super) fn is_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// An answer's JSON. Values that come from serde can be written by it, and a client's
/// terminal may be where they end.
fn json_of(value: &impl Serialize) -> String {
    escape::json(to_string(value).unwrap_or_default())
}
