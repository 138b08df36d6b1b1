// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What passes on the bus, decoded, as NDJSON: for `--vmbus-trace` and for
//! clients of `GET /v1/trace`. While nobody reads it, nothing is decoded.
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

use crate::audience::{Audience, Watcher};
use crate::escape;
use crate::feed::{Feed, FeedEnd};

/// Bytes of a packet that are shown.
const SHOWN: usize = 64;

/// Bytes of lines that are gathered for clients before they are lost.
const MAX_BATCH: usize = 128 << 10;
/// Batches that wait for the API thread.
const BATCHES: usize = 16;

/// Where traffic is shown. Clones lead to the same place.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The file, and clients.
    audience: Audience,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<(BufWriter<File>, Watcher)>,
    feed: Option<Feed>,
    /// Lines for clients since the bus last slept.
    batch: Vec<u8>,
    lines: u64,
    /// Lines that clients were too slow for, and have not been told of.
    lost: u64,
}

impl Trace {
    /// Writes everything to a new file too.
    pub fn create(path: &Path) -> io::Result<Self> {
        let trace = Self::default();
        let file = BufWriter::new(File::create(path)?);
        let watcher = trace.shared.audience.join();
        trace.shared.state.lock().file = Some((file, watcher));
        Ok(trace)
    }

    /// Makes the API thread's end.
    pub fn subscribe(&self) -> io::Result<FeedEnd> {
        let (feed, end) = Feed::new(BATCHES)?;
        self.shared.state.lock().feed = Some(feed);
        Ok(end)
    }

    /// Who reads it.
    pub fn audience(&self) -> &Audience {
        &self.shared.audience
    }

    /// What shows a bus's traffic, on which `services` are services' channels.
    pub fn tracer(&self, services: BTreeSet<Relid>) -> Box<dyn Tracer> {
        Box::new(BusTracer {
            trace: self.clone(),
            decoder: Decoder { services },
        })
    }

    /// Passes on what is gathered: before the bus sleeps.
    pub fn flush(&self) {
        let mut state = self.shared.state.lock();
        state.write(Write::flush);
        if state.lines == 0 {
            return;
        }
        let mut batch = std::mem::take(&mut state.batch);
        if state.lost > 0 {
            batch.extend_from_slice(format!("{{\"lost\":{}}}\n", state.lost).as_bytes());
        }
        let taken = state
            .feed
            .as_ref()
            .is_some_and(|feed| feed.offer(batch.into()));
        state.lost = if taken { 0 } else { state.lost + state.lines };
        state.lines = 0;
    }

    fn line(&self, line: &[u8]) {
        let mut state = self.shared.state.lock();
        state.write(|file| file.write_all(line));
        if self.shared.audience.count() <= usize::from(state.file.is_some()) {
            return;
        }
        if state.batch.len() + line.len() > MAX_BATCH {
            state.lost += 1;
        } else {
            state.batch.extend_from_slice(line);
            state.lines += 1;
        }
    }
}

impl State {
    /// A file that cannot be written is given up with a warning.
    fn write(&mut self, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        let file = self.file.as_mut();
        if let Some(Err(error)) = file.map(|(file, _)| write(file)) {
            log::warn!("VMBus trace: {error}; the trace ends here");
            self.file = None;
        }
    }
}

/// Shows one bus's traffic.
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
        match serde_json::to_string(&line) {
            Ok(json) => {
                let mut bytes = escape::json(json).into_bytes();
                bytes.push(b'\n');
                self.trace.line(&bytes);
            }
            Err(error) => log::warn!("VMBus trace: {error}"),
        }
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
