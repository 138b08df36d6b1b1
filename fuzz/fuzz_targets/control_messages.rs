// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The target `control_messages`; see `vmbus_fuzz::control`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmbus_fuzz::control::run(data));
