// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Deciding where VMs can run: on this machine's `/dev/kvm`, or in the nest.
//!
//! That `/dev/kvm` can be opened says little: some hosts have a KVM without
//! hardware virtualization, which runs only kernels that were made for it. So
//! a stock kernel is booted, once, and the answer is kept.

use std::env;
use std::fs::{self, OpenOptions};
use std::process::{Command, Stdio};

use crate::build;
use crate::error::{Context, Result, failed};
use crate::image::Image;
use crate::kernels;
use crate::paths::{self, Lock};
use crate::progress::{step, whisper};

const LAYER: &str = "place";

/// Where VMs can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this machine.
    Here,
    /// In the nest, for this reason.
    Nest(String),
}

/// What a user wants, by `--nest` or `XTASK_NEST`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Wish {
    /// This machine's /dev/kvm if that boots stock kernels, else the nest
    #[default]
    Auto,
    /// The nest, an emulated machine with an AMD CPU
    Always,
    /// This machine's /dev/kvm
    Never,
    /// A second nest with an Intel CPU, for a batch of tests
    Intel,
}

impl Wish {
    /// What `XTASK_NEST` says.
    pub fn of_environment() -> Result<Self> {
        Self::parse(&env::var("XTASK_NEST").unwrap_or_default())
    }

    fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            "intel" => Ok(Self::Intel),
            _ => Err(failed(
                LAYER,
                format!("XTASK_NEST={text}: it can be `always`, `never`, `auto` or `intel`"),
            )),
        }
    }
}

/// Decides as `XTASK_NEST` says.
pub fn decide() -> Result<Place> {
    decide_as(Wish::of_environment()?)
}

/// Decides, for whoever runs commands one by one. That the Intel nest can't.
pub fn decide_as(wish: Wish) -> Result<Place> {
    match wish {
        Wish::Always => return Ok(Place::Nest("as asked for".to_owned())),
        Wish::Never => return Ok(Place::Here),
        Wish::Auto => {}
        Wish::Intel => {
            return Err(failed(
                LAYER,
                "the Intel nest runs nothing but tests: use `cargo xtask test --nest intel`, \
                 or unset XTASK_NEST",
            ));
        }
    }
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Ok(Place::Nest(format!("/dev/kvm: {error}")));
    }
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !has_virtualization(&cpuinfo) {
        let why = "/dev/kvm is there, but the CPU shows no hardware virtualization (vmx, svm)";
        return Ok(Place::Nest(why.to_owned()));
    }
    tried_here()
}

fn has_virtualization(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| {
        flags
            .split_whitespace()
            .any(|flag| flag == "vmx" || flag == "svm")
    })
}

/// The answer of a trial boot, from the cache if this host's kernel was tried.
fn tried_here() -> Result<Place> {
    let _lock = Lock::take("place")?;
    let file = paths::cache("")?.join("kvm-verdict");
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let known = fs::read_to_string(&file).unwrap_or_default();
    let verdict = known.strip_prefix(host.as_str()).map(str::to_owned);
    let verdict = if let Some(verdict) = verdict {
        verdict
    } else {
        let verdict = step("trying whether /dev/kvm can boot a stock kernel", trial)?;
        fs::write(&file, format!("{host}{verdict}")).context(LAYER, file.display())?;
        verdict
    };
    Ok(match verdict.as_str() {
        "yes" => Place::Here,
        why => Place::Nest(why.to_owned()),
    })
}

/// "yes", or why not.
fn trial() -> Result<String> {
    let image = Image::guest(kernels::DEFAULT)?;
    let vmm = build::program("vmm", "vmm")?;
    let output = Command::new(vmm)
        .arg("--kernel")
        .arg(image.kernel.vmlinuz())
        .arg("--initramfs")
        .arg(&image.initramfs)
        .args([
            "--cmdline",
            "console=ttyS0 agent.poweroff panic=-1",
            "--timeout",
            "30s",
        ])
        .stdin(Stdio::null())
        .output()
        .context(LAYER, "vmm")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && text.contains("agent: kernel") {
        return Ok("yes".to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or_default();
    whisper(format_args!(
        "the trial ended with {}: {said}",
        output.status
    ));
    Ok(format!(
        "/dev/kvm did not boot a stock kernel ({})",
        output.status
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_one_of_four_words() {
        assert_eq!(Wish::parse("").unwrap(), Wish::Auto);
        assert_eq!(Wish::parse("intel").unwrap(), Wish::Intel);
        let error = Wish::parse("amd").unwrap_err().to_string();
        assert!(error.contains("`intel`"), "{error}");
    }

    #[test]
    fn single_commands_cannot_be_run_in_the_intel_nest() {
        let error = decide_as(Wish::Intel).unwrap_err().to_string();
        assert!(error.contains("cargo xtask test --nest intel"), "{error}");
    }

    #[test]
    fn hardware_virtualization_is_a_flag_of_the_cpu() {
        assert!(has_virtualization(
            "processor : 0\nflags\t\t: fpu vmx sse\n"
        ));
        assert!(has_virtualization("flags : fpu svm\n"));
        assert!(!has_virtualization(
            "flags : fpu sse nosvmx\nbugs : vmscape\n"
        ));
        assert!(!has_virtualization(""));
    }
}
