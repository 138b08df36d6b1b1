// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory: where RAM lies in guest-physical space, and the mapping of it.
//!
//! ```text
//! 0            640K     1M                       low end          3G    4G        high end
//! |-- RAM -----|-hole---|-- RAM ------------------|               | gap |-- RAM ---|
//!   boot data    ACPI     kernel … initramfs                       APICs
//! ```
//!
//! The hole below 4 GiB keeps the addresses that x86 hardwires (local APIC,
//! IO-APIC, KVM's TSS page) free. RAM is anonymous memory that the host backs
//! page by page as the guest touches it; nothing here touches it. It begins at a
//! multiple of 2 MiB, so that host and KVM can use pages of that size.

use vm_memory::bitmap::{Bitmap, WithBitmapSlice};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::sys;

/// The mapping of all guest RAM.
pub type GuestMemory = GuestMemoryMmap<Around>;

/// The mapping that a region lies in, which is there for as long as the region. It
/// stands where `vm-memory` has what tracks writes; here nothing does.
#[derive(Debug)]
pub struct Around(pub(crate) MmapRegion);

impl WithBitmapSlice<'_> for Around {
    type S = ();
}

impl Bitmap for Around {
    fn mark_dirty(&self, _: usize, _: usize) {}

    fn dirty_at(&self, _: usize) -> bool {
        false
    }

    fn slice_at(&self, _: usize) {}
}

/// First byte of the hole below 4 GiB.
pub const GAP_START: u64 = 3 << 30;
/// First byte behind the hole.
pub const GAP_END: u64 = 4 << 30;
/// End of conventional memory; what follows up to 1 MiB is not RAM to the guest.
pub const LOW_RAM_END: u64 = 0xA_0000;
/// Where extended memory starts.
pub const HIGH_RAM_START: u64 = 0x10_0000;
/// The ACPI tables, in the area where an RSDP is searched for.
pub const ACPI_START: u64 = 0xE_0000;
/// The window of the VMBus module, in the gap; nothing is in it.
pub const VMBUS_WINDOW: u32 = 0xF000_0000;
/// Its last byte.
pub const VMBUS_WINDOW_END: u32 = 0xF0FF_FFFF;
/// The IO-APIC, where every x86 guest expects it.
pub const IO_APIC: u32 = 0xFEC0_0000;
/// The local APICs.
pub const LOCAL_APIC: u32 = 0xFEE0_0000;
/// One page for KVM's identity map, needed by Intel hosts without unrestricted guests.
pub const KVM_IDENTITY_MAP: u64 = 0xFFFB_C000;
/// Three pages behind it for KVM's task-state segment.
pub const KVM_TSS: usize = 0xFFFB_D000;

/// The smallest size accepted: boot data, ACPI tables and a page to stand on.
pub const MIN_SIZE: u64 = 2 << 20;
/// The largest size accepted: what 46 bits of physical address can hold, less the gap.
pub const MAX_SIZE: u64 = 1 << 45;

/// A huge page.
const HUGE: usize = 2 << 20;

/// What can be wrong with a request for guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Smaller than anything can boot in.
    #[error("--memory: {0} bytes are too few; at least {MIN_SIZE} (2M) are needed")]
    TooSmall(u64),
    /// Larger than a guest can address.
    #[error("--memory: {0} bytes are more than a guest can address (32T)")]
    TooLarge(u64),
    /// With huge pages the size has to be made of whole ones.
    #[error("--memory: {0} bytes are not a multiple of the 2 MiB that --hugepages asks for")]
    NotHuge(u64),
    /// The host refuses the mapping.
    #[error(
        "host memory: cannot map {size} bytes for the guest: {source}{}",
        if *.huge { " (are enough huge pages reserved? see /proc/sys/vm/nr_hugepages)" } else { "" }
    )]
    Map {
        /// Bytes asked for.
        size: u64,
        /// Whether huge pages were asked for.
        huge: bool,
        /// What the kernel said.
        source: MmapRegionError,
    },
    /// The regions cannot be put together.
    #[error("host memory: the guest's regions do not fit together: {0}")]
    Layout(#[from] vm_memory::GuestRegionCollectionError),
}

/// The guest-physical RAM regions of a machine with `size` bytes, lowest first.
pub fn regions(size: u64) -> Result<Vec<(u64, u64)>, MemoryError> {
    if size < MIN_SIZE {
        return Err(MemoryError::TooSmall(size));
    }
    if size > MAX_SIZE {
        return Err(MemoryError::TooLarge(size));
    }
    let low = size.min(GAP_START);
    let mut regions = vec![(0, low)];
    if size > low {
        regions.push((GAP_END, size - low));
    }
    Ok(regions)
}

/// Maps `size` bytes of RAM, zeroed and untouched.
pub fn map(size: u64, huge: bool) -> Result<GuestMemory, MemoryError> {
    if huge && !usize::try_from(size).is_ok_and(|size| size.is_multiple_of(HUGE)) {
        return Err(MemoryError::NotHuge(size));
    }
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // Linux begins a mapping where a huge page can only since 6.7, and not for all
    // sizes: with so much to spare there is such a place.
    let mut spare = HUGE;
    let mut flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    if huge {
        // With MAP_NORESERVE a missing huge page would be a SIGBUS later.
        flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
        spare = 0;
    }
    let mut mapped = Vec::new();
    for (start, len) in regions(size)? {
        let bytes = usize::try_from(len).map_err(|_| MemoryError::TooLarge(size))?;
        let region = MmapRegion::build(None, bytes.saturating_add(spare), access, flags)
            .and_then(|around| sys::region_within(Around(around), bytes, HUGE));
        let region = region.map_err(|source| MemoryError::Map { size, huge, source })?;
        mapped.push(
            GuestRegionMmap::new(region, GuestAddress(start)).ok_or(MemoryError::TooLarge(size))?,
        );
    }
    Ok(GuestMemory::from_regions(mapped)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryBackend;

    #[test]
    fn small_memory_is_one_region_below_the_gap() {
        assert_eq!(regions(512 << 20).unwrap(), [(0, 512 << 20)]);
        assert_eq!(regions(3 << 30).unwrap(), [(0, 3 << 30)]);
    }

    #[test]
    fn what_does_not_fit_below_the_gap_goes_above_it() {
        assert_eq!(
            regions(3584 << 20).unwrap(),
            [(0, 3 << 30), (4 << 30, 512 << 20)]
        );
    }

    #[test]
    fn absurd_sizes_are_refused() {
        for size in [0, 1, MIN_SIZE - 1] {
            assert!(matches!(regions(size), Err(MemoryError::TooSmall(_))));
        }
        assert!(matches!(regions(u64::MAX), Err(MemoryError::TooLarge(_))));
    }

    #[test]
    fn mapping_costs_no_host_memory() {
        // Far more than any test machine has: only touched pages count.
        let memory = map(1 << 40, false).unwrap();
        assert_eq!(memory.iter().count(), 2);
    }

    #[test]
    fn memory_begins_where_a_huge_page_can() {
        // The second is a size that no kernel aligns by itself.
        for size in [64 << 20, (64 << 20) + 4096] {
            let memory = map(size, false).unwrap();
            let region = memory.iter().next().unwrap();
            assert!(region.as_ptr().addr().is_multiple_of(HUGE));
            assert_eq!(region.size() as u64, size);
        }
    }

    #[test]
    fn huge_pages_need_a_whole_number_of_them() {
        assert!(matches!(map(3 << 20, true), Err(MemoryError::NotHuge(_))));
    }
}
