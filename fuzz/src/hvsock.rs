// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hyper-V sockets on the bus, against a guest that writes into its rings what it
//! likes, and host ends that come, stall and go.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use vmbus::hvsock::{LINGER, MAX_DATA, OPEN_LIMIT, Socket, Stream, StreamError, service_of_port};
use vmbus::mock::{GuestChannel, MockGuest};
use vmbus::wire::{
    GuestMessage, Guid, HostMessage, PipeHeader, ProtocolVersion, Relid, TlConnectRequest,
};

use crate::guest::{Guest, forget_what_was_reached};
use crate::step::{Step, array, blob, steps, write_blob};

/// Something happens; the first byte says to which connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest connects to a port, or the host does.
    Connect(u8, bool),
    /// The guest opens the channel with rings of so many pages.
    Open(u8, u8),
    /// The guest closes it.
    Close(u8),
    /// The guest sends data with a good header; so many times these bytes.
    Data(u8, u16, Vec<u8>),
    /// The guest sends a packet of these bytes, its header among them.
    Packet(u8, Vec<u8>),
    /// The guest sends FIN.
    Fin(u8),
    /// The guest reads so many packets.
    Read(u8, u8),
    /// The guest writes the control words of a ring: whether its own, which, what.
    Control(u8, bool, u8, u16),
    /// The guest signals.
    Signal(u8),
    /// The host's program takes so much more.
    Room(u8, u16),
    /// It sends so much.
    Send(u8, u16),
    /// It ends its direction, or is gone altogether.
    End(u8, bool),
    /// The host takes the connection back.
    Rescind(u8),
    /// Time passes, in units of 16 ms.
    Wait(u16),
}

impl Step for Event {
    fn read(input: &mut Unstructured<'_>) -> Result<Self> {
        let [op] = array(input)?;
        if op % 14 == 13 {
            return Ok(Self::Wait(u16::from_le_bytes(array(input)?)));
        }
        let [n] = array(input)?;
        let flag = |[byte]: [u8; 1]| byte & 1 != 0;
        Ok(match op % 14 {
            0 => Self::Connect(n, flag(array(input)?)),
            1 => Self::Open(n, array::<1>(input)?[0]),
            2 => Self::Close(n),
            3 => Self::Data(n, u16::from_le_bytes(array(input)?), blob(input)?),
            4 => Self::Packet(n, blob(input)?),
            5 => Self::Fin(n),
            6 => Self::Read(n, array::<1>(input)?[0]),
            7 => {
                let (own, [word]) = (flag(array(input)?), array(input)?);
                Self::Control(n, own, word, u16::from_le_bytes(array(input)?))
            }
            8 => Self::Signal(n),
            9 => Self::Room(n, u16::from_le_bytes(array(input)?)),
            10 => Self::Send(n, u16::from_le_bytes(array(input)?)),
            11 => Self::End(n, flag(array(input)?)),
            _ => Self::Rescind(n),
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Connect(n, by_host) => out.extend([0, *n, u8::from(*by_host)]),
            Self::Open(n, pages) => out.extend([1, *n, *pages]),
            Self::Close(n) => out.extend([2, *n]),
            Self::Data(n, times, bytes) => {
                out.extend([3, *n]);
                out.extend(times.to_le_bytes());
                write_blob(out, bytes);
            }
            Self::Packet(n, bytes) => {
                out.extend([4, *n]);
                write_blob(out, bytes);
            }
            Self::Fin(n) => out.extend([5, *n]),
            Self::Read(n, count) => out.extend([6, *n, *count]),
            Self::Control(n, own, word, value) => {
                out.extend([7, *n, u8::from(*own), *word]);
                out.extend(value.to_le_bytes());
            }
            Self::Signal(n) => out.extend([8, *n]),
            Self::Room(n, room) => {
                out.extend([9, *n]);
                out.extend(room.to_le_bytes());
            }
            Self::Send(n, len) => {
                out.extend([10, *n]);
                out.extend(len.to_le_bytes());
            }
            Self::End(n, gone) => out.extend([11, *n, u8::from(*gone)]),
            Self::Rescind(n) => out.extend([12, *n]),
            Self::Wait(time) => {
                out.push(13);
                out.extend(time.to_le_bytes());
            }
        }
    }
}

/// The rings of a connection.
const OUTGOING: u8 = 1;
const INCOMING: u8 = 2;

/// Connections at a time.
const CONNECTIONS: usize = 4;
/// Memory for rings is not given back by the mock guest.
const MAX_OPENS: usize = 24;

/// The host's end, as its program sees it.
#[derive(Default)]
struct End {
    room: usize,
    to_guest: VecDeque<u8>,
    ended: bool,
    gone: bool,
    guest_ended: bool,
    told: bool,
    dropped: bool,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<End>>);

impl Shared {
    fn end(&self) -> MutexGuard<'_, End> {
        self.0.lock().unwrap()
    }
}

struct Handle(Shared);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.end().dropped = true;
    }
}

impl Stream for Handle {
    fn opened(&mut self) {
        let mut end = self.0.end();
        assert!(!end.told, "told twice how the connection began");
        end.told = true;
    }

    fn refused(&mut self) {
        self.0.end().told = true;
    }

    fn write(&mut self, data: &[u8]) -> std::result::Result<usize, StreamError> {
        let mut end = self.0.end();
        assert!(!data.is_empty() && data.len() <= MAX_DATA);
        assert!(!end.guest_ended, "data behind FIN");
        if end.gone {
            return Err(StreamError::Gone);
        }
        let len = data.len().min(end.room);
        end.room -= len;
        if len == 0 {
            return Err(StreamError::WouldBlock);
        }
        Ok(len)
    }

    fn close_write(&mut self) {
        let mut end = self.0.end();
        assert!(!end.guest_ended, "ended twice");
        end.guest_ended = true;
    }

    fn read(&mut self, into: &mut [u8]) -> std::result::Result<usize, StreamError> {
        let mut end = self.0.end();
        assert!(!into.is_empty());
        let len = into.len().min(end.to_guest.len());
        if len == 0 && end.gone {
            return Err(StreamError::Gone);
        }
        if len == 0 && !end.ended {
            return Err(StreamError::WouldBlock);
        }
        for (to, from) in into.iter_mut().zip(end.to_guest.drain(..len)) {
            *to = from;
        }
        Ok(len)
    }

    fn is_gone(&self) -> bool {
        self.0.end().gone
    }
}

struct Connection {
    relid: Relid,
    host: Shared,
    channel: Option<GuestChannel>,
    /// The offer was taken back.
    rescinded: bool,
    /// Rings whose indices the guest has changed.
    mad: u8,
}

struct Fuzz {
    guest: Guest,
    connections: [Option<Connection>; CONNECTIONS],
    opens: usize,
    instance: u128,
}

impl Fuzz {
    fn new() -> Self {
        let mut guest = Guest::new(1);
        guest.connect(ProtocolVersion::V5_3);
        guest.request_offers();
        Self {
            guest,
            connections: Default::default(),
            opens: 0,
            instance: 0x7000_0000,
        }
    }

    fn connect(&mut self, n: u8, by_host: bool) {
        let slot = usize::from(n) % CONNECTIONS;
        if self.connections[slot].is_some() {
            return;
        }
        self.instance += 1;
        let endpoint = Guid::from_u128(self.instance << 96 | 7);
        let service = service_of_port(n.into());
        let host = Shared::default();
        let stream = Box::new(Handle(host.clone()));
        let now = self.guest.now();
        let socket = if by_host {
            Socket::connecting(now, service, endpoint, stream)
        } else {
            let request = TlConnectRequest {
                endpoint,
                service,
                silo: None,
            };
            self.guest.post(&GuestMessage::TlConnectRequest(request));
            assert_eq!(self.guest.take_connects(), [request]);
            Socket::accepting(now, &request, stream)
        };
        let relid = self.guest.offer_streaming(Box::new(socket));
        while self.guest.recv().is_some() {}
        self.connections[slot] = Some(Connection {
            relid,
            host,
            channel: None,
            rescinded: false,
            mad: 0,
        });
    }

    fn of(&mut self, n: u8) -> Option<&mut Connection> {
        self.connections[usize::from(n) % CONNECTIONS].as_mut()
    }

    /// Unless the guest has changed the indices of this ring: then there is no
    /// telling what is in it, and the mock guest cannot use it.
    fn with_channel(
        &mut self,
        n: u8,
        ring: u8,
        run: impl FnOnce(&mut MockGuest, &mut GuestChannel),
    ) {
        let slot = usize::from(n) % CONNECTIONS;
        let connection = self.connections[slot].as_mut();
        let connection = connection.filter(|one| one.mad & ring == 0);
        if let Some(channel) = connection.and_then(|one| one.channel.as_mut()) {
            run(&mut self.guest, channel);
        }
    }

    /// The host's program has done something.
    fn with_host(&mut self, n: u8, run: impl FnOnce(&mut End)) {
        if let Some(connection) = self.of(n) {
            run(&mut connection.host.end());
            let relid = connection.relid;
            self.guest.with_host(|host, now| host.poke(now, relid));
            self.guest.run();
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Connect(n, by_host) => self.connect(n, by_host),
            Event::Open(n, pages) => self.open(n, 2 + u64::from(pages % 7)),
            Event::Close(n) => self.close(n),
            Event::Data(n, times, bytes) => {
                let data = bytes.repeat(usize::from(times % 256) + 1);
                let size = u32::try_from(data.len()).unwrap();
                let packet = [&PipeHeader::data(size).to_bytes(), &data[..]].concat();
                self.with_channel(n, OUTGOING, |guest, channel| {
                    guest.send(channel, 1, &packet);
                });
            }
            Event::Packet(n, bytes) => self.with_channel(n, OUTGOING, |guest, channel| {
                guest.send(channel, 1, &bytes);
            }),
            Event::Fin(n) => self.with_channel(n, OUTGOING, |guest, channel| {
                guest.send(channel, 1, &PipeHeader::data(0).to_bytes());
            }),
            Event::Read(n, count) => self.with_channel(n, INCOMING, |guest, channel| {
                for _ in 0..count {
                    if guest.receive(channel).is_none() {
                        return;
                    }
                }
            }),
            Event::Control(n, own, word, value) => {
                if let Some(connection) = self.of(n)
                    && word % 4 < 2
                {
                    connection.mad |= if own { OUTGOING } else { INCOMING };
                }
                self.with_channel(n, 0, |_, channel| {
                    let ring = if own {
                        &channel.outgoing
                    } else {
                        &channel.incoming
                    };
                    let (write, read) = ring.indices();
                    match word % 4 {
                        0 => ring.set_indices(value.into(), read),
                        1 => ring.set_indices(write, value.into()),
                        2 => ring.set_mask(value & 1 != 0),
                        _ => ring.set_pending_send_sz(value.into()),
                    }
                });
            }
            Event::Signal(n) => self.with_channel(n, 0, |guest, channel| {
                guest.signal(channel.relid);
            }),
            Event::Room(n, room) => self.with_host(n, |end| end.room = room.into()),
            Event::Send(n, len) => self.with_host(n, |end| {
                if !end.ended && end.to_guest.len() < 1 << 18 {
                    end.to_guest.extend((0..=255).cycle().take(len.into()));
                }
            }),
            Event::End(n, gone) => self.with_host(n, |end| {
                end.ended = true;
                end.gone |= gone;
            }),
            Event::Rescind(n) => {
                if let Some(relid) = self.of(n).map(|one| one.relid) {
                    self.guest
                        .with_host(|host, now| host.rescind(now, relid).ok());
                    self.guest.run();
                }
            }
            Event::Wait(time) => {
                let time = Duration::from_millis(u64::from(time) * 16);
                self.guest.advance(time);
            }
        }
        self.follow();
    }

    fn open(&mut self, n: u8, pages: u64) {
        let slot = usize::from(n) % CONNECTIONS;
        let Some(connection) = &mut self.connections[slot] else {
            return;
        };
        if connection.channel.is_some() || connection.rescinded || self.opens >= MAX_OPENS {
            return;
        }
        self.opens += 1;
        connection.mad = 0;
        connection.channel = self.guest.open(connection.relid, pages).ok();
    }

    fn close(&mut self, n: u8) {
        let Some(connection) = self.of(n) else { return };
        let (relid, rescinded) = (connection.relid, connection.rescinded);
        let Some(channel) = connection.channel.take() else {
            return;
        };
        let gpadl = channel.gpadl;
        self.guest.post(&GuestMessage::CloseChannel { relid });
        self.guest
            .post(&GuestMessage::GpadlTeardown { relid, gpadl });
        if rescinded {
            self.release(relid);
        }
    }

    fn release(&mut self, relid: Relid) {
        self.guest.post(&GuestMessage::RelidReleased { relid });
        let slot = self.connections.iter_mut();
        let mut slot = slot.filter(|slot| slot.as_ref().is_some_and(|one| one.relid == relid));
        if let Some(gone) = slot.next().and_then(Option::take) {
            assert!(
                gone.host.end().dropped,
                "{relid} was released, its stream was not"
            );
        }
    }

    /// What the host has said since; a channel that it takes back is closed by a
    /// guest that behaves so far.
    fn follow(&mut self) {
        let mut taken_back = Vec::new();
        while let Some(message) = self.guest.recv() {
            if let HostMessage::RescindChannelOffer { relid } = message {
                taken_back.push(relid);
            }
        }
        self.guest.take_log();
        for relid in taken_back {
            let mut all = self.connections.iter_mut().flatten();
            let one = all.find(|one| one.relid == relid);
            let one = one.expect("a channel that was offered");
            one.rescinded = true;
            if one.channel.is_none() {
                self.release(relid);
            }
        }
    }

    /// Every connection ends: when the host's program is gone and the guest does
    /// nothing more, its stream is dropped and its channel taken back.
    fn finish(mut self) {
        for n in 0..4 {
            self.with_host(n, |end| (end.ended, end.gone) = (true, true));
        }
        for _ in 0..2 {
            self.guest.advance(OPEN_LIMIT + Duration::from_millis(1));
            self.guest.advance(LINGER + Duration::from_millis(1));
            self.follow();
        }
        for connection in self.connections.iter().flatten() {
            let relid = connection.relid;
            assert!(connection.host.end().dropped, "{relid} keeps its stream");
            assert!(connection.rescinded, "{relid} is not taken back");
        }
    }
}

/// Runs the steps in `data`.
pub fn run(data: &[u8]) {
    let mut fuzz = Fuzz::new();
    forget_what_was_reached();
    for event in steps(data) {
        fuzz.step(event);
    }
    fuzz.finish();
}

/// Connections worth starting from.
pub fn seeds() -> Vec<(&'static str, Vec<Event>)> {
    use Event as E;
    let hello = || E::Data(0, 0, b"hello".to_vec());
    vec![
        (
            "well",
            vec![
                E::Connect(0, false),
                E::Open(0, 5),
                E::Room(0, 1000),
                hello(),
                E::Send(0, 3000),
                E::Read(0, 9),
                E::Fin(0),
                E::End(0, false),
                E::Read(0, 1),
                E::Close(0),
            ],
        ),
        (
            "stalled",
            vec![
                E::Connect(0, true),
                E::Open(0, 1),
                E::Data(0, 255, vec![7; 30]),
                E::Room(0, 100),
                E::Signal(0),
                E::Fin(0),
                E::Wait(6000),
                E::Room(0, 60_000),
                E::Send(0, 60_000),
                E::Wait(6000),
                E::Read(0, 200),
            ],
        ),
        (
            "refused",
            vec![E::Connect(0, true), E::Connect(1, false), E::Wait(300)],
        ),
        (
            "mad",
            vec![
                E::Connect(2, false),
                E::Open(2, 3),
                E::Packet(2, vec![1, 0, 0, 0, 255, 255, 0, 0]),
                E::Control(2, true, 0, 60_000),
                E::Signal(2),
                E::Rescind(2),
                E::Close(2),
                E::Connect(2, true),
                E::Open(2, 0),
                E::Fin(2),
                hello(),
                E::Fin(2),
            ],
        ),
        (
            "gone",
            vec![
                E::Connect(3, false),
                E::Open(3, 6),
                E::Send(3, 9000),
                E::End(3, true),
                E::Data(3, 3, b"unheard".to_vec()),
                E::Control(3, false, 3, 4000),
                E::Read(3, 255),
                E::Wait(5700),
            ],
        ),
    ]
}
