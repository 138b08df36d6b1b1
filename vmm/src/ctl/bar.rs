// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How far a copy is, on a terminal: one line on standard error, drawn again and
//! again.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::escape;

/// Between two changes of the bar.
const REDRAW: Duration = Duration::from_millis(100);
/// Characters of the bar.
const BAR: usize = 24;
/// Bytes of a name, as it is shown.
const NAME: usize = 32;

/// How far it is.
pub(super) struct Bar {
    visible: bool,
    /// How many there are, if that is known.
    files: Option<usize>,
    number: usize,
    name: String,
    size: u64,
    /// Of whole files.
    pub(super) bytes: u64,
    pub(super) start: Instant,
    drawn: Option<Instant>,
}

impl Bar {
    pub(super) fn new(files: Option<usize>, visible: bool) -> Self {
        Self {
            visible,
            files,
            number: 0,
            name: String::new(),
            size: 0,
            bytes: 0,
            start: Instant::now(),
            drawn: None,
        }
    }

    /// The next file begins.
    pub(super) fn next(&mut self, name: &[u8], size: u64) {
        self.number += 1;
        self.size = size;
        self.name = escape::line_within(name, NAME);
    }

    /// So many bytes of it are done.
    pub(super) fn at(&mut self, done: u64) {
        let due = self.drawn.is_none_or(|drawn| drawn.elapsed() >= REDRAW);
        if !self.visible || !due {
            return;
        }
        self.drawn = Some(Instant::now());
        // A write to a terminal that is gone is nobody's loss.
        let _ = write!(io::stderr(), "\r{}\x1b[K", self.line(done));
    }

    fn line(&self, done: u64) -> String {
        let part = |of: u64| done.saturating_mul(of).checked_div(self.size).unwrap_or(of);
        let full = usize::try_from(part(BAR as u64)).map_or(BAR, |full| full.min(BAR));
        let bar = "#".repeat(full) + &" ".repeat(BAR - full);
        let number = self.number;
        let many = match self.files {
            Some(1) => String::new(),
            Some(files) => format!("{number}/{files} "),
            None => format!("{number} "),
        };
        format!(
            "{many}{:<20} [{bar}] {:3}% {:.1} MB/s",
            self.name,
            part(100),
            self.rate(done)
        )
    }

    /// MB/s since the start. For people: a rounded number.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn rate(&self, more: u64) -> f64 {
        let seconds = self.start.elapsed().as_secs_f64().max(1e-6);
        self.bytes.saturating_add(more) as f64 / seconds / 1e6
    }

    /// What was done, as a sentence.
    pub(super) fn sum(&self, files: usize) -> String {
        let plural = if files == 1 { "" } else { "s" };
        format!(
            "{files} file{plural} copied, {} bytes in {:.1} s, {:.1} MB/s\n",
            self.bytes,
            self.start.elapsed().as_secs_f64(),
            self.rate(0)
        )
    }

    /// Takes it away, before something else is written.
    pub(super) fn clear(&mut self) {
        if self.visible && self.drawn.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_fills() {
        let mut bar = Bar::new(Some(2), false);
        bar.next(b"name\x1b", 200);
        let line = bar.line(100);
        assert!(line.starts_with("1/2 name\\u{1b} "), "{line}");
        assert!(line.contains("[############            ]  50%"), "{line}");
        bar.next(b"empty", 0);
        assert!(bar.line(0).contains("100%"));
        let mut bar = Bar::new(None, false);
        bar.next(b"a", 1);
        assert!(bar.line(0).starts_with("1 a "));
    }
}
