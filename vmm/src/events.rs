// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Events of a machine's life, as NDJSON: one JSON object a line.
//!
//! Every line has `event`, `time_unix_ms` and `uptime_ms`; the rest depends on
//! the event.

use std::fs::File;
use std::io::{self, Write};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::cli::EventLogTarget;
use crate::cpu::Snapshot;
use crate::hyperv::{CrashReport, SynicMode};
use crate::sys;

/// Something that happened to the machine.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The machine is about to run its first instruction, also after a reset.
    Running {
        /// Number of vCPUs.
        vcpus: u32,
        /// Memory in MiB.
        memory_mib: u64,
        /// Who emulates the SynIC.
        synic: SynicMode,
        /// How often it has been reset before.
        resets: u64,
    },
    /// The guest powered off.
    PoweredOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest crashed.
    Crashed {
        /// How it is known.
        cause: CrashCause,
        /// What the guest told, if it did.
        #[serde(flatten, skip_serializing_if = "Option::is_none")]
        report: Option<CrashReport>,
        /// The vCPU that told it.
        #[serde(skip_serializing_if = "Option::is_none")]
        registers: Option<Snapshot>,
    },
    /// `--timeout` passed.
    TimedOut,
    /// A signal, or the user at the terminal, ended the machine.
    Interrupted {
        /// Which.
        by: String,
    },
    /// The host could not go on.
    HostFailed {
        /// Why.
        message: String,
    },
    /// The last line: the process ends.
    Exit {
        /// With this code.
        code: u8,
    },
}

/// How a crash came to light.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CrashCause {
    /// The guest wrote the crash MSRs.
    Reported,
    /// A CPU could not deliver an exception.
    TripleFault,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    event: &'a Event,
    time_unix_ms: u64,
    uptime_ms: u64,
}

/// Where events go.
pub struct EventLog {
    sink: Option<File>,
    start: Instant,
}

impl EventLog {
    /// A log that goes nowhere.
    pub fn none() -> Self {
        Self {
            sink: None,
            start: Instant::now(),
        }
    }

    /// Opens the target.
    pub fn open(target: &EventLogTarget) -> io::Result<Self> {
        let sink = match target {
            EventLogTarget::Path(path) => File::create(path)?,
            EventLogTarget::Descriptor(fd) => sys::duplicate(*fd)?.into(),
        };
        Ok(Self {
            sink: Some(sink),
            ..Self::none()
        })
    }

    /// Writes an event. A log that cannot be written is given up with a
    /// warning: the guest is worth more than its log.
    pub fn write(&mut self, event: &Event) {
        let Some(sink) = &mut self.sink else { return };
        let line = Line {
            event,
            time_unix_ms: millis(
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default(),
            ),
            uptime_ms: millis(self.start.elapsed()),
        };
        let written = serde_json::to_vec(&line)
            .map_err(io::Error::from)
            .and_then(|mut bytes| {
                bytes.push(b'\n');
                sink.write_all(&bytes)
            });
        if let Err(error) = written {
            log::warn!("event log: {error}; no more events are written");
            self.sink = None;
        }
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(event: &Event) -> String {
        serde_json::to_string(&Line {
            event,
            time_unix_ms: 1,
            uptime_ms: 2,
        })
        .unwrap()
    }

    #[test]
    fn an_event_is_one_flat_line() {
        assert_eq!(
            json(&Event::Exit { code: 20 }),
            r#"{"event":"exit","code":20,"time_unix_ms":1,"uptime_ms":2}"#
        );
        assert_eq!(
            json(&Event::PoweredOff),
            r#"{"event":"powered-off","time_unix_ms":1,"uptime_ms":2}"#
        );
    }

    #[test]
    fn a_crash_carries_the_guests_words() {
        let event = Event::Crashed {
            cause: CrashCause::Reported,
            report: Some(CrashReport {
                parameters: [1, 2, 3, 4, 5],
                message: Some("panic\n\"quoted\"".into()),
            }),
            registers: None,
        };
        assert_eq!(
            json(&event),
            concat!(
                r#"{"event":"crashed","cause":"reported","parameters":[1,2,3,4,5],"#,
                r#""message":"panic\n\"quoted\"","time_unix_ms":1,"uptime_ms":2}"#
            )
        );
    }
}
