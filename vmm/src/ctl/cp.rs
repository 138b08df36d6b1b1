// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl cp`: files into the guest, and the choice of the way; out of it is
//! `fetch.rs`.
//!
//! One after the other; one that fails is told and the next is tried. Ending
//! this program closes its connection, which cancels the copy.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use ics_devices::fcopy::Target;
use serde_json::{Value, json};

use super::bar::Bar;
use super::client::Client;
use super::commands::print;
use super::{CtlError, fetch, tell};
use crate::api::data::encoded;
use crate::cli::size;

/// `vmmctl cp`.
#[derive(Debug, Clone, Default, ClapArgs)]
#[command(
    override_usage = "vmmctl cp [OPTIONS] SRC… guest:/DIR/\n       vmmctl cp [OPTIONS] guest:/PATH… DIR/",
    after_help = "\
Into the guest it takes the file copy service (vmm --ic +fcopy) and the guest's hv_fcopy daemon. Out
of the guest, files and whole directories come over vmmctl ssh, and it takes what that takes: an sshd
in the guest, and a key.

Examples:
  vmmctl cp app.conf guest:/etc/app/ --mkdir
  vmmctl cp guest:/var/log guest:/etc/os-release results/"
)]
pub struct Cp {
    /// What, then where to; one of both is in the guest, as guest:/PATH
    #[arg(required = true, num_args = 2.., value_name = "PATH")]
    paths: Vec<String>,
    /// Overwrite files that exist
    #[arg(long)]
    pub(super) overwrite: bool,
    /// Make directories that do not exist
    #[arg(long)]
    pub(super) mkdir: bool,
    /// Out of the guest: the user that logs in there [default: root]
    #[arg(short = 'l', long, value_name = "USER")]
    user: Option<String>,
    /// Out of the guest: the file with the private key, as for ssh -i
    #[arg(short, long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Out of the guest: take no more bytes than this, such as 500M or 1T [default: 64G]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(super) max_size: Option<u64>,
    /// Out of the guest: an option of ssh_config(5); may be given several times
    #[arg(short = 'o', long = "ssh-option", value_name = "NAME=VALUE")]
    ssh_options: Vec<String>,
}

impl Cp {
    /// What makes no sense with any VM.
    pub(super) fn check(&self) -> Result<(), CtlError> {
        match Way::of(&self.paths)? {
            Way::Out(..) => Ok(()),
            Way::In(..) if !self.ssh_options().is_empty() || self.max_size.is_some() => {
                let why = "-l, -i, -o and --max-size are for copies out of the guest";
                Err(CtlError::Usage(why.into()))
            }
            Way::In(sources, to) => jobs(sources, to).map(drop),
        }
    }

    /// For ssh, in its own words.
    pub(super) fn ssh_options(&self) -> Vec<OsString> {
        let mut options = Vec::new();
        let mut add = |option: &str, value: &OsStr| {
            options.push(option.into());
            options.push(value.to_owned());
        };
        if let Some(user) = &self.user {
            add("-l", user.as_ref());
        }
        if let Some(identity) = &self.identity {
            add("-i", identity.as_ref());
        }
        for option in &self.ssh_options {
            add("-o", option.as_ref());
        }
        options
    }
}

/// Which way, told by where `guest:` stands.
#[derive(Debug, PartialEq, Eq)]
enum Way<'a> {
    /// To the guest's path.
    In(&'a [String], &'a str),
    /// From paths of the guest to a directory here.
    Out(Vec<&'a str>, &'a str),
}

impl<'a> Way<'a> {
    fn of(paths: &'a [String]) -> Result<Self, CtlError> {
        let usage = |text: &str| Err(CtlError::Usage(text.to_owned()));
        let Some((to, sources)) = paths.split_last() else {
            return usage("nothing to copy");
        };
        let in_guest = |path: &'a String| path.strip_prefix("guest:");
        let from: Vec<&str> = sources.iter().filter_map(in_guest).collect();
        match in_guest(to) {
            Some(to) if from.is_empty() => Ok(Self::In(sources, to)),
            None if from.len() == sources.len() => Ok(Self::Out(from, to)),
            None if from.is_empty() => {
                usage("the last path has to be in the guest, as guest:/DIR/, or all others")
            }
            _ => usage("either the last path is in the guest, as guest:/DIR/, or all others are"),
        }
    }
}

/// A file and where it goes.
struct Job {
    source: PathBuf,
    target: Target,
}

/// Runs `vmmctl cp`.
pub fn run(vm: &Client, what: &Cp, json: bool) -> Result<(), CtlError> {
    match Way::of(&what.paths)? {
        Way::Out(from, to) => fetch::run(vm, what, &from, to, json),
        Way::In(sources, to) => send(vm, what, &jobs(sources, to)?, json),
    }
}

/// Copies into the guest.
fn send(vm: &Client, what: &Cp, jobs: &[Job], json: bool) -> Result<(), CtlError> {
    let mut bar = Bar::new(Some(jobs.len()), !json && io::stderr().is_terminal());
    let (mut answers, mut failed) = (Vec::new(), 0);
    for job in jobs {
        match copy(vm, what, job, &mut bar) {
            Ok(answer) => answers.push(answer),
            Err(error) => {
                bar.clear();
                if jobs.len() == 1 {
                    return Err(error);
                }
                failed += 1;
                tell(format_args!("{}: {error}", job.source.display()));
                if let CtlError::Connect { .. } = error {
                    return Err(error);
                }
            }
        }
    }
    bar.clear();
    let files = answers.len();
    print(json, &json!({"files": answers, "failed": failed}), || {
        Ok(bar.sum(files))
    })?;
    if failed > 0 {
        let all = jobs.len();
        return Err(CtlError::Some(format!(
            "{failed} of {all} files were not copied"
        )));
    }
    Ok(())
}

fn jobs(sources: &[String], to: &str) -> Result<Vec<Job>, CtlError> {
    if sources.len() > 1 && !to.ends_with('/') {
        return Err(CtlError::Usage(
            "several files go into a directory: end its path with a '/'".into(),
        ));
    }
    let job = |source: &String| {
        let source = PathBuf::from(source);
        let path = if to.ends_with('/') {
            let name = source.file_name().and_then(|name| name.to_str());
            let name = name.ok_or_else(|| {
                CtlError::Some(format!("{} has no name of UTF-8", source.display()))
            })?;
            format!("{to}{name}")
        } else {
            to.to_owned()
        };
        let target =
            Target::new(&path).map_err(|error| CtlError::Usage(format!("{path}: {error}")))?;
        Ok(Job { source, target })
    };
    sources.iter().map(job).collect()
}

fn copy(vm: &Client, what: &Cp, job: &Job, bar: &mut Bar) -> Result<Value, CtlError> {
    let (mut file, size) = open(&job.source)?;
    let target = format!(
        "/v1/files?path={}&overwrite={}&mkdir={}",
        encoded(&job.target.to_string()),
        what.overwrite,
        what.mkdir
    );
    let name = job.source.file_name().unwrap_or_default();
    bar.next(name.as_bytes(), size);
    let answer = vm.upload(&target, size, &mut file, |sent| bar.at(sent))?;
    if answer["size"] != size {
        return Err(CtlError::Protocol(format!(
            "the guest has {} of {size} bytes",
            answer["size"]
        )));
    }
    bar.bytes += size;
    Ok(answer)
}

fn open(path: &Path) -> Result<(File, u64), CtlError> {
    let fail = |error: io::Error| CtlError::Some(format!("{}: {error}", path.display()));
    let file = File::open(path).map_err(fail)?;
    let about = file.metadata().map_err(fail)?;
    if !about.is_file() {
        return Err(CtlError::Some(format!(
            "{} is not a regular file",
            path.display()
        )));
    }
    Ok((file, about.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(paths: &[&str]) -> Result<Vec<String>, String> {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        let jobs = Way::of(&paths).and_then(|way| match way {
            Way::In(sources, to) => jobs(sources, to),
            Way::Out(..) => Err(CtlError::Usage("out".into())),
        });
        match jobs {
            Ok(jobs) => Ok(jobs.iter().map(|job| job.target.to_string()).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn files_go_into_a_directory_or_under_a_name() {
        assert_eq!(
            targets(&["a/b", "c", "guest:/d/"]),
            Ok(vec!["/d/b".into(), "/d/c".into()])
        );
        assert_eq!(targets(&["a/b", "guest:/d/e"]), Ok(vec!["/d/e".into()]));
        for wrong in [
            &["a", "b"][..],
            &["a", "b", "guest:/d"],
            &["a", "guest:d/"],
            &["..", "guest:/d/"],
            &["a", "guest:/d/.."],
        ] {
            assert!(targets(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_way_is_told_by_where_the_guest_stands() {
        let way = |paths: &[&str]| {
            let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
            match Way::of(&paths) {
                Ok(Way::In(from, to)) => format!("in {from:?} {to}"),
                Ok(Way::Out(from, to)) => format!("out {from:?} {to}"),
                Err(CtlError::Usage(_)) => "usage".into(),
                Err(error) => error.to_string(),
            }
        };
        assert_eq!(way(&["a", "b", "guest:/d/"]), "in [\"a\", \"b\"] /d/");
        assert_eq!(
            way(&["guest:/a", "guest:/b", "."]),
            "out [\"/a\", \"/b\"] ."
        );
        assert_eq!(way(&["a", "b"]), "usage");
        assert_eq!(way(&["guest:/a", "b", "c"]), "usage");
        assert_eq!(way(&["guest:/a", "b", "guest:/c"]), "usage");
        assert_eq!(way(&["guest:/a", "guest:/c"]), "usage");
    }
}
