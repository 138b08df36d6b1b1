// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What this host's KVM can do, and which modes that leaves.

use std::fmt;
use std::fs;
use std::os::fd::AsRawFd;
use std::str::FromStr;

use kvm_bindings::{
    KVM_CAP_HYPERV_SYNIC2, KVM_CAP_HYPERV_VAPIC, KVM_CAP_SYS_HYPERV_CPUID, KVM_CAP_X86_MSR_FILTER,
    KVM_CAP_X86_USER_SPACE_MSR,
};
use vmbus::hyperv::cpuid::{self, HostSupport};

use crate::sys;

/// Who does what of Hyper-V's: see the table of the crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// KVM has the SynIC.
    Kernel,
    /// KVM has the hypercalls, this process has the SynIC.
    Hybrid,
    /// This process has both.
    User,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Kernel, Self::Hybrid, Self::User];

    /// The name in options and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Hybrid => "hybrid",
            Self::User => "user",
        }
    }

    /// KVM answers the guest's hypercalls and keeps its partition's MSRs.
    pub(crate) const fn has_kvms_hypercalls(self) -> bool {
        matches!(self, Self::Kernel | Self::Hybrid)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no mode has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no mode '{0}': there are kernel, hybrid and user")]
pub struct UnknownMode(String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        let mut all = Self::ALL.into_iter();
        all.find(|mode| mode.name() == name)
            .ok_or_else(|| UnknownMode(name.into()))
    }
}

/// Where a VM's interrupt controllers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Irqchip {
    /// All in KVM (`KVM_CREATE_IRQCHIP`).
    Full,
    /// The local APICs in KVM, the others in the VMM (`KVM_CAP_SPLIT_IRQCHIP`).
    Split,
}

/// Why a mode cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ModeError {
    /// The host's kernel was built without it.
    #[error(
        "the mode '{0}' needs Hyper-V emulation in the host's kernel (CONFIG_KVM_HYPERV), and \
         there is none: use the mode 'user'"
    )]
    NoHyperv(Mode),
    /// KVM has no resample eventfds for a split irqchip.
    #[error(
        "the mode 'kernel' needs the whole irqchip in KVM; with a split one use 'hybrid' or 'user'"
    )]
    SplitIrqchip,
    /// Accesses to MSRs cannot be sent to user space.
    #[error("the host's kernel lacks {0} (Linux 5.10)")]
    Missing(&'static str),
}

/// What this host's KVM can do.
#[derive(Debug, Clone, Copy)]
pub struct Capabilities {
    synic: bool,
    msr_exits: bool,
    msr_filter: bool,
    lazy_eoi: bool,
    direct_timers: bool,
}

impl Capabilities {
    /// Asks an open `/dev/kvm`.
    pub fn of(kvm: &impl AsRawFd) -> Self {
        let has = |cap: u32| sys::check_extension(kvm, cap) > 0;
        Self {
            synic: has(KVM_CAP_HYPERV_SYNIC2),
            msr_exits: has(KVM_CAP_X86_USER_SPACE_MSR),
            msr_filter: has(KVM_CAP_X86_MSR_FILTER),
            lazy_eoi: has(KVM_CAP_HYPERV_VAPIC) && !has_virtual_apic(),
            direct_timers: !has(KVM_CAP_SYS_HYPERV_CPUID) || has_direct_timers(kvm),
        }
    }

    /// Whether a VM with this irqchip can be run in a mode.
    pub fn check(&self, mode: Mode, irqchip: Irqchip) -> Result<(), ModeError> {
        if !self.msr_exits {
            return Err(ModeError::Missing("MSR exits, KVM_CAP_X86_USER_SPACE_MSR"));
        }
        if !self.msr_filter {
            return Err(ModeError::Missing("MSR filters, KVM_CAP_X86_MSR_FILTER"));
        }
        match (mode, irqchip) {
            (Mode::Kernel | Mode::Hybrid, _) if !self.synic => Err(ModeError::NoHyperv(mode)),
            (Mode::Kernel, Irqchip::Split) => Err(ModeError::SplitIrqchip),
            _ => Ok(()),
        }
    }

    /// The best mode for a VM with this irqchip.
    pub fn choose(&self, irqchip: Irqchip) -> Result<Mode, ModeError> {
        let mut modes = Mode::ALL.into_iter();
        let fits = modes.find(|mode| self.check(*mode, irqchip).is_ok());
        // Only what every mode needs can be missing.
        fits.map_or_else(|| self.check(Mode::User, irqchip).map(|()| Mode::User), Ok)
    }

    /// What depends on the host in a guest's CPUID. `invariant_tsc` is for the VMM to say:
    /// bit 8 of EDX in the leaf 0x80000007 that it shows.
    pub fn host_support(&self, mode: Mode, invariant_tsc: bool) -> HostSupport {
        HostSupport {
            invariant_tsc,
            lazy_eoi: mode == Mode::Kernel && self.lazy_eoi,
            timers: match mode {
                Mode::Kernel => self.direct_timers,
                // They would be KVM's, whose message timers want its SynIC.
                Mode::Hybrid => false,
                Mode::User => true,
            },
        }
    }
}

/// Whether KVM's synthetic timers interrupt with a vector of their own. A KVM that
/// cannot be asked is Linux 5.10's, whose timers do.
fn has_direct_timers(kvm: &impl AsRawFd) -> bool {
    match sys::supported_hyperv_cpuid(kvm) {
        Ok(supported) => supported.as_slice().iter().any(|leaf| {
            leaf.function == cpuid::FEATURES
                && cpuid::has_direct_timers([leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
        }),
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

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Capabilities = Capabilities {
        synic: true,
        msr_exits: true,
        msr_filter: true,
        lazy_eoi: true,
        direct_timers: true,
    };

    #[test]
    fn the_best_mode_is_the_one_with_most_in_the_kernel() {
        assert_eq!(ALL.choose(Irqchip::Full), Ok(Mode::Kernel));
        assert_eq!(ALL.choose(Irqchip::Split), Ok(Mode::Hybrid));
        let plain = Capabilities {
            synic: false,
            ..ALL
        };
        assert_eq!(plain.choose(Irqchip::Full), Ok(Mode::User));
        assert_eq!(plain.choose(Irqchip::Split), Ok(Mode::User));
    }

    #[test]
    fn a_mode_that_cannot_be_is_refused_with_the_reason() {
        let refused = ALL.check(Mode::Kernel, Irqchip::Split).unwrap_err();
        assert_eq!(refused, ModeError::SplitIrqchip);
        let plain = Capabilities {
            synic: false,
            ..ALL
        };
        for mode in [Mode::Kernel, Mode::Hybrid] {
            let refused = plain.check(mode, Irqchip::Full).unwrap_err();
            assert_eq!(refused, ModeError::NoHyperv(mode));
            assert!(refused.to_string().contains(mode.name()));
        }
        let old = Capabilities {
            msr_filter: false,
            ..ALL
        };
        for mode in Mode::ALL {
            assert!(matches!(
                old.check(mode, Irqchip::Full),
                Err(ModeError::Missing(_))
            ));
        }
        assert!(old.choose(Irqchip::Full).is_err());
    }

    #[test]
    fn a_mode_is_found_by_its_name() {
        for mode in Mode::ALL {
            assert_eq!(mode.name().parse(), Ok(mode));
        }
        let error = "auto".parse::<Mode>().unwrap_err();
        assert!(error.to_string().contains("'auto'"));
    }

    #[test]
    fn timers_are_shown_only_where_somebody_has_them() {
        let timers = |mode| ALL.host_support(mode, true).timers;
        assert_eq!(Mode::ALL.map(timers), [true, false, true]);
        let lazy = |mode| ALL.host_support(mode, true).lazy_eoi;
        assert_eq!(Mode::ALL.map(lazy), [true, false, false]);
    }
}
