// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The target `boot_tables`; see `vmbus_fuzz::boot`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmbus_fuzz::boot::run(data));
