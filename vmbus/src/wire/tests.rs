// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The formats against the protocol's tables, against literal bytes, and
//! against themselves.

mod layout;
mod literal;
mod properties;
