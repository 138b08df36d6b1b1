// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong, each named with the layer that failed.

use std::fmt::Display;
use std::io;
use std::process::{Command, Output};

/// A failure of the harness itself, not of a test.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// A system call on something named failed.
    #[error("{layer}: {what}: {source}")]
    Io {
        /// The part of the harness.
        layer: &'static str,
        /// The file or program.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Something else.
    #[error("{layer}: {message}")]
    Failed {
        /// The part of the harness.
        layer: &'static str,
        /// What and why.
        message: String,
    },
    /// A program is missing and can't be installed by us.
    #[error(
        "`{tool}` is needed ({why}) and not installed. As root, run: apt-get install -y --no-install-recommends {package}"
    )]
    MissingTool {
        /// The program.
        tool: String,
        /// What for.
        why: String,
        /// The package that has it.
        package: String,
    },
    /// The nest hung, or a command in it took too long.
    #[error("nest: {why}; running: {running}; console: {console}")]
    Hung {
        /// How it was noticed.
        why: String,
        /// The commands that were running.
        running: String,
        /// Where the machine's console was logged.
        console: String,
    },
}

/// The harness' result.
pub type Result<T> = std::result::Result<T, HarnessError>;

/// A failure with a message.
pub fn failed(layer: &'static str, message: impl Display) -> HarnessError {
    HarnessError::Failed {
        layer,
        message: message.to_string(),
    }
}

/// Names the thing that a system call failed on.
pub trait Context<T> {
    /// Adds the layer and the file's or program's name.
    fn context(self, layer: &'static str, what: impl Display) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, layer: &'static str, what: impl Display) -> Result<T> {
        self.map_err(|error| HarnessError::Io {
            layer,
            what: what.to_string(),
            source: error.into(),
        })
    }
}

/// Runs a program to its end and gives its standard output; anything but
/// status 0 is an error that shows what the program said.
pub fn output_of(layer: &'static str, command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().display().to_string();
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().context(layer, &name)?;
    if status.success() {
        return Ok(stdout);
    }
    let said = String::from_utf8_lossy(&stderr);
    let said: Vec<&str> = said.lines().rev().take(12).collect();
    let said: Vec<&str> = said.into_iter().rev().collect();
    Err(failed(
        layer,
        format!("{name}: {status}: {}", said.join("\n")),
    ))
}
