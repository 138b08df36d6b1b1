// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Manual pages of both programs, one for each command, made of what `--help` says.
//!
//! What stands there behind "Examples:" becomes the section EXAMPLES, in letters that
//! can be copied, and what stands behind "Exit codes:" becomes EXIT STATUS. The same
//! program writes the same bytes on any day.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::{cli, ctl};

/// The day of the newest version in CHANGELOG.md, or, before there is one, the day on
/// which the pages were last changed. `SOURCE_DATE_EPOCH` says another.
const DATE: &str = "2026-11-28";
const MANUAL: &str = "VMBus on KVM";
const EXAMPLES: &str = "Examples:";
const EXIT_CODES: &str = "Exit codes:";

/// For commands whose `--help` has no room for them.
const MORE_EXAMPLES: [&str; 36] = [
    "vmmctl list",
    "vmmctl list --names",
    "vmmctl status",
    "vmmctl wait ready --timeout 60s",
    "vmmctl wait service=kvp",
    "vmmctl shutdown --then-kill",
    "vmmctl kill",
    "vmmctl reset",
    "vmmctl pause",
    "vmmctl resume",
    "vmmctl nmi",
    "vmmctl ic list",
    "vmmctl ic enable fcopy",
    "vmmctl ic disable timesync",
    "vmmctl time",
    "vmmctl time sync",
    "vmmctl connect 5000",
    "vmmctl hvsocket list",
    "vmmctl hvsocket register 5001 echo",
    "vmmctl hvsocket unregister 5001",
    "vmmctl kvp list --pool guest",
    "vmmctl kvp get OSName",
    "vmmctl kvp set role web",
    "vmmctl kvp delete role",
    "vmmctl ip get 52:54:00:12:34:56",
    "vmmctl ip set 52:54:00:12:34:56 192.0.2.7/24 --gateway 192.0.2.1",
    "vmmctl vss freeze --max 30s",
    "vmmctl vss thaw",
    "vmmctl vss check",
    "vmmctl vss status",
    "vmmctl vss run --max 30s -- cp disk.img backup.img",
    "vmmctl events --follow",
    "vmmctl trace --lines 100",
    "vmmctl completions bash > ~/.local/share/bash-completion/completions/vmmctl",
    "vmmctl completions bash --for vmm > ~/.local/share/bash-completion/completions/vmm",
    "vmmctl man ~/.local/share/man/man1",
];

/// Writes all pages into a directory, which is made if it is not there.
pub fn write(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let date = date(std::env::var("SOURCE_DATE_EPOCH").ok().as_deref());
    for (name, page) in pages(&date)? {
        fs::write(dir.join(name), page)?;
    }
    Ok(())
}

/// The pages, by the names of their files.
fn pages(date: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    for command in [cli::Args::command(), ctl::cli::Args::command()] {
        let mut command = command.disable_help_subcommand(true);
        command.build();
        let root = Help::of(&command);
        add(&mut all, &command, &root, &[command.get_name()], date)?;
    }
    Ok(all)
}

fn add(
    all: &mut Vec<(String, Vec<u8>)>,
    command: &Command,
    root: &Help,
    path: &[&str],
    date: &str,
) -> io::Result<()> {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        add(all, sub, root, &[path, &[sub.get_name()]].concat(), date)?;
    }
    let man = Man::new(command.clone()).date(date).manual(MANUAL);
    let source = format!("{} {}", root.program, env!("CARGO_PKG_VERSION"));
    let man = man.source(source);
    let help = Help::of(command);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    for words in &help.prose {
        page.extend(format!(".PP\n{}\n", plain(words)).into_bytes());
    }
    if command.get_arguments().any(|arg| !arg.is_hide_set()) {
        man.render_options_section(&mut page)?;
    }
    if command.get_subcommands().any(|sub| !sub.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    let mut text = String::from(".SH \"EXIT STATUS\"\n");
    let codes = help.codes.as_deref().or(root.codes.as_deref());
    text.push_str(&exit_status(codes.unwrap_or_default()));
    text.push_str(".SH EXAMPLES\n.EX\n");
    for line in examples(&help, path) {
        text.push_str(&plain(&line));
        text.push('\n');
    }
    text.push_str(".EE\n");
    page.extend(text.into_bytes());
    all.push((man.get_filename(), page));
    Ok(())
}

/// What `--help` says below its options.
#[derive(Default)]
struct Help {
    program: String,
    /// Paragraphs.
    prose: Vec<String>,
    examples: Vec<String>,
    codes: Option<String>,
}

impl Help {
    fn of(command: &Command) -> Self {
        let text = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let mut help = Self {
            program: command.get_name().to_owned(),
            ..Self::default()
        };
        for part in text.split("\n\n") {
            let words = part.split_whitespace().collect::<Vec<_>>().join(" ");
            if let Some(lines) = part.trim_start().strip_prefix(EXAMPLES) {
                let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty());
                help.examples.extend(lines.map(str::to_owned));
            } else if let Some(codes) = words.strip_prefix(EXIT_CODES) {
                help.codes = Some(codes.trim().to_owned());
            } else if !words.is_empty() {
                help.prose.push(words);
            }
        }
        help
    }
}

/// Those of the command itself, else all that begin with its name.
fn examples(help: &Help, path: &[&str]) -> Vec<String> {
    if !help.examples.is_empty() {
        return help.examples.clone();
    }
    let name = path.join(" ");
    let is_of = |line: &&&str| {
        let rest = line.strip_prefix(name.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    let all = MORE_EXAMPLES.iter();
    all.filter(is_of).map(|line| (*line).to_owned()).collect()
}

/// "0 done, 1 failed" as a list; words without a number as a paragraph.
fn exit_status(codes: &str) -> String {
    let mut items: Vec<String> = Vec::new();
    for part in codes.trim_end_matches('.').split(", ") {
        let is_new = part.starts_with(|c: char| c.is_ascii_digit());
        match items.last_mut() {
            Some(last) if !is_new => {
                last.push_str(", ");
                last.push_str(part);
            }
            _ => items.push(part.to_owned()),
        }
    }
    let mut text = String::new();
    for item in items {
        let (code, meaning) = item.split_once(' ').unwrap_or((&item, ""));
        // Writing to a string does not fail.
        let _ = if code.bytes().all(|byte| byte.is_ascii_digit()) {
            writeln!(text, ".TP\n\\fB{code}\\fR\n{}", plain(meaning))
        } else {
            writeln!(text, ".PP\n{}", plain(&item))
        };
    }
    text
}

/// Text whose letters stay what they are, so that they can be copied.
fn plain(line: &str) -> String {
    let mut text = String::new();
    if line.starts_with(['.', '\'']) {
        text.push_str("\\&");
    }
    for c in line.chars() {
        match c {
            '\\' => text.push_str("\\e"),
            '-' => text.push_str("\\-"),
            '\'' => text.push_str("\\(aq"),
            '`' => text.push_str("\\(ga"),
            '^' => text.push_str("\\(ha"),
            '~' => text.push_str("\\(ti"),
            c => text.push(c),
        }
    }
    text
}

/// A day as pages have it: of seconds since 1970 in UTC, or that of this version.
fn date(epoch: Option<&str>) -> String {
    match epoch.and_then(|epoch| epoch.trim().parse::<u32>().ok()) {
        None => DATE.into(),
        Some(seconds) => day(seconds / 86_400),
    }
}

/// A day's date, by its number since 1970.
fn day(mut left: u32) -> String {
    let mut year = 1970;
    let is_leap = |year: u32| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while left >= 365 + u32::from(is_leap(year)) {
        left -= 365 + u32::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u32::from(is_leap(year));
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < days {
            break;
        }
        left -= days;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<(String, String)> {
        let pages = pages(DATE).unwrap().into_iter();
        pages
            .map(|(name, page)| (name, String::from_utf8(page).unwrap()))
            .collect()
    }

    #[test]
    fn each_page_has_its_sections_and_a_date() {
        let pages = all();
        assert!(pages.len() > 30, "{}", pages.len());
        for (name, page) in pages {
            for part in [
                "\n.SH \"EXIT STATUS\"\n",
                "\n.SH EXAMPLES\n.EX\n",
                "\n.SH SYNOPSIS\n",
                DATE,
            ] {
                assert!(page.contains(part), "{name} without {part:?}");
            }
            let examples = page.split(".EX\n").nth(1).unwrap();
            assert!(examples.starts_with("vmm"), "{name}: {examples}");
            let codes = page.split("\"EXIT STATUS\"\n").nth(1).unwrap();
            assert!(!codes.starts_with(".SH"), "{name}: {codes}");
            assert!(!page.contains("EXTRA"), "{name}");
        }
    }

    #[test]
    fn examples_are_commands_that_there_are() {
        let mut count = 0;
        for (name, page) in all() {
            let examples = page
                .split(".EX\n")
                .nth(1)
                .unwrap()
                .split("\n.EE")
                .next()
                .unwrap();
            for line in examples.lines() {
                let line = line
                    .replace("\\-", "-")
                    .replace("\\(aq", "'")
                    .replace("\\(ti", "~");
                // What stands in quotes is the guest's, or a file's.
                let parts = if line.contains('\'') {
                    vec![line.as_str()]
                } else {
                    line.split("&&").collect()
                };
                for part in parts {
                    let mut words: Vec<String> = Vec::new();
                    let mut quoted = false;
                    for word in part.split_whitespace() {
                        if matches!(word, "|" | ">" | ";" | "&") && !quoted {
                            break;
                        }
                        match words.last_mut() {
                            Some(last) if quoted => {
                                last.push(' ');
                                last.push_str(word);
                            }
                            _ => words.push(word.to_owned()),
                        }
                        quoted ^= word.matches('\'').count() % 2 == 1;
                    }
                    let words = words.iter().map(|word| word.replace('\'', ""));
                    // A file that is not here.
                    let words =
                        words.filter(|word| !word.contains("id_ed25519") && word != "--ssh-key");
                    let parsed = match part.trim_start().split(' ').next() {
                        Some("vmm") => cli::Args::command().try_get_matches_from(words),
                        _ => ctl::cli::Args::command().try_get_matches_from(words),
                    };
                    assert!(parsed.is_ok(), "{name}: {line}: {}", parsed.unwrap_err());
                    count += 1;
                }
            }
        }
        assert!(count > 60, "{count}");
    }

    #[test]
    fn letters_that_troff_would_change_are_kept() {
        assert_eq!(
            plain(".x 'a' ~/b -c\\"),
            "\\&.x \\(aqa\\(aq \\(ti/b \\-c\\e"
        );
        assert_eq!(
            exit_status("0 done, 1 failed, or not, 2 usage."),
            ".TP\n\\fB0\\fR\ndone\n.TP\n\\fB1\\fR\nfailed, or not\n.TP\n\\fB2\\fR\nusage\n"
        );
        assert_eq!(
            exit_status("that of the command"),
            ".PP\nthat of the command\n"
        );
    }

    #[test]
    fn the_date_is_that_of_the_source() {
        assert_eq!(date(Some("0")), "1970-01-01");
        assert_eq!(date(Some("951782400")), "2000-02-29");
        assert_eq!(date(Some("1796083199")), "2026-11-30");
        assert_eq!(date(Some("4102444800")), "2100-01-01");
        for none in [None, Some(""), Some("x")] {
            assert_eq!(date(none), DATE);
        }
        // Once there is a version, it is that one's.
        let changes = include_str!("../../CHANGELOG.md");
        let mut released = changes.lines().filter_map(|line| {
            let line = line.strip_prefix("## [")?;
            line.split_once(" - ").map(|(_, date)| date.trim())
        });
        assert!(released.next().is_none_or(|newest| newest == DATE));
    }
}
