// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl`: the control API for people and scripts.

mod bar;
pub mod cli;
pub mod client;
pub mod commands;
pub mod connect;
pub mod cp;
pub mod fetch;
pub mod forward;
pub mod hvsocket;
pub mod kvp;
mod list;
mod running;
mod show;
mod shutdown;
pub mod ssh;
mod ssh_guard;
pub mod tar;
pub mod tree;
pub mod vss;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::cli::exit;
use crate::escape;

/// `wait` ends with this when its time is over.
pub const EXIT_TIMEOUT: u8 = 3;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// No VM, or none of that name.
    #[error("{0}")]
    NoVm(String),
    /// Not one only.
    #[error("{0}")]
    WhichVm(String),
    /// The VM cannot be reached.
    #[error("cannot reach the VM at {path}: {reason}")]
    Connect {
        /// Its socket.
        path: String,
        /// Why.
        reason: String,
    },
    /// The VM's answer is none.
    #[error("the VM's answer makes no sense: {0}")]
    Protocol(String),
    /// The VM says no.
    #[error("{} ({}, layer {})", .0.message, .0.code, .0.layer)]
    Api(#[from] crate::api::types::ApiError),
    /// The guest, or what is between, does not take a connection.
    #[error("{0}")]
    Refused(String),
    /// The arguments make no sense together.
    #[error("{0} (see vmmctl --help)")]
    Usage(String),
    /// What was waited for has not come.
    #[error("{0}")]
    Timeout(String),
    /// A command that was run, and that has spoken for itself.
    #[error("the command ended with {0}")]
    Command(u8),
    /// Some of several things failed, and each was told.
    #[error("{0}")]
    Some(String),
    /// A file or stream of the user's.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl CtlError {
    /// The exit code that tells it.
    pub fn code(&self) -> ExitCode {
        match self {
            // Several VMs and none named is a mistake of the command line's too.
            Self::Usage(_) | Self::WhichVm(_) => exit::USAGE.into(),
            Self::Timeout(_) => EXIT_TIMEOUT.into(),
            Self::Command(code) => (*code).into(),
            _ => ExitCode::FAILURE,
        }
    }
}

/// Tells the user something, on a line of standard error. There may be a stranger's
/// words in it: of a guest, of a file's name, of whoever answers at a socket.
pub fn tell(text: impl Display) {
    // Where it cannot be written, there is nobody to tell that.
    let _ = writeln!(io::stderr(), "vmmctl: {}", escape::line(text.to_string()));
}
