// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A whole service on the bus, against a guest that answers as it likes; and
//! what parses its answers, by itself.

mod plain;

use std::marker::PhantomData;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use ics_devices::fcopy::{FcopyProtocol, Target};
use ics_devices::kvp::wire::parse_item;
use ics_devices::kvp::{Key, KvpProtocol, Pool, Value, parse_ip};
use ics_devices::vss::VssProtocol;
use ics_devices::wire::IcMessage;
use ics_devices::{Fcopy, Filesystems, Ic, Kvp, KvpRequest, NewFile, Protocol, Vss, VssRequest};
use vmbus::mock::GuestChannel;
use vmbus::wire::{ProtocolVersion, Relid, VpIndex};

use crate::guest::{Guest, forget_what_was_reached};
use crate::step::{Step, array, blob, steps, write_blob};
pub use plain::{plain_seeds, run_plain};

/// Something happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest closes its channel, if it is open, and opens it.
    Reopen,
    /// The guest answers with this status, its answer changed from such a byte
    /// on.
    Answer(u32, u16, Vec<u8>),
    /// The guest sends this.
    Send(Vec<u8>),
    /// The host's user wants something: which.
    Ask(u8),
    /// Time passes, in units of 16 ms.
    Wait(u16),
    /// The VM is paused, or goes on.
    Pause(bool),
    /// Somebody watches the service's state, or nobody does.
    Watch(bool),
}

impl Step for Event {
    fn read(input: &mut Unstructured<'_>) -> Result<Self> {
        let [op] = array(input)?;
        // Mostly answers: what the guest says is what is under test.
        Ok(match op % 32 {
            0..10 => {
                let status = u32::from_le_bytes(array(input)?);
                let at = u16::from_le_bytes(array(input)?);
                Self::Answer(status, at, blob(input)?)
            }
            10..16 => Self::Send(blob(input)?),
            16..24 => Self::Ask(array::<1>(input)?[0]),
            24..30 => Self::Wait(u16::from_le_bytes(array(input)?)),
            30 => match array(input)? {
                [what] if what & 2 == 0 => Self::Pause(what & 1 != 0),
                [what] => Self::Watch(what & 1 != 0),
            },
            _ => Self::Reopen,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Reopen => out.push(31),
            Self::Answer(status, at, bytes) => {
                out.push(0);
                out.extend(status.to_le_bytes());
                out.extend(at.to_le_bytes());
                write_blob(out, bytes);
            }
            Self::Send(bytes) => {
                out.push(10);
                write_blob(out, bytes);
            }
            Self::Ask(what) => out.extend([16, *what]),
            Self::Wait(time) => {
                out.push(24);
                out.extend(time.to_le_bytes());
            }
            Self::Pause(paused) => out.extend([30, u8::from(*paused)]),
            Self::Watch(watched) => out.extend([30, 2 | u8::from(*watched)]),
        }
    }
}

/// A service under test.
trait Service: Protocol + Sized {
    const VERSION: [u8; 4];
    fn make() -> Ic<Self>;
    fn ask(service: &mut Ic<Self>, now: Duration, what: u8);
    fn check(service: &mut Ic<Self>, now: Duration, paused: bool);
}

fn key(n: u8) -> Key {
    Key::new(&format!("k{}", n % 4)).unwrap()
}

impl Service for KvpProtocol {
    const VERSION: [u8; 4] = [4, 0, 0, 0];

    fn make() -> Kvp {
        Kvp::new([(key(0), Value::U32(7)), (key(1), Value::text("x").unwrap())])
    }

    fn ask(service: &mut Kvp, now: Duration, what: u8) {
        let request = match what % 5 {
            0 => KvpRequest::List(Pool::Guest, 0),
            1 => KvpRequest::Get(Pool::Auto, key(what / 5)),
            2 => KvpRequest::Delete(Pool::External, key(what / 5)),
            3 => {
                let adapter = ics_devices::kvp::Adapter::new("52:54:00:12:34:56").unwrap();
                KvpRequest::GetIp(adapter)
            }
            _ => KvpRequest::Set(Pool::External, key(what / 5), Value::U64(u64::from(what))),
        };
        let _ = service.request(now, request, Duration::from_secs(60));
    }

    fn check(service: &mut Kvp, now: Duration, _: bool) {
        let _ = (service.take_outcome(), service.status(now));
        assert!(service.items().len() <= 4 && service.unsent_items() <= 8);
    }
}

impl Service for VssProtocol {
    const VERSION: [u8; 4] = [5, 0, 0, 0];

    fn make() -> Vss {
        Vss::new()
    }

    fn ask(service: &mut Vss, now: Duration, what: u8) {
        let request = match what % 3 {
            0 => VssRequest::Check,
            1 => VssRequest::Thaw,
            _ => VssRequest::Freeze {
                max: Duration::from_millis(u64::from(what) * 100),
            },
        };
        let _ = service.request(now, request);
    }

    fn check(service: &mut Vss, now: Duration, paused: bool) {
        let _ = (service.take_outcome(), service.status(now));
        if let Filesystems::Frozen { until, .. } = service.filesystems() {
            assert!(paused || until > now, "frozen beyond its deadline");
        }
    }
}

impl Service for FcopyProtocol {
    const VERSION: [u8; 4] = [1, 0, 1, 0];

    fn make() -> Fcopy {
        Fcopy::new()
    }

    fn ask(service: &mut Fcopy, now: Duration, what: u8) {
        let target = Target::new("/tmp/a").unwrap();
        let size = u64::from(what) * 200;
        if let Ok(ticket) = service.start(now, NewFile::new(target, size))
            && what.is_multiple_of(3)
        {
            service.cancel(now, ticket);
        }
        service.push(now, &[what; 10_000]);
    }

    fn check(service: &mut Fcopy, now: Duration, _: bool) {
        let _ = (service.take_outcome(), service.status(now));
        if let Some(progress) = service.progress() {
            assert!(progress.written <= progress.size);
        }
    }
}

struct Fuzz<S> {
    guest: Guest,
    relid: Relid,
    /// Of the rings.
    pages: Vec<u64>,
    channel: Option<GuestChannel>,
    paused: bool,
    service: PhantomData<S>,
}

impl<S: Service> Fuzz<S> {
    fn new() -> Self {
        let mut guest = Guest::new(1);
        let relid = guest.offer(Box::new(S::make()));
        guest.connect(ProtocolVersion::V5_3);
        guest.request_offers();
        let mut fuzz = Self {
            pages: guest.alloc(16),
            guest,
            relid,
            channel: None,
            paused: false,
            service: PhantomData,
        };
        fuzz.reopen();
        fuzz
    }

    fn reopen(&mut self) {
        if let Some(channel) = self.channel.take() {
            self.guest.close(&channel);
        }
        let opened = self.guest.open_on(self.relid, &self.pages, VpIndex::BSP);
        self.channel = opened.ok();
    }

    fn with_service(&mut self, run: impl FnOnce(&mut Ic<S>, Duration)) {
        let relid = self.relid;
        self.guest.with_host(|host, now| {
            if let Some(service) = host.device_mut::<Ic<S>>(relid) {
                run(service, now);
            }
            host.poke(now, relid);
        });
        self.guest.run();
    }

    fn send(&mut self, payload: &[u8]) {
        if let Some(channel) = &mut self.channel {
            self.guest.send(channel, 1, payload);
        }
    }

    fn answer(&mut self, status: u32, at: u16, bytes: &[u8]) {
        let Some(channel) = &mut self.channel else {
            return;
        };
        let Some(packet) = self.guest.receive(channel) else {
            return;
        };
        let mut payload = packet.payload;
        if let Some(field) = payload.get_mut(20..24) {
            field.copy_from_slice(&status.to_le_bytes());
        }
        payload[25] = 5;
        if payload[12..14] == [0, 0] {
            payload[28..32].copy_from_slice(&[1, 0, 1, 0]);
            payload[36..40].copy_from_slice(&[3, 0, 0, 0]);
            payload[40..44].copy_from_slice(&S::VERSION);
        }
        for (byte, new) in payload.iter_mut().skip(usize::from(at)).zip(bytes) {
            *byte = *new;
        }
        self.send(&payload);
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Reopen => self.reopen(),
            Event::Answer(status, at, bytes) => self.answer(status, at, &bytes),
            Event::Send(bytes) => self.send(&bytes),
            Event::Ask(what) => self.with_service(|service, now| S::ask(service, now, what)),
            Event::Wait(time) => {
                self.guest
                    .advance(Duration::from_millis(u64::from(time) * 16));
            }
            Event::Pause(paused) => {
                self.paused = paused;
                self.with_service(|service, now| {
                    if paused {
                        service.pause(now);
                    } else {
                        service.resume(now);
                    }
                });
            }
            Event::Watch(watched) => self.with_service(|service, _| service.watch(watched)),
        }
        let paused = self.paused;
        self.with_service(|service, now| S::check(service, now, paused));
    }
}

fn run<S: Service>(data: &[u8]) {
    let mut fuzz = Fuzz::<S>::new();
    forget_what_was_reached();
    for event in steps(data) {
        fuzz.step(event);
    }
}

/// Data exchange.
pub fn run_kvp(data: &[u8]) {
    run::<KvpProtocol>(data);
}

/// Backup.
pub fn run_vss(data: &[u8]) {
    run::<VssProtocol>(data);
}

/// File copy.
pub fn run_fcopy(data: &[u8]) {
    run::<FcopyProtocol>(data);
}

/// What parses an answer.
pub fn run_replies(data: &[u8]) {
    let _ = IcMessage::parse(data);
    if let Ok(item) = parse_item(data) {
        assert!(item.key.encode_utf16().count() <= 256);
        assert!(item.value.encode_utf16().count() <= 1024);
        assert!(!item.key.contains('\0') && !item.value.contains('\0'));
    }
    if let Ok(ip) = parse_ip(data) {
        assert!(ip.addresses.len() <= 1024 && ip.gateways.len() <= 512);
    }
}

/// Services' lives worth starting from.
pub fn seeds() -> Vec<(&'static str, Vec<Event>)> {
    [quick_seeds(), slow_seeds()].concat()
}

fn quick_seeds() -> Vec<(&'static str, Vec<Event>)> {
    use Event as E;
    let ok = || E::Answer(0, 0, Vec::new());
    let fail = || E::Answer(0x8000_4005, 0, Vec::new());
    let none = || E::Answer(0x8007_0103, 0, Vec::new());
    let exists = || E::Answer(0x8007_0050, 0, Vec::new());
    vec![
        (
            "well",
            vec![
                ok(),
                ok(),
                ok(),
                E::Ask(2),
                ok(),
                ok(),
                E::Ask(1),
                ok(),
                ok(),
            ],
        ),
        (
            "list",
            vec![
                ok(),
                ok(),
                ok(),
                E::Ask(0),
                ok(),
                none(),
                E::Wait(400),
                none(),
                ok(),
            ],
        ),
        (
            "no-daemon",
            vec![
                E::Wait(500),
                ok(),
                fail(),
                E::Ask(2),
                fail(),
                E::Wait(2500),
                ok(),
            ],
        ),
        (
            "frozen",
            vec![ok(), ok(), E::Ask(5), ok(), ok(), E::Wait(1000), ok(), ok()],
        ),
        (
            "copy",
            vec![
                ok(),
                exists(),
                E::Ask(35),
                ok(),
                ok(),
                ok(),
                ok(),
                E::Ask(36),
                ok(),
            ],
        ),
        (
            "noise",
            vec![
                E::Send(vec![1; 60]),
                ok(),
                E::Answer(0, 12, vec![9; 30]),
                E::Reopen,
            ],
        ),
    ]
}

/// What takes its time.
fn slow_seeds() -> Vec<(&'static str, Vec<Event>)> {
    use Event as E;
    let ok = || E::Answer(0, 0, vec![]);
    vec![
        (
            "late",
            vec![
                ok(),
                ok(),
                E::Ask(5),
                E::Wait(60_000),
                ok(),
                ok(),
                E::Reopen,
                ok(),
            ],
        ),
        (
            "paused",
            vec![
                ok(),
                E::Pause(true),
                E::Ask(5),
                E::Wait(900),
                E::Pause(false),
                ok(),
            ],
        ),
        (
            "unwatched",
            vec![
                ok(),
                E::Answer(0x8000_4005, 0, vec![]),
                E::Watch(false),
                E::Wait(900),
                E::Watch(true),
                ok(),
                E::Wait(900),
            ],
        ),
    ]
}

/// Answers worth starting from.
pub fn reply_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut item = vec![3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 6, 0, 0, 0];
    item.extend(*b"k\0");
    item.resize(532, 0);
    item.extend(*b"v\0w\0");
    item.resize(2580, 0);
    let mut ip = vec![0; 7428];
    ip[258] = 3;
    for (at, text) in [
        (260, "10.0.0.2;fd00::2"),
        (2308, "255.0.0.0;/64"),
        (4356, "10.0.0.1"),
    ] {
        for (n, byte) in text.bytes().enumerate() {
            ip[at + 2 * n] = byte;
        }
    }
    vec![("item", item), ("ip", ip), ("short", vec![0; 20])]
}
