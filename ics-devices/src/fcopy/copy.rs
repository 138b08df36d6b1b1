// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One file on its way: how far it is, and what it sends next.

use std::time::Duration;

use super::NewFile;
use super::error::FcopyError;
use super::name::Target;
use super::wire::{FRAGMENT, Operation, emit_bare, emit_start, emit_write};
use crate::slot::Ticket;

/// A user that has no data for so long has given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that are kept for the guest: enough to go on while the user is asked
/// for more.
pub(super) const BUFFER: usize = 16 * FRAGMENT;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Start,
    /// The start was refused. Is there a daemon, the directory?
    AskDaemon,
    AskDirectory,
    Data,
    Complete,
    /// The file was created and is not wanted any more.
    Cancel(FcopyError),
    /// The daemon knows no cancelling; its file is closed at least.
    Close(FcopyError),
}

#[derive(Debug)]
pub(super) struct Copy {
    pub(super) ticket: Ticket,
    pub(super) file: NewFile,
    pub(super) step: Step,
    pub(super) written: u64,
    pub(super) fragments: u64,
    /// Bytes of the fragment in flight: the first that wait.
    pub(super) in_flight: usize,
    /// What the user has given. The guest has the first `done` bytes, the others
    /// wait.
    data: Vec<u8>,
    done: usize,
    pub(super) pushed: u64,
    pub(super) stalled_at: Option<Duration>,
    /// The user has given up while something was in flight.
    pub(super) aborted: Option<FcopyError>,
}

impl Copy {
    pub(super) fn new(now: Duration, ticket: Ticket, file: NewFile) -> Self {
        Self {
            ticket,
            file,
            step: Step::Start,
            written: 0,
            fragments: 0,
            in_flight: 0,
            data: Vec::new(),
            done: 0,
            pushed: 0,
            stalled_at: Some(now.saturating_add(PATIENCE)),
            aborted: None,
        }
    }

    /// How many bytes [`push`](Self::push) takes.
    pub(super) fn room(&self) -> usize {
        let left = self.file.size.saturating_sub(self.pushed);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        left.min(BUFFER.saturating_sub(self.waiting().len()))
    }

    /// Takes as much as there is room for; how much that was.
    pub(super) fn push(&mut self, now: Duration, data: &[u8]) -> usize {
        let room = self.room().min(data.len());
        // Moved to the front only as often as no more is moved than was dropped.
        if self.done >= self.waiting().len() {
            self.data.drain(..self.done);
            self.done = 0;
        }
        let data = data.get(..room).unwrap_or_default();
        self.data.extend_from_slice(data);
        self.pushed = self.pushed.saturating_add(data.len() as u64);
        self.stalled_at = Some(now.saturating_add(PATIENCE));
        room
    }

    /// The operation that the present step sends, if it can be sent yet.
    pub(super) fn operation(&self) -> Option<Operation> {
        match self.step {
            Step::Start | Step::AskDaemon | Step::AskDirectory => Some(Operation::Start),
            Step::Data => {
                let left = self.file.size.saturating_sub(self.written);
                let fragment = usize::try_from(left).map_or(FRAGMENT, |left| left.min(FRAGMENT));
                (self.waiting().len() >= fragment).then_some(Operation::Write)
            }
            Step::Complete | Step::Close(_) => Some(Operation::Complete),
            Step::Cancel(_) => Some(Operation::Cancel),
        }
    }

    pub(super) fn emit(&self, operation: Operation, body: &mut Vec<u8>) {
        let file = &self.file;
        match self.step {
            Step::Start => emit_start(&file.target, file.overwrite, file.mkdir, file.size, body),
            Step::AskDaemon => emit_start(&Target::root(), false, false, 0, body),
            Step::AskDirectory => emit_start(&file.target.of_directory(), false, false, 0, body),
            Step::Data => {
                // As much of it as a fragment has.
                emit_write(self.written, self.waiting(), body);
            }
            _ => emit_bare(operation, body),
        }
    }

    pub(super) fn sent(&mut self) {
        if self.step == Step::Data {
            self.in_flight = self.waiting().len().min(FRAGMENT);
            self.stalled_at = None;
        }
    }

    /// Bytes that the guest does not have yet.
    fn waiting(&self) -> &[u8] {
        self.data.get(self.done..).unwrap_or_default()
    }

    /// The guest has the fragment in flight.
    pub(super) fn acknowledged(&mut self) {
        let fragment = std::mem::take(&mut self.in_flight).min(self.waiting().len());
        self.done += fragment;
        self.written = self.written.saturating_add(fragment as u64);
        self.fragments += 1;
    }

    /// The guest has created the file and not closed it.
    pub(super) fn is_created(&self) -> bool {
        matches!(self.step, Step::Data)
    }

    pub(super) fn next_data(&mut self, now: Duration) {
        self.step = if self.written == self.file.size {
            Step::Complete
        } else {
            Step::Data
        };
        self.stalled_at = (self.step == Step::Data).then(|| now.saturating_add(PATIENCE));
    }
}
