// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The agent's only unsafe code: memory shared with the host, and system
//! calls and addresses that rustix does not have.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A device's memory, shared with whoever is on its other side. It is seen
/// only as atomic words: the other side writes to it at any time.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes of a file.
    pub fn of(file: &File, len: usize) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the address is left to the kernel, so no memory of this
        // process is replaced.
        let start = unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// `count` words of 32 bits from byte `offset` on.
    pub fn words32(&self, offset: usize, count: usize) -> io::Result<&[AtomicU32]> {
        let start = self.part::<AtomicU32>(offset, count)?;
        // SAFETY: `part` has checked that the words are aligned and inside the
        // mapping, which lives as long as `self`. They are only accessed
        // atomically, in this process and through the type by others.
        Ok(unsafe { std::slice::from_raw_parts(start.as_ptr(), count) })
    }

    /// `count` words of 64 bits from byte `offset` on.
    pub fn words64(&self, offset: usize, count: usize) -> io::Result<&[AtomicU64]> {
        let start = self.part::<AtomicU64>(offset, count)?;
        // SAFETY: as in `words32`.
        Ok(unsafe { std::slice::from_raw_parts(start.as_ptr(), count) })
    }

    /// Where `count` values of `T` from byte `offset` on are, if they are inside.
    fn part<T>(&self, offset: usize, count: usize) -> io::Result<NonNull<T>> {
        let bytes = count.checked_mul(size_of::<T>());
        let end = bytes.and_then(|bytes| bytes.checked_add(offset));
        if !offset.is_multiple_of(align_of::<T>()) || end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: `offset` is at most `len`, checked above.
        Ok(unsafe { self.start.add(offset) }.cast())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `of`, and borrows of it have ended.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Loads a kernel for `reboot(Kexec)`.
pub fn kexec_file_load(kernel: &File, initrd: &File, cmdline: &str) -> io::Result<()> {
    let cmdline = CString::new(cmdline)?;
    let len = cmdline.as_bytes_with_nul().len();
    // SAFETY: both files are open, and the string ends with the NUL that `len`
    // includes; the kernel only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            len,
            cmdline.as_ptr(),
            0_usize,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The host, as a socket's peer.
const HOST: u32 = 2;

/// A stream socket to a port of the host.
pub fn vsock_connect(port: u32) -> io::Result<OwnedFd> {
    vsock_connect_to(HOST, port)
}

/// A stream socket to a port of a machine.
pub fn vsock_connect_to(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let socket = vsock()?;
    let address = vsock_address(cid, port);
    let (pointer, len) = (&raw const address, size_of::<libc::sockaddr_vm>());
    // SAFETY: the pointer is to an address of that length, which is only read.
    let result = unsafe { libc::connect(socket.as_raw_fd(), pointer.cast(), to_len(len)) };
    checked(result).map(|()| socket)
}

/// A stream socket bound to a port of this guest.
pub fn vsock_bind(port: u32) -> io::Result<OwnedFd> {
    let socket = vsock()?;
    let address = vsock_address(libc::VMADDR_CID_ANY, port);
    let (pointer, len) = (&raw const address, size_of::<libc::sockaddr_vm>());
    // SAFETY: as in `vsock_connect_to`.
    let result = unsafe { libc::bind(socket.as_raw_fd(), pointer.cast(), to_len(len)) };
    checked(result).map(|()| socket)
}

fn vsock() -> io::Result<OwnedFd> {
    // SAFETY: the call takes any numbers.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    checked(fd.min(0))?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all zeroes are a valid address.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).unwrap_or(0);
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn to_len(len: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(len).unwrap_or(0)
}

fn checked(result: i32) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives this process a real-time priority: nothing but interrupts and its
/// like gets the CPU before it sleeps.
pub fn become_real_time() -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 10 };
    // SAFETY: `param` is valid for the call; 0 is this process.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends all processes but this one and PID 1 a signal.
pub fn signal_all(signal: i32) {
    // SAFETY: no memory is involved. That there is nobody to send it to is fine.
    let _ = unsafe { libc::kill(-1, signal) };
}
