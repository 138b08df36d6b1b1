// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The test agent's two protocols, shared by the agent and by whoever drives it.
//!
//! The same static program is `/init` in two kinds of machine:
//!
//! ```text
//!  cargo xtask ──frames over virtio-serial──► agent in the nest (L1)
//!                                              └─ vmm ──lines over COM1──► agent in the guest (L2)
//! ```
//!
//! * [`frame`] and [`job`] carry many commands at once to the nest, with their
//!   input, output, signals and terminals. The channel is binary and private.
//! * [`mod@line`] carries one command at a time to a guest through its serial
//!   console, where kernel messages may appear between our lines.
//! * [`batch`] is for a nest without such a channel: it has its commands in its
//!   initial RAM disk, and says by lines what became of them.
//! * [`exchange`] is what both ends of a stream under test do.
#![forbid(unsafe_code)]

pub mod batch;
pub mod exchange;
pub mod frame;
pub mod job;
pub mod line;
