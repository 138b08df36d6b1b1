// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Events of a machine's life, as NDJSON: one JSON object a line.
//!
//! Every line has `event`, `time_unix_ms` and `uptime_ms`; the rest depends on
//! the event.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;
use vmbus::hyperv::CrashReport;

use crate::audience::{Audience, Watcher};
use crate::cli::EventLogTarget;
use crate::cpu::Snapshot;
use crate::escape;
use crate::feed::{Feed, FeedEnd};
use crate::output::Output;
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
        synic: &'static str,
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
        report: Option<CrashRecord>,
        /// The vCPU that told it.
        #[serde(skip_serializing_if = "Option::is_none")]
        registers: Option<Snapshot>,
    },
    /// The vCPUs stand still.
    Paused,
    /// They go on.
    Resumed,
    /// A service got further, or fell back.
    Service {
        /// Which.
        name: &'static str,
        /// How far it is now.
        state: &'static str,
        /// One line about it.
        detail: String,
    },
    /// What the heartbeat tells of the guest has changed.
    Health {
        /// What it tells now.
        health: &'static str,
    },
    /// The guest has accepted to shut down, reboot or hibernate.
    ShutdownAccepted {
        /// What it was asked for.
        action: &'static str,
    },
    /// The guest's file systems: thawed, freezing, frozen, or unknown.
    Filesystems {
        /// What they are now.
        state: &'static str,
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

/// What a crashed guest told, as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CrashRecord {
    /// The five parameters as the guest wrote them.
    pub parameters: [u64; 5],
    /// The end of the guest's log, when it sent one.
    pub message: Option<String>,
}

/// Bytes of a crash report's text as it is shown: what is escaped takes the place of
/// what came earlier.
const MAX_MESSAGE: usize = 4096;

impl From<CrashReport> for CrashRecord {
    fn from(report: CrashReport) -> Self {
        // The words end on somebody's terminal.
        let shown = |text| escape::tail(text, MAX_MESSAGE);
        Self {
            parameters: report.parameters,
            message: report.message.map(shown),
        }
    }
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

/// How many past events a new reader is shown.
const BACKLOG: usize = 256;
/// Bytes of them: what a guest says when it crashes may be long.
const MAX_BACKLOG: usize = 128 << 10;
/// Events that wait for the API thread; more are dropped for its readers.
const QUEUE: usize = 1024;

/// Where events go: a file, and whoever reads them through the API. Clones
/// lead to the same place.
#[derive(Clone)]
pub struct EventHub {
    state: Arc<Mutex<State>>,
    audience: Audience,
    start: Instant,
}

#[derive(Default)]
struct State {
    sink: Option<(Output, Watcher)>,
    /// Events that the file's reader was too slow for.
    dropped: u64,
    backlog: VecDeque<Arc<[u8]>>,
    backlog_bytes: usize,
    feed: Option<Feed>,
}

/// The API thread's end of a hub.
pub struct EventLines {
    hub: EventHub,
    /// The lines that are new.
    pub new: FeedEnd,
}

impl EventHub {
    /// A hub without a file.
    pub fn none() -> Self {
        Self {
            state: Arc::default(),
            audience: Audience::default(),
            start: Instant::now(),
        }
    }

    /// A hub that writes to a target of the user's.
    pub fn open(target: &EventLogTarget) -> io::Result<Self> {
        let sink: File = match target {
            EventLogTarget::Path(path) => File::create(path)?,
            EventLogTarget::Descriptor(fd) => sys::duplicate(*fd)?.into(),
        };
        let hub = Self::none();
        let output = Output::start("events", Box::new(sink))?;
        hub.state.lock().sink = Some((output, hub.audience.join()));
        Ok(hub)
    }

    /// Writes what is left. Call it before the process ends.
    pub fn finish(&self) {
        let sink = self.state.lock().sink.take();
        drop(sink);
    }

    /// Since when events have been written.
    pub fn uptime(&self) -> Duration {
        self.start.elapsed()
    }

    /// Who reads events as they come.
    pub fn audience(&self) -> &Audience {
        &self.audience
    }

    /// Makes the API thread's end.
    pub fn subscribe(&self) -> io::Result<EventLines> {
        let (feed, new) = Feed::new(QUEUE)?;
        self.state.lock().feed = Some(feed);
        Ok(EventLines {
            hub: self.clone(),
            new,
        })
    }

    /// Writes an event. A log whose reader has stopped loses events, with a
    /// warning: the guest is worth more than its log.
    pub fn write(&self, event: &Event) {
        let line = Line {
            event,
            time_unix_ms: millis(
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default(),
            ),
            uptime_ms: millis(self.start.elapsed()),
        };
        let mut bytes = match serde_json::to_string(&line) {
            Ok(json) => escape::json(json).into_bytes(),
            Err(error) => return log::warn!("event: {error}"),
        };
        bytes.push(b'\n');
        let line: Arc<[u8]> = bytes.into();
        let mut state = self.state.lock();
        if let Some((sink, _)) = &state.sink
            && !sink.queue().write_or_drop(&line)
        {
            state.dropped = state.dropped.saturating_add(1);
            if state.dropped == 1 {
                log::warn!("event log: it is not read or cannot be written; events are lost");
            }
        }
        state.backlog_bytes += line.len();
        state.backlog.push_back(Arc::clone(&line));
        while state.backlog.len() > BACKLOG || state.backlog_bytes > MAX_BACKLOG {
            let Some(oldest) = state.backlog.pop_front() else {
                break;
            };
            state.backlog_bytes -= oldest.len();
        }
        if let Some(feed) = &state.feed
            && !feed.offer(line)
        {
            log::debug!("an event was dropped for readers of the API");
        }
    }
}

impl EventLines {
    /// Somebody follows the events.
    pub fn follow(&self) -> Watcher {
        self.hub.audience.join()
    }

    /// The last lines of the past. Those that are also still to be taken would
    /// come twice: take the new ones first where that matters.
    pub fn backlog(&self) -> Vec<u8> {
        let state = self.hub.state.lock();
        state
            .backlog
            .iter()
            .flat_map(|line| line.iter())
            .copied()
            .collect()
    }
}

fn millis(duration: Duration) -> u64 {
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
    fn a_crashs_words_cannot_steer_a_terminal() {
        let text = "a\u{1b}]0;title\u{7}\r\u{9b}31m\tb\n";
        let record = CrashRecord::from(CrashReport {
            parameters: [0; 5],
            message: Some(text.into()),
        });
        assert_eq!(
            record.message.as_deref(),
            Some("a\\u{1b}]0;title\\u{7}\\r\\u{9b}31m\tb\n")
        );
    }

    #[test]
    fn no_bytes_make_a_crashs_text_longer_than_its_limit() {
        let shown = |text: Vec<u8>| {
            let report = CrashReport {
                parameters: [0; 5],
                message: Some(text),
            };
            CrashRecord::from(report).message.unwrap()
        };
        // Not UTF-8; controls of two bytes each; a direction of three.
        for text in ["\u{9b}", "\u{202e}", "\u{1b}", "\u{e0001}"].map(str::as_bytes) {
            let shown = shown(text.repeat(4096 / text.len()));
            assert!(shown.len() <= 4096 && shown.chars().all(escape::is_plain));
        }
        let shown = shown([&[0xff; 4093][..], b"end"].concat());
        assert!(
            shown.len() <= 4096 && shown.ends_with("\\xff\\xffend"),
            "{shown}"
        );
    }

    #[test]
    fn a_crash_carries_the_guests_words() {
        let event = Event::Crashed {
            cause: CrashCause::Reported,
            report: Some(CrashRecord {
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
