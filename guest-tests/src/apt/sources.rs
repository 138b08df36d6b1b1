// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which mirrors this machine is configured to use, in both of apt's formats.
//!
//! `apt-get indextargets` would tell, but only after `apt-get update`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::error::{Result, failed};

/// Where the distribution's packages are, for this machine.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mirrors {
    main: Option<String>,
    security: Option<String>,
}

/// What is to be had of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Packages.
    Binary,
    /// What they are built from.
    Source,
}

const RELEASES: [&str; 10] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "stable",
    "oldstable",
    "testing",
    "unstable",
];

impl Mirrors {
    /// Reads apt's configuration.
    pub(super) fn of_this_machine() -> Result<Self> {
        let mut entries = entries_of_lines(&read(Path::new("/etc/apt/sources.list")));
        let parts = fs::read_dir("/etc/apt/sources.list.d");
        let mut parts: Vec<_> = parts
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        parts.sort();
        for part in parts {
            match part.extension().and_then(|end| end.to_str()) {
                Some("sources") => entries.extend(entries_of_stanzas(&read(&part))),
                Some("list") => entries.extend(entries_of_lines(&read(&part))),
                _ => {}
            }
        }
        let mirrors = Self::choose(&entries);
        if mirrors.main.is_some() {
            return Ok(mirrors);
        }
        Err(failed(
            "apt",
            "this machine's apt configuration names no Debian mirror; the stock kernels come from one. \
             Add a line such as `deb MIRROR bookworm main` to a file in /etc/apt/sources.list.d",
        ))
    }

    fn choose(entries: &[Entry]) -> Self {
        let find = |wanted: &dyn Fn(&Entry) -> bool| {
            let mut found: Vec<&Entry> = entries.iter().filter(|entry| wanted(entry)).collect();
            // Others publish under the distribution's code names too.
            found.sort_by_key(|entry| !entry.uri.contains("debian"));
            found.first().map(|entry| entry.uri.clone())
        };
        Self {
            main: find(&|entry| RELEASES.contains(&entry.suite.as_str())),
            security: find(&|entry| {
                entry
                    .suite
                    .strip_suffix("-security")
                    .is_some_and(|name| RELEASES.contains(&name))
            }),
        }
    }

    /// The mirror of the releases themselves.
    pub(super) fn main(self) -> Result<String> {
        self.main
            .ok_or_else(|| failed("apt", "this machine has no Debian mirror"))
    }

    /// The lines that give a private apt one release. Backports are an addition to
    /// their release, which has what their packages depend on.
    pub(super) fn sources_list(&self, kind: Kind, release: &str, keyring: &Path) -> String {
        let keyring = keyring.display();
        let base = backports_base(release);
        let word = match kind {
            Kind::Binary => "deb",
            Kind::Source => "deb-src",
        };
        let mut text = String::new();
        if let Some(uri) = &self.main {
            for suite in base.into_iter().chain([release]) {
                let _ = writeln!(text, "{word} [signed-by={keyring}] {uri} {suite} main");
            }
        }
        if let Some(uri) = self.security.as_ref().filter(|_| release != "sid") {
            let suite = format!("{}-security", base.unwrap_or(release));
            let _ = writeln!(text, "{word} [signed-by={keyring}] {uri} {suite} main");
        }
        text
    }
}

/// The release that a suite of backports adds to; `None` for any other suite.
pub(super) fn backports_base(release: &str) -> Option<&str> {
    release.strip_suffix("-backports")
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    uri: String,
    suite: String,
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// `deb [options] URI SUITE COMPONENT…`
fn entries_of_lines(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let Some(rest) = line.trim().strip_prefix("deb ") else {
            continue;
        };
        let rest = match rest.trim_start().strip_prefix('[') {
            Some(options) => options.split_once(']').map_or("", |(_, rest)| rest),
            None => rest,
        };
        let mut words = rest.split_whitespace();
        if let (Some(uri), Some(suite)) = (words.next(), words.next())
            && words.any(|component| component == "main")
        {
            entries.push(Entry {
                uri: uri.to_owned(),
                suite: suite.to_owned(),
            });
        }
    }
    entries
}

/// Stanzas of `Types:`, `URIs:`, `Suites:`, `Components:`.
fn entries_of_stanzas(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    for stanza in text.split("\n\n") {
        let words = |field: &str| -> Vec<&str> {
            let line = stanza.lines().find_map(|line| line.strip_prefix(field));
            line.unwrap_or_default().split_whitespace().collect()
        };
        let on = words("Types:").contains(&"deb")
            && words("Components:").contains(&"main")
            && words("Enabled:").first() != Some(&"no");
        for uri in words("URIs:").into_iter().filter(|_| on) {
            for suite in words("Suites:") {
                entries.push(Entry {
                    uri: uri.to_owned(),
                    suite: suite.to_owned(),
                });
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZAS: &str = "Types: deb\n# a comment\nURIs: http://mirror.example/debian\n\
        Suites: bookworm bookworm-updates\nComponents: main\n\n\
        Types: deb\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\nComponents: main\n";

    fn both() -> Mirrors {
        Mirrors {
            main: Some("http://mirror.example/debian".to_owned()),
            security: Some("http://mirror.example/debian-security".to_owned()),
        }
    }

    #[test]
    fn mirrors_are_found_in_stanzas() {
        assert_eq!(Mirrors::choose(&entries_of_stanzas(STANZAS)), both());
    }

    #[test]
    fn mirrors_are_found_in_lines_and_strangers_are_passed_over() {
        let text = "# deb http://old.example/debian bookworm main\n\
            deb http://php.example bookworm main\n\
            deb https://docker.example/linux bookworm stable\n\
            deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian trixie main contrib\n\
            deb http://mirror.example/debian-security trixie-security main\n\
            deb-src http://src.example/debian trixie main\n";
        assert_eq!(Mirrors::choose(&entries_of_lines(text)), both());
    }

    #[test]
    fn a_disabled_stanza_does_not_count() {
        let text = STANZAS.replace("Types: deb\n# a comment", "Types: deb\nEnabled: no");
        assert_eq!(Mirrors::choose(&entries_of_stanzas(&text)).main, None);
    }

    #[test]
    fn sid_has_no_security_suite() {
        let keyring = Path::new("/k.gpg");
        assert_eq!(
            both().sources_list(Kind::Binary, "sid", keyring),
            "deb [signed-by=/k.gpg] http://mirror.example/debian sid main\n"
        );
        assert!(
            both()
                .sources_list(Kind::Binary, "trixie", keyring)
                .contains(" trixie-security main\n")
        );
    }

    #[test]
    fn backports_come_with_the_release_that_they_add_to() {
        let keyring = Path::new("/k.gpg");
        assert_eq!(
            both().sources_list(Kind::Binary, "trixie-backports", keyring),
            "deb [signed-by=/k.gpg] http://mirror.example/debian trixie main\n\
             deb [signed-by=/k.gpg] http://mirror.example/debian trixie-backports main\n\
             deb [signed-by=/k.gpg] http://mirror.example/debian-security trixie-security main\n"
        );
        assert_eq!(backports_base("trixie"), None);
    }

    #[test]
    fn sources_are_asked_for_by_deb_src_alone() {
        let text = both().sources_list(Kind::Source, "trixie", Path::new("/k.gpg"));
        assert!(
            text.lines().all(|line| line.starts_with("deb-src [")),
            "{text}"
        );
    }
}
