// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The target `vsock`; see `vmbus_fuzz::vsock`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmbus_fuzz::vsock::run(data));
