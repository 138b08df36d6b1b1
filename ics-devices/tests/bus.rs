// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All three services on a real bus, against a mock guest whose drivers behave
//! as those of Linux do: shutdown reads one packet per signal, the others read
//! until there is nothing left.

// A guest that stumbles should fail its test loudly.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::time::Duration;

use ics_devices::{
    Accepted, Health, Heartbeat, Outcome, Service, ServiceError, ServiceState, Shutdown,
    ShutdownAction, ShutdownRequest, TimeSample, TimeSync,
};
use vmbus::mock::{GuestChannel, MockGuest};
use vmbus::wire::{HostMessage, ProtocolVersion, Relid};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A driver of the guest's.
struct Driver {
    service: Service,
    channel: GuestChannel,
    /// Requests that it served, negotiations included.
    served: Vec<Vec<u8>>,
    /// What it answers to a shutdown.
    status: u32,
}

impl Driver {
    /// What hv_utils does with a packet.
    fn answer(&self, mut payload: Vec<u8>) -> Vec<u8> {
        payload[25] = 5;
        if payload[12] == 0 {
            payload[18..20].copy_from_slice(&[16, 0]);
            payload[28..32].copy_from_slice(&[1, 0, 1, 0]);
            let version = match self.service {
                Service::Shutdown => [3, 0, 2, 0],
                Service::TimeSync => [4, 0, 0, 0],
                _ => [3, 0, 0, 0],
            };
            payload[36..40].copy_from_slice(&[3, 0, 0, 0]);
            payload[40..44].copy_from_slice(&version);
            return payload;
        }
        match self.service {
            Service::Heartbeat => {
                let sequence = u64::from_le_bytes(payload[28..36].try_into().unwrap());
                payload[28..36].copy_from_slice(&(sequence + 1).to_le_bytes());
            }
            Service::Shutdown => payload[20..24].copy_from_slice(&self.status.to_le_bytes()),
            _ => {}
        }
        payload
    }
}

/// A guest with hv_utils.
struct Linux {
    guest: MockGuest,
    drivers: Vec<Driver>,
    /// Interrupts are off.
    hung: bool,
}

impl Linux {
    fn boot() -> Self {
        let mut guest = MockGuest::new(2);
        let clock = || TimeSample::from_unix(secs(1_700_000_000), 42);
        guest.offer(Box::new(Heartbeat::new()));
        guest.offer(Box::new(Shutdown::new()));
        guest.offer(Box::new(TimeSync::new(Box::new(clock))));
        let mut linux = Self {
            guest,
            drivers: Vec::new(),
            hung: false,
        };
        linux.contact();
        linux
    }

    /// Contacts the bus and opens all that is offered.
    fn contact(&mut self) {
        self.drivers.clear();
        assert!(self.guest.connect(ProtocolVersion::V5_3));
        for offer in self.guest.request_offers() {
            let mut all = Service::ALL.into_iter();
            let service = all.find(|service| service.interface_type() == offer.interface_type);
            self.probe(service.unwrap(), offer.relid);
        }
        self.run();
    }

    fn probe(&mut self, service: Service, relid: Relid) {
        let channel = self.guest.open(relid, 4).unwrap();
        self.drivers.push(Driver {
            service,
            channel,
            served: Vec::new(),
            status: 0,
        });
    }

    /// Serves every channel that was signalled, until nothing is left to do.
    fn run(&mut self) {
        if self.hung {
            return;
        }
        loop {
            let events = self.guest.take_events();
            if events.is_empty() {
                return;
            }
            for (_, relid) in events {
                let drivers = &mut self.drivers;
                let Some(driver) = drivers.iter_mut().find(|d| d.channel.relid == relid) else {
                    continue;
                };
                let once = driver.service == Service::Shutdown;
                while let Some(packet) = self.guest.receive(&mut driver.channel) {
                    assert_eq!((packet.packet_type, packet.flags), (6, 0));
                    let answer = driver.answer(packet.payload.clone());
                    driver.served.push(packet.payload);
                    let id = packet.transaction_id;
                    assert!(self.guest.send(&mut driver.channel, id, &answer));
                    if once {
                        break;
                    }
                }
            }
        }
    }

    fn advance(&mut self, by: Duration) {
        let end = self.guest.now() + by;
        while self.guest.now() < end {
            let left = end.saturating_sub(self.guest.now());
            let step = Duration::from_millis(100).min(left);
            self.guest.advance(step);
            self.run();
        }
    }

    fn driver(&mut self, service: Service) -> &mut Driver {
        let mut drivers = self.drivers.iter_mut();
        drivers.find(|driver| driver.service == service).unwrap()
    }

    /// What the driver served since the last time, without negotiations.
    fn served(&mut self, service: Service) -> Vec<Vec<u8>> {
        let mut served = std::mem::take(&mut self.driver(service).served);
        served.retain(|payload| payload[12] != 0);
        served
    }

    fn heartbeat(&self) -> &Heartbeat {
        let host = self.guest.host();
        host.device(host.find::<Heartbeat>().unwrap()).unwrap()
    }

    fn states(&self) -> [ServiceState; 3] {
        let (host, now) = (self.guest.host(), self.guest.now());
        let heartbeat = self.heartbeat().state(now);
        let shutdown: &Shutdown = host.device(host.find::<Shutdown>().unwrap()).unwrap();
        let timesync: &TimeSync = host.device(host.find::<TimeSync>().unwrap()).unwrap();
        [heartbeat, shutdown.state(now), timesync.state(now)]
    }

    fn with_shutdown<T>(&mut self, act: impl FnOnce(&mut Shutdown, Duration) -> T) -> T {
        let result = self.guest.with_host(|host, now| {
            let relid = host.find::<Shutdown>().unwrap();
            let result = act(host.device_mut(relid).unwrap(), now);
            host.poke(now, relid);
            result
        });
        self.run();
        result
    }

    fn ask(&mut self, action: ShutdownAction) {
        let request = ShutdownRequest::new(action);
        self.with_shutdown(|device, now| device.request(now, request, secs(60)))
            .unwrap();
    }

    fn outcome(&mut self) -> Option<Outcome<Accepted>> {
        self.with_shutdown(|device, _| device.take_outcome())
    }

    fn pause_all(&mut self, paused: bool) {
        self.guest.with_host(|host, now| {
            let heartbeat = host.find::<Heartbeat>().unwrap();
            let timesync = host.find::<TimeSync>().unwrap();
            let device: &mut Heartbeat = host.device_mut(heartbeat).unwrap();
            let other = |device: &mut TimeSync| {
                if paused {
                    device.pause(now);
                } else {
                    device.resume(now);
                }
            };
            if paused {
                device.pause(now);
            } else {
                device.resume(now);
            }
            other(host.device_mut(timesync).unwrap());
            host.poke(now, heartbeat);
            host.poke(now, timesync);
        });
        self.run();
    }
}

const READY: [ServiceState; 3] = [ServiceState::Ready; 3];

#[test]
fn all_services_are_ready_and_well_as_soon_as_the_drivers_are() {
    let linux = Linux::boot();
    assert_eq!(linux.states(), READY);
    assert_eq!(linux.heartbeat().health(), Health::Ok);
    assert_eq!(linux.guest.host().violations().total(), 0);
}

#[test]
fn a_minute_has_thirty_beats_and_twelve_samples_and_one_sync() {
    let mut linux = Linux::boot();
    linux.advance(Duration::from_millis(60_500));
    assert_eq!(linux.served(Service::Heartbeat).len(), 31);
    let times = linux.served(Service::TimeSync);
    let kinds: Vec<u8> = times.iter().map(|payload| payload[44]).collect();
    assert_eq!(kinds[0], 1);
    assert_eq!(kinds[1..], [2; 12]);
    assert_eq!(linux.heartbeat().health(), Health::Ok);
}

#[test]
fn a_hung_guest_is_lost_and_well_again_when_it_goes_on() {
    let mut linux = Linux::boot();
    linux.advance(secs(5));
    linux.hung = true;
    linux.advance(secs(10));
    assert_eq!(linux.heartbeat().health(), Health::Lost);
    linux.hung = false;
    linux.run();
    assert_eq!(linux.heartbeat().health(), Health::Ok);
    assert_eq!(linux.heartbeat().counts().ignored, 0);
}

#[test]
fn a_shutdown_is_read_with_its_signal_and_accepted() {
    let mut linux = Linux::boot();
    linux.ask(ShutdownAction::PowerOff);
    let action = ShutdownAction::PowerOff;
    assert_eq!(linux.outcome().unwrap().result, Ok(Accepted { action }));
    assert_eq!(linux.served(Service::Shutdown)[0].len(), 2088);
}

#[test]
fn a_refusal_comes_with_the_guests_status() {
    let mut linux = Linux::boot();
    linux.driver(Service::Shutdown).status = 0x8000_4005;
    linux.ask(ShutdownAction::Hibernate);
    let error = linux.outcome().unwrap().result.unwrap_err();
    assert_eq!(error.code(), "guest-error");
    assert_eq!(error.hresult().unwrap().0, 0x8000_4005);
}

#[test]
fn a_guest_that_wakes_up_after_two_timeouts_is_asked_the_third_thing() {
    let mut linux = Linux::boot();
    linux.hung = true;
    let errors = [ServiceError::Timeout, ServiceError::Unsent];
    for error in errors {
        linux.ask(ShutdownAction::PowerOff);
        linux.advance(secs(60));
        assert_eq!(linux.outcome().unwrap().result, Err(error));
    }
    linux.ask(ShutdownAction::Reboot);
    linux.hung = false;
    linux.run();
    let action = ShutdownAction::Reboot;
    assert_eq!(linux.outcome().unwrap().result, Ok(Accepted { action }));
    // The first, which it had all the time, and the one that is still wanted.
    let served = linux.served(Service::Shutdown);
    let flags: Vec<u8> = served.iter().map(|payload| payload[36]).collect();
    assert_eq!(flags, [0, 2]);
}

#[test]
fn a_pause_is_silent_and_ends_with_a_sync() {
    let mut linux = Linux::boot();
    linux.advance(secs(7));
    linux.served(Service::Heartbeat);
    linux.served(Service::TimeSync);
    linux.pause_all(true);
    linux.advance(secs(600));
    assert_eq!(linux.served(Service::Heartbeat).len(), 0);
    assert_eq!(linux.heartbeat().health(), Health::Paused);
    linux.pause_all(false);
    assert_eq!(linux.heartbeat().health(), Health::Ok);
    let times = linux.served(Service::TimeSync);
    assert_eq!((times.len(), times[0][44]), (1, 1));
}

#[test]
fn reloading_the_drivers_fifty_times_starts_over_each_time() {
    let mut linux = Linux::boot();
    for _ in 0..50 {
        linux.advance(secs(3));
        for driver in std::mem::take(&mut linux.drivers) {
            linux.guest.close(&driver.channel);
            let relid = driver.channel.relid;
            assert!(!linux.guest.host().is_open(relid));
            linux.probe(driver.service, relid);
        }
        assert_eq!(linux.heartbeat().health(), Health::Lost);
        linux.run();
        assert_eq!(linux.states(), READY);
        assert_eq!(linux.heartbeat().health(), Health::Ok);
        assert_eq!(linux.served(Service::TimeSync)[0][44], 1);
    }
    assert_eq!(linux.guest.host().violations().total(), 0);
}

#[test]
fn a_guest_that_reboots_without_a_word_is_served_again() {
    let mut linux = Linux::boot();
    linux.hung = true;
    linux.ask(ShutdownAction::PowerOff);
    linux.hung = false;
    linux.guest.with_host(vmbus::host::Host::reset);
    let error = ServiceError::NotOpen;
    assert_eq!(linux.outcome().unwrap().result, Err(error));
    linux.guest.enable_synic();
    linux.guest.take_events();
    linux.contact();
    assert_eq!(linux.states(), READY);
    linux.ask(ShutdownAction::PowerOff);
    assert!(linux.outcome().unwrap().result.is_ok());
}

#[test]
fn a_rescinded_service_ends_its_request_and_can_be_offered_again() {
    let mut linux = Linux::boot();
    linux.hung = true;
    linux.ask(ShutdownAction::PowerOff);
    let relid = linux.driver(Service::Shutdown).channel.relid;
    let outcome = linux.guest.with_host(|host, now| {
        host.rescind(now, relid).unwrap();
        let device: &mut Shutdown = host.device_mut(relid).unwrap();
        device.take_outcome()
    });
    assert_eq!(outcome.unwrap().result, Err(ServiceError::NotOpen));
    linux.hung = false;

    let rescind = linux.guest.recv();
    assert_eq!(rescind, Some(HostMessage::RescindChannelOffer { relid }));
    let release = vmbus::wire::GuestMessage::RelidReleased { relid };
    linux.guest.post(&release);
    linux.drivers.retain(|driver| driver.channel.relid != relid);

    let relid = linux.guest.offer(Box::new(Shutdown::new()));
    let offered = linux.guest.recv();
    assert!(matches!(offered, Some(HostMessage::OfferChannel(_))));
    linux.probe(Service::Shutdown, relid);
    linux.run();
    assert_eq!(linux.states(), READY);
    linux.ask(ShutdownAction::Reboot);
    assert!(linux.outcome().unwrap().result.is_ok());
}

#[test]
fn a_flood_of_nonsense_is_counted_and_changes_nothing() {
    let mut linux = Linux::boot();
    let driver = linux.drivers.iter_mut();
    for driver in driver {
        for round in 0..2_000_u32 {
            let len = usize::try_from(round % 90).unwrap();
            let payload = vec![round.to_le_bytes()[0]; len];
            assert!(linux.guest.send(&mut driver.channel, 0, &payload));
        }
    }
    assert_eq!(linux.heartbeat().counts().ignored, 2_000);
    linux.advance(secs(10));
    assert_eq!(linux.states(), READY);
    assert_eq!(linux.heartbeat().health(), Health::Ok);
    assert_eq!(linux.guest.host().violations().total(), 0);
}

#[test]
fn rings_of_two_pages_do() {
    let mut linux = Linux::boot();
    for driver in std::mem::take(&mut linux.drivers) {
        linux.guest.close(&driver.channel);
        let relid = driver.channel.relid;
        let channel = linux.guest.open(relid, 2).unwrap();
        linux.drivers.push(Driver { channel, ..driver });
    }
    linux.run();
    assert_eq!(linux.states(), READY);
    linux.ask(ShutdownAction::PowerOff);
    linux.advance(secs(3600));
    assert!(linux.outcome().unwrap().result.is_ok());
    assert_eq!(linux.heartbeat().health(), Health::Ok);
}
