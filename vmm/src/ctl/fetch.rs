// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl cp guest:/path… DIR/`: files and directories from a guest to this
//! host, over `vmmctl ssh`.
//!
//! ```text
//!  guest: sh, tar ─► sshd ═► ssh ─► Archive (tar) ─► Tree ─► DIR
//! ```
//!
//! What the guest sends decides nothing but what is below the name that the user
//! has given, and how much of that there is only up to a limit: see
//! [`super::tree`]. A link that would lead out, a device or a FIFO is told and left
//! out.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::thread;

use rustix::io::Errno;
use serde_json::{Value, json};

use super::bar::Bar;
use super::client::Client;
use super::commands::print;
use super::cp::Cp;
use super::running::Running;
use super::ssh::{Words, cannot_run, quoted, ssh};
use super::tar::{Archive, Entry, Kind, TarError};
use super::tree::{LinkError, Name, Partial, Tree};
use super::{CtlError, tell};
use crate::escape;

/// Sends the directory `$1/$2`, or the file, as a tar archive: of a directory
/// what is in it, of a link what it leads to.
const SCRIPT: &str = r#"cd -- "$1" || exit 1
if [ -d "./$2/" ]; then cd -- "./$2/" && exec tar -cf - .
elif [ -f "./$2" ]; then exec tar -chf - "./$2"
elif [ -e "./$2" ]; then echo "$1$2: neither a file nor a directory" >&2
else echo "$1$2: no such file or directory" >&2
fi
exit 1"#;
/// What ends an archive is followed by zeroes up to a record, and by nothing.
const MAX_REST: u64 = 1 << 20;
/// Entries that are left out and told; of more, how many.
const TOLD: usize = 50;
/// ssh's own exit code for what has gone wrong with it.
const SSH_FAILED: i32 = 255;
/// More than a line of words for people has.
const MAX_LINE: u64 = 4096;

/// What is copied: a file or directory of the guest's, and what it is called here.
#[derive(Debug, PartialEq, Eq)]
struct Job {
    /// Its directory in the guest.
    dir: Vec<u8>,
    /// Its name there.
    name: Vec<u8>,
    /// Its name here.
    top: OsString,
}

/// Copies from the guest: paths without their `guest:`, and where to.
pub(super) fn run(
    vm: &Client,
    what: &Cp,
    sources: &[&str],
    to: &str,
    json: bool,
) -> Result<(), CtlError> {
    let to = Path::new(to);
    let into = to.is_dir() || to.as_os_str().as_bytes().ends_with(b"/");
    if sources.len() > 1 && !into {
        return Err(CtlError::Usage(
            "several files go into a directory: end its path with a '/'".into(),
        ));
    }
    let dir = if into { to } else { parent(to) };
    let jobs: Vec<Job> = sources
        .iter()
        .map(|source| Job::new(source, (!into).then(|| to.file_name()).flatten()))
        .collect::<Result<_, _>>()?;
    if what.mkdir {
        std::fs::create_dir_all(dir).map_err(|error| told_path(dir, &error))?;
    }
    let mut fetch = Fetch {
        tree: Tree::open(dir).map_err(|error| told_path(dir, &error))?,
        dir: dir.to_owned(),
        overwrite: what.overwrite,
        most: what.max_size.unwrap_or(MAX_SIZE),
        entries: 0,
        running: Running::watched()?,
        bar: Bar::new(None, !json && io::stderr().is_terminal()),
        json,
        answers: Vec::new(),
        files: 0,
        left_out: 0,
        failed: 0,
    };
    let mut failure = None;
    for job in &jobs {
        let result = ssh(vm, &job.words(what)).and_then(|command| fetch.fetch(job, command));
        fetch.bar.clear();
        if fetch.running.stopped() {
            failure = Some(CtlError::Some("interrupted".into()));
            break;
        }
        if let Err(error) = result {
            fetch.failed += 1;
            if jobs.len() == 1 {
                failure = Some(error);
                break;
            }
            tell(error);
        }
    }
    if failure.is_none() || fetch.files > 0 {
        fetch.tell_all()?;
    }
    match (failure, fetch.failed) {
        (Some(error), _) => Err(error),
        (None, 0) => Ok(()),
        (None, failed) => Err(CtlError::Some(format!("{failed} not copied"))),
    }
}

/// Unpacks what a guest sends under the name `top` into a directory. It is what a copy
/// does with an archive; by itself it is there for the fuzzer.
pub fn unpack_into(dir: &Path, top: &str, input: impl Read) -> Result<(), CtlError> {
    let mut fetch = Fetch {
        tree: Tree::open(dir).map_err(|error| told_path(dir, &error))?,
        dir: dir.to_owned(),
        overwrite: true,
        most: MAX_SIZE,
        entries: 0,
        running: Running::default(),
        bar: Bar::new(None, false),
        json: true,
        answers: Vec::new(),
        files: 0,
        left_out: 0,
        failed: 0,
    };
    let job = Job::new(&format!("/{top}"), None)?;
    let unpacked = fetch.unpack(&job, &mut Archive::new(input));
    unpacked.map_err(|error| CtlError::Some(error.to_string()))
}

/// The directory of a path that may have none.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn told_path(path: &Path, error: &io::Error) -> CtlError {
    CtlError::Some(format!("{}: {error}", path.display()))
}

impl Job {
    fn new(source: &str, top: Option<&OsStr>) -> Result<Self, CtlError> {
        let usage = |why: &str| CtlError::Usage(format!("guest:{source}: {why}"));
        if !source.starts_with('/') {
            return Err(usage("a guest's path begins with a '/'"));
        }
        let (dir, name) = source
            .trim_end_matches('/')
            .rsplit_once('/')
            .ok_or_else(|| usage("all of the guest cannot be copied: name what is wanted"))?;
        if matches!(name, "." | "..") {
            return Err(usage("a file or directory has to be named"));
        }
        Ok(Self {
            dir: format!("{dir}/").into_bytes(),
            name: name.as_bytes().to_vec(),
            top: top.map_or_else(|| name.into(), OsStr::to_owned),
        })
    }

    /// For ssh: its options, and the command in the guest.
    fn words(&self, what: &Cp) -> Words {
        let [script, dir, name] = [SCRIPT.as_bytes(), &self.dir, &self.name].map(quoted);
        let line = [b"exec sh -c ", &script[..], b" sh ", &dir, b" ", &name].concat();
        let mut options = what.ssh_options();
        for option in PLAIN {
            options.extend(["-o", option].map(OsString::from));
        }
        Words {
            options,
            user: None,
            command: vec![OsString::from_vec(line)],
        }
    }

    fn shown(&self) -> String {
        format!(
            "guest:{}{}",
            escape::line(&self.dir),
            escape::line(&self.name)
        )
    }
}

/// Of what a user's configuration may have for shells, nothing is for a guest that
/// is only read from; and one that says nothing is given up.
const PLAIN: [&str; 4] = [
    "RemoteCommand=none",
    "RequestTTY=no",
    "ConnectTimeout=60",
    "ServerAliveInterval=30",
];
/// Files that `--json` names; the rest is counted.
const MAX_NAMED: usize = 65_536;
/// Bytes that one command copies from a guest unless `--max-size` says otherwise: more
/// than a guest without a disk has, and less than most disks.
const MAX_SIZE: u64 = 64 << 30;
/// Files, directories and links of one command: ten times what a distribution has.
const MAX_ENTRIES: u64 = 4 << 20;
/// Bytes of a name in a message.
const MAX_SHOWN: usize = 300;

/// A copy, and what came of it.
struct Fetch {
    tree: Tree,
    dir: PathBuf,
    overwrite: bool,
    /// Bytes that may come.
    most: u64,
    /// What has come: files, directories, links and others.
    entries: u64,
    running: Running,
    bar: Bar,
    json: bool,
    answers: Vec<Value>,
    files: usize,
    /// Links and special files.
    left_out: usize,
    failed: usize,
}

impl Fetch {
    /// Runs a command whose output is the archive.
    fn fetch(&mut self, job: &Job, mut command: Command) -> Result<(), CtlError> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| cannot_run(&error))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        self.running.set(child);
        let words = thread::spawn(move || stderr.map(pass_on));
        let unpacked = match stdout {
            Some(stdout) => self.archive(job, stdout),
            None => Err(FetchError::Unexpected),
        };
        let ended = matches!(unpacked, Ok(()) | Err(FetchError::Tar(TarError::Ended)));
        if !ended {
            // What it sends is not wanted any more.
            self.running.kill();
        }
        let status = self.running.end()?;
        if ended {
            let _ = words.join();
        }
        match (unpacked, status.code()) {
            (Ok(()), Some(0)) => Ok(()),
            (Ok(()) | Err(FetchError::Tar(TarError::Ended)), Some(SSH_FAILED)) => {
                Err("the connection to the guest's sshd failed".into())
            }
            (Err(FetchError::Tar(TarError::Ended)), Some(1..)) => Err("not copied".into()),
            (Ok(()), _) => Err(format!(
                "the guest's tar ended with {status}: not all of it is here, or not whole"
            )),
            (Err(error), _) => Err(error.to_string()),
        }
        .map_err(|error| CtlError::Some(format!("{}: {error}", job.shown())))
    }

    fn archive(&mut self, job: &Job, stdout: ChildStdout) -> Result<(), FetchError> {
        let mut archive = Archive::new(BufReader::with_capacity(64 << 10, stdout));
        self.unpack(job, &mut archive)?;
        let mut rest = archive.into_input().take(MAX_REST);
        io::copy(&mut rest, &mut io::sink())?;
        Ok(())
    }

    /// A file under its name here, whatever the guest calls it; or a directory,
    /// which begins with itself, and all that is below it.
    fn unpack(&mut self, job: &Job, archive: &mut Archive<impl Read>) -> Result<(), FetchError> {
        let top = || Name::parse(job.top.as_bytes()).map_err(|_| FetchError::Unexpected);
        let first = archive.entry()?.ok_or(FetchError::Unexpected)?;
        if let Kind::File(_) = first.kind {
            self.entry(&top()?, &first, archive)?;
            return match archive.entry()? {
                None => Ok(()),
                Some(_) => Err(FetchError::Unexpected),
            };
        }
        if first.kind != Kind::Directory || !name_of(&first.name)?.is_top() {
            return Err(FetchError::Unexpected);
        }
        self.tree.directory(&top()?, first.mode)?;
        while let Some(mut entry) = archive.entry()? {
            self.entries = self.entries.saturating_add(1);
            if self.entries > MAX_ENTRIES {
                return Err(FetchError::Many);
            }
            let name = name_of(&entry.name)?.below(&job.top);
            if let Kind::HardLink(to) = &mut entry.kind {
                *to = name_of(to)?.below(&job.top).bytes();
            }
            self.entry(&name, &entry, archive)?;
        }
        Ok(())
    }

    /// One entry. That something is in its way is told, and the next is tried.
    fn entry(
        &mut self,
        name: &Name,
        entry: &Entry,
        archive: &mut Archive<impl Read>,
    ) -> Result<(), FetchError> {
        let overwrite = self.overwrite;
        let done = match &entry.kind {
            Kind::Directory => self.tree.directory(name, entry.mode),
            Kind::Symlink(to) if name.holds_link(to) => self.tree.symlink(name, to, overwrite),
            Kind::Symlink(to) => {
                let to = escape::line_within(to, MAX_SHOWN);
                self.leave_out(name, &format!("a link that leads out, to {to}"));
                Ok(())
            }
            Kind::Other(_) => {
                self.leave_out(name, "no file, directory or link");
                Ok(())
            }
            Kind::File(size) if self.bar.bytes.saturating_add(*size) > self.most => {
                return Err(FetchError::Much(self.most));
            }
            Kind::File(size) => match self.tree.create(name, entry.mode, overwrite) {
                Ok(file) => return self.file(name, *size, file, |part| archive.data(part)),
                Err(error) => Err(error),
            },
            Kind::HardLink(to) => {
                let to = name_of(to)?;
                match self.tree.link(name, &to, overwrite) {
                    Ok(size) => {
                        self.done(name, size, Some(&to));
                        Ok(())
                    }
                    Err(LinkError::NotMade) => {
                        let to = escape::line_within(to.bytes(), MAX_SHOWN);
                        let error = LinkError::NotMade;
                        self.fail(name, &format!("left out: {error}: {to}"));
                        Ok(())
                    }
                    Err(LinkError::Io(error)) => Err(error),
                }
            }
        };
        match done {
            Err(error) if is_in_the_way(&error) => {
                self.fail(name, &in_the_way(&error));
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// All of a file.
    fn file(
        &mut self,
        name: &Name,
        size: u64,
        mut file: Partial,
        mut data: impl FnMut(&mut [u8]) -> Result<usize, TarError>,
    ) -> Result<(), FetchError> {
        self.bar.next(&name.bytes(), size);
        let (mut chunk, mut done) = (vec![0; 64 << 10], 0);
        loop {
            let count = data(&mut chunk)?;
            if count == 0 {
                break;
            }
            file.write_all(chunk.get(..count).unwrap_or_default())?;
            done += count as u64;
            self.bar.at(done);
            if self.running.stopped() {
                return Err(FetchError::Stopped);
            }
        }
        if done != size {
            return Err(FetchError::Short);
        }
        self.tree.keep(file)?;
        self.bar.bytes += size;
        self.done(name, size, None);
        Ok(())
    }

    /// A file is there, or a link to one.
    fn done(&mut self, name: &Name, size: u64, link_to: Option<&Name>) {
        self.files += 1;
        if !self.json || self.answers.len() >= MAX_NAMED {
            return;
        }
        let path = |name: &Name| {
            let path = self.dir.join(OsStr::from_bytes(&name.bytes()));
            path.to_string_lossy().into_owned()
        };
        let mut answer = json!({"path": path(name), "size": size});
        if let (Some(to), Some(answer)) = (link_to, answer.as_object_mut()) {
            answer.insert("link_to".into(), path(to).into());
        }
        self.answers.push(answer);
    }

    /// It is not here, and should be.
    fn fail(&mut self, name: &Name, why: &str) {
        self.failed += 1;
        self.tell(name, self.failed, why);
    }

    fn leave_out(&mut self, name: &Name, why: &str) {
        self.left_out += 1;
        self.tell(name, self.left_out, &format!("left out: {why}"));
    }

    fn tell(&mut self, name: &Name, number: usize, what: &str) {
        self.bar.clear();
        let name = escape::line_within(name.bytes(), MAX_SHOWN);
        match number {
            ..=TOLD => tell(format_args!("{name}: {what}")),
            number if number == TOLD + 1 => tell("… and more"),
            _ => {}
        }
    }

    fn tell_all(&self) -> Result<(), CtlError> {
        let answer = json!({
            "files": self.answers,
            "not_named": self.files.saturating_sub(self.answers.len()),
            "left_out": self.left_out,
            "failed": self.failed,
        });
        print(self.json, &answer, || Ok(self.bar.sum(self.files)))
    }
}

fn name_of(name: &[u8]) -> Result<Name, FetchError> {
    Name::parse(name).map_err(|error| FetchError::Name(escape::line_within(name, MAX_SHOWN), error))
}

/// Why a copy cannot go on.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{0}")]
    Tar(#[from] TarError),
    #[error("the guest sends a name that {1}: '{0}'; nothing more is taken from it")]
    Name(String, super::tree::NameError),
    #[error("the guest sends something else than what was asked for")]
    Unexpected,
    #[error("a file has changed while it was copied")]
    Short,
    #[error("the guest sends more than {0} bytes; --max-size allows more")]
    Much(u64),
    #[error("the guest sends more than {MAX_ENTRIES} files, directories and links")]
    Many,
    #[error("interrupted")]
    Stopped,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Whether an error is about one name only.
fn is_in_the_way(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::EXIST
                | Errno::ISDIR
                | Errno::NOTDIR
                | Errno::NAMETOOLONG
                | Errno::INVAL
                | Errno::NOENT
                | Errno::LOOP
                | Errno::ACCESS
                | Errno::PERM
                | Errno::MLINK
                | Errno::OPNOTSUPP
        )
    )
}

fn in_the_way(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::EXIST) => "is there already; --overwrite replaces it".into(),
        Some(Errno::ISDIR) => "there is a directory of this name".into(),
        Some(Errno::NOTDIR) => "something that is no directory is in the way".into(),
        Some(Errno::NOENT) => "its directory is not there".into(),
        _ => error.to_string(),
    }
}

/// Lines of ssh and of the guest, as they may be shown.
fn pass_on(stderr: impl Read) {
    let mut stderr = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        match (&mut stderr).take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let line = line.trim_ascii_end();
                let _ = writeln!(io::stderr(), "{}", escape::line(line));
            }
        }
    }
}

#[cfg(test)]
mod tests;
