// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A user-space VMBus host as pure state machines.

// Names of the protocol, such as INITIATE_CONTACT, read better without ticks.
#![allow(clippy::doc_markdown)]

pub mod bus;
pub mod gpadl;
pub mod host;
mod mapped;
pub mod ring;
pub mod synic;
pub mod wire;
