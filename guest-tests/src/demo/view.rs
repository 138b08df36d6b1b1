// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the demo shows: pure, but for the trace that it reads on.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::suite::clock::Offset;

/// Decoded packets that are shown.
const PACKETS: usize = 8;

/// What passes on the bus, from `--vmbus-trace`.
#[derive(Debug)]
pub(super) struct Traffic {
    path: PathBuf,
    at: u64,
    rest: String,
    from_host: u64,
    from_guest: u64,
    last: Vec<String>,
}

impl Traffic {
    pub(super) fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            at: 0,
            rest: String::new(),
            from_host: 0,
            from_guest: 0,
            last: Vec::new(),
        }
    }

    /// Reads what has been added.
    fn update(&mut self) {
        let mut added = Vec::new();
        let Ok(mut file) = File::open(&self.path) else {
            return;
        };
        let read = file
            .seek(SeekFrom::Start(self.at))
            .and_then(|_| file.read_to_end(&mut added));
        self.at += u64::try_from(read.unwrap_or(0)).unwrap_or(0);
        self.rest.push_str(&String::from_utf8_lossy(&added));
        while let Some(end) = self.rest.find('\n') {
            let line: String = self.rest.drain(..=end).collect();
            if let Ok(line) = serde_json::from_str::<Value>(&line) {
                self.take(&line);
            }
        }
    }

    fn take(&mut self, line: &Value) {
        if line["packet"].is_null() && line["message"].is_null() {
            return; // A signal.
        }
        let host = line["from"] == "host";
        *(if host {
            &mut self.from_host
        } else {
            &mut self.from_guest
        }) += 1;
        let time = line["time_us"].as_u64().unwrap_or(0) / 1000;
        let arrow = if host {
            "host → guest"
        } else {
            "guest → host"
        };
        let service = &line["service"];
        let what = match service["message"].as_str() {
            Some(name) => format!(
                "{name} {} #{}",
                service["version"].as_str().unwrap_or_default(),
                service["transaction_id"]
            ),
            None => line["message"].as_str().unwrap_or("packet").to_owned(),
        };
        let (seconds, thousandths) = (time / 1000, time % 1000);
        self.last
            .push(format!("{seconds:4}.{thousandths:03} s  {arrow}  {what}"));
        if self.last.len() > PACKETS {
            self.last.remove(0);
        }
    }
}

/// What is known of the guest.
#[derive(Debug)]
pub(super) struct View {
    offer: String,
    said: String,
    traffic: Traffic,
}

impl View {
    pub(super) fn new(offer: &str, said: &str, traffic: Traffic) -> Self {
        Self {
            offer: offer.to_owned(),
            said: said.to_owned(),
            traffic,
        }
    }

    /// What the guest's kernel said of us.
    pub(super) fn guest(&self) -> String {
        let mut text = String::from("the guest is up, and says:\n");
        for line in self.said.lines() {
            let _ = writeln!(text, "  {line}");
        }
        text
    }

    /// Commands for another terminal.
    pub(super) fn offer(&self) -> String {
        let mut text = String::from("while a guest runs, in another terminal:\n");
        for command in [
            "status",
            "time sync",
            "pause",
            "resume",
            "ic disable timesync",
            "ic enable timesync",
            "kvp list",
            "kvp set role web",
            "vss run --max 5s -- date",
            "ic enable fcopy",
            "events --follow",
            "shutdown --reboot",
            "shutdown",
        ] {
            let _ = writeln!(text, "  {} {command}", self.offer);
        }
        text
    }

    /// All of it in one line.
    pub(super) fn line(&mut self, status: &Value, clock: Option<Offset>) -> String {
        self.traffic.update();
        let services = services(status).map(|one| {
            let (name, state) = (word(&one["name"]), word(&one["state"]));
            format!("{name} {state} {}", word(&one["version"]))
        });
        let services: Vec<String> = services.collect();
        format!(
            "{} · health {} · {} · {} · clock off by {} · bus: {} sent, {} received\n",
            word(&status["state"]),
            word(&status["health"]),
            services.join(", ").trim_end(),
            last_beat(status),
            clock.map_or_else(|| "?".to_owned(), |clock| clock.to_string()),
            self.traffic.from_host,
            self.traffic.from_guest
        )
    }

    /// A whole screen, of so many rows and columns.
    pub(super) fn screen(
        &mut self,
        status: &Value,
        clock: Option<Offset>,
        (rows, columns): (u16, u16),
    ) -> String {
        self.traffic.update();
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{}, {}  ({} SynIC, {} vCPUs, VMBus {})   q: shut it down and quit\n",
            word(&status["vmbus"]["guest_os"]),
            word(&status["state"]),
            word(&status["synic"]),
            status["vcpus"],
            word(&status["vmbus"]["version"])
        );
        let _ = writeln!(text, "health  {}", word(&status["health"]));
        let clock = clock.map_or_else(|| "not known".to_owned(), |clock| clock.to_string());
        let _ = writeln!(text, "clock   off by {clock}\n");
        for one in services(status) {
            let _ = writeln!(
                text,
                "{:<10} {:<9} {:<4} {}",
                word(&one["name"]),
                word(&one["state"]),
                word(&one["version"]),
                word(&one["detail"])
            );
        }
        let (sent, received) = (self.traffic.from_host, self.traffic.from_guest);
        let _ = writeln!(text, "\nbus     {sent} sent, {received} received");
        for packet in &self.traffic.last {
            let _ = writeln!(text, "  {packet}");
        }
        text.push('\n');
        text.push_str(&self.offer());
        text.push('\n');
        text.push_str(&self.guest());
        draw(&text, rows, columns)
    }
}

fn services(status: &Value) -> impl Iterator<Item = &Value> {
    status["services"].as_array().into_iter().flatten()
}

fn last_beat(status: &Value) -> &str {
    let mut all = services(status);
    let heartbeat = all.find(|one| one["name"] == "heartbeat");
    heartbeat.map_or("no beat", |one| word(&one["detail"]))
}

/// A string of JSON's, or a dash. A guest cannot put anything but text into it.
fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// Lines that fill a screen from its top, without scrolling it; what a guest has said
/// steers nothing.
fn draw(text: &str, rows: u16, columns: u16) -> String {
    let mut screen = String::from("\x1b[H");
    let last = usize::from(rows).saturating_sub(1);
    for line in text.lines().take(last) {
        let shown = line.chars().filter(|c| is_shown(*c));
        screen.extend(shown.take(usize::from(columns)));
        screen.push_str("\x1b[K\r\n");
    }
    screen.push_str("\x1b[J");
    screen
}

/// What the demo needs, and no more: no controls, nothing that turns a line around or
/// that cannot be seen.
fn is_shown(c: char) -> bool {
    c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric() || matches!(c, '→' | '·' | '…')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status() -> Value {
        json!({"state": "running", "health": "ok", "synic": "kernel", "vcpus": 2,
            "vmbus": {"version": "5.3", "guest_os": "Linux \u{1b}[2J\u{202e}"},
            "services": [{"name": "heartbeat", "state": "ready", "version": "3.0",
                "detail": "last beat 0.1 s ago"}]})
    }

    #[test]
    fn a_line_has_all_that_is_known() {
        let mut traffic = Traffic::of(Path::new("/nowhere"));
        let beat = json!({"time_us": 1_002_000, "from": "guest", "packet": "in-band",
            "service": {"message": "heartbeat", "version": "3.0", "transaction_id": 7}});
        traffic.take(&beat);
        traffic.take(&json!({"time_us": 1, "from": "host", "signal": true}));
        assert_eq!(traffic.last, ["   1.002 s  guest → host  heartbeat 3.0 #7"]);
        let mut view = View::new("vmmctl", "", traffic);
        let offset = Offset {
            low: -1_000_000,
            high: 500_000,
        };
        assert_eq!(
            view.line(&status(), Some(offset)),
            "running · health ok · heartbeat ready 3.0 · last beat 0.1 s ago · \
             clock off by -1.00 to 0.50 ms · bus: 0 sent, 1 received\n"
        );
    }

    #[test]
    fn a_screen_fits_and_nothing_of_the_guests_controls_it() {
        let mut view = View::new("vmmctl", "x", Traffic::of(Path::new("/nowhere")));
        let screen = view.screen(&status(), None, (5, 20));
        assert_eq!(screen.matches("\r\n").count(), 4);
        assert!(!screen.contains("\x1b[2J") && !screen.contains('\u{202e}'));
        let widest = screen.split("\x1b[K\r\n").map(|line| line.chars().count());
        assert!(widest.max() <= Some(20 + "\x1b[H".len()));
    }
}
