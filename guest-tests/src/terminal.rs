// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The caller's terminal: raw while a command in the nest has it, and restored.

use std::io::{IsTerminal, stdin, stdout};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Restores the terminal when dropped.
#[derive(Debug)]
pub struct RawTerminal(Termios);

/// Whether a person sits at both ends: then the command gets a terminal too.
pub fn interactive() -> bool {
    stdin().is_terminal() && stdout().is_terminal()
}

/// Rows and columns of the caller's terminal.
pub fn size() -> (u16, u16) {
    tcgetwinsize(stdout()).map_or((24, 80), |size| (size.ws_row, size.ws_col))
}

impl RawTerminal {
    /// Makes the terminal raw, if there is one.
    pub fn enter() -> Option<Self> {
        let before = tcgetattr(stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Flush, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Flush, &self.0);
    }
}
