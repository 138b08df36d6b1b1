// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KVM: opening it, and finding out what it cannot do before a guest does.

use std::io;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vmbus_kvm::{Capabilities, Irqchip, Mode, ModeError};

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
    /// `--synic` asks for what this host cannot do.
    #[error("--synic: {0}")]
    Synic(#[from] ModeError),
    /// `--timers hyperv` where nobody has them.
    #[error(
        "--timers hyperv: there are none with the SynIC mode '{0}' on this host: use --timers apic, \
         or --synic kernel or user"
    )]
    NoTimers(Mode),
    /// More vCPUs than KVM makes.
    #[error("--cpus: {wanted} vCPUs, and this host's KVM makes at most {max}")]
    TooManyCpus {
        /// vCPUs asked for.
        wanted: u32,
        /// vCPUs to be had.
        max: usize,
    },
    /// The Hyper-V side.
    #[error(transparent)]
    Hyperv(#[from] vmbus_kvm::KvmError),
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
    pub synic: Mode,
    /// The local APIC has a TSC deadline mode.
    pub tsc_deadline: bool,
    /// What of Hyper-V it can do.
    pub capabilities: Capabilities,
    /// The guest is shown synthetic timers.
    pub timers: bool,
    /// What CPUID KVM supports.
    pub cpuid: CpuId,
}

impl Host {
    /// Opens KVM and checks it for a machine with `cpus` vCPUs. `wanted` is the
    /// SynIC that the user asked for, if any.
    /// `timers` says whether the guest is to have synthetic ones.
    pub fn open(wanted: Option<Mode>, timers: bool, cpus: u32) -> Result<Self, KvmError> {
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
        let capabilities = Capabilities::of(&kvm);
        let synic = match wanted {
            Some(mode) => capabilities.check(mode, Irqchip::Full).map(|()| mode),
            None => capabilities.choose(Irqchip::Full),
        }?;
        if timers && !capabilities.host_support(synic, true).timers {
            return Err(KvmError::NoTimers(synic));
        }
        let max = kvm.get_max_vcpus();
        if usize::try_from(cpus).is_ok_and(|wanted| wanted > max) {
            return Err(KvmError::TooManyCpus { wanted: cpus, max });
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .doing("reading the supported CPUID")?;
        Ok(Self {
            capabilities,
            timers,
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
        vmbus_kvm::filter_msrs(&vm, self.synic)?;
        Ok(vm)
    }
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
