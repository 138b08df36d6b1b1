// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--vmbus-trace`: everything that passes on the bus, decoded, as NDJSON.
//!
//! ```json
//! {"time_us":812345,"from":"guest","message":"OPENCHANNEL","relid":1,"openid":1,…}
//! {"time_us":812399,"from":"host","packet":"in-band","relid":1,"transaction_id":7,"length":24,"data":"0100…"}
//! {"time_us":812401,"from":"host","signal":true,"relid":1}
//! ```

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use vmbus::host::{TraceEvent, Tracer};
use vmbus::wire::{Describe, FieldValue, PacketType, Relid};

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
        Box::new(self.clone())
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

impl Tracer for Trace {
    fn trace(&mut self, now: Duration, event: TraceEvent<'_>) {
        let mut line = Map::new();
        let micros = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        line.insert("time_us".into(), micros.into());
        decode(&mut line, event);
        self.with(|sink| {
            serde_json::to_writer(&mut *sink, &line)?;
            sink.write_all(b"\n")
        });
    }
}

fn decode(line: &mut Map<String, Value>, event: TraceEvent<'_>) {
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
            set("length", json!(packet.payload.len()));
            set("data", json!(hex(packet.payload)));
        }
        TraceEvent::HostPacket(relid, meta, payload) => {
            set("from", json!("host"));
            set("packet", packet_type(meta.packet_type));
            set("relid", json!(relid.0));
            set("flags", json!(meta.flags.bits()));
            set("transaction_id", json!(meta.transaction_id));
            set("length", json!(payload.len()));
            set("data", json!(hex(payload)));
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
    use vmbus::ring::PacketMeta;
    use vmbus::wire::GuestMessage;

    fn line(event: TraceEvent<'_>) -> String {
        let mut line = Map::new();
        decode(&mut line, event);
        serde_json::to_string(&line).unwrap()
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
