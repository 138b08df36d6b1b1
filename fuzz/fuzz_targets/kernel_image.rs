// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The target `kernel_image`; see `vmbus_fuzz::image`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmbus_fuzz::image::run(data));
