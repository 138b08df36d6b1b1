// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The target `fetch`; see `vmbus_fuzz::fetch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmbus_fuzz::fetch::run(data));
