// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The documentation's examples: every `curl` in a shell's block is run, in the
//! order in which it stands there, and answers as it is described. Where a block
//! with an answer follows, the real one has the same fields.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::described;
use crate::cases::services::{NAMES, boot_ready};
use crate::ensure;
use crate::openapi::Description;
use crate::suite::{Context, Control, Outcome};

/// The pages with examples, the one that ends the guest last.
const PAGES: [(&str, &str); 2] = [
    ("README.md", include_str!("../../../../README.md")),
    ("docs/api.md", include_str!("../../../../docs/api.md")),
];

/// A command, and the answer that is shown for it.
#[derive(Debug, PartialEq, Eq)]
struct Example {
    command: String,
    answer: Option<String>,
}

pub(super) fn curl(context: &Context) -> Outcome {
    let described = described()?;
    let (mut vm, control) = boot_ready(context, |setup| setup)?;
    for (page, text) in PAGES {
        let examples = examples_of(text);
        ensure!(!examples.is_empty(), "no examples in {page}");
        for example in examples {
            run(&control, &described, &example)?;
            if example.command.contains("shutdown") {
                vm.expect_exit(0)?;
                return Ok(());
            }
            // What comes next may want what this one has taken away.
            if !example.command.contains("false}") && !example.command.contains("pause") {
                control.until_ready(&NAMES, Duration::from_secs(10))?;
            }
        }
    }
    ensure!(false, "no example shuts the guest down");
    Ok(())
}

fn run(control: &Control, described: &Description, example: &Example) -> Outcome {
    let command = &example.command;
    let script = with_socket(command, &control.socket().display().to_string());
    let output = Command::new("sh")
        .args(["-c", &format!("{script} -sS -w '\\n%{{http_code}}'")])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.trim_end().rsplit_once('\n').unwrap_or((&text, ""));
    ensure!(
        output.status.success(),
        "{command}: {} {text}",
        String::from_utf8_lossy(&output.stderr)
    );
    let status: u16 = status.parse().unwrap_or(0);
    let url = command.split("http://vm").nth(1).unwrap_or_default();
    let target = url.split(['\'', '"', ' ']).next().unwrap_or_default();
    let method = command
        .split("-X ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let mut answers = Vec::new();
    for line in body.lines().filter(|line| !line.trim().is_empty()) {
        match serde_json::from_str::<Value>(line) {
            Ok(answer) => answers.push(answer),
            Err(error) => ensure!(false, "{command} answers {line:?}: {error}"),
        }
    }
    ensure!(!answers.is_empty(), "{command} answers nothing: {text:?}");
    for answer in &answers {
        described.check_answer(method.unwrap_or("GET"), target, status, answer)?;
        if let Some(shown) = &example.answer {
            let shown: Value = serde_json::from_str(shown)
                .map_err(|error| format!("the answer shown for {command}: {error}"))?;
            let (shown, found) = (fields(&shown), fields(answer));
            ensure!(
                found == shown,
                "{command} has the fields {found:?}, {shown:?} are shown"
            );
        }
    }
    Ok(())
}

/// The command, for this socket.
fn with_socket(command: &str, socket: &str) -> String {
    let (before, rest) = command
        .split_once("--unix-socket ")
        .unwrap_or((command, ""));
    let (_, after) = rest.split_once(' ').unwrap_or((rest, ""));
    format!("{before}--unix-socket '{socket}' {after}")
}

fn fields(value: &Value) -> BTreeSet<&str> {
    let object = value.as_object();
    object
        .into_iter()
        .flat_map(|all| all.keys().map(String::as_str))
        .collect()
}

/// The examples in a page of Markdown.
fn examples_of(text: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut answered = false;
    let mut block: Option<(&str, String)> = None;
    for line in text.lines() {
        match (&mut block, line.strip_prefix("```")) {
            (None, Some(kind)) => block = Some((kind, String::new())),
            (None, None) => answered = answered || !line.trim().is_empty(),
            (Some((_, lines)), None) => {
                lines.push_str(line);
                lines.push('\n');
            }
            (Some((kind, lines)), Some(_)) => {
                if *kind == "json" && !answered {
                    if let Some(last) = examples.last_mut() {
                        last.answer = Some(lines.clone());
                    }
                    answered = true;
                }
                let commands = lines.lines().filter(|line| line.starts_with("curl "));
                for command in commands.filter(|_| *kind == "sh") {
                    examples.push(Example {
                        command: command.trim_end().to_owned(),
                        answer: None,
                    });
                    answered = false;
                }
                block = None;
            }
        }
    }
    examples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_commands_with_the_answer_right_behind_them() {
        let page = "text\n```sh\ncurl --unix-socket /x http://vm/a\n```\n```json\n{}\n```\n\
            ```sh\nls\ncurl --unix-socket \"$VM\" http://vm/b\n```\nmore\n```json\n{}\n```\n";
        let example = |command: &str, answer: Option<&str>| Example {
            command: command.to_owned(),
            answer: answer.map(str::to_owned),
        };
        let wanted = [
            example("curl --unix-socket /x http://vm/a", Some("{}\n")),
            example("curl --unix-socket \"$VM\" http://vm/b", None),
        ];
        assert_eq!(examples_of(page), wanted);
        assert_eq!(
            with_socket(&wanted[1].command, "/s"),
            "curl --unix-socket '/s' http://vm/b"
        );
    }

    #[test]
    fn the_pages_have_examples_of_every_operation() {
        let pages = PAGES.map(|(_, text)| text).concat();
        let examples = examples_of(&pages);
        let described = described().unwrap();
        for operation in described.operations() {
            let path = operation.path.split('{').next().unwrap();
            let shown = examples.iter().any(|one| {
                let url = format!("http://vm{path}");
                let plain = operation.method == "GET" && !one.command.contains("-X ");
                let named = one.command.contains(&format!("-X {} ", operation.method));
                one.command.contains(&url) && (plain || named)
            });
            assert!(shown, "{} {}", operation.method, operation.path);
        }
    }
}
