// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Questions about the state of things, and who watches it.
//!
//! An idle guest is left alone: whether its daemons are there is looked at only
//! while somebody wants to know, or, once a minute, where it has items to lose. Who
//! follows the events wants to, and who has asked lately. The first question in a
//! while waits for what the looks say, since what is known may be old:
//!
//! ```text
//!  question ─► watched? ── yes ─► answered
//!                  └─ no ─► looks ── answers, or GRACE ─► answered
//! ```

use std::time::Duration;

use crate::api::Reply;
use crate::api::types::VmStatus;
use crate::audience::Audience;

/// Who has asked is likely to ask again.
const ATTENTION: Duration = Duration::from_secs(10);
/// A daemon that is not there is known by what it has not read within 1.5 s.
const GRACE: Duration = Duration::from_secs(2);

/// Questions that wait for looks. More are answered with what is known: a client
/// that goes away leaves its question, and makes room for another client.
const MAX_OPEN: usize = 64;

/// What is asked about the state of things.
#[derive(Debug)]
pub enum Question {
    /// The VM's status, of which this much is known, and whether it is worth a look.
    Status(Box<VmStatus>, bool),
    /// The list of services.
    Services,
}

/// Questions that are not answered, and what they make of watching.
#[derive(Debug)]
pub(super) struct Asked {
    audience: Audience,
    open: Vec<(Question, Reply)>,
    answer_by: Duration,
    /// Until when somebody who has asked counts as watching.
    attention: Option<Duration>,
    watched: bool,
}

impl Asked {
    /// Nothing is asked, and nobody but `audience` watches.
    pub(super) fn new(audience: Audience) -> Self {
        Self {
            audience,
            open: Vec::new(),
            answer_by: Duration::ZERO,
            attention: None,
            watched: true,
        }
    }

    /// Takes a question, unless it is to be answered with what is known.
    pub(super) fn ask(
        &mut self,
        now: Duration,
        question: Question,
        reply: Reply,
    ) -> Option<(Question, Reply)> {
        if matches!(question, Question::Status(_, false)) || self.open.len() >= MAX_OPEN {
            return Some((question, reply));
        }
        if !self.watched && self.open.is_empty() {
            self.answer_by = now.saturating_add(GRACE);
        }
        self.attention = Some(now.saturating_add(ATTENTION));
        self.open.push((question, reply));
        None
    }

    /// Whether somebody watches, if that has changed. The clock is not asked for
    /// nothing: streams pass here for each of their packets.
    pub(super) fn change(&mut self, now: impl FnOnce() -> Duration) -> Option<bool> {
        let followed = self.audience.count() > 0;
        if !followed && self.attention.is_some_and(|until| now() >= until) {
            self.attention = None;
        }
        let watched = followed || self.attention.is_some();
        (std::mem::replace(&mut self.watched, watched) != watched).then_some(watched)
    }

    /// The questions that are to be answered now; `looking` if more will be known
    /// soon.
    pub(super) fn take(&mut self, now: Duration, looking: bool) -> Vec<(Question, Reply)> {
        if looking && now < self.answer_by {
            return Vec::new();
        }
        std::mem::take(&mut self.open)
    }

    pub(super) fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// When questions are answered at the latest.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.is_open().then_some(self.answer_by)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crossbeam_channel::unbounded;
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn ask(asked: &mut Asked, now: Duration) -> bool {
        let bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let reply = Reply::new(0, unbounded().0, bell);
        asked.ask(now, Question::Services, reply).is_none()
    }

    #[test]
    fn the_first_question_waits_for_looks_and_later_ones_do_not() {
        let mut asked = Asked::new(Audience::default());
        assert_eq!(asked.change(|| secs(0)), Some(false));
        assert_eq!((asked.change(|| secs(1)), asked.deadline()), (None, None));
        ask(&mut asked, secs(100));
        assert_eq!(asked.change(|| secs(100)), Some(true));
        assert_eq!(asked.deadline(), Some(secs(102)));
        assert!(asked.take(secs(101), true).is_empty());
        assert_eq!(asked.take(secs(101), false).len(), 1);
        assert!(!asked.is_open());
        ask(&mut asked, secs(109));
        assert_eq!(asked.take(secs(109), true).len(), 1);
        assert_eq!(
            (asked.change(|| secs(118)), asked.change(|| secs(119))),
            (None, Some(false))
        );
    }

    #[test]
    fn a_guest_that_does_not_answer_holds_up_nobody_for_long() {
        let mut asked = Asked::new(Audience::default());
        asked.change(|| secs(0));
        ask(&mut asked, secs(5));
        assert!(asked.take(secs(6), true).is_empty());
        assert_eq!(asked.take(secs(7), true).len(), 1);
    }

    #[test]
    fn more_questions_than_there_is_room_for_are_answered_at_once() {
        let mut asked = Asked::new(Audience::default());
        asked.change(|| secs(0));
        for _ in 0..MAX_OPEN {
            assert!(ask(&mut asked, secs(5)));
        }
        assert!(!ask(&mut asked, secs(5)));
        assert_eq!(asked.take(secs(5), false).len(), MAX_OPEN);
        assert!(ask(&mut asked, secs(5)));
    }

    #[test]
    fn who_follows_the_events_watches() {
        let audience = Audience::default();
        let mut asked = Asked::new(audience.clone());
        asked.change(|| secs(0));
        let watcher = audience.join();
        assert_eq!(asked.change(|| secs(1)), Some(true));
        ask(&mut asked, secs(50));
        assert_eq!(asked.take(secs(50), true).len(), 1);
        drop(watcher);
        assert_eq!(
            (asked.change(|| secs(51)), asked.change(|| secs(60))),
            (None, Some(false))
        );
    }
}
