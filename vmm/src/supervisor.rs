// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The process around the machine: starting it, starting it again after a
//! reset, and ending with the exit code that tells how it ended.
//!
//! ```text
//!            ┌───────── reset ─────────┐
//!            ▼                         │
//!  open ─► Machine::start ─► event loop ┴─► stop ─► exit code
//!                            ▲ vCPU events, signals, standard input, --timeout
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write, stdin, stdout};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::boot::BootSource;
use crate::bus::BusSettings;
use crate::cli::{Action, Args, EventLogTarget, Serial, exit};
use crate::cpu::{Snapshot, VcpuEvent, vcpu};
use crate::devices::power::PowerRequest;
use crate::devices::serial::Output;
use crate::events::{CrashCause, Event, EventLog};
use crate::hyperv::CrashReport;
use crate::kvm::{Host, KvmError};
use crate::machine::{Bells, Machine, MachineError, Shape};
use crate::sys;
use crate::terminal::{self, Keys, RawMode};
use crate::trace::Trace;

/// Input kept for a guest that does not read; more stays with the user's pipe.
const INPUT_LIMIT: usize = 4096;

/// Why the process cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine could not be made.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The event log could not be opened.
    #[error("--event-log: cannot open {0}: {1}")]
    EventLog(EventLogTarget, io::Error),
    /// The file for serial output could not be opened.
    #[error("--serial: cannot create {0}: {1}")]
    Serial(PathBuf, io::Error),
    /// The trace could not be opened.
    #[error("--vmbus-trace: cannot create {0}: {1}")]
    Trace(PathBuf, io::Error),
    /// A vCPU cannot go on.
    #[error("{0}")]
    Vcpu(String),
    /// A call of the event loop failed.
    #[error("host: {0}")]
    Io(#[from] io::Error),
    /// The signal handler could not be installed.
    #[error("host: signals: {0}")]
    Signal(#[from] vmm_sys_util::errno::Error),
}

/// Runs a guest to its end and returns the exit code.
pub fn run(args: &Args) -> Result<u8, Error> {
    let mut log = match &args.event_log {
        None => EventLog::none(),
        Some(target) => {
            EventLog::open(target).map_err(|error| Error::EventLog(target.clone(), error))?
        }
    };
    let result = Supervisor::new(args, &mut log).and_then(|mut supervisor| supervisor.run());
    let code = match &result {
        Ok(code) => *code,
        Err(error) => {
            log.write(&Event::HostFailed {
                message: error.to_string(),
            });
            exit::HOST
        }
    };
    log.write(&Event::Exit { code });
    result
}

type Signals = SignalDelivery<UnixStream, SignalOnly>;

/// Tokens of the event loop.
const BELL: u64 = 0;
const DRAINED: u64 = 1;
const SIGNAL: u64 = 2;
const INPUT: u64 = 3;

struct Supervisor<'a> {
    args: &'a Args,
    log: &'a mut EventLog,
    host: Host,
    source: BootSource,
    output: Output,
    bus: BusSettings,
    bells: Bells,
    epoll: Epoll,
    signals: Signals,
    input: Input,
    deadline: Option<Instant>,
    // Last, so that the terminal is restored after the output has been written.
    raw_mode: Option<RawMode>,
}

/// How a machine ended.
enum End {
    Guest(Action),
    Process(u8),
}

impl<'a> Supervisor<'a> {
    fn new(args: &'a Args, log: &'a mut EventLog) -> Result<Self, Error> {
        let source = BootSource::open(&args.kernel, args.initramfs.as_deref(), &args.cmdline)
            .map_err(MachineError::from)?;
        crate::memory::regions(args.memory).map_err(MachineError::from)?;
        let host = Host::open(args.wanted_synic(), args.cpus.get())?;
        vcpu::prepare_kicks()?;
        let sink: Box<dyn Write + Send> = match &args.serial {
            Serial::Tty => Box::new(stdout()),
            Serial::Null => Box::new(io::sink()),
            Serial::File(path) => {
                let create = File::create(path);
                Box::new(create.map_err(|error| Error::Serial(path.clone(), error))?)
            }
        };
        let output = Output::start(sink)?;
        let trace = match &args.vmbus_trace {
            None => None,
            Some(path) => {
                let trace = Trace::create(path);
                Some(trace.map_err(|error| Error::Trace(path.clone(), error))?)
            }
        };
        let bus = BusSettings {
            max_version: args.vmbus_version,
            devices: args.device.clone(),
            trace,
        };
        let bells = Bells::new()?;
        let epoll = Epoll::new()?;
        let signals = signal_pipe()?;
        for (fd, token) in [
            (bells.events.as_raw_fd(), BELL),
            (bells.drained.as_raw_fd(), DRAINED),
            (signals.get_read().as_raw_fd(), SIGNAL),
        ] {
            watch(&epoll, ControlOperation::Add, fd, token)?;
        }
        let raw_mode = match args.serial {
            Serial::Tty => RawMode::enter()?,
            _ => None,
        };
        let input = match args.serial {
            Serial::Tty => Input::open(raw_mode.is_some()),
            _ => Input::none(),
        };
        Ok(Self {
            args,
            log,
            host,
            source,
            output,
            bus,
            bells,
            epoll,
            signals,
            input,
            deadline: args.timeout.and_then(|t| Instant::now().checked_add(t)),
            raw_mode,
        })
    }

    fn run(&mut self) -> Result<u8, Error> {
        let shape = Shape {
            cpus: self.args.cpus.get(),
            memory: self.args.memory,
            hugepages: self.args.hugepages,
        };
        let mut resets = 0;
        loop {
            let machine = Machine::start(
                &self.host,
                shape,
                &self.source,
                &self.bus,
                &self.output,
                &self.bells,
            )?;
            self.log.write(&Event::Running {
                vcpus: shape.cpus,
                memory_mib: shape.memory >> 20,
                synic: self.host.synic,
                resets,
            });
            let end = self.event_loop(&machine);
            machine.stop();
            match end? {
                End::Process(code) | End::Guest(Action::Exit(code)) => return Ok(code),
                End::Guest(Action::Reset | Action::Continue) => resets += 1,
            }
        }
    }

    /// Serves one machine until it ends.
    fn event_loop(&mut self, machine: &Machine) -> Result<End, Error> {
        let mut ready = [EpollEvent::default(); 8];
        loop {
            self.input.feed(machine);
            self.input.update(&self.epoll)?;
            let count = match self.epoll.wait(self.wait_ms(), &mut ready) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            for event in ready.iter().take(count) {
                let end = match event.data() {
                    BELL => {
                        let _ = self.bells.events.read();
                        self.vcpu_events(machine)?
                    }
                    DRAINED => {
                        let _ = self.bells.drained.read();
                        None
                    }
                    SIGNAL => self.signal()?,
                    _ => self.typed(),
                };
                if let Some(end) = end {
                    return Ok(end);
                }
            }
            if self.deadline.is_some_and(|at| Instant::now() >= at) {
                self.say(format_args!("timeout: the guest ran longer than --timeout"));
                self.log.write(&Event::TimedOut);
                return Ok(End::Process(exit::TIMEOUT));
            }
        }
    }

    /// Milliseconds to the deadline, rounded up; -1 without one.
    fn wait_ms(&self) -> i32 {
        if self.input.always_ready() {
            return 0;
        }
        self.deadline.map_or(-1, |at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            i32::try_from(left.as_millis()).unwrap_or(i32::MAX)
        })
    }

    fn vcpu_events(&mut self, machine: &Machine) -> Result<Option<End>, Error> {
        while let Some(event) = machine.next_event() {
            match event {
                VcpuEvent::Power(PowerRequest::Off) => {
                    self.log.write(&Event::PoweredOff);
                    return Ok(Some(End::Guest(self.args.on_shutdown)));
                }
                VcpuEvent::Power(PowerRequest::Reset) => {
                    self.log.write(&Event::Reset);
                    return Ok(Some(End::Guest(self.args.on_reset)));
                }
                VcpuEvent::Crash(report, registers) => {
                    self.crashed(CrashCause::Reported, Some(report), registers);
                    if self.args.on_crash != Action::Continue {
                        return Ok(Some(End::Guest(self.args.on_crash)));
                    }
                }
                VcpuEvent::TripleFault(registers) => {
                    self.crashed(CrashCause::TripleFault, None, registers);
                    // A CPU in shutdown cannot be left to the guest: it resets, as a PC does.
                    return Ok(Some(End::Guest(self.args.on_crash)));
                }
                VcpuEvent::Failed(what, registers) => {
                    if let Some(registers) = registers {
                        self.say(format_args!("registers:\n{registers}"));
                    }
                    return Err(Error::Vcpu(what));
                }
            }
        }
        Ok(None)
    }

    fn crashed(
        &mut self,
        cause: CrashCause,
        report: Option<CrashReport>,
        registers: Option<Snapshot>,
    ) {
        self.say(match cause {
            CrashCause::Reported => format_args!("the guest crashed and reported it"),
            CrashCause::TripleFault => format_args!("the guest crashed: triple fault"),
        });
        if let Some(registers) = &registers {
            self.say(format_args!(
                "registers of the vCPU that told it:\n{registers}"
            ));
        }
        match &report {
            Some(CrashReport {
                message: Some(text),
                ..
            }) => self.say(format_args!("end of the guest's log:\n{}", text.trim_end())),
            Some(CrashReport { parameters, .. }) => {
                self.say(format_args!(
                    "the guest sent no log; its parameters: {parameters:x?}"
                ));
            }
            None => {}
        }
        self.log.write(&Event::Crashed {
            cause,
            report,
            registers,
        });
    }

    /// Tells the user something, on standard error, in whole lines also when
    /// the terminal is raw.
    fn say(&self, text: std::fmt::Arguments<'_>) {
        let text = format!("vmm: {text}\n");
        let text = if self.raw_mode.is_some() {
            text.replace('\n', "\r\n")
        } else {
            text
        };
        let _ = io::stderr().write_all(text.as_bytes());
    }

    fn signal(&mut self) -> io::Result<Option<End>> {
        for number in self.signals.pending() {
            let name = match number {
                SIGTSTP => {
                    terminal::restore();
                    sys::stop_self();
                    if let Some(raw_mode) = &self.raw_mode {
                        raw_mode.resume()?;
                    }
                    continue;
                }
                SIGHUP => "SIGHUP",
                SIGINT => "SIGINT",
                SIGQUIT => "SIGQUIT",
                _ => "SIGTERM",
            };
            return Ok(Some(self.interrupted(name)));
        }
        Ok(None)
    }

    fn typed(&mut self) -> Option<End> {
        self.input
            .read()
            .then(|| self.interrupted("the user (Ctrl-A x)"))
    }

    fn interrupted(&mut self, by: &str) -> End {
        log::info!("ended by {by}");
        self.log.write(&Event::Interrupted { by: by.into() });
        End::Process(exit::INTERRUPTED)
    }
}

/// Standard input on its way to COM1.
struct Input {
    file: Option<File>,
    keys: Option<Keys>,
    pending: VecDeque<u8>,
    watched: bool,
    /// epoll does not take regular files; they can always be read.
    pollable: bool,
}

impl Input {
    fn none() -> Self {
        Self {
            file: None,
            keys: None,
            pending: VecDeque::new(),
            watched: false,
            pollable: true,
        }
    }

    /// Standard input; a terminal has keys of ours.
    fn open(terminal: bool) -> Self {
        let file = sys::duplicate(stdin().as_raw_fd()).ok().map(File::from);
        Self {
            file,
            keys: terminal.then(Keys::default),
            ..Self::none()
        }
    }

    /// Whether the next read is to happen without waiting for epoll.
    fn always_ready(&self) -> bool {
        !self.pollable && self.wants_more()
    }

    fn wants_more(&self) -> bool {
        self.file.is_some() && self.pending.len() < INPUT_LIMIT
    }

    /// Gives the guest what it can take.
    fn feed(&mut self, machine: &Machine) {
        while !self.pending.is_empty() {
            let taken = machine.com1().offer(self.pending.as_slices().0);
            if taken == 0 {
                return;
            }
            self.pending.drain(..taken);
        }
    }

    /// Listens for input while there is room for it.
    fn update(&mut self, epoll: &Epoll) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        if !self.pollable || self.watched == self.wants_more() {
            if self.always_ready() {
                self.read();
            }
            return Ok(());
        }
        let operation = if self.watched {
            ControlOperation::Delete
        } else {
            ControlOperation::Add
        };
        match watch(epoll, operation, file.as_raw_fd(), INPUT) {
            Ok(()) => self.watched = !self.watched,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self.pollable = false,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Reads what is there; true if the user wants to quit.
    fn read(&mut self) -> bool {
        let mut bytes = [0; 1024];
        let Some(file) = &mut self.file else {
            return false;
        };
        match file.read(&mut bytes) {
            Ok(count) if count > 0 => {
                let read = bytes.get(..count).unwrap_or_default();
                let Some(keys) = &mut self.keys else {
                    self.pending.extend(read);
                    return false;
                };
                let (guest, quit) = keys.filter(read);
                self.pending.extend(guest);
                quit
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) =>
            {
                false
            }
            // The end, or a terminal that is gone: closing it takes it out of epoll.
            Ok(_) | Err(_) => {
                self.file = None;
                false
            }
        }
    }
}

fn watch(epoll: &Epoll, operation: ControlOperation, fd: RawFd, token: u64) -> io::Result<()> {
    epoll.ctl(operation, fd, EpollEvent::new(EventSet::IN, token))
}

/// The signals that are ours, as something that epoll can wait for.
fn signal_pipe() -> io::Result<Signals> {
    let (read, write) = UnixStream::pair()?;
    let signals = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP];
    SignalDelivery::with_pipe(read, write, SignalOnly, signals)
}
