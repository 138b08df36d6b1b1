// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The target `ring_race`; see `vmbus_fuzz::race`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmbus_fuzz::race::run(data));
