// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The target `tar`; see `vmbus_fuzz::tar`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmbus_fuzz::tar::run(data));
