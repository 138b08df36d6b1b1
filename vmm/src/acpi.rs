// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ACPI tables: what a stock kernel has to find, and nothing else.
//!
//! ```text
//! RSDP ─► XSDT ─┬─► FADT (hardware-reduced) ─► DSDT: VMBUS, COM1, RTC, \_S5
//!               └─► MADT: one local APIC per vCPU, the IO-APIC
//! ```
//!
//! - Hardware-reduced ACPI has no SCI, PM timer or fixed events. Power-off is a
//!   write to the sleep control register, reset one to the reset register.
//! - The `VMBUS` device is what makes a guest load `hv_vmbus`: see `vmbus_kvm::acpi`.

use acpi_tables::aml::{
    self, Device, EISAName, IO, Interrupt, Name, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::little_endian::U32;
use zerocopy::{Immutable, IntoBytes};

use crate::boot::tables;
use crate::devices::{cmos, power, serial};
use crate::memory::{self, GuestMemory};

const OEM_ID: [u8; 6] = *b"VMBUS ";
const OEM_TABLE_ID: [u8; 8] = *b"VMBUSVMM";
const OEM_REVISION: u32 = 1;
/// FADT boot architecture flags: no VGA to probe, no PCIe ASPM to control.
const IAPC_BOOT_ARCH: u16 = 1 << 2 | 1 << 4;
/// APIC ids from here on need an x2APIC entry.
const FIRST_X2APIC_ID: u32 = 255;

/// Why there are no tables.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// More tables than room for them.
    #[error("the ACPI tables of {cpus} vCPUs need {need} bytes, and {have} are set aside")]
    TooLarge {
        /// vCPUs to be described.
        cpus: u32,
        /// Bytes needed.
        need: u64,
        /// Bytes there are.
        have: u64,
    },
    /// The area is not in guest memory.
    #[error("the ACPI tables do not fit into guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Writes the tables of a machine with `cpus` vCPUs and returns the RSDP's address.
pub fn write(memory: &GuestMemory, cpus: u32) -> Result<u64, AcpiError> {
    let image = build(cpus);
    let need = u64::try_from(image.len()).unwrap_or(u64::MAX);
    let have = tables::RESET_VECTOR - memory::ACPI_START;
    if need > have {
        return Err(AcpiError::TooLarge { cpus, need, have });
    }
    memory.write_slice(&image, GuestAddress(memory::ACPI_START))?;
    Ok(memory::ACPI_START)
}

/// All tables as they stand from `ACPI_START` on; the RSDP comes first.
fn build(cpus: u32) -> Vec<u8> {
    // The RSDP's size does not depend on what it says, so the rest can be laid out behind it.
    let mut tables = Tables {
        bytes: bytes(&Rsdp::new(OEM_ID, 0)),
    };
    let dsdt = tables.add(&bytes(&dsdt()));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(tables.add(&bytes(&fadt(dsdt))));
    xsdt.add_entry(tables.add(&bytes(&madt(cpus))));
    let xsdt = tables.add(&bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
    for (at, byte) in tables.bytes.iter_mut().zip(rsdp) {
        *at = byte;
    }
    tables.bytes
}

/// Tables one behind the other, each at an address that is a multiple of 16.
struct Tables {
    bytes: Vec<u8>,
}

impl Tables {
    fn add(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let at = u64::try_from(self.bytes.len()).unwrap_or(u64::MAX);
        self.bytes.extend_from_slice(table);
        memory::ACPI_START.saturating_add(at)
    }
}

/// Collects the bytes of a table.
#[derive(Default)]
struct Sink(Vec<u8>);

impl AmlSink for Sink {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut sink = Sink::default();
    table.to_aml_bytes(&mut sink);
    sink.0
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let register = |port: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            port.into(),
        )
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = IAPC_BOOT_ARCH.into();
    fadt.century = cmos::CENTURY;
    fadt.reset_reg = register(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = register(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(power::SLEEP_STATUS);
    fadt.finalize()
}

fn madt(cpus: u32) -> MADT {
    let mut madt = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(memory::LOCAL_APIC),
    );
    for id in 0..cpus {
        match u8::try_from(id) {
            Ok(short) if id < FIRST_X2APIC_ID => madt.add_structure(ProcessorLocalApic::new(
                short,
                short,
                EnabledStatus::Enabled,
            )),
            _ => madt.add_structure(ProcessorLocalX2Apic::new(id)),
        }
    }
    madt.add_structure(IoApic::new(0, memory::IO_APIC, 0));
    madt
}

/// MADT structure 9: a local x2APIC, for ids that do not fit the old structure.
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct ProcessorLocalX2Apic {
    kind: u8,
    length: u8,
    reserved: [u8; 2],
    apic_id: U32,
    flags: U32,
    uid: U32,
}

impl ProcessorLocalX2Apic {
    fn new(id: u32) -> Self {
        Self {
            kind: 9,
            length: 16,
            reserved: [0; 2],
            apic_id: id.into(),
            flags: 1.into(),
            uid: id.into(),
        }
    }
}

impl Aml for ProcessorLocalX2Apic {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.as_bytes());
    }
}

fn dsdt() -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&bytes(&Scope::new(
        Path::new("_SB_"),
        vec![&Vmbus, &Com1, &Rtc],
    )));
    let off: u8 = power::S5_TYPE;
    dsdt.append_slice(&bytes(&Name::new(
        Path::new("_S5_"),
        &Package::new(vec![&off, &aml::ZERO, &aml::ZERO, &aml::ZERO]),
    )));
    dsdt
}

/// The device whose driver is the guest's VMBus.
struct Vmbus;

impl Aml for Vmbus {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let window = memory::VMBUS_WINDOW..=memory::VMBUS_WINDOW_END;
        sink.vec(&vmbus_kvm::acpi::vmbus_device(window));
    }
}

/// The serial port.
struct Com1;

impl Aml for Com1 {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let port = IO::new(serial::BASE, serial::BASE, 1, serial::LENGTH);
        let interrupt = Interrupt::new(true, true, false, false, serial::GSI);
        Device::new(
            Path::new("COM1"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
                &Name::new(Path::new("_UID"), &aml::ZERO),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![&port, &interrupt]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The clock, without an interrupt: it tells the time and has no alarm.
struct Rtc;

impl Aml for Rtc {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let ports = IO::new(cmos::INDEX, cmos::INDEX, 1, 2);
        Device::new(
            Path::new("RTC_"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0B00")),
                &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ports])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn u64_at(image: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(image[at..at + 8].try_into().unwrap())
    }

    /// The table at a guest address, by the length in its header.
    fn table(image: &[u8], address: u64) -> &[u8] {
        let at = usize::try_from(address - memory::ACPI_START).unwrap();
        let len = u32::from_le_bytes(image[at + 4..at + 8].try_into().unwrap());
        &image[at..at + usize::try_from(len).unwrap()]
    }

    /// Follows the chain as a guest does: every table by its signature.
    fn chain(image: &[u8]) -> Vec<(String, Vec<u8>)> {
        assert_eq!(&image[..8], b"RSD PTR ");
        assert_eq!((sum(&image[..20]), sum(&image[..36])), (0, 0));
        let xsdt = table(image, u64_at(image, 24));
        let mut found = vec![xsdt.to_vec()];
        for entry in xsdt[36..].chunks(8) {
            found.push(table(image, u64::from_le_bytes(entry.try_into().unwrap())).to_vec());
        }
        let fadt = found.iter().find(|t| &t[..4] == b"FACP").unwrap();
        found.push(table(image, u64_at(fadt, 140)).to_vec());
        found
            .into_iter()
            .map(|t| (String::from_utf8(t[..4].to_vec()).unwrap(), t))
            .collect()
    }

    #[test]
    fn every_table_is_reached_and_its_checksum_is_right() {
        let found = chain(&build(4));
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["XSDT", "FACP", "APIC", "DSDT"]);
        for (name, table) in &found {
            assert_eq!(sum(table), 0, "{name}");
        }
    }

    #[test]
    fn each_vcpu_has_an_apic_and_those_beyond_254_an_x2apic() {
        let count = |cpus, kind| {
            let (_, madt) = chain(&build(cpus)).remove(2);
            let (mut at, mut count) = (44, 0);
            while at < madt.len() {
                count += usize::from(madt[at] == kind);
                at += usize::from(madt[at + 1]);
            }
            count
        };
        assert_eq!((count(1, 0), count(1, 1), count(1, 9)), (1, 1, 0));
        assert_eq!((count(300, 0), count(300, 9)), (255, 45));
    }

    #[test]
    fn the_namespace_holds_the_bus_by_its_string_id() {
        let (_, dsdt) = chain(&build(1)).remove(3);
        // Name(_HID, "VMBUS"): NameOp, four characters, StringPrefix, text, NUL.
        let id = b"\x08_HID\x0DVMBUS\0";
        assert!(dsdt.windows(id.len()).any(|window| window == id));
        // Name(_CRS, Buffer(2) { end tag, checksum }): no resources at all.
        let empty = b"\x08_CRS\x11\x05\x0A\x02\x79\x00";
        assert!(dsdt.windows(empty.len()).any(|window| window == empty));
    }

    #[test]
    fn the_bus_has_an_ancestor_with_a_window() {
        let (_, dsdt) = chain(&build(1)).remove(3);
        // A DWordMemory descriptor's range, between its granularity and its translation.
        let range = b"\x00\x00\x00\xF0\xFF\xFF\xFF\xF0\x00\x00\x00\x00";
        assert!(dsdt.windows(range.len()).any(|window| window == range));
        let at = |text: &[u8]| dsdt.windows(text.len()).position(|window| window == text);
        assert!(at(b"ACPI0004").unwrap() < at(b"VMBUS\0").unwrap_or(usize::MAX));
    }

    #[test]
    fn the_fadt_names_the_ports_that_the_power_device_serves() {
        let (_, fadt) = chain(&build(1)).remove(1);
        assert_eq!(u64_at(&fadt, 120), u64::from(power::RESET));
        assert_eq!(fadt[128], power::RESET_VALUE);
        assert_eq!(u64_at(&fadt, 248), u64::from(power::SLEEP_CONTROL));
        assert_eq!(u64_at(&fadt, 260), u64::from(power::SLEEP_STATUS));
        assert_eq!(fadt[108], cmos::CENTURY);
    }

    #[test]
    fn as_many_vcpus_as_kvm_allows_fit() {
        let memory = memory::map(4 << 20, false).unwrap();
        assert!(write(&memory, 4096).is_ok());
        assert!(matches!(
            write(&memory, 20_000),
            Err(AcpiError::TooLarge { .. })
        ));
    }
}
