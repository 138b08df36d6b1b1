// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a user's configuration of ssh would hand to a guest, and that it does not get.
//!
//! `~/.ssh/config` is written for hosts that are trusted: an agent or a display that
//! is forwarded, ports that lead back here, variables of the environment. A guest's
//! sshd is not trusted. So all of these are off, unless this command line says
//! otherwise. ssh takes the first of several values, and those of the command line
//! come first:
//!
//! ```text
//!  what the user says ─► what is said here ─► ~/.ssh/config ─► /etc/ssh/ssh_config
//! ```
//!
//! Two settings can't be taken back that way: ports are cleared all together, and
//! patterns of variables add up. For them `ssh -G`, which only shows what would be in
//! force, tells apart what the command line says and what a configuration adds.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use super::ssh::cannot_run;
use super::{CtlError, tell};

/// Said of every connection, behind what the user says.
const OFF: [&str; 8] = [
    "ForwardAgent=no",
    "ForwardX11=no",
    "ForwardX11Trusted=no",
    "Tunnel=no",
    "PermitLocalCommand=no",
    "UpdateHostKeys=no",
    // A connection that is shared may be another guest's of the same name, or one that
    // was begun with more rights.
    "ControlMaster=no",
    "ControlPath=none",
];
/// Ports, as `ssh -G` has them.
const PORTS: [&str; 3] = ["localforward", "remoteforward", "dynamicforward"];
/// Variables that a distribution's configuration sends, and that are no secrets.
const HARMLESS: [&str; 5] = ["LANG", "LANGUAGE", "LC_*", "COLORTERM", "NO_COLOR"];
/// Variables that ssh itself, or what it starts, needs. They are sent if a
/// configuration says so.
const NEEDED: [&str; 16] = [
    "HOME",
    "PATH",
    "USER",
    "LOGNAME",
    "SHELL",
    "TERM",
    "TMPDIR",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
    "SSH_AUTH_SOCK",
    "SSH_ASKPASS",
    "SSH_ASKPASS_REQUIRE",
    "DBUS_SESSION_BUS_ADDRESS",
    "KRB5CCNAME",
];
/// ssh's own exit code for what has gone wrong with it.
const SSH_FAILED: u8 = 255;

/// Adds to a command what keeps a configuration's gifts from the guest. `options` are
/// the user's, and are in the command already.
pub(super) fn guard(
    command: &mut Command,
    options: &[OsString],
    host: &OsStr,
) -> Result<(), CtlError> {
    let said = Settings::of(options, &["-F", "none"], host)?;
    let all = Settings::of(options, &[], host)?;
    for option in OFF {
        command.args(["-o", option]);
    }
    // Not every ssh knows the word; one that shows it does.
    if all.has("gssapidelegatecredentials", "yes") {
        command.args(["-o", "GSSAPIDelegateCredentials=no"]);
    }
    // A tunnel is cleared with the ports.
    if said.ports().next().is_none() && !said.has_tunnel() {
        command.args(["-o", "ClearAllForwardings=yes"]);
    } else if let Some((kind, port)) = all.ports().find(|port| !said.0.contains(port)) {
        return Err(CtlError::Refused(format!(
            "a configuration of ssh adds '{kind} {port}' to what this command line forwards, and the \
             guest is not trusted with it: say it here too, or take no configuration, with -F none"
        )));
    }
    let added: Vec<&str> = all
        .variables()
        .filter(|name| !said.variables().any(|other| other == *name))
        .collect();
    for (name, _) in std::env::vars_os() {
        let is_one_of = |patterns: &[&str]| patterns.iter().any(|one| fits(one, name.as_bytes()));
        let stays = is_one_of(&HARMLESS) || is_one_of(&NEEDED);
        if is_one_of(&added) && !stays && !said.variables().any(|one| fits(one, name.as_bytes())) {
            command.env_remove(&name);
        }
    }
    Ok(())
}

/// What would be in force: names, in small letters, and values.
#[derive(Debug)]
struct Settings(Vec<(String, String)>);

impl Settings {
    fn of(options: &[OsString], more: &[&str], host: &OsStr) -> Result<Self, CtlError> {
        let mut command = Command::new("ssh");
        command
            .arg("-G")
            .args(options)
            .args(more)
            .arg("--")
            .arg(host);
        let output = command.stdin(Stdio::null()).output();
        let output = output.map_err(|error| cannot_run(&error))?;
        if !output.status.success() {
            // It would not have come further without the question.
            String::from_utf8_lossy(&output.stderr)
                .lines()
                .for_each(tell);
            return Err(CtlError::Command(SSH_FAILED));
        }
        Ok(Self::parse(&String::from_utf8_lossy(&output.stdout)))
    }

    fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        Self(
            pairs
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect(),
        )
    }

    fn has(&self, wanted: &str, value: &str) -> bool {
        self.0
            .iter()
            .any(|(name, found)| name == wanted && found == value)
    }

    fn has_tunnel(&self) -> bool {
        let mut all = self.0.iter();
        all.any(|(name, value)| name == "tunnel" && !matches!(value.as_str(), "false" | "no"))
    }

    fn ports(&self) -> impl Iterator<Item = &(String, String)> {
        self.0
            .iter()
            .filter(|(name, _)| PORTS.contains(&name.as_str()))
    }

    fn variables(&self) -> impl Iterator<Item = &str> {
        let all = self.0.iter().filter(|(name, _)| name == "sendenv");
        all.flat_map(|(_, value)| value.split_whitespace())
    }
}

/// Whether a pattern of ssh's, with `*` and `?`, fits.
fn fits(pattern: &str, name: &[u8]) -> bool {
    fn rest(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', more)), _) if rest(more, name) => true,
            (Some((b'*', _)), Some((_, tail))) => rest(pattern, tail),
            (Some((b'?', more)), Some((_, tail))) => rest(more, tail),
            (Some((one, more)), Some((other, tail))) if one == other => rest(more, tail),
            _ => false,
        }
    }
    rest(pattern.as_bytes(), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_ssh_has_them() {
        for (pattern, name, wanted) in [
            ("LC_*", "LC_ALL", true),
            ("LC_*", "LC_", true),
            ("LC_*", "LANG", false),
            ("*", "ANY", true),
            ("*TOKEN*", "MY_TOKEN_2", true),
            ("A?C", "ABC", true),
            ("A?C", "AC", false),
            ("", "", true),
            ("", "A", false),
        ] {
            assert_eq!(fits(pattern, name.as_bytes()), wanted, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_in_force_is_read() {
        let settings = Settings::parse(
            "user root\nForwardAgent yes\nsendenv LANG LC_*\nsendenv X\nlocalforward 1 [a]:2\nx\n",
        );
        assert!(settings.has("forwardagent", "yes") && !settings.has("user", "no"));
        assert_eq!(
            settings.variables().collect::<Vec<_>>(),
            ["LANG", "LC_*", "X"]
        );
        let ports: Vec<_> = settings.ports().map(|(_, to)| to.as_str()).collect();
        assert_eq!(ports, ["1 [a]:2"]);
    }
}
