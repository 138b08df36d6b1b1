// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `XTASK_SECCOMP=log cargo xtask test`: every `vmm` is started with
//! `--seccomp log`, and a case in which a thread made a system call that its
//! filter does not know has failed.
//!
//! Such calls are in the log of the machine that `vmm` runs on, which in the
//! nest is ours to read.

use std::collections::HashSet;
use std::process::Command;
use std::time::Duration;

use super::Outcome;
use crate::ensure;

/// How the kernel's audit names what a filter has seen.
const MARK: &str = "type=1326";

/// What `--seccomp` is to be, if not the default.
pub fn wish() -> Option<String> {
    std::env::var("XTASK_SECCOMP").ok()
}

/// The kernel's log, and what was in it before.
#[derive(Debug)]
pub struct KernelLog {
    before: HashSet<String>,
}

impl KernelLog {
    /// From now on.
    pub fn mark() -> Self {
        let before = match wish() {
            Some(_) => lines().into_iter().collect(),
            None => HashSet::new(),
        };
        Self { before }
    }

    /// No call of a `vmm` was logged since.
    pub fn expect_nothing(&self) -> Outcome {
        if wish().is_none() {
            return Ok(());
        }
        // The kernel writes it down a moment later.
        std::thread::sleep(Duration::from_millis(200));
        let mut new = lines();
        new.retain(|line| !self.before.contains(line));
        ensure!(
            new.is_empty(),
            "calls that no filter knows:\n{}",
            new.join("\n")
        );
        Ok(())
    }
}

/// The log's lines about calls of `vmm`'s.
fn lines() -> Vec<String> {
    let Ok(output) = Command::new("dmesg").output() else {
        return vec!["dmesg: cannot be run".into()];
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let ours = |line: &&str| line.contains(MARK) && line.contains("/vmm\"");
    text.lines().filter(ours).map(str::to_owned).collect()
}
