// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which synthetic MSRs exit to this process, and how KVM is told.

use std::ops::Range;
use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_UNKNOWN,
};
use vmbus::hyperv::{ALWAYS_OURS, RANGE};

use crate::error::Doing;
use crate::{KvmError, Mode, sys};

/// Of the SynIC and of the synthetic timers.
const SYNIC: Range<u32> = 0x4000_0080..0x4000_00A0;
const TIMERS: Range<u32> = 0x4000_00B0..0x4000_00B8;

/// The MSRs whose accesses exit in a mode: at most five ranges of at most 512 MSRs.
pub fn filtered_msrs(mode: Mode) -> Vec<Range<u32>> {
    match mode {
        Mode::Kernel => ALWAYS_OURS.to_vec(),
        Mode::Hybrid => [&ALWAYS_OURS[..], &[SYNIC, TIMERS]].concat(),
        Mode::User => vec![RANGE],
    }
}

/// Makes accesses to [`filtered_msrs`] exit to this process. Every other MSR is KVM's. A
/// VMM that has a filter of its own puts the ranges into that instead, and enables
/// `KVM_CAP_X86_USER_SPACE_MSR`.
///
/// Without Hyper-V emulation KVM does not know the MSRs at all, and says so before it
/// looks at the filter: so in the mode `User` accesses to unknown MSRs exit too.
pub fn filter_msrs(vm: &impl AsRawFd, mode: Mode) -> Result<(), KvmError> {
    let reasons = match mode {
        Mode::Kernel | Mode::Hybrid => KVM_MSR_EXIT_REASON_FILTER,
        Mode::User => KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_UNKNOWN,
    };
    sys::enable_cap(vm, KVM_CAP_X86_USER_SPACE_MSR, reasons.into()).doing("enabling MSR exits")?;
    sys::set_msr_filter(vm, &filtered_msrs(mode)).doing("setting the MSR filter")
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbus::synic::{SoftSynic, SyntheticTimers};

    #[test]
    fn whoever_has_an_msr_sees_its_exits() {
        let exits = |mode, index: u32| filtered_msrs(mode).iter().any(|r| r.contains(&index));
        for index in RANGE {
            let soft = SoftSynic::owns_msr(index) || SyntheticTimers::owns_msr(index);
            let ours = ALWAYS_OURS.iter().any(|range| range.contains(&index));
            assert!(exits(Mode::User, index));
            if soft || ours {
                assert!(exits(Mode::Hybrid, index), "{index:#x}");
            }
            assert_eq!(exits(Mode::Kernel, index), ours, "{index:#x}");
        }
        // The hypercall page stays KVM's.
        assert!(!exits(Mode::Hybrid, 0x4000_0001));
    }

    #[test]
    fn kvm_takes_so_many_ranges() {
        for mode in Mode::ALL {
            assert!(filtered_msrs(mode).len() <= sys::MAX_MSR_RANGES);
        }
    }
}
