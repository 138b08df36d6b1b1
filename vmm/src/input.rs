// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Standard input on its way to COM1.
//!
//! The event loop listens for input only while there is room for it: what a
//! guest does not read stays in the user's pipe.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, stdin};
use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::machine::Machine;
use crate::sys;
use crate::terminal::Keys;

/// Input kept for a guest that does not read.
const INPUT_LIMIT: usize = 4096;

/// Standard input on its way to COM1.
pub(crate) struct Input {
    file: Option<File>,
    keys: Option<Keys>,
    pending: VecDeque<u8>,
    watched: bool,
    /// epoll does not take regular files; they can always be read.
    pollable: bool,
}

impl Input {
    pub(crate) fn none() -> Self {
        Self {
            file: None,
            keys: None,
            pending: VecDeque::new(),
            watched: false,
            pollable: true,
        }
    }

    /// Standard input; a terminal has keys of ours.
    pub(crate) fn open(terminal: bool) -> Self {
        let file = sys::duplicate(stdin().as_raw_fd()).ok().map(File::from);
        Self {
            file,
            keys: terminal.then(Keys::default),
            ..Self::none()
        }
    }

    /// Whether the next read is to happen without waiting for epoll.
    pub(crate) fn always_ready(&self) -> bool {
        !self.pollable && self.wants_more()
    }

    fn wants_more(&self) -> bool {
        self.file.is_some() && self.pending.len() < INPUT_LIMIT
    }

    /// Gives the guest what it can take.
    pub(crate) fn feed(&mut self, machine: &Machine) {
        while !self.pending.is_empty() {
            let taken = machine.com1().offer(self.pending.as_slices().0);
            if taken == 0 {
                return;
            }
            self.pending.drain(..taken);
        }
    }

    /// Listens for input while there is room for it.
    pub(crate) fn update(&mut self, epoll: &Epoll, token: u64) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        if !self.pollable || self.watched == self.wants_more() {
            if self.always_ready() {
                self.read();
            }
            return Ok(());
        }
        let operation = if self.watched {
            ControlOperation::Delete
        } else {
            ControlOperation::Add
        };
        let event = EpollEvent::new(EventSet::IN, token);
        match epoll.ctl(operation, file.as_raw_fd(), event) {
            Ok(()) => self.watched = !self.watched,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self.pollable = false,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Reads what is there; true if the user wants to quit.
    pub(crate) fn read(&mut self) -> bool {
        let mut bytes = [0; 1024];
        let Some(file) = &mut self.file else {
            return false;
        };
        match file.read(&mut bytes) {
            Ok(count) if count > 0 => {
                let read = bytes.get(..count).unwrap_or_default();
                let Some(keys) = &mut self.keys else {
                    self.pending.extend(read);
                    return false;
                };
                let (guest, quit) = keys.filter(read);
                self.pending.extend(guest);
                quit
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) =>
            {
                false
            }
            // The end, or a terminal that is gone: closing it takes it out of epoll.
            Ok(_) | Err(_) => {
                self.file = None;
                false
            }
        }
    }
}
