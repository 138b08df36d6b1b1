// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages as a name and named fields, so that a host can trace them in
//! whatever format it likes.

use std::fmt;

/// A field's value.
#[derive(Clone, Copy)]
pub enum FieldValue<'a> {
    /// A number.
    Number(u64),
    /// A number that may be negative.
    Signed(i64),
    /// Yes or no.
    Bool(bool),
    /// Something with a text form: a GUID, a version.
    Text(&'a dyn fmt::Display),
    /// Bytes without further meaning to the bus.
    Bytes(&'a [u8]),
}

impl fmt::Debug for FieldValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Signed(number) => write!(f, "{number}"),
            Self::Bool(bool) => write!(f, "{bool}"),
            Self::Text(text) => write!(f, "{text}"),
            Self::Bytes(bytes) => write!(f, "{bytes:02x?}"),
        }
    }
}

impl From<u32> for FieldValue<'_> {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u16> for FieldValue<'_> {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<u64> for FieldValue<'_> {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

/// Something that can be taken apart for a trace.
///
/// ```
/// use vmbus::wire::{Describe, GuestMessage, Relid};
///
/// let message = GuestMessage::CloseChannel { relid: Relid(3) };
/// let mut line = message.name().to_string();
/// message.fields(&mut |name, value| line += &format!(" {name}={value:?}"));
/// assert_eq!(line, "CLOSECHANNEL relid=3");
/// ```
pub trait Describe {
    /// The protocol's name of it.
    fn name(&self) -> &'static str;
    /// Calls `visit` with the name and value of each field, in wire order.
    fn fields(&self, visit: &mut dyn FnMut(&'static str, FieldValue<'_>));
}
