// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The target `synic`; see `vmbus_fuzz::synic`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmbus_fuzz::synic::run(data));
