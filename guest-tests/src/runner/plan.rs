// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which cases are run with which kernels and how many vCPUs.

use std::fmt;

use crate::cases;
use crate::error::{Result, failed};
use crate::suite::{Case, Kernels, Synics};
use crate::{kernels, place};

/// What a user asked for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// A kernel's name, or `all`; without it the default kernel in full and
    /// one boot of each other.
    pub kernel: Option<String>,
    /// Only what contains this.
    pub filter: Option<String>,
    /// No unit tests.
    pub guest_only: bool,
    /// Only whether each kernel boots.
    pub smoke: bool,
    /// Everything as often as it takes to find what is rare.
    pub long: bool,
    /// Only the control API under a fuzzer, for so many minutes.
    pub api_fuzz: Option<u64>,
    /// Where guest tests are run, if not where `XTASK_NEST` says.
    pub nest: Option<place::Wish>,
}

impl Wish {
    /// Where guest tests are to run.
    pub(super) fn place(&self) -> Result<place::Wish> {
        self.nest.map_or_else(place::Wish::of_environment, Ok)
    }
}

/// One case with one kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) case: Case,
    pub(super) kernel: &'static str,
    pub(super) cpus: u32,
    pub(super) synic: Option<&'static str>,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} cpus={}", self.case.name, self.kernel, self.cpus)?;
        self.synic
            .map_or(Ok(()), |synic| write!(f, " synic={synic}"))
    }
}

/// What is fuzzed unless another is named: its daemons take files too.
const FUZZED: &str = "bookworm";

/// Cases that are run in the hybrid mode too, not only when a kernel is tested in full:
/// it is made of the other two.
const IN_HYBRID: &[&str] = &["vmbus-connect", "services-ready"];

/// Cases that the short default leaves out, for the minutes that they take in
/// the nest: a kernel's name or the case's runs them.
const IN_FULL: [&str; 5] = [
    "boot-64-cpus",
    "time-ptp",
    "systemd-chrony",
    "soak",
    "vsock-many",
];

/// What the Intel nest runs unless told otherwise: something of everything, in
/// few minutes. Its kernels are packed in a way that is quickly unpacked, or not
/// packed at all (`boot-elf`).
const INTEL: [(&str, &str, u32, Option<&str>); 11] = [
    ("boot", "bookworm-cloud", 2, None),
    ("boot-elf", "trixie", 2, None),
    ("vmbus-connect", "bookworm-cloud", 1, Some("kernel")),
    ("vmbus-connect", "bookworm-cloud", 1, Some("user")),
    ("services-ready", "bookworm-cloud", 1, Some("user")),
    ("shutdown", "bookworm-cloud", 2, Some("kernel")),
    ("time-sync", "bookworm-cloud", 1, None),
    ("kvp-daemon", "bookworm-cloud", 1, None),
    ("vsock-refused", "bookworm-cloud", 2, None),
    ("on-crash", "bookworm-cloud", 1, Some("kernel")),
    ("crash", "bookworm-cloud", 2, Some("user")),
];

/// Cases that want this machine's files or programs, or more memory than the
/// Intel nest has.
const NOT_IN_BATCH: [&str; 8] = [
    "api-curl",
    "api-examples",
    "boot-64-cpus",
    "cost",
    "seccomp-noticed",
    "soak",
    "ssh-none",
    "vsock-examples",
];

/// What the Intel nest runs: a choice of its own, or what the wish says.
pub(super) fn plan_intel(wish: &Wish) -> Result<Vec<Run>> {
    if wish.kernel.is_some() || wish.filter.is_some() || wish.smoke {
        let mut runs = plan(wish)?;
        runs.retain(|run| fits_batch(run.case.name));
        if runs.is_empty() {
            let wish = wish.filter.as_deref().unwrap_or_default();
            let message = format!("no test with `{wish}` in its name can be run in the Intel nest");
            return Err(failed("tests", message));
        }
        return Ok(runs);
    }
    let cases = cases::all();
    let run = |(name, kernel, cpus, synic)| {
        let case = cases.iter().find(|case| case.name == name);
        let case = case.ok_or_else(|| failed("tests", format!("no case `{name}`")))?;
        Ok(Run {
            case: *case,
            kernel,
            cpus,
            synic,
        })
    };
    INTEL.into_iter().map(run).collect()
}

fn fits_batch(case: &str) -> bool {
    !case.starts_with("systemd-") && !NOT_IN_BATCH.contains(&case)
}

/// All runs that the wish comes to.
pub(super) fn plan(wish: &Wish) -> Result<Vec<Run>> {
    let wished = wish
        .api_fuzz
        .map(|_| wish.kernel.as_deref().unwrap_or(FUZZED));
    let chosen = match wished.or(wish.kernel.as_deref()) {
        None | Some("all") => None,
        Some(name) => Some(kernels::find(name)?.name),
    };
    let full = wish.kernel.is_some() && !wish.smoke;
    let mut runs = Vec::new();
    for known in kernels::ALL {
        let name = known.name;
        if chosen.is_some_and(|chosen| chosen != name) {
            continue;
        }
        let is_default = chosen == Some(name) || name == kernels::DEFAULT;
        for case in cases::all() {
            if wish.kernel.is_none() && wish.filter.is_none() && IN_FULL.contains(&case.name) {
                continue;
            }
            let depth = depth(&case, is_default, full, wish.smoke);
            for cpus in case.cpus.iter().take(depth) {
                let run = |synic| Run {
                    case,
                    kernel: name,
                    cpus: *cpus,
                    synic,
                };
                let both = match case.synics {
                    Synics::Any => false,
                    Synics::Both => true,
                    Synics::BothInFull => full,
                };
                if both {
                    runs.extend([Some("kernel"), Some("user")].map(run));
                    if full || IN_HYBRID.contains(&case.name) {
                        runs.push(run(Some("hybrid")));
                    }
                    continue;
                }
                runs.push(run(None));
                if full && case.name == "boot" && *cpus == 2 {
                    runs.push(run(Some("user")));
                }
            }
        }
    }
    // Half an hour for one case: only who asks for it gets it.
    runs.retain(|run| (run.case.name == cases::API_FUZZ) == wish.api_fuzz.is_some());
    if let Some(filter) = &wish.filter {
        runs.retain(|run| run.to_string().contains(filter.as_str()));
    }
    Ok(runs)
}

/// How many of a case's vCPU counts are tried.
fn depth(case: &Case, is_default: bool, full: bool, smoke: bool) -> usize {
    let boots = case.name == "boot";
    match case.kernels {
        _ if smoke => usize::from(boots),
        Kernels::One if !is_default => 0,
        _ if is_default || full => usize::MAX,
        _ => usize::from(boots),
    }
}

pub(super) fn kernels_of(runs: &[Run]) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = runs.iter().map(|run| run.kernel).collect();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(kernel: Option<&str>, filter: Option<&str>, smoke: bool) -> Vec<String> {
        let wish = Wish {
            kernel: kernel.map(str::to_owned),
            filter: filter.map(str::to_owned),
            guest_only: true,
            smoke,
            ..Wish::default()
        };
        plan(&wish).unwrap().iter().map(Run::to_string).collect()
    }

    #[test]
    fn by_default_one_kernel_is_tested_in_full_and_the_others_boot() {
        let runs = planned(None, None, false);
        assert!(runs.contains(&"reboot-in-place trixie cpus=2".to_owned()));
        assert!(runs.contains(&"boot trixie cpus=4".to_owned()));
        let of_sid: Vec<_> = runs.iter().filter(|run| run.contains(" sid ")).collect();
        assert_eq!(of_sid, ["boot sid cpus=2"]);
    }

    #[test]
    fn all_is_every_kernel_in_full_but_what_is_about_vmm_only_once() {
        let runs = planned(Some("all"), None, false);
        for cpus in [1, 2, 4] {
            assert!(runs.contains(&format!("boot bullseye cpus={cpus}")));
        }
        assert!(runs.contains(&"boot sid cpus=2 synic=user".to_owned()));
        assert_eq!(
            runs.iter()
                .filter(|run| run.starts_with("bad-files"))
                .count(),
            1
        );
    }

    #[test]
    fn a_named_kernel_gets_everything() {
        let runs = planned(Some("bookworm"), None, false);
        assert!(runs.contains(&"bad-files bookworm cpus=2".to_owned()));
        assert!(runs.iter().all(|run| run.contains(" bookworm ")));
    }

    #[test]
    fn what_is_about_the_synic_is_run_with_all() {
        let runs = planned(None, Some("vmbus-connect trixie cpus=4"), false);
        let all = ["kernel", "user", "hybrid"];
        let all = all.map(|synic| format!("vmbus-connect trixie cpus=4 synic={synic}"));
        assert_eq!(runs, all);
    }

    #[test]
    fn the_api_is_fuzzed_alone_and_only_on_demand() {
        let all = planned(Some("all"), None, false);
        assert!(!all.iter().any(|run| run.starts_with("api-fuzz")));
        let wish = Wish {
            api_fuzz: Some(30),
            ..Wish::default()
        };
        let runs: Vec<_> = plan(&wish).unwrap().iter().map(Run::to_string).collect();
        assert_eq!(runs, ["api-fuzz bookworm cpus=2"]);
    }

    #[test]
    fn the_intel_nests_choice_is_of_known_cases_and_kernels() {
        let runs = plan_intel(&Wish::default()).unwrap();
        assert!(runs.len() >= 10);
        for run in &runs {
            assert!(fits_batch(run.case.name));
            kernels::find(run.kernel).unwrap();
        }
        let names: Vec<String> = runs.iter().map(Run::to_string).collect();
        for synic in ["kernel", "user"] {
            assert!(names.contains(&format!(
                "vmbus-connect bookworm-cloud cpus=1 synic={synic}"
            )));
        }
        assert!(runs.iter().any(|run| run.cpus == 2));
    }

    #[test]
    fn the_intel_nest_runs_what_is_asked_for_but_what_needs_this_machine() {
        let wish = |filter: &str| Wish {
            kernel: Some("trixie".to_owned()),
            filter: Some(filter.to_owned()),
            ..Wish::default()
        };
        let runs = plan_intel(&wish("vsock-")).unwrap();
        assert!(runs.iter().any(|run| run.case.name == "vsock-short"));
        assert!(runs.iter().all(|run| run.case.name != "vsock-examples"));
        let error = plan_intel(&wish("systemd-")).unwrap_err().to_string();
        assert!(error.contains("systemd-"), "{error}");
    }

    #[test]
    fn a_filter_and_smoke_narrow_it() {
        assert_eq!(planned(None, Some("bad-files"), false).len(), 1);
        let smoke = planned(Some("all"), None, true);
        assert_eq!(smoke.len(), kernels::ALL.len());
    }
}
