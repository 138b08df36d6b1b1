// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests in the nest with an Intel CPU: one batch, each test once.

use std::time::Duration;

use guest_agent::batch::Command;

use super::plan::{self, Run};
use super::{LONG, Programs, Tally, argv, programs, tell};
use crate::error::{Result, failed};
use crate::image::Image;
use crate::nest::intel::{self, Contents, Job};
use crate::progress::step;

/// Runs the tests, and counts what came of them.
pub(super) fn test(runs: &[Run], long: bool, tally: &mut Tally) -> Result<()> {
    let names = plan::kernels_of(runs);
    let vmlinux = runs.iter().any(|run| run.case.name == "boot-elf");
    let guests = step(
        &format!("preparing the images of {}", names.join(", ")),
        || {
            let mut guests = Vec::new();
            for name in &names {
                let image = Image::guest(name)?;
                if vmlinux {
                    image.kernel.vmlinux()?;
                }
                guests.push(image);
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
        programs: vec![suite, vmm, vmmctl, hostile],
        guests,
        vmlinux,
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

/// The batch's commands, numbered from 1.
fn jobs(runs: &[Run], long: bool) -> Result<Vec<Job>> {
    let (suite, vmm) = (intel::program("guest-suite"), intel::program("vmm"));
    let times = if long { LONG } else { 1 };
    let job = |(number, run): (u32, &Run)| {
        let argv = argv(run, &suite, &vmm, long)
            .into_iter()
            .map(|word| word.into_string())
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
    use super::super::Wish;
    use super::*;

    #[test]
    fn commands_are_numbered_from_1_and_name_what_is_on_the_disc() {
        let runs = plan::plan_intel(&Wish::default()).unwrap();
        let jobs = jobs(&runs, true).unwrap();
        let first = jobs.first().unwrap();
        assert_eq!(first.command.id, 1);
        assert_eq!(first.command.limit, 240 * LONG);
        assert_eq!(
            first.command.argv.join(" "),
            "/batch/bin/guest-suite run boot --kernel bookworm-cloud --cpus 1 \
             --vmm /batch/bin/vmm --long"
        );
        assert!(first.name.starts_with("[1/"));
    }
}
