// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The hypervisor's CPUID leaves (TLFS, "Feature and Interface Discovery").
//!
//! They are written from scratch, not filtered from what KVM supports: each bit
//! that is set here is one that a Linux guest acts on and that is served.
//! Nothing of KVM's own signature may stay: the guest would prefer it.

use bitflags::bitflags;

/// One CPUID leaf: function, then EAX, EBX, ECX, EDX.
pub type Leaf = (u32, [u32; 4]);

/// The leaf whose EAX and EDX say which MSRs there are.
pub const FEATURES: u32 = FIRST + 3;
/// First of the hypervisor's leaves.
pub const FIRST: u32 = 0x4000_0000;
/// The range that belongs to hypervisors; KVM's own leaves in it are removed.
pub const RANGE: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_FFFF;

/// The highest leaf. The virtualization-stack leaves up to here exist and are
/// zero: kernels from 7.2 on read the last one without asking whether it does.
const LAST: u32 = 0x4000_0082;
/// "Microsoft Hv".
const VENDOR: [u32; 3] = [0x7263_694D, 0x666F_736F, 0x7648_2074];
/// "Hv#1": the interface is Hyper-V's.
const INTERFACE: u32 = 0x3123_7648;
/// Version shown in the guest's log: build, then major and minor.
const BUILD: u32 = 20348;
const VERSION: u32 = 10 << 16;
/// "Never notify the hypervisor about long spinning".
const SPIN_FOREVER: u32 = 0xFFFF_FFFF;

bitflags! {
    /// Leaf 0x40000003 EAX: which MSRs the guest may use.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Features: u32 {
        const TIME_REF_COUNT = 1 << 1;
        const SYNIC = 1 << 2;
        const SYNTHETIC_TIMERS = 1 << 3;
        const APIC = 1 << 4;
        const HYPERCALL = 1 << 5;
        const VP_INDEX = 1 << 6;
        const REFERENCE_TSC = 1 << 9;
        const FREQUENCIES = 1 << 11;
        const TSC_INVARIANT = 1 << 15;
    }

    /// Leaf 0x40000003 EBX: what the partition may do. Everything else makes
    /// some kernel think that it is a root partition or confidential.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Privileges: u32 {
        const POST_MESSAGES = 1 << 4;
        const SIGNAL_EVENTS = 1 << 5;
    }

    /// Leaf 0x40000003 EDX.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Misc: u32 {
        const FREQUENCIES = 1 << 8;
        const CRASH_MSRS = 1 << 10;
        /// A synthetic timer may interrupt with a vector of its own, which is how
        /// Linux uses it from 5.2 on; before, it would take a message for each tick.
        const DIRECT_TIMERS = 1 << 19;
    }

    /// Leaf 0x40000004 EAX: advice to the guest.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Hints: u32 {
        /// The guest ends interrupts through its assist page and KVM's MSRs: as a
        /// rule without an exit.
        const LAZY_EOI = 1 << 3;
        const RELAXED_TIMING = 1 << 5;
        /// Without it the guest asks for auto-EOI on SINT 2 and does not write
        /// EOI itself; interrupts injected as ordinary ones would block.
        const DEPRECATE_AUTO_EOI = 1 << 9;
    }
}

/// What depends on the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostSupport {
    /// Its TSC runs at one rate through all power states.
    pub invariant_tsc: bool,
    /// Its kernel has the assist page, and a guest gains by it.
    pub lazy_eoi: bool,
    /// There are synthetic timers, with interrupts of their own.
    pub timers: bool,
}

/// The leaves of a partition with `cpus` VPs.
pub fn leaves(cpus: u32, host: HostSupport) -> Vec<Leaf> {
    let mut features = Features::all();
    features.set(Features::TSC_INVARIANT, host.invariant_tsc);
    features.set(Features::APIC, host.lazy_eoi);
    features.set(Features::SYNTHETIC_TIMERS, host.timers);
    let mut misc = Misc::all();
    misc.set(Misc::DIRECT_TIMERS, host.timers);
    let mut hints = Hints::all();
    hints.set(Hints::LAZY_EOI, host.lazy_eoi);
    let [b, c, d] = VENDOR;
    let mut leaves = vec![
        (FIRST, [LAST, b, c, d]),
        (FIRST + 1, [INTERFACE, 0, 0, 0]),
        (FIRST + 2, [BUILD, VERSION, 0, 0]),
        (
            FIRST + 3,
            [features.bits(), Privileges::all().bits(), 0, misc.bits()],
        ),
        (FIRST + 4, [hints.bits(), SPIN_FOREVER, 0, 0]),
        (FIRST + 5, [cpus, cpus, 0, 0]),
    ];
    let zero = (FIRST + 6..=FIRST + 0xC).chain(FIRST + 0x80..=LAST);
    leaves.extend(zero.map(|function| (function, [0; 4])));
    leaves
}

/// Whether a hypervisor that shows `registers` in the leaf 0x40000003 has the timers of
/// [`HostSupport::timers`].
pub const fn has_direct_timers(registers: [u32; 4]) -> bool {
    let [eax, _, _, edx] = registers;
    eax & Features::SYNTHETIC_TIMERS.bits() != 0 && edx & Misc::DIRECT_TIMERS.bits() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: HostSupport = HostSupport {
        invariant_tsc: true,
        lazy_eoi: true,
        timers: true,
    };
    const NONE: HostSupport = HostSupport {
        invariant_tsc: false,
        lazy_eoi: false,
        timers: false,
    };

    fn leaf(function: u32) -> [u32; 4] {
        let all = leaves(4, ALL);
        let mut found = all.iter().filter(|(f, _)| *f == function);
        let registers = found.next().unwrap().1;
        assert!(found.next().is_none(), "{function:#x} twice");
        registers
    }

    #[test]
    fn the_signature_is_microsofts() {
        let [max, b, c, d] = leaf(0x4000_0000);
        let name: Vec<u8> = [b, c, d].iter().flat_map(|r| r.to_le_bytes()).collect();
        assert_eq!(name, b"Microsoft Hv");
        assert!((0x4000_0005..=0x4000_FFFF).contains(&max));
        assert_eq!(leaf(0x4000_0001)[0].to_le_bytes(), *b"Hv#1");
    }

    #[test]
    fn features_are_the_recommended_ones() {
        assert_eq!(leaf(0x4000_0003), [0x8A7E, 0x30, 0, 0x8_0500]);
        assert_eq!(leaves(1, NONE)[3].1, [0x0A66, 0x30, 0, 0x500]);
    }

    #[test]
    fn timers_need_both_bits() {
        assert!(has_direct_timers([0x8, 0, 0, 0x8_0000]));
        assert!(!has_direct_timers([0x8, 0, 0, 0]));
        assert!(!has_direct_timers([0, 0, 0, 0x8_0000]));
    }

    #[test]
    fn auto_eoi_is_deprecated_and_no_hypercall_hint_is_set() {
        assert_eq!(leaf(0x4000_0004), [0x228, 0xFFFF_FFFF, 0, 0]);
        assert_eq!(leaves(1, NONE)[4].1[0], 0x220);
    }

    #[test]
    fn virtualization_stack_leaves_are_present_and_zero() {
        for function in 0x4000_0080..=0x4000_0082 {
            assert_eq!(leaf(function), [0; 4]);
        }
    }
}
