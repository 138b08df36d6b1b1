// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lists: which system calls each kind of thread makes, and with what.
//!
//! Taken from what the code calls, and held against runs of all guest tests with
//! `--seccomp log`. A call that is allowed with certain arguments only has them
//! beside it. The numbers of KVM's requests are made here, since `kvm-ioctls`
//! keeps its own to itself.

use kvm_bindings::{
    KVMIO, kvm_clock_data, kvm_cpuid2, kvm_enable_cap, kvm_fpu, kvm_hyperv_eventfd,
    kvm_irq_routing, kvm_irqfd, kvm_lapic_state, kvm_msi, kvm_msr_filter, kvm_msrs, kvm_regs,
    kvm_sregs, kvm_userspace_memory_region,
};
use libc::{
    SYS_accept4, SYS_brk, SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone,
    SYS_clone3, SYS_close, SYS_connect, SYS_dup, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait,
    SYS_epoll_wait, SYS_eventfd2, SYS_exit, SYS_exit_group, SYS_fcntl, SYS_fstat, SYS_futex,
    SYS_getcwd, SYS_getpid, SYS_getrandom, SYS_getsockopt, SYS_gettid, SYS_gettimeofday, SYS_ioctl,
    SYS_lseek, SYS_madvise, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap, SYS_nanosleep,
    SYS_newfstatat, SYS_open, SYS_openat, SYS_prctl, SYS_pread64, SYS_read, SYS_readlink,
    SYS_readlinkat, SYS_readv, SYS_recvfrom, SYS_recvmsg, SYS_restart_syscall, SYS_rmdir, SYS_rseq,
    SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_yield,
    SYS_seccomp, SYS_sendmsg, SYS_sendto, SYS_set_robust_list, SYS_setsockopt, SYS_shutdown,
    SYS_sigaltstack, SYS_socket, SYS_statx, SYS_tgkill, SYS_timerfd_create, SYS_timerfd_settime,
    SYS_unlink, SYS_unlinkat, SYS_write, SYS_writev,
};
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

use super::Kind;
use super::program::{Rule, Rules, Verdict};

/// What is answered with "no such call": a panic's backtrace looks for the
/// program's file, and the C library for more than it needs.
pub(super) const ABSENT: [i64; 6] = [
    SYS_open,
    SYS_openat,
    SYS_getcwd,
    SYS_readlink,
    SYS_readlinkat,
    SYS_clone3,
];

/// Memory, locks, time, the end of a thread, words on standard error, and what
/// the C library does by itself.
const EVERY: &[i64] = &[
    SYS_write,
    SYS_writev,
    SYS_close,
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_brk,
    SYS_futex,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_getrandom,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_gettimeofday,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_restart_syscall,
    SYS_rt_sigreturn,
    SYS_rt_sigprocmask,
    SYS_rt_sigaction,
    SYS_sigaltstack,
    SYS_gettid,
    SYS_getpid,
    SYS_exit,
    SYS_exit_group,
];

const EPOLL: &[i64] = &[SYS_epoll_wait, SYS_epoll_pwait, SYS_epoll_ctl, SYS_read];

const CLIENTS: &[i64] = &[
    SYS_accept4,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_sendto,
    SYS_sendmsg,
    SYS_readv,
    SYS_shutdown,
    SYS_getsockopt,
    SYS_setsockopt,
];

/// Channels' eventfds, and Unix sockets that a guest's connections go to.
const CHANNELS: &[i64] = &[SYS_eventfd2, SYS_connect];

/// A machine's memory, kernel and threads; the sockets' files at the end.
const MACHINES: &[i64] = &[
    SYS_dup,
    SYS_timerfd_create,
    SYS_lseek,
    SYS_pread64,
    SYS_fstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_epoll_create1,
    SYS_rseq,
    SYS_set_robust_list,
    SYS_unlink,
    SYS_unlinkat,
    SYS_rmdir,
];

/// A vCPU's requests, the most frequent first. `KVM_SIGNAL_MSI` is of
/// `--synic user`.
const VCPU_REQUESTS: &[u32] = &[
    none(0x80), // KVM_RUN
    write::<kvm_msi>(0xA5),
    read::<kvm_regs>(0x81),
    write::<kvm_regs>(0x82),
    read::<kvm_sregs>(0x83),
    both::<kvm_msrs>(0x88),
    write::<kvm_msrs>(0x89),
    none(0x9A), // KVM_NMI
];

/// The alarms of synthetic timers.
const ALARMS: &[i64] = &[SYS_timerfd_settime];

const TIMER_REQUESTS: &[u32] = &[write::<kvm_msi>(0xA5)];

const BUS_REQUESTS: &[u32] = &[
    write::<kvm_msi>(0xA5),
    read::<kvm_clock_data>(0x7C),
    write::<kvm_hyperv_eventfd>(0xBD),
];

/// What makes a VM.
const MAKER_REQUESTS: &[u32] = &[
    none(0x01), // KVM_CREATE_VM
    none(0x04), // KVM_GET_VCPU_MMAP_SIZE
    none(0x47), // KVM_SET_TSS_ADDR
    write::<u64>(0x48),
    none(0x60), // KVM_CREATE_IRQCHIP
    write::<kvm_enable_cap>(0xA3),
    write::<kvm_msr_filter>(0xC6),
];

/// What makes a machine of it.
const MAIN_REQUESTS: &[u32] = &[
    none(0x03), // KVM_CHECK_EXTENSION
    none(0x41), // KVM_CREATE_VCPU
    write::<kvm_userspace_memory_region>(0x46),
    write::<kvm_irq_routing>(0x6A),
    write::<kvm_irqfd>(0x76),
    write::<kvm_clock_data>(0x7B),
    write::<kvm_sregs>(0x84),
    write::<kvm_fpu>(0x8D),
    read::<kvm_lapic_state>(0x8E),
    write::<kvm_lapic_state>(0x8F),
    write::<kvm_cpuid2>(0x90),
    none(0xA3), // KVM_GET_TSC_KHZ
];

/// The terminal is put back by whoever panics or makes a forbidden call. The
/// second pair is what newer C libraries use.
const TERMINAL_REQUESTS: &[u32] = &[0x5401, 0x5402, 0x802C_542A, 0x402C_542B];

/// `FIONBIO`: how a socket is made not to block.
const SOCKET_REQUESTS: &[u32] = &[0x5421];

/// What comes of the calls of a thread of this kind.
pub(super) fn of(kind: Kind) -> Rules {
    let (calls, requests): (&[&[i64]], &[&[u32]]) = match kind {
        Kind::Main => (
            &[EPOLL, CLIENTS, CHANNELS, MACHINES, ALARMS],
            &[
                VCPU_REQUESTS,
                BUS_REQUESTS,
                MAKER_REQUESTS,
                MAIN_REQUESTS,
                SOCKET_REQUESTS,
            ],
        ),
        Kind::Maker => (&[], &[MAKER_REQUESTS]),
        Kind::Vcpu => (&[ALARMS], &[VCPU_REQUESTS]),
        Kind::Bus => (
            &[EPOLL, CLIENTS, CHANNELS],
            &[BUS_REQUESTS, SOCKET_REQUESTS],
        ),
        Kind::Timers => (&[EPOLL, ALARMS], &[TIMER_REQUESTS]),
        Kind::Api => (&[EPOLL, CLIENTS], &[SOCKET_REQUESTS]),
        Kind::Output => (&[], &[]),
    };
    let mut rules = Rules::new();
    for call in [EVERY].iter().chain(calls).copied().flatten() {
        rules.insert(number(*call), Verdict::Allow);
    }
    for call in ABSENT {
        rules.insert(number(call), Verdict::Absent);
    }
    let mut when = |call, allowed| rules.insert(number(call), Verdict::If(allowed));
    let requests = requests.iter().chain(&[TERMINAL_REQUESTS]).copied();
    let requests = requests.flatten().map(|request| Rule::is(1, *request));
    when(SYS_ioctl, requests.collect());
    // To kick a vCPU, and to abort: no other process.
    when(SYS_tgkill, vec![Rule::is(0, std::process::id())]);
    // Not executable.
    for call in [SYS_mmap, SYS_mprotect] {
        when(call, vec![Rule::has(2, number(libc::PROT_EXEC), 0)]);
    }
    // The name of the thread, for the words about a forbidden call.
    let mut prctl = vec![Rule::is(0, number(libc::PR_GET_NAME))];
    // Programs with debug assertions see whether what they close is open.
    let mut fcntl = vec![Rule::is(1, number(libc::F_GETFD))];
    if matches!(kind, Kind::Main | Kind::Bus) {
        for command in [libc::F_DUPFD_CLOEXEC, libc::F_GETFL, libc::F_SETFL] {
            fcntl.push(Rule::is(1, number(command)));
        }
        when(SYS_socket, vec![Rule::is(0, number(libc::AF_UNIX))]);
    }
    if kind == Kind::Main {
        // The threads that it starts, each of which puts itself under its own
        // filters.
        let thread = number(libc::CLONE_THREAD);
        when(SYS_clone, vec![Rule::has(0, thread, thread)]);
        for option in [libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS] {
            prctl.push(Rule::is(0, number(option)));
        }
        when(
            SYS_seccomp,
            vec![Rule::is(0, libc::SECCOMP_SET_MODE_FILTER)],
        );
    }
    when(SYS_prctl, prctl);
    when(SYS_fcntl, fcntl);
    rules
}

/// Of the C library's constants, none of which is negative or large.
pub(super) fn number(constant: impl TryInto<u32>) -> u32 {
    constant.try_into().unwrap_or(u32::MAX)
}

const fn none(number: u32) -> u32 {
    request(_IOC_NONE, number, 0)
}

const fn read<T>(number: u32) -> u32 {
    request(_IOC_READ, number, size_of::<T>())
}

const fn write<T>(number: u32) -> u32 {
    request(_IOC_WRITE, number, size_of::<T>())
}

const fn both<T>(number: u32) -> u32 {
    request(_IOC_READ | _IOC_WRITE, number, size_of::<T>())
}

/// Structures of KVM's have some KiB at most, and a request is made of 32 bits.
#[allow(clippy::cast_possible_truncation)]
const fn request(direction: u32, number: u32, size: usize) -> u32 {
    ioctl_expr(direction, KVMIO, number, size as u32) as u32
}
