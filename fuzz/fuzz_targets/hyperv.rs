// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The target `hyperv`; see `vmbus_fuzz::hyperv`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmbus_fuzz::hyperv::run(data));
