// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Looks for the guest's daemon: requests that change nothing, and whose answer
//! tells whether it is there.
//!
//! ```text
//!   later ─► EVERY passes, while watched ─► due ─► sent ─► asked ─► answered
//! ```
//!
//! A look wakes the guest and its host. While nobody watches none falls due, or only
//! now and then where there is something to lose: one whose time has come meanwhile
//! does so when somebody begins to.

use std::time::Duration;

use crate::protocol::moved;

/// From one look to the next, when nothing else happens.
pub const EVERY: Duration = Duration::from_secs(5);
/// So much later while nobody watches, for a service whose guest may have lost what it
/// was given.
const RARER: Duration = Duration::from_secs(55);

/// When to look, and whether that is being done.
///
/// ```
/// use std::time::Duration;
/// use ics_devices::look::{EVERY, Look};
///
/// let mut look = Look::default();
/// look.watch(false);
/// look.later(Duration::ZERO);
/// assert_eq!(look.deadline(), None);
/// look.watch(true);
/// assert_eq!(look.deadline(), Some(EVERY));
/// look.tick(EVERY);
/// assert!(look.is_due());
/// ```
#[derive(Debug, Default)]
pub struct Look {
    unwatched: bool,
    /// There is something to lose.
    anyway: bool,
    at: Option<Duration>,
    due: bool,
    asked: bool,
}

impl Look {
    /// Whether anybody wants to know; at first somebody does.
    pub fn watch(&mut self, watched: bool) {
        self.unwatched = !watched;
    }

    /// Whether to look now and then though nobody watches.
    pub fn anyway(&mut self, anyway: bool) {
        self.anyway = anyway;
    }

    /// Look as soon as it is possible, watched or not.
    pub fn now(&mut self) {
        self.due = true;
    }

    /// Something was learnt: look again after a while.
    pub fn later(&mut self, now: Duration) {
        self.at = Some(now.saturating_add(EVERY));
    }

    /// What is on its way to the guest tells as much as a look.
    pub fn put_off(&mut self) {
        self.at = None;
    }

    /// The look is in the ring.
    pub fn sent(&mut self) {
        (self.at, self.due, self.asked) = (None, false, true);
    }

    /// It is answered, or was given up.
    pub fn ended(&mut self) {
        (self.due, self.asked) = (false, false);
    }

    /// There is nobody to look for.
    pub fn stop(&mut self) {
        (self.at, self.due, self.asked) = (None, false, false);
    }

    /// Whether a look is to be sent.
    pub fn is_due(&self) -> bool {
        self.due
    }

    /// Whether one is sent and not answered.
    pub fn is_asked(&self) -> bool {
        self.asked
    }

    /// When to call [`tick`](Self::tick).
    pub fn deadline(&self) -> Option<Duration> {
        match (self.unwatched, self.anyway) {
            (false, _) => self.at,
            (true, true) => Some(self.at?.saturating_add(RARER)),
            (true, false) => None,
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        if self.deadline().is_some_and(|at| at <= now) {
            (self.at, self.due) = (None, true);
        }
    }

    /// The VM goes on after it `slept`.
    pub fn resumed(&mut self, now: Duration, slept: Duration) {
        if let Some(at) = &mut self.at {
            *at = moved(*at, now.saturating_add(EVERY), slept);
        }
    }
}
