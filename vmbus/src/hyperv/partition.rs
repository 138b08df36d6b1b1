// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The partition: the synthetic MSRs that are neither the SynIC's nor the timers', and
//! the hypercall page.
//!
//! Under a hypervisor that emulates Hyper-V few of them are ours: crash reports, because
//! KVM keeps no message, and the TSC control, which older KVMs do not know. Under
//! any other they are all.
//!
//! Our hypercall page does not use VMCALL, which a hypervisor may take for one of its
//! own calls. It holds an OUT, which exits:
//!
//! ```text
//! F3 0F 1E FA   ENDBR64    guests that check for branch targets find one
//! E7 F8         OUT 0xF8, EAX
//! C3            RET        RAX is set while the vCPU is out
//! ```

use super::crash::{self, CrashRegisters, CrashReport};
use super::time::ReferenceTime;
use crate::memory::GuestMemory;

/// Port that the hypercall page writes to; no PC device and no Linux driver uses it.
pub const HYPERCALL_PORT: u16 = 0xF8;
/// Offset of the OUT in the page.
pub const HYPERCALL_OUT_OFFSET: u64 = 4;
/// All synthetic MSRs.
pub const RANGE: std::ops::Range<u32> = 0x4000_0000..0x4000_0200;
/// Those that are served here also when the hypervisor serves the others.
pub const ALWAYS_OURS: [std::ops::Range<u32>; 3] = [
    RESET..RESET + 1,
    crash::P0..crash::CTL + 1,
    TSC_INVARIANT_CONTROL..TSC_INVARIANT_CONTROL + 1,
];

const GUEST_OS_ID: u32 = 0x4000_0000;
const HYPERCALL: u32 = 0x4000_0001;
const VP_INDEX: u32 = 0x4000_0002;
/// Not offered, so a fault; KVM would make an exit of it that ends the machine.
const RESET: u32 = 0x4000_0003;
/// The reference counter.
pub const TIME_REF_COUNT: u32 = 0x4000_0020;
const REFERENCE_TSC: u32 = 0x4000_0021;
const TSC_FREQUENCY: u32 = 0x4000_0022;
const APIC_FREQUENCY: u32 = 0x4000_0023;
const VP_ASSIST_PAGE: u32 = 0x4000_0073;
const TSC_INVARIANT_CONTROL: u32 = 0x4000_0118;

/// The MSR in which a guest tells its name, for those who ask KVM for it.
pub const GUEST_OS_ID_MSR: u32 = GUEST_OS_ID;

const ENABLE: u64 = 1;
const PAGE_MASK: u64 = !0xFFF;
const PAGE: usize = 4096;
/// KVM's local APIC counts nanoseconds.
const APIC_HZ: u64 = 1_000_000_000;
const HYPERCALL_CODE: [u8; 7] = [0xF3, 0x0F, 0x1E, 0xFA, 0xE7, 0xF8, 0xC3];
const INT3: u8 = 0xCC;

/// The access is to end in #GP in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such MSR, or not such a value")]
pub struct Fault;

/// The partition-wide part of the synthetic MSRs.
///
/// # Example
/// ```
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
/// use vmbus::hyperv::Partition;
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)])?;
/// let mut partition = Partition::new(1, 2_000_000_000);
/// // Linux tells its name, then where it wants the hypercall page.
/// partition.write(&memory, 0, 0x4000_0000, 0x8100_0006_0100_0000)?;
/// partition.write(&memory, 0, 0x4000_0001, 0x5001)?;
/// assert!(partition.hypercalls_enabled());
/// assert_eq!(partition.read(0, 0x4000_0001, None)?, 0x5001);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Partition {
    tsc_hz: u64,
    time: Option<ReferenceTime>,
    guest_os_id: u64,
    hypercall: u64,
    reference_tsc: u64,
    tsc_invariant: u64,
    vp_assist: Vec<u64>,
    crash: CrashRegisters,
}

impl Partition {
    /// A partition of `cpus` VPs whose TSC runs at `tsc_hz`.
    pub fn new(cpus: u32, tsc_hz: u64) -> Self {
        Self {
            tsc_hz,
            time: ReferenceTime::new(tsc_hz),
            guest_os_id: 0,
            hypercall: 0,
            reference_tsc: 0,
            tsc_invariant: 0,
            vp_assist: vec![0; usize::try_from(cpus).unwrap_or(0)],
            crash: CrashRegisters::default(),
        }
    }

    /// Reads an MSR for a VP; the reference counter needs to know the guest's TSC.
    pub fn read(&self, vp: u32, index: u32, tsc: Option<u64>) -> Result<u64, Fault> {
        if let Some(value) = self.crash.read(index) {
            return Ok(value);
        }
        match index {
            GUEST_OS_ID => Ok(self.guest_os_id),
            HYPERCALL => Ok(self.hypercall),
            VP_INDEX => Ok(vp.into()),
            TIME_REF_COUNT => Ok(self.time.ok_or(Fault)?.at(tsc.ok_or(Fault)?)),
            REFERENCE_TSC => Ok(self.reference_tsc),
            TSC_FREQUENCY => Ok(self.tsc_hz),
            APIC_FREQUENCY => Ok(APIC_HZ),
            VP_ASSIST_PAGE => assist(vp, |at| self.vp_assist.get(at).copied()),
            TSC_INVARIANT_CONTROL => Ok(self.tsc_invariant),
            _ => Err(Fault),
        }
    }

    /// Writes an MSR for a VP; a crash report comes back when the guest told one.
    pub fn write(
        &mut self,
        memory: &dyn GuestMemory,
        vp: u32,
        index: u32,
        value: u64,
    ) -> Result<Option<CrashReport>, Fault> {
        if let Some(report) = self.crash.write(memory, index, value) {
            return Ok(report);
        }
        match index {
            GUEST_OS_ID => {
                self.guest_os_id = value;
                if value == 0 {
                    // The page belongs to the guest again.
                    self.hypercall = 0;
                }
            }
            HYPERCALL => self.set_hypercall(memory, value)?,
            REFERENCE_TSC => {
                if value & ENABLE != 0 {
                    let page = self.time.map(ReferenceTime::page).unwrap_or_default();
                    fill_page(memory, value, &page, 0)?;
                }
                self.reference_tsc = value;
            }
            VP_ASSIST_PAGE => assist(vp, |at| {
                self.vp_assist.get_mut(at).map(|slot| *slot = value)
            })?,
            TSC_INVARIANT_CONTROL => self.tsc_invariant = value,
            _ => return Err(Fault),
        }
        Ok(None)
    }

    /// What the guest calls itself.
    pub fn guest_os_id(&self) -> u64 {
        self.guest_os_id
    }

    /// What the guest has told KVM that it calls itself.
    pub fn set_guest_os_id(&mut self, id: u64) {
        self.guest_os_id = id;
    }

    /// The reference counter at a value of the guest's TSC.
    pub fn reference_time(&self, tsc: u64) -> u64 {
        self.time.map_or(0, |time| time.at(tsc))
    }

    /// Whether hypercalls may be made: the guest has told its name and has a page.
    pub fn hypercalls_enabled(&self) -> bool {
        self.guest_os_id != 0 && self.hypercall & ENABLE != 0
    }

    fn set_hypercall(&mut self, memory: &dyn GuestMemory, value: u64) -> Result<(), Fault> {
        // Until the guest has told its name the page cannot be enabled.
        if value & ENABLE != 0 && self.guest_os_id != 0 {
            fill_page(memory, value, &HYPERCALL_CODE, INT3)?;
            self.hypercall = value;
        } else {
            self.hypercall = value & !ENABLE;
        }
        Ok(())
    }
}

/// Fills the page that an MSR names.
fn fill_page(memory: &dyn GuestMemory, msr: u64, start: &[u8], rest: u8) -> Result<(), Fault> {
    let mut page = [rest; PAGE];
    for (at, byte) in page.iter_mut().zip(start) {
        *at = *byte;
    }
    let written = memory.write(msr & PAGE_MASK, &page);
    written.then_some(()).ok_or(Fault)
}

/// A guest id in words: for open-source systems a kind and a version.
pub fn guest_os_name(id: u64) -> Option<String> {
    const OPEN_SOURCE: u64 = 1 << 63;
    const LINUX: u64 = 1;
    if id == 0 {
        return None;
    }
    let (kind, version) = ((id >> 56) & 0x7F, (id >> 16) & 0xFFFF_FFFF);
    if id & OPEN_SOURCE == 0 {
        return Some(format!("unknown ({id:#x})"));
    }
    let name = if kind == LINUX {
        "Linux"
    } else {
        "open source"
    };
    let (major, minor, patch) = (version >> 16, (version >> 8) & 0xFF, version & 0xFF);
    Some(format!("{name} {major}.{minor}.{patch}"))
}

fn assist<T>(vp: u32, access: impl FnOnce(usize) -> Option<T>) -> Result<T, Fault> {
    usize::try_from(vp).ok().and_then(access).ok_or(Fault)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    const LINUX: u64 = 0x8100_0006_0100_0000;

    /// A partition and its memory.
    struct Machine(Partition, GuestMemoryMmap);

    impl Machine {
        fn write(&mut self, vp: u32, index: u32, value: u64) -> Result<Option<CrashReport>, Fault> {
            self.0.write(&self.1, vp, index, value)
        }
    }

    impl std::ops::Deref for Machine {
        type Target = Partition;

        fn deref(&self) -> &Partition {
            &self.0
        }
    }

    fn partition() -> Machine {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        Machine(Partition::new(2, 2_000_000_000), memory)
    }

    fn read(partition: &Partition, index: u32) -> Result<u64, Fault> {
        partition.read(1, index, Some(2_000_000_000))
    }

    fn page(machine: &Machine, address: u64) -> Vec<u8> {
        let memory: &dyn GuestMemory = &machine.1;
        let mut bytes = vec![0; PAGE];
        assert!(memory.read(address, &mut bytes));
        bytes
    }

    #[test]
    fn the_hypercall_page_begins_with_a_branch_target_and_traps() {
        let mut partition = partition();
        partition.write(0, GUEST_OS_ID, LINUX).unwrap();
        partition.write(0, HYPERCALL, 0x5001).unwrap();
        assert_eq!(read(&partition, HYPERCALL), Ok(0x5001));
        let code = page(&partition, 0x5000);
        assert_eq!(code[..8], [0xF3, 0x0F, 0x1E, 0xFA, 0xE7, 0xF8, 0xC3, 0xCC]);
        let out = usize::try_from(HYPERCALL_OUT_OFFSET).unwrap();
        assert_eq!(u16::from(code[out + 1]), HYPERCALL_PORT);
        assert!(partition.hypercalls_enabled());
    }

    #[test]
    fn a_guest_without_a_name_gets_no_hypercalls() {
        let mut partition = partition();
        partition.write(0, HYPERCALL, 0x5001).unwrap();
        assert_eq!(read(&partition, HYPERCALL), Ok(0x5000));
        assert!(!partition.hypercalls_enabled());
        assert_eq!(page(&partition, 0x5000), [0; PAGE]);
    }

    #[test]
    fn taking_back_the_name_gives_back_the_page() {
        let mut partition = partition();
        partition.write(0, GUEST_OS_ID, LINUX).unwrap();
        partition.write(0, HYPERCALL, 0x5001).unwrap();
        partition.write(0, GUEST_OS_ID, 0).unwrap();
        assert!(!partition.hypercalls_enabled());
        assert_eq!(read(&partition, HYPERCALL), Ok(0));
    }

    #[test]
    fn pages_outside_memory_are_faults() {
        let mut partition = partition();
        partition.write(0, GUEST_OS_ID, LINUX).unwrap();
        for msr in [HYPERCALL, REFERENCE_TSC] {
            assert_eq!(partition.write(0, msr, (1 << 40) | 1), Err(Fault));
            assert_eq!(partition.write(0, msr, u64::MAX), Err(Fault));
        }
    }

    #[test]
    fn the_clock_page_and_the_counter_tell_one_time() {
        let mut partition = partition();
        partition.write(0, REFERENCE_TSC, 0x6001).unwrap();
        let page = page(&partition, 0x6000);
        assert_eq!(page[..4], [1, 0, 0, 0]);
        let scale = u64::from_le_bytes(page[8..16].try_into().unwrap());
        let by_page = (2_000_000_000u128 * u128::from(scale)) >> 64;
        assert_eq!(
            read(&partition, TIME_REF_COUNT).map(u128::from),
            Ok(by_page)
        );
        assert_eq!(page[16..], [0; PAGE - 16]);
    }

    #[test]
    fn each_vp_has_its_own_index_and_assist_page() {
        let mut partition = partition();
        partition.write(0, VP_ASSIST_PAGE, 0x7001).unwrap();
        assert_eq!(read(&partition, VP_ASSIST_PAGE), Ok(0));
        assert_eq!(partition.read(0, VP_ASSIST_PAGE, None), Ok(0x7001));
        assert_eq!(read(&partition, VP_INDEX), Ok(1));
        assert_eq!(partition.write(0, VP_INDEX, 5), Err(Fault));
        assert_eq!(partition.write(2, VP_ASSIST_PAGE, 1), Err(Fault));
    }

    #[test]
    fn a_guest_id_is_told_in_words() {
        assert_eq!(guest_os_name(0), None);
        let linux = 0x8100_0006_01C0_0000;
        assert_eq!(guest_os_name(linux).as_deref(), Some("Linux 6.1.192"));
        assert_eq!(
            guest_os_name(0x1_0000).as_deref(),
            Some("unknown (0x10000)")
        );
    }

    #[test]
    fn frequencies_are_those_of_the_machine() {
        assert_eq!(read(&partition(), TSC_FREQUENCY), Ok(2_000_000_000));
        assert_eq!(read(&partition(), APIC_FREQUENCY), Ok(1_000_000_000));
    }

    #[test]
    fn every_other_msr_of_the_range_is_a_fault() {
        let mut partition = partition();
        for index in [
            0x4000_0003,
            0x4000_0010,
            0x4000_0070,
            0x4000_00B0,
            0x4000_00F0,
        ] {
            assert_eq!(read(&partition, index), Err(Fault), "{index:#x}");
            assert_eq!(partition.write(0, index, 0), Err(Fault), "{index:#x}");
        }
    }
}
