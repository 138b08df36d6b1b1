// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs one guest test where VMs can run; `cargo xtask test` calls it.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use guest_tests::cases;
use guest_tests::error::{Result, failed};
use guest_tests::kernels::DEFAULT;
use guest_tests::suite::{Context, seccomp};
use guest_tests::{bench, demo, forward, runner};

/// Guest tests: each boots stock kernels in `vmm` and judges what they do.
#[derive(Debug, Parser)]
#[command(name = "guest-suite")]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    /// Prints the names of all cases and what they prove.
    List,
    /// Shows a guest, for `cargo xtask demo`.
    Demo {
        /// The vmm to show
        #[arg(long)]
        vmm: PathBuf,
        /// Where its control socket is to be
        #[arg(long)]
        socket: PathBuf,
        /// How vmmctl is called elsewhere
        #[arg(long)]
        offer: String,
    },
    /// Connects standard input and output to a Unix socket.
    Relay {
        /// The socket
        socket: PathBuf,
    },
    /// Measures, for `cargo xtask bench --guest`.
    Bench {
        /// The vmm to measure
        #[arg(long)]
        vmm: PathBuf,
        /// The agent, for this end of streams
        #[arg(long)]
        agent: PathBuf,
        /// The bzImage
        #[arg(long)]
        vmlinuz: PathBuf,
        /// The ELF file in it
        #[arg(long)]
        vmlinux: PathBuf,
        /// The initial RAM disk
        #[arg(long)]
        initramfs: PathBuf,
        /// The same with the distribution's daemons
        #[arg(long)]
        with_daemons: PathBuf,
        /// The peer
        #[arg(long, default_value = "/usr/bin/qemu-system-x86_64")]
        qemu: PathBuf,
        /// Where the figures go
        #[arg(long)]
        out: PathBuf,
        /// Only these parts
        only: Vec<String>,
    },
    /// Runs one case; ends with 0 if it passed.
    Run {
        /// The case's name
        case: String,
        /// The kernel's name; its image must have been built
        #[arg(long, default_value = DEFAULT)]
        kernel: String,
        /// How many vCPUs
        #[arg(long, default_value_t = 2)]
        cpus: u32,
        /// Who emulates the SynIC: kernel or user
        #[arg(long)]
        synic: Option<String>,
        /// The vmm to test; beside this program unless said
        #[arg(long)]
        vmm: Option<PathBuf>,
        /// As often as it takes to find what is rare
        #[arg(long)]
        long: bool,
        /// How long the case api-fuzz takes
        #[arg(long, default_value_t = 1)]
        minutes: u64,
    },
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Cmd::List => {
            for case in cases::all() {
                println!("{:20} {}", case.name, case.about);
            }
            ExitCode::SUCCESS
        }
        Cmd::Demo { vmm, socket, offer } => {
            let context = context("demo", DEFAULT, 2, None, Some(vmm));
            let shown = context.and_then(|context| {
                let shown = demo::live::run(&context, &socket, &offer);
                let _ = fs::remove_dir_all(&context.dir);
                shown.map_err(|failure| failed("demo", failure.to_string()))
            });
            end(shown)
        }
        Cmd::Relay { socket } => {
            let relayed = forward::relay(&socket);
            end(relayed.map_err(|error| failed("relay", error.to_string())))
        }
        Cmd::Bench {
            vmm,
            agent,
            vmlinuz,
            vmlinux,
            initramfs,
            with_daemons,
            qemu,
            out,
            only,
        } => {
            let ground = bench::Ground {
                vmm,
                qemu,
                agent,
                vmlinuz,
                vmlinux,
                initramfs,
                with_daemons,
                dir: std::env::temp_dir(),
                out: out.clone(),
            };
            let found = bench::run(&ground, &only);
            end(found
                .and_then(|found| Ok(fs::write(&out, found.to_string())?))
                .map_err(|failure| failed("bench", failure.to_string())))
        }
        Cmd::Run {
            case,
            kernel,
            cpus,
            synic,
            vmm,
            long,
            minutes,
        } => {
            let context = context(&case, &kernel, cpus, synic, vmm);
            let with = |context| Context {
                long,
                minutes,
                ..context
            };
            match context.and_then(|context| run(&case, &with(context))) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(error) => {
                    eprintln!("guest-suite: {error}");
                    ExitCode::from(2)
                }
            }
        }
    }
}

fn end(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-suite: {error}");
            ExitCode::FAILURE
        }
    }
}

fn context(
    case: &str,
    kernel: &str,
    cpus: u32,
    synic: Option<String>,
    vmm: Option<PathBuf>,
) -> Result<Context> {
    let (kernel, initramfs) = runner::prepared(kernel)?;
    let beside = std::env::current_exe()
        .ok()
        .map(|exe| exe.with_file_name("vmm"));
    let vmm = vmm.or(beside).unwrap_or_else(|| "vmm".into());
    let label = format!(
        "{case}-{}-{cpus}{}",
        kernel.name,
        synic.as_deref().unwrap_or("")
    );
    let dir = runner::log_dir(&label)?;
    let mut context = Context::new(&kernel, initramfs, vmm, dir);
    context.cpus = cpus;
    context.synic = synic;
    Ok(context)
}

fn run(name: &str, context: &Context) -> Result<bool> {
    let case = cases::all().into_iter().find(|case| case.name == name);
    let case =
        case.ok_or_else(|| failed("suite", format!("no case `{name}`, see `guest-suite list`")))?;
    let outcome = seccomp::KernelLog::mark().and_then(|log| {
        (case.run)(context)?;
        log.map_or(Ok(()), |log| log.expect_nothing())
    });
    match &outcome {
        // Nobody reads the logs of what went well.
        Ok(()) => drop(fs::remove_dir_all(&context.dir)),
        Err(failure) => {
            println!("{failure}");
            show_logs(&context.dir);
        }
    }
    Ok(outcome.is_ok())
}

/// The ends of what the machines printed; all of it stays in the directory.
fn show_logs(dir: &Path) {
    const LINES: usize = 40;
    let mut logs: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    logs.sort();
    for log in logs {
        let kind = log.extension().and_then(|end| end.to_str());
        if !matches!(kind, Some("serial" | "stderr" | "events")) {
            continue;
        }
        let text = fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        // The agent's own lines say nothing to a person.
        let talk = |line: &&str| !line.contains("@A ") && !line.trim().is_empty();
        let lines: Vec<&str> = text.lines().filter(talk).collect();
        if lines.is_empty() {
            continue;
        }
        println!("--- the end of {}", log.display());
        for line in lines.iter().skip(lines.len().saturating_sub(LINES)) {
            println!("{}", line.trim_end());
        }
    }
}
