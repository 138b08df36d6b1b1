// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hyper-V sockets: byte streams between guest and host, one channel each
//! (protocol 7).
//!
//! ```text
//!  guest's connect ─► ConnectRequest ─► the host has a peer? ─► offer Socket::accepting
//!                                                     └─ no ──► refuse_connect
//!  host's connect ──────────────────────────────────────────► offer Socket::connecting
//!
//!   offered ── guest opens ──► open ── both directions ended, or abort ──► rescinded
//!      └────── nobody takes it: OPEN_LIMIT ──────────────────────────────────►┘
//! ```
//!
//! A [`Socket`] is a [`Device`](crate::host::Device). It moves bytes between its
//! rings and a [`Stream`], the host's end, which the embedder provides: a Unix
//! socket, a pipe, something in memory. Nothing is buffered in between, so a reader
//! that stops stops its writer, and only that one.
//!
//! # Ends
//! * The guest ends its direction (FIN): [`Stream::close_write`].
//! * The stream ends ([`Stream::read`] gives 0): the guest gets FIN, and can go on
//!   sending.
//! * The host's end is gone altogether: the guest gets FIN, and has [`PARTING`] to
//!   end its direction too. Taken back before that, Linux keeps the channel for
//!   another 8 s: so it does if it still sends, which is dropped and ends all.
//! * Both have ended: the channel is taken back. Linux waits for that in a kernel
//!   thread, so it always comes: a guest that has sent FIN and hears nothing for
//!   [`LINGER`] loses its channel, even if there is data before the FIN that the
//!   stream does not take.
//!
//! # Addresses
//! ```
//! use vmbus::hvsock::{port_of, service_of_port};
//! let service = service_of_port(5000);
//! assert_eq!(service.to_string(), "00001388-facb-11e6-bd58-64006a7986d3");
//! assert_eq!(port_of(&service), Some(5000));
//! ```

mod socket;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::wire::Guid;
pub use socket::{Socket, Stream, StreamError};

/// How long a guest may take to open the channel of a connection. Linux gives
/// up its own attempts after 2 s.
pub const OPEN_LIMIT: Duration = Duration::from_secs(4);

/// How long a connection whose guest has ended its direction may be silent. A
/// guest's thread that waits longer than 120 s for the end is reported as hung.
pub const LINGER: Duration = Duration::from_secs(90);

/// How long a guest may take to end its direction when there is nobody any more
/// who would hear it.
pub const PARTING: Duration = Duration::from_secs(10);

/// How often a connection whose stream takes nothing is looked at: the guest may
/// have ended its direction, which it does not signal while its ring is not empty.
const LOOK: Duration = Duration::from_secs(20);

/// The most data that Linux accepts in one packet.
pub const MAX_DATA: usize = 16 * 1024;

/// Services with this GUID, but for its first 32 bits, are vsock ports.
const PORT_TEMPLATE: u128 = 0x0000_0000_facb_11e6_bd58_6400_6a79_86d3;
const PORT_SHIFT: u32 = 96;

/// The service that is a vsock port.
pub const fn service_of_port(port: u32) -> Guid {
    Guid::from_u128(PORT_TEMPLATE | (port as u128) << PORT_SHIFT)
}

/// The vsock port that a service is, if it is one.
pub fn port_of(service: &Guid) -> Option<u32> {
    let digits = service.to_u128();
    let port = u32::try_from(digits >> PORT_SHIFT).ok()?;
    (service_of_port(port) == *service).then_some(port)
}
