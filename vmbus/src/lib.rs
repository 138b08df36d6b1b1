// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A user-space VMBus host as pure state machines: put it into a VMM, and
//! unmodified Linux guests find the bus that Hyper-V has.
//!
//! Nothing here owns a thread, a lock, a file descriptor or a clock, and nothing
//! knows KVM. Bytes, register values and the time go in; actions come out.
//!
//! ```text
//!            guest                                  your VMM
//!   ┌───────────────────────┐
//!   │ WRMSR 0x4000008x, 9x ─┼──► exit ──► SoftSynic::write_msr ─┐
//!   │ HvPostMessage        ─┼──► exit ──► synic::decode ─► Host::handle_message
//!   │ HvSignalEvent        ─┼──► exit ──► synic::decode ─► Host::handle_signal
//!   │ interrupt            ◄┼─── MSI ◄─── SynicAction::Interrupt ◄── SoftSynic
//!   │ messages, events     ◄┼─── memory ◄─ SoftSynic::post_message ◄─ Action::PostMessage
//!   │ rings                ◄┼──► memory ◄─► Host ◄─► your Device     ◄── Host::poll_action
//!   └───────────────────────┘
//! ```
//!
//! # Embedding it
//! 1. Have guest memory as a [`memory::GuestMemory`] in an [`Arc`](std::sync::Arc).
//! 2. Show the guest Hyper-V's CPUID leaves, and a hypercall page that traps.
//!    That, the other MSRs, and the ACPI device that makes Linux load its driver
//!    are the VMM's own matter.
//! 3. Make a [`host::Host`] and offer it devices; each is a [`host::Device`].
//! 4. If the hypervisor emulates the SynIC, feed [`synic::ExternalSynic`] with
//!    what it reports; if not, [`synic::SoftSynic`] is the whole of it.
//! 5. On each exit call the method in the picture, then drain
//!    [`Host::poll_action`](host::Host::poll_action) and the SynIC's `poll_action`.
//! 6. Call [`Host::handle_timeout`](host::Host::handle_timeout) when
//!    [`Host::next_deadline`](host::Host::next_deadline) comes.
//!
//! `examples/embed.rs` does all of it in less than 150 lines, without KVM.
//!
//! # Modules, bottom up
//! | Module | Is | Knows |
//! |---|---|---|
//! | [`wire`] | byte formats | no state |
//! | [`memory`] | guest memory, whoever maps it | nothing |
//! | [`hyperv`] | CPUID, the partition's MSRs, crash reports, the reference clock | guest memory |
//! | [`synic`] | hypercalls, message slots, event flags, SINTs | guest memory |
//! | [`ring`] | one ring each way over guest pages | packets' headers |
//! | [`gpadl`] | guest page lists | not what they are for |
//! | [`bus`] | the control plane | who is connected, what is offered and open |
//! | [`host`] | bus, rings and devices put together | nothing of any device |
//! | [`hvsock`] | byte streams, one channel each | not whose streams |
//! | `mock` | a guest for tests (feature `test-utils`) | the guest's side |
//!
//! # Hostile guests
//! Everything a guest writes is copied once, checked, and used from the copy; what
//! a socket carries is not looked at, and the kernel takes it out of the ring. A
//! guest can break its own channels and nothing else; it gets an answer where it
//! waits for one, and is counted in [`bus::Violations`]. What it can make the host
//! keep is bounded by named limits:
//!
//! | Kept | Limit | Bytes at most |
//! |---|---|---|
//! | messages that wait for a processor | [`synic::MAX_QUEUED_MESSAGES`] | 1 MiB, for the one processor that a session names |
//! | pages in lists | [`gpadl::MAX_PAGES`] | 1.5 MiB |
//! | pages in open rings | the same | 6 MiB |
//! | page lists | [`gpadl::MAX_GPADLS`], [`gpadl::MAX_UNFINISHED_GPADLS`] | 0.5 MiB |
//! | channels | 2047 | 2 MiB, if the host offers so many |
//! | actions that wait for the host | [`bus::MAX_PENDING_ACTIONS`], and a few per channel | 2 MiB |
//! | a packet being looked at | its length field | 0.5 MiB |
//!
//! That is 16 MiB for the worst guest, which a test measures, and about 100 KiB
//! for an honest one.
//!
//! # Unsafe code
//! There is one module with unsafe code, [`memory`], which turns lists of guest
//! pages into host addresses. Its documentation argues for every block.

// Names of the protocol, such as INITIATE_CONTACT, read better without ticks.
#![allow(clippy::doc_markdown)]

pub mod bus;
pub mod gpadl;
pub mod host;
pub mod hvsock;
pub mod hyperv;
pub mod memory;
#[cfg(any(test, feature = "test-utils"))]
pub mod mock;
pub mod ring;
pub mod synic;
pub mod wire;
