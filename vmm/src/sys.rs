// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one place in this crate where `unsafe` stands: parts of the KVM
//! interface that `kvm-ioctls` does not wrap, terminal settings, the few calls
//! for sockets that the standard library lacks, and the last words of a process
//! that made a forbidden call.

pub(crate) mod trap;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use kvm_bindings::{KVM_EXIT_INTERNAL_ERROR, kvm_run, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MmapRegion};
use vmbus::memory::GuestSlice;

use crate::memory::{Around, GuestMemory};

/// The kind of a `KVM_EXIT_INTERNAL_ERROR`.
pub(crate) fn internal_error(run: &kvm_run) -> Option<u32> {
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return None;
    }
    // SAFETY: the exit reason says that KVM has filled in this member; a plain integer.
    Some(unsafe { run.__bindgen_anon_1.internal.suberror })
}

/// Gives a VM its memory.
pub(crate) fn set_memory(vm: &VmFd, memory: &GuestMemory) -> Result<(), kvm_ioctls::Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr().expose_provenance() as u64,
        };
        // SAFETY: the range is in a mapping that this process owns. The
        // caller's machine keeps `memory` for as long as the VM exists,
        // and guest accesses to it are what volatile reads and writes expect.
        unsafe { vm.set_user_memory_region(slot) }?;
    }
    Ok(())
}

/// A terminal's settings.
#[derive(Clone, Copy)]
pub(crate) struct TerminalSettings(libc::termios);

/// Reads the settings of a terminal; an error if the descriptor is none.
pub(crate) fn terminal_settings(fd: RawFd) -> io::Result<TerminalSettings> {
    let mut settings = MaybeUninit::uninit();
    // SAFETY: tcgetattr writes a whole termios to the pointer if it succeeds.
    if unsafe { libc::tcgetattr(fd, settings.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: tcgetattr succeeded, so the value has been written.
    Ok(TerminalSettings(unsafe { settings.assume_init() }))
}

/// Applies settings at once.
pub(crate) fn set_terminal(fd: RawFd, settings: &TerminalSettings) -> io::Result<()> {
    // SAFETY: the pointer is to a valid termios, which the call only reads.
    if unsafe { libc::tcsetattr(fd, libc::TCSANOW, &raw const settings.0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl TerminalSettings {
    /// The same terminal in raw mode: every key is the guest's.
    #[must_use]
    pub(crate) fn raw(&self) -> Self {
        let mut raw = *self;
        // SAFETY: the pointer is to a valid termios, which the call changes in place.
        unsafe { libc::cfmakeraw(&raw mut raw.0) };
        // Output of this program and of the guest shares the terminal: keep
        // the translation of line ends.
        raw.0.c_oflag |= libc::OPOST;
        raw
    }
}

/// A descriptor that the user named by its number. It is borrowed from the
/// caller of this program: a copy is made, so that closing ours leaves theirs.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with F_DUPFD_CLOEXEC takes any number and fails for one
    // that is not open.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// No program that this process starts gets more privileges than it has.
pub(crate) fn no_new_privileges() -> io::Result<()> {
    // SAFETY: the call takes numbers, and changes nothing that the process has.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Who runs this process.
pub(crate) fn user_id() -> u32 {
    // SAFETY: getuid has no preconditions and cannot fail.
    unsafe { libc::getuid() }
}

/// Runs something while new files lack these permissions. The mask is the
/// process's: call it before there are threads that make files.
pub(crate) fn with_umask<T>(mask: libc::mode_t, run: impl FnOnce() -> T) -> T {
    // SAFETY: umask has no preconditions and cannot fail.
    let before = unsafe { libc::umask(mask) };
    let result = run();
    // SAFETY: as above.
    unsafe { libc::umask(before) };
    result
}

/// A region of so many bytes within the mapping `around`, at the first multiple of
/// `alignment` in it.
pub(crate) fn region_within(
    around: Around,
    bytes: usize,
    alignment: usize,
) -> Result<MmapRegion<Around>, MmapRegionError> {
    let whole = &around.0;
    let (prot, flags) = (whole.prot(), whole.flags());
    let before = whole.as_ptr().align_offset(alignment);
    if before.saturating_add(bytes) > whole.size() {
        return Err(MmapRegionError::InvalidPointer);
    }
    // SAFETY: so much is before the region, and the region is, within the mapping.
    let start = unsafe { whole.as_ptr().add(before) };
    let region = MmapRegionBuilder::new_with_bitmap(bytes, around)
        .with_mmap_prot(prot)
        .with_mmap_flags(flags);
    // SAFETY: these bytes are in `around`, which is mapped until it is dropped, and the
    // region owns it.
    unsafe { region.with_raw_mmap_pointer(start) }.build()
}

/// Makes all threads allocate from one heap: none of them allocates much, and each
/// would have one of its own, which takes memory and time to make. Before there are
/// threads.
pub(crate) fn one_heap() {
    // Other C libraries have one in any case.
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes any numbers, and no other thread allocates yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Stops this process as the terminal's stop signal would have.
pub(crate) fn stop_self() {
    // SAFETY: raise has no preconditions.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// Whether a descriptor is a terminal.
pub(crate) fn is_terminal(fd: BorrowedFd<'_>) -> bool {
    terminal_settings(fd.as_raw_fd()).is_ok()
}

/// Lets this process open as many files as it may; the limit then.
pub(crate) fn raise_file_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a valid structure, which the call fills in.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let before = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the pointer is to a valid structure, which the call only reads.
    let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0;
    Ok(if raised { limit.rlim_cur } else { before })
}

/// Fills `bytes` with random ones.
pub(crate) fn random(bytes: &mut [u8; 16]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of a slice that may be
    // written. So few bytes are never given in part.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(got) == Ok(bytes.len()) {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Looks at what can be read from a socket without taking it.
pub(crate) fn peek(socket: &UnixStream, into: &mut [u8]) -> io::Result<usize> {
    let fd = socket.as_raw_fd();
    // SAFETY: the pointer and the length are those of a slice that may be written.
    let got = unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), libc::MSG_PEEK) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Lets `bytes` be written to a socket before its reader reads, or as much as the
/// host's administrator allows. The kernel counts twice as much.
pub(crate) fn widen(socket: &UnixStream, bytes: libc::c_int) {
    set_option(socket.as_raw_fd(), libc::SO_SNDBUF, bytes);
}

/// Lets no descriptors be sent along with bytes, on kernels that can refuse them
/// (Linux 6.16). Reading would close them, and one can be made whose closing takes
/// as long as its sender likes.
pub(crate) fn refuse_descriptors(socket: &impl AsRawFd) {
    const SO_PASSRIGHTS: libc::c_int = 83;
    set_option(socket.as_raw_fd(), SO_PASSRIGHTS, 0);
}

/// Sets what a socket can also do without.
fn set_option(fd: RawFd, option: libc::c_int, value: libc::c_int) {
    let size = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
    let value = (&raw const value).cast();
    // SAFETY: the pointer is to a number of that size, which is only read.
    if unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, value, size) } != 0 {
        let error = io::Error::last_os_error();
        log::debug!("option {option} of a socket: {error}");
    }
}

/// Reads what there is. Says how much, and whether that need not be all although
/// it did not fill the buffer: it ends where descriptors were sent along.
pub(crate) fn receive(socket: &UnixStream, into: &mut [u8]) -> io::Result<(usize, bool)> {
    let mut part = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    // SAFETY: all zeroes are a valid message without an address or parts.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    // SAFETY: the message has one part, a slice that may be written, and no room
    // for anything else.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    Ok((got, message.msg_flags & libc::MSG_CTRUNC != 0))
}

/// Writes bytes from where they are in the guest's memory: as many of the first
/// pieces as one call takes.
pub(crate) fn write_volatile(socket: &UnixStream, pieces: &[GuestSlice<'_>]) -> io::Result<usize> {
    const MOST: usize = 64;
    let nothing = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    };
    let mut list = [nothing; MOST];
    let mut count = 0;
    for (to, piece) in list.iter_mut().zip(pieces) {
        to.iov_base = piece.as_ptr().cast();
        to.iov_len = piece.len();
        count += 1;
    }
    // SAFETY: each of the first `count` entries is a slice's memory, which is
    // mapped while `pieces` is borrowed. It is only read, and by the kernel, for
    // which it does not matter that the guest may write to it meanwhile.
    let written = unsafe { libc::writev(socket.as_raw_fd(), list.as_ptr(), count) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Connects to a Unix socket, or fails at once: a listener that does not take
/// its clients must not stop us. The stream does not block either.
pub(crate) fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    // SAFETY: all zeroes are a valid address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or(0);
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes any numbers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    refuse_descriptors(&socket);
    let size = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
    // SAFETY: the pointer is to a valid address of that size, which is only read.
    if unsafe { libc::connect(fd, (&raw const address).cast(), size) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}
