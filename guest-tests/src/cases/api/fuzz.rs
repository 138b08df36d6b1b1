// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control API of a VM with a guest and its daemons under schemathesis, which
//! makes requests from `docs/openapi.json`, good ones and bad ones, with eight
//! workers: `cargo xtask test --api-fuzz`.
//!
//! ```text
//!  schemathesis ── TCP ──► relay ── Unix socket ──► vmm ── guest
//!                            │  ended?               ▲
//!                            └──────── keeper ───────┘ starts it again, resumes it,
//!                                                      enables services, measures
//! ```
//!
//! In the first half of the time the VM is also ended, by requests; in the second
//! half one process stays, whose memory may not grow. What schemathesis checks is in
//! `guest-tests/api-fuzz/`.

#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

mod relay;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::super::measured::own_memory_of;
use super::super::vmbus::note;
use crate::ensure;
use crate::schemathesis;
use crate::suite::{Context, Control, Outcome, Vm};
use relay::Relay;

/// How a `vmm` may end here: by the guest's shutdown, and by `kill`.
const ENDS: [i32; 2] = [0, 130];
/// Between two looks at the VM.
const LOOK: Duration = Duration::from_millis(500);
/// Between two turns of putting right what requests have put wrong: the more is
/// wrong, the less is reached.
const RIGHT: Duration = Duration::from_secs(4);
/// Between two measurements, and how many are left out while everything is used for
/// the first time.
const MEASURE: Duration = Duration::from_secs(10);
const WARM: usize = 6;
/// What the memory may grow by: items and names that the requests have left, each of
/// them bounded by limits of its own.
const SLACK_KIB: u64 = 4 << 10;
/// How long the VM may take to be well again after it all.
const AFTER: Duration = Duration::from_secs(300);
/// How long schemathesis may take beyond its time: it finishes what it has begun.
const OVERTIME: Duration = Duration::from_secs(480);
/// What the guest does when it has come up, and when a daemon is missing.
const START: &str = "modprobe hv_utils; modprobe hv_balloon; modprobe hv_sock; \
    for daemon in hv_kvp_daemon hv_vss_daemon hv_fcopy_daemon; do \
    pidof $daemon > /dev/null || $daemon; done > /dev/null 2>&1 < /dev/null; true";

pub(super) fn fuzz(context: &Context) -> Outcome {
    let length = Duration::from_secs(context.minutes.max(1) * 60);
    let mut keeper = Keeper::new(context, length)?;
    let mut client = keeper.client(context, length)?;
    let status = loop {
        if let Some(status) = client.0.try_wait()? {
            break status;
        }
        let over = keeper.began.elapsed() > length + OVERTIME;
        ensure!(!over, "schemathesis does not end:\n{}", keeper.said());
        keeper.turn()?;
    };
    keeper.check_end()?;
    let lost = keeper.relay.complaints();
    ensure!(
        status.success() && lost.is_empty(),
        "schemathesis ended with {status}; {} complaints of the relay: {lost:#?}\n{}",
        lost.len(),
        keeper.said()
    );
    Ok(())
}

/// A process that goes with its owner.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Keeps a VM there.
struct Keeper<'a> {
    context: &'a Context,
    control: Control,
    vm: Vm,
    relay: Relay,
    /// What schemathesis says.
    log: PathBuf,
    began: Instant,
    /// From when on the process stays.
    half: Duration,
    righted: Instant,
    measured: Instant,
    /// Own memory of the process that stays.
    memory: Vec<u64>,
    starts: u64,
    boots: u64,
}

impl<'a> Keeper<'a> {
    fn new(context: &'a Context, length: Duration) -> Outcome<Self> {
        let control = Control::new(context);
        let vm = launch(context, &control)?;
        let relay = Relay::start(control.socket())?;
        let now = Instant::now();
        let mut keeper = Self {
            context,
            control,
            vm,
            relay,
            log: context.dir.join("schemathesis.stderr"),
            began: now,
            half: length / 2,
            righted: now,
            measured: now,
            memory: Vec::new(),
            starts: 1,
            boots: 0,
        };
        keeper.vm.wait_agent()?;
        keeper.vm.sh_ok(START)?;
        keeper.began = Instant::now();
        Ok(keeper)
    }

    /// Starts schemathesis.
    fn client(&self, context: &Context, length: Duration) -> Outcome<Client> {
        let log = File::create(&self.log)?;
        let until = SystemTime::now() + self.half;
        let until = until.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut command = Command::new(schemathesis::program());
        command
            .arg("--config-file")
            .arg(schemathesis::config())
            .arg("run")
            .arg(schemathesis::description())
            .args(["--url", &format!("http://127.0.0.1:{}", self.relay.port())])
            .args(["--max-time", &length.as_secs().to_string()])
            .current_dir(&context.dir)
            .env("SCHEMATHESIS_HOOKS", schemathesis::hooks())
            .env("XTASK_ENDS_UNTIL", until.as_secs().to_string())
            .env("NO_PROXY", "*")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(Client(command.spawn()?))
    }

    /// Looks after the VM for a moment.
    fn turn(&mut self) -> Outcome {
        // The agent says hello after each start and each reset.
        if let Ok(line) = self.vm.answer(0, Instant::now() + LOOK)
            && line.word == "hello"
        {
            self.boots += 1;
            let _ = self.vm.ask("sh", START.as_bytes());
        }
        if let Some(status) = self.vm.ended()? {
            self.relay.vm_ended();
            let code = status.code().unwrap_or(-1);
            ensure!(
                ENDS.contains(&code),
                "vmm ended with {status}: {}",
                self.vm.said()
            );
            ensure!(
                self.began.elapsed() < self.half + AFTER,
                "vmm ended with {status} when nobody was to end it"
            );
            self.memory.clear();
            self.starts += 1;
            self.vm = launch(self.context, &self.control)?;
        }
        if self.righted.elapsed() > RIGHT {
            self.righted = Instant::now();
            // It may end or be busy just now: then the next time.
            let _ = self.put_right();
        }
        if self.began.elapsed() > self.half && self.measured.elapsed() > MEASURE {
            self.measured = Instant::now();
            let (small, huge) = own_memory_of(self.vm.pid())?;
            self.memory.push(small + huge);
        }
        Ok(())
    }

    /// Lets it run, with all of its services.
    fn put_right(&mut self) -> Outcome {
        let status = self.control.ask("GET", "/v1/vm?look=false", "")?.1;
        if status["state"] == "paused" {
            self.control
                .ask("PUT", "/v1/vm/power", r#"{"action":"resume"}"#)?;
        }
        let services = status["services"].as_array().cloned().unwrap_or_default();
        let mut missing = false;
        for service in services {
            missing |= service["state"] == "no-daemon";
            if let (Some(name), true) = (service["name"].as_str(), service["enabled"] == false) {
                let target = format!("/v1/services/{name}");
                self.control.ask("PATCH", &target, r#"{"enabled":true}"#)?;
            }
        }
        if missing {
            self.vm.ask("sh", START.as_bytes())?;
        }
        Ok(())
    }

    /// The VM is well after it all, and has not grown.
    fn check_end(&mut self) -> Outcome {
        let start = Instant::now();
        loop {
            self.turn()?;
            let well = self.control.status().is_ok_and(|vm| {
                let services = vm["services"].as_array().map_or(&[][..], Vec::as_slice);
                let ready = |name: &str| {
                    let mut all = services.iter();
                    all.any(|one| one["name"] == name && one["state"] == "ready")
                };
                vm["state"] == "running" && vm["health"] == "ok" && ready("kvp") && ready("vss")
            });
            if well {
                break;
            }
            ensure!(
                start.elapsed() < AFTER,
                "the VM is not well after it all: {:?}",
                self.control.status()
            );
        }
        let warm = self.memory.get(WARM).copied();
        let most = self.memory.iter().skip(WARM).max().copied();
        note(&format!(
            "{}; {} starts, {} boots after the first; memory of the process that stayed: {warm:?} \
             to {most:?} KiB; the slowest answer took {:?}",
            self.summary(),
            self.starts,
            self.boots,
            self.relay.slowest(),
        ));
        if let (Some(warm), Some(most)) = (warm, most) {
            ensure!(
                most <= warm + SLACK_KIB,
                "vmm has grown from {warm} to {most} KiB: {:?}",
                self.memory
            );
        }
        Ok(())
    }

    /// The end of what schemathesis has said.
    fn said(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let before = lines.len().saturating_sub(250);
        lines.get(before..).unwrap_or_default().join("\n")
    }

    /// How many requests there were.
    fn summary(&self) -> String {
        let requests = self.relay.answers();
        format!("{requests} answers in {:?}", self.began.elapsed())
    }
}

fn launch(context: &Context, control: &Control) -> Outcome<Vm> {
    let socket = control.socket().display().to_string();
    let args = ["--api-socket", &socket, "--ic", "all"];
    context.setup().memory("256M").args(&args).launch()
}
