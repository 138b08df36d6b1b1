// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Holds `docs/threat-model.md` against the code: the limits it names have the
//! values that it gives, and its list of unsafe code is what there is.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The page.
pub const PAGE: &str = "docs/threat-model.md";
/// What follows is made from the code.
pub const MARK: &str = "<!-- unsafe: made by guest-tests/src/threat_model.rs -->\n";

/// Where there is Rust code of ours.
const ROOTS: [&str; 6] = [
    "vmbus",
    "ics-devices",
    "vmm",
    "guest-tests",
    "fuzz",
    "benches",
];

/// One use of `unsafe`.
#[derive(Debug, PartialEq, Eq)]
pub struct Unsafe {
    /// The function or type that it is in.
    pub place: String,
    /// Why it is sound, in the words of the code.
    pub argument: String,
}

/// All Rust files of the workspace, by their paths in it.
pub fn sources(workspace: &Path) -> io::Result<Vec<PathBuf>> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("target") {
                walk(&path, found)?;
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(path);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    for root in ROOTS {
        walk(&workspace.join(root), &mut found)?;
    }
    // Its own tests have made-up ones.
    found.retain(|path| !path.ends_with(file!()));
    let inside = |path: PathBuf| path.strip_prefix(workspace).map(Path::to_owned).ok();
    let mut found: Vec<_> = found.into_iter().filter_map(inside).collect();
    found.sort();
    Ok(found)
}

/// The uses of `unsafe` in a file, in their order.
pub fn uses(source: &str) -> Vec<Unsafe> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let mut found = Vec::new();
    let mut place = "";
    for (number, line) in lines.iter().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        place = named(code).unwrap_or(place);
        // Not the word in an attribute or a text.
        let mut words = code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '"'));
        if !words.any(|word| word == "unsafe")
            || code.starts_with("#[")
            || code.contains('"') && !code.contains("extern")
        {
            continue;
        }
        found.push(Unsafe {
            place: place.to_owned(),
            argument: argument(lines.get(..number).unwrap_or_default()),
        });
    }
    found
}

/// The name that a line of code gives to what follows.
fn named(code: &str) -> Option<&str> {
    let (before, rest) = code
        .split_once("fn ")
        .or_else(|| code.split_once("impl "))?;
    let plain =
        |c: char| c.is_alphanumeric() || c == '_' || c == ' ' || c == '(' || c == ')' || c == '"';
    if !before.chars().all(plain) {
        return None;
    }
    let end = |c: char| matches!(c, '(' | '<' | '{');
    rest.split(end).next().map(str::trim)
}

/// The last argument in the comments before a line: nothing but its own
/// statement stands between them.
fn argument(before: &[&str]) -> String {
    let is_comment = |line: &&str| line.starts_with("//");
    let near = before.iter().rev().take(8);
    let skipped = near.take_while(|line| !is_comment(line)).count();
    let mut comment: Vec<&str> = before
        .iter()
        .rev()
        .skip(skipped)
        .take_while(|line| is_comment(line))
        .map(|line| line.trim_start_matches('/').trim())
        .collect();
    comment.reverse();
    let text = comment.join(" ");
    let text = text
        .split_once("SAFETY: ")
        .or_else(|| text.split_once("# Safety "));
    text.map_or("", |(_, argument)| argument)
        .replace('|', "\\|")
}

/// The list, as it is in the page.
pub fn list(workspace: &Path) -> io::Result<String> {
    let mut text = String::new();
    for path in sources(workspace)? {
        let found = uses(&fs::read_to_string(workspace.join(&path))?);
        if found.is_empty() {
            continue;
        }
        // Writing to a string does not fail.
        let _ = write!(text, "\n### `{}`: {}\n\n", path.display(), found.len());
        text.push_str("| In | Why it is sound |\n|---|---|\n");
        for Unsafe { place, argument } in found {
            let _ = writeln!(text, "| `{place}` | {argument} |");
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;

    #[test]
    fn uses_are_found_with_place_and_argument() {
        let source = "\
#![forbid(unsafe_code)]
fn one() {
    // SAFETY: it is
    // sound.
    let a = unsafe { b() };
}
// SAFETY: so is this.
unsafe impl Send for X {}
/// Not unsafe.
fn two() { log(\"unsafe {\") }
";
        let found: Vec<_> = uses(source)
            .into_iter()
            .map(|found| (found.place, found.argument))
            .collect();
        let expected = [("one", "it is sound."), ("Send for X", "so is this.")];
        let expected = expected.map(|(place, why)| (place.to_owned(), why.to_owned()));
        assert_eq!(found, expected);
    }

    #[test]
    fn the_list_of_unsafe_code_is_true() {
        let workspace = paths::workspace();
        let page = fs::read_to_string(workspace.join(PAGE)).unwrap();
        let (prose, listed) = page.split_once(MARK).unwrap();
        let list = list(&workspace).unwrap();
        let bare: Vec<_> = list.lines().filter(|row| row.ends_with("|  |")).collect();
        assert!(bare.is_empty(), "no argument: {bare:?}");
        if std::env::var_os("XTASK_UPDATE").is_some() {
            fs::write(workspace.join(PAGE), format!("{prose}{MARK}{list}")).unwrap();
            return;
        }
        assert!(
            listed == list,
            "{PAGE}: its list of unsafe code is old; XTASK_UPDATE=1 cargo test -p guest-tests threat"
        );
    }

    #[test]
    fn the_limits_have_the_values_that_the_page_gives() {
        let workspace = paths::workspace();
        let page = fs::read_to_string(workspace.join(PAGE)).unwrap();
        let mut count = 0;
        for line in page.lines() {
            let mut cells = line
                .split(" | ")
                .map(|cell| cell.trim_matches(['|', ' ', '`']));
            let (Some(name), Some(value), Some(file)) = (cells.next(), cells.next(), cells.next())
            else {
                continue;
            };
            if !name.chars().all(|c| c.is_ascii_uppercase() || c == '_') || name.is_empty() {
                continue;
            }
            let source = fs::read_to_string(workspace.join(file)).unwrap();
            let found = source.lines().any(|line| {
                line.split_once(&format!("const {name}: "))
                    .and_then(|(_, rest)| rest.split_once(" = "))
                    .is_some_and(|(_, rest)| rest == format!("{value};"))
            });
            assert!(found, "{file} has no {name} = {value}");
            count += 1;
        }
        assert!(count > 40, "only {count} limits");
    }
}
