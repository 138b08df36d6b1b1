// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Building our own programs with cargo, quietly unless it is slow or fails.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use crate::error::{Context, Result, failed};
use crate::paths;
use crate::progress::whisper;

const LAYER: &str = "build";

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Builds the agent as a static program and gives its path.
pub fn agent() -> Result<PathBuf> {
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
        .arg("--target-dir")
        .arg(&target)
        .env(
            "RUSTFLAGS",
            "-Ctarget-feature=+crt-static -Cstrip=symbols -Copt-level=s -Cpanic=abort",
        )
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    run(command)?;
    Ok(target.join(TRIPLE).join("guest/guest-agent"))
}

/// Builds a program of the workspace for use in guest tests and gives its path.
pub fn program(package: &str, name: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command.args([
        "build",
        "--package",
        package,
        "--bin",
        name,
        "--profile",
        "guest",
    ]);
    run(command)?;
    Ok(paths::target().join("guest").join(name))
}

/// Builds a program of the workspace as users get it and gives its path.
pub fn released(package: &str, name: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--package", package, "--bin", name, "--release"]);
    run(command)?;
    Ok(paths::target().join("release").join(name))
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

fn run(mut command: Command) -> Result<()> {
    whisper(format_args!("cargo {}", describe(&command)));
    // Cargo shows its own progress, on a terminal only.
    let status = command.arg("--quiet").status().context(LAYER, "cargo")?;
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
