// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The connection to a running nest: one thread that reads its frames, one
//! that watches its health, and the commands that wait for theirs.

use std::collections::BTreeMap;
use std::fs;
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use guest_agent::frame::{Frame, Kind, STDIN_WINDOW};

use super::qemu::Process;
use super::watch::{ConsoleWatch, Pulse};
use crate::error::{Context, HarnessError, Result, failed};

const LAYER: &str = "nest";

/// How often the nest's health is looked at.
const CHECK: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Link {
    shared: Arc<Shared>,
    process: Mutex<Process>,
}

/// What the threads share.
#[derive(Debug)]
pub(super) struct Shared {
    port: Mutex<Option<ChildStdin>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// The machine's greeting, once it is up.
    hello: Option<String>,
    /// It has written everything back.
    bye: bool,
    /// Why it is of no use any more.
    dead: Option<String>,
    pulse: Pulse,
    jobs: BTreeMap<u32, Job>,
    last_job: u32,
}

/// A command as seen from here.
#[derive(Debug)]
struct Job {
    name: String,
    events: Sender<Frame>,
    credit: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    pub(super) fn start(mut process: Process, icount: bool) -> Result<Self> {
        let stdin = process.child.stdin.take();
        let Some(stdout) = process.child.stdout.take() else {
            return Err(failed(LAYER, "no pipe to the emulator"));
        };
        let shared = Arc::new(Shared {
            port: Mutex::new(stdin),
            state: Mutex::new(State {
                hello: None,
                bye: false,
                dead: None,
                pulse: Pulse::start(icount),
                jobs: BTreeMap::new(),
                last_job: 0,
            }),
            changed: Condvar::new(),
        });
        let reading = Arc::clone(&shared);
        thread::spawn(move || reading.read(stdout));
        let watching = Arc::clone(&shared);
        let console = ConsoleWatch::new(&process.console);
        thread::spawn(move || watching.watch(console));
        Ok(Self {
            shared,
            process: Mutex::new(process),
        })
    }

    /// Waits for the machine's greeting.
    pub(super) fn wait_until_up(&self, deadline: Instant) -> Result<String> {
        let wait = self.shared.wait(deadline, |state| state.hello.clone());
        wait.map_err(|why| self.hung(format!("did not come up: {why}{}", self.last_words())))
    }

    /// Registers a command and gives its number and its events.
    pub(super) fn add_job(&self, name: String) -> (u32, Receiver<Frame>) {
        let (events, receiver) = channel();
        let mut state = lock(&self.shared.state);
        state.last_job += 1;
        let id = state.last_job;
        let job = Job {
            name,
            events,
            credit: STDIN_WINDOW,
        };
        state.jobs.insert(id, job);
        (id, receiver)
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(super) fn send(&self, frame: &Frame) -> Result<()> {
        self.shared.send(frame)
    }

    /// Why the machine is of no use any more, as an error that says what ran.
    pub(super) fn check(&self) -> Result<()> {
        let dead = lock(&self.shared.state).dead.clone();
        dead.map_or(Ok(()), |why| Err(self.hung(why)))
    }

    pub(super) fn hung(&self, why: String) -> HarnessError {
        let state = lock(&self.shared.state);
        let names: Vec<&str> = state.jobs.values().map(|job| job.name.as_str()).collect();
        HarnessError::Hung {
            why,
            running: if names.is_empty() {
                "nothing".to_owned()
            } else {
                names.join("; ")
            },
            console: lock(&self.process).console.display().to_string(),
        }
    }

    pub(super) fn stop(self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        if self.send(&Frame::empty(Kind::Stop, 0)).is_ok() {
            let _ = self.shared.wait(deadline, |state| state.bye.then_some(()));
        }
        let process = lock(&self.process);
        if lock(&self.shared.state).bye {
            let _ = fs::remove_dir_all(&process.dir);
        }
    }

    /// The ends of the emulator's and the console's logs.
    fn last_words(&self) -> String {
        let mut process = lock(&self.process);
        let mut text = match process.child.try_wait() {
            Ok(Some(status)) => format!(" ({status})"),
            _ => String::new(),
        };
        for log in [process.dir.join("qemu.log"), process.console.clone()] {
            let log = fs::read(log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().rev().take(5).collect();
            for line in lines.into_iter().rev() {
                text.push_str("\n    ");
                text.push_str(line.trim_end());
            }
        }
        text
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut process = lock(&self.process);
        let _ = process.child.kill();
        let _ = process.child.wait();
    }
}

impl Shared {
    pub(super) fn send(&self, frame: &Frame) -> Result<()> {
        let mut port = lock(&self.port);
        match port.as_mut() {
            Some(port) => frame.write_to(port).context(LAYER, "writing to the nest"),
            None => Err(failed(LAYER, "the nest is gone")),
        }
    }

    /// Takes up to `wanted` bytes of input credit, waiting for some; `None`
    /// once the command or the machine has ended.
    pub(super) fn take_credit(&self, id: u32, wanted: u32) -> Option<u32> {
        let mut state = lock(&self.state);
        loop {
            if state.dead.is_some() {
                return None;
            }
            let job = state.jobs.get_mut(&id)?;
            if job.credit > 0 {
                let taken = job.credit.min(wanted);
                job.credit -= taken;
                return Some(taken);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn forget(&self, id: u32) {
        lock(&self.state).jobs.remove(&id);
        self.changed.notify_all();
    }

    fn wait<T>(
        &self,
        deadline: Instant,
        ready: impl Fn(&State) -> Option<T>,
    ) -> std::result::Result<T, String> {
        let mut state = lock(&self.state);
        loop {
            if let Some(value) = ready(&state) {
                return Ok(value);
            }
            if let Some(why) = &state.dead {
                return Err(why.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("too slow".to_owned());
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn read(&self, mut stdout: ChildStdout) {
        let why = loop {
            match Frame::read_from(&mut stdout) {
                Ok(Some(frame)) => self.receive(frame),
                Ok(None) => break "the emulator ended".to_owned(),
                Err(error) => break error.to_string(),
            }
        };
        self.die(why);
    }

    fn receive(&self, frame: Frame) {
        let mut state = lock(&self.state);
        state.pulse.beat();
        match frame.kind {
            Kind::Hello => {
                state.hello = Some(String::from_utf8_lossy(&frame.payload).into_owned());
            }
            Kind::Bye => state.bye = true,
            Kind::Credit => {
                let more = frame.as_number().unwrap_or(0);
                if let Some(job) = state.jobs.get_mut(&frame.job) {
                    job.credit = job.credit.saturating_add(more);
                }
            }
            Kind::Stdout | Kind::Stderr | Kind::Exit => {
                if let Some(job) = state.jobs.get(&frame.job) {
                    // Nobody waits for a command that was given up.
                    let _ = job.events.send(frame);
                }
                return; // nothing that others wait for
            }
            _ => return,
        }
        drop(state);
        self.changed.notify_all();
    }

    fn watch(&self, mut console: ConsoleWatch) {
        loop {
            thread::sleep(CHECK);
            let sick = console.check();
            let state = lock(&self.state);
            if state.dead.is_some() {
                return;
            }
            let sick = sick.or_else(|| state.pulse.check());
            drop(state);
            if let Some(why) = sick {
                return self.die(why);
            }
        }
    }

    fn die(&self, why: String) {
        lock(&self.state).dead.get_or_insert(why);
        self.changed.notify_all();
    }
}
