// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a batch has come to, from the lines that the nest says.
//!
//! ```text
//!  waiting ─hello─► up ─start─► running ─exit─► up … ─bye─► ended
//! ```
//!
//! The commands begin and end in the plan's order. Anything else is the nest's
//! fault, and so is a line that was damaged.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use guest_agent::batch::Said;

/// Reads what is new in the second serial port's log.
#[derive(Debug)]
pub(super) struct Port {
    path: PathBuf,
    file: Option<File>,
    unfinished: Vec<u8>,
}

impl Port {
    /// Of a log which need not exist yet.
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            file: None,
            unfinished: Vec::new(),
        }
    }

    /// The whole lines that have come since.
    pub(super) fn lines(&mut self) -> Vec<String> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        if let Some(file) = &mut self.file {
            // What cannot be read now comes the next time, or is missed as silence.
            let _ = file.read_to_end(&mut self.unfinished);
        }
        let Some(end) = self.unfinished.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.unfinished.split_off(end + 1);
        let whole = std::mem::replace(&mut self.unfinished, rest);
        let text = String::from_utf8_lossy(&whole);
        text.lines().map(str::to_owned).collect()
    }
}

/// What a line means for who waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The nest is up; facts about it.
    Up(String),
    /// A command begins.
    Started,
    /// A command, by its place in the plan, has ended with this status, and said this.
    Ended(usize, u32, String),
    /// The batch is over.
    Bye,
}

/// How far the batch is.
#[derive(Debug)]
pub(super) struct Progress {
    ids: Vec<u32>,
    ended: usize,
    up: bool,
    running: bool,
    output: Vec<u8>,
}

impl Progress {
    /// Of commands with these numbers.
    pub(super) fn new(ids: Vec<u32>) -> Self {
        Self {
            ids,
            ended: 0,
            up: false,
            running: false,
            output: Vec::new(),
        }
    }

    /// Whether the nest has said anything.
    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    /// How many have ended.
    pub(super) fn ended(&self) -> usize {
        self.ended
    }

    /// The place of the one that is running.
    pub(super) fn running(&self) -> Option<usize> {
        self.running.then_some(self.ended)
    }

    /// What the running one has said so far.
    pub(super) fn output(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }

    /// Takes a line; an error says why the nest is of no use any more.
    pub(super) fn take(&mut self, line: &str) -> Result<Option<Step>, String> {
        let said = Said::parse(line)?;
        let expected = self.ids.get(self.ended).copied();
        match said {
            Said::Hello(facts) if !self.up => {
                self.up = true;
                Ok(Some(Step::Up(facts)))
            }
            Said::Beat if self.up => Ok(None),
            Said::Start(id) if self.up && !self.running && expected == Some(id) => {
                self.running = true;
                Ok(Some(Step::Started))
            }
            Said::Output(id, data) if self.running && expected == Some(id) => {
                self.output.extend_from_slice(&data);
                Ok(None)
            }
            Said::Exit(id, status) if self.running && expected == Some(id) => {
                let output = self.output();
                self.output.clear();
                self.running = false;
                self.ended += 1;
                Ok(Some(Step::Ended(self.ended - 1, status, output)))
            }
            // Of a process that a command has left behind.
            Said::Output(id, _) if self.ids.iter().take(self.ended).any(|old| *old == id) => {
                Ok(None)
            }
            Said::Bye if self.up && expected.is_none() => Ok(Some(Step::Bye)),
            said => Err(format!("the nest's agent is out of order: {said:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use guest_agent::line::Line;

    use super::*;

    fn say(progress: &mut Progress, id: u32, word: &str, data: &str) -> Option<Step> {
        let line = Line::answer(id, word, data.as_bytes()).encode();
        progress.take(line.trim_end()).unwrap()
    }

    #[test]
    fn commands_end_in_the_plans_order_each_with_its_own_output() {
        let mut progress = Progress::new(vec![4, 9]);
        assert_eq!(
            say(&mut progress, 0, "hello", "Linux"),
            Some(Step::Up("Linux".to_owned()))
        );
        assert_eq!(progress.running(), None);
        assert_eq!(say(&mut progress, 4, "start", ""), Some(Step::Started));
        assert_eq!(progress.running(), Some(0));
        assert_eq!(say(&mut progress, 4, "out", "a"), None);
        assert_eq!(say(&mut progress, 0, "beat", "1"), None);
        assert_eq!(say(&mut progress, 4, "err", "b"), None);
        let ended = Step::Ended(0, 1, "ab".to_owned());
        assert_eq!(say(&mut progress, 4, "exit", "1"), Some(ended));
        assert_eq!(say(&mut progress, 4, "out", "late"), None);
        say(&mut progress, 9, "start", "");
        let ended = Step::Ended(1, 0, String::new());
        assert_eq!(say(&mut progress, 9, "exit", "0"), Some(ended));
        assert_eq!(say(&mut progress, 0, "bye", ""), Some(Step::Bye));
    }

    #[test]
    fn what_comes_out_of_order_is_an_error() {
        let mut progress = Progress::new(vec![4, 9]);
        let mut bad = |id, word: &str, data: &str| {
            let line = Line::answer(id, word, data.as_bytes()).encode();
            progress.take(line.trim_end()).unwrap_err();
        };
        bad(4, "start", ""); // before hello
        bad(0, "bye", "");
        let mut progress = Progress::new(vec![4, 9]);
        say(&mut progress, 0, "hello", "");
        for (id, word) in [
            (9, "start"),
            (4, "exit"),
            (4, "out"),
            (0, "bye"),
            (0, "hello"),
        ] {
            let line = Line::answer(id, word, b"0").encode();
            let error = progress.take(line.trim_end()).unwrap_err();
            assert!(error.contains("out of order"), "{error}");
        }
    }

    #[test]
    fn a_damaged_line_is_not_passed_over() {
        let mut progress = Progress::new(vec![4]);
        let line = Line::answer(0, "hello", b"Linux").encode();
        let error = progress.take(&line[1..]).unwrap_err();
        assert!(error.contains("damaged"), "{error}");
    }

    #[test]
    fn lines_are_read_when_they_are_whole() {
        let path = std::env::temp_dir().join(format!("port-{}", std::process::id()));
        let mut port = Port::new(&path);
        assert!(port.lines().is_empty());
        let mut log = File::create(&path).unwrap();
        log.write_all(b"one\r\ntwo").unwrap();
        assert_eq!(port.lines(), ["one"]);
        assert!(port.lines().is_empty());
        log.write_all(b"\nthr").unwrap();
        assert_eq!(port.lines(), ["two"]);
        fs::remove_file(&path).unwrap();
    }
}
