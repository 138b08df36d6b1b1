// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The services that a guest's kernel serves by itself: heartbeat, shutdown and time
//! synchronisation. Which of them is the input's first byte.

use std::time::Duration;

use ics_devices::heartbeat::HeartbeatProtocol;
use ics_devices::shutdown::{ShutdownAction, ShutdownProtocol, ShutdownRequest};
use ics_devices::timesync::TimeSyncProtocol;
use ics_devices::{Heartbeat, Shutdown, TimeSample, TimeSync};

use super::{Event, Service, run};
use crate::step::bytes;

impl Service for HeartbeatProtocol {
    const VERSION: [u8; 4] = [3, 0, 0, 0];

    fn make() -> Heartbeat {
        Heartbeat::new()
    }

    fn ask(_: &mut Heartbeat, _: Duration, _: u8) {}

    fn check(service: &mut Heartbeat, now: Duration, _: bool) {
        assert!(service.last_beat().is_none_or(|beat| beat <= now));
        let _ = (
            service.health(),
            service.application_state(),
            service.status(now),
        );
    }
}

impl Service for ShutdownProtocol {
    const VERSION: [u8; 4] = [3, 0, 2, 0];

    fn make() -> Shutdown {
        Shutdown::new()
    }

    fn ask(service: &mut Shutdown, now: Duration, what: u8) {
        let action = match what % 3 {
            0 => ShutdownAction::PowerOff,
            1 => ShutdownAction::Reboot,
            _ => ShutdownAction::Hibernate,
        };
        let mut request = ShutdownRequest::new(action);
        request.force = what & 0x80 != 0;
        let limit = Duration::from_millis(u64::from(what) * 100);
        let _ = service.request(now, request, limit);
    }

    fn check(service: &mut Shutdown, now: Duration, _: bool) {
        let _ = (service.take_outcome(), service.status(now));
    }
}

impl Service for TimeSyncProtocol {
    const VERSION: [u8; 4] = [4, 0, 0, 0];

    fn make() -> TimeSync {
        let at = Duration::from_secs(1_800_000_000);
        TimeSync::new(Box::new(move || TimeSample::from_unix(at, 1 << 40)))
    }

    fn ask(service: &mut TimeSync, now: Duration, what: u8) {
        let _ = service.sync_now(now, Duration::from_millis(u64::from(what) * 100));
    }

    fn check(service: &mut TimeSync, now: Duration, _: bool) {
        let _ = (service.take_outcome(), service.status(now));
        assert!(service.last_sync().is_none_or(|sync| sync <= now));
        let _ = service.guest_offset();
    }
}

/// One of them.
pub fn run_plain(data: &[u8]) {
    let Some((which, steps)) = data.split_first() else {
        return;
    };
    match which % 3 {
        0 => run::<HeartbeatProtocol>(steps),
        1 => run::<ShutdownProtocol>(steps),
        _ => run::<TimeSyncProtocol>(steps),
    }
}

/// Lives of each of them.
pub fn plain_seeds() -> Vec<(&'static str, Vec<u8>)> {
    use Event as E;
    let ok = || E::Answer(0, 0, vec![]);
    let steps = [
        // Negotiation, and beats.
        ok(),
        E::Wait(130),
        ok(),
        E::Wait(130),
        ok(),
        // A beat that tells what the applications do, and one with another number.
        E::Wait(130),
        E::Answer(0, 28, vec![9, 0, 0, 0, 0, 0, 0, 0, 2]),
        E::Ask(150),
        ok(),
        E::Ask(1),
        E::Answer(0x8000_4005, 0, vec![]),
        E::Pause(true),
        E::Wait(900),
        E::Pause(false),
        ok(),
        E::Answer(0, 44, vec![0xff; 16]),
        E::Send(vec![1; 60]),
        E::Reopen,
        ok(),
    ];
    let of = |which: u8| [vec![which], bytes(&steps)].concat();
    vec![
        ("heartbeat", of(0)),
        ("shutdown", of(1)),
        ("timesync", of(2)),
    ]
}
