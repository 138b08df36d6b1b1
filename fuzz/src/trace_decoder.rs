// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What shows traffic to users: messages and packets with any bytes become one line of
//! JSON each, of bounded length.

use std::collections::BTreeSet;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use ics_devices::Service;
use serde_json::Value;
use vmbus::host::{Packet, TraceEvent};
use vmbus::ring::PacketMeta;
use vmbus::wire::{GuestMessage, HostMessage, PacketFlags, PacketType, Relid};
use vmm::trace::Trace;

use crate::step::{Step, array, blob, steps, write_blob};

/// The longest line: 64 bytes of a packet are shown, and all fields of a message.
const MAX_LINE: usize = 4096;

/// Something passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passing {
    /// A message of the guest, or what is none.
    FromGuest(Vec<u8>),
    /// A message to the guest.
    ToGuest(Vec<u8>),
    /// A packet: channel, type, flags.
    Packet(u8, u16, u16, Vec<u8>),
    /// A signal: of whom, on which channel.
    Signal(bool, u8),
}

impl Step for Passing {
    fn read(input: &mut Unstructured<'_>) -> Result<Self> {
        let [op] = array(input)?;
        Ok(match op % 8 {
            0..3 => Self::FromGuest(blob(input)?),
            3 => Self::ToGuest(blob(input)?),
            4..7 => {
                let [relid] = array(input)?;
                let (kind, flags) = (array(input)?, array(input)?);
                let (kind, flags) = (u16::from_le_bytes(kind), u16::from_le_bytes(flags));
                Self::Packet(relid, kind, flags, blob(input)?)
            }
            _ => {
                let [from, relid] = array(input)?;
                Self::Signal(from & 1 != 0, relid)
            }
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::FromGuest(bytes) => {
                out.push(0);
                write_blob(out, bytes);
            }
            Self::ToGuest(bytes) => {
                out.push(3);
                write_blob(out, bytes);
            }
            Self::Packet(relid, kind, flags, bytes) => {
                out.extend([4, *relid]);
                out.extend(kind.to_le_bytes());
                out.extend(flags.to_le_bytes());
                write_blob(out, bytes);
            }
            Self::Signal(host, relid) => out.extend([7, u8::from(*host), *relid]),
        }
    }
}

/// Shows what `data` says.
pub fn run(data: &[u8]) {
    let trace = Trace::default();
    let end = trace.subscribe().unwrap();
    let _reader = trace.audience().join();
    // The first two channels are services'.
    let services = BTreeSet::from([Relid(1), Relid(2)]);
    let mut tracer = trace.tracer(services);
    let mut passed = 0;
    for step in steps(data) {
        let at = Duration::from_micros(passed);
        let mut show = |event: TraceEvent<'_>| {
            passed += 1;
            tracer.trace(at, event);
        };
        match &step {
            Passing::FromGuest(bytes) => match GuestMessage::parse(bytes) {
                Ok(message) => show(TraceEvent::GuestMessage(&message)),
                Err(error) => show(TraceEvent::Malformed(error, bytes)),
            },
            Passing::ToGuest(bytes) => {
                if let Ok(message) = HostMessage::parse(bytes) {
                    show(TraceEvent::HostMessage(&message));
                }
            }
            Passing::Packet(relid, kind, flags, bytes) => {
                let meta = PacketMeta {
                    packet_type: PacketType(*kind),
                    flags: PacketFlags::from_bits_retain(*flags),
                    transaction_id: u64::from(*kind) << 48,
                };
                let relid = Relid(u32::from(*relid));
                show(TraceEvent::HostPacket(relid, meta, bytes));
                let packet = Packet {
                    packet_type: meta.packet_type,
                    flags: meta.flags,
                    transaction_id: meta.transaction_id,
                    extended_header: &[],
                    payload: bytes,
                };
                show(TraceEvent::GuestPacket(relid, &packet));
            }
            Passing::Signal(true, relid) => show(TraceEvent::HostSignal(Relid((*relid).into()))),
            Passing::Signal(false, relid) => show(TraceEvent::GuestSignal(Relid((*relid).into()))),
        }
    }
    trace.flush();
    let lines = end.take();
    let mut count = 0;
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        assert!(line.len() <= MAX_LINE, "{} bytes in a line", line.len());
        let _: Value = serde_json::from_slice(line).expect("each line is JSON");
        count += 1;
    }
    assert_eq!(count, passed, "a line for each");
}

/// A message of each kind that matters, and packets of services.
pub fn seeds() -> Vec<(&'static str, Vec<Passing>)> {
    use Passing as P;
    let message = |kind: u32, length: usize| {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.resize(length, 1);
        bytes
    };
    let mut offer = message(1, 204);
    offer[8..24].copy_from_slice(&Service::Kvp.interface_type().to_bytes());
    let mut packet = vec![0, 0, 0, 0, 36, 0, 0, 0, 3, 0, 0, 0, 4, 0, 3, 0, 3, 0, 0, 0];
    packet.resize(90, 7);
    vec![
        (
            "messages",
            (1..25)
                .map(|kind| P::FromGuest(message(kind, 120)))
                .collect(),
        ),
        (
            "answers",
            (2..25).map(|kind| P::ToGuest(message(kind, 100))).collect(),
        ),
        (
            "packets",
            vec![
                P::ToGuest(offer),
                P::Packet(1, 6, 1, packet.clone()),
                P::Packet(9, 11, 0, packet),
                P::Packet(2, 6, 0, vec![]),
                P::Signal(true, 1),
                P::Signal(false, 9),
                P::FromGuest(vec![]),
            ],
        ),
    ]
}
