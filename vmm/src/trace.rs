// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--vmbus-trace`: everything that passes on the bus, decoded, as NDJSON.
//!
//! ```json
//! {"time_us":812345,"from":"guest","message":"OPENCHANNEL","relid":1,"openid":1,…}
//! {"time_us":812399,"from":"host","packet":"in-band","relid":1,"transaction_id":7,"length":24,"data":"0100…"}
//! {"time_us":812401,"from":"host","signal":true,"relid":1}
//! {"time_us":812650,"from":"guest","packet":"in-band","relid":2,…,"service":{"message":"heartbeat","version":"3.0","status":0,"transaction_id":4,"body":"02…"}}
//! ```
//!
//! A packet on a channel of an integration service has the message in it under
//! `service`, instead of its bytes.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ics_devices::Service;
use ics_devices::wire::IcMessage;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use vmbus::host::{TraceEvent, Tracer};
use vmbus::wire::{Describe, FieldValue, HostMessage, PacketType, Relid};

/// Bytes of a packet that are shown.
const SHOWN: usize = 64;

/// A trace file. Clones write to the same file.
#[derive(Debug, Clone)]
pub struct Trace {
    sink: Arc<Mutex<Option<BufWriter<File>>>>,
}

impl Trace {
    /// Creates the file.
    pub fn create(path: &Path) -> io::Result<Self> {
        let sink = Some(BufWriter::new(File::create(path)?));
        Ok(Self {
            sink: Arc::new(Mutex::new(sink)),
        })
    }

    /// What shows a bus's traffic to this trace.
    pub fn tracer(&self) -> Box<dyn Tracer> {
        Box::new(BusTracer {
            trace: self.clone(),
            decoder: Decoder::default(),
        })
    }

    /// Writes what is buffered: before the bus sleeps.
    pub fn flush(&self) {
        self.with(Write::flush);
    }

    /// A trace that cannot be written is given up with a warning.
    fn with(&self, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        let mut sink = self.sink.lock();
        if let Some(Err(error)) = sink.as_mut().map(write) {
            log::warn!("VMBus trace: {error}; the trace ends here");
            *sink = None;
        }
    }
}

/// Writes one bus's traffic down.
struct BusTracer {
    trace: Trace,
    decoder: Decoder,
}

impl Tracer for BusTracer {
    fn trace(&mut self, now: Duration, event: TraceEvent<'_>) {
        let mut line = Map::new();
        let micros = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        line.insert("time_us".into(), micros.into());
        self.decoder.decode(&mut line, event);
        self.trace.with(|sink| {
            serde_json::to_writer(&mut *sink, &line)?;
            sink.write_all(b"\n")
        });
    }
}

/// Knows which channels are integration services', from their offers.
#[derive(Default)]
struct Decoder {
    services: BTreeSet<Relid>,
}

impl Decoder {
    fn decode(&mut self, line: &mut Map<String, Value>, event: TraceEvent<'_>) {
        let mut set = |key: &str, value: Value| {
            line.insert(key.into(), value);
        };
        match event {
            TraceEvent::GuestMessage(message) => {
                set("from", json!("guest"));
                describe(line, message);
            }
            TraceEvent::HostMessage(message) => {
                set("from", json!("host"));
                describe(line, message);
                self.learn(message);
            }
            TraceEvent::Malformed(error, bytes) => {
                set("from", json!("guest"));
                set("malformed", json!(error.to_string()));
                set("length", json!(bytes.len()));
                set("data", json!(hex(bytes)));
            }
            TraceEvent::GuestSignal(relid) => signal(line, "guest", relid),
            TraceEvent::HostSignal(relid) => signal(line, "host", relid),
            TraceEvent::GuestPacket(relid, packet) => {
                set("from", json!("guest"));
                set("packet", packet_type(packet.packet_type));
                set("relid", json!(relid.0));
                set("flags", json!(packet.flags.bits()));
                set("transaction_id", json!(packet.transaction_id));
                self.payload(line, relid, packet.payload);
            }
            TraceEvent::HostPacket(relid, meta, payload) => {
                set("from", json!("host"));
                set("packet", packet_type(meta.packet_type));
                set("relid", json!(relid.0));
                set("flags", json!(meta.flags.bits()));
                set("transaction_id", json!(meta.transaction_id));
                self.payload(line, relid, payload);
            }
        }
    }

    fn learn(&mut self, message: &HostMessage) {
        let HostMessage::OfferChannel(offer) = message else {
            return;
        };
        let mut services = Service::ALL.into_iter();
        if services.any(|service| service.interface_type() == offer.interface_type) {
            self.services.insert(offer.relid);
        } else {
            // Numbers are used again.
            self.services.remove(&offer.relid);
        }
    }

    fn payload(&self, line: &mut Map<String, Value>, relid: Relid, payload: &[u8]) {
        line.insert("length".into(), payload.len().into());
        let service = self.services.contains(&relid);
        match IcMessage::parse(payload) {
            Ok(message) if service => {
                let mut fields = Map::new();
                describe(&mut fields, &message);
                line.insert("service".into(), fields.into());
            }
            _ => {
                line.insert("data".into(), hex(payload).into());
            }
        }
    }
}

fn signal(line: &mut Map<String, Value>, from: &str, relid: Relid) {
    line.insert("from".into(), from.into());
    line.insert("signal".into(), true.into());
    line.insert("relid".into(), relid.0.into());
}

/// The type's name, or its number if the bus has no name for it.
fn packet_type(kind: PacketType) -> Value {
    match kind {
        PacketType::IN_BAND => "in-band".into(),
        PacketType::COMPLETION => "completion".into(),
        other => other.0.into(),
    }
}

fn describe(line: &mut Map<String, Value>, message: &impl Describe) {
    line.insert("message".into(), message.name().into());
    message.fields(&mut |name, value| {
        let value = match value {
            FieldValue::Number(number) => number.into(),
            FieldValue::Signed(number) => number.into(),
            FieldValue::Bool(yes) => yes.into(),
            FieldValue::Text(text) => text.to_string().into(),
            FieldValue::Bytes(bytes) => hex(bytes).into(),
        };
        line.insert(name.into(), value);
    });
}

/// The start of some bytes, without the zeros that they end in.
fn hex(bytes: &[u8]) -> String {
    let end = bytes.iter().rposition(|byte| *byte != 0);
    let meant = end.map_or(0, |end| end.saturating_add(1));
    let mut text = String::new();
    for byte in bytes.iter().take(meant.min(SHOWN)) {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use ics_devices::wire::{IcHeader, IcVersion, MessageType, Versions};
    use vmbus::bus::OfferSpec;
    use vmbus::host::{Device, EchoDevice};
    use vmbus::ring::PacketMeta;
    use vmbus::wire::{GuestMessage, Offer, USER_DEFINED_SIZE};

    fn line(event: TraceEvent<'_>) -> String {
        line_of(&mut Decoder::default(), event)
    }

    fn line_of(decoder: &mut Decoder, event: TraceEvent<'_>) -> String {
        let mut line = Map::new();
        decoder.decode(&mut line, event);
        serde_json::to_string(&line).unwrap()
    }

    /// A beat with the number 2, on a channel with such an offer.
    fn beat_after(offer: &OfferSpec) -> String {
        let offer = Offer {
            interface_type: offer.interface_type,
            instance: offer.instance,
            flags: offer.flags,
            mmio_megabytes: 0,
            user_defined: [0; USER_DEFINED_SIZE],
            sub_channel_index: 0,
            relid: Relid(1),
            monitor_id: None,
            dedicated_interrupt: true,
            connection_id: 9,
        };
        let versions = Versions {
            framework: IcVersion::new(3, 0),
            service: IcVersion::new(3, 0),
        };
        let header = IcHeader::request(MessageType::HEARTBEAT, versions, 7);
        let mut payload = header.emit(8).unwrap().to_vec();
        payload.extend_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0]);
        let mut decoder = Decoder::default();
        line_of(
            &mut decoder,
            TraceEvent::HostMessage(&HostMessage::OfferChannel(offer)),
        );
        let meta = PacketMeta::in_band(1);
        line_of(
            &mut decoder,
            TraceEvent::HostPacket(Relid(1), meta, &payload),
        )
    }

    #[test]
    fn a_services_packet_is_decoded() {
        let text = beat_after(&Service::Heartbeat.offer());
        let service = concat!(
            r#""service":{"body":"02","flags":3,"framework":"3.0","message":"heartbeat","#,
            r#""status":0,"transaction_id":7,"type":1,"version":"3.0"}"#
        );
        assert!(text.contains(service), "{text}");
        assert!(!text.contains("data"), "{text}");
    }

    #[test]
    fn what_looks_like_one_on_another_channel_is_not() {
        let text = beat_after(&EchoDevice::default().offer());
        assert!(text.contains("data") && !text.contains("service"), "{text}");
    }

    #[test]
    fn messages_are_shown_by_name_with_their_fields() {
        let message = GuestMessage::CloseChannel { relid: Relid(3) };
        assert_eq!(
            line(TraceEvent::GuestMessage(&message)),
            r#"{"from":"guest","message":"CLOSECHANNEL","relid":3}"#
        );
    }

    #[test]
    fn packets_are_shown_without_trailing_zeros_and_cut() {
        let meta = PacketMeta::in_band(7);
        let text = line(TraceEvent::HostPacket(Relid(1), meta, &[1, 2, 0, 0]));
        assert!(
            text.contains(r#""data":"0102""#) && text.contains(r#""length":4"#),
            "{text}"
        );
        let long = line(TraceEvent::HostPacket(Relid(1), meta, &[0xFF; 1000]));
        assert!(long.len() < 300, "{long}");
    }

    #[test]
    fn a_signal_names_its_channel() {
        assert_eq!(
            line(TraceEvent::HostSignal(Relid(2))),
            r#"{"from":"host","relid":2,"signal":true}"#
        );
    }
}
