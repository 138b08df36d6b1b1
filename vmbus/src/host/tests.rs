// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packets between the mock guest and devices: order, back-pressure, signals.

mod memory;

use std::collections::VecDeque;
use std::sync::{Arc as StdArc, Mutex};

use super::*;
use crate::bus::{OfferSpec, Violation};
use crate::mock::{GuestChannel, MockGuest};
use crate::ring::PacketMeta;
use crate::wire::{Describe, Guid, PacketType, ProtocolVersion, VpIndex};

fn connected(device: Box<dyn Device>) -> (MockGuest, Relid) {
    let mut guest = MockGuest::new(1);
    let relid = guest.offer(device);
    assert!(guest.connect(ProtocolVersion::V5_3));
    guest.request_offers();
    (guest, relid)
}

fn echo(pages: u64) -> (MockGuest, GuestChannel) {
    let (mut guest, relid) = connected(Box::new(EchoDevice::default()));
    let channel = guest.open(relid, pages).unwrap();
    (guest, channel)
}

fn payload(id: u64) -> Vec<u8> {
    let len = usize::try_from(id * 7919 % 2000).unwrap();
    let fill = u8::try_from(id % 251).unwrap();
    vec![fill; len]
}

fn assert_is(packet: &crate::mock::GuestPacket, id: u64) {
    assert_eq!(packet.transaction_id, id);
    let expected = payload(id);
    assert_eq!(packet.payload[..expected.len()], expected);
}

#[test]
fn packets_of_mixed_sizes_come_back_in_order() {
    let (mut guest, mut channel) = echo(4);
    for id in 0..20_000 {
        assert!(guest.send(&mut channel, id, &payload(id)));
        assert_is(&guest.receive(&mut channel).unwrap(), id);
    }
    assert_eq!(guest.receive(&mut channel), None);
    assert_eq!(
        guest
            .host()
            .device::<EchoDevice>(channel.relid)
            .unwrap()
            .echoed(),
        20_000
    );
}

/// Writes until neither direction takes any more, then reads some, and so on:
/// both rings are full most of the time.
fn flood(masked: bool, read_at_once: usize) {
    let (mut guest, mut channel) = echo(3);
    channel.incoming.set_mask(masked);
    let (mut sent, mut received) = (0u64, 0u64);
    let mut both_full = 0;
    while received < 20_000 {
        while sent < 20_000 && guest.send(&mut channel, sent, &payload(sent)) {
            sent += 1;
        }
        let stuck = channel.outgoing.free() < 2100 && channel.incoming.free() < 2100;
        both_full += usize::from(stuck);
        let mut read = 0;
        while read < read_at_once {
            let Some(packet) = channel.incoming.read() else {
                break;
            };
            assert_is(&packet, received);
            received += 1;
            read += 1;
        }
        assert!(read > 0, "stuck at {received} of {sent}");
        if channel.incoming.commit() {
            guest.signal(channel.relid);
        }
    }
    assert!(both_full > 100, "{both_full}");
    assert_eq!(channel.incoming.read(), None);
    assert_eq!(guest.host().violations().total(), 0);
}

#[test]
fn full_rings_in_both_directions_lose_and_stick_nothing() {
    flood(false, 1);
    flood(false, 3);
    flood(false, 1000);
}

#[test]
fn full_rings_with_the_guests_interrupts_masked_do_neither() {
    flood(true, 1);
    flood(true, 7);
}

#[test]
fn a_batch_of_packets_costs_one_signal_each_way() {
    let (mut guest, mut channel) = echo(4);
    let before = guest.counts();
    // Written before the host hears of the first.
    assert_eq!(channel.outgoing.write(0, b"first"), Some(true));
    for id in 1..50 {
        assert_eq!(channel.outgoing.write(id, b"more"), Some(false));
    }
    guest.signal(channel.relid);
    let after = guest.counts();
    assert_eq!(after.signals - before.signals, 1);
    assert_eq!(after.events - before.events, 1);
    for id in 0..50 {
        assert_eq!(guest.receive(&mut channel).unwrap().transaction_id, id);
    }
}

#[test]
fn a_long_batch_is_served_in_turns_until_it_is_done() {
    let (mut guest, mut channel) = echo(30);
    let many = 3 * MAX_PACKETS_PER_TURN as u64;
    for id in 0..many {
        channel.outgoing.write(id, b"x").unwrap();
    }
    guest.signal(channel.relid);
    let received = std::iter::from_fn(|| channel.incoming.read()).count();
    assert_eq!(received as u64, many);
    assert!(!channel.outgoing.is_masked(), "it asks for signals again");
}

#[test]
fn a_turn_is_over_after_256_packets() {
    let (mut guest, mut channel) = echo(30);
    for id in 0..2 * MAX_PACKETS_PER_TURN as u64 {
        channel.outgoing.write(id, b"x").unwrap();
    }
    let relid = channel.relid;
    let (deadline, echoed) = guest.with_host(|host, now| {
        host.handle_event(now, relid);
        let echoed = host.device::<EchoDevice>(relid).unwrap().echoed();
        (host.next_deadline(), echoed)
    });
    assert_eq!(echoed, MAX_PACKETS_PER_TURN as u64);
    assert_eq!(deadline, Some(Duration::ZERO), "the rest wants a turn");
}

#[test]
fn the_ring_is_masked_while_it_is_served_and_packets_in_between_are_seen() {
    let (mut guest, mut channel) = echo(4);
    // No signal: the guest wrote while the host was looking.
    channel.outgoing.write(1, b"unseen").unwrap();
    guest.with_host(|host, now| host.handle_event(now, channel.relid));
    assert_eq!(guest.receive(&mut channel).unwrap().transaction_id, 1);
    assert!(!channel.outgoing.is_masked());
}

#[test]
fn a_guest_that_waits_for_room_is_signalled_once_when_there_is() {
    let (mut guest, mut channel) = echo(3);
    // The echo stalls on a full ring, and then ours fills up.
    let mut id = 0;
    while guest.send(&mut channel, id, &[0; 1000]) {
        id += 1;
    }
    assert_eq!(channel.outgoing.pending_send_sz(), 1024);
    guest.take_events();
    let before = guest.counts().events;
    assert_eq!(channel.incoming.read().unwrap().transaction_id, 0);
    assert!(channel.incoming.commit(), "the host waits, too");
    guest.signal(channel.relid);
    assert_eq!(guest.counts().events - before, 1);
    assert!(guest.send(&mut channel, id, &[0; 1000]));
}

#[test]
fn a_packet_that_wants_a_completion_gets_one() {
    let (mut guest, mut channel) = echo(4);
    channel
        .outgoing
        .write_packet(6, 1, 77, b"answer!!")
        .unwrap();
    guest.signal(channel.relid);
    let packet = guest.receive(&mut channel).unwrap();
    assert_eq!((packet.packet_type, packet.transaction_id), (0xb, 77));
    assert_eq!(packet.payload, b"answer!!");
}

#[test]
fn a_broken_ring_ends_its_channel_and_no_other() {
    let mut guest = MockGuest::new(1);
    let bad = guest.offer(Box::new(EchoDevice::default()));
    let good = guest.offer(Box::new(EchoDevice::new(Guid::from_u128(1))));
    assert!(guest.connect(ProtocolVersion::V5_3));
    guest.request_offers();
    let mut broken = guest.open(bad, 4).unwrap();
    let mut sound = guest.open(good, 4).unwrap();
    broken.outgoing.set_indices(0x7fff_fff8, 0);
    guest.signal(bad);
    assert!(!guest.host().is_open(bad));
    let violations = guest.host().violations();
    assert!(matches!(violations.last(), Some(Violation::BrokenRing(relid, _)) if *relid == bad));
    assert!(guest.send(&mut sound, 1, b"still ok"));
    assert!(guest.receive(&mut sound).is_some());

    // Nothing is written to its rings any more, and it can be opened again.
    broken.outgoing.set_indices(0, 0);
    broken.outgoing.write(1, b"hello?!!").unwrap();
    guest.signal(bad);
    assert!(guest.receive(&mut broken).is_none());
    guest.close(&broken);
    let mut again = guest.open(bad, 4).unwrap();
    assert!(guest.send(&mut again, 2, b"hello!!!"));
    assert!(guest.receive(&mut again).is_some());
}

#[test]
fn a_packet_too_large_for_the_way_back_ends_the_channel() {
    let (mut guest, relid) = connected(Box::new(EchoDevice::default()));
    let pfns = guest.alloc(8);
    let gpadl = guest.create_gpadl(relid, &pfns).unwrap();
    let mut outgoing = crate::mock::GuestRing::init(guest.memory(), &pfns[..6]);
    crate::mock::GuestRing::init(guest.memory(), &pfns[6..]);
    guest.post(&GuestMessage::OpenChannel(crate::wire::OpenChannel {
        relid,
        open_id: 1,
        gpadl,
        target_vp: VpIndex(0),
        downstream_offset: 6,
        user_data: [0; 120],
    }));
    outgoing.write(1, &[0; 8000]).unwrap();
    guest.signal(relid);
    assert!(matches!(
        guest.host().violations().last(),
        Some(Violation::BadPacket(_))
    ));
    assert!(!guest.host().is_open(relid));
}

#[test]
fn events_for_a_guest_that_does_not_read_its_messages_do_not_pile_up() {
    let (mut guest, mut channel) = echo(4);
    guest.set_deaf(true);
    let refused = GuestMessage::CloseChannel { relid: Relid(99) };
    for id in 0.. {
        let header = crate::mock::gpadl_messages(Relid(99), crate::wire::GpadlId(id), &[5])[0];
        if guest.post(&header) != HvStatus::SUCCESS {
            break;
        }
    }
    assert_eq!(guest.post(&refused), HvStatus::INSUFFICIENT_BUFFERS);
    let waiting = guest.host().pending_actions();
    for id in 0..1000 {
        assert!(guest.send(&mut channel, id, b"x"));
        assert!(
            guest.receive(&mut channel).is_some(),
            "data flows all the same"
        );
    }
    assert!(guest.host().pending_actions() <= waiting + 1);
}

/// Sends a beat every second, and what the host gives it.
#[derive(Default)]
struct Beat {
    next: Option<Duration>,
    queue: VecDeque<Vec<u8>>,
    closed: u32,
}

impl Beat {
    const EVERY: Duration = Duration::from_secs(1);
}

impl Device for Beat {
    fn offer(&self) -> OfferSpec {
        OfferSpec::message_pipe(Guid::from_u128(1), Guid::from_u128(2))
    }

    fn opened(&mut self, now: Duration, channel: &mut Channel<'_>) -> Result<(), SendError> {
        self.next = Some(now + Self::EVERY);
        assert_eq!(channel.user_data(), &[0; 120]);
        channel.send(PacketMeta::in_band(0), &[b"welcome!"])
    }

    fn packet(
        &mut self,
        _: Duration,
        _: &mut Channel<'_>,
        packet: &Packet<'_>,
    ) -> Result<Flow, DeviceError> {
        (packet.packet_type == PacketType::IN_BAND)
            .then_some(Flow::Done)
            .ok_or(DeviceError)
    }

    fn poll(&mut self, now: Duration, channel: &mut Channel<'_>) -> Result<(), SendError> {
        if self.next.is_some_and(|next| next <= now) {
            self.next = Some(now + Self::EVERY);
            self.queue.push_back(b"beat____".to_vec());
        }
        while let Some(bytes) = self.queue.front() {
            channel.send(PacketMeta::in_band(1), &[bytes])?;
            self.queue.pop_front();
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Duration> {
        self.next
    }

    fn closed(&mut self, _: Duration) {
        self.next = None;
        self.queue.clear();
        self.closed += 1;
    }
}

#[test]
fn a_device_sends_when_it_opens_and_at_its_deadlines() {
    let (mut guest, relid) = connected(Box::<Beat>::default());
    assert_eq!(guest.host().next_deadline(), None);
    let mut channel = guest.open(relid, 4).unwrap();
    assert_eq!(guest.receive(&mut channel).unwrap().payload, b"welcome!");
    guest.advance(Duration::from_millis(999));
    assert_eq!(guest.receive(&mut channel), None);
    guest.advance(Duration::from_millis(4001));
    let beats = std::iter::from_fn(|| guest.receive(&mut channel)).count();
    assert_eq!(beats, 5);
    guest.close(&channel);
    assert_eq!(guest.host().next_deadline(), None);
    assert_eq!(guest.host().device::<Beat>(relid).unwrap().closed, 1);
}

#[test]
fn what_a_poked_device_cannot_send_at_once_it_sends_when_there_is_room() {
    let (mut guest, relid) = connected(Box::<Beat>::default());
    let mut channel = guest.open(relid, 3).unwrap();
    guest.with_host(|host, now| {
        let beat = host.device_mut::<Beat>(relid).unwrap();
        beat.queue.extend((0..50u8).map(|n| vec![n; 1000]));
        host.poke(now, relid);
    });
    assert_eq!(guest.receive(&mut channel).unwrap().payload, b"welcome!");
    for n in 0..50u8 {
        assert_eq!(
            guest.receive(&mut channel).unwrap().payload,
            [n; 1000],
            "{n}"
        );
    }
    assert_eq!(guest.host().find::<Beat>(), Some(relid));
    assert_eq!(guest.host().find::<EchoDevice>(), None);
}

#[test]
fn a_packet_that_the_device_refuses_ends_the_channel() {
    let (mut guest, relid) = connected(Box::<Beat>::default());
    let mut channel = guest.open(relid, 3).unwrap();
    channel
        .outgoing
        .write_packet(7, 0, 1, b"what's this")
        .unwrap();
    guest.signal(relid);
    assert!(!guest.host().is_open(relid));
    assert_eq!(
        guest.host().violations().last(),
        Some(&Violation::BadPacket(relid))
    );
    assert_eq!(guest.host().device::<Beat>(relid).unwrap().closed, 1);
}

#[test]
fn a_rescinded_device_is_closed_at_once_and_once() {
    let (mut guest, relid) = connected(Box::<Beat>::default());
    let channel = guest.open(relid, 3).unwrap();
    guest
        .with_host(|host, now| host.rescind(now, relid))
        .unwrap();
    assert_eq!(guest.host().device::<Beat>(relid).unwrap().closed, 1);
    guest.advance(Duration::from_secs(10));
    guest.signal(relid);
    guest.post(&GuestMessage::CloseChannel {
        relid: channel.relid,
    });
    assert_eq!(guest.host().device::<Beat>(relid).unwrap().closed, 1);
    guest.post(&GuestMessage::RelidReleased { relid });
    assert!(guest.host().device::<Beat>(relid).is_none(), "gone");
}

#[derive(Clone, Default)]
struct Lines(StdArc<Mutex<Vec<String>>>);

impl Tracer for Lines {
    fn trace(&mut self, now: Duration, event: TraceEvent<'_>) {
        let line = match event {
            TraceEvent::GuestMessage(message) => format!("> {}", message.name()),
            TraceEvent::Malformed(error, _) => format!("> ? {error}"),
            TraceEvent::HostMessage(message) => format!("< {}", message.name()),
            TraceEvent::GuestSignal(relid) => format!("> signal {relid}"),
            TraceEvent::HostSignal(relid) => format!("< signal {relid}"),
            TraceEvent::GuestPacket(relid, packet) => {
                format!("> packet {relid} {:?}", packet.packet_type)
            }
            TraceEvent::HostPacket(relid, _, payload) => {
                format!("< packet {relid} {}", payload.len())
            }
        };
        self.0
            .lock()
            .unwrap()
            .push(format!("{} {line}", now.as_secs()));
    }
}

#[test]
fn a_tracer_sees_everything_that_passes() {
    let lines = Lines::default();
    let mut guest = MockGuest::new(1);
    let tracer = Box::new(lines.clone());
    guest.with_host(|host, _| host.set_tracer(Some(tracer)));
    let relid = guest.offer(Box::new(EchoDevice::default()));
    guest.advance(Duration::from_secs(3));
    assert!(guest.connect(ProtocolVersion::V5_3));
    guest.request_offers();
    let mut channel = guest.open(relid, 4).unwrap();
    guest.send(&mut channel, 1, b"12345678");
    guest.post_bytes(4, &[1]);
    let seen = lines.0.lock().unwrap().join("\n");
    let expected = "\
3 > INITIATE_CONTACT
3 < VERSION_RESPONSE
3 > REQUESTOFFERS
3 < OFFERCHANNEL
3 < ALLOFFERS_DELIVERED
3 > GPADL_HEADER
3 < GPADL_CREATED
3 > OPENCHANNEL
3 < OPENCHANNEL_RESULT
3 > signal relid 1
3 > packet relid 1 data-inband
3 < packet relid 1 8
3 < signal relid 1
3 > ? 1 bytes are no message";
    assert_eq!(seen, expected);
}
