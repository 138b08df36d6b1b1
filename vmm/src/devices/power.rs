// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Power-off and reset: the registers that the FADT names, and the reset line
//! of the keyboard controller, which kernels pull when ACPI did not help.

/// ACPI sleep control register.
pub const SLEEP_CONTROL: u16 = 0x600;
/// ACPI sleep status register.
pub const SLEEP_STATUS: u16 = 0x601;
/// ACPI reset register.
pub const RESET: u16 = 0x602;
/// What resets the machine when written there.
pub const RESET_VALUE: u8 = 1;
/// The sleep type of soft-off, in `\_S5` and in the sleep control register.
pub const S5_TYPE: u8 = 5;

const KEYBOARD_CONTROLLER: u16 = 0x64;
const PULSE_RESET: u8 = 0xFE;
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;

/// What the guest asks of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// Switch off.
    Off,
    /// Start again.
    Reset,
}

/// Reads a power register, or a port where nothing is.
pub fn read(port: u16) -> u8 {
    match port {
        // Nothing to report: the machine has not slept. An idle keyboard
        // controller says that its buffers are empty.
        SLEEP_CONTROL | SLEEP_STATUS | RESET | KEYBOARD_CONTROLLER => 0,
        _ => 0xFF,
    }
}

/// Writes a power register; other ports do nothing.
pub fn write(port: u16, value: u8) -> Option<PowerRequest> {
    let sleep_type = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
    match port {
        SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && sleep_type == S5_TYPE => {
            Some(PowerRequest::Off)
        }
        RESET if value == RESET_VALUE => Some(PowerRequest::Reset),
        KEYBOARD_CONTROLLER if value == PULSE_RESET => Some(PowerRequest::Reset),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_soft_off_with_the_enable_bit_powers_off() {
        assert_eq!(write(SLEEP_CONTROL, 0b0011_0100), Some(PowerRequest::Off));
        assert_eq!(write(SLEEP_CONTROL, 0b0001_0100), None);
        assert_eq!(write(SLEEP_CONTROL, 0b0010_1100), None);
    }

    #[test]
    fn both_reset_registers_reset() {
        assert_eq!(write(RESET, 1), Some(PowerRequest::Reset));
        assert_eq!(write(RESET, 0), None);
        assert_eq!(write(KEYBOARD_CONTROLLER, 0xFE), Some(PowerRequest::Reset));
        assert_eq!(write(KEYBOARD_CONTROLLER, 0x60), None);
    }
}
