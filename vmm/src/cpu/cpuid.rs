// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! CPUID: the host's features, a plain topology, and Hyper-V's leaves.
//!
//! Every vCPU is a core of its own in one package, numbered in order: the APIC
//! id, the ACPI processor id and the VP index are the same number.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use vmbus::hyperv::cpuid::HostSupport;

/// More entries than any list has.
const MAX_ENTRIES: usize = 256;
const SIGNIFICANT_INDEX: u32 = 1;

mod leaf1 {
    pub(super) const ECX_X2APIC: u32 = 1 << 21;
    pub(super) const ECX_TSC_DEADLINE: u32 = 1 << 24;
    pub(super) const EDX_HTT: u32 = 1 << 28;
}

/// Leaf 0x80000007 EDX: the TSC has one rate in all states.
const INVARIANT_TSC: u32 = 1 << 8;
/// Leaf 0x80000001 ECX: more than one core; topology extensions.
const AMD_CMP_LEGACY: u32 = 1 << 1;
/// Level types of leaf 0xB.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The machine's CPUID, of which each vCPU's is a copy with its number in it.
#[derive(Debug, Clone)]
pub struct CpuidTemplate {
    entries: Vec<kvm_cpuid_entry2>,
    cpus: u32,
}

impl CpuidTemplate {
    /// Takes what KVM supports and makes of it the CPUID of a machine with `cpus` vCPUs.
    /// `host` says what the Hyper-V side can do, given whether the TSC is invariant.
    pub fn new(
        supported: &CpuId,
        cpus: u32,
        tsc_deadline: bool,
        host: impl FnOnce(bool) -> HostSupport,
    ) -> Self {
        let mut entries: Vec<_> = supported
            .as_slice()
            .iter()
            .filter(|entry| !matches!(entry.function, 0xB | 0x1F | 0x8000_0026))
            .copied()
            .collect();
        let invariant_tsc = entries
            .iter()
            .any(|e| e.function == 0x8000_0007 && e.edx & INVARIANT_TSC != 0);
        let max_basic = entries
            .iter()
            .find(|e| e.function == 0)
            .map_or(0, |entry| entry.eax);
        for entry in &mut entries {
            set_topology(entry, cpus);
            if entry.function == 1 {
                entry.ecx |= leaf1::ECX_X2APIC;
                if tsc_deadline {
                    entry.ecx |= leaf1::ECX_TSC_DEADLINE;
                }
            }
        }
        if max_basic >= 0xB {
            entries.extend(extended_topology(cpus));
        }
        vmbus_kvm::cpuid::replace(&mut entries, cpus, host(invariant_tsc));
        entries.truncate(MAX_ENTRIES);
        Self { entries, cpus }
    }

    /// The CPUID of one vCPU.
    pub fn for_vcpu(&self, id: u32) -> Result<CpuId, vmm_sys_util::fam::Error> {
        let entries: Vec<_> = self
            .entries
            .iter()
            .map(|entry| {
                let mut entry = *entry;
                match entry.function {
                    // Initial APIC id, 8 bits of it.
                    1 => entry.ebx = (entry.ebx & 0x00FF_FFFF) | (id << 24),
                    0xB => entry.edx = id,
                    0x8000_001E => {
                        entry.eax = id;
                        entry.ebx = id & 0xFF;
                        entry.ecx = 0;
                    }
                    _ => {}
                }
                entry
            })
            .collect();
        CpuId::from_entries(&entries)
    }

    /// How many vCPUs the template is for.
    pub fn cpus(&self) -> u32 {
        self.cpus
    }
}

/// Fits the fields that count cores and threads.
fn set_topology(entry: &mut kvm_cpuid_entry2, cpus: u32) {
    let last = cpus.saturating_sub(1);
    match entry.function {
        1 => {
            // Logical processors per package, a power of two in 8 bits.
            let count = cpus.next_power_of_two().min(0xFF);
            entry.ebx = (entry.ebx & 0xFF00_FFFF) | (count << 16);
            entry.edx &= !leaf1::EDX_HTT;
            if cpus > 1 {
                entry.edx |= leaf1::EDX_HTT;
            }
        }
        // Intel: cores per package in bits 31:26, threads per cache in 25:14,
        // where only the last level is shared by all.
        4 if entry.eax & 0x1F != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { last.min(0xFFF) } else { 0 };
            entry.eax = (entry.eax & 0x3FFF) | (last.min(0x3F) << 26) | (sharing << 14);
        }
        0x8000_0001 => {
            entry.ecx &= !AMD_CMP_LEGACY;
            if cpus > 1 && is_amd_core_count(entry) {
                entry.ecx |= AMD_CMP_LEGACY;
            }
        }
        // AMD: cores less one, and how many bits of an APIC id they take.
        0x8000_0008 => entry.ecx = last.min(0xFF) | (id_bits(cpus) << 12),
        0x8000_001D => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { last.min(0xFFF) } else { 0 };
            entry.eax = (entry.eax & 0x3FFF) | (sharing << 14);
        }
        _ => {}
    }
}

/// SVM is what tells AMD's leaf 0x80000001 from Intel's, which keeps ECX bit 1 reserved.
fn is_amd_core_count(entry: &kvm_cpuid_entry2) -> bool {
    const SVM_OR_CR8: u32 = 1 << 2 | 1 << 4;
    entry.ecx & SVM_OR_CR8 != 0
}

/// Leaf 0xB: one thread per core, all cores in one package.
fn extended_topology(cpus: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index, shift, count, kind: u32| kvm_cpuid_entry2 {
        function: 0xB,
        index,
        flags: SIGNIFICANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | (kind << 8),
        ..kvm_cpuid_entry2::default()
    };
    [
        level(0, 0, 1, LEVEL_SMT),
        level(1, id_bits(cpus), cpus, LEVEL_CORE),
        level(2, 0, 0, 0),
    ]
}

/// Bits that an APIC id below `cpus` takes.
fn id_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..kvm_cpuid_entry2::default()
        }
    }

    fn template(cpus: u32) -> CpuidTemplate {
        let supported = CpuId::from_entries(&[
            entry(0, [0xD, 0, 0, 0]),
            entry(1, [0, 0x1234_5678, 0, 0]),
            entry(0x4000_0000, [0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D]),
            entry(0x4000_0001, [0x0100_0EFB, 0, 0, 0]),
            entry(0x8000_0007, [0, 0, 0, 0x100]),
            entry(0x8000_0008, [0x3028, 0, 0, 0]),
            entry(0x8000_001E, [0, 0, 0, 0]),
        ])
        .unwrap();
        CpuidTemplate::new(&supported, cpus, true, |invariant_tsc| HostSupport {
            invariant_tsc,
            lazy_eoi: true,
            timers: true,
        })
    }

    fn find(template: &CpuidTemplate, id: u32, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let cpuid = template.for_vcpu(id).unwrap();
        let mut found = cpuid
            .as_slice()
            .iter()
            .filter(|e| e.function == function && e.index == index);
        let entry = *found.next().unwrap();
        assert!(found.next().is_none());
        entry
    }

    #[test]
    fn kvms_signature_is_gone_and_hyper_vs_is_there() {
        let template = template(1);
        let names = [entry(0, [0; 4]).ebx, find(&template, 0, 0x4000_0000, 0).ebx];
        assert_eq!(names[1], 0x7263_694D);
        assert!(template.entries.iter().all(|e| e.ebx != 0x4B4D_564B));
    }

    #[test]
    fn each_vcpu_knows_its_own_id() {
        let template = template(4);
        assert_eq!(find(&template, 3, 1, 0).ebx, 0x0304_5678);
        assert_eq!(find(&template, 3, 0xB, 0).edx, 3);
        assert_eq!(find(&template, 3, 0xB, 1).edx, 3);
        assert_eq!(find(&template, 3, 0x8000_001E, 0).eax, 3);
    }

    #[test]
    fn the_topology_is_one_package_of_single_threaded_cores() {
        let template = template(6);
        let cores = find(&template, 0, 0xB, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (3, 6, 0x201));
        assert_eq!(find(&template, 0, 0x8000_0008, 0).ecx, 5 | 3 << 12);
        assert_eq!(
            find(&template, 0, 1, 0).edx & leaf1::EDX_HTT,
            leaf1::EDX_HTT
        );
    }

    #[test]
    fn the_guest_sees_a_hypervisor_and_an_x2apic() {
        let ecx = find(&template(1), 0, 1, 0).ecx;
        assert_eq!(ecx, leaf1::ECX_X2APIC | leaf1::ECX_TSC_DEADLINE | 1 << 31);
    }
}
