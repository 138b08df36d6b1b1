// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the fuzz targets do, apart from libFuzzer: each `run` takes the bytes of
//! one input, and panics if the crate under test does something wrong.
//!
//! An input is a sequence of steps, one opcode byte and its operands each, read
//! until the bytes end. Steps can be written as well as read, so that seeds are
//! made of steps and not of magic bytes; `tests/seeds.rs` writes them to
//! `corpus/` and runs them. Some are made of traces of real guests ([`trace`]).
//!
//! | Target | Against |
//! |---|---|
//! | `control_messages` | the whole bus, through the mock guest |
//! | `ring` | one pair of rings over arbitrary memory |
//! | `synic` | MSRs, hypercalls, message slots, event flags |
//! | `kvp`, `vss`, `fcopy` | a whole service on the bus, through the mock guest |
//! | `services` | heartbeat, shutdown and time synchronisation in the same way |
//! | `service_replies` | what parses their answers; its input is one |
//! | `tar` | what reads the archive that a guest sends; its input is one |
//! | `fetch` | what unpacks it into a directory |
//! | `hvsock` | Hyper-V sockets on the bus, through the mock guest |
//! | `vsock` | clients of the host at the Unix socket for them |
//! | `hyperv` | synthetic MSRs, crash reports, the port to the bus thread |
//! | `trace_decoder` | what shows traffic to users |
//! | `kernel_image` | what a user gives as `--kernel`; its input is the file |
//! | `ring_race` | the rings, while another thread overwrites them |
//! | `http` | the control API's parser; its input is a connection's bytes |
//! | `boot_tables` | ACPI tables and memory maps of machines of any shape |

// A fuzz target panics when something is wrong: that is its purpose.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc
)]

pub mod boot;
pub mod control;
pub mod fetch;
pub mod guest;
pub mod http;
pub mod hvsock;
pub mod hyperv;
pub mod image;
pub mod race;
pub mod ring;
pub mod service;
pub mod step;
pub mod synic;
pub mod tar;
pub mod trace;
pub mod trace_decoder;
pub mod vsock;
