// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Properties: whatever guest, host and clock do in whatever order, a service
//! keeps its promises.

use std::time::Duration;

use proptest::prelude::*;
use vmbus::host::SendError;
use vmbus::wire::PacketType;

use crate::device::Ic;
use crate::fcopy::{FcopyProtocol, NewFile, Target};
use crate::heartbeat::{Health, HeartbeatProtocol};
use crate::kvp::{Key, KvpProtocol, KvpRequest, Pool, Value};
use crate::protocol::Protocol;
use crate::script::{Script, answer, negotiated, secs};
use crate::shutdown::{ShutdownAction, ShutdownProtocol, ShutdownRequest};
use crate::slot::Ticket;
use crate::timesync::{TimeSample, TimeSyncProtocol};
use crate::vss::{Filesystems, VssProtocol, VssRequest};
use crate::{Fcopy, Heartbeat, Kvp, Shutdown, TimeSync, Vss};

/// Something happens.
#[derive(Clone, Debug)]
enum Event {
    Open,
    Close,
    Advance(u16),
    Jump(u16),
    Poke,
    Pause,
    Resume,
    /// The host's user wants something.
    Ask,
    /// The guest answers as it should.
    Answer,
    /// The guest repeats what it last sent.
    Repeat,
    /// The guest answers with these bytes changed.
    Spoil(Vec<(usize, u8)>),
    /// The guest answers with so many bytes.
    Cut(usize),
    Noise(Vec<u8>),
    Completion(Vec<u8>),
    /// The ring to the guest is full, or has room again.
    Full(bool),
}

fn event() -> impl Strategy<Value = Event> {
    let noise = || prop::collection::vec(any::<u8>(), 0..80);
    // Most of the time in the header.
    let spoilt = prop::collection::vec((0..48_usize, any::<u8>()), 1..4);
    prop_oneof![
        2 => Just(Event::Open),
        1 => Just(Event::Close),
        4 => (0..8_000_u16).prop_map(Event::Advance),
        1 => any::<u16>().prop_map(Event::Jump),
        1 => Just(Event::Poke),
        1 => Just(Event::Pause),
        2 => Just(Event::Resume),
        3 => Just(Event::Ask),
        12 => Just(Event::Answer),
        1 => Just(Event::Repeat),
        1 => spoilt.prop_map(Event::Spoil),
        1 => (0..80_usize).prop_map(Event::Cut),
        1 => noise().prop_map(Event::Noise),
        1 => noise().prop_map(Event::Completion),
        1 => any::<bool>().prop_map(Event::Full),
    ]
}

/// What a service promises besides what all do.
trait Promise: Protocol + Sized {
    fn device() -> Ic<Self>;

    /// Makes its answer right, and its user's requests.
    fn fix(payload: &mut [u8]);

    fn ask(device: &mut Ic<Self>, now: Duration) -> Option<Ticket>;

    fn outcome(device: &mut Ic<Self>) -> Option<Ticket>;

    fn check(script: &Script<Self>, seen: &Seen);
}

/// What happened so far.
#[derive(Default)]
struct Seen {
    opened: u64,
    resumed: u64,
    asked: u64,
    open: bool,
}

impl Promise for HeartbeatProtocol {
    fn device() -> Ic<Self> {
        Heartbeat::new()
    }

    fn fix(payload: &mut [u8]) {
        payload[28] = payload[28].wrapping_add(1);
    }

    fn ask(_: &mut Ic<Self>, _: Duration) -> Option<Ticket> {
        None
    }

    fn outcome(_: &mut Ic<Self>) -> Option<Ticket> {
        None
    }

    fn check(script: &Script<Self>, seen: &Seen) {
        let health = script.device.health();
        assert_eq!(script.device.is_paused(), health == Health::Paused);
        if !seen.open && !script.device.is_paused() {
            assert_ne!(health, Health::Ok);
        }
    }
}

impl Promise for ShutdownProtocol {
    fn device() -> Ic<Self> {
        Shutdown::new()
    }

    fn fix(_: &mut [u8]) {}

    fn ask(device: &mut Ic<Self>, now: Duration) -> Option<Ticket> {
        let request = ShutdownRequest::new(ShutdownAction::PowerOff);
        device.request(now, request, secs(10)).ok()
    }

    fn outcome(device: &mut Ic<Self>) -> Option<Ticket> {
        device.take_outcome().map(|outcome| outcome.ticket)
    }

    fn check(script: &Script<Self>, seen: &Seen) {
        // It never speaks unasked.
        assert!(script.device.counts().sent <= seen.opened + seen.asked);
    }
}

impl Promise for TimeSyncProtocol {
    fn device() -> Ic<Self> {
        TimeSync::new(Box::new(TimeSample::default))
    }

    fn fix(_: &mut [u8]) {}

    fn ask(device: &mut Ic<Self>, now: Duration) -> Option<Ticket> {
        device.sync_now(now, secs(10)).ok()
    }

    fn outcome(device: &mut Ic<Self>) -> Option<Ticket> {
        device.take_outcome().map(|outcome| outcome.ticket)
    }

    fn check(script: &Script<Self>, seen: &Seen) {
        // Never a step that nobody asked for.
        let reasons = seen.opened + seen.resumed + seen.asked;
        assert!(script.device.syncs_sent() <= reasons);
    }
}

impl Promise for KvpProtocol {
    fn device() -> Ic<Self> {
        let item = |key: &str| (Key::new(key).unwrap(), Value::U32(7));
        Kvp::new([item("a"), item("b")])
    }

    fn fix(_: &mut [u8]) {}

    fn ask(device: &mut Ic<Self>, now: Duration) -> Option<Ticket> {
        let key = Key::new("c").unwrap();
        let request = match now.subsec_millis() % 4 {
            0 => KvpRequest::List(Pool::Guest, 0),
            1 => KvpRequest::Get(Pool::Auto, key),
            2 => KvpRequest::Delete(Pool::External, key),
            _ => KvpRequest::Set(Pool::External, key, Value::U64(1)),
        };
        device.request(now, request, secs(10)).ok()
    }

    fn outcome(device: &mut Ic<Self>) -> Option<Ticket> {
        device.take_outcome().map(|outcome| outcome.ticket)
    }

    fn check(script: &Script<Self>, _: &Seen) {
        let items = script.device.items().len();
        assert!((2..=3).contains(&items), "the host's items are the host's");
        assert!(script.device.unsent_items() <= 2 * items + 2);
    }
}

impl Promise for VssProtocol {
    fn device() -> Ic<Self> {
        Vss::new()
    }

    fn fix(_: &mut [u8]) {}

    fn ask(device: &mut Ic<Self>, now: Duration) -> Option<Ticket> {
        let request = match now.subsec_millis() % 3 {
            0 => VssRequest::Thaw,
            _ => VssRequest::Freeze { max: secs(5) },
        };
        device.request(now, request).ok()
    }

    fn outcome(device: &mut Ic<Self>) -> Option<Ticket> {
        device.take_outcome().map(|outcome| outcome.ticket)
    }

    fn check(script: &Script<Self>, seen: &Seen) {
        if let Filesystems::Frozen { until, .. } = script.device.filesystems() {
            assert!(seen.open, "what is frozen is known only while it is open");
            // A look at the clock later it is thawed, or the VM is paused.
            let due = script.device.next_deadline();
            assert!(script.device.is_paused() || due.is_some_and(|due| due <= until));
        }
    }
}

impl Promise for FcopyProtocol {
    fn device() -> Ic<Self> {
        Fcopy::new()
    }

    fn fix(_: &mut [u8]) {}

    fn ask(device: &mut Ic<Self>, now: Duration) -> Option<Ticket> {
        let file = NewFile::new(Target::new("/tmp/a").unwrap(), 10_000);
        let ticket = device.start(now, file).ok()?;
        device.push(now, &[1; 9_000]);
        if now.subsec_millis().is_multiple_of(2) {
            device.push(now, &[1; 1_000]);
        }
        Some(ticket)
    }

    fn outcome(device: &mut Ic<Self>) -> Option<Ticket> {
        device.take_outcome().map(|outcome| outcome.ticket)
    }

    fn check(script: &Script<Self>, _: &Seen) {
        if let Some(progress) = script.device.progress() {
            assert!(progress.written <= progress.size);
        }
    }
}

/// The guest's side: what it read and has not answered, and what it last sent.
#[derive(Default)]
struct Guest {
    read: Option<Vec<u8>>,
    last: Vec<u8>,
}

impl Guest {
    fn proper<P: Promise>(&mut self, script: &mut Script<P>) -> Option<Vec<u8>> {
        if let Some(sent) = script.try_take() {
            self.read = Some(sent.payload);
        }
        let request = self.read.clone()?;
        Some(if request[12..14] == [0, 0] {
            let version = P::VERSIONS.last().unwrap();
            negotiated(request, (3, 0), (version.major, version.minor))
        } else {
            let mut right = answer(request, 0);
            P::fix(&mut right);
            right
        })
    }

    fn send<P: Promise>(&mut self, script: &mut Script<P>, payload: Vec<u8>) {
        script.send(&payload);
        self.last = payload;
    }
}

fn happens<P: Promise>(script: &mut Script<P>, guest: &mut Guest, seen: &mut Seen, event: Event) {
    match event {
        Event::Open => {
            guest.read = None;
            script.open();
            seen.open = true;
            seen.opened += 1;
        }
        Event::Close if seen.open => {
            guest.read = None;
            script.close();
            seen.open = false;
        }
        Event::Advance(by) => script.advance(Duration::from_millis(by.into())),
        Event::Jump(by) => script.jump(secs(by.into())),
        Event::Pause => script.device.pause(script.now),
        Event::Resume => {
            seen.resumed += u64::from(script.device.is_paused());
            script.device.resume(script.now);
        }
        Event::Answer => {
            if let Some(payload) = guest.proper(script) {
                guest.send(script, payload);
                guest.read = None;
            }
        }
        Event::Repeat => script.send(&guest.last),
        Event::Spoil(changes) => {
            if let Some(mut payload) = guest.proper(script) {
                for (at, value) in changes {
                    if let Some(byte) = payload.get_mut(at) {
                        *byte = value;
                    }
                }
                guest.send(script, payload);
            }
        }
        Event::Cut(len) => {
            if let Some(mut payload) = guest.proper(script) {
                payload.truncate(len);
                guest.send(script, payload);
            }
        }
        Event::Noise(bytes) => guest.send(script, bytes),
        Event::Completion(bytes) => script.send_as(PacketType::COMPLETION, &bytes),
        Event::Full(full) => script.ring.refuses = full.then_some(SendError::Full),
        Event::Poke | Event::Close | Event::Ask => {}
    }
}

fn keeps_its_promises<P: Promise>(events: Vec<Event>) {
    let mut script = Script::new(P::device());
    let (mut guest, mut seen) = (Guest::default(), Seen::default());
    let mut waiting: Option<Ticket> = None;
    let settle = |script: &mut Script<P>, waiting: &mut Option<Ticket>| {
        if let Some(ticket) = P::outcome(&mut script.device) {
            assert_eq!(waiting.take(), Some(ticket), "one outcome per ticket");
        }
    };
    for event in events {
        if matches!(event, Event::Ask)
            && let Some(ticket) = P::ask(&mut script.device, script.now)
        {
            seen.asked += 1;
            assert_eq!(waiting.replace(ticket), None, "one request at a time");
        }
        happens(&mut script, &mut guest, &mut seen, event);
        settle(&mut script, &mut waiting);
        if seen.open {
            // What a host does after every change.
            script.poke();
            settle(&mut script, &mut waiting);
        }
        let unanswered = script.unread() + usize::from(guest.read.is_some());
        let forged = 1; // The guest may have answered with the right id, wrongly.
        assert!(script.unread() <= 1 && unanswered <= 1 + forged);
        if !seen.open {
            assert_eq!(waiting, None, "a closed channel has no requests");
        }
        P::check(&script, &seen);
        let _ = script.device.status(script.now);
    }
    // In the end every request has an outcome: the last may wait for data.
    script.device.resume(script.now);
    script.ring.refuses = None;
    if seen.open {
        script.poke();
    }
    script.advance(secs(200));
    settle(&mut script, &mut waiting);
    assert_eq!(waiting, None);
    // And a guest that opens the channel anew finds all well.
    script.ring.refuses = None;
    script.open();
    script.negotiate((
        P::VERSIONS.last().unwrap().major,
        P::VERSIONS.last().unwrap().minor,
    ));
    assert_eq!(script.state(), crate::ServiceState::Ready);
}

proptest! {
    #[test]
    fn a_heartbeat_survives_anything(events in prop::collection::vec(event(), 0..120)) {
        keeps_its_promises::<HeartbeatProtocol>(events);
    }

    #[test]
    fn a_shutdown_survives_anything(events in prop::collection::vec(event(), 0..120)) {
        keeps_its_promises::<ShutdownProtocol>(events);
    }

    #[test]
    fn a_data_exchange_survives_anything(events in prop::collection::vec(event(), 0..120)) {
        keeps_its_promises::<KvpProtocol>(events);
    }

    #[test]
    fn a_backup_survives_anything(events in prop::collection::vec(event(), 0..120)) {
        keeps_its_promises::<VssProtocol>(events);
    }

    #[test]
    fn a_file_copy_survives_anything(events in prop::collection::vec(event(), 0..120)) {
        keeps_its_promises::<FcopyProtocol>(events);
    }

    #[test]
    fn a_timesync_survives_anything(events in prop::collection::vec(event(), 0..120)) {
        keeps_its_promises::<TimeSyncProtocol>(events);
    }
}
