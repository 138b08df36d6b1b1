// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KVM: opening it, and finding out what it cannot do before a guest does.

use std::{fs, io};

use kvm_bindings::{
    CpuId, KVM_CAP_HYPERV_SYNIC2, KVM_CAP_HYPERV_VAPIC, KVM_CAP_SYS_HYPERV_CPUID,
    KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR, KVM_MAX_CPUID_ENTRIES,
    KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_UNKNOWN, kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

use crate::hyperv::{SynicMode, cpuid, msr};
use crate::sys;

const API_VERSION: i32 = 12;
const DEVICE: &str = "/dev/kvm";

/// What is missing on this host.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device is not there.
    #[error(
        "KVM: {DEVICE} does not exist: is virtualization enabled in the firmware, \
         and the kvm_intel or kvm_amd module loaded?"
    )]
    NoDevice,
    /// The device may not be used.
    #[error("KVM: no permission to use {DEVICE}: is this user in the `kvm` group?")]
    NoPermission,
    /// Opening failed otherwise.
    #[error("KVM: cannot open {DEVICE}: {0}")]
    Open(kvm_ioctls::Error),
    /// A KVM of another era.
    #[error("KVM: its API has version {0}, this program speaks {API_VERSION}")]
    Version(i32),
    /// A capability that this program cannot do without.
    #[error("KVM: this host's kernel lacks {0}")]
    Missing(&'static str),
    /// `--synic kernel` on a kernel that has none.
    #[error(
        "--synic kernel: this host's kernel has no Hyper-V emulation (CONFIG_KVM_HYPERV); \
         use --synic user or auto"
    )]
    NoSynic,
    /// More vCPUs than KVM makes.
    #[error("--cpus: {wanted} vCPUs, and this host's KVM makes at most {max}")]
    TooManyCpus {
        /// vCPUs asked for.
        wanted: u32,
        /// vCPUs to be had.
        max: usize,
    },
    /// No descriptor for an interrupt.
    #[error("host: no eventfd: {0}")]
    Eventfd(io::Error),
    /// No descriptor for a synthetic timer.
    #[error("host: no timer: {0}")]
    Timer(io::Error),
    /// A call failed that should not.
    #[error("KVM: {what}: {source}")]
    Call {
        /// What was being done.
        what: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
}

/// Says what was being done when a call failed.
pub trait Doing<T> {
    /// Names the step.
    fn doing(self, what: &'static str) -> Result<T, KvmError>;
}

impl<T> Doing<T> for Result<T, kvm_ioctls::Error> {
    fn doing(self, what: &'static str) -> Result<T, KvmError> {
        self.map_err(|source| KvmError::Call { what, source })
    }
}

/// An opened KVM that can do all that is needed.
pub struct Host {
    /// The system handle.
    pub kvm: Kvm,
    /// Who will emulate the SynIC.
    pub synic: SynicMode,
    /// The local APIC has a TSC deadline mode.
    pub tsc_deadline: bool,
    /// A guest saves exits if it ends interrupts as on Hyper-V.
    pub lazy_eoi: bool,
    /// There are synthetic timers that interrupt by themselves.
    pub timers: bool,
    /// What CPUID KVM supports.
    pub cpuid: CpuId,
}

impl Host {
    /// Opens KVM and checks it for a machine with `cpus` vCPUs. `wanted` is the
    /// SynIC that the user asked for, if any.
    pub fn open(wanted: Option<SynicMode>, cpus: u32) -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(|error| match error.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::NoDevice,
            libc::EACCES | libc::EPERM => KvmError::NoPermission,
            _ => KvmError::Open(error),
        })?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(KvmError::Version(version));
        }
        for (cap, name) in [
            (Cap::UserMemory, "user memory (KVM_CAP_USER_MEMORY)"),
            (
                Cap::Irqchip,
                "an in-kernel interrupt controller (KVM_CAP_IRQCHIP)",
            ),
            (Cap::Irqfd, "irqfd (KVM_CAP_IRQFD)"),
            (Cap::ExtCpuid, "CPUID control (KVM_CAP_EXT_CPUID)"),
            (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
            (Cap::GetTscKhz, "the TSC's frequency (KVM_CAP_GET_TSC_KHZ)"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        ] {
            if !kvm.check_extension(cap) {
                return Err(KvmError::Missing(name));
            }
        }
        for (cap, name) in [
            (
                KVM_CAP_X86_USER_SPACE_MSR,
                "MSR exits (KVM_CAP_X86_USER_SPACE_MSR, Linux 5.10)",
            ),
            (
                KVM_CAP_X86_MSR_FILTER,
                "MSR filters (KVM_CAP_X86_MSR_FILTER, Linux 5.10)",
            ),
        ] {
            if kvm.check_extension_raw(cap.into()) <= 0 {
                return Err(KvmError::Missing(name));
            }
        }
        let in_kernel = kvm.check_extension_raw(KVM_CAP_HYPERV_SYNIC2.into()) > 0;
        let synic = match wanted {
            Some(SynicMode::Kernel) if !in_kernel => return Err(KvmError::NoSynic),
            Some(mode) => mode,
            None if in_kernel => SynicMode::Kernel,
            None => SynicMode::User,
        };
        let max = kvm.get_max_vcpus();
        if usize::try_from(cpus).is_ok_and(|wanted| wanted > max) {
            return Err(KvmError::TooManyCpus { wanted: cpus, max });
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .doing("reading the supported CPUID")?;
        Ok(Self {
            lazy_eoi: synic == SynicMode::Kernel
                && kvm.check_extension_raw(KVM_CAP_HYPERV_VAPIC.into()) > 0
                && !has_virtual_apic(),
            timers: match synic {
                SynicMode::Kernel => has_direct_timers(&kvm),
                SynicMode::User => true,
            },
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            kvm,
            synic,
            cpuid,
        })
    }

    /// Makes a VM with interrupt controllers, in which the accesses to the MSRs
    /// that are served here exit.
    pub fn create_vm(&self) -> Result<VmFd, KvmError> {
        let vm = retry_interrupted(|| self.kvm.create_vm()).doing("creating a VM")?;
        vm.set_identity_map_address(crate::memory::KVM_IDENTITY_MAP)
            .doing("placing the identity map")?;
        vm.set_tss_address(crate::memory::KVM_TSS)
            .doing("placing the TSS")?;
        vm.create_irq_chip()
            .doing("creating the interrupt controllers")?;
        self.filter_msrs(&vm)?;
        Ok(vm)
    }

    fn filter_msrs(&self, vm: &VmFd) -> Result<(), KvmError> {
        // A KVM without Hyper-V emulation does not know the MSRs at all, and
        // says so before it looks at the filter.
        let reasons = match self.synic {
            SynicMode::Kernel => KVM_MSR_EXIT_REASON_FILTER,
            SynicMode::User => KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_UNKNOWN,
        };
        vm.enable_cap(&kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            args: [reasons.into(), 0, 0, 0],
            ..kvm_enable_cap::default()
        })
        .doing("enabling MSR exits")?;
        let all = [msr::RANGE];
        let ours: &[std::ops::Range<u32>] = match self.synic {
            SynicMode::Kernel => &msr::ALWAYS_OURS,
            SynicMode::User => &all,
        };
        // A cleared bit denies, which with the capability above means "exit".
        let bitmap = [0u8; 64];
        let ranges: Vec<_> = ours
            .iter()
            .map(|range| MsrFilterRange {
                flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
                base: range.start,
                msr_count: range.end.saturating_sub(range.start),
                bitmap: &bitmap,
            })
            .collect();
        vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)
            .doing("setting the MSR filter")
    }
}

/// Whether KVM's synthetic timers interrupt with a vector of their own. A KVM that
/// cannot be asked is Linux 5.10's, whose timers do.
fn has_direct_timers(kvm: &Kvm) -> bool {
    if kvm.check_extension_raw(KVM_CAP_SYS_HYPERV_CPUID.into()) <= 0 {
        return true;
    }
    match sys::supported_hyperv_cpuid(kvm) {
        Ok(supported) => cpuid::offers_direct_timers(&supported),
        Err(error) => {
            log::warn!("KVM: no synthetic timers: reading the supported CPUID: {error}");
            false
        }
    }
}

/// Whether the host's CPUs take the end of an interrupt without an exit: then a
/// guest that does it as on Hyper-V would have exits that it need not have.
fn has_virtual_apic() -> bool {
    [
        "/sys/module/kvm_intel/parameters/enable_apicv",
        "/sys/module/kvm_amd/parameters/avic",
    ]
    .iter()
    .filter_map(|path| fs::read(path).ok())
    .any(|said| matches!(said.first(), Some(b'Y' | b'1')))
}

/// Some KVM calls give up when a signal arrives.
fn retry_interrupted<T>(
    mut call: impl FnMut() -> Result<T, kvm_ioctls::Error>,
) -> Result<T, kvm_ioctls::Error> {
    loop {
        match call() {
            Err(error) if io::Error::from(error).kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
