// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hyper-V's leaves in the place of KVM's.

use kvm_bindings::kvm_cpuid_entry2;
use vmbus::hyperv::cpuid::{self, HostSupport};

/// Takes the leaves of every hypervisor out of a vCPU's CPUID, and puts in Hyper-V's, of a
/// partition with `cpus` VPs. Linux prefers Hyper-V's signature only where KVM's is not.
/// The hypervisor bit, bit 31 of ECX in leaf 1, is set.
///
/// ```
/// use vmbus_kvm::cpuid;
///
/// let mut entries = Vec::new(); // what KVM_GET_SUPPORTED_CPUID said, as the VMM changed it
/// cpuid::replace(&mut entries, 4, Default::default());
/// assert_eq!(entries[0].function, 0x4000_0000);
/// assert_eq!(entries[0].ebx.to_le_bytes(), *b"Micr");
/// ```
pub fn replace(entries: &mut Vec<kvm_cpuid_entry2>, cpus: u32, host: HostSupport) {
    entries.retain(|entry| !cpuid::RANGE.contains(&entry.function));
    for entry in entries.iter_mut().filter(|entry| entry.function == 1) {
        entry.ecx |= HYPERVISOR;
    }
    let leaves = cpuid::leaves(cpus, host).into_iter();
    entries.extend(
        leaves.map(|(function, [eax, ebx, ecx, edx])| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..kvm_cpuid_entry2::default()
        }),
    );
}

/// Leaf 1, ECX.
const HYPERVISOR: u32 = 1 << 31;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_other_hypervisors_leaf_stays() {
        let entry = |function| kvm_cpuid_entry2 {
            function,
            eax: 7,
            ..Default::default()
        };
        let mut entries = [0, 1, 0x4000_0000, 0x4000_0001, 0x4000_0100, 0x8000_0000]
            .map(entry)
            .to_vec();
        replace(&mut entries, 2, HostSupport::default());
        let functions: Vec<u32> = entries.iter().map(|entry| entry.function).collect();
        assert_eq!(functions[..3], [0, 1, 0x8000_0000]);
        assert!(functions[3..].iter().all(|f| f >> 16 == 0x4000));
        assert!(!functions.contains(&0x4000_0100));
        assert_eq!(entries[1].ecx, 1 << 31);
        // VPs of the partition.
        let limits = entries.iter().find(|entry| entry.function == 0x4000_0005);
        assert_eq!(limits.unwrap().eax, 2);
    }
}
