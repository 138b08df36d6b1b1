// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The user's terminal: raw while the guest has it, as it was whatever happens.
//!
//! The saved settings are global, because a panic hook has to find them.

use std::io::{self, stdin};
use std::os::fd::{AsFd, AsRawFd};

use parking_lot::Mutex;

use crate::sys::{self, TerminalSettings};

static SAVED: Mutex<Option<TerminalSettings>> = Mutex::new(None);

/// Ctrl-A, the key that speaks to this program and not to the guest.
const ESCAPE: u8 = 0x01;

/// Raw mode for as long as it lives.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Enters raw mode if standard input is a terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        if !sys::is_terminal(stdin().as_fd()) {
            return Ok(None);
        }
        *SAVED.lock() = Some(sys::terminal_settings(stdin().as_raw_fd())?);
        // From here on the drop restores.
        let guard = Self(());
        guard.resume()?;
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            before(info);
        }));
        Ok(Some(guard))
    }

    /// Enters raw mode again after [`restore`].
    pub fn resume(&self) -> io::Result<()> {
        match &*SAVED.lock() {
            Some(saved) => sys::set_terminal(stdin().as_raw_fd(), &saved.raw()),
            None => Ok(()),
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was found; does nothing if it was not touched.
pub fn restore() {
    if let Some(saved) = &*SAVED.lock() {
        // There is nobody to tell if it fails.
        let _ = sys::set_terminal(stdin().as_raw_fd(), saved);
    }
}

/// The same for a signal handler, which must not wait for a lock.
pub(crate) fn try_restore() {
    if let Some(saved) = SAVED.try_lock().as_deref().copied().flatten() {
        let _ = sys::set_terminal(libc::STDIN_FILENO, &saved);
    }
}

/// Finds this program's own keys in what the user types.
#[derive(Debug, Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// Takes typed bytes and returns those for the guest, and whether the user
    /// wants to quit.
    pub fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut guest = Vec::with_capacity(typed.len());
        for byte in typed {
            match (std::mem::take(&mut self.escaped), *byte) {
                (true, b'x' | b'X') => return (guest, true),
                (true, ESCAPE | b'a') => guest.push(ESCAPE),
                (true, other) => guest.extend([ESCAPE, other]),
                (false, ESCAPE) => self.escaped = true,
                (false, other) => guest.push(other),
            }
        }
        (guest, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ctrl_a_x_quits() {
        assert_eq!(Keys::default().filter(b"x\x01x"), (b"x".to_vec(), true));
        assert_eq!(
            Keys::default().filter(b"exit\x18"),
            (b"exit\x18".to_vec(), false)
        );
    }

    #[test]
    fn the_escape_may_come_in_pieces_and_can_be_sent() {
        let mut keys = Keys::default();
        assert_eq!(keys.filter(b"a\x01"), (b"a".to_vec(), false));
        assert_eq!(keys.filter(b"\x01b\x01"), (b"\x01b".to_vec(), false));
        assert_eq!(keys.filter(b"q"), (b"\x01q".to_vec(), false));
        assert_eq!(keys.filter(b"\x01"), (vec![], false));
        assert_eq!(keys.filter(b"x"), (vec![], true));
    }
}
