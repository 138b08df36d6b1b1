// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an idle guest costs its host: the bus thread sleeps until the host's next
//! deadline or the guest's next signal, so these are its wake-ups, counted over an
//! hour of the virtual clock with all services on.

// A guest that stumbles should fail its test loudly.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::time::Duration;

use ics_devices::{Fcopy, Heartbeat, Kvp, Service, Shutdown, TimeSample, TimeSync, Vss};
use vmbus::host::Device;
use vmbus::mock::{GuestChannel, MockGuest};
use vmbus::wire::{ProtocolVersion, Relid};

const HOUR: Duration = Duration::from_secs(3600);

/// A guest with all drivers and daemons, which answers at once.
struct Linux {
    guest: MockGuest,
    channels: BTreeMap<Relid, (Service, GuestChannel)>,
    /// Requests, by service.
    asked: BTreeMap<Service, u64>,
    /// Deadlines that the host has woken up for.
    deadlines: u64,
}

impl Linux {
    fn boot() -> Self {
        let mut guest = MockGuest::new(1);
        let clock = || TimeSample::from_unix(Duration::from_secs(1_700_000_000), 42);
        let devices: [Box<dyn Device>; 6] = [
            Box::new(Heartbeat::new()),
            Box::new(Shutdown::new()),
            Box::new(TimeSync::new(Box::new(clock))),
            Box::new(Kvp::new([])),
            Box::new(Vss::new()),
            Box::new(Fcopy::new()),
        ];
        for device in devices {
            guest.offer(device);
        }
        assert!(guest.connect(ProtocolVersion::V5_3));
        let mut channels = BTreeMap::new();
        for offer in guest.request_offers() {
            let mut all = Service::ALL.into_iter();
            let service = all.find(|service| service.interface_type() == offer.interface_type);
            let channel = guest.open(offer.relid, 8).unwrap();
            channels.insert(offer.relid, (service.unwrap(), channel));
        }
        let mut linux = Self {
            guest,
            channels,
            asked: BTreeMap::new(),
            deadlines: 0,
        };
        linux.serve();
        linux
    }

    /// Somebody watches what the services are like, or nobody does.
    fn watch(&mut self, watched: bool) {
        macro_rules! each {
            ($($device:ty),*) => {$(
                self.guest.with_host(|host, now| {
                    let relid = host.find::<$device>().unwrap();
                    host.device_mut::<$device>(relid).unwrap().watch(watched);
                    host.poke(now, relid);
                });
            )*};
        }
        each!(Kvp, Vss, Fcopy);
    }

    fn serve(&mut self) {
        loop {
            let events = self.guest.take_events();
            if events.is_empty() {
                self.guest.take_log();
                return;
            }
            for (_, relid) in events {
                let (service, channel) = self.channels.get_mut(&relid).unwrap();
                while let Some(packet) = self.guest.receive(channel) {
                    *self.asked.entry(*service).or_default() += 1;
                    let answer = answer(*service, packet.payload);
                    let id = packet.transaction_id;
                    assert!(self.guest.send(channel, id, &answer));
                }
            }
        }
    }

    fn idle(&mut self, time: Duration) {
        let end = self.guest.now() + time;
        let due = |linux: &Self| linux.guest.host().next_deadline().filter(|at| *at <= end);
        while let Some(at) = due(self) {
            self.deadlines += 1;
            self.guest.advance(at.saturating_sub(self.guest.now()));
            self.serve();
        }
        self.guest.advance(end.saturating_sub(self.guest.now()));
    }
}

/// What driver and daemon say; of several versions the newest is taken.
fn answer(service: Service, mut payload: Vec<u8>) -> Vec<u8> {
    const NO_MORE_ITEMS: u32 = 0x8007_0103;
    const EXISTS: u32 = 0x8007_0050;
    payload[25] = 5;
    if payload[12] == 0 {
        let counts = [28, 30].map(|at: usize| usize::from(payload[at]));
        let version = |index: usize| -> [u8; 4] {
            let at = 36 + 4 * (index - 1);
            payload[at..at + 4].try_into().unwrap()
        };
        let chosen = [version(counts[0]), version(counts[0] + counts[1])].concat();
        payload[18..20].copy_from_slice(&[16, 0]);
        payload[28..32].copy_from_slice(&[1, 0, 1, 0]);
        payload[36..44].copy_from_slice(&chosen);
        return payload;
    }
    match service {
        Service::Heartbeat => payload[28] = payload[28].wrapping_add(1),
        Service::Kvp => payload[20..24].copy_from_slice(&NO_MORE_ITEMS.to_le_bytes()),
        Service::Fcopy => payload[20..24].copy_from_slice(&EXISTS.to_le_bytes()),
        _ => {}
    }
    payload
}

/// Requests in an hour of nothing, deadlines, and the guest's signals; as many
/// interrupts.
fn hour(linux: &mut Linux) -> (BTreeMap<Service, u64>, u64, u64) {
    // Whatever follows the start.
    linux.idle(Duration::from_secs(60));
    linux.asked.clear();
    linux.deadlines = 0;
    let before = linux.guest.counts();
    linux.idle(HOUR);
    let after = linux.guest.counts();
    let signals = after.signals - before.signals;
    assert_eq!(after.interrupts - before.interrupts, signals);
    (linux.asked.clone(), linux.deadlines, signals)
}

/// Each beat and sample wakes the host up twice: to send it, often both at once,
/// and with its answer.
#[test]
fn an_idle_guest_wakes_its_host_for_beats_and_samples_only() {
    let mut linux = Linux::boot();
    linux.watch(false);
    let expected = [(Service::Heartbeat, 1800), (Service::TimeSync, 720)];
    assert_eq!(hour(&mut linux), (expected.into(), 2160, 2520));
}

#[test]
fn who_watches_adds_a_look_for_the_daemon_every_five_seconds() {
    let mut linux = Linux::boot();
    let expected = [
        (Service::Heartbeat, 1800),
        (Service::TimeSync, 720),
        (Service::Kvp, 720),
    ];
    assert_eq!(hour(&mut linux), (expected.into(), 2160, 3240));
}
