// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A batch: the commands that a nest without a way in runs one after the other.
//!
//! ```text
//!  cargo xtask ── plan, in the initial RAM disk ──► agent in the nest (L1)
//!       ▲                                             │ one command at a time
//!       └──── lines over the second serial port ──────┘
//!
//!  @A 0 hello FACTS    the nest is up
//!  @A 0 beat N         it lives; twice a second of its own time
//!  @A ID start -       command ID begins
//!  @A ID out DATA      a piece of its output (`err`: of its standard error)
//!  @A ID exit STATUS   it has ended; 124 if it took too long
//!  @A 0 bye            all have ended, everything was said
//! ```
//!
//! They are the lines of [`mod@crate::line`], so each has a checksum. A nest that
//! ends without `bye` has not ended well.

use std::fmt::Write as _;

use crate::line::Line;

/// Where the plan is in the initial RAM disk.
pub const PLAN: &str = "/batch/plan";

/// The status of a command that did not end in time, as of `timeout(1)`.
pub const TOO_LONG: u32 = 124;

/// What is to be run, and with what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Variables of the commands' environment.
    pub env: Vec<(String, String)>,
    /// The commands, in their order.
    pub commands: Vec<Command>,
}

/// One command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Its number, not 0.
    pub id: u32,
    /// Seconds of the nest's time after which it counts as hung.
    pub limit: u64,
    /// The program and its arguments.
    pub argv: Vec<String>,
}

/// Why a plan cannot be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Words are separated by blanks, and an empty one is none.
    #[error("batch plan: {0:?} is empty or has a blank in it")]
    Word(String),
    /// A line that is none of ours.
    #[error("batch plan: {0:?} is not `env NAME VALUE` or `run ID LIMIT WORD…`")]
    Line(String),
}

impl Plan {
    /// As text: `env NAME VALUE` and `run ID LIMIT WORD…`, one a line.
    pub fn encode(&self) -> Result<String, PlanError> {
        let mut text = String::new();
        for (name, value) in &self.env {
            let _ = writeln!(text, "env {} {}", word(name)?, word(value)?);
        }
        for command in &self.commands {
            let _ = write!(text, "run {} {}", command.id, command.limit);
            for arg in &command.argv {
                let _ = write!(text, " {}", word(arg)?);
            }
            text.push('\n');
        }
        Ok(text)
    }

    /// What [`Plan::encode`] wrote.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        let mut plan = Self::default();
        for line in text.lines() {
            plan.take(line)
                .ok_or_else(|| PlanError::Line(line.to_owned()))?;
        }
        Ok(plan)
    }

    fn take(&mut self, line: &str) -> Option<()> {
        let mut words = line.split(' ');
        match words.next()? {
            "env" => {
                let pair = (words.next()?.to_owned(), words.next()?.to_owned());
                self.env.push(pair);
                words.next().is_none().then_some(())
            }
            "run" => {
                let id = words.next()?.parse().ok().filter(|id| *id != 0)?;
                let limit = words.next()?.parse().ok()?;
                let argv: Vec<String> = words.map(str::to_owned).collect();
                self.commands.push(Command { id, limit, argv });
                (!self.commands.last()?.argv.is_empty()).then_some(())
            }
            _ => None,
        }
    }
}

fn word(text: &str) -> Result<&str, PlanError> {
    let bad = text.is_empty() || text.contains(char::is_whitespace);
    (!bad)
        .then_some(text)
        .ok_or_else(|| PlanError::Word(text.to_owned()))
}

/// What the nest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It is up; facts about it.
    Hello(String),
    /// It lives.
    Beat,
    /// A command begins.
    Start(u32),
    /// A piece of a command's output, of whichever kind.
    Output(u32, Vec<u8>),
    /// A command has ended.
    Exit(u32, u32),
    /// All have ended.
    Bye,
}

impl Said {
    /// Reads one line of the port; an error says what is wrong with it.
    ///
    /// Nothing else is written there, so a line that is not one of these was
    /// damaged.
    pub fn parse(text: &str) -> Result<Self, String> {
        let line = match Line::parse(text, 'A') {
            Some(Ok(line)) => line,
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err(format!("console line damaged: {text:?}")),
        };
        let number = || String::from_utf8_lossy(&line.data).parse().ok();
        let said = match (line.word.as_str(), line.id) {
            ("hello", 0) => Some(Self::Hello(
                String::from_utf8_lossy(&line.data).into_owned(),
            )),
            ("beat", 0) => Some(Self::Beat),
            ("bye", 0) => Some(Self::Bye),
            ("start", id) if id != 0 => Some(Self::Start(id)),
            ("out" | "err", id) if id != 0 => Some(Self::Output(id, line.data.clone())),
            ("exit", id) if id != 0 => number().map(|status| Self::Exit(id, status)),
            _ => None,
        };
        said.ok_or_else(|| {
            format!(
                "the nest's agent said {:?} of command {}",
                line.word, line.id
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_as_it_was_written() {
        let plan = Plan {
            env: vec![("XTASK_CACHE".to_owned(), "/batch/cache".to_owned())],
            commands: vec![Command {
                id: 7,
                limit: 240,
                argv: ["/batch/bin/guest-suite", "run", "boot"]
                    .map(str::to_owned)
                    .to_vec(),
            }],
        };
        let text = plan.encode().unwrap();
        assert_eq!(
            text,
            "env XTASK_CACHE /batch/cache\nrun 7 240 /batch/bin/guest-suite run boot\n"
        );
        assert_eq!(Plan::parse(&text), Ok(plan));
    }

    #[test]
    fn what_would_be_read_as_something_else_is_not_written() {
        for bad in ["", "a b", "a\nrun"] {
            let plan = Plan {
                env: vec![("NAME".to_owned(), bad.to_owned())],
                commands: Vec::new(),
            };
            assert_eq!(plan.encode(), Err(PlanError::Word(bad.to_owned())));
        }
    }

    #[test]
    fn a_line_that_is_no_plan_is_named() {
        for bad in [
            "ran 1 2 x",
            "run 0 2 x",
            "run 1 2",
            "run 1 x",
            "env A B C",
            "",
        ] {
            let text = format!("env A B\n{bad}\n");
            assert_eq!(
                Plan::parse(&text),
                Err(PlanError::Line(bad.to_owned())),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn what_the_nest_says_is_told_apart() {
        let parse =
            |id, word: &str, data: &[u8]| Said::parse(&Line::answer(id, word, data).encode());
        assert_eq!(parse(0, "hello", b"x"), Ok(Said::Hello("x".to_owned())));
        assert_eq!(parse(0, "beat", b"3"), Ok(Said::Beat));
        assert_eq!(parse(3, "start", b""), Ok(Said::Start(3)));
        assert_eq!(parse(3, "err", b"\xff"), Ok(Said::Output(3, vec![255])));
        assert_eq!(parse(3, "exit", b"124"), Ok(Said::Exit(3, 124)));
        assert_eq!(parse(0, "bye", b""), Ok(Said::Bye));
        parse(0, "exit", b"0").unwrap_err();
        parse(3, "exit", b"none").unwrap_err();
        parse(3, "sing", b"").unwrap_err();
    }

    #[test]
    fn a_line_that_lost_a_byte_says_nothing_else() {
        let line = Line::answer(3, "exit", b"1").encode();
        for at in 0..line.trim_end().len() {
            let mut cut = line.clone();
            cut.remove(at);
            match Said::parse(&cut) {
                Err(error) => assert!(error.contains("damaged"), "{at}: {error}"),
                // A zero in front of the checksum.
                Ok(said) => assert_eq!(said, Said::Exit(3, 1), "{at}"),
            }
        }
    }
}
