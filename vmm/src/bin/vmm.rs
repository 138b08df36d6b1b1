// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmm`: boot a Linux kernel in a virtual machine that looks like Hyper-V.

use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use vmm::cli::{Args, exit};
use vmm::supervisor;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    if let Err(error) = start_log(&args) {
        return fail(&format!("--log-file: cannot create it: {error}"));
    }
    match supervisor::run(&args) {
        Ok(code) => code.into(),
        Err(error) => fail(&error.to_string()),
    }
}

/// Help goes to standard output; a mistake becomes one line.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("wrong usage");
    let first = first.strip_prefix("error: ").unwrap_or(first);
    // Where the first line is only a heading, what it announces follows.
    let more = if first.ends_with(':') {
        lines.next()
    } else {
        None
    };
    let _ = writeln!(
        io::stderr(),
        "vmm: {first}{}{} (see vmm --help)",
        if more.is_some() { " " } else { "" },
        more.unwrap_or_default()
    );
    exit::USAGE.into()
}

fn fail(message: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "vmm: {message}");
    exit::HOST.into()
}

fn start_log(args: &Args) -> io::Result<()> {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(args.effective_log_level());
    if let Some(path) = &args.log_file {
        let file = File::create(path)?;
        builder.target(env_logger::Target::Pipe(Box::new(file)));
    }
    builder.init();
    Ok(())
}
