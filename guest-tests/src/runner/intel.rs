// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests in the nest with an Intel CPU: one batch, each test once.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::Duration;

use guest_agent::batch::Command;

use super::plan::Run;
use super::{LONG, Programs, Tally, argv, programs, tell};
use crate::error::{Result, failed};
use crate::image::Image;
use crate::nest::intel::{self, Contents, Guest, Job};
use crate::progress::step;

/// Runs the tests, and counts what came of them.
pub(super) fn test(runs: &[Run], long: bool, tally: &mut Tally) -> Result<()> {
    // Each once, however they take turns.
    let names: BTreeSet<&str> = runs.iter().map(|run| run.kernel).collect();
    let listed: Vec<&str> = names.iter().copied().collect();
    let guests = step(
        &format!("preparing the images of {}", listed.join(", ")),
        || {
            let mut guests = Vec::new();
            for name in names {
                let (vmlinuz, vmlinux) = kernel_files(runs, name);
                let image = Image::guest(name)?;
                if vmlinux {
                    image.kernel.vmlinux()?;
                }
                guests.push(Guest {
                    image,
                    vmlinuz,
                    vmlinux,
                });
            }
            Ok(guests)
        },
    )?;
    let Programs {
        suite,
        vmm,
        vmmctl,
        hostile,
    } = programs()?;
    let contents = Contents {
        programs: vec![suite, vmm, vmmctl],
        hostile,
        guests,
    };
    println!(
        "{} guest tests in the nest with an Intel CPU, one after the other",
        runs.len()
    );
    let jobs = jobs(runs, long)?;
    intel::run(&contents, &jobs, &mut |job, end, took: Duration| {
        tell(&job.name, end, took, tally);
    })
}

/// Whether a kernel is booted from its bzImage, and from its ELF file.
fn kernel_files(runs: &[Run], kernel: &str) -> (bool, bool) {
    let is_elf = |run: &&Run| run.case.name == "boot-elf";
    let of_it = runs.iter().filter(|run| run.kernel == kernel);
    let (elf, packed): (Vec<&Run>, Vec<&Run>) = of_it.partition(is_elf);
    (!packed.is_empty(), !elf.is_empty())
}

/// The batch's commands, numbered from 1.
fn jobs(runs: &[Run], long: bool) -> Result<Vec<Job>> {
    let (suite, vmm) = (intel::program("guest-suite"), intel::program("vmm"));
    let times = if long { LONG } else { 1 };
    let job = |(number, run): (u32, &Run)| {
        let argv = argv(run, &suite, &vmm, long)
            .into_iter()
            .map(OsString::into_string)
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|word| failed("tests", format!("{} is no text", word.display())))?;
        Ok(Job {
            name: format!("[{number}/{}] {run}", runs.len()),
            command: Command {
                id: number,
                limit: run.case.limit * times,
                argv,
            },
        })
    };
    (1..).zip(runs).map(job).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Wish, plan};
    use super::*;

    #[test]
    fn only_the_kernel_files_that_are_booted_are_on_the_disc() {
        let runs = plan::plan_intel(&Wish::default()).unwrap();
        assert_eq!(kernel_files(&runs, "trixie"), (false, true));
        assert_eq!(kernel_files(&runs, "bookworm-cloud"), (true, false));
        assert_eq!(kernel_files(&runs, "sid"), (false, false));
    }

    #[test]
    fn commands_are_numbered_from_1_and_name_what_is_on_the_disc() {
        let runs = plan::plan_intel(&Wish::default()).unwrap();
        let jobs = jobs(&runs, true).unwrap();
        let first = jobs.first().unwrap();
        assert_eq!(first.command.id, 1);
        assert_eq!(first.command.limit, 240 * LONG);
        assert_eq!(
            first.command.argv.join(" "),
            "/batch/bin/guest-suite run boot --kernel bookworm-cloud --cpus 2 \
             --vmm /batch/bin/vmm --long"
        );
        assert!(first.name.starts_with("[1/"));
    }
}
