// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl cp`: files into the guest.
//!
//! One after the other; one that fails is told and the next is tried. Ending
//! this program closes its connection, which cancels the copy.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use ics_devices::fcopy::Target;
use serde_json::{Value, json};

use super::CtlError;
use super::client::Client;
use super::commands::print;
use crate::api::data::encoded;

/// Between two changes of the bar.
const REDRAW: Duration = Duration::from_millis(100);
/// Characters of the bar.
const BAR: usize = 24;

/// `vmmctl cp`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Cp {
    /// Files, then guest:/DIR/ or, for one file, guest:/path/name
    #[arg(required = true, num_args = 2.., value_name = "SRC… guest:/DIR/")]
    paths: Vec<String>,
    /// Overwrite files that exist in the guest
    #[arg(long)]
    overwrite: bool,
    /// Make directories that do not exist in the guest
    #[arg(long)]
    mkdir: bool,
}

/// A file and where it goes.
struct Job {
    source: PathBuf,
    target: Target,
}

/// Runs `vmmctl cp`.
pub fn run(vm: &Client, what: &Cp, json: bool) -> Result<(), CtlError> {
    let jobs = jobs(&what.paths)?;
    let mut bar = Bar::new(jobs.len(), !json && io::stderr().is_terminal());
    let (mut answers, mut failed) = (Vec::new(), 0);
    for job in &jobs {
        match copy(vm, what, job, &mut bar) {
            Ok(answer) => answers.push(answer),
            Err(error) => {
                bar.clear();
                if jobs.len() == 1 {
                    return Err(error);
                }
                failed += 1;
                let source = job.source.display();
                let _ = writeln!(io::stderr(), "vmmctl: {source}: {error}");
                if let CtlError::Connect { .. } = error {
                    return Err(error);
                }
            }
        }
    }
    bar.clear();
    let (files, bytes) = (answers.len(), bar.bytes);
    let seconds = bar.start.elapsed().as_secs_f64();
    print(json, &json!({"files": answers, "failed": failed}), || {
        // For people: a rounded number.
        #[allow(clippy::cast_precision_loss)]
        let rate = bytes as f64 / seconds.max(1e-6) / 1e6;
        let plural = if files == 1 { "" } else { "s" };
        Ok(format!(
            "{files} file{plural} copied, {bytes} bytes in {seconds:.1} s, {rate:.1} MB/s\n"
        ))
    })?;
    if failed > 0 {
        let all = jobs.len();
        return Err(CtlError::Some(format!(
            "{failed} of {all} files were not copied"
        )));
    }
    Ok(())
}

fn jobs(paths: &[String]) -> Result<Vec<Job>, CtlError> {
    let usage = |text: &str| CtlError::Some(text.to_owned());
    let Some((to, sources)) = paths.split_last() else {
        return Err(usage("nothing to copy"));
    };
    let to = to
        .strip_prefix("guest:")
        .ok_or_else(|| usage("the last path has to be in the guest, as guest:/DIR/"))?;
    if sources.len() > 1 && !to.ends_with('/') {
        return Err(usage(
            "several files go into a directory: end its path with a '/'",
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
            Target::new(&path).map_err(|error| CtlError::Some(format!("{path}: {error}")))?;
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
    bar.next(&job.source, size);
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

/// How far it is, on a terminal.
struct Bar {
    shown: bool,
    files: usize,
    number: usize,
    name: String,
    size: u64,
    /// Of whole files.
    bytes: u64,
    start: Instant,
    drawn: Option<Instant>,
}

impl Bar {
    fn new(files: usize, shown: bool) -> Self {
        Self {
            shown,
            files,
            number: 0,
            name: String::new(),
            size: 0,
            bytes: 0,
            start: Instant::now(),
            drawn: None,
        }
    }

    fn next(&mut self, source: &Path, size: u64) {
        self.number += 1;
        self.size = size;
        let name = source.file_name().unwrap_or_default().to_string_lossy();
        self.name = name.chars().filter(|c| !c.is_control()).take(32).collect();
    }

    fn at(&mut self, sent: u64) {
        let due = self.drawn.is_none_or(|drawn| drawn.elapsed() >= REDRAW);
        if !self.shown || !due {
            return;
        }
        self.drawn = Some(Instant::now());
        // A write to a terminal that is gone is nobody's loss.
        let _ = write!(io::stderr(), "\r{}\x1b[K", self.line(sent));
    }

    fn line(&self, sent: u64) -> String {
        let part = |of: u64| sent.saturating_mul(of).checked_div(self.size).unwrap_or(of);
        let full = usize::try_from(part(BAR as u64)).map_or(BAR, |full| full.min(BAR));
        let bar = "#".repeat(full) + &" ".repeat(BAR - full);
        let (number, files) = (self.number, self.files);
        let many = if files > 1 {
            format!("{number}/{files} ")
        } else {
            String::new()
        };
        #[allow(clippy::cast_precision_loss)]
        let rate = (self.bytes + sent) as f64 / self.start.elapsed().as_secs_f64().max(1e-6) / 1e6;
        format!(
            "{many}{:<20} [{bar}] {:3}% {rate:.1} MB/s",
            self.name,
            part(100)
        )
    }

    fn clear(&mut self) {
        if self.shown && self.drawn.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(paths: &[&str]) -> Result<Vec<String>, String> {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        match jobs(&paths) {
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
    fn the_bar_fills() {
        let mut bar = Bar::new(2, false);
        bar.next(Path::new("x/name"), 200);
        let line = bar.line(100);
        assert!(line.starts_with("1/2 name"), "{line}");
        assert!(line.contains("[############            ]  50%"), "{line}");
        bar.next(Path::new("empty"), 0);
        assert!(bar.line(0).contains("100%"));
    }
}
