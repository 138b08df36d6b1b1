// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench --guest`: what a guest and its host cost, beside a peer.

mod boot;
pub mod command;
pub mod instructions;
mod limit;
mod machine;
pub mod memory;
mod report;
mod rings;
mod root;
pub(crate) mod services;
mod streams;
pub mod trace;

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::suite::Outcome;
use machine::Machine;

/// With what is measured.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The program that is measured.
    pub vmm: PathBuf,
    /// Its peer.
    pub qemu: PathBuf,
    /// Both ends of streams.
    pub agent: PathBuf,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// The ELF file in it.
    pub vmlinux: PathBuf,
    /// The guest's initial RAM disk.
    pub initramfs: PathBuf,
    /// The same with the distribution's daemons.
    pub with_daemons: PathBuf,
    /// For logs.
    pub dir: PathBuf,
    /// Where the figures go.
    pub out: PathBuf,
}

/// Measures the parts whose names contain one of the words, or all.
pub fn run(ground: &Ground, only: &[String]) -> Outcome<Value> {
    use Machine::{Microvm, Ours, Pc};
    let parts: &[(&str, &dyn Fn() -> Outcome<Value>)] = &[
        ("limit-copy", &|| Ok(limit::copy())),
        ("limit-socket", &limit::socket),
        ("streams-vmm", &|| streams::measure(ground, Ours)),
        ("streams-pc", &|| streams::measure(ground, Pc)),
        ("streams-microvm", &|| streams::measure(ground, Microvm)),
        ("streams-counts", &|| streams::count(ground, Ours)),
        ("boot-vmm-bzimage", &|| boot::time(ground, Ours, false)),
        ("boot-microvm-bzimage", &|| {
            boot::time(ground, Microvm, false)
        }),
        ("boot-vmm-elf", &|| boot::time(ground, Ours, true)),
        ("boot-microvm-elf", &|| boot::time(ground, Microvm, true)),
        ("share-bzimage", &|| boot::share(ground, Ours, false)),
        ("share-elf", &|| boot::share(ground, Ours, true)),
        ("boot-counts", &|| boot::count(ground, Ours)),
        ("services", &|| services::measure(ground)),
        ("memory-1", &|| memory::measure(ground, Ours, 1)),
        ("memory-4", &|| memory::measure(ground, Ours, 4)),
        ("memory-microvm", &|| memory::measure(ground, Microvm, 1)),
        ("size", &|| memory::size(&ground.vmm)),
    ];
    // For those who look for the reason of a figure: only if asked for.
    let timelines: &[(&str, &dyn Fn() -> Outcome<Value>)] = &[
        ("timeline-vmm", &|| streams::timeline(ground, Ours)),
        ("timeline-pc", &|| streams::timeline(ground, Pc)),
        ("timeline-start-vmm", &|| {
            boot::timeline(ground, Ours, false)
        }),
        ("timeline-start-vmm-elf", &|| {
            boot::timeline(ground, Ours, true)
        }),
        ("timeline-start-microvm", &|| {
            boot::timeline(ground, Microvm, false)
        }),
    ];
    let mut all = Map::new();
    let wanted = |name: &str| only.iter().any(|word| name.contains(word.as_str()));
    let usual = parts
        .iter()
        .filter(|(name, _)| only.is_empty() || wanted(name));
    for (name, part) in usual.chain(timelines.iter().filter(|(name, _)| wanted(name))) {
        // One that fails, perhaps for want of a peer, leaves the others alone.
        match part() {
            Ok(found) => drop(all.insert((*name).to_owned(), found)),
            Err(failure) => tell(&format!("{name}: {failure}")),
        }
    }
    Ok(all.into())
}

/// Progress, for who waits.
fn tell(text: &str) {
    eprintln!("bench: {text}");
}
