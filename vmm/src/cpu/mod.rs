// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Virtual CPUs: what they can do, how they start, and the loop that runs them.

pub mod cpuid;
pub mod registers;
pub mod vcpu;

pub use registers::Snapshot;
pub use vcpu::{Vcpu, VcpuEvent, VcpuThread};
