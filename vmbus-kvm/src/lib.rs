// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a KVM VMM needs to put [`vmbus`] in front of a guest, and does not have: Hyper-V's
//! CPUID leaves, the MSRs that exit, hypercalls, a SynIC in one of three ways, its
//! interrupts, the clock, and the ACPI device that makes Linux look for a bus.
//!
//! ```text
//!        vCPU threads                                     the thread that has vmbus::host::Host
//!  KVM_RUN ─► exit ─► Hyperv::read_msr, write_msr,              ▲            │
//!                     hypercall, set_synic                      │            ▼
//!                        │ HvPostMessage ──► FromGuest::messages┘   Hyperv::post_message,
//!                        └ HvSignalEvent ──► eventfd of the channel         signal_event,
//!                          (by KVM itself where it can)                     bind_signal
//! ```
//!
//! # Three modes
//! | [`Mode`] | Hypercalls | SynIC MSRs, messages, events | Interrupts | Needs |
//! |---|---|---|---|---|
//! | [`Kernel`](Mode::Kernel) | VMCALL, `KVM_EXIT_HYPERV` | KVM | irqfd to {VP, SINT 2} | `CONFIG_KVM_HYPERV`, the whole irqchip in KVM |
//! | [`Hybrid`](Mode::Hybrid) | VMCALL, `KVM_EXIT_HYPERV` | [`vmbus::synic::SoftSynic`] | MSI | `CONFIG_KVM_HYPERV`, local APICs in KVM |
//! | [`User`](Mode::User) | OUT in our hypercall page | [`vmbus::synic::SoftSynic`] | MSI | local APICs in KVM |
//!
//! With a split irqchip KVM refuses the resample eventfd by which it tells of a free
//! message slot, so the mode `Kernel` cannot be: [`Capabilities::check`] says so.
//!
//! # A VMM's own types
//! Every call takes descriptors ([`AsRawFd`](std::os::fd::AsRawFd)), since VMMs hide their
//! `VmFd`, and use different versions of `kvm-ioctls`. What KVM shares with user space is
//! `kvm_bindings`' [`kvm_run`]; a VMM with another version of that crate casts the pointer,
//! for the layout is the kernel's.
//!
//! # In order
//! 1. [`Capabilities::of`] an open `/dev/kvm`, [`Capabilities::choose`] or
//!    [`check`](Capabilities::check) the mode.
//! 2. Of a VM, before its vCPUs run: [`filter_msrs`].
//! 3. Of each vCPU: [`cpuid::replace`] in its CPUID; [`enable_synic`] unless the mode is
//!    `User`. A VP's index is its number in KVM, and has to be its APIC id.
//! 4. [`Hyperv::new`]; in the mode `Kernel` the VM's routes with [`Hyperv::routes`] among
//!    them, then [`Hyperv::wire_interrupts`].
//! 5. On each exit the method that [`exit`] names.

#![deny(missing_docs)]

pub mod acpi;
mod capabilities;
pub mod cpuid;
mod error;
pub mod exit;
mod hyperv;
mod interrupts;
mod msr;
mod port;
mod sys;
mod timers;

pub use capabilities::{Capabilities, Irqchip, Mode, ModeError};
pub use error::KvmError;
pub use hyperv::{ClockSample, Config, Hyperv, VmHandle};
pub use interrupts::{MSI_BASE, enable_synic};
pub use kvm_bindings::kvm_run;
pub use msr::{filter_msrs, filtered_msrs};
pub use port::{BusPort, FromGuest, Posted};
pub use sys::host_tsc;
