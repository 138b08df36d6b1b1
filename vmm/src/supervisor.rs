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

use std::fs::File;
use std::io::{self, Write, stdout};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use ics_devices::ServiceKind;
use parking_lot::Mutex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTSTP};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::api::server::ApiServer;
use crate::api::socket::{ControlSocket, SocketError, VSOCK};
use crate::api::types::{ApiError, BusStatus, PowerAction, VmState, VmStatus};
use crate::api::{Call, CallSender, Op};
use crate::boot::BootSource;
use crate::bus::{BusCall, BusSettings, Question};
use crate::cli::{Action, Args, EventLogTarget, Serial, Timers, exit};
use crate::cpu::{Snapshot, VcpuEvent, vcpu};
use crate::devices::power::PowerRequest;
use crate::events::{CrashCause, CrashRecord, Event, EventHub};
use crate::host_items::{self, HostFacts};
use crate::input::Input;
use crate::kvm::{Host, KvmError};
use crate::machine::{Bells, Machine, MachineError, Shape, VmMaking};
use crate::output::Output;
use crate::sandbox::{self, Kind, SandboxError};
use crate::services::RESUME;
use crate::services::data::Items;
use crate::ssh_key;
use crate::sys;
use crate::terminal::{self, RawMode};
use crate::trace::Trace;
use crate::vsock::registry::Registry;
use crate::vsock::{SocketSettings, VsockSettings};

/// Crash reports of one machine that are taken: a crash kernel may crash too,
/// but nobody needs the thousandth report of a guest that has nothing else to do.
const MAX_CRASH_REPORTS: u32 = 8;
/// A guest is not asked to shut down for longer than this.
const MAX_SHUTDOWN_MS: u64 = 3_600_000;

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
    /// The control socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A vCPU cannot go on.
    #[error("{0}")]
    Vcpu(String),
    /// A call of the event loop failed.
    #[error("host: {0}")]
    Io(#[from] io::Error),
    /// The system call filters.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The signal handler could not be installed.
    #[error("host: signals: {0}")]
    Signal(#[from] vmm_sys_util::errno::Error),
}

/// Runs a guest to its end and returns the exit code.
pub fn run(args: &Args, registry: Registry) -> Result<u8, Error> {
    sys::one_heap();
    sandbox::init(args.seccomp)?;
    let log = match &args.event_log {
        None => EventHub::none(),
        Some(target) => {
            EventHub::open(target).map_err(|error| Error::EventLog(target.clone(), error))?
        }
    };
    let result = match Supervisor::new(args, registry, &log) {
        Ok(mut supervisor) => {
            let result = supervisor.run();
            // Before the API goes, so that who follows the events sees the end.
            tell_end(&log, &result);
            result
        }
        Err(error) => {
            let result = Err(error);
            tell_end(&log, &result);
            result
        }
    };
    log.finish();
    result
}

fn tell_end(log: &EventHub, result: &Result<u8, Error>) {
    let code = match result {
        Ok(code) => *code,
        Err(error) => {
            log.write(&Event::HostFailed {
                message: error.to_string(),
            });
            exit::HOST
        }
    };
    log.write(&Event::Exit { code });
}

type Signals = SignalDelivery<UnixStream, SignalOnly>;

/// Tokens of the event loop.
const BELL: u64 = 0;
const DRAINED: u64 = 1;
const SIGNAL: u64 = 2;
const INPUT: u64 = 3;
const CALLS: u64 = 4;

struct Supervisor<'a> {
    args: &'a Args,
    log: EventHub,
    host: Arc<Host>,
    /// The first machine's VM.
    making: Option<VmMaking>,
    source: BootSource,
    output: Output,
    /// Standard error.
    words: Output,
    bus: BusSettings,
    bells: Bells,
    epoll: Epoll,
    signals: Signals,
    input: Input,
    deadline: Option<Instant>,
    name: String,
    state: VmState,
    paused: bool,
    /// Reports taken of the present machine.
    crashes: u32,
    resets: u64,
    calls: Receiver<Call>,
    call_bell: Arc<EventFd>,
    // The thread goes before the socket's files do.
    _api: ApiServer,
    // Its file goes before the directory of the other does.
    _vsock: Option<ControlSocket>,
    _socket: ControlSocket,
    // Last, so that the terminal is restored after the output has been written.
    raw_mode: Option<RawMode>,
}

/// How a machine ended.
enum End {
    Guest(Action),
    Process(u8),
}

impl<'a> Supervisor<'a> {
    fn new(args: &'a Args, registry: Registry, log: &EventHub) -> Result<Self, Error> {
        let cmdline = ssh_key::cmdline(&args.cmdline, &args.ssh_key);
        let source = BootSource::open(&args.kernel, args.initramfs.as_deref(), &cmdline)
            .map_err(MachineError::from)?;
        crate::memory::regions(args.memory).map_err(MachineError::from)?;
        let host = Arc::new(Host::open(
            args.wanted_synic(),
            args.timers == Timers::Hyperv,
            args.cpus.get(),
        )?);
        // KVM waits for itself while all else is done.
        let making = Some(VmMaking::start(&host)?);
        vcpu::prepare_kicks()?;
        let sink = serial_sink(&args.serial)?;
        let trace = match &args.vmbus_trace {
            None => Trace::default(),
            Some(path) => {
                let trace = Trace::create(path);
                trace.map_err(|error| Error::Trace(path.clone(), error))?
            }
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
        let name = args
            .name
            .clone()
            .unwrap_or_else(|| format!("vm-{}", std::process::id()));
        let auto_external = if args.kvp_host_items {
            let id = args.vm_id.map_or_else(host_items::random_id, Ok)?;
            HostFacts::read().items(&name, id)
        } else {
            Vec::new()
        };
        let (listener, mut socket) = ControlSocket::bind(&name, args.api_socket.as_deref())?;
        log::info!("control socket: {}", socket.path().display());
        let (sockets, vsock) = open_sockets(args, registry, &mut socket)?;
        let bus = BusSettings {
            max_version: args.vmbus_version,
            services: Arc::new(Mutex::new(args.ic)),
            sockets,
            items: Items::new(&args.kvp, auto_external),
            devices: args.device.clone(),
            trace,
            hub: log.clone(),
        };
        let call_bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let (queue, calls) = unbounded();
        let sender = CallSender {
            queue,
            bell: Arc::clone(&call_bell),
        };
        let input = match args.serial {
            Serial::Tty => Input::open(raw_mode.is_some()),
            _ => Input::none(),
        };
        // All files are open.
        sandbox::enter(Kind::Main)?;
        let output = Output::start("console", sink)?;
        let words = Output::start("stderr", Box::new(io::stderr()))?;
        let api = ApiServer::start(listener, sender, log, &bus.trace)?;
        watch(&epoll, ControlOperation::Add, call_bell.as_raw_fd(), CALLS)?;
        Ok(Self {
            args,
            log: log.clone(),
            host,
            making,
            source,
            output,
            words,
            bus,
            bells,
            epoll,
            signals,
            input,
            deadline: args.timeout.and_then(|t| Instant::now().checked_add(t)),
            name,
            state: VmState::Starting,
            paused: false,
            crashes: 0,
            resets: 0,
            calls,
            call_bell,
            _api: api,
            _vsock: vsock,
            _socket: socket,
            raw_mode,
        })
    }

    fn run(&mut self) -> Result<u8, Error> {
        loop {
            let making = match self.making.take() {
                Some(making) => making,
                None => VmMaking::start(&self.host)?,
            };
            let mut machine = Machine::start(
                &self.host,
                making,
                self.shape(),
                &self.source,
                &self.bus,
                &self.output,
                &self.bells,
            )?;
            (self.state, self.crashes, self.paused) = (VmState::Running, 0, false);
            self.log.write(&Event::Running {
                vcpus: self.args.cpus.get(),
                memory_mib: self.args.memory >> 20,
                synic: self.host.synic.name(),
                resets: self.resets,
            });
            let end = self.event_loop(&mut machine);
            machine.stop();
            match end? {
                End::Process(code) | End::Guest(Action::Exit(code)) => return Ok(code),
                End::Guest(Action::Reset | Action::Continue) => self.resets += 1,
            }
        }
    }

    fn shape(&self) -> Shape {
        Shape {
            cpus: self.args.cpus.get(),
            memory: self.args.memory,
            hugepages: self.args.hugepages,
        }
    }

    /// Serves one machine until it ends.
    fn event_loop(&mut self, machine: &mut Machine) -> Result<End, Error> {
        let mut ready = [EpollEvent::default(); 8];
        loop {
            // Before all else: a guest that resets again and again is in time for nothing.
            if self.deadline.is_some_and(|at| Instant::now() >= at) {
                self.say(format_args!("timeout: the guest ran longer than --timeout"));
                self.log.write(&Event::TimedOut);
                return Ok(End::Process(exit::TIMEOUT));
            }
            self.input.feed(machine);
            self.input.update(&self.epoll, INPUT)?;
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
                    CALLS => self.take_calls(machine),
                    _ => self.typed(),
                };
                if let Some(end) = end {
                    return Ok(end);
                }
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
                    self.crashed(CrashCause::Reported, Some(report.into()), registers);
                    self.crashes = self.crashes.saturating_add(1);
                    if self.crashes < MAX_CRASH_REPORTS {
                        machine.crash_taken();
                    }
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

    /// Does what clients of the API want.
    fn take_calls(&mut self, machine: &mut Machine) -> Option<End> {
        let _ = self.call_bell.read();
        while let Ok(call) = self.calls.try_recv() {
            if let Some(end) = self.call(machine, call) {
                return Some(end);
            }
        }
        None
    }

    fn call(&mut self, machine: &mut Machine, call: Call) -> Option<End> {
        match &call.op {
            Op::Status(look) => {
                let question = Question::Status(Box::new(self.status()), *look);
                machine.bus().send(BusCall::Ask(question, call.reply));
            }
            Op::Power(_) => return self.power(machine, call),
            _ => machine.bus().send(BusCall::Service(call)),
        }
        None
    }

    fn power(&mut self, machine: &mut Machine, mut call: Call) -> Option<End> {
        let Op::Power(body) = &mut call.op else {
            return None;
        };
        let done = || Ok(serde_json::json!({"done": true}));
        let paused = self.paused;
        match body.action {
            PowerAction::Shutdown | PowerAction::Reboot | PowerAction::Hibernate => {
                body.timeout_ms = body.timeout_ms.min(MAX_SHUTDOWN_MS);
                machine.bus().send(BusCall::Service(call));
                return None;
            }
            PowerAction::Kill => {
                self.log.write(&Event::Interrupted {
                    by: "the API (kill)".into(),
                });
                let code = match self.args.on_shutdown {
                    Action::Exit(code) if body.as_shutdown => code,
                    _ if body.as_shutdown => 0,
                    _ => exit::INTERRUPTED,
                };
                call.reply.send(done());
                return Some(End::Process(code));
            }
            PowerAction::Reset => {
                self.log.write(&Event::Reset);
                call.reply.send(done());
                return Some(End::Guest(Action::Reset));
            }
            PowerAction::Pause if !paused => {
                machine.pause();
                self.paused = true;
                self.log.write(&Event::Paused);
            }
            PowerAction::Resume if paused => {
                machine.resume();
                self.paused = false;
                self.log.write(&Event::Resumed);
            }
            PowerAction::Nmi if paused => {
                let message = format!("an NMI would have to wait: the VM is paused{RESUME}");
                call.reply
                    .send(Err(ApiError::new(409, "busy", "vm", message)));
                return None;
            }
            PowerAction::Nmi => machine.nmi(),
            // It is so already.
            PowerAction::Pause | PowerAction::Resume => {}
        }
        call.reply.send(done());
        None
    }

    /// The VM's part of its status.
    fn status(&self) -> VmStatus {
        VmStatus {
            name: self.name.clone(),
            pid: std::process::id(),
            state: if self.paused {
                VmState::Paused
            } else {
                self.state
            },
            uptime_ms: u64::try_from(self.log.uptime().as_millis()).unwrap_or(u64::MAX),
            resets: self.resets,
            vcpus: self.args.cpus.get(),
            memory_mib: self.args.memory >> 20,
            synic: self.host.synic.name().into(),
            health: String::new(),
            vmbus: BusStatus::default(),
            vsock: match &self.bus.sockets.listener {
                Ok(vsock) => Some(vsock.path().display().to_string()),
                Err(_) => None,
            },
            services: Vec::new(),
        }
    }

    fn crashed(
        &mut self,
        cause: CrashCause,
        report: Option<CrashRecord>,
        registers: Option<Snapshot>,
    ) {
        self.say(match cause {
            CrashCause::Reported => format_args!("the guest crashed and reported it"),
            CrashCause::TripleFault => format_args!("the guest crashed: triple fault"),
        });
        match (&registers, cause) {
            (Some(registers), _) => self.say(format_args!(
                "registers of the vCPU that told it:\n{registers}"
            )),
            (None, CrashCause::TripleFault) => self.say(format_args!(
                "its registers were lost: KVM resets an AMD vCPU that shuts down"
            )),
            (None, CrashCause::Reported) => {}
        }
        match &report {
            Some(CrashRecord {
                message: Some(text),
                ..
            }) => {
                // Each line is marked, so that a guest cannot speak in our name.
                let lines = text.trim_end().replace('\n', "\n  | ");
                self.say(format_args!("end of the guest's log:\n  | {lines}"));
            }
            Some(CrashRecord { parameters, .. }) => {
                self.say(format_args!(
                    "the guest sent no log; its parameters: {parameters:x?}"
                ));
            }
            None => {}
        }
        self.state = VmState::Crashed;
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
        // A terminal that has stopped must not stop us.
        if !self.words.queue().write_or_drop(text.as_bytes()) {
            log::debug!("standard error is not read; dropped: {text}");
        }
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

fn watch(epoll: &Epoll, operation: ControlOperation, fd: RawFd, token: u64) -> io::Result<()> {
    epoll.ctl(operation, fd, EpollEvent::new(EventSet::IN, token))
}

/// Where the guest's serial output goes.
fn serial_sink(serial: &Serial) -> Result<Box<dyn Write + Send>, Error> {
    Ok(match serial {
        Serial::Tty => Box::new(stdout()),
        Serial::Null => Box::new(io::sink()),
        Serial::File(path) => {
            let create = File::create(path);
            Box::new(create.map_err(|error| Error::Serial(path.clone(), error))?)
        }
    })
}

/// What there is for Hyper-V sockets. They can be enabled later, so their socket is
/// bound in any case.
fn open_sockets(
    args: &Args,
    registry: Registry,
    api: &mut ControlSocket,
) -> Result<(SocketSettings, Option<ControlSocket>), Error> {
    let wanted = args.vsock.is_some() || args.ic.contains(ServiceKind::Vsock);
    let (listener, vsock) = match bind_vsock(args.vsock.as_deref(), api) {
        Ok((listener, bound)) => {
            let path = bound.path().to_owned();
            let settings = VsockSettings::new(listener, path, args.cpus.get())?;
            (Ok(Arc::new(settings)), Some(bound))
        }
        Err(error) if wanted => return Err(error.into()),
        // It is told when somebody enables them.
        Err(error) => (Err(error.to_string()), None),
    };
    let registry = Arc::new(Mutex::new(registry));
    Ok((SocketSettings { listener, registry }, vsock))
}

/// The socket for Hyper-V sockets: where the user wants it, else beside the API's.
fn bind_vsock(
    path: Option<&Path>,
    api: &mut ControlSocket,
) -> Result<(UnixListener, ControlSocket), SocketError> {
    let Some(path) = path else {
        return ControlSocket::bind_at("--vsock", &api.path().with_file_name(VSOCK));
    };
    let bound = ControlSocket::bind_at("--vsock", path)?;
    // Who knows the VM's name finds it here.
    if let Err(error) = api.link(VSOCK, path) {
        log::warn!("--vsock: no link to it beside the control socket: {error}");
    }
    Ok(bound)
}

/// The signals that are ours, as something that epoll can wait for.
fn signal_pipe() -> io::Result<Signals> {
    let (read, write) = UnixStream::pair()?;
    SignalDelivery::with_pipe(read, write, SignalOnly, sandbox::SIGNALS)
}
