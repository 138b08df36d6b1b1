// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl ssh`: the system's OpenSSH client, over a Hyper-V socket instead of
//! a network.
//!
//! ```text
//!  ssh ─ ProxyCommand ─► vmmctl connect 22 ─► vsock.sock ─► the guest's sshd
//! ```
//!
//! The connection is this user's own socket, which nobody can be in the middle
//! of, and throw-away guests make new host keys at each start. So keys of hosts
//! are neither asked about nor kept. What the user's configuration of ssh would let
//! any host have, the guest does not get: see `vmm/src/ctl/ssh_guard.rs`.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use clap::Args as ClapArgs;

use super::CtlError;
use super::client::{AS_KNOWN, Client};
use super::commands::parse;
use super::connect::SSH;
use super::ssh_guard::guard;
use crate::api::types::VmStatus;

/// Options of ssh(1) that have a value.
const WITH_VALUE: &[u8] = b"BbcDEeFIiJLlmOoPpQRSWw";
/// Who logs in unless somebody else is said.
const USER: &str = "root";
/// What a VM is called for ssh, after its name: `Host *.vmm` in ssh_config.
const DOMAIN: &str = ".vmm";

/// `vmmctl ssh`.
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Everything else is ssh's own: options, then a command with its arguments. Host keys are not checked,
and the user is root unless -l USER or USER@ says otherwise. A guest is not trusted: what a
configuration of ssh forwards (agent, X11, ports, variables) is off unless this command line says
it, as -A, -X, -L and -o do.

Examples:
  vmmctl ssh
  vmmctl ssh -- uname -a
  vmmctl ssh user@ -L 8080:localhost:80
  vmmctl ssh -i key 'cd /var/log && tar -c .' > logs.tar
  vmmctl ssh -A

Exit codes: that of the command, 255 if ssh failed, 1 if vmmctl did.

The guest needs an sshd on vsock port 22, which systemd 256 and newer serve when openssh-server is
installed, and a key of yours: vmm --ssh-key ~/.ssh/id_ed25519.pub. See docs/ssh.md.")]
pub struct Ssh {
    /// Options of ssh, USER@, a command
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    args: Vec<OsString>,
}

/// Becomes ssh.
pub fn run(vm: &Client, what: &Ssh) -> Result<(), CtlError> {
    let mut command = ssh(vm, &Words::split(&what.args))?;
    Err(cannot_run(&command.exec()))
}

/// Why there is no ssh.
pub(super) fn cannot_run(error: &std::io::Error) -> CtlError {
    CtlError::Some(match error.kind() {
        ErrorKind::NotFound => "there is no ssh on this machine: install openssh-client".into(),
        _ => format!("cannot run ssh: {error}"),
    })
}

/// What was said behind `vmmctl ssh`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    /// With their values.
    pub(super) options: Vec<OsString>,
    /// Of `USER@`.
    pub(super) user: Option<OsString>,
    /// With its arguments.
    pub(super) command: Vec<OsString>,
}

impl Words {
    /// As ssh does it, but that no host has to be named.
    fn split(args: &[OsString]) -> Self {
        let mut words = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let bytes = arg.as_bytes();
            match bytes {
                b"--" => break,
                [b'-', letters @ ..] if !letters.is_empty() => {
                    words.options.push(arg.clone());
                    // `-vvL 80:…` or `-vvL80:…`: the first one with a value has the rest.
                    let at = letters
                        .iter()
                        .position(|letter| WITH_VALUE.contains(letter));
                    if at.is_some_and(|at| at + 1 == letters.len()) {
                        words.options.extend(args.next().cloned());
                    }
                }
                [user @ .., b'@'] if !user.is_empty() && words.user.is_none() => {
                    words.user = Some(OsStr::from_bytes(user).to_owned());
                }
                _ => {
                    words.command.push(arg.clone());
                    break;
                }
            }
        }
        words.command.extend(args.cloned());
        words
    }
}

/// ssh to a guest, not started. What the user says comes first, and so wins.
pub(super) fn ssh(vm: &Client, words: &Words) -> Result<Command, CtlError> {
    let status: VmStatus = parse(&vm.get(AS_KNOWN)?)?;
    if status.vsock.is_none() {
        return Err(CtlError::Refused(
            "this VM has no Hyper-V sockets: vsock is not in its --ic".into(),
        ));
    }
    let mut command = Command::new("ssh");
    command.args(&words.options);
    command
        .arg("-o")
        .arg(proxy(&std::env::current_exe()?, vm.path()));
    for option in [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "GlobalKnownHostsFile=/dev/null",
        // Else each connection tells that it has noted a new host.
        "LogLevel=ERROR",
    ] {
        command.args(["-o", option]);
    }
    let mut host = words.user.clone().unwrap_or_else(|| USER.into());
    host.push("@");
    host.push(status.name);
    host.push(DOMAIN);
    guard(&mut command, &words.options, &host)?;
    // Behind it, what looks like an option is the command's.
    command.arg("--").arg(host).args(&words.command);
    Ok(command)
}

/// The option with the command that connects to the guest.
fn proxy(vmmctl: &Path, socket: &Path) -> OsString {
    let mut option = b"ProxyCommand=".to_vec();
    for (word, space) in [
        (vmmctl.as_os_str(), " --socket "),
        (socket.as_os_str(), " connect "),
        (OsStr::new(SSH), ""),
    ] {
        // Of ssh's, `%` begins a token.
        for byte in quoted(word.as_bytes()) {
            option.extend((byte == b'%').then_some(b'%'));
            option.push(byte);
        }
        option.extend(space.as_bytes());
    }
    OsString::from_vec(option)
}

/// A word as a shell reads it, whatever is in it.
pub(super) fn quoted(word: &[u8]) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in word {
        match byte {
            b'\'' => quoted.extend(b"'\\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::ctl::cli::{Args, Command as Cli};

    fn split(line: &str) -> (Vec<String>, Option<String>, Vec<String>) {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let words = Words::split(&args);
        let text = |word: OsString| word.into_string().unwrap();
        (
            words.options.into_iter().map(text).collect(),
            words.user.map(text),
            words.command.into_iter().map(text).collect(),
        )
    }

    fn list(words: &str) -> Vec<String> {
        words.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_the_user_and_the_command_are_told_apart() {
        for (line, options, user, command) in [
            ("", "", None, ""),
            ("uname -a", "", None, "uname -a"),
            ("-l web uname -a", "-l web", None, "uname -a"),
            ("-lweb -- -x", "-lweb", None, "-x"),
            ("web@", "", Some("web"), ""),
            (
                "-v web@ -tL 80:a:80 ls -l",
                "-v -tL 80:a:80",
                Some("web"),
                "ls -l",
            ),
            ("-vL80:a:80 ls", "-vL80:a:80", None, "ls"),
            ("-o A=b -- web@", "-o A=b", None, "web@"),
            ("echo -- x@ -v", "", None, "echo -- x@ -v"),
            ("user@host id", "", None, "user@host id"),
            ("-i", "-i", None, ""),
            ("- x", "", None, "- x"),
        ] {
            let wanted = (list(options), user.map(str::to_owned), list(command));
            assert_eq!(split(line), wanted, "{line}");
        }
    }

    #[test]
    fn what_stands_behind_the_word_is_not_vmmctls() {
        let args = |line: &str| {
            let line = line.split_whitespace();
            let args = Args::try_parse_from(["vmmctl"].into_iter().chain(line)).unwrap();
            match args.command {
                Cli::Ssh(ssh) => (args.vm, ssh.args.join(OsStr::new(" "))),
                other => panic!("{other:?}"),
            }
        };
        for (line, behind) in [
            ("ssh", ""),
            ("ssh -- uname -a", "uname -a"),
            ("ssh -l web -- ls --help", "-l web -- ls --help"),
            (
                "ssh -v web@ ls --json -h --vm x",
                "-v web@ ls --json -h --vm x",
            ),
            ("ssh -tL80:a:80", "-tL80:a:80"),
        ] {
            assert_eq!(args(line), (None, behind.into()), "{line}");
        }
        let vm = Some("a".to_owned());
        assert_eq!(args("--vm a ssh id"), (vm.clone(), "id".into()));
        assert_eq!(args("ssh --vm a id"), (vm, "id".into()));
    }

    #[test]
    fn the_proxy_may_have_any_path() {
        let option = proxy(Path::new("/a b/it's 5%"), Path::new("/run/x.sock"));
        assert_eq!(
            option,
            "ProxyCommand='/a b/it'\\''s 5%%' --socket '/run/x.sock' connect '22'"
        );
    }
}
