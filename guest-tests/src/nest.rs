// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The nest: an emulated machine in which VMs can run.
//!
//! ```text
//!  cargo xtask ── QEMU (TCG) ── L1: stock Linux, kvm-amd, our agent ── vmm ── guest
//!       │  frames over virtio-serial │
//!       └──── files over 9p ─────────┘
//! ```
//!
//! It has this machine's files, read-only and under the same paths, and one
//! scratch directory that is writable. It runs any number of commands at once.
//! An emulated machine can lock up, so it is watched: see [`watch`]. There is a
//! second one with an Intel CPU, see [`intel`].

pub mod intel;
mod link;
mod patch;
mod qemu;
mod session;
pub mod watch;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest_agent::job::Spec;

use crate::error::{HarnessError, Result};
use crate::image::Image;
use crate::paths;
use crate::progress::say;
use link::Link;
pub use qemu::at_once;
pub use session::{Event, Session};

/// How a nest is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory that is writable in it.
    pub scratch: PathBuf,
    /// One nanosecond is one instruction: slow, and its times repeat.
    pub icount: bool,
    /// How many CPUs it has.
    pub cpus: u32,
}

impl Options {
    /// One CPU, real time, the usual scratch directory. With several CPUs the
    /// emulation is multi-threaded, and that corrupts guests.
    pub fn usual() -> Result<Self> {
        Ok(Self {
            scratch: paths::scratch()?,
            icount: false,
            cpus: 1,
        })
    }
}

/// A running nest. Dropping it ends it.
#[derive(Debug)]
pub struct Nest {
    link: Link,
    about: String,
    scratch: PathBuf,
    icount: bool,
}

/// How a command in the nest ended, and what it said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// 128 + n if signal n ended it.
    pub status: u32,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
}

/// The status of a command that did not end in time, as of `timeout(1)`.
pub const TOO_LONG: u32 = 124;

/// How long the nest may take to come up.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// So much slower deterministic time may be.
const ICOUNT: u32 = 4;

impl Nest {
    /// Builds what it takes, starts it, and waits until it is up.
    ///
    /// The emulator has a rare race of its own while the machine's firmware
    /// sets up the devices, so a start that fails is tried once more.
    pub fn start(options: &Options) -> Result<Self> {
        let image = Image::nest()?;
        let qemu = patch::qemu()?;
        Self::try_start(&qemu, &image, options).or_else(|error| {
            say(format_args!("{error}; once more"));
            Self::try_start(&qemu, &image, options)
        })
    }

    fn try_start(qemu: &Path, image: &Image, options: &Options) -> Result<Self> {
        let process = qemu::launch(qemu, image, options)?;
        let link = Link::start(process, options.icount)?;
        let times = if options.icount { ICOUNT } else { 1 };
        let about = link.wait_until_up(Instant::now() + BOOT_LIMIT * times)?;
        Ok(Self {
            link,
            about,
            scratch: options.scratch.clone(),
            icount: options.icount,
        })
    }

    /// The machine's own words about itself.
    pub fn about(&self) -> &str {
        &self.about
    }

    /// A command for the nest, in this process' directory and environment.
    pub fn spec(&self, argv: Vec<OsString>) -> Spec {
        let mut env: Vec<(OsString, OsString)> = std::env::vars_os().collect();
        env.retain(|(name, _)| name != "XTASK_SCRATCH" && name != "TMPDIR");
        env.push(("XTASK_SCRATCH".into(), self.scratch.clone().into()));
        env.push(("XTASK_PLACE".into(), "nest".into()));
        if self.icount {
            env.push(("XTASK_ICOUNT".into(), "1".into()));
        }
        env.push(("XTASK_RUN".into(), std::process::id().to_string().into()));
        Spec {
            argv,
            env,
            cwd: std::env::current_dir()
                .unwrap_or_else(|_| "/".into())
                .into(),
            terminal: None,
        }
    }

    /// Starts a command; its events come through the session.
    pub fn spawn(&self, spec: &Spec) -> Result<Session<'_>> {
        Session::start(&self.link, spec)
    }

    /// Runs a command to its end, without input. After `limit` it is left
    /// running and its status is [`TOO_LONG`].
    pub fn run(&self, spec: &Spec, limit: Duration) -> Result<Exit> {
        let mut session = self.spawn(spec)?;
        session.end_input()?;
        let deadline = Instant::now() + limit;
        let mut exit = Exit::default();
        loop {
            match session.next(deadline.saturating_duration_since(Instant::now()))? {
                Some(Event::Stdout(data)) => exit.stdout.extend_from_slice(&data),
                Some(Event::Stderr(data)) => exit.stderr.extend_from_slice(&data),
                Some(Event::Exit(status)) => {
                    exit.status = status;
                    return Ok(exit);
                }
                None if Instant::now() >= deadline => {
                    exit.status = TOO_LONG;
                    let why = format!("no end after {} s\n", limit.as_secs());
                    exit.stderr.extend_from_slice(why.as_bytes());
                    return Ok(exit);
                }
                None => {}
            }
        }
    }

    /// An error about this nest that says what is running in it.
    pub fn hung(&self, why: String) -> HarnessError {
        self.link.hung(why)
    }

    /// Lets it write everything back, then ends it.
    pub fn stop(self) {
        self.link.stop();
    }
}
