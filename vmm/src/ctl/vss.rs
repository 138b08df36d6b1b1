// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl vss`: freezing a guest's file systems, by hand or around a command.
//!
//! ```text
//!   run: freeze ─► CMD ─► thaw ─► was it frozen all the time?
//!                   └─ a signal: CMD is ended, thaw all the same
//! ```
//! If this program dies, the guest thaws at the deadline that every freeze has.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args as ClapArgs, Subcommand};
use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::client::Client;
use super::commands::print;
use super::{CtlError, tell};
use crate::api::data::FreezeBody;
use crate::cli::duration;

/// Between two looks at the command and at signals.
const LOOK: Duration = Duration::from_millis(20);
/// An answer to a thaw comes within 35 s, whatever the guest does.
const THAW_LIMIT: Duration = Duration::from_secs(40);
/// A command that was told to end has so long to do it.
const GRACE: Duration = Duration::from_secs(2);

/// `vmmctl vss`.
#[derive(Debug, Subcommand)]
pub enum Vss {
    /// Freeze the file systems
    Freeze {
        /// They thaw by themselves after this long
        #[arg(long, value_name = "DUR", default_value = "10s", value_parser = duration)]
        max: Duration,
    },
    /// Thaw them
    Thaw,
    /// Whether the guest can freeze them
    Check,
    /// What is known of them
    Status,
    /// Freeze them while a command runs, and thaw them whatever happens
    Run(Run),
}

/// `vmmctl vss run`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Run {
    /// They thaw by themselves after this long
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = duration)]
    max: Duration,
    /// The command
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Runs `vmmctl vss`.
pub fn run(vm: &Client, what: &Vss, json: bool) -> Result<(), CtlError> {
    match what {
        Vss::Freeze { max } => {
            let done = freeze(vm, *max)?;
            print(json, &done, || {
                Ok(format!(
                    "frozen; thaws by itself in {} s\n",
                    max.as_secs_f64()
                ))
            })
        }
        Vss::Thaw => {
            let done = thaw(vm)?;
            print(json, &done, || {
                Ok(if was_frozen(&done) {
                    "thawed\n".into()
                } else {
                    "thawed; it was not frozen, or not any more\n".into()
                })
            })
        }
        Vss::Check => {
            let done = vm.send("POST", "/v1/vss/check", &json!({}))?;
            print(json, &done, || Ok("the guest can freeze\n".into()))
        }
        Vss::Status => {
            let state = vm.get("/v1/vss")?;
            print(json, &state, || {
                let word = state["filesystems"].as_str().unwrap_or("unknown");
                Ok(match state["thawed_in_ms"].as_u64() {
                    Some(0) if state["paused"] == true => {
                        format!("{word}; thaws as soon as the VM goes on (vmmctl resume)\n")
                    }
                    Some(ms) => {
                        let left = Duration::from_millis(ms).as_secs_f64();
                        format!("{word}; thaws by itself in {left:.1} s\n")
                    }
                    None => format!("{word}\n"),
                })
            })
        }
        Vss::Run(how) => around(vm, how),
    }
}

fn freeze(vm: &Client, max: Duration) -> Result<Value, CtlError> {
    let max_ms = u64::try_from(max.as_millis()).unwrap_or(u64::MAX);
    // The answer comes at the deadline at the latest, whatever the guest does.
    vm.until(Instant::now() + max + GRACE)
        .send("POST", "/v1/vss/freeze", &FreezeBody { max_ms })
}

fn thaw(vm: &Client) -> Result<Value, CtlError> {
    vm.until(Instant::now() + THAW_LIMIT)
        .send("POST", "/v1/vss/thaw", &json!({}))
}

fn was_frozen(thawed: &Value) -> bool {
    thawed["was_frozen"] == true
}

fn around(vm: &Client, how: &Run) -> Result<(), CtlError> {
    let stop = Arc::new(AtomicBool::new(false));
    // From before the freeze on: what ends us has to thaw first.
    for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    freeze(vm, how.max).inspect_err(|error| {
        // Unless it is somebody else's: whether the guest did freeze may be open.
        if !matches!(error, CtlError::Api(error) if error.code == "busy") {
            let _ = thaw(vm);
        }
    })?;
    let status = if stop.load(Ordering::Relaxed) {
        Err(io::ErrorKind::Interrupted.into())
    } else {
        command(&how.command, &stop)
    };
    let thawed = thaw(vm).inspect_err(|error| {
        // What has become of the command is told first.
        if let Ok(status) = &status {
            tell(format_args!("the command has ended: {status}"));
        }
        log::debug!("thawing: {error}");
    });
    let status = status?;
    if !was_frozen(&thawed?) {
        return Err(CtlError::Some(format!(
            "the file systems were thawed before the command ended: its time was up after {} s",
            how.max.as_secs_f64()
        )));
    }
    if stop.load(Ordering::Relaxed) {
        return Err(CtlError::Some("interrupted".into()));
    }
    match status.code().or_else(|| Some(128 + status.signal()?)) {
        Some(0) => Ok(()),
        code => Err(CtlError::Command(
            code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
        )),
    }
}

fn command(words: &[String], stop: &AtomicBool) -> io::Result<ExitStatus> {
    let (program, args) = words
        .split_first()
        .ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut child = Command::new(program).args(args).spawn().inspect_err(|_| {
        tell(format_args!("cannot run {program}"));
    })?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if stop.load(Ordering::Relaxed) {
            return end(&mut child);
        }
        thread::sleep(LOOK);
    }
}

/// Ctrl-C has reached it too; whatever else ends us has not.
fn end(child: &mut Child) -> io::Result<ExitStatus> {
    let looks = GRACE.as_millis() / LOOK.as_millis();
    for _ in 0..looks {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        thread::sleep(LOOK);
    }
    child.kill()?;
    child.wait()
}
