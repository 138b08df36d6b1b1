// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What makes a guest believe that it runs on Hyper-V, beside the bus: CPUID leaves, the
//! partition's MSRs with the hypercall page and the reference clock, crash reports
//! (protocol 1).
//!
//! ```text
//!  CPUID ◄── leaves()                                    once, for each vCPU
//!  RDMSR, WRMSR 0x4000_0000 … 01FF ──► Partition ──► page contents, crash reports
//!                                 └──► synic::SoftSynic, synic::SyntheticTimers for theirs
//! ```
//!
//! Nothing here knows a hypervisor: numbers and the guest's memory go in. Who has KVM
//! finds all of it put together in the crate `vmbus-kvm`.

pub mod cpuid;
mod crash;
mod partition;
mod time;

pub use crash::{CrashRegisters, CrashReport};
pub use partition::{
    ALWAYS_OURS, Fault, GUEST_OS_ID_MSR, HYPERCALL_OUT_OFFSET, HYPERCALL_PORT, Partition, RANGE,
    TIME_REF_COUNT, guest_os_name,
};
pub use time::ReferenceTime;
