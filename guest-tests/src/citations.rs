// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Holds what the tree refers to against what is there: sections of
//! `docs/protocol`, links of Markdown pages and their anchors, and paths.
//!
//! ```text
//!  comment, page ─► words ─┬─ "protocol" and numbers, "appendix" and a letter ─► headings
//!                          ├─ [text](page#anchor) ─► files, their headings
//!                          └─ a path of ours ─► files
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Where the sections are.
pub const PROTOCOL: &str = "docs/protocol";

/// What is read.
const KINDS: [&str; 3] = ["md", "rs", "toml"];
/// Ends of paths that are taken for a file's in the tree.
const ENDS: [&str; 4] = ["md", "rs", "json", "toml"];

/// A section as it is cited: `4`, `4.10` or `appendix A`.
type Section = String;

/// Something that leads nowhere, with its place.
pub type Broken = String;

/// A file of the tree: its path in the workspace and its text.
struct Page {
    path: PathBuf,
    text: String,
}

/// Everything in the tree that leads nowhere.
pub fn broken(workspace: &Path) -> io::Result<Vec<Broken>> {
    let pages = pages(workspace)?;
    let (sections, mut broken) = sections(&pages);
    for page in &pages {
        let mut cited = citations(&page.text);
        if page.path.starts_with(PROTOCOL) {
            cited.extend(asides(&page.text));
        }
        for (line, section) in cited {
            if !sections.contains_key(&section) {
                let what = format!("there is no {section} in {PROTOCOL}");
                broken.push(place(&page.path, line, &what));
            }
        }
        for (line, path) in paths(&page.text) {
            if !is_there(workspace, &page.path, path) {
                broken.push(place(&page.path, line, &format!("there is no {path}")));
            }
        }
        if page.path.extension().is_some_and(|end| end == "md") {
            for (line, target) in links(&page.text) {
                if let Some(what) = dead(workspace, &pages, &page.path, target) {
                    broken.push(place(&page.path, line, &what));
                }
            }
        }
    }
    Ok(broken)
}

fn place(path: &Path, line: usize, what: &str) -> Broken {
    format!("{}:{line}: {what}", path.display())
}

/// All pages and sources, but for this one, whose tests have made-up ones.
fn pages(workspace: &Path) -> io::Result<Vec<Page>> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.to_string_lossy();
            let is_kind = |end: &str| path.extension().is_some_and(|own| own == end);
            if entry.file_type()?.is_dir() {
                // Not what is built, nor what tools keep for themselves.
                if !name.starts_with("target") && !name.starts_with('.') {
                    walk(&path, found)?;
                }
            } else if KINDS.into_iter().any(is_kind) {
                found.push(path);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(workspace, &mut found)?;
    found.retain(|path| !path.ends_with(file!()));
    found.sort();
    let page = |path: PathBuf| {
        let text = fs::read_to_string(&path)?;
        let path = path.strip_prefix(workspace).unwrap_or(&path).to_owned();
        Ok(Page { path, text })
    };
    found.into_iter().map(page).collect()
}

/// The sections of the protocol and where they are; those that are twice there.
fn sections(pages: &[Page]) -> (BTreeMap<Section, String>, Vec<Broken>) {
    let mut sections = BTreeMap::new();
    let mut twice = Vec::new();
    for page in pages.iter().filter(|page| page.path.starts_with(PROTOCOL)) {
        for (line, heading) in headings(&page.text) {
            let mut words = heading.split_whitespace();
            let first = words.next().unwrap_or_default();
            let section = match (number(first), first) {
                (Some(number), _) => number.to_owned(),
                (None, "Appendix") => match words.next().and_then(letter) {
                    Some(letter) => format!("appendix {letter}"),
                    None => continue,
                },
                _ => continue,
            };
            let here = place(&page.path, line, &format!("{section} is also at "));
            if let Some(before) =
                sections.insert(section, format!("{}:{line}", page.path.display()))
            {
                twice.push(here + &before);
            }
        }
    }
    (sections, twice)
}

/// The text of each heading, with its line.
fn headings(text: &str) -> impl Iterator<Item = (usize, &str)> {
    prose(text).filter_map(|(line, text)| {
        let heading = text.trim_start_matches('#');
        let level = text.len() - heading.len();
        (level > 0).then_some(())?;
        Some((line, heading.strip_prefix(' ')?))
    })
}

/// Lines that are not in a block of code, counted from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// `5`, `5.2`, with what may be behind it in a sentence.
fn number(word: &str) -> Option<&str> {
    let word = word.trim_end_matches(['.', ',', ';', ':', ')', '"', '`']);
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let (chapter, section) = word.split_once('.').unwrap_or((word, "0"));
    (digits(chapter) && digits(section)).then_some(word)
}

/// `A`, likewise.
fn letter(word: &str) -> Option<char> {
    let mut chars = word
        .trim_end_matches(['.', ',', ';', ':', ')', '"', '`'])
        .chars();
    let letter = chars.next().filter(char::is_ascii_uppercase)?;
    chars.next().is_none().then_some(letter)
}

/// The words of a text without the marks of comments, so that a sentence goes on
/// over the ends of lines; each with its line.
fn words(text: &str) -> Vec<(usize, &str)> {
    let lines = (1..).zip(text.lines());
    let words = lines.flat_map(|(line, text)| {
        let words = text.split_whitespace().map(move |word| (line, word));
        words.filter(|(_, word)| !matches!(*word, "//" | "///" | "//!" | "#" | "*" | "|"))
    });
    words.collect()
}

/// Sections that a text cites: "protocol 4.5 to 4.10, 4.15", "appendices A and B".
fn citations(text: &str) -> Vec<(usize, Section)> {
    let words = words(text);
    let mut cited = Vec::new();
    for (at, (_, word)) in words.iter().enumerate() {
        let word = word.trim_start_matches(|c: char| !c.is_alphanumeric());
        let before = at.checked_sub(1).and_then(|before| words.get(before));
        // Linux' own, which has versions.
        let of_boot = before.is_some_and(|(_, word)| word.eq_ignore_ascii_case("boot"));
        let rest = words.get(at + 1..).unwrap_or_default();
        match word.to_ascii_lowercase().as_str() {
            "protocol" if !of_boot => {
                cited.extend(list(rest, |word| number(word).map(ToOwned::to_owned)));
            }
            "appendix" | "appendices" => cited.extend(list(rest, |word| {
                letter(word).map(|letter| format!("appendix {letter}"))
            })),
            _ => {}
        }
    }
    cited
}

/// What a list begins with: items with a comma, "and" or "to" between them.
fn list(words: &[(usize, &str)], item: impl Fn(&str) -> Option<Section>) -> Vec<(usize, Section)> {
    let mut items = Vec::new();
    let mut words = words.iter();
    let mut more = true;
    while let Some((line, word)) = words.next().filter(|_| more) {
        let Some(section) = item(word) else { break };
        items.push((*line, section));
        let next = words.clone().next().map(|(_, word)| *word);
        let joined = matches!(next, Some("and" | "to"));
        if joined {
            words.next();
        }
        more = joined || word.ends_with(',');
    }
    items
}

/// Sections that the pages of the protocol name in brackets: "(1.6, 3.7)".
fn asides(text: &str) -> Vec<(usize, Section)> {
    let mut cited = Vec::new();
    for (line, text) in prose(text) {
        for aside in text.split('(').skip(1) {
            let aside = aside.split(')').next().unwrap_or_default();
            let parts = aside.split([',', ' ']).filter(|part| !part.is_empty());
            let parts: Vec<_> = parts
                .filter(|part| !matches!(*part, "to" | "and"))
                .collect();
            let is_section = |part: &&str| part.contains('.') && number(part).is_some();
            if parts.iter().all(is_section) {
                cited.extend(parts.iter().map(|part| (line, (*part).to_owned())));
            }
        }
    }
    cited
}

/// What the links of a page lead to, but for addresses elsewhere.
fn links(text: &str) -> Vec<(usize, &str)> {
    let links = prose(text).flat_map(|(line, text)| {
        let targets = text.split("](").skip(1);
        targets.map(move |target| (line, target.split(')').next().unwrap_or_default()))
    });
    links.filter(|(_, target)| !target.contains(':')).collect()
}

/// Why a link leads nowhere, if it does not.
fn dead(workspace: &Path, pages: &[Page], from: &Path, target: &str) -> Option<String> {
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let to = match path {
        "" => from.to_owned(),
        path => normal(&from.parent()?.join(path)),
    };
    if !workspace.join(&to).exists() {
        return Some(format!("there is no {}", to.display()));
    }
    let page = pages.iter().find(|page| page.path == to);
    let known = || page.is_some_and(|page| anchors(&page.text).iter().any(|own| own == anchor));
    (!anchor.is_empty() && !known()).then(|| format!("no heading of {} is #{anchor}", to.display()))
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                normal.pop();
            }
            std::path::Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

/// The anchors that a page's headings get where it is shown.
fn anchors(text: &str) -> Vec<String> {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let anchors = headings(text).map(|(_, heading)| {
        let kept = |c: char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        let lower = heading.trim().to_lowercase();
        let anchor: String = lower.chars().filter(|c| kept(*c)).collect();
        let anchor = anchor.replace(' ', "-");
        let count = seen.entry(anchor.clone()).or_default();
        *count += 1;
        match *count {
            1 => anchor,
            count => format!("{anchor}-{}", count - 1),
        }
    });
    anchors.collect()
}

/// Paths that look like those of files of ours, and all pages.
fn paths(text: &str) -> Vec<(usize, &str)> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
    let mut paths = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        for path in text.split(|c: char| !plain(c)) {
            let path = path.trim_end_matches('.');
            let end = Path::new(path).extension();
            let is_page = end.is_some_and(|end| end == "md");
            let is_ours = end.is_some_and(|end| ENDS.iter().any(|own| end == *own));
            if is_page || is_ours && path.contains('/') {
                paths.push((line, path));
            }
        }
    }
    paths
}

/// Whether a path is a file's, from the workspace, the page that names it, its
/// package, or the other pages; or is none of ours.
fn is_there(workspace: &Path, from: &Path, path: &str) -> bool {
    let top = path.split('/').next().unwrap_or_default();
    let is_ours = !path.contains('/') || (!top.is_empty() && workspace.join(top).exists());
    let mut bases = from.ancestors().skip(1);
    !is_ours
        || workspace.join("docs").join(path).exists()
        || bases.any(|base| workspace.join(base).join(path).exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths as workspace_paths;

    fn cited(text: &str) -> Vec<String> {
        let cited = citations(text).into_iter();
        cited.map(|(_, section)| section).collect()
    }

    #[test]
    fn lists_and_sentences_over_two_lines_are_citations() {
        assert_eq!(cited("//! a (protocol 5)."), ["5"]);
        assert_eq!(
            cited("(protocol 4.5 to 4.10, 4.15)"),
            ["4.5", "4.10", "4.15"]
        );
        assert_eq!(cited("//! of the protocol\n//! 6.6, in words"), ["6.6"]);
        let both = cited("(protocol 4 and 5.2, appendices A and B)");
        assert_eq!(both, ["4", "5.2", "appendix A", "appendix B"]);
        assert_eq!(
            cited("/// Appendix A of the protocol: bytes"),
            ["appendix A"]
        );
    }

    #[test]
    fn what_is_no_citation_is_none() {
        assert!(cited("the boot protocol 2.08 or later").is_empty());
        assert!(cited("its protocol is 5.3; an appendix of it").is_empty());
    }

    #[test]
    fn a_page_has_the_anchors_of_its_headings() {
        let text = "# 5. Rings\n```\n# no heading\n```\n## `vmm --kernel`, or not?\n## 5. Rings\n";
        assert_eq!(
            anchors(text),
            ["5-rings", "vmm---kernel-or-not", "5-rings-1"]
        );
    }

    #[test]
    fn links_are_found_but_for_those_that_leave_the_tree() {
        let text = "[a](b.md#c), [d](https://e/f)\n```\n[no](link)\n```\n[g](#h)";
        assert_eq!(links(text), [(1, "b.md#c"), (5, "#h")]);
    }

    #[test]
    fn nothing_in_the_tree_leads_nowhere() {
        let broken = broken(&workspace_paths::workspace()).unwrap();
        assert!(broken.is_empty(), "\n{}", broken.join("\n"));
    }

    #[test]
    fn every_chapter_and_section_is_there_once() {
        let pages = pages(&workspace_paths::workspace()).unwrap();
        let (sections, twice) = sections(&pages);
        assert!(twice.is_empty(), "{twice:?}");
        for section in ["1", "5.2", "9", "appendix E"] {
            assert!(sections.contains_key(section), "{section}");
        }
        assert!(sections.len() > 70, "only {} sections", sections.len());
    }
}
