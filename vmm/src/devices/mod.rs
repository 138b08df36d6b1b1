// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The few devices a stock kernel needs to boot, and the ports they are at.
//!
//! | Ports | Device |
//! |---|---|
//! | `0x64` | keyboard controller: only its reset line, the kernel's second choice |
//! | `0x70`–`0x71` | CMOS clock, read-only |
//! | `0x3F8`–`0x3FF` | COM1 |
//! | `0x600`–`0x602` | power-off and reset |
//! | `0xCF8`–`0xCFF` | PCI configuration space, empty |
//!
//! Every other port and all memory outside RAM reads as all ones.

pub mod cmos;
pub mod pci;
pub mod power;
pub mod serial;

use std::time::SystemTime;

use parking_lot::Mutex;

use self::cmos::Cmos;
use self::pci::ConfigSpace;
use self::power::PowerRequest;
use self::serial::Com1;

const PCI: std::ops::Range<u16> = pci::ADDRESS..pci::DATA + 4;

/// All devices at I/O ports; vCPU threads share one.
pub struct Ports {
    /// The serial port.
    pub com1: Com1,
    cmos: Mutex<Cmos>,
    pci: Mutex<ConfigSpace>,
}

impl Ports {
    /// The devices of a fresh machine.
    pub fn new(com1: Com1) -> Self {
        Self {
            com1,
            cmos: Mutex::default(),
            pci: Mutex::default(),
        }
    }

    /// The guest reads a port.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        if PCI.contains(&port) {
            return self.pci.lock().read(port, data);
        }
        if let Some(register) = self.com1.register(port) {
            // A string instruction reads the one register again and again.
            for byte in data {
                *byte = self.com1.read(register);
            }
            return;
        }
        // No other device here has registers wider than a byte.
        let [byte] = data else {
            data.fill(0xFF);
            return;
        };
        *byte = if port == cmos::DATA {
            self.cmos.lock().read(SystemTime::now())
        } else {
            power::read(port)
        };
    }

    /// The guest writes a port; some writes end the machine.
    pub fn write(&self, port: u16, data: &[u8]) -> Option<PowerRequest> {
        if PCI.contains(&port) {
            self.pci.lock().write(port, data);
        }
        if let Some(register) = self.com1.register(port) {
            for byte in data {
                self.com1.write(register, *byte);
            }
            return None;
        }
        let &[byte] = data else { return None };
        if port == cmos::INDEX {
            self.cmos.lock().select(byte);
        } else {
            return power::write(port, byte);
        }
        None
    }
}
