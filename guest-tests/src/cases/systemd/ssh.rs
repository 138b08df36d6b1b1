// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A shell and files without a network: the host's OpenSSH client, the guest's
//! sshd as systemd puts it on vsock, and a key from the kernel's command line.
//! Nothing of ours is in the guest but the agent that looks at the outcome.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::super::vmbus::note;
use super::{LIMIT, boot_with, check_up};
use crate::ensure;
use crate::rootfs;
use crate::suite::{Context, Control, Failure, Outcome, Vm};

/// A pair of keys, where ssh accepts the private one.
struct Keys {
    dir: PathBuf,
    private: String,
    public: String,
}

impl Keys {
    fn make() -> Outcome<Self> {
        // Not in the scratch directory: ssh is strict about a key's owner.
        let dir = std::env::temp_dir().join(format!("ssh-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        let private = dir.join("key").display().to_string();
        let made = Command::new("ssh-keygen")
            .args([
                "-q", "-t", "ed25519", "-N", "", "-C", "a test", "-f", &private,
            ])
            .status()?;
        ensure!(made.success(), "ssh-keygen ended with {made}");
        let public = format!("{private}.pub");
        Ok(Self {
            dir,
            private,
            public,
        })
    }
}

/// A guest that has come up, its way in, and a directory of the nest's own.
struct Guest {
    vm: Vm,
    control: Control,
    keys: Keys,
}

fn start(context: &Context) -> Outcome<Option<Guest>> {
    let keys = Keys::make()?;
    let Some((mut vm, control)) = boot_with(context, &["--ssh-key", &keys.public])? else {
        return Ok(None);
    };
    check_up(&mut vm, &control)?;
    Ok(Some(Guest { vm, control, keys }))
}

impl Guest {
    fn ssh(&self, args: &[&str]) -> Command {
        let mut all = vec!["ssh", "-i", &self.keys.private, "-o", "BatchMode=yes"];
        all.extend(args);
        self.control.command(&all)
    }

    fn cp(&self, args: &[&str]) -> Command {
        let mut all = vec!["cp", "-i", &self.keys.private, "-o", "BatchMode=yes"];
        all.extend(args);
        self.control.command(&all)
    }

    fn end(mut self) -> Outcome {
        self.control.ok(&["shutdown", "--timeout", "200s"])?;
        self.vm.expect_exit(0)?;
        let _ = fs::remove_dir_all(&self.keys.dir);
        Ok(())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn expect(output: &Output, code: i32, stdout: &str) -> Outcome {
    ensure!(
        output.status.code() == Some(code) && text(&output.stdout) == stdout,
        "expecting {code} and {stdout:?}: {output:?}"
    );
    Ok(())
}

/// Gives a program its input and takes its output.
fn through(mut command: Command, input: Vec<u8>) -> Outcome<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let Some(mut stdin) = child.stdin.take() else {
        return Err(Failure("no pipe to ssh".to_owned()));
    };
    let writer = thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output()?;
    writer
        .join()
        .map_err(|_| Failure("the writer panicked".to_owned()))??;
    Ok(output)
}

fn random(len: u64) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open("/dev/urandom")?
        .take(len)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn hash(path: &Path) -> Outcome<String> {
    let output = Command::new("sha256sum").arg(path).output()?;
    Ok(text(&output.stdout)
        .split(' ')
        .next()
        .unwrap_or_default()
        .to_owned())
}

/// MB/s, for people.
#[allow(clippy::cast_precision_loss)]
fn rate(bytes: u64, since: Instant) -> f64 {
    bytes as f64 / since.elapsed().as_secs_f64() / 1e6
}

pub(super) fn shell(context: &Context) -> Outcome {
    let Some(mut guest) = start(context)? else {
        return Ok(());
    };
    let began = Instant::now();
    let output = guest
        .ssh(&["--", "id -un; echo words >&2; exit 7"])
        .output()?;
    note(&format!(
        "a command takes {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    expect(&output, 7, "root\n")?;
    ensure!(text(&output.stderr) == "words\n", "it says {output:?}");
    let output = guest.ssh(&["nobody@", "-v", "true"]).output()?;
    ensure!(
        output.status.code() == Some(255) && text(&output.stderr).contains("nobody@"),
        "another user comes in, or it is not told: {output:?}"
    );
    let data = random(1 << 20)?;
    let output = through(guest.ssh(&["cat"]), data.clone())?;
    ensure!(
        output.status.success() && output.stdout == data,
        "1 MiB comes back as {} bytes, {}",
        output.stdout.len(),
        output.status
    );
    systemds_proxy(&guest)?;
    // The same guest with nothing on the port.
    guest.vm.sh_ok("systemctl stop sshd-vsock.socket")?;
    let output = guest.ssh(&["true"]).output()?;
    ensure!(
        output.status.code() == Some(255) && text(&output.stderr).contains("openssh-server"),
        "without a listener: {output:?}"
    );
    // The units that the documentation has for an older systemd stand in for
    // those that this one makes.
    for (path, text) in units() {
        guest
            .vm
            .sh_ok(&format!("cat > {path} <<'END'\n{text}END"))?;
    }
    guest
        .vm
        .sh_ok("systemctl daemon-reload && systemctl start sshd-vsock.socket")?;
    let whence = "systemctl show -P FragmentPath sshd-vsock.socket";
    let output = guest.ssh(&["--", whence]).output()?;
    expect(&output, 0, "/etc/systemd/system/sshd-vsock.socket\n")?;
    let failed = guest.vm.sh_ok("systemctl --failed --no-legend --plain")?;
    ensure!(failed.is_empty(), "units have failed: {failed}");
    guest.end()
}

/// The units in the documentation: where each belongs, and its text.
fn units() -> Vec<(String, String)> {
    let page = include_str!("../../../../docs/ssh.md");
    let blocks = page.split("```ini\n# ").skip(1);
    blocks
        .filter_map(|rest| {
            let (path, text) = rest.split_once("```")?.0.split_once('\n')?;
            Some((path.to_owned(), text.to_owned()))
        })
        .collect()
}

/// systemd's own proxy for ssh, the release's: it runs with the libraries of the
/// tree that it is from, and is given the address as its documentation has it.
fn systemds_proxy(guest: &Guest) -> Outcome {
    let tree = rootfs::tree_path()?;
    let lib = tree.join("usr/lib");
    let libraries = lib.join("x86_64-linux-gnu");
    let status = guest.control.status()?;
    let socket = status.get("vsock").and_then(|path| path.as_str());
    let proxy = format!(
        "ProxyCommand={} --library-path {}:{} {} %h %p",
        libraries.join("ld-linux-x86-64.so.2").display(),
        libraries.display(),
        libraries.join("systemd").display(),
        lib.join("systemd/systemd-ssh-proxy").display(),
    );
    let host = format!("root@vsock-mux{}", socket.unwrap_or_default());
    let output = Command::new("ssh")
        .args([
            "-i",
            &guest.keys.private,
            "-o",
            "BatchMode=yes",
            "-o",
            &proxy,
        ])
        .args(["-o", "ProxyUseFdpass=yes", "-o", "CheckHostIP=no"])
        .args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ])
        .args([&host, "systemd-detect-virt; exit 5"])
        .stdin(Stdio::null())
        .output()?;
    expect(&output, 5, "microsoft\n")
}

pub(super) fn files(context: &Context) -> Outcome {
    let Some(mut guest) = start(context)? else {
        return Ok(());
    };
    let size = context.times(4 << 20, 100_000_000);
    let here = guest.keys.dir.join("files");
    let to = format!("{}/", here.display());
    let big = guest.keys.dir.join("big");
    fs::write(&big, random(size)?)?;
    let wanted = hash(&big)?;
    let began = Instant::now();
    let output = guest
        .ssh(&["cat > /tmp/big"])
        .stdin(File::open(&big)?)
        .output()?;
    expect(&output, 0, "")?;
    let into = rate(size, began);
    let there = guest.vm.sh_ok("sha256sum /tmp/big | cut -d' ' -f1")?;
    ensure!(
        there == wanted,
        "{size} bytes arrive otherwise in the guest"
    );
    let began = Instant::now();
    let output = guest.cp(&["guest:/tmp/big", &to, "--mkdir"]).output()?;
    ensure!(output.status.success(), "vmmctl cp: {output:?}");
    let out = rate(size, began);
    ensure!(
        hash(&here.join("big"))? == wanted,
        "{size} bytes arrive otherwise here"
    );
    note(&format!(
        "{size} bytes: {into:.2} MB/s in, {out:.2} MB/s out"
    ));
    many(&mut guest, &here, &to, context.times(200, 5000))?;
    refusals(&guest, &here, &to)?;
    interrupted(&mut guest, &here, &to)?;
    guest.end()
}

/// A directory of many files, links and others.
fn many(guest: &mut Guest, here: &Path, to: &str, count: u64) -> Outcome {
    guest.vm.sh_ok(&format!(
        "mkdir -p '/srv/a dir/sub' && cd '/srv/a dir' && \
         for n in $(seq {count}); do echo $n > sub/f$n; done && \
         chmod 755 sub/f1 && ln sub/f1 same && ln -s sub/f2 near && ln -s /etc/passwd far && \
         mkfifo pipe && : > empty && mkdir -m 700 private && \
         echo secret > private/key && chmod 600 private/key && \
         cp sub/f2 setuid && chmod 4755 setuid && \
         for n in $(seq 40); do ln sub/f3 hard$n; done"
    ))?;
    let output = guest.cp(&["--json", "guest:/srv/a dir", to]).output()?;
    let answer: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    let files = answer.get("files").and_then(|files| files.as_array());
    let copied = u64::try_from(files.map_or(0, Vec::len)).unwrap_or(0);
    ensure!(
        output.status.success()
            && copied == count + 44
            && answer.get("left_out") == Some(&2.into()),
        "{copied} files of {count} and 44 more: {output:?}"
    );
    let said = text(&output.stderr);
    ensure!(
        said.contains("far: left out: a link that leads out, to /etc/passwd"),
        "a link that leads out is not told: {said}"
    );
    let dir = here.join("a dir");
    // Whatever the umask is here, nobody gets more rights than in the guest.
    for (name, widest) in [
        ("private", 0o700),
        ("private/key", 0o600),
        ("setuid", 0o755),
        ("sub/f2", 0o644),
    ] {
        let mode = fs::symlink_metadata(dir.join(name))?.mode() & 0o7777;
        ensure!(
            mode & !widest == 0 && mode & 0o400 != 0,
            "{name} has the mode {mode:o}, of {widest:o} in the guest"
        );
    }
    let linked = fs::symlink_metadata(dir.join("hard40"))?;
    let first = fs::symlink_metadata(dir.join("sub/f3"))?;
    ensure!(
        linked.ino() == first.ino() && linked.nlink() == 41,
        "a hard link was copied: {} names",
        linked.nlink()
    );
    for (name, wanted) in [
        (format!("sub/f{count}"), format!("{count}\n")),
        ("same".to_owned(), "1\n".to_owned()),
        ("near".to_owned(), "2\n".to_owned()),
        ("empty".to_owned(), String::new()),
    ] {
        let found = fs::read_to_string(dir.join(&name))?;
        ensure!(found == wanted, "{name} is {found:?}");
    }
    let there = fs::read_dir(dir.join("sub"))?.count();
    ensure!(
        u64::try_from(there) == Ok(count),
        "{there} of {count} files are there"
    );
    Ok(())
}

fn refusals(guest: &Guest, here: &Path, to: &str) -> Outcome {
    let refused = |args: &[&str], code: i32, words: &str| -> Outcome {
        let output = guest.cp(args).output()?;
        ensure!(
            output.status.code() == Some(code) && text(&output.stderr).contains(words),
            "cp {args:?}, expecting {code}, {words}: {output:?}"
        );
        Ok(())
    };
    fs::write(here.join("hostname"), "mine")?;
    refused(&["guest:/etc/hostname", to], 1, "--overwrite")?;
    refused(&["guest:/etc/none", to], 1, "no such file")?;
    refused(&["guest:/etc/hostname", "/bin/sh", to], 2, "guest:")?;
    refused(&["guest:/etc/hostname", "/no/such/dir/"], 1, "/no/such/dir")?;
    let found = fs::read_to_string(here.join("hostname"))?;
    ensure!(found == "mine", "it was replaced by {found:?}");
    let output = guest
        .cp(&["guest:/etc/hostname", to, "--overwrite"])
        .output()?;
    let found = fs::read_to_string(here.join("hostname"))?;
    ensure!(
        output.status.success() && found == "guest\n",
        "{found:?}: {output:?}"
    );
    Ok(())
}

/// What ends it leaves no half of a file, and the next copy works.
fn interrupted(guest: &mut Guest, here: &Path, to: &str) -> Outcome {
    guest.vm.sh_ok("head -c 60000000 /dev/zero > /tmp/long")?;
    for signal in [Signal::INT, Signal::TERM] {
        let mut child = guest
            .cp(&["guest:/tmp/long", to])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let began = Instant::now();
        while !names(here)?.iter().any(|name| name.starts_with(".vmmctl-")) {
            ensure!(began.elapsed() < LIMIT, "the copy does not begin");
            thread::sleep(Duration::from_millis(20));
        }
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, signal)?;
        }
        let status = child.wait()?;
        let left = names(here)?;
        ensure!(
            status.code() == Some(1)
                && !left
                    .iter()
                    .any(|name| name.contains("long") || name.starts_with('.')),
            "after {signal:?}: {status}, {left:?}"
        );
    }
    expect(&guest.ssh(&["echo", "still"]).output()?, 0, "still\n")
}

fn names(dir: &Path) -> Outcome<Vec<String>> {
    let entries = fs::read_dir(dir)?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_documentation_has_a_socket_and_its_service() {
        let units = super::units();
        let paths: Vec<&str> = units.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "/etc/systemd/system/sshd-vsock.socket",
                "/etc/systemd/system/sshd-vsock@.service"
            ]
        );
        assert!(units[0].1.starts_with("[Socket]\nListenStream=vsock::22\n"));
        assert!(units[1].1.ends_with("RuntimeDirectoryPreserve=yes\n"));
    }
}
