// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Noticing that the nest has locked up: from its console and its heartbeat.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// No heartbeat for this long is a hang. It beats twice a second, but the
/// machine that emulates it may be busy with other things.
pub const SILENCE: Duration = Duration::from_secs(45);

/// Reads what is new in the console's log and counts the bad signs.
#[derive(Debug)]
pub struct ConsoleWatch {
    path: PathBuf,
    file: Option<File>,
    unfinished: String,
    stalls: u32,
}

/// What a line of the console means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// The kernel has given up.
    Fatal,
    /// A CPU seems stuck; on a loaded machine it may only be slow.
    Stall,
}

/// Stalls reported this often are a hang: one alone may be a false alarm.
const STALLS: u32 = 2;

impl ConsoleWatch {
    /// Watches a log, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            file: None,
            unfinished: String::new(),
            stalls: 0,
        }
    }

    /// Reads on; the line that means the end, if there is one.
    pub fn check(&mut self) -> Option<String> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let mut bytes = Vec::new();
        self.file.as_mut()?.read_to_end(&mut bytes).ok()?;
        self.unfinished.push_str(&String::from_utf8_lossy(&bytes));
        let text = std::mem::take(&mut self.unfinished);
        let (whole, rest) = text.rsplit_once('\n').unwrap_or(("", &text));
        rest.clone_into(&mut self.unfinished);
        whole
            .lines()
            .find(|line| self.judge(line))
            .map(|line| line.trim().to_owned())
    }

    fn judge(&mut self, line: &str) -> bool {
        match sign(line) {
            Some(Sign::Fatal) => true,
            Some(Sign::Stall) => {
                self.stalls += 1;
                self.stalls >= STALLS
            }
            None => false,
        }
    }
}

/// Judges one line of a kernel's console.
pub fn sign(line: &str) -> Option<Sign> {
    const FATAL: [&str; 5] = [
        "Kernel panic",
        "Oops:",
        "BUG: unable to handle",
        "general protection fault",
        "double fault",
    ];
    const STALL: [&str; 4] = [
        "soft lockup",
        "detected stalls on CPUs",
        "self-detected stall on CPU",
        "hard LOCKUP",
    ];
    if FATAL.iter().any(|text| line.contains(text)) {
        Some(Sign::Fatal)
    } else if STALL.iter().any(|text| line.contains(text)) {
        Some(Sign::Stall)
    } else {
        None
    }
}

/// When the last heartbeat came.
#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    last: Instant,
    limit: Duration,
}

impl Pulse {
    /// Starts now. In the deterministic mode the machine's second may be long.
    pub fn start(icount: bool) -> Self {
        Self {
            last: Instant::now(),
            limit: if icount { SILENCE * 10 } else { SILENCE },
        }
    }

    /// The machine has said something.
    pub fn beat(&mut self) {
        self.last = Instant::now();
    }

    /// What is wrong, if it has been silent for too long.
    pub fn check(&self) -> Option<String> {
        let silent = self.last.elapsed();
        (silent > self.limit).then(|| format!("silent for {} s", silent.as_secs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn kernels_ways_of_giving_up_are_known() {
        assert_eq!(
            sign("[   9.1] Kernel panic - not syncing: Attempted to kill init!"),
            Some(Sign::Fatal)
        );
        assert_eq!(
            sign("watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [vcpu0:77]"),
            Some(Sign::Stall)
        );
        assert_eq!(
            sign("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"),
            Some(Sign::Stall)
        );
        assert_eq!(sign("[   1.0] kvm: Nested Virtualization enabled"), None);
    }

    #[test]
    fn one_stall_is_a_warning_two_are_a_hang() {
        let path = std::env::temp_dir().join(format!("console-{}", std::process::id()));
        let mut log = File::create(&path).unwrap();
        let mut watch = ConsoleWatch::new(&path);
        assert_eq!(watch.check(), None);
        writeln!(log, "BUG: soft lockup - CPU#0 stuck for 22s!").unwrap();
        assert_eq!(watch.check(), None);
        write!(log, "BUG: soft lock").unwrap();
        assert_eq!(watch.check(), None);
        writeln!(log, "up - CPU#0 stuck for 44s!").unwrap();
        assert_eq!(
            watch.check().unwrap(),
            "BUG: soft lockup - CPU#0 stuck for 44s!"
        );
        std::fs::remove_file(&path).unwrap();
    }
}
