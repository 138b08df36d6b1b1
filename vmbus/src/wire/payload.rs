// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bytes that one SynIC message or one post-message hypercall carries.
//!
//! Both directions share the limit of 240 bytes (protocol 1.7 and 3.7), so the
//! bytes live inline: queueing a message costs no allocation of its own.

use std::fmt;

use zerocopy::{Immutable, IntoBytes};

/// The most bytes that a message can carry.
pub const MAX_PAYLOAD: usize = 240;

/// Up to [`MAX_PAYLOAD`] bytes, copied out of (or on the way into) the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    // Bytes past `len` are zero, so that the derived comparison is right.
    bytes: [u8; MAX_PAYLOAD],
    len: u8,
}

impl Payload {
    /// A copy of `bytes`, or `None` if there are more than [`MAX_PAYLOAD`].
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let len = u8::try_from(bytes.len()).ok()?;
        let mut copy = [0; MAX_PAYLOAD];
        copy.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self { bytes: copy, len })
    }

    /// A fixed-size head and what follows it; as much of it as fits.
    pub(super) fn of<T: IntoBytes + Immutable>(head: &T, tail: &[u8]) -> Self {
        const { assert!(size_of::<T>() <= MAX_PAYLOAD) };
        let mut bytes = [0; MAX_PAYLOAD];
        let mut len = 0;
        let source = head.as_bytes().iter().chain(tail);
        for (to, from) in bytes.iter_mut().zip(source) {
            *to = *from;
            len += 1;
        }
        Self { bytes, len }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// How many bytes there are; at most [`MAX_PAYLOAD`].
    pub const fn len(&self) -> u8 {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({:02x?})", self.as_slice())
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}
