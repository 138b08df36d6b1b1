// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest is told of its host and of itself: the items that Hyper-V puts into
//! the pool `auto-external`, under the names and in the forms that programs in guests
//! look for. Windows' terms get what is closest to them here:
//!
//! | Items | From |
//! |---|---|
//! | `HostName`, `PhysicalHostName`, `PhysicalHostNameFullyQualified` | the host's name, as `uname -n` has it |
//! | `HostingSystemOsMajor`, `…OsMinor` | the version of the host's Linux |
//! | `HostingSystemSpMajor`, `…SpMinor`, `…EditionId` | 0: there are no service packs, and no edition of Windows |
//! | `HostingSystemProcessorArchitecture` | 9, x86-64 |
//! | `HostingSystemProcessorIdleStateMax` | the deepest idle state of the first CPU |
//! | `HostingSystemProcessorThrottleMax`, `…Min` | 100, and how far its clock goes down, in percent |
//! | `HostingSystemNestedLevel` | 1 if the host is itself a VM |
//! | `VirtualMachineName`, `VirtualMachineId` | `--name` and `--vm-id` |
//! | `VirtualMachineDynamicMemoryBalancingEnabled` | 0: a guest keeps the memory that it has |

use std::fs::{self, File};
use std::io::{self, Read};

use ics_devices::kvp::{Key, Value};
use vmbus::wire::Guid;

use crate::sys;

/// Windows' number for x86-64.
const AMD64: &str = "9";
/// As much of a list of CPUs as surely has the first one.
const FIRST_CPU: u64 = 8 << 10;

/// What is true of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Its name: one label, or a full one.
    pub name: String,
    /// The release of its kernel, as `6.12.57+deb13-amd64`.
    pub release: String,
    /// The deepest idle state of its first CPU.
    pub idle_state: u32,
    /// The slowest clock of its first CPU, in percent of the fastest.
    pub slowest_percent: u64,
    /// It is itself a VM.
    pub is_guest: bool,
}

impl HostFacts {
    /// Of this host. What it does not tell is left at what says least.
    pub fn read() -> Self {
        let text = |path: &str| {
            fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let number = |path: &str| text(path).parse::<u64>().ok();
        let cpu = "/sys/devices/system/cpu/cpu0";
        let limits = number(&format!("{cpu}/cpufreq/cpuinfo_min_freq"))
            .zip(number(&format!("{cpu}/cpufreq/cpuinfo_max_freq")));
        let states = fs::read_dir(format!("{cpu}/cpuidle")).into_iter().flatten();
        let states = states.filter_map(|state| {
            let name = state.ok()?.file_name();
            name.to_str()?.strip_prefix("state")?.parse().ok()
        });
        let mut cpus = String::new();
        // What cannot be read has no flags.
        let _ = File::open("/proc/cpuinfo")
            .and_then(|file| file.take(FIRST_CPU).read_to_string(&mut cpus));
        Self {
            name: text("/proc/sys/kernel/hostname"),
            release: text("/proc/sys/kernel/osrelease"),
            idle_state: states.max().unwrap_or(0),
            slowest_percent: limits.map_or(100, |(min, max)| percent(min, max)),
            is_guest: is_guest(&cpus),
        }
    }

    /// The items for a VM.
    pub fn items(&self, vm: &str, id: Guid) -> Vec<(Key, Value)> {
        let mut version = self.release.split(|c: char| !c.is_ascii_digit());
        let mut part = || match version.next() {
            Some(digits) if !digits.is_empty() => digits.to_owned(),
            _ => "0".to_owned(),
        };
        let zero = || "0".to_owned();
        let label = self.name.split('.').next().unwrap_or_default();
        let items = [
            ("HostName", self.name.clone()),
            ("HostingSystemEditionId", zero()),
            (
                "HostingSystemNestedLevel",
                u8::from(self.is_guest).to_string(),
            ),
            ("HostingSystemOsMajor", part()),
            ("HostingSystemOsMinor", part()),
            ("HostingSystemProcessorArchitecture", AMD64.to_owned()),
            (
                "HostingSystemProcessorIdleStateMax",
                self.idle_state.to_string(),
            ),
            ("HostingSystemProcessorThrottleMax", "100".to_owned()),
            (
                "HostingSystemProcessorThrottleMin",
                self.slowest_percent.to_string(),
            ),
            ("HostingSystemSpMajor", zero()),
            ("HostingSystemSpMinor", zero()),
            ("PhysicalHostName", label.to_uppercase()),
            ("PhysicalHostNameFullyQualified", self.name.clone()),
            ("VirtualMachineDynamicMemoryBalancingEnabled", zero()),
            ("VirtualMachineId", id.to_string().to_uppercase()),
            ("VirtualMachineName", vm.to_owned()),
        ];
        let fits = |(key, value): (&str, String)| {
            let fits = Key::new(key).ok().zip(Value::text(&value).ok());
            if fits.is_none() {
                log::warn!("{key} does not fit into an item, and the guest is not told of it");
            }
            fits
        };
        items.into_iter().filter_map(fits).collect()
    }
}

/// A GUID for a VM that was given none.
pub fn random_id() -> io::Result<Guid> {
    /// The bits that say that all others are random.
    const VERSION: (u128, u128) = (0xf << 76 | 0x3 << 62, 0x4 << 76 | 0x2 << 62);
    let mut bytes = [0; 16];
    sys::random(&mut bytes)?;
    let random = u128::from_ne_bytes(bytes);
    Ok(Guid::from_u128(random & !VERSION.0 | VERSION.1))
}

fn percent(min: u64, max: u64) -> u64 {
    let percent = min.saturating_mul(100).checked_div(max);
    percent.map_or(100, |percent| percent.clamp(1, 100))
}

/// Whether a hypervisor shows among the flags of the first CPU.
fn is_guest(cpus: &str) -> bool {
    let flags = cpus.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|line| line.split_whitespace().any(|flag| flag == "hypervisor"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> HostFacts {
        HostFacts {
            name: "thehost.example.com".into(),
            release: "6.12.57+deb13-amd64".into(),
            idle_state: 3,
            slowest_percent: 37,
            is_guest: true,
        }
    }

    fn told(facts: &HostFacts) -> Vec<String> {
        let id = Guid::from_u128(0x461b_2364_3901_4349_b3c2_fa48_21cb_eefe);
        let items = facts.items("my-guest", id);
        let line = |(key, value): &(Key, Value)| format!("{key}={value}");
        items.iter().map(line).collect()
    }

    #[test]
    fn a_guest_is_told_what_hyperv_tells_under_the_same_names() {
        assert_eq!(
            told(&facts()),
            [
                "HostName=thehost.example.com",
                "HostingSystemEditionId=0",
                "HostingSystemNestedLevel=1",
                "HostingSystemOsMajor=6",
                "HostingSystemOsMinor=12",
                "HostingSystemProcessorArchitecture=9",
                "HostingSystemProcessorIdleStateMax=3",
                "HostingSystemProcessorThrottleMax=100",
                "HostingSystemProcessorThrottleMin=37",
                "HostingSystemSpMajor=0",
                "HostingSystemSpMinor=0",
                "PhysicalHostName=THEHOST",
                "PhysicalHostNameFullyQualified=thehost.example.com",
                "VirtualMachineDynamicMemoryBalancingEnabled=0",
                "VirtualMachineId=461B2364-3901-4349-B3C2-FA4821CBEEFE",
                "VirtualMachineName=my-guest",
            ]
        );
    }

    #[test]
    fn a_host_that_tells_nothing_and_a_name_that_is_too_long_do_no_harm() {
        let mut silent = told(&HostFacts::default());
        assert_eq!(silent.len(), 16);
        silent.retain(|item| item.starts_with("HostingSystemOs") || item.ends_with('='));
        let (major, minor) = ("HostingSystemOsMajor=0", "HostingSystemOsMinor=0");
        let names = [
            "HostName=",
            "PhysicalHostName=",
            "PhysicalHostNameFullyQualified=",
        ];
        assert_eq!(silent, [names[0], major, minor, names[1], names[2]]);
        let long = HostFacts {
            name: "n".repeat(2000),
            ..facts()
        };
        assert_eq!(told(&long).len(), 13);
    }

    #[test]
    fn this_host_has_a_name_and_a_version() {
        let facts = HostFacts::read();
        assert!(
            !facts.name.is_empty() && facts.release.contains('.'),
            "{facts:?}"
        );
        assert!((1..=100).contains(&facts.slowest_percent));
        assert_eq!(percent(800, 3200), 25);
        assert_eq!(
            (percent(1, 0), percent(9, 3), percent(1, 1000)),
            (100, 100, 1)
        );
        assert!(is_guest("processor : 0\nflags\t\t: fpu hypervisor lm\n"));
        assert!(!is_guest("model name : hypervisor\nflags\t\t: fpu lm\n"));
    }

    #[test]
    fn a_random_id_says_that_it_is_random_and_comes_once() {
        let (one, other) = (random_id().unwrap(), random_id().unwrap());
        assert_ne!(one, other);
        for id in [one, other].map(|id| id.to_string()) {
            assert_eq!(&id[14..15], "4");
            assert!("89ab".contains(&id[19..20]), "{id}");
        }
    }
}
