// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Keys and values that fit into the protocol, and into what Linux makes of
//! them.
//!
//! ```text
//!            on the wire: UTF-16, NUL      in the guest: UTF-8, NUL
//!   key      512 bytes = 255 units         512 bytes = 511 bytes of text
//!   value   2048 bytes = 1023 units       2048 bytes = 2047 bytes of text
//! ```
//!
//! The guest cuts what is longer without a word, so it is refused here. Back to
//! the host Linux sends one unit less of either: [`MAX_KEY_BACK`],
//! [`MAX_VALUE_BACK`].

use std::fmt;
use std::str::FromStr;

/// UTF-16 units of a key, without the terminating zero.
pub const MAX_KEY: usize = 255;
/// UTF-16 units of a value, without the terminating zero.
pub const MAX_VALUE: usize = 1023;
/// Units of a key that the guest sends back.
pub const MAX_KEY_BACK: usize = MAX_KEY - 1;
/// Units of a value that the guest sends back.
pub const MAX_VALUE_BACK: usize = MAX_VALUE - 1;
/// Bytes of a key in the guest's UTF-8.
const MAX_KEY_BYTES: usize = 511;
/// Bytes of a value in the guest's UTF-8.
const MAX_VALUE_BYTES: usize = 2047;

/// A set of items in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pool {
    /// The host's items for the guest.
    External,
    /// Items that programs in the guest have made.
    Guest,
    /// What the guest's daemon tells of the system; nobody can write it.
    Auto,
    /// What the host tells of itself and of the VM; its user cannot write it.
    AutoExternal,
}

impl Pool {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::External, Self::Guest, Self::Auto, Self::AutoExternal];

    /// The name in commands and paths.
    pub const fn name(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Guest => "guest",
            Self::Auto => "auto",
            Self::AutoExternal => "auto-external",
        }
    }

    /// The number on the wire.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::External => 0,
            Self::Guest => 1,
            Self::Auto => 2,
            Self::AutoExternal => 3,
        }
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Pool {
    type Err = ItemError;

    fn from_str(name: &str) -> Result<Self, ItemError> {
        let mut all = Self::ALL.into_iter();
        all.find(|pool| pool.name() == name)
            .ok_or(ItemError::UnknownPool)
    }
}

/// Why a key or a value cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ItemError {
    /// No such pool.
    #[error("there is no such pool: there are external, guest, auto and auto-external")]
    UnknownPool,
    /// A key without a character.
    #[error("a key needs at least one character")]
    EmptyKey,
    /// A character that ends a text on the way.
    #[error("a {0} cannot have a zero character in it")]
    Zero(&'static str),
    /// Too long on the wire.
    #[error("the {what} is {units} UTF-16 units long, and {max} are the most")]
    TooLong {
        /// Key or value.
        what: &'static str,
        /// Its length.
        units: usize,
        /// The limit.
        max: usize,
    },
    /// Too long in the guest.
    #[error("the {what} is {bytes} bytes long in the guest's UTF-8, and {max} are the most")]
    TooManyBytes {
        /// Key or value.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}

fn check(what: &'static str, text: &str, max: usize, max_bytes: usize) -> Result<(), ItemError> {
    if text.contains('\0') {
        return Err(ItemError::Zero(what));
    }
    let units = text.encode_utf16().count();
    if units > max {
        return Err(ItemError::TooLong { what, units, max });
    }
    if text.len() > max_bytes {
        return Err(ItemError::TooManyBytes {
            what,
            bytes: text.len(),
            max: max_bytes,
        });
    }
    Ok(())
}

/// An item's name.
///
/// ```
/// use ics_devices::kvp::Key;
/// assert!(Key::new("VirtualMachineName").is_ok());
/// let error = Key::new(&"k".repeat(256)).unwrap_err();
/// assert_eq!(error.to_string(), "the key is 256 UTF-16 units long, and 255 are the most");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// Checks that it fits.
    pub fn new(text: &str) -> Result<Self, ItemError> {
        if text.is_empty() {
            return Err(ItemError::EmptyKey);
        }
        check("key", text, MAX_KEY, MAX_KEY_BYTES)?;
        Ok(Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// An item's value. The guest keeps numbers as decimal text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(ValueText),
    /// A number of 32 bits.
    U32(u32),
    /// A number of 64 bits.
    U64(u64),
}

/// Text that fits into a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueText(String);

impl Value {
    /// Checks that the text fits.
    pub fn text(text: &str) -> Result<Self, ItemError> {
        check("value", text, MAX_VALUE, MAX_VALUE_BYTES)?;
        Ok(Self::Text(ValueText(text.into())))
    }
}

impl fmt::Display for Value {
    /// What the guest keeps.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.pad(&text.0),
            Self::U32(number) => number.fmt(f),
            Self::U64(number) => number.fmt(f),
        }
    }
}

impl ValueText {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An item as the guest tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
}
