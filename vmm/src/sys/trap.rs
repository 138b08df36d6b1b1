// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The end of a process that has made a forbidden system call.
//!
//! Seccomp sends SIGSYS to the thread that made it. The handler says which
//! thread and which call, and ends the process. It runs in the middle of
//! whatever the thread did, so it calls nothing but what may be called then: it
//! does not allocate and takes no lock that it would have to wait for.

use std::io;

use vmm_sys_util::signal::register_signal_handler;

use crate::cli::exit;
use crate::terminal;

/// Bytes of a thread's name, as the kernel has it.
const NAME: usize = 16;

/// Lets SIGSYS say what it is about.
pub(crate) fn install() -> io::Result<()> {
    register_signal_handler(libc::SIGSYS, handle)
        .map_err(|error| io::Error::other(error.to_string()))
}

extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // Where the kernel puts the call's number: behind three numbers, a gap and
    // the call's address.
    const CALL: usize = 6;
    // SAFETY: the kernel passes a siginfo_t, which is 128 bytes.
    let call = unsafe { info.cast::<i32>().add(CALL) };
    // SAFETY: it is aligned as a pointer is, and its seventh number is plain
    // memory, whatever is in it.
    let call = unsafe { call.read() };
    terminal::try_restore();
    let mut name = [0u8; NAME];
    // SAFETY: the call writes the 16 bytes of a thread's name, which there is
    // room for.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let mut digits = [0; 10];
    let parts: [&[u8]; 5] = [
        b"vmm: seccomp: the thread '",
        name,
        b"' made the system call ",
        decimal(call.unsigned_abs(), &mut digits),
        b", which it has no use for: a fault of vmm's, or its guest has taken it over; \
          with --seccomp log such calls go through and are in the kernel's log\n",
    ];
    let mut line = [0; 256];
    let mut length = 0;
    for (to, from) in line.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
        length += 1;
    }
    // SAFETY: the pointer and the length are those of a part of an array.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length) };
    // SAFETY: the call does not return, and runs nothing else in the process.
    unsafe { libc::_exit(exit::HOST.into()) };
}

/// A number's digits, without allocating.
fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut start = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        // Less than ten.
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        start = at;
        if number == 0 {
            break;
        }
    }
    digits.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_without_allocating() {
        for (number, text) in [(0, "0"), (41, "41"), (u32::MAX, "4294967295")] {
            assert_eq!(decimal(number, &mut [0; 10]), text.as_bytes());
        }
    }
}
