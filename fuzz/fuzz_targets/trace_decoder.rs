// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The target `trace_decoder`; see `vmbus_fuzz::trace_decoder`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmbus_fuzz::trace_decoder::run(data));
