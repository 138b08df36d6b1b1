// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The status of an answer: Windows' HRESULT (protocol 6.2).

use std::fmt;

/// How the guest did with a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct HResult(pub u32);

impl HResult {
    /// It went well.
    pub const OK: Self = Self(0);
    /// It went wrong, without a reason given.
    pub const FAIL: Self = Self(0x8000_4005);
    /// No more items, or not found.
    pub const CONT: Self = Self(0x8007_0103);
    /// Not supported.
    pub const NOT_SUPPORTED: Self = Self(0x8007_0032);
    /// The machine is locked.
    pub const MACHINE_LOCKED: Self = Self(0x8007_04f7);
    /// The device is not connected.
    pub const NOT_CONNECTED: Self = Self(0x8007_048f);
    /// An argument is invalid.
    pub const INVALID_ARGUMENT: Self = Self(0x8007_0057);
    /// No such adapter.
    pub const GUID_NOT_FOUND: Self = Self(0x8004_1002);
    /// The file exists.
    pub const ALREADY_EXISTS: Self = Self(0x8007_0050);
    /// The disk is full.
    pub const DISK_FULL: Self = Self(0x8007_0070);

    /// Whether it went well.
    pub const fn is_ok(self) -> bool {
        // The sign bit says failure; a few successes are not zero.
        self.0 < 0x8000_0000
    }

    /// What it means, in words.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::OK => "success",
            Self::FAIL => "unspecified failure",
            Self::CONT => "no more items, or not found",
            Self::NOT_SUPPORTED => "not supported",
            Self::MACHINE_LOCKED => "the machine is locked",
            Self::NOT_CONNECTED => "the device is not connected",
            Self::INVALID_ARGUMENT => "invalid argument",
            Self::GUID_NOT_FOUND => "no adapter with this GUID",
            Self::ALREADY_EXISTS => "it already exists",
            Self::DISK_FULL => "the disk is full",
            _ if self.is_ok() => "success",
            _ => "unknown failure",
        }
    }
}

impl fmt::Display for HResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x} ({})", self.0, self.meaning())
    }
}

impl fmt::Debug for HResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
