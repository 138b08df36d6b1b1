// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Completions for shells, of both programs: commands, options, and values where
//! there are some that can be listed.
//!
//! Names of VMs are looked up when they are wanted, by `vmmctl list --names`. That is
//! put in the place of a word that the generator is given as a value.

use clap::builder::{PossibleValue, TypedValueParser};
use clap::{CommandFactory, ValueEnum};
use clap_complete::{Shell, generate};

use crate::{cli, ctl};

/// Whose command line is completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Program {
    /// The one that starts VMs
    Vmm,
    /// The one that controls them
    Vmmctl,
}

/// Stands for the names of VMs until it is replaced.
const NAMES: &str = "NAMES-OF-VMS";
/// Prints them.
const LIST: &str = "vmmctl list --names 2>/dev/null";

/// The text that a shell reads.
pub fn completions(shell: Shell, program: Program) -> String {
    let mut text = Vec::new();
    match (program, names(shell)) {
        (Program::Vmm, _) => generate(shell, &mut cli::Args::command(), "vmm", &mut text),
        (Program::Vmmctl, None) => {
            generate(shell, &mut ctl::cli::Args::command(), "vmmctl", &mut text);
        }
        (Program::Vmmctl, Some((from, to))) => {
            let command = ctl::cli::Args::command();
            let mut command = command.mut_arg("vm", |arg| arg.value_parser([NAMES]));
            generate(shell, &mut command, "vmmctl", &mut text);
            let text = String::from_utf8_lossy(&text);
            return text.replace(&from, &to);
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// What is replaced by what; nothing in shells that look nothing up here.
fn names(shell: Shell) -> Option<(String, String)> {
    match shell {
        // In a word list in double quotes.
        Shell::Bash => Some((NAMES.into(), format!("$({LIST})"))),
        // In an argument that is read as a command line when it is wanted.
        Shell::Fish => Some((NAMES.into(), format!("({LIST})"))),
        // An action of `_arguments`: a list of words, or something to evaluate.
        Shell::Zsh => Some((format!("({NAMES})"), format!("{{compadd -- $({LIST})}}"))),
        _ => None,
    }
}

/// A parser of values that knows some which completions offer. It takes others too.
#[derive(Clone)]
pub struct Offering<P>(pub P, pub &'static [&'static str]);

impl<P: TypedValueParser> TypedValueParser for Offering<P> {
    type Value = P::Value;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Self::Value, clap::Error> {
        self.0.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.1.iter().map(PossibleValue::new)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn names_are_looked_up_where_a_shell_can() {
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            let text = completions(shell, Program::Vmmctl);
            assert!(text.contains(LIST), "{shell}");
            assert!(!text.contains(NAMES), "{shell}");
        }
        for shell in Shell::value_variants() {
            let text = completions(*shell, Program::Vmm);
            assert!(text.contains("initramfs"), "{shell}");
            assert!(
                !completions(*shell, Program::Vmmctl).contains(NAMES),
                "{shell}"
            );
        }
    }

    /// What bash offers for the last of these words. `vmmctl` is a function that
    /// prints two names.
    fn offered(program: Program, words: &[&str]) -> Vec<String> {
        let name = words[0];
        let list: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let script = format!(
            "vmmctl() {{ [ \"$*\" = 'list --names' ] && printf 'web\\ndb\\n'; }}\n{}\n\
             COMP_WORDS=({}); COMP_CWORD={}\n\
             _{name} {name} \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
            completions(Shell::Bash, program),
            list.join(" "),
            words.len() - 1,
        );
        let mut bash = Command::new("bash")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash is on every machine that builds this");
        bash.stdin
            .take()
            .unwrap()
            .write_all(script.as_bytes())
            .unwrap();
        let output = bash.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn bash_offers_values() {
        let vmmctl = |words: &[&str]| offered(Program::Vmmctl, words);
        assert_eq!(vmmctl(&["vmmctl", "--vm", ""]), ["web", "db"]);
        assert_eq!(vmmctl(&["vmmctl", "--vm", "w"]), ["web"]);
        assert_eq!(vmmctl(&["vmmctl", "status", "--vm", "d"]), ["db"]);
        let ic = vmmctl(&["vmmctl", "ic", "disable", "v"]);
        assert_eq!(ic, ["vss", "vsock"]);
        let wait = vmmctl(&["vmmctl", "wait", "s"]);
        assert!(
            wait.contains(&"stopped".to_owned()) && wait.contains(&"service=kvp".to_owned()),
            "{wait:?}"
        );
        let vmm = |words: &[&str]| offered(Program::Vmm, words);
        assert_eq!(vmm(&["vmm", "--synic", "k"]), ["kernel"]);
        assert_eq!(vmm(&["vmm", "--on-crash", "c"]), ["continue"]);
        assert_eq!(vmm(&["vmm", "--ker"]), ["--kernel"]);
    }
}
