// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The head of every control message: its type (protocol 4.1).

use std::fmt;

/// Who sends messages of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the guest to the host.
    GuestToHost,
    /// From the host to the guest.
    HostToGuest,
}

/// What a message is; the first word of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageType(pub u32);

macro_rules! message_types {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $size:literal, $direction:ident;)*) => {
        impl MessageType {
            $($(#[$doc])* pub const $name: Self = Self($number);)*

            /// Every type that the protocol has a number for.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The protocol's name; `None` for a number that has no meaning.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// Who sends it.
            pub const fn direction(self) -> Option<Direction> {
                match self {
                    $(Self::$name => Some(Direction::$direction),)*
                    _ => None,
                }
            }

            /// Its least size in bytes with the 8-byte header; a receiver drops
            /// shorter ones.
            pub const fn min_size(self) -> Option<usize> {
                match self {
                    $(Self::$name => Some($size),)*
                    _ => None,
                }
            }
        }
    };
}

message_types! {
    /// The host offers a channel.
    OFFERCHANNEL = 1, 196, HostToGuest;
    /// The host takes an offer back.
    RESCIND_CHANNELOFFER = 2, 12, HostToGuest;
    /// The guest asks for all offers.
    REQUESTOFFERS = 3, 8, GuestToHost;
    /// These were all.
    ALLOFFERS_DELIVERED = 4, 8, HostToGuest;
    /// The guest opens a channel.
    OPENCHANNEL = 5, 148, GuestToHost;
    /// Whether it is open.
    OPENCHANNEL_RESULT = 6, 20, HostToGuest;
    /// The guest closes a channel. There is no answer.
    CLOSECHANNEL = 7, 12, GuestToHost;
    /// The first part of a page list.
    GPADL_HEADER = 8, 28, GuestToHost;
    /// A further part of a page list.
    GPADL_BODY = 9, 16, GuestToHost;
    /// The page list is complete, or refused.
    GPADL_CREATED = 10, 20, HostToGuest;
    /// The guest wants its pages back.
    GPADL_TEARDOWN = 11, 16, GuestToHost;
    /// The host no longer touches them.
    GPADL_TORNDOWN = 12, 12, HostToGuest;
    /// The guest is done with a rescinded channel.
    RELID_RELEASED = 13, 12, GuestToHost;
    /// A new session begins.
    INITIATE_CONTACT = 14, 40, GuestToHost;
    /// Whether the version will do.
    VERSION_RESPONSE = 15, 16, HostToGuest;
    /// The session ends.
    UNLOAD = 16, 8, GuestToHost;
    /// It has ended.
    UNLOAD_RESPONSE = 17, 8, HostToGuest;
    /// Windows' reserved channels; not supported.
    OPEN_RESERVED_CHANNEL = 18, 8, GuestToHost;
    /// Windows' reserved channels; not supported.
    CLOSE_RESERVED_CHANNEL = 19, 8, GuestToHost;
    /// Windows' reserved channels; not supported.
    CLOSE_RESERVED_RESPONSE = 20, 8, HostToGuest;
    /// The guest connects to a service of the host.
    TL_CONNECT_REQUEST = 21, 40, GuestToHost;
    /// The guest moves a channel to another processor.
    MODIFYCHANNEL = 22, 16, GuestToHost;
    /// Why a connection was refused.
    TL_CONNECT_RESULT = 23, 44, HostToGuest;
    /// The channel was moved.
    MODIFYCHANNEL_RESPONSE = 24, 16, HostToGuest;
    /// Of version 6.0; not supported.
    MODIFY_CONNECTION = 25, 8, GuestToHost;
    /// Of version 6.0; not supported.
    MODIFY_CONNECTION_RESPONSE = 26, 8, HostToGuest;
    /// Of version 6.0; not supported.
    PAUSE = 27, 8, GuestToHost;
    /// Of version 6.0; not supported.
    PAUSE_RESPONSE = 28, 8, HostToGuest;
    /// Of version 6.0; not supported.
    RESUME = 29, 8, GuestToHost;
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "type {}", self.0),
        }
    }
}

impl fmt::Debug for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({self})", self.0)
    }
}

/// Why bytes are not a message. The sender is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// There is not even a header.
    #[error("{0} bytes are no message")]
    NoHeader(usize),
    /// The message is cut short.
    #[error("{message_type} of {size} bytes is too short")]
    TooShort {
        /// What it says it is.
        message_type: MessageType,
        /// How many bytes there are.
        size: usize,
    },
    /// The other side sends messages of this type.
    #[error("{0} in the wrong direction")]
    WrongDirection(MessageType),
    /// A message that this host does not speak, or that does not exist.
    #[error("{0} is not supported")]
    Unsupported(MessageType),
    /// A page list's bytes are not a whole number of page numbers.
    #[error("{0} with a torn page list")]
    TornPageList(MessageType),
}
