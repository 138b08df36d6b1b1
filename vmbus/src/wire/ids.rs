// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Small numbers with a meaning: virtual processors and SINTs.
//!
//! A VP index is Hyper-V's number of a virtual processor (protocol 1.6). It is
//! neither an APIC id nor a file descriptor's number. A [`Sint`] is one of the
//! sixteen synthetic interrupt sources of a VP (protocol 3.7); the bus uses 2.

use std::fmt;

/// Hyper-V's number of a virtual processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VpIndex(pub u32);

impl VpIndex {
    /// The boot processor.
    pub const BSP: Self = Self(0);
}

impl fmt::Display for VpIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VP {}", self.0)
    }
}

/// A synthetic interrupt source: 0 to 15, checked when made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sint(u8);

impl Sint {
    /// How many sources a VP has.
    pub const COUNT: u8 = 16;
    /// The source that the bus uses for messages and for channel events.
    pub const VMBUS: Self = Self(2);

    /// The source numbered `number`, if there is one.
    pub const fn new(number: u8) -> Option<Self> {
        if number < Self::COUNT {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The source's number, below [`Sint::COUNT`].
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Every source in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }
}

impl fmt::Display for Sint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SINT {}", self.0)
    }
}

/// A channel's number on the bus ("child relid"), chosen by the host.
///
/// 1 to 2047 on the wire from us; from a guest it may be anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Relid(pub u32);

impl Relid {
    /// One more than the largest number: the event-flags page has so many bits.
    pub const END: u32 = 2048;
}

impl fmt::Display for Relid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "relid {}", self.0)
    }
}

/// A page list's number ("gpadl id"), chosen by the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpadlId(pub u32);

impl fmt::Display for GpadlId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gpadl {:#x}", self.0)
    }
}
