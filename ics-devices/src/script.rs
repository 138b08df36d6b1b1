// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! For tests: a service without a bus, a ring that remembers what was sent, and
//! a guest that the test plays packet by packet on a virtual clock.

use std::collections::VecDeque;
use std::time::Duration;

use vmbus::host::SendError;
use vmbus::ring::PacketMeta;
use vmbus::wire::PacketType;

use crate::device::Ic;
use crate::link::Port;
use crate::protocol::Protocol;
use crate::status::ServiceState;
use crate::wire::IcVersion;

pub(crate) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(crate) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What the guest sees of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) meta: PacketMeta,
    pub(crate) payload: Vec<u8>,
}

/// The ring to the guest.
#[derive(Default)]
pub(crate) struct Ring {
    packets: VecDeque<Sent>,
    /// Why nothing can be sent.
    pub(crate) refuses: Option<SendError>,
}

impl Port for Ring {
    fn send(&mut self, meta: PacketMeta, parts: &[&[u8]]) -> Result<(), SendError> {
        if let Some(error) = self.refuses {
            return Err(error);
        }
        let mut payload = parts.concat();
        payload.resize(payload.len().next_multiple_of(8), 0);
        self.packets.push_back(Sent { meta, payload });
        Ok(())
    }

    fn is_read(&mut self) -> bool {
        self.packets.is_empty()
    }
}

pub(crate) struct Script<P> {
    pub(crate) device: Ic<P>,
    pub(crate) ring: Ring,
    pub(crate) now: Duration,
}

impl<P: Protocol> Script<P> {
    pub(crate) fn new(device: Ic<P>) -> Self {
        Self {
            device,
            ring: Ring::default(),
            now: Duration::ZERO,
        }
    }

    /// With its channel open and the versions agreed on.
    pub(crate) fn ready(device: Ic<P>, version: (u16, u16)) -> Self {
        let mut script = Self::new(device);
        script.open();
        script.negotiate(version);
        assert_eq!(script.device.state(script.now), ServiceState::Ready);
        script
    }

    pub(crate) fn open(&mut self) {
        self.ring.packets.clear();
        let _ = self.device.handle_opened(self.now, &mut self.ring);
    }

    pub(crate) fn close(&mut self) {
        self.ring.packets.clear();
        self.device.handle_closed(self.now);
    }

    /// Answers the negotiation with framework 3.0 and this version.
    pub(crate) fn negotiate(&mut self, version: (u16, u16)) {
        let request = self.take();
        self.send(&negotiated(request, (3, 0), version));
    }

    /// The guest reads a packet that must be there.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        self.try_take().expect("a packet").payload
    }

    pub(crate) fn try_take(&mut self) -> Option<Sent> {
        self.ring.packets.pop_front()
    }

    /// Packets that the guest has not read.
    pub(crate) fn unread(&self) -> usize {
        self.ring.packets.len()
    }

    /// The guest sends a packet.
    pub(crate) fn send(&mut self, payload: &[u8]) {
        self.send_as(PacketType::IN_BAND, payload);
    }

    pub(crate) fn send_as(&mut self, packet_type: PacketType, payload: &[u8]) {
        let _ = self
            .device
            .handle_packet(self.now, &mut self.ring, packet_type, payload);
    }

    /// The host pokes the device.
    pub(crate) fn poke(&mut self) {
        let _ = self.device.handle_poll(self.now, &mut self.ring);
        // Otherwise the host would never rest.
        let deadline = self.device.next_deadline();
        assert!(deadline.is_none_or(|deadline| deadline > self.now));
    }

    /// Lets time pass; whatever is due in between happens at its time.
    pub(crate) fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some(due) = self.device.next_deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.poke();
        }
        self.now = end;
    }

    /// Lets time pass while the host itself stands still.
    pub(crate) fn jump(&mut self, by: Duration) {
        self.now += by;
        if self
            .device
            .next_deadline()
            .is_some_and(|due| due <= self.now)
        {
            self.poke();
        }
    }

    pub(crate) fn pause(&mut self) {
        self.device.pause(self.now);
        self.poke();
    }

    pub(crate) fn resume(&mut self) {
        self.device.resume(self.now);
        self.poke();
    }

    pub(crate) fn state(&self) -> ServiceState {
        self.device.state(self.now)
    }

    pub(crate) fn detail(&self) -> String {
        self.device.status(self.now).detail
    }
}

/// What Linux answers to a negotiation, if it chooses these.
pub(crate) fn negotiated(
    mut payload: Vec<u8>,
    framework: (u16, u16),
    version: (u16, u16),
) -> Vec<u8> {
    assert_eq!(payload[12..14], [0, 0], "a negotiation");
    payload[18..20].copy_from_slice(&[16, 0]);
    payload[25] = 5;
    payload[28..32].copy_from_slice(&[1, 0, 1, 0]);
    let numbers = [framework.0, framework.1, version.0, version.1];
    let bytes: Vec<u8> = numbers.into_iter().flat_map(u16::to_le_bytes).collect();
    payload[36..44].copy_from_slice(&bytes);
    payload
}

/// A request sent back as an answer, with a status.
pub(crate) fn answer(mut payload: Vec<u8>, status: u32) -> Vec<u8> {
    payload[20..24].copy_from_slice(&status.to_le_bytes());
    payload[25] = 5;
    payload
}

/// Versions that a negotiation lists: frameworks, services.
pub(crate) fn listed(payload: &[u8]) -> (Vec<IcVersion>, Vec<IcVersion>) {
    let number = |at: usize| u16::from_le_bytes([payload[at], payload[at + 1]]);
    let (frameworks, services) = (usize::from(number(28)), usize::from(number(30)));
    let version = |index| IcVersion::new(number(36 + 4 * index), number(38 + 4 * index));
    let mut all: Vec<IcVersion> = (0..frameworks + services).map(version).collect();
    let services = all.split_off(frameworks);
    (all, services)
}
