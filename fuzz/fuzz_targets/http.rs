// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The target `http`; see `vmbus_fuzz::http`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmbus_fuzz::http::run(data));
