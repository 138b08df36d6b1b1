// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The harness behind `cargo xtask`: stock kernels, guest images, the nest,
//! and the tests that stock kernels judge.
//!
//! ```text
//!  apt ──► kernels ──► image ──► place: here or nest ──► vmm ──► guest ──► agent
//!  packages vmlinuz     initramfs          │
//!           modules     + agent            └─ QEMU's software emulation, when
//!                                             /dev/kvm can't boot stock kernels
//! ```
//!
//! Each module is one step of that way; [`cases`] holds what is tested.
#![forbid(unsafe_code)]

pub mod apt;
pub mod bench;
pub mod build;
pub mod bzimage;
pub mod cases;
pub mod citations;
pub mod cpio;
pub mod daemons;
pub mod demo;
pub mod elf;
pub mod error;
pub mod examples;
pub mod exec;
pub mod forward;
pub mod fuzz;
pub mod image;
pub mod kernels;
pub mod modules;
pub mod nest;
pub mod openapi;
pub mod paths;
pub mod place;
pub mod progress;
pub mod rootfs;
pub mod runner;
pub mod schemathesis;
pub mod suite;
pub mod terminal;
pub mod threat_model;
pub mod tools;
