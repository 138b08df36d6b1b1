// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The examples of docs/vsock.md: every line of a `sh host` or `sh guest` block is
//! run where it says, in the order in which it stands there. One that ends in `&`
//! goes on; of others, the output has to be that of the `text` block behind.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::ensure;
use crate::suite::{Context, Control, Failure, Outcome, Vm};

const PAGE: &str = include_str!("../../../../docs/vsock.md");

/// How long a service may take to come up.
const UP: Duration = Duration::from_secs(20);

/// A command of the page.
#[derive(Debug, PartialEq, Eq)]
struct Example {
    host: bool,
    command: String,
    output: Option<String>,
}

pub(super) fn run(context: &Context) -> Outcome {
    // Its own, since the VM has the name that the page gives it.
    let runtime = std::env::temp_dir().join(format!("xdg-{}", std::process::id()));
    DirBuilder::new().mode(0o700).create(&runtime)?;
    let initramfs = runtime.join("initramfs");
    let mut bytes = fs::read(&context.initramfs)?;
    bytes.extend(fs::read(crate::examples::archive_path()?)?);
    fs::write(&initramfs, bytes)?;
    let mut vm = context
        .setup()
        .initramfs(Some(initramfs))
        .args(&["--name", "web"])
        .env("XDG_RUNTIME_DIR", &runtime)
        .boot()?;
    vm.sh_ok("modprobe hv_sock")?;
    let mut host = Host {
        control: Control::at(context, &runtime.join("vmm/web/api.sock")),
        runtime,
        services: Vec::new(),
    };
    let examples = examples_of(PAGE);
    ensure!(examples.len() > 8, "only {} examples", examples.len());
    for example in &examples {
        host.run(&mut vm, example)?;
    }
    host.end();
    vm.power_off()?;
    fs::remove_dir_all(&host.runtime)?;
    Ok(())
}

/// This side, and what goes on there.
struct Host {
    control: Control,
    runtime: PathBuf,
    services: Vec<Child>,
}

impl Host {
    fn run(&mut self, vm: &mut Vm, example: &Example) -> Outcome {
        let Example {
            host,
            command,
            output,
        } = example;
        if let Some(service) = command.strip_suffix('&') {
            return if *host {
                self.start(service)
            } else {
                let script = format!("{service} </dev/null >/dev/null 2>&1 &");
                vm.sh_ok(&script).map(drop)
            };
        }
        // What it talks to may be on its way up.
        let start = Instant::now();
        loop {
            let (status, said, errors) = if *host {
                let output = self.shell(command)?.stdin(Stdio::null()).output()?;
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let code = output.status.code().unwrap_or(-1);
                (code, text(&output.stdout), text(&output.stderr))
            } else {
                let ran = vm.sh(command)?;
                let code = i32::try_from(ran.status).unwrap_or(-1);
                (code, ran.stdout, ran.stderr)
            };
            let wanted = output.as_ref().is_none_or(|wanted| *wanted == said);
            if status == 0 && wanted {
                return Ok(());
            }
            ensure!(
                start.elapsed() < UP,
                "`{command}` ended with {status} and said {said:?}, {errors:?}; {output:?} is shown"
            );
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn start(&mut self, service: &str) -> Outcome {
        let log = File::create(self.runtime.join("services.log"))?;
        let mut command = self.shell(&format!("exec {service}"))?;
        let command = command.stdin(Stdio::null()).stdout(log.try_clone()?);
        self.services.push(command.stderr(log).spawn()?);
        Ok(())
    }

    fn shell(&self, command: &str) -> Outcome<Command> {
        let programs = self.control.vmmctl().parent();
        let programs = programs.ok_or_else(|| Failure("no place for programs".to_owned()))?;
        let path = std::env::var("PATH").unwrap_or_default();
        let ours = programs.display();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", command])
            .env("PATH", format!("{ours}:{ours}/examples:{path}"))
            .env("XDG_RUNTIME_DIR", &self.runtime);
        Ok(shell)
    }

    fn end(&mut self) {
        for service in &mut self.services {
            let _ = service.kill();
            let _ = service.wait();
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end();
    }
}

/// The examples in a page of Markdown.
fn examples_of(text: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut block: Option<(&str, Vec<&str>)> = None;
    for line in text.lines() {
        match (&mut block, line.strip_prefix("```")) {
            (None, Some(kind)) => block = Some((kind, Vec::new())),
            (None, None) => {}
            (Some((_, lines)), None) => lines.push(line),
            (Some((kind, lines)), Some(_)) => {
                match (*kind, examples.last_mut()) {
                    ("sh host" | "sh guest", _) => {
                        examples.extend(lines.iter().map(|command| Example {
                            host: *kind == "sh host",
                            command: (*command).to_owned(),
                            output: None,
                        }));
                    }
                    ("text", Some(last)) => last.output = Some(lines.join("\n") + "\n"),
                    _ => {}
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
    fn examples_are_lines_of_marked_blocks_with_the_output_behind_them() {
        let page = "```sh\nnot this\n```\ntext\n```sh guest\nserve &\n```\n\
            ```sh host\none\ntwo\n```\n```text\na\nb\n```\n```json\n{}\n```\n";
        let example = |host, command: &str, output: Option<&str>| Example {
            host,
            command: command.to_owned(),
            output: output.map(str::to_owned),
        };
        let wanted = [
            example(false, "serve &", None),
            example(true, "one", None),
            example(true, "two", Some("a\nb\n")),
        ];
        assert_eq!(examples_of(page), wanted);
    }

    #[test]
    fn the_page_shows_both_directions_in_rust_and_with_socat() {
        let examples = examples_of(PAGE);
        for (host, word) in [
            (true, "socat "),
            (true, "hvsocket_echo serve"),
            (true, "hvsocket_echo call"),
            (false, "socat "),
            (false, "vsock_echo serve"),
            (false, "vsock_echo call"),
        ] {
            let shown = |one: &Example| one.host == host && one.command.contains(word);
            assert!(examples.iter().any(shown), "{word}");
        }
        let checked = examples.iter().filter(|one| one.output.is_some());
        assert!(checked.count() >= 5);
    }
}
