// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sockets between the mock guest and streams in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use crate::host::StreamingDevice;
use crate::memory::GuestSlice;

use super::*;
use crate::bus::Action;
use crate::mock::{GuestChannel, MockGuest};
use crate::wire::{
    GuestMessage, HostMessage, PipeHeader, ProtocolVersion, Relid, TlConnectRequest, VpIndex,
};

const SERVICE: Guid = service_of_port(5000);
const ENDPOINT: Guid = service_of_port(0x1234_5678);

/// The host's end, from a test's side.
#[derive(Default)]
struct End {
    got: Vec<u8>,
    /// How much the stream takes before it would block.
    room: usize,
    to_guest: VecDeque<u8>,
    host_ended: bool,
    gone: bool,
    opened: bool,
    refused: bool,
    guest_ended: bool,
    dropped: bool,
    writes: usize,
}

#[derive(Clone)]
struct Memory(Arc<Mutex<End>>);

impl Memory {
    fn new(room: usize) -> Self {
        Self(Arc::new(Mutex::new(End {
            room,
            ..End::default()
        })))
    }

    fn with<T>(&self, run: impl FnOnce(&mut End) -> T) -> T {
        run(&mut self.0.lock().unwrap())
    }
}

struct Handle(Memory);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.with(|end| end.dropped = true);
    }
}

impl Stream for Handle {
    fn opened(&mut self) {
        self.0.with(|end| end.opened = true);
    }

    fn refused(&mut self) {
        self.0.with(|end| end.refused = true);
    }

    fn write(&mut self, data: &[u8]) -> Result<usize, StreamError> {
        self.0.with(|end| {
            if end.gone {
                return Err(StreamError::Gone);
            }
            let len = data.len().min(end.room);
            if len == 0 {
                return Err(StreamError::WouldBlock);
            }
            end.room -= len;
            end.got.extend(&data[..len]);
            Ok(len)
        })
    }

    fn write_pieces(&mut self, pieces: &[GuestSlice<'_>]) -> Result<usize, StreamError> {
        assert!(pieces.iter().all(|piece| !piece.is_empty()));
        let copy = |piece: &GuestSlice<'_>| {
            let mut bytes = vec![0; piece.len()];
            piece.copy_to(&mut bytes);
            bytes
        };
        let all: Vec<u8> = pieces.iter().flat_map(copy).collect();
        self.0.with(|end| end.writes += 1);
        self.write(&all)
    }

    fn close_write(&mut self) {
        self.0.with(|end| end.guest_ended = true);
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, StreamError> {
        self.0.with(|end| {
            let len = into.len().min(end.to_guest.len());
            if len == 0 && !end.host_ended && !end.gone {
                return Err(StreamError::WouldBlock);
            }
            for byte in &mut into[..len] {
                *byte = end.to_guest.pop_front().unwrap();
            }
            Ok(len)
        })
    }

    fn is_gone(&self) -> bool {
        self.0.with(|end| end.gone)
    }
}

fn connected() -> MockGuest {
    let mut guest = MockGuest::new(1);
    assert!(guest.connect(ProtocolVersion::V5_3));
    guest.request_offers();
    guest
}

fn accept(guest: &mut MockGuest, memory: &Memory) -> Relid {
    let request = TlConnectRequest {
        endpoint: ENDPOINT,
        service: SERVICE,
        silo: None,
    };
    guest.post(&GuestMessage::TlConnectRequest(request));
    assert_eq!(guest.take_connects(), [request]);
    let stream = Box::new(Handle(memory.clone()));
    let now = guest.now();
    let relid = guest.offer_streaming(Box::new(Socket::accepting(now, &request, stream)));
    while guest.recv().is_some() {}
    relid
}

fn open(room: usize, pages: u64) -> (MockGuest, GuestChannel, Memory) {
    let mut guest = connected();
    let memory = Memory::new(room);
    let relid = accept(&mut guest, &memory);
    let channel = guest.open(relid, pages).unwrap();
    assert!(memory.with(|end| end.opened));
    (guest, channel, memory)
}

fn frame(data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len()).unwrap();
    [&PipeHeader::data(size).to_bytes(), data].concat()
}

fn rescinded(guest: &mut MockGuest) -> bool {
    let log = guest.take_log();
    log.iter().any(|action| {
        matches!(
            action,
            Action::PostMessage {
                message: HostMessage::RescindChannelOffer { .. },
                ..
            }
        )
    })
}

fn poke(guest: &mut MockGuest, relid: Relid) {
    guest.with_host(|host, now| host.poke(now, relid));
}

/// All data that the guest can read now, and whether FIN was among it.
fn read_all(guest: &mut MockGuest, channel: &mut GuestChannel) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    while let Some(packet) = guest.receive(channel) {
        let (header, data) = PipeHeader::parse(&packet.payload).unwrap();
        assert_eq!(header.flags, 1);
        if data.is_empty() {
            assert_eq!(packet.payload.len(), 8, "FIN is 32 bytes of ring");
            return (bytes, true);
        }
        bytes.extend(data);
    }
    (bytes, false)
}

#[test]
fn ports_are_guids_and_other_guids_are_no_ports() {
    assert_eq!(
        service_of_port(5000).to_bytes(),
        [
            0x88, 0x13, 0, 0, 0xcb, 0xfa, 0xe6, 0x11, 0xbd, 0x58, 0x64, 0, 0x6a, 0x79, 0x86, 0xd3
        ]
    );
    for port in [0, 1, 22, 0xffff_fffe, u32::MAX] {
        assert_eq!(port_of(&service_of_port(port)), Some(port));
    }
    assert_eq!(port_of(&Guid::ZERO), None);
    assert_eq!(port_of(&Guid::from_u128(PORT_TEMPLATE ^ 1)), None);
}

#[test]
fn an_offer_says_who_connects() {
    for (by_host, byte) in [(false, 0), (true, 1)] {
        let stream = Box::new(Handle(Memory::new(0)));
        let socket = if by_host {
            Socket::connecting(Duration::ZERO, SERVICE, ENDPOINT, stream)
        } else {
            let request = TlConnectRequest {
                endpoint: ENDPOINT,
                service: SERVICE,
                silo: None,
            };
            Socket::accepting(Duration::ZERO, &request, stream)
        };
        let spec = StreamingDevice::offer(&socket);
        assert_eq!(spec.flags.bits(), 0x2011);
        assert_eq!(spec.user_defined[..6], [0, 0, 0, 0, byte, 0]);
        assert!(spec.session_only);
    }
}

#[test]
fn bytes_pass_both_ways_whatever_the_sizes() {
    let (mut guest, mut channel, memory) = open(usize::MAX, 7);
    let data: Vec<u8> = (0..50_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    memory.with(|end| end.to_guest.extend(&data));
    poke(&mut guest, channel.relid);
    let mut got = Vec::new();
    while got.len() < data.len() {
        let (more, fin) = read_all(&mut guest, &mut channel);
        assert!(!fin && !more.is_empty(), "stuck at {}", got.len());
        got.extend(more);
    }
    assert_eq!(got, data);
    for piece in data.chunks(977) {
        assert!(guest.send(&mut channel, 0, &frame(piece)));
    }
    assert_eq!(memory.with(|end| std::mem::take(&mut end.got)), data);
}

#[test]
fn a_stream_that_takes_nothing_stops_the_guest_and_loses_nothing() {
    let (mut guest, mut channel, memory) = open(1000, 7);
    let data: Vec<u8> = (0..40_000_u32).map(|n| (n / 7).to_le_bytes()[0]).collect();
    let mut sent = 0;
    let mut pieces = data.chunks(4088).peekable();
    while let Some(piece) = pieces.peek() {
        if !guest.send(&mut channel, 0, &frame(piece)) {
            break;
        }
        sent += piece.len();
        pieces.next();
    }
    assert!(sent < data.len(), "the ring must have become full");
    assert_eq!(memory.with(|end| end.got.len()), 1000);
    // In small portions, each in the middle of some packet.
    while memory.with(|end| end.got.len()) < data.len() {
        memory.with(|end| end.room = 333);
        poke(&mut guest, channel.relid);
        while let Some(piece) = pieces.peek() {
            if !guest.send(&mut channel, 0, &frame(piece)) {
                break;
            }
            pieces.next();
        }
    }
    assert_eq!(memory.with(|end| std::mem::take(&mut end.got)), data);
}

#[test]
fn what_waits_in_the_ring_goes_to_the_stream_at_once() {
    let (mut guest, mut channel, memory) = open(0, 32);
    for number in 0..80 {
        assert!(guest.send(&mut channel, 0, &frame(&[number; 1200])));
    }
    memory.with(|end| (end.room, end.writes) = (usize::MAX, 0));
    poke(&mut guest, channel.relid);
    let (got, writes) = memory.with(|end| (end.got.clone(), end.writes));
    assert_eq!(got.len(), 80 * 1200);
    assert!(
        got.chunks(1200)
            .zip(0..)
            .all(|(data, number)| data == [number; 1200])
    );
    assert_eq!(writes, 2, "eighty packets are two batches");
}

#[test]
fn data_in_scattered_pages_is_taken_from_all_of_them() {
    for step in [777, 4095, 4096, 30_000, usize::MAX] {
        let mut guest = connected();
        let memory = Memory::new(0);
        let relid = accept(&mut guest, &memory);
        let mut pfns = guest.alloc(2 * 65);
        pfns.reverse();
        let mut channel = guest.open_on(relid, &pfns, VpIndex::BSP).unwrap();
        let sent: Vec<u8> = (0..150_000u32)
            .map(|at| at.to_le_bytes()[at as usize % 3])
            .collect();
        // Fifteen packets in some forty pieces.
        for data in sent.chunks(10_000) {
            assert!(guest.send(&mut channel, 0, &frame(data)));
        }
        for _ in 0..=150_000 / step {
            memory.with(|end| end.room = step);
            poke(&mut guest, relid);
        }
        assert!(memory.with(|end| end.got == sent), "in steps of {step}");
    }
}

/// A stream that leaves copying to the trait.
struct Plain(Handle);

impl Stream for Plain {
    fn write(&mut self, data: &[u8]) -> Result<usize, StreamError> {
        self.0.write(data)
    }

    fn close_write(&mut self) {
        self.0.close_write();
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, StreamError> {
        self.0.read(into)
    }

    fn is_gone(&self) -> bool {
        self.0.is_gone()
    }
}

#[test]
fn a_stream_that_only_takes_copies_gets_all_as_well() {
    for step in [101, 4096, 5000, usize::MAX] {
        let mut guest = connected();
        let memory = Memory::new(0);
        let stream = Box::new(Plain(Handle(memory.clone())));
        let socket = Socket::connecting(guest.now(), SERVICE, ENDPOINT, stream);
        let relid = guest.offer_streaming(Box::new(socket));
        while guest.recv().is_some() {}
        let mut channel = guest.open(relid, 32).unwrap();
        let sent: Vec<u8> = (0..20_000u32)
            .map(|at| at.to_le_bytes()[at as usize % 3])
            .collect();
        for data in sent.chunks(9_000) {
            assert!(guest.send(&mut channel, 0, &frame(data)));
        }
        for _ in 0..=20_000 / step {
            memory.with(|end| end.room = step);
            poke(&mut guest, relid);
        }
        assert!(memory.with(|end| end.got == sent), "in steps of {step}");
    }
}

#[test]
fn a_batch_that_is_taken_in_part_goes_on_where_it_stopped() {
    for step in [1, 7, 99, 100, 101, 250, 1000] {
        let (mut guest, mut channel, memory) = open(0, 32);
        let mut sent = Vec::new();
        for number in 0..12 {
            assert!(guest.send(&mut channel, 0, &frame(&[number; 100])));
            sent.extend([number; 100]);
        }
        assert!(guest.send(&mut channel, 0, &frame(&[])));
        for _ in 0..=1200 / step {
            assert!(!memory.with(|end| end.guest_ended && end.got.len() < 1200));
            memory.with(|end| end.room = step);
            poke(&mut guest, channel.relid);
        }
        let (got, ended) = memory.with(|end| (end.got.clone(), end.guest_ended));
        assert!(got == sent, "in steps of {step}");
        assert!(ended, "the end comes behind the data");
    }
}

#[test]
fn the_guest_may_end_first_and_still_read() {
    let (mut guest, mut channel, memory) = open(usize::MAX, 7);
    assert!(guest.send(&mut channel, 0, &frame(b"question")));
    assert!(guest.send(&mut channel, 0, &frame(b"")));
    assert!(memory.with(|end| end.guest_ended));
    assert!(!rescinded(&mut guest));
    memory.with(|end| {
        end.to_guest.extend(b"answer");
        end.host_ended = true;
    });
    poke(&mut guest, channel.relid);
    assert!(rescinded(&mut guest), "both directions have ended");
    assert!(memory.with(|end| end.dropped));
    assert_eq!(
        read_all(&mut guest, &mut channel),
        (b"answer".to_vec(), true)
    );
}

#[test]
fn the_host_may_end_first_and_still_read() {
    let (mut guest, mut channel, memory) = open(usize::MAX, 7);
    memory.with(|end| end.host_ended = true);
    poke(&mut guest, channel.relid);
    assert_eq!(read_all(&mut guest, &mut channel), (vec![], true));
    assert!(!rescinded(&mut guest));
    assert!(guest.send(&mut channel, 0, &frame(b"more")));
    assert_eq!(memory.with(|end| end.got.clone()), b"more");
    assert!(guest.send(&mut channel, 0, &frame(b"")));
    assert!(rescinded(&mut guest));
}

#[test]
fn a_host_that_is_gone_ends_both_directions() {
    for answer in [&b""[..], b"to nobody"] {
        let (mut guest, mut channel, memory) = open(usize::MAX, 7);
        memory.with(|end| {
            end.host_ended = true;
            end.gone = true;
        });
        poke(&mut guest, channel.relid);
        assert_eq!(read_all(&mut guest, &mut channel), (vec![], true));
        // The guest's program hears the end first, as it does of any other.
        guest.advance(PARTING.saturating_sub(Duration::from_millis(1)));
        assert!(!rescinded(&mut guest));
        assert!(guest.send(&mut channel, 0, &frame(answer)));
        assert!(rescinded(&mut guest), "{answer:?}");
    }

    let (mut guest, channel, memory) = open(usize::MAX, 7);
    memory.with(|end| end.host_ended = true);
    poke(&mut guest, channel.relid);
    guest.advance(PARTING);
    memory.with(|end| end.gone = true);
    poke(&mut guest, channel.relid);
    assert!(!rescinded(&mut guest));
    guest.advance(PARTING);
    assert!(rescinded(&mut guest), "it says nothing");
    assert!(memory.with(|end| end.dropped));

    let (mut guest, mut channel, memory) = open(usize::MAX, 7);
    memory.with(|end| end.gone = true);
    assert!(guest.send(&mut channel, 0, &frame(b"to nobody")));
    assert!(rescinded(&mut guest));
}

#[test]
fn an_offer_that_nobody_opens_is_taken_back() {
    let mut guest = connected();
    let memory = Memory::new(0);
    accept(&mut guest, &memory);
    guest.advance(OPEN_LIMIT.saturating_sub(Duration::from_millis(1)));
    assert!(!rescinded(&mut guest));
    guest.advance(Duration::from_millis(1));
    assert!(rescinded(&mut guest));
    assert!(memory.with(|end| end.refused && end.dropped && !end.opened));
}

#[test]
fn a_silent_end_lingers_only_so_long() {
    let (mut guest, mut channel, memory) = open(usize::MAX, 7);
    assert!(guest.send(&mut channel, 0, &frame(b"")));
    guest.advance(Duration::from_secs(89));
    memory.with(|end| end.to_guest.extend(b"late"));
    poke(&mut guest, channel.relid);
    assert_eq!(read_all(&mut guest, &mut channel).0, b"late");
    memory.with(|end| end.to_guest.extend(b"later"));
    poke(&mut guest, channel.relid);
    guest.advance(Duration::from_secs(89));
    assert!(!rescinded(&mut guest), "the guest has read since");
    // What it does not read does not count.
    memory.with(|end| end.to_guest.extend(b"latest"));
    poke(&mut guest, channel.relid);
    guest.advance(Duration::from_secs(1));
    assert!(rescinded(&mut guest));
    assert!(memory.with(|end| end.dropped));
}

#[test]
fn a_client_that_left_while_the_ring_was_full_is_not_kept() {
    let (mut guest, channel, memory) = open(usize::MAX, 7);
    memory.with(|end| end.to_guest.extend(vec![1; 100_000]));
    poke(&mut guest, channel.relid);
    memory.with(|end| end.gone = true);
    poke(&mut guest, channel.relid);
    guest.advance(LINGER.saturating_sub(Duration::from_secs(1)));
    assert!(!rescinded(&mut guest), "the guest may still read");
    guest.advance(Duration::from_secs(1));
    assert!(rescinded(&mut guest));
}

#[test]
fn a_reader_that_is_slow_gets_all_before_the_end() {
    let (mut guest, mut channel, memory) = open(0, 32);
    assert!(guest.send(&mut channel, 0, &frame(&[1; 16_000])));
    assert!(guest.send(&mut channel, 0, &frame(b"")));
    // It never reads so much that the host is told of room.
    for _ in 0..40 {
        memory.with(|end| end.room += 500);
        guest.advance(LOOK);
    }
    let (got, ended) = memory.with(|end| (end.got.len(), end.guest_ended));
    assert!((got, ended) == (16_000, true), "{got} bytes came");
}

#[test]
fn a_guest_that_reads_slowly_gets_what_a_client_left_behind() {
    let (mut guest, mut channel, memory) = open(usize::MAX, 7);
    memory.with(|end| end.to_guest.extend(vec![1; 200_000]));
    poke(&mut guest, channel.relid);
    memory.with(|end| (end.host_ended, end.gone) = (true, true));
    poke(&mut guest, channel.relid);
    let mut got = 0;
    while let Some(packet) = guest.receive(&mut channel) {
        got += packet.payload.len() - 8;
        guest.advance(Duration::from_secs(9));
    }
    assert_eq!(got, 200_000);
    guest.advance(PARTING);
    assert!(rescinded(&mut guest), "it has read all, and says nothing");

    // It has ended itself, and goes on with what is in its ring, unasked.
    let (mut guest, mut channel, memory) = open(usize::MAX, 7);
    for _ in 0..10 {
        memory.with(|end| end.to_guest.extend(b"a packet"));
        poke(&mut guest, channel.relid);
    }
    assert!(guest.send(&mut channel, 0, &frame(b"")));
    while guest.receive(&mut channel).is_some() {
        assert!(!rescinded(&mut guest));
        guest.advance(LINGER.saturating_sub(Duration::from_secs(1)));
    }
    guest.advance(LINGER);
    assert!(rescinded(&mut guest), "all is read, and nothing comes");
}

#[test]
fn a_guest_that_closed_behind_a_sleeping_reader_is_let_go() {
    let (mut guest, mut channel, memory) = open(10, 7);
    assert!(guest.send(&mut channel, 0, &frame(&[1; 100])));
    assert!(!rescinded(&mut guest));
    // It only sleeps: that may last.
    guest.advance(Duration::from_secs(1000));
    assert!(!rescinded(&mut guest));
    assert!(guest.send(&mut channel, 0, &frame(b"")));
    guest.advance(LOOK + LINGER);
    assert!(rescinded(&mut guest), "a guest's thread waits for it");
    assert!(memory.with(|end| end.dropped));
}

#[test]
fn a_reader_that_wakes_up_in_time_gets_everything() {
    let (mut guest, mut channel, memory) = open(10, 7);
    assert!(guest.send(&mut channel, 0, &frame(&[1; 100])));
    assert!(guest.send(&mut channel, 0, &frame(b"")));
    guest.advance(LINGER.saturating_sub(Duration::from_secs(1)));
    memory.with(|end| end.room = 50);
    poke(&mut guest, channel.relid);
    guest.advance(LINGER.saturating_sub(Duration::from_secs(1)));
    memory.with(|end| end.room = 1000);
    poke(&mut guest, channel.relid);
    assert!(memory.with(|end| end.got.len() == 100 && end.guest_ended));
}

#[test]
fn what_a_client_sent_before_it_left_arrives() {
    let (mut guest, mut channel, memory) = open(usize::MAX, 7);
    memory.with(|end| {
        end.to_guest.extend(b"the last words");
        end.gone = true;
    });
    // The first that is heard of it is a write that fails.
    assert!(guest.send(&mut channel, 0, &frame(b"hello?")));
    assert!(rescinded(&mut guest));
    assert_eq!(
        read_all(&mut guest, &mut channel),
        (b"the last words".to_vec(), true)
    );
}

#[test]
fn a_connection_that_the_guest_keeps_silent_stays() {
    let (mut guest, _channel, memory) = open(usize::MAX, 7);
    guest.advance(Duration::from_secs(100_000));
    assert!(!rescinded(&mut guest));
    assert!(!memory.with(|end| end.dropped));
}

#[test]
fn nonsense_costs_the_guest_its_connection() {
    let header = |flags: u32, size: u32| [flags.to_le_bytes(), size.to_le_bytes()].concat();
    let cases = [
        vec![],
        header(2, 0),
        header(0, 0),
        header(1, 1),
        header(1, u32::MAX),
        frame(&vec![0; MAX_DATA + 1]),
    ];
    for nonsense in cases {
        let (mut guest, mut channel, memory) = open(usize::MAX, 7);
        guest.send(&mut channel, 0, &nonsense);
        assert!(rescinded(&mut guest), "{nonsense:?}");
        assert!(memory.with(|end| end.dropped && end.got.is_empty()));
    }
    // Data after FIN.
    let (mut guest, mut channel, memory) = open(usize::MAX, 7);
    guest.send(&mut channel, 0, &frame(b""));
    guest.send(&mut channel, 0, &frame(b"x"));
    assert!(rescinded(&mut guest));
    assert!(memory.with(|end| end.dropped && end.got.is_empty()));
}

#[test]
fn the_end_of_the_session_ends_the_connection() {
    let (mut guest, channel, memory) = open(usize::MAX, 7);
    guest.post(&GuestMessage::Unload);
    assert!(memory.with(|end| end.dropped));
    assert_eq!(guest.host().channel_state(channel.relid), None);
}

#[test]
fn a_thousand_connections_leave_nothing_behind() {
    let mut guest = connected();
    for _ in 0..1000 {
        let memory = Memory::new(usize::MAX);
        let relid = accept(&mut guest, &memory);
        assert_eq!(relid, Relid(1));
        let mut channel = guest.open(relid, 7).unwrap();
        guest.send(&mut channel, 0, &frame(b"hi"));
        guest.send(&mut channel, 0, &frame(b""));
        memory.with(|end| end.host_ended = true);
        poke(&mut guest, relid);
        assert!(rescinded(&mut guest));
        while guest.recv().is_some() {}
        guest.post(&GuestMessage::CloseChannel { relid });
        guest.post(&GuestMessage::RelidReleased { relid });
        assert_eq!(guest.host().channel_state(relid), None);
    }
}
