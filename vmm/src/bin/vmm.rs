// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmm`: boot a Linux kernel in a virtual machine that looks like Hyper-V.

use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use vmm::cli::{self, Args, exit};
use vmm::{escape, supervisor};

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return cli::usage("vmm", &error),
    };
    let registry = match args.registry() {
        Ok(registry) => registry,
        Err(error) => return cli::usage("vmm", &error),
    };
    if let Err(error) = start_log(&args) {
        let path = args.log_file.unwrap_or_default();
        return fail(&format!(
            "--log-file: cannot create {}: {error}",
            path.display()
        ));
    }
    match supervisor::run(&args, registry) {
        Ok(code) => code.into(),
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(message: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "vmm: {}", escape::line(message));
    exit::HOST.into()
}

fn start_log(args: &Args) -> io::Result<()> {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(args.effective_log_level());
    // As the library does it, but that a guest may have had a say in the words.
    builder.format(|out, record| {
        let (time, level) = (out.timestamp(), record.level());
        let words = escape::line(record.args().to_string());
        writeln!(out, "[{time} {level:<5} {}] {words}", record.target())
    });
    if let Some(path) = &args.log_file {
        let file = File::create(path)?;
        builder.target(env_logger::Target::Pipe(Box::new(file)));
    }
    builder.init();
    Ok(())
}
