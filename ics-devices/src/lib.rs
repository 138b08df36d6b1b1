// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hyper-V's integration services, host side: pure state machines on top of
//! [`vmbus`], without threads, files, or a clock.
//!
//! ```text
//!   Heartbeat, Shutdown, TimeSync, Kvp, Vss, Fcopy = Ic<…Protocol>
//!                                    │
//!      Protocol: bodies, what is due ┤
//!      Link: negotiation, ids, one request at a time, deadlines
//!                                    │ vmbus::host::Device
//!                                  Host ── rings ── guest
//! ```
//!
//! | Module | Has |
//! |---|---|
//! | [`wire`] | the messages' common header, negotiation, status codes |
//! | [`link`] | one channel's state, the same for all services |
//! | [`protocol`] | what a service adds to it |
//! | [`slot`] | a place for one request of the host's user |
//! | [`look`] | when to see whether the guest's daemon is there |
//! | [`heartbeat`], [`shutdown`], [`timesync`], [`kvp`], [`vss`], [`fcopy`] | one service each |
//!
//! # A hostile guest
//! What the guest sends is copied once by the bus, and parsed with every length
//! checked. An answer must have the id and the type of the one outstanding
//! request; anything else is counted ([`link::Counts::ignored`]) and ignored. A
//! negotiation answered with nonsense leads to the state `error`, in which
//! everything is ignored until the guest opens the channel again. Nothing that
//! the guest does makes memory grow.
//!
//! # Example
//! ```
//! use std::time::Duration;
//! use ics_devices::{Health, Heartbeat, ServiceState};
//! use vmbus::mock::MockGuest;
//! use vmbus::wire::ProtocolVersion;
//!
//! let mut guest = MockGuest::new(1);
//! let relid = guest.offer(Box::new(Heartbeat::new()));
//! guest.connect(ProtocolVersion::V5_3);
//! guest.request_offers();
//! let mut channel = guest.open(relid, 4).unwrap();
//!
//! // What Linux does: choose 3.0 of what is listed …
//! let mut answer = guest.receive(&mut channel).unwrap().payload;
//! answer[18] = 16;
//! answer[25] = 5;
//! answer[28..32].copy_from_slice(&[1, 0, 1, 0]);
//! answer[36..44].copy_from_slice(&[3, 0, 0, 0, 3, 0, 0, 0]);
//! guest.send(&mut channel, 0, &answer);
//!
//! // … and add one to the sequence number of a beat.
//! let mut answer = guest.receive(&mut channel).unwrap().payload;
//! answer[25] = 5;
//! answer[28] += 1;
//! guest.advance(Duration::from_secs(1));
//! guest.send(&mut channel, 0, &answer);
//!
//! let heartbeat: &Heartbeat = guest.host().device(relid).unwrap();
//! assert_eq!(heartbeat.health(), Health::Ok);
//! let status = heartbeat.status(Duration::from_secs(2));
//! assert_eq!(status.state, ServiceState::Ready);
//! assert_eq!(status.version.unwrap().to_string(), "3.0");
//! assert_eq!(status.detail, "last beat 1.0 s ago");
//! ```

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod device;
pub mod fcopy;
pub mod heartbeat;
#[cfg(test)]
mod hostile;
pub mod kvp;
pub mod link;
pub mod look;
pub mod protocol;
#[cfg(test)]
mod script;
mod service;
mod set;
pub mod shutdown;
pub mod slot;
mod status;
pub mod timesync;
pub mod vss;
pub mod wire;

pub use device::Ic;
pub use fcopy::{Fcopy, NewFile};
pub use heartbeat::{ApplicationState, Health, Heartbeat};
pub use kvp::{Kvp, KvpAnswer, KvpRequest};
pub use protocol::Protocol;
pub use service::{Service, UnknownService};
pub use set::{ServiceKind, ServiceSet, ServiceSetError};
pub use shutdown::{Accepted, Shutdown, ShutdownAction, ShutdownRequest};
pub use slot::{Outcome, Ticket};
pub use status::{ServiceError, ServiceState, ServiceStatus};
pub use timesync::{HostClock, Synced, TimeSample, TimeSync};
pub use vss::{Filesystems, Vss, VssAnswer, VssRequest};
