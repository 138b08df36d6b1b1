// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a VMM takes beside its guest's memory: what is resident of all its
//! mappings but the guest's, from `/proc/PID/smaps`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::machine::Machine;
use super::{Ground, tell};
use crate::suite::Outcome;

/// Mappings of this size and more, in KiB, are the guest's memory.
const GUEST: u64 = 128 << 10;

/// Memory in KiB, and threads, with an idle guest of so many vCPUs.
pub(super) fn measure(ground: &Ground, machine: Machine, cpus: u32) -> Outcome<Value> {
    let cpus = cpus.to_string();
    let flag = if machine == Machine::Ours {
        "--cpus"
    } else {
        "-smp"
    };
    let vm = machine.boot(ground, &[flag, &cpus])?;
    let found = of_process(vm.pid())?;
    tell(&format!("{}, {cpus} vCPUs: {found}", machine.name()));
    Ok(found)
}

/// The same of any process.
pub fn of_process(pid: u32) -> Outcome<Value> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (resident, private) = sum(&smaps);
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?.count();
    Ok(json!({"resident": resident, "private": private, "threads": threads}))
}

/// The size of a program in KiB.
pub(super) fn size(program: &Path) -> Outcome<Value> {
    Ok(json!(fs::metadata(program)?.len() >> 10))
}

/// Resident and private KiB of all mappings but large ones.
fn sum(smaps: &str) -> (u64, u64) {
    let (mut resident, mut private, mut large) = (0_u64, 0_u64, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (name, kib) = (
            words.next(),
            words.next().and_then(|word| word.parse::<u64>().ok()),
        );
        match (name, kib) {
            (Some("Size:"), Some(kib)) => large = kib >= GUEST,
            (Some("Rss:"), Some(kib)) if !large => resident += kib,
            (Some("Private_Clean:" | "Private_Dirty:"), Some(kib)) if !large => private += kib,
            _ => {}
        }
    }
    (resident, private)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_does_not_count() {
        let smaps = "55d0-55d1 r--p 0 00:1b 7 /bin/vmm\nSize: 100 kB\nRss: 40 kB\n\
            Private_Clean: 30 kB\nPrivate_Dirty: 2 kB\n\
            7f00-7f10 rw-p 0 00:00 0\nSize: 262144 kB\nRss: 99999 kB\nPrivate_Dirty: 99999 kB\n\
            7f20-7f21 rw-p 0 00:00 0\nSize: 8 kB\nRss: 8 kB\nPrivate_Dirty: 8 kB\n";
        assert_eq!(sum(smaps), (48, 40));
    }
}
