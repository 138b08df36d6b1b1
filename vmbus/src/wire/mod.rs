// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Byte formats of the bus: bytes in, checked owned values out, and back.
//!
//! Nothing here holds state. Every parser works on bytes that were copied out
//! of guest memory once, so what was checked is what is used.

mod ids;
mod payload;

pub use ids::{Sint, VpIndex};
pub use payload::{MAX_PAYLOAD, Payload};
