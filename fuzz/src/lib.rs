// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the fuzz targets do, apart from libFuzzer: each `run` takes the bytes of
//! one input, and panics if the crate under test does something wrong.
//!
//! An input is a sequence of steps, one opcode byte and its operands each, read
//! until the bytes end. Steps can be written as well as read, so that seeds are
//! made of steps and not of magic bytes; `tests/seeds.rs` writes them to
//! `corpus/` and runs them.
//!
//! | Target | Against |
//! |---|---|
//! | `control_messages` | the whole bus, through the mock guest |
//! | `ring` | one pair of rings over arbitrary memory |
//! | `synic` | MSRs, hypercalls, message slots, event flags |
//! | `kvp`, `vss`, `fcopy` | a whole service on the bus, through the mock guest |
//! | `service_replies` | what parses their answers; its input is one |
//! | `tar` | what reads the archive that a guest sends; its input is one |
//! | `hvsock` | Hyper-V sockets on the bus, through the mock guest |
//! | `kernel_image` | what a user gives as `--kernel`; its input is the file |

// A fuzz target panics when something is wrong: that is its purpose.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc
)]

pub mod control;
pub mod hvsock;
pub mod image;
pub mod ring;
pub mod service;
pub mod step;
pub mod synic;
pub mod tar;
