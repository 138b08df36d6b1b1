// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vCPU's registers: as it starts, and as it is shown when the guest crashed.

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use serde::Serialize;

use crate::boot::{Entry, tables};

type KvmResult<T> = Result<T, kvm_ioctls::Error>;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 is always set.
const RFLAGS: u64 = 2;
/// Below the boot parameters; the kernel sets its own before it needs one.
const BOOT_STACK: u64 = 0x6FF0;

const MSR_MISC_ENABLE: u32 = 0x1A0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2FF;
/// MTRRs on, memory is write-back.
const MTRR_ENABLED_WRITE_BACK: u64 = 0x806;
const MSR_TSC: u32 = 0x10;

const LAPIC_LVT_LINT0: usize = 0x350;
const LAPIC_LVT_LINT1: usize = 0x360;
const DELIVERY_EXTINT: u8 = 0x7;
const DELIVERY_NMI: u8 = 0x4;

/// Prepares what every vCPU starts with.
pub fn init(vcpu: &VcpuFd) -> KvmResult<()> {
    vcpu.set_fpu(&kvm_fpu {
        fcw: 0x37F,
        mxcsr: 0x1F80,
        ..kvm_fpu::default()
    })?;
    let mut lapic = vcpu.get_lapic()?;
    for (register, mode) in [
        (LAPIC_LVT_LINT0, DELIVERY_EXTINT),
        (LAPIC_LVT_LINT1, DELIVERY_NMI),
    ] {
        // The delivery mode is bits 10:8, the low three of the second byte.
        if let Some(byte) = lapic.regs.get_mut(register + 1) {
            *byte = (*byte & !7) | mode.cast_signed();
        }
    }
    vcpu.set_lapic(&lapic)
}

/// Puts the boot CPU into 64-bit mode at the kernel's entry point.
pub fn set_entry(vcpu: &VcpuFd, entry: Entry) -> KvmResult<()> {
    let mut sregs = vcpu.get_sregs()?;
    let [_, _, code, data] = tables::GDT_ENTRIES;
    sregs.cs = segment(code, 0x10);
    let flat = segment(data, 0x18);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (flat, flat, flat, flat, flat);
    sregs.gdt.base = tables::GDT;
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.cr3 = tables::PML4;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry.rip,
        rsi: entry.rsi,
        rsp: BOOT_STACK,
        rbp: BOOT_STACK,
        rflags: RFLAGS,
        ..kvm_regs::default()
    })
}

/// Sets the MSRs that firmware would have set. Those a host does not know are left.
pub fn set_msrs(vcpu: &VcpuFd) -> KvmResult<()> {
    for (index, data) in [
        (MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ] {
        if let Some(msrs) = one_msr(index, data) {
            vcpu.set_msrs(&msrs)?;
        }
    }
    Ok(())
}

/// The guest's time-stamp counter.
pub fn tsc(vcpu: &VcpuFd) -> Option<u64> {
    msr(vcpu, MSR_TSC)
}

/// An MSR as the guest would read it.
pub fn msr(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    let mut msrs = one_msr(index, 0)?;
    vcpu.get_msrs(&mut msrs).ok()?;
    msrs.as_slice().first().map(|entry| entry.data)
}

/// Sets the guest's time-stamp counter.
pub fn set_tsc(vcpu: &VcpuFd, tsc: u64) -> KvmResult<()> {
    one_msr(MSR_TSC, tsc).map_or(Ok(()), |msrs| vcpu.set_msrs(&msrs).map(drop))
}

fn one_msr(index: u32, data: u64) -> Option<Msrs> {
    Msrs::from_entries(&[kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    }])
    .ok()
}

/// A descriptor as KVM wants it.
fn segment(descriptor: u64, selector: u16) -> kvm_segment {
    let bits = |shift: u32, mask: u64| (descriptor >> shift) & mask;
    let bit = |shift: u32| u8::from(bits(shift, 1) != 0);
    kvm_segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector,
        type_: u8::try_from(bits(40, 0xF)).unwrap_or(0),
        s: bit(44),
        dpl: u8::try_from(bits(45, 3)).unwrap_or(0),
        present: bit(47),
        avl: bit(52),
        l: bit(53),
        db: bit(54),
        g: bit(55),
        ..kvm_segment::default()
    }
}

/// The registers worth showing of a vCPU that will not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Which vCPU.
    pub vcpu: u32,
    /// Where it was.
    pub rip: u64,
    /// Its flags.
    pub rflags: u64,
    /// General registers.
    pub rax: u64,
    #[allow(missing_docs)]
    pub rbx: u64,
    #[allow(missing_docs)]
    pub rcx: u64,
    #[allow(missing_docs)]
    pub rdx: u64,
    #[allow(missing_docs)]
    pub rsi: u64,
    #[allow(missing_docs)]
    pub rdi: u64,
    #[allow(missing_docs)]
    pub rsp: u64,
    #[allow(missing_docs)]
    pub rbp: u64,
    /// Control registers and paging.
    pub cr0: u64,
    /// The address of the last page fault.
    pub cr2: u64,
    /// The page tables.
    pub cr3: u64,
    /// Paging extensions.
    pub cr4: u64,
    /// Code segment selector.
    pub cs: u16,
}

/// Where a CPU begins after INIT or RESET: the last 16 bytes below 4 GiB, in real mode.
const INIT_RIP: u64 = 0xFFF0;
const INIT_CS: u16 = 0xF000;

impl Snapshot {
    /// Whether these are the registers that INIT leaves, and so tell nothing of what
    /// was before. The stack pointer tells it from a guest that runs there.
    pub fn is_after_init(&self) -> bool {
        self.rip == INIT_RIP
            && self.cs == INIT_CS
            && self.cr0 & CR0_PE == 0
            && (self.rsp, self.rflags) == (0, RFLAGS)
    }

    /// Takes them from a vCPU that is not running.
    pub fn take(vcpu: &VcpuFd, id: u32) -> KvmResult<Self> {
        let (regs, sregs): (kvm_regs, kvm_sregs) = (vcpu.get_regs()?, vcpu.get_sregs()?);
        Ok(Self {
            vcpu: id,
            rip: regs.rip,
            rflags: regs.rflags,
            rax: regs.rax,
            rbx: regs.rbx,
            rcx: regs.rcx,
            rdx: regs.rdx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            rsp: regs.rsp,
            rbp: regs.rbp,
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            cs: sregs.cs.selector,
        })
    }
}

impl std::fmt::Display for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "vCPU {}  RIP {:04x}:{:016x}  RFLAGS {:08x}",
            self.vcpu, self.cs, self.rip, self.rflags
        )?;
        writeln!(
            f,
            "RAX {:016x}  RBX {:016x}  RCX {:016x}  RDX {:016x}",
            self.rax, self.rbx, self.rcx, self.rdx
        )?;
        writeln!(
            f,
            "RSI {:016x}  RDI {:016x}  RSP {:016x}  RBP {:016x}",
            self.rsi, self.rdi, self.rsp, self.rbp
        )?;
        write!(
            f,
            "CR0 {:016x}  CR2 {:016x}  CR3 {:016x}  CR4 {:016x}",
            self.cr0, self.cr2, self.cr3, self.cr4
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_init_leaves_is_told_from_a_guests_registers() {
        // As KVM leaves them: CD and NW stay, and RDX is the CPU's signature.
        let init = Snapshot {
            vcpu: 0,
            rip: 0xFFF0,
            rflags: 2,
            rax: 0,
            rbx: 0,
            rcx: 0,
            rdx: 0x0060_0F12,
            rsi: 0,
            rdi: 0,
            rsp: 0,
            rbp: 0,
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cs: 0xF000,
        };
        assert!(init.is_after_init());
        let kernel = Snapshot {
            rip: 0xFFFF_FFFF_8100_0000,
            cs: 0x10,
            cr0: 0x8005_0033,
            ..init
        };
        assert!(!kernel.is_after_init());
        assert!(
            !Snapshot {
                rsp: 0x7C00,
                ..init
            }
            .is_after_init()
        );
        assert!(
            !Snapshot {
                cr0: 0x6000_0011,
                ..init
            }
            .is_after_init()
        );
        assert!(
            !Snapshot {
                rflags: 0x46,
                ..init
            }
            .is_after_init()
        );
    }

    #[test]
    fn the_boot_segments_are_flat_and_the_code_segment_is_64_bit() {
        let [_, _, code, data] = tables::GDT_ENTRIES;
        let (code, data) = (segment(code, 0x10), segment(data, 0x18));
        assert_eq!(
            (code.type_, code.s, code.present, code.l, code.db, code.g),
            (11, 1, 1, 1, 0, 1)
        );
        assert_eq!(
            (data.type_, data.s, data.present, data.l, data.db, data.g),
            (3, 1, 1, 0, 1, 1)
        );
        assert_eq!((code.selector, data.selector), (0x10, 0x18));
    }
}
