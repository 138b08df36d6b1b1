// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What makes the vCPUs of this host leave the guest, as its kernel traces it.
//!
//! `kvm_userspace_exit` is passed each time KVM_RUN returns to a program, and
//! `kvm_hv_hypercall` each time KVM is called as a hypervisor of Hyper-V's kind.
//! Histograms of the two count without a reader that has to keep up. They are
//! the whole machine's, so no other machine may run on it meanwhile.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::suite::{Failure, Outcome};

/// KVM_EXIT_HYPERV.
const EXIT_HYPERV: u64 = 27;
/// HvPostMessage and HvSignalEvent.
const POST_MESSAGE: u64 = 0x5c;
const SIGNAL_EVENT: u64 = 0x5d;

/// Exits to user space and signals, in some time.
#[derive(Clone, Copy, Debug)]
pub(in crate::cases) struct Exits {
    /// All exits to user space.
    pub(in crate::cases) all: u64,
    /// Those for a hypercall or a SynIC register.
    pub(in crate::cases) hyperv: u64,
    /// Signals that reached KVM.
    pub(in crate::cases) signals: u64,
    /// Messages that did, which exit always.
    pub(in crate::cases) messages: u64,
}

impl fmt::Display for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} exits to user space, {} of them for Hyper-V; KVM saw {} signals, {} messages",
            self.all, self.hyperv, self.signals, self.messages
        )
    }
}

impl Exits {
    /// Whether this user may count.
    pub(in crate::cases) fn can_count() -> bool {
        tracefs().is_ok()
    }

    /// Counts while `run` runs.
    pub(in crate::cases) fn during<T>(run: impl FnOnce() -> Outcome<T>) -> Outcome<(T, Self)> {
        let events = tracefs()?.join("events/kvm");
        let exits = Histogram::start(&events.join("kvm_userspace_exit"), "reason")?;
        let calls = Histogram::start(&events.join("kvm_hv_hypercall"), "code")?;
        let result = run()?;
        let (exits, calls) = (exits.read()?, calls.read()?);
        let count = |entries: &[(u64, u64)], wanted: Option<u64>| {
            let fitting = entries
                .iter()
                .filter(|(key, _)| wanted.is_none_or(|wanted| wanted == *key));
            fitting.map(|(_, count)| count).sum()
        };
        let exits = Self {
            all: count(&exits, None),
            hyperv: count(&exits, Some(EXIT_HYPERV)),
            signals: count(&calls, Some(SIGNAL_EVENT)),
            messages: count(&calls, Some(POST_MESSAGE)),
        };
        Ok((result, exits))
    }
}

/// Where the kernel's tracing is, mounted if it isn't.
fn tracefs() -> Outcome<PathBuf> {
    let path = PathBuf::from("/sys/kernel/tracing");
    if !path.join("events").exists() {
        let _ = Command::new("mount")
            .args(["-t", "tracefs", "tracefs"])
            .arg(&path)
            .output();
    }
    if path.join("events/kvm").exists() {
        return Ok(path);
    }
    let why = "no events of KVM's in /sys/kernel/tracing: it takes root to look there";
    Err(Failure(why.to_owned()))
}

/// A histogram over one field of an event. Dropping it removes it.
#[derive(Debug)]
struct Histogram {
    event: PathBuf,
    trigger: String,
}

impl Histogram {
    fn start(event: &Path, key: &str) -> Outcome<Self> {
        let trigger = format!("hist:keys={key}");
        fs::write(event.join("trigger"), &trigger)?;
        Ok(Self {
            event: event.to_path_buf(),
            trigger,
        })
    }

    /// Each key and how often it came.
    fn read(&self) -> Outcome<Vec<(u64, u64)>> {
        let text = fs::read_to_string(self.event.join("hist"))?;
        Ok(text.lines().filter_map(entry).collect())
    }
}

impl Drop for Histogram {
    fn drop(&mut self) {
        let _ = fs::write(self.event.join("trigger"), format!("!{}", self.trigger));
    }
}

/// `{ reason:          2 } hitcount:        311`
fn entry(line: &str) -> Option<(u64, u64)> {
    let (key, count) = line.strip_prefix('{')?.split_once('}')?;
    let key = key.split_once(':')?.1.trim();
    let count = count.trim().strip_prefix("hitcount:")?.trim();
    Some((key.parse().ok()?, count.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histograms_lines_are_key_and_count() {
        let line = "{ reason:          2 } hitcount:        311";
        assert_eq!(entry(line), Some((2, 311)));
        assert_eq!(entry("Totals:"), None);
        assert_eq!(entry("    Hits: 311"), None);
    }
}
