// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask`: the command line in front of the harness.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use guest_tests::bench::command::{self, Wish as Measure};
use guest_tests::bench::instructions;
use guest_tests::demo;
use guest_tests::error::{Result, failed};
use guest_tests::exec::{self, Exec};
use guest_tests::fuzz::{self, Budget};
use guest_tests::image::Image;
use guest_tests::place;
use guest_tests::progress::say;
use guest_tests::runner::{self, Wish};

/// Everything around `vmm` that needs stock kernels or a place where VMs run.
///
/// What is missing is installed (as root, from Debian's packages) or named.
/// Downloads and images are kept under target/guest-cache; once they are there
/// no network is needed.
///
/// VMs run on this machine's /dev/kvm if that boots stock kernels, otherwise in
/// "the nest", an emulated machine that sees this machine's files. XTASK_NEST=always
/// or =never overrules that choice, and XTASK_NEST=intel is `test --nest intel`. In the nest, only $XTASK_SCRATCH
/// (target/guest-scratch unless set) is written through to this machine.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    /// Boots a stock kernel with every service on, shows it live, and powers it off.
    ///
    /// On a terminal until `q` is pressed; vmmctl in another terminal reaches the VM
    /// meanwhile, also in the nest. Elsewhere some lines are printed.
    Demo,
    /// Runs a command where VMs can run; its output and exit status are the command's.
    ///
    /// Ends with 124 if --timeout ended it, 125 if the nest failed, 126 if the
    /// command can't be run, 127 if it isn't found, 128+N if signal N ended it.
    Exec {
        /// End it after this long, e.g. 90s or 5m
        #[arg(long, value_parser = duration)]
        timeout: Option<Duration>,
        /// In the nest with deterministic time: one instruction is one nanosecond
        #[arg(long)]
        icount: bool,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        argv: Vec<OsString>,
    },
    /// Runs all tests, those that stock kernels judge included.
    ///
    /// Without --kernel: the default kernel in full, and one boot of each other.
    /// Where a guest test failed, its logs are under $XTASK_SCRATCH/cases.
    Test {
        /// A kernel's name, or `all` for all of them in full
        #[arg(long)]
        kernel: Option<String>,
        /// Only whether each kernel boots
        #[arg(long)]
        smoke: bool,
        /// No unit tests
        #[arg(long)]
        guest_only: bool,
        /// Guest tests of what is rare in full: a million packets, 200 reloads
        #[arg(long)]
        long: bool,
        /// Only the control API, for so many minutes under schemathesis (from PyPI)
        ///
        /// Eight workers make requests of all kinds from docs/openapi.json, power and
        /// files included, to a VM with a guest and its daemons (bookworm unless
        /// --kernel says otherwise). Each answer is held against the description.
        #[arg(
            long,
            value_name = "MINUTES",
            num_args = 0..=1,
            require_equals = true,
            default_missing_value = "30",
            value_parser = clap::value_parser!(u64).range(1..),
            conflicts_with_all = ["smoke", "long", "filter"]
        )]
        api_fuzz: Option<u64>,
        /// Where guest tests run, whatever XTASK_NEST says
        ///
        /// `intel` is an emulated machine with an Intel CPU (Bochs, built once). It takes a
        /// batch: it boots from a disc with vmm, kernels and tests on it, and runs the tests
        /// one after the other, each once. A choice of them in some minutes, unless
        /// --kernel or FILTER says which; no unit tests. XTASK_BOCHS_CPU names another of
        /// Bochs' CPU models, XTASK_NEST_CMDLINE adds to its kernel's command line, for
        /// example kvm_intel.enable_apicv=0.
        #[arg(long, value_name = "WHERE", value_enum)]
        nest: Option<place::Wish>,
        /// Only tests whose name contains this, e.g. `crash` or `boot sid`
        filter: Option<String>,
    },
    /// Fuzzes what parses a guest's or a user's bytes; what fails is kept under target/fuzz.
    Fuzz {
        /// Only this target: control_messages, ring, synic, kernel_image, kvp, vss, fcopy,
        /// services, service_replies, tar, fetch, hvsock, vsock, hyperv, trace_decoder,
        /// ring_race, http or boot_tables
        target: Option<String>,
        /// How long each target runs
        #[arg(long, default_value = "60", conflicts_with = "runs")]
        seconds: u64,
        /// How many inputs each target is given, however long it takes
        #[arg(long)]
        runs: Option<u64>,
    },
    /// Measures: the protocol's own speed, or with --guest what guests cost beside QEMU.
    Bench {
        /// Guests in the nest, in deterministic time
        #[arg(long)]
        guest: bool,
        /// Instructions of a ring packet, held against benches/limits.json
        #[arg(long, conflicts_with_all = ["guest", "json", "only"])]
        instructions: bool,
        /// Print the figures as JSON
        #[arg(long)]
        json: bool,
        /// Only what has one of these words in its name
        only: Vec<String>,
    },
    /// Builds a guest's kernel and initial RAM disk and prints their paths.
    Image {
        /// bullseye, bookworm, bookworm-cloud, bookworm-rt, trixie, sid or trixie-systemd
        name: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// Unpack the ELF vmlinux too
        #[arg(long)]
        vmlinux: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (result, failure) = match cli.command {
        Cmd::Demo => (demo::demo(), 1),
        Cmd::Exec {
            timeout,
            icount,
            argv,
        } => (
            exec::exec(&Exec {
                argv,
                timeout,
                icount,
                forward: None,
            }),
            125,
        ),
        Cmd::Test {
            kernel,
            smoke,
            guest_only,
            long,
            api_fuzz,
            nest,
            filter,
        } => {
            let wish = Wish {
                kernel,
                filter,
                guest_only,
                smoke,
                long,
                api_fuzz,
                nest,
            };
            (runner::test(&wish).map(|good| u8::from(!good)), 1)
        }
        Cmd::Fuzz {
            target,
            seconds,
            runs,
        } => {
            let budget = runs.map_or(Budget::Seconds(seconds), Budget::Runs);
            (fuzz::fuzz(target.as_deref(), budget), 1)
        }
        Cmd::Bench {
            guest,
            instructions: counted,
            json,
            only,
        } => {
            let wish = Measure { json, only };
            let measured = if guest {
                command::guest(&wish)
            } else if counted {
                instructions::instructions()
            } else {
                command::protocol(&wish)
            };
            (measured, 1)
        }
        Cmd::Image {
            name,
            json,
            vmlinux,
        } => (image(&name, json, vmlinux), 1),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            say(error);
            ExitCode::from(failure)
        }
    }
}

fn image(name: &str, json: bool, vmlinux: bool) -> Result<u8> {
    let image = Image::guest(name)?;
    let mut paths = vec![
        ("kernel", image.kernel.vmlinuz()),
        ("initramfs", image.initramfs),
    ];
    if vmlinux {
        paths.push(("vmlinux", image.kernel.vmlinux()?));
    }
    if json {
        let mut object = serde_json::Map::new();
        object.insert("name".into(), name.into());
        object.insert("release".into(), image.kernel.release.into());
        for (what, path) in paths {
            object.insert(what.into(), path.display().to_string().into());
        }
        println!("{}", serde_json::Value::from(object));
    } else {
        println!("release   {}", image.kernel.release);
        for (what, path) in paths {
            println!("{what:9} {}", path.display());
        }
    }
    Ok(0)
}

/// `90s`, `5m`, `500ms`, or seconds.
fn duration(text: &str) -> Result<Duration> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| failed("duration", "such as 90s, 5m or 500ms"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        _ => Err(failed("duration", "such as 90s, 5m or 500ms")),
    }
}
