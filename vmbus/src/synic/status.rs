// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hypercall status codes (protocol 1.7).

use std::fmt;

/// What a hypercall returns in bits 15:0 of RAX.
///
/// Open, because a hypervisor may return others than those named here.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HvStatus(pub u16);

impl HvStatus {
    /// The call did what it was asked to do.
    pub const SUCCESS: Self = Self(0x00);
    /// There is no such call.
    pub const INVALID_HYPERCALL_CODE: Self = Self(0x02);
    /// The control word, or a reserved part of the input, is not as the call wants it.
    pub const INVALID_HYPERCALL_INPUT: Self = Self(0x03);
    /// The input block is misaligned, crosses a page, or is not in guest memory.
    pub const INVALID_ALIGNMENT: Self = Self(0x04);
    /// A field of the input has an impossible value.
    pub const INVALID_PARAMETER: Self = Self(0x05);
    /// The caller may not do this.
    pub const ACCESS_DENIED: Self = Self(0x06);
    /// The operation is not possible in the present state.
    pub const OPERATION_DENIED: Self = Self(0x08);
    /// The host lacks memory for it; Linux tries a post again.
    pub const INSUFFICIENT_MEMORY: Self = Self(0x0b);
    /// There is no such port.
    pub const INVALID_PORT_ID: Self = Self(0x11);
    /// There is no such connection. Linux takes it as "no" to a protocol version.
    pub const INVALID_CONNECTION_ID: Self = Self(0x12);
    /// The host's queue is full; Linux tries a post again.
    pub const INSUFFICIENT_BUFFERS: Self = Self(0x13);
    /// The operation took too long.
    pub const TIMEOUT: Self = Self(0x78);

    /// Whether the call succeeded.
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }

    /// The value for RAX of a call without repetitions.
    pub const fn to_rax(self) -> u64 {
        self.0 as u64
    }

    const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::SUCCESS => "success",
            Self::INVALID_HYPERCALL_CODE => "invalid hypercall code",
            Self::INVALID_HYPERCALL_INPUT => "invalid hypercall input",
            Self::INVALID_ALIGNMENT => "invalid alignment",
            Self::INVALID_PARAMETER => "invalid parameter",
            Self::ACCESS_DENIED => "access denied",
            Self::OPERATION_DENIED => "operation denied",
            Self::INSUFFICIENT_MEMORY => "insufficient memory",
            Self::INVALID_PORT_ID => "invalid port id",
            Self::INVALID_CONNECTION_ID => "invalid connection id",
            Self::INSUFFICIENT_BUFFERS => "insufficient buffers",
            Self::TIMEOUT => "timeout",
            _ => return None,
        })
    }
}

impl fmt::Display for HvStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "status {:#x}", self.0),
        }
    }
}

impl fmt::Debug for HvStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HvStatus({:#x}, {self})", self.0)
    }
}
