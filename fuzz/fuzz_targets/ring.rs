// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The target `ring`; see `vmbus_fuzz::ring`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmbus_fuzz::ring::run(data));
