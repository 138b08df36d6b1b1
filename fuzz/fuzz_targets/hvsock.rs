// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The target `hvsock`; see `vmbus_fuzz::hvsock`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmbus_fuzz::hvsock::run(data));
