// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `XTASK_SECCOMP=log cargo xtask test`: every `vmm` is started with
//! `--seccomp log`, and a case in which a thread made a system call that its
//! filter does not know has failed.
//!
//! Such calls are in the log of the machine that `vmm` runs on, which in the
//! nest is ours to read. That they are noticed there is the case
//! `seccomp-noticed`: a program that stands in for `vmm` strays on purpose.

use std::collections::HashSet;
use std::process::Command;
use std::time::Duration;

use super::{Failure, Outcome};
use crate::ensure;

/// How the kernel's audit names what a filter has seen.
const MARK: &str = "type=1326";
/// And the program.
const PROGRAM: &str = "/vmm\"";
/// And the thread that strays on purpose.
const ON_PURPOSE: &str = "comm=\"stray\"";

/// What `--seccomp` is to be, if not the default.
pub fn wish() -> Option<String> {
    std::env::var("XTASK_SECCOMP").ok()
}

/// The kernel's log, and what was in it before.
#[derive(Debug)]
pub struct KernelLog {
    before: HashSet<String>,
    on_purpose: bool,
}

impl KernelLog {
    /// From now on, if it was wished for.
    pub fn mark() -> Outcome<Option<Self>> {
        wish().map(|_| Self::since_now(false)).transpose()
    }

    /// From now on, for what strays on purpose.
    pub fn mark_on_purpose() -> Outcome<Self> {
        Self::since_now(true)
    }

    fn since_now(on_purpose: bool) -> Outcome<Self> {
        let before = strays(&kernel_log()?, on_purpose).into_iter().collect();
        Ok(Self { before, on_purpose })
    }

    /// No call of a `vmm` was logged since.
    pub fn expect_nothing(&self) -> Outcome {
        // A thread of the kernel's writes it down, when it gets to run.
        std::thread::sleep(Duration::from_secs(1));
        let mut new = strays(&kernel_log()?, self.on_purpose);
        new.retain(|line| !self.before.contains(line));
        ensure!(
            new.is_empty(),
            "calls that no filter knows:\n{}",
            new.join("\n")
        );
        Ok(())
    }
}

/// An error where nobody may read it: then nothing would be noticed.
fn kernel_log() -> Outcome<String> {
    let output = Command::new("dmesg").output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "dmesg: {}", said.trim());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.is_empty() {
        return Err(Failure("dmesg says nothing at all".to_owned()));
    }
    Ok(text)
}

/// The log's lines about calls of `vmm`'s, those on purpose or the others.
fn strays(log: &str, on_purpose: bool) -> Vec<String> {
    let ours = |line: &&str| {
        line.contains(MARK) && line.contains(PROGRAM) && line.contains(ON_PURPOSE) == on_purpose
    };
    log.lines().filter(ours).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::strays;

    const LOG: &str = "\
[   31.1] audit: type=1326 audit(1795.1:2): auid=0 uid=0 gid=0 ses=1 pid=7 comm=\"bus\" exe=\"/t/vmm\" sig=0 arch=c000003e syscall=110 compat=0 ip=0x7f code=0x7ffc0000
[   31.2] audit: type=1326 audit(1795.2:3): auid=0 uid=0 gid=0 ses=1 pid=8 comm=\"stray\" exe=\"/tmp/vmm\" sig=0 arch=c000003e syscall=110 compat=0 ip=0x7f code=0x7ffc0000
[   31.3] audit: type=1326 audit(1795.3:4): auid=0 uid=0 gid=0 ses=1 pid=9 comm=\"x\" exe=\"/t/other\" sig=0 arch=c000003e syscall=1 compat=0 ip=0x7f code=0x7ffc0000
[   31.4] kvm: a line of somebody else's";

    #[test]
    fn calls_of_vmm_are_told_from_others_and_from_those_on_purpose() {
        let [real, on_purpose] = [false, true].map(|on_purpose| strays(LOG, on_purpose));
        assert_eq!(real.len(), 1);
        assert!(real[0].contains("comm=\"bus\""));
        assert_eq!(on_purpose.len(), 1);
        assert!(on_purpose[0].contains("comm=\"stray\""));
    }
}
