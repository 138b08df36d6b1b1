// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest-facing interrupt controller of the bus (protocol 1.7 and 3.7).
//!
//! The guest sends with two hypercalls, which [`decode`] checks. The host sends
//! by writing into two pages that each virtual processor names in its MSRs: a
//! message page with one slot per SINT, and an event-flags page with 2048 bits
//! per SINT.
//!
//! One mechanism ([`VpSynic`]) writes these pages, queues what does not fit and
//! holds back what the guest is not ready for. It is driven in two ways:
//!
//! | Type | MSRs live in | Interrupt |
//! |---|---|---|
//! | [`SoftSynic`] | this crate: feed it MSR accesses | a vector, to be sent as an MSI |
//! | [`ExternalSynic`] | the hypervisor, which reports SCONTROL, SIEFP, SIMP | "raise SINT n of VP m" |
//!
//! ```text
//!             post_message          slot free: write it ──► raise SINT
//!   host ──►  ──────────────►  VpSynic                        │ guest reads, frees the slot,
//!             signal_event          slot busy: queue, ◄───────┘ writes EOM if "pending" is set
//!                                   set "pending"
//! ```
//!
//! [`SyntheticTimers`] stand beside it, for hosts whose hypervisor has none.
//!
//! Nothing polls: a slot that was busy is looked at again when the guest writes
//! EOM, which it does because the pending flag told it to.

mod external;
mod flags;
mod hypercall;
mod slot;
mod soft;
mod status;
mod timer;
mod vp;

pub use external::{ExternalSynic, RaiseSint};
pub use hypercall::{HV_POST_MESSAGE, HV_SIGNAL_EVENT, Hypercall, VMBUS_MESSAGE_TYPE, decode};
pub use soft::{MsrFault, SoftSynic, SynicAction, msr};
pub use status::HvStatus;
pub use timer::{SyntheticTimers, timer_msr};
pub use vp::{MAX_QUEUED_MESSAGES, SynicError, SynicMessage, SynicRegs, VpSynic};
