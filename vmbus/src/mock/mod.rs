// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A mock guest: the guest's side of the bus over real guest memory, on a
//! virtual clock, deterministic. For tests, benchmarks and fuzzing.
//!
//! ```text
//!   MockGuest ── MSRs, hypercalls ──► SoftSynic, decode ──► Host ──► devices
//!       ▲                                                    │
//!       └── message slots, event flags, rings ◄──────────────┘
//! ```
//!
//! Everything goes the way that it goes in a VM: messages are posted from an
//! input page in guest memory, and read out of the message slot. The guest's end
//! of the rings ([`GuestRing`]) is written after what Linux does and shares no
//! code with the host's.
//!
//! # Example
//! ```
//! use vmbus::host::EchoDevice;
//! use vmbus::mock::MockGuest;
//! use vmbus::wire::ProtocolVersion;
//!
//! let mut guest = MockGuest::new(1);
//! let relid = guest.offer(Box::new(EchoDevice::default()));
//! assert!(guest.connect(ProtocolVersion::V5_3));
//! assert_eq!(guest.request_offers().len(), 1);
//!
//! let mut channel = guest.open(relid, 4).unwrap();
//! assert!(guest.send(&mut channel, 1, b"hello!!!"));
//! let packet = guest.receive(&mut channel).unwrap();
//! assert_eq!(packet.payload, b"hello!!!");
//! ```

#![allow(clippy::missing_panics_doc)]
// A mock guest that stumbles should fail its test loudly.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod quick;
mod ring;
mod session;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::bus::{Action, BusConfig, EVENT_CONNECTION_BASE};
use crate::host::{Device, Host, StreamingDevice};
use crate::synic::{
    HV_POST_MESSAGE, HV_SIGNAL_EVENT, HvStatus, Hypercall, SoftSynic, SynicAction, SynicError,
    VMBUS_MESSAGE_TYPE, decode, msr,
};
use crate::wire::{
    GpadlId, GuestMessage, HostMessage, ProtocolVersion, Relid, TlConnectRequest, VpIndex,
};
pub use quick::QuickChannel;
pub use ring::{GuestPacket, GuestRing};
pub use session::gpadl_messages;

/// Bytes of guest memory.
pub const MEMORY_SIZE: usize = 128 << 20;
const PAGE: u64 = 4096;
/// Where a hypercall's input is put.
const INPUT_PAGE: u64 = 1;
/// Message and event-flags pages of the processors, two each.
const SYNIC_PAGES: u64 = 16;
/// Pages from here on are handed out.
const FIRST_FREE_PAGE: u64 = 1024;
/// What Linux programs into SINT 2.
const CALLBACK_VECTOR: u64 = 0xf3;
/// Linux's first page list has this number.
const FIRST_GPADL: u32 = 0xe1e10;

/// An open channel at the guest's end.
#[derive(Debug)]
pub struct GuestChannel {
    /// Its number.
    pub relid: Relid,
    /// The page list with the rings.
    pub gpadl: GpadlId,
    /// To the host.
    pub outgoing: GuestRing,
    /// From the host.
    pub incoming: GuestRing,
}

/// What the guest counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Interrupts.
    pub interrupts: u64,
    /// Events seen in the event-flags page.
    pub events: u64,
    /// HvSignalEvent calls.
    pub signals: u64,
    /// Writes to EOM.
    pub eoms: u64,
}

/// A guest and the host that it runs on.
pub struct MockGuest {
    memory: Arc<GuestMemoryMmap>,
    synic: SoftSynic,
    host: Host,
    now: Duration,
    vps: u32,
    connection_id: u32,
    next_page: u64,
    next_gpadl: u32,
    inbox: VecDeque<HostMessage>,
    events: BTreeSet<(VpIndex, Relid)>,
    connects: Vec<TlConnectRequest>,
    log: Vec<Action>,
    counts: Counts,
    /// Messages are left in their slot.
    deaf: bool,
}

impl MockGuest {
    /// A guest with `vps` processors whose SynICs are on.
    pub fn new(vps: u32) -> Self {
        Self::with_config(BusConfig {
            vps,
            ..BusConfig::default()
        })
    }

    /// The same with a configuration for the bus.
    pub fn with_config(config: BusConfig) -> Self {
        let ranges = [(GuestAddress(0), MEMORY_SIZE)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).expect("guest memory");
        Self::in_memory(Arc::new(memory), config)
    }

    /// The same in memory that is there already, all zeroes; see
    /// [`into_memory`](Self::into_memory).
    pub fn in_memory(memory: Arc<GuestMemoryMmap>, config: BusConfig) -> Self {
        let mut guest = Self {
            host: Host::new(memory.clone(), config),
            synic: SoftSynic::new(config.vps),
            memory,
            now: Duration::ZERO,
            vps: config.vps,
            connection_id: 1,
            next_page: FIRST_FREE_PAGE,
            next_gpadl: FIRST_GPADL,
            inbox: VecDeque::new(),
            events: BTreeSet::new(),
            connects: Vec::new(),
            log: Vec::new(),
            counts: Counts::default(),
            deaf: false,
        };
        guest.enable_synic();
        guest
    }

    /// Programs the SynIC of every processor, as Linux does.
    pub fn enable_synic(&mut self) {
        for vp in 0..self.vps {
            let page = SYNIC_PAGES + 2 * u64::from(vp);
            for (index, value) in [
                (msr::SIMP, (page * PAGE) | 1),
                (msr::SIEFP, ((page + 1) * PAGE) | 1),
                (msr::SINT0 + 2, CALLBACK_VECTOR),
                (msr::SCONTROL, 1),
            ] {
                self.write_msr(VpIndex(vp), index, value);
            }
        }
    }

    /// The guest writes an MSR of the SynIC.
    pub fn write_msr(&mut self, vp: VpIndex, index: u32, value: u64) {
        self.synic
            .write_msr(&*self.memory, vp, index, value)
            .expect("an MSR of the SynIC");
        self.run();
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// The guest's memory for another guest: what this one and the host have
    /// written in the way that it is meant is zeroes again. What was written to
    /// pages that nobody [allocated](Self::alloc) stays.
    pub fn into_memory(self) -> Arc<GuestMemoryMmap> {
        let synic = SYNIC_PAGES..SYNIC_PAGES + 2 * u64::from(self.vps);
        let used = [
            INPUT_PAGE..INPUT_PAGE + 1,
            synic,
            FIRST_FREE_PAGE..self.next_page,
        ];
        for page in used.into_iter().flatten() {
            self.write(page * PAGE, &[0; 4096]);
        }
        self.memory
    }

    /// The host that the guest runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Something happens at the host; then everything runs until it rests.
    pub fn with_host<T>(&mut self, act: impl FnOnce(&mut Host, Duration) -> T) -> T {
        let result = act(&mut self.host, self.now);
        self.run();
        result
    }

    /// The host offers a device.
    pub fn offer(&mut self, device: Box<dyn Device>) -> Relid {
        self.with_host(|host, now| host.offer(now, device))
            .expect("an offer")
    }

    /// The host offers a device of the second level.
    pub fn offer_streaming(&mut self, device: Box<dyn StreamingDevice>) -> Relid {
        self.with_host(|host, now| host.offer_streaming(now, device))
            .expect("an offer")
    }

    /// The time on the virtual clock.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Lets time pass; whatever is due in between happens at its time.
    pub fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some(due) = self.host.next_deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.host.handle_timeout(self.now);
            self.run();
        }
        self.now = end;
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Every action of the host since the last call, in order.
    pub fn take_log(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.log)
    }

    /// Connection requests that reached the host since the last call.
    pub fn take_connects(&mut self) -> Vec<TlConnectRequest> {
        std::mem::take(&mut self.connects)
    }

    /// From now on the guest does not read its messages, or reads them again.
    pub fn set_deaf(&mut self, deaf: bool) {
        self.deaf = deaf;
        if !deaf {
            for vp in 0..self.vps {
                self.interrupted(VpIndex(vp));
            }
            self.run();
        }
    }

    /// Posts a message on the session's connection.
    pub fn post(&mut self, message: &GuestMessage) -> HvStatus {
        let connection = match message {
            GuestMessage::InitiateContact(contact) if contact.version >= ProtocolVersion::V5_0 => 4,
            GuestMessage::InitiateContact(_) => 1,
            _ => self.connection_id,
        };
        self.post_bytes(connection, message.emit().as_slice())
    }

    /// Posts bytes on a connection, by a hypercall.
    pub fn post_bytes(&mut self, connection: u32, bytes: &[u8]) -> HvStatus {
        let size = u32::try_from(bytes.len()).expect("a small message");
        let mut block: Vec<u8> = [connection, 0, VMBUS_MESSAGE_TYPE, size]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect();
        block.extend(bytes);
        block.resize(256.max(block.len()), 0);
        let input = INPUT_PAGE * PAGE;
        self.write(input, &block);
        self.hypercall(HV_POST_MESSAGE.into(), input)
    }

    /// Signals a channel, by a hypercall.
    pub fn signal(&mut self, relid: Relid) -> HvStatus {
        self.counts.signals += 1;
        let connection = EVENT_CONNECTION_BASE + relid.0;
        self.hypercall(u64::from(HV_SIGNAL_EVENT) | 1 << 16, connection.into())
    }

    /// Makes a hypercall.
    pub fn hypercall(&mut self, control: u64, input: u64) -> HvStatus {
        let status = match decode(&*self.memory, control, input, 0) {
            Ok(Hypercall::PostMessage {
                connection_id,
                message_type: VMBUS_MESSAGE_TYPE,
                payload,
            }) => self
                .host
                .handle_message(self.now, connection_id, payload.as_slice()),
            Ok(Hypercall::PostMessage { .. }) => HvStatus::INVALID_PARAMETER,
            Ok(Hypercall::SignalEvent {
                connection_id,
                flag,
            }) => self.host.handle_signal(self.now, connection_id, flag),
            Err(status) => status,
        };
        self.run();
        status
    }

    /// The next message that came.
    pub fn recv(&mut self) -> Option<HostMessage> {
        self.inbox.pop_front()
    }

    /// The events that came since the last call.
    pub fn take_events(&mut self) -> BTreeSet<(VpIndex, Relid)> {
        std::mem::take(&mut self.events)
    }

    /// Lets everything run until it rests.
    pub fn run(&mut self) {
        loop {
            self.perform();
            if self.host.next_deadline() != Some(Duration::ZERO) {
                return;
            }
            self.host.handle_timeout(self.now);
        }
    }

    fn perform(&mut self) {
        while let Some(action) = self.host.poll_action() {
            self.log.push(action);
            match action {
                Action::DiscardMessages => self.synic.discard_messages(),
                Action::PostMessage { vp, sint, message } => {
                    let payload = message.emit();
                    let kind = VMBUS_MESSAGE_TYPE;
                    let posted = self
                        .synic
                        .post_message(&*self.memory, vp, sint, kind, payload);
                    if posted == Err(SynicError::QueueFull) {
                        self.log.pop();
                        self.host.defer(action);
                        return;
                    }
                    posted.expect("a processor that exists");
                }
                Action::SignalEvent { vp, sint, flag } => self
                    .synic
                    .signal_event(&*self.memory, vp, sint, flag)
                    .expect("a processor that exists"),
                Action::ConnectRequest(request) => self.connects.push(request),
                Action::ChannelOpened { .. }
                | Action::ChannelClosed { .. }
                | Action::ChannelReleased { .. }
                | Action::SessionStarted { .. }
                | Action::SessionEnded => {}
            }
            self.deliver();
        }
        self.deliver();
    }

    fn deliver(&mut self) {
        while let Some(SynicAction::Interrupt { vp, .. }) = self.synic.poll_action() {
            self.counts.interrupts += 1;
            self.interrupted(vp);
        }
    }

    /// What vmbus_isr and the tasklet do.
    fn interrupted(&mut self, vp: VpIndex) {
        let pages = SYNIC_PAGES + 2 * u64::from(vp.0);
        self.read_events(vp, (pages + 1) * PAGE + 0x200);
        let slot = pages * PAGE + 0x200;
        while !self.deaf {
            let mut head = [0; 16];
            self.read(slot, &mut head);
            if head[..4] == [0; 4] {
                return;
            }
            assert_eq!(head[..4], VMBUS_MESSAGE_TYPE.to_le_bytes());
            let mut payload = vec![0; head[4].into()];
            self.read(slot + 16, &mut payload);
            let message = HostMessage::parse(&payload).expect("a message of the host");
            self.inbox.push_back(message);
            self.write(slot, &[0; 4]);
            self.read(slot, &mut head);
            if head[5] & 1 == 0 {
                return;
            }
            self.counts.eoms += 1;
            self.synic
                .write_msr(&*self.memory, vp, msr::EOM, 0)
                .expect("EOM");
        }
    }

    fn read_events(&mut self, vp: VpIndex, flags: u64) {
        let mut bytes = [0; 256];
        self.read(flags, &mut bytes);
        if bytes == [0; 256] {
            return;
        }
        self.write(flags, &[0; 256]);
        // By words: fuzz targets spend their time here.
        for (index, word) in (0..).zip(bytes.as_chunks().0) {
            let mut word = u64::from_le_bytes(*word);
            while word != 0 {
                self.counts.events += 1;
                self.events
                    .insert((vp, Relid(index * 64 + word.trailing_zeros())));
                word &= word - 1;
            }
        }
    }

    /// The guest reads its memory.
    pub fn read(&self, at: u64, to: &mut [u8]) {
        self.memory
            .read_slice(to, GuestAddress(at))
            .expect("guest memory");
    }

    /// The guest writes its memory.
    pub fn write(&self, at: u64, from: &[u8]) {
        self.memory
            .write_slice(from, GuestAddress(at))
            .expect("guest memory");
    }
}
