// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI configuration mechanism #1, with nothing behind it but a host bridge.
//!
//! There is no PCI in this machine, and the ACPI namespace names no root bus, so
//! no guest scans one. But x86 kernels look for a way to configuration space
//! before they read ACPI, and log an error if there is none. They believe in
//! the mechanism when the address register keeps what is written to it and a
//! host bridge answers.
//!
//! ```text
//! 0xCF8  address: enable 31 · bus 23:16 · device 15:11 · function 10:8 · register 7:2
//! 0xCFC  data of the addressed register
//! ```

/// The address register, four bytes.
pub const ADDRESS: u16 = 0xCF8;
/// The data register, four bytes.
pub const DATA: u16 = 0xCFC;

const ENABLE: u32 = 1 << 31;
/// Bits that select bus, device, function and register.
const SELECT: u32 = 0x00FF_FFFC;
/// Registers of the bridge at 00:00.0: identity, and class 06/00 (host bridge).
const BRIDGE_ID: u32 = 0;
const BRIDGE_CLASS: u32 = 8;
/// A vendor of which no driver is after a device 0xFFFE.
const ID: u32 = 0xFFFE_1414;
const CLASS: u32 = 0x0600_0000;

/// The mechanism's only state: the address register.
#[derive(Debug, Default)]
pub struct ConfigSpace {
    address: u32,
}

impl ConfigSpace {
    /// The guest reads from one of the two registers.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        let (value, start) = match port.checked_sub(DATA) {
            Some(offset) => (self.register(), offset),
            None => (self.address, port.saturating_sub(ADDRESS)),
        };
        let bytes = value.to_le_bytes();
        let source = bytes
            .iter()
            .skip(start.into())
            .chain(std::iter::repeat(&0xFF));
        for (to, from) in data.iter_mut().zip(source) {
            *to = *from;
        }
    }

    /// The guest writes. Only whole writes to the address register count;
    /// nothing in configuration space can be changed.
    pub fn write(&mut self, port: u16, data: &[u8]) {
        if let (ADDRESS, Ok(bytes)) = (port, data.try_into()) {
            self.address = u32::from_le_bytes(bytes);
        }
    }

    fn register(&self) -> u32 {
        if self.address & ENABLE == 0 {
            return u32::MAX;
        }
        match self.address & SELECT {
            BRIDGE_ID => ID,
            BRIDGE_CLASS => CLASS,
            // Other registers of the bridge are zero, other functions absent.
            register if register < 0x100 => 0,
            _ => u32::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(address: u32, port: u16, len: usize) -> Vec<u8> {
        let mut space = ConfigSpace::default();
        space.write(ADDRESS, &address.to_le_bytes());
        let mut data = vec![0; len];
        space.read(port, &mut data);
        data
    }

    #[test]
    fn the_address_register_keeps_what_is_written_as_a_whole() {
        assert_eq!(read(0x8000_0000, ADDRESS, 4), [0, 0, 0, 0x80]);
        let mut space = ConfigSpace::default();
        space.write(0xCFB, &[1]);
        assert_eq!(space.address, 0);
    }

    #[test]
    fn a_host_bridge_is_the_only_function() {
        assert_eq!(read(0x8000_0008, DATA + 2, 2), [0x00, 0x06]);
        assert_eq!(read(0x8000_0000, DATA, 4), [0x14, 0x14, 0xFE, 0xFF]);
        for absent in [0x8000_0100, 0x8000_0800, 0x8001_0000, 0x80FF_FF08] {
            assert_eq!(read(absent, DATA, 4), [0xFF; 4]);
        }
        assert_eq!(read(0, DATA, 4), [0xFF; 4]);
    }

    #[test]
    fn reads_beyond_the_registers_are_all_ones() {
        assert_eq!(read(0x8000_0008, DATA + 3, 4), [0x06, 0xFF, 0xFF, 0xFF]);
        assert_eq!(read(0x8000_0008, ADDRESS, 9)[4..], [0xFF; 5]);
    }
}
