// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one place in this crate where `unsafe` stands: calls of KVM by descriptor, and the
//! unions in what KVM shares with user space.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};

use kvm_bindings::{
    CpuId, KVM_EXIT_HYPERV, KVM_EXIT_HYPERV_HCALL, KVM_EXIT_HYPERV_SYNIC, KVM_IRQFD_FLAG_RESAMPLE,
    KVM_MSR_FILTER_DEFAULT_ALLOW, KVM_MSR_FILTER_MAX_RANGES, KVM_MSR_FILTER_READ,
    KVM_MSR_FILTER_WRITE, KVMIO, kvm_clock_data, kvm_cpuid2, kvm_enable_cap, kvm_hyperv_eventfd,
    kvm_irqfd, kvm_msi, kvm_msr_filter, kvm_run,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

ioctl_io_nr!(CHECK_EXTENSION, KVMIO, 0x03);
ioctl_iow_nr!(IRQFD, KVMIO, 0x76, kvm_irqfd);
ioctl_ior_nr!(GET_CLOCK, KVMIO, 0x7c, kvm_clock_data);
ioctl_iow_nr!(ENABLE_CAP, KVMIO, 0xa3, kvm_enable_cap);
ioctl_iow_nr!(SIGNAL_MSI, KVMIO, 0xa5, kvm_msi);
ioctl_iow_nr!(HYPERV_EVENTFD, KVMIO, 0xbd, kvm_hyperv_eventfd);
ioctl_iowr_nr!(SUPPORTED_HV_CPUID, KVMIO, 0xc1, kvm_cpuid2);
ioctl_iow_nr!(SET_MSR_FILTER, KVMIO, 0xc6, kvm_msr_filter);

/// Ranges of an MSR filter.
pub(crate) const MAX_MSR_RANGES: usize = KVM_MSR_FILTER_MAX_RANGES as usize;
/// Bytes of the bitmap of a range: as many MSRs as the synthetic ones.
const FILTER_BYTES: usize = 64;

/// What a `KVM_EXIT_HYPERV` is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HypervExit {
    /// The guest wrote a SynIC MSR; the values are those after the write.
    Synic {
        /// SCONTROL.
        control: u64,
        /// SIEFP.
        event_page: u64,
        /// SIMP.
        message_page: u64,
    },
    /// The guest made a hypercall.
    Hypercall {
        /// RCX.
        input: u64,
        /// RDX and R8.
        params: [u64; 2],
    },
    /// A kind that is not used here.
    Other(u32),
}

/// Reads the Hyper-V part of a vCPU's shared page after `KVM_EXIT_HYPERV`.
pub fn hyperv(run: &kvm_run) -> Option<HypervExit> {
    if run.exit_reason != KVM_EXIT_HYPERV {
        return None;
    }
    // SAFETY: the exit reason says that KVM has filled in this member; all its
    // fields are plain integers, valid for every bit pattern.
    let exit = unsafe { run.__bindgen_anon_1.hyperv };
    Some(match exit.type_ {
        KVM_EXIT_HYPERV_SYNIC => {
            // SAFETY: the type says that this member is the valid one; plain integers.
            let synic = unsafe { exit.u.synic };
            HypervExit::Synic {
                control: synic.control,
                event_page: synic.evt_page,
                message_page: synic.msg_page,
            }
        }
        KVM_EXIT_HYPERV_HCALL => {
            // SAFETY: the type says that this member is the valid one; plain integers.
            let call = unsafe { exit.u.hcall };
            HypervExit::Hypercall {
                input: call.input,
                params: call.params,
            }
        }
        other => HypervExit::Other(other),
    })
}

/// The host's time-stamp counter.
pub fn host_tsc() -> u64 {
    // SAFETY: every CPU that KVM runs on has the instruction, and Linux lets
    // programs use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// What KVM says of a capability; 0 if it does not know it.
pub(crate) fn check_extension(kvm: &impl AsRawFd, cap: u32) -> i32 {
    // SAFETY: the call takes a number, and KVM changes nothing.
    unsafe { ioctl_with_val(kvm, CHECK_EXTENSION(), cap.into()) }
}

/// Enables a capability of a VM or a vCPU.
pub(crate) fn enable_cap(fd: &impl AsRawFd, cap: u32, arg: u64) -> io::Result<()> {
    let cap = kvm_enable_cap {
        cap,
        args: [arg, 0, 0, 0],
        ..kvm_enable_cap::default()
    };
    // SAFETY: the request number is of this structure, and KVM only reads it.
    check(unsafe { ioctl_with_ref(fd, ENABLE_CAP(), &cap) })
}

/// Makes accesses to these MSRs exit; all others stay as they are.
pub(crate) fn set_msr_filter(vm: &impl AsRawFd, ranges: &[Range<u32>]) -> io::Result<()> {
    // A cleared bit denies, which with MSR exits enabled means "exit".
    let denied = [0u8; FILTER_BYTES];
    let most = denied.len() * 8;
    if ranges.len() > MAX_MSR_RANGES || ranges.iter().any(|range| range.len() > most) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut filter = kvm_msr_filter {
        flags: KVM_MSR_FILTER_DEFAULT_ALLOW,
        ..kvm_msr_filter::default()
    };
    for (to, range) in filter.ranges.iter_mut().zip(ranges) {
        to.flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;
        to.base = range.start;
        to.nmsrs = range.end.saturating_sub(range.start);
        to.bitmap = denied.as_ptr().cast_mut();
    }
    // SAFETY: the request number is of this structure. KVM only reads it, and as many
    // bits of each bitmap as a range has MSRs, which was compared with what there is.
    check(unsafe { ioctl_with_ref(vm, SET_MSR_FILTER(), &filter) })
}

/// Lets an eventfd raise an interrupt, and another one tell when it was taken.
pub(crate) fn register_irqfd(
    vm: &impl AsRawFd,
    event: &EventFd,
    taken: &EventFd,
    gsi: u32,
) -> io::Result<()> {
    let request = kvm_irqfd {
        fd: number(event.as_raw_fd())?,
        resamplefd: number(taken.as_raw_fd())?,
        gsi,
        flags: KVM_IRQFD_FLAG_RESAMPLE,
        ..kvm_irqfd::default()
    };
    // SAFETY: the request number is of this structure, and KVM only reads it.
    check(unsafe { ioctl_with_ref(vm, IRQFD(), &request) })
}

/// Writes a message-signalled interrupt.
pub(crate) fn signal_msi(vm: &impl AsRawFd, msi: &kvm_msi) -> io::Result<()> {
    // SAFETY: the request number is of this structure, and KVM only reads it.
    let result = unsafe { ioctl_with_ref(vm, SIGNAL_MSI(), msi) };
    // More than 0: so many have got it.
    check(result.min(0))
}

/// The VM's clock.
pub(crate) fn clock(vm: &impl AsRawFd) -> io::Result<kvm_clock_data> {
    let mut clock = kvm_clock_data::default();
    // SAFETY: the request number is of this structure, which KVM fills in.
    check(unsafe { ioctl_with_mut_ref(vm, GET_CLOCK(), &mut clock) })?;
    Ok(clock)
}

/// Connects a Hyper-V connection id to an eventfd: a guest's HvSignalEvent with that
/// id then writes the eventfd and does not exit.
pub(crate) fn bind_eventfd(vm: &impl AsRawFd, conn_id: u32, event: &EventFd) -> io::Result<()> {
    let request = kvm_hyperv_eventfd {
        conn_id,
        fd: event.as_raw_fd(),
        ..kvm_hyperv_eventfd::default()
    };
    // SAFETY: the request number is of this structure, and KVM only reads it.
    check(unsafe { ioctl_with_ref(vm, HYPERV_EVENTFD(), &request) })
}

/// The Hyper-V leaves of CPUID that KVM can serve.
pub(crate) fn supported_hyperv_cpuid(kvm: &impl AsRawFd) -> io::Result<CpuId> {
    /// More than any KVM has.
    const ENTRIES: usize = 32;
    let mut cpuid = CpuId::new(ENTRIES).map_err(|_| io::ErrorKind::OutOfMemory)?;
    // SAFETY: KVM writes no more entries than the structure says it has room for.
    let result =
        unsafe { ioctl_with_mut_ptr(kvm, SUPPORTED_HV_CPUID(), cpuid.as_mut_fam_struct_ptr()) };
    check(result)?;
    Ok(cpuid)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn number(fd: RawFd) -> io::Result<u32> {
    u32::try_from(fd).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// What a guest will get from its hypercall.
#[cfg(test)]
pub(crate) fn hypercall_result(run: &kvm_run) -> Option<u64> {
    matches!(hyperv(run), Some(HypervExit::Hypercall { .. })).then(|| {
        // SAFETY: the variant was just checked.
        let hyperv = unsafe { run.__bindgen_anon_1.hyperv };
        // SAFETY: likewise; a plain integer.
        unsafe { hyperv.u.hcall.result }
    })
}

/// How an MSR read will end: the error and the value.
#[cfg(test)]
pub(crate) fn msr_result(run: &kvm_run) -> Option<(u8, u64)> {
    (run.exit_reason == kvm_bindings::KVM_EXIT_X86_RDMSR).then(|| {
        // SAFETY: the variant was just checked; plain integers.
        let msr = unsafe { run.__bindgen_anon_1.msr };
        (msr.error, msr.data)
    })
}
