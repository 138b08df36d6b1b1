// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a `vmm` could leak: memory of its own, threads, descriptors, relids.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;

use super::vmbus::open_files;
use crate::ensure;
use crate::suite::{Outcome, Vm};

/// What a process's memory may grow by without anything being lost: allocators
/// round up.
const SLACK_KIB: u64 = 256;
/// What the kernel may add by taking huge pages for small ones.
const HUGE_SLACK_KIB: u64 = 4 << 10;
/// No mapping of a process is that large but its guest's memory.
const GUESTS_KIB: u64 = 256 << 10;

/// What could leak.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    /// Anonymous memory that is not the guest's, in small pages.
    pub(super) memory_kib: u64,
    /// The same in huge pages, which are the kernel's choice.
    pub(super) huge_kib: u64,
    /// Open descriptors, but for eventfds.
    pub(super) files: usize,
    /// Threads.
    pub(super) threads: usize,
    /// As the guest sees them.
    pub(super) relids: BTreeSet<u32>,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "vmm has {} KiB of its own (and {} in huge pages), {} open files and {} threads",
            self.memory_kib, self.huge_kib, self.files, self.threads
        )
    }
}

impl Measured {
    /// As it is now.
    pub(super) fn of(vm: &mut Vm) -> Outcome<Self> {
        let relids = relids(vm)?;
        let process = format!("/proc/{}", vm.pid());
        let (memory_kib, huge_kib) = own_memory_of(vm.pid())?;
        Ok(Self {
            memory_kib,
            huge_kib,
            files: open_files(vm)?,
            threads: fs::read_dir(format!("{process}/task"))?.count(),
            relids,
        })
    }

    /// No more than before, of all but relids.
    pub(super) fn check(&self, before: &Self) -> Outcome {
        ensure!(
            self.memory_kib <= before.memory_kib + SLACK_KIB
                && self.huge_kib <= before.huge_kib + HUGE_SLACK_KIB
                && self.files <= before.files
                && self.threads <= before.threads,
            "before: {before}; in the end: {self}"
        );
        Ok(())
    }
}

/// The channels that the guest has been offered.
pub(super) fn relids(vm: &mut Vm) -> Outcome<BTreeSet<u32>> {
    let ids = vm.sh("cat /sys/bus/vmbus/devices/*/id")?.stdout;
    let ids = ids.lines().filter_map(|id| id.trim().parse().ok());
    Ok(ids.collect())
}

/// KiB of a process' own memory, in small pages and in huge ones.
pub(super) fn own_memory_of(pid: u32) -> Outcome<(u64, u64)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    Ok(own_memory(&maps))
}

/// In small pages, and in huge ones.
fn own_memory(maps: &str) -> (u64, u64) {
    let (mut size, mut own, mut huge) = (0, 0, 0);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (name, value) = (words.next(), words.next());
        let value = value.and_then(|value| value.parse().ok()).unwrap_or(0);
        match name {
            Some("Size:") => size = value,
            Some("Anonymous:") if size < GUESTS_KIB => own += value,
            Some("AnonHugePages:") if size < GUESTS_KIB => huge += value,
            _ => {}
        }
    }
    (u64::saturating_sub(own, huge), huge)
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_is_what_is_not_the_guests() {
        let maps = "7f00-7f01 rw-p 0 0:0 0\nSize: 524288 kB\nAnonymous: 90000 kB\n\
            AnonHugePages: 80000 kB\n\
            5500-5501 rw-p 0 0:0 0 [heap]\nSize: 132 kB\nAnonymous: 64 kB\n\
            AnonHugePages: 0 kB\n\
            7e00-7e01 rw-p 0 0:0 0\nSize: 8192 kB\nAnonymous: 2056 kB\n\
            AnonHugePages: 2048 kB\n";
        assert_eq!(super::own_memory(maps), (72, 2048));
    }
}
