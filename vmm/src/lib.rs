// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A minimal KVM virtual machine monitor for Linux guests on "Hyper-V".
//!
//! This crate is everything that has a file descriptor: KVM, memory, threads,
//! the terminal. The protocols are in `vmbus` and `ics-devices`, which know of
//! none of these. It is a program first; the library exists so that its parts
//! can be tested, fuzzed and measured.
//!
//! ```text
//! supervisor ── the process: reset, exit codes, event loop
//!   └─ machine ── one life of a machine
//!        ├─ boot, acpi, memory ── what the guest finds in its RAM
//!        ├─ cpu ── CPUID, registers, the vCPU threads
//!        ├─ timers ── the thread of our synthetic timers; the Hyper-V side itself is `vmbus-kvm`
//!        ├─ bus ── the bus thread: VMBus and what is on it
//!        └─ devices ── COM1, clock, power
//! ```
//!
//! [`hvsocket`] is for other programs of the host: those that talk to guests.

pub mod acpi;
pub mod api;
pub mod audience;
pub mod boot;
pub mod bus;
pub mod cli;
pub mod completions;
pub mod cpu;
pub mod ctl;
pub mod devices;
pub mod escape;
pub mod events;
pub mod feed;
pub mod host_items;
pub mod hvsocket;
mod input;
pub mod kvm;
pub mod machine;
pub mod man;
pub mod memory;
pub mod output;
pub mod sandbox;
pub mod services;
pub mod ssh_key;
pub mod supervisor;
mod sys;
pub mod terminal;
pub mod timers;
pub mod trace;
pub mod vsock;
