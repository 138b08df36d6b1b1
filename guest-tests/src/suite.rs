// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest test is made of: a case, its surroundings, a running `vmm`.
//!
//! ```text
//!  Case::run(&Context) ─► Setup::launch ─► Vm ── serial console ── agent
//!                                           ├── exit code, standard error
//!                                           └── event log
//!                           Control ── vmmctl, API
//! ```

pub mod clock;
pub mod console;
pub mod control;
pub mod seccomp;
pub mod vm;

use std::path::PathBuf;

use crate::error::HarnessError;
use crate::kernels::Kernel;
pub use control::{Control, Ran};
pub use vm::{Setup, Shell, Vm};

/// Why a case failed: a sentence with what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

/// How a case ends.
pub type Outcome<T = ()> = Result<T, Failure>;

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(error: rustix::io::Errno) -> Self {
        Self(error.to_string())
    }
}

impl From<HarnessError> for Failure {
    fn from(error: HarnessError) -> Self {
        Self(error.to_string())
    }
}

/// Fails the case with a message unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        match $condition {
            true => {}
            false => return Err($crate::suite::Failure(format!($($message)+))),
        }
    };
}

/// With what a case is run.
#[derive(Debug)]
pub struct Context {
    /// The kernel's name.
    pub kernel: String,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// The ELF file in it.
    pub vmlinux: PathBuf,
    /// What `uname -r` says.
    pub release: String,
    /// The initial RAM disk with our agent.
    pub initramfs: PathBuf,
    /// The program under test.
    pub vmm: PathBuf,
    /// How many vCPUs.
    pub cpus: u32,
    /// `kernel` or `user`, if it is not left to `vmm`.
    pub synic: Option<String>,
    /// Where the case may write; its logs stay here.
    pub dir: PathBuf,
    /// Run things as often as it takes to find what is rare.
    pub long: bool,
    /// How long the case `api-fuzz` takes.
    pub minutes: u64,
}

impl Context {
    /// Takes kernel and image from the cache, where the runner put them.
    pub fn new(kernel: &Kernel, initramfs: PathBuf, vmm: PathBuf, dir: PathBuf) -> Self {
        Self {
            kernel: kernel.name.clone(),
            vmlinuz: kernel.vmlinuz(),
            vmlinux: kernel.vmlinux_path(),
            release: kernel.release.clone(),
            initramfs,
            vmm,
            cpus: 2,
            synic: None,
            dir,
            long: false,
            minutes: 1,
        }
    }

    /// A machine with this kernel, its image and 512 MiB.
    pub fn setup(&self) -> Setup<'_> {
        Setup::new(self)
    }

    /// How often to do something: usually, and with `--long`.
    pub fn times(&self, usually: u64, long: u64) -> u64 {
        if self.long { long } else { usually }
    }

    /// Linux' version as numbers that compare, such as (6, 12).
    pub fn version(&self) -> (u32, u32) {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next().and_then(|n| n.parse().ok()).unwrap_or(0);
        (next(), next())
    }
}

/// With which kernels a case says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// With each.
    All,
    /// With the default one: it is about `vmm`, not about the kernel.
    One,
}

/// With whose SynIC a case says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synics {
    /// `vmm` may choose.
    Any,
    /// KVM's and ours.
    Both,
    /// Both where everything is tested, otherwise what `vmm` chooses.
    BothInFull,
}

/// A guest test.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// What it proves.
    pub about: &'static str,
    /// With which kernels.
    pub kernels: Kernels,
    /// With how many vCPUs each.
    pub cpus: &'static [u32],
    /// With whose SynIC.
    pub synics: Synics,
    /// Seconds after which it counts as hung.
    pub limit: u64,
    /// The test.
    pub run: fn(&Context) -> Outcome,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Case {
    /// A case for every kernel with 2 vCPUs.
    pub const fn new(
        name: &'static str,
        about: &'static str,
        run: fn(&Context) -> Outcome,
    ) -> Self {
        Self {
            name,
            about,
            kernels: Kernels::All,
            cpus: &[2],
            synics: Synics::Any,
            limit: 240,
            run,
        }
    }

    /// Only with the default kernel.
    #[must_use]
    pub const fn once(mut self) -> Self {
        self.kernels = Kernels::One;
        self
    }

    /// With so many vCPUs.
    #[must_use]
    pub const fn with_cpus(mut self, cpus: &'static [u32]) -> Self {
        self.cpus = cpus;
        self
    }

    /// With KVM's SynIC, and with ours.
    #[must_use]
    pub const fn with_both_synics(mut self) -> Self {
        self.synics = Synics::Both;
        self
    }

    /// With both, but with one when time is short.
    #[must_use]
    pub const fn with_both_synics_in_full(mut self) -> Self {
        self.synics = Synics::BothInFull;
        self
    }

    /// A slow one.
    #[must_use]
    pub const fn within(mut self, seconds: u64) -> Self {
        self.limit = seconds;
        self
    }
}
