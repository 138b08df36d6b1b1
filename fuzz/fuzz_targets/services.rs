// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The target `services`; see `vmbus_fuzz::service`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmbus_fuzz::service::run_plain(data));
