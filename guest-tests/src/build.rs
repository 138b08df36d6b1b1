// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Building our own programs with cargo: visibly for people, quietly where what we write
//! to standard error is another program's.

use std::env;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Context, Result, failed};
use crate::paths;
use crate::progress::whisper;

const LAYER: &str = "build";

/// The file name of the hostile guest.
pub const HOSTILE: &str = "hostile.elf";

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Builds the agent as a static program and gives its path.
pub fn agent() -> Result<PathBuf> {
    for_guests(&["--bins"]).map(|dir| dir.join("guest-agent"))
}

/// Builds an example of the agent's package in the same way.
pub fn guest_example(name: &str) -> Result<PathBuf> {
    for_guests(&["--example", name]).map(|dir| dir.join("examples").join(name))
}

fn for_guests(what: &[&str]) -> Result<PathBuf> {
    // Of its own, since other flags would rebuild everything each time.
    let target = paths::target().join("guest-agent");
    let mut command = cargo();
    command
        .args([
            "build",
            "--package",
            "guest-agent",
            "--profile",
            "guest",
            "--target",
            TRIPLE,
        ])
        .args(what)
        .arg("--target-dir")
        .arg(&target)
        .env(
            "RUSTFLAGS",
            "-Ctarget-feature=+crt-static -Cstrip=symbols -Copt-level=s -Cpanic=abort",
        )
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    run(command)?;
    Ok(target.join(TRIPLE).join("guest"))
}

/// Builds the guest that means harm, an ELF kernel, beside the programs under
/// test. It is no package: nothing in the workspace is built as it is.
pub fn hostile() -> Result<PathBuf> {
    let source = paths::workspace().join("guest-tests/hostile");
    let kernel = paths::target().join("guest").join(HOSTILE);
    let script = source.join("link.ld");
    let mut command = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command
        .args(["--edition", "2024", "--crate-name", "hostile"])
        .args(["--crate-type", "bin", "--target", TRIPLE])
        .args(["-Cpanic=abort", "-Copt-level=2", "-Cno-redzone=yes"])
        .args(["-Crelocation-model=static", "-Cstrip=symbols"])
        .args(["-nostartfiles", "-nostdlib", "-static"].map(|arg| format!("-Clink-arg={arg}")))
        .arg(format!(
            "-Clink-arg=-Wl,--build-id=none,-T,{}",
            script.display()
        ))
        .arg("-o")
        .arg(&kernel)
        .arg(source.join("main.rs"));
    let status = command.status().context(LAYER, "rustc")?;
    if status.success() {
        Ok(kernel)
    } else {
        Err(failed(LAYER, format!("the hostile guest: rustc: {status}")))
    }
}

/// Builds a program of the workspace for use in guest tests and gives its path.
pub fn program(package: &str, name: &str) -> Result<PathBuf> {
    build(package, ["--bin", name])?;
    Ok(paths::target().join("guest").join(name))
}

/// Builds a program of the workspace as users get it and gives its path.
pub fn released(package: &str, name: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--package", package, "--bin", name, "--release"]);
    run(command)?;
    Ok(paths::target().join("release").join(name))
}

/// Builds an example of the workspace next to those, under `examples`.
pub fn example(package: &str, name: &str) -> Result<()> {
    build(package, ["--example", name])
}

fn build(package: &str, what: [&str; 2]) -> Result<()> {
    let mut command = cargo();
    command
        .args(["build", "--package", package, "--profile", "guest"])
        .args(what);
    run(command)
}

/// Cargo in our workspace, as the one that runs us would be called by a user.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::workspace());
    // What the outer cargo has set for us is not meant for an inner one.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// From now on cargo shows what it does, whoever reads it.
pub fn show_progress() {
    SHOWN.store(true, Ordering::Relaxed);
}

static SHOWN: AtomicBool = AtomicBool::new(false);

fn run(mut command: Command) -> Result<()> {
    whisper(format_args!("cargo {}", describe(&command)));
    // A build takes minutes on a fresh machine, and people want to see it move. Where a
    // program runs for another, standard error is that program's.
    if !SHOWN.load(Ordering::Relaxed) && !std::io::stderr().is_terminal() {
        command.arg("--quiet");
    }
    let status = command.status().context(LAYER, "cargo")?;
    if status.success() {
        Ok(())
    } else {
        Err(failed(
            LAYER,
            format!("cargo {}: {status}", describe(&command)),
        ))
    }
}

fn describe(command: &Command) -> String {
    let words: Vec<_> = command
        .get_args()
        .map(|arg| arg.to_string_lossy())
        .collect();
    let shown = words.iter().take_while(|word| *word != "--target-dir");
    shown.map(AsRef::as_ref).collect::<Vec<_>>().join(" ")
}
