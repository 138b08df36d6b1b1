// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line of `vmm`, parsed into checked values.

use std::fmt;
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, Parser};

use ics_devices::kvp::{Key, Value};
use ics_devices::{ServiceSet, ServiceSetError};
use vmbus::wire::{Guid, ProtocolVersion};

use crate::api::socket;
use crate::completions::Offering;
use crate::sandbox;
use crate::ssh_key::KeyFile;
use crate::vsock::registry::{NameError, Registry, ServiceName, parse_service};

/// Values that completions offer.
const SERVICES: &[&str] = &[
    "all",
    "none",
    "all,-fcopy",
    "+fcopy",
    "-vss",
    "-kvp",
    "-vsock",
    "-timesync",
    "heartbeat",
    "shutdown",
    "timesync",
    "kvp",
    "vss",
    "fcopy",
    "vsock",
];
const VERSIONS: &[&str] = &["2.4", "3.0", "4.0", "4.1", "5.0", "5.1", "5.2", "5.3"];
/// A number that no machine needs more of; KVM has its own, lower limit.
const MAX_CPUS: u32 = 4096;

/// Boot a Linux kernel in a KVM virtual machine that looks like Hyper-V.
///
/// The guest's console is this terminal. Ctrl-A x quits, Ctrl-A Ctrl-A sends a
/// Ctrl-A.
// The text is for clap, which knows no escapes: brackets in it are no links.
#[allow(rustdoc::broken_intra_doc_links)]
#[derive(Debug, Parser)]
#[command(
    name = "vmm",
    version,
    after_help = "\
Examples:
  vmm --kernel bzImage --initramfs rd.img
  vmm --kernel vmlinux --initramfs rd.img --cpus 4 --memory 2G --cmdline 'console=ttyS0 quiet'
  vmm --kernel bzImage --initramfs rd.img --serial file=console.log --timeout 60s --on-reset exit
  vmm --kernel bzImage --initramfs rd.img --name web --ssh-key ~/.ssh/id_ed25519.pub

Exit codes: 0 the guest powered off, 1 the host failed, 2 usage, 10 the guest reset and
--on-reset exit, 20 the guest crashed, 30 timeout, 130 interrupted."
)]
pub struct Args {
    /// Kernel to boot: a bzImage or an ELF vmlinux
    #[arg(long, value_name = "PATH")]
    pub kernel: PathBuf,

    /// Initial RAM disk
    #[arg(long, visible_alias = "initrd", value_name = "PATH")]
    pub initramfs: Option<PathBuf>,

    /// Kernel command line
    #[arg(
        long,
        value_name = "STR",
        default_value = "console=ttyS0",
        allow_hyphen_values = true
    )]
    pub cmdline: String,

    /// Public key that may log in as root over a Hyper-V socket, for vmmctl ssh; the guest needs
    /// systemd 252 or newer and an sshd. May be given several times
    #[arg(long, value_name = "FILE.pub", value_parser = KeyFile::read)]
    pub ssh_key: Vec<KeyFile>,

    /// Number of vCPUs; also boot=N
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        value_parser = cpus,
        allow_hyphen_values = true
    )]
    pub cpus: NonZeroU32,

    /// Guest memory, such as 256M or 2G
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = memory, allow_hyphen_values = true)]
    pub memory: u64,

    /// Back the guest's memory with 2 MiB huge pages, which have to be reserved
    #[arg(long)]
    pub hugepages: bool,

    /// The guest's first serial port: this terminal, nothing, or a file for its output
    #[arg(long, value_name = "tty|null|file=PATH", default_value = "tty", hide_possible_values = true, value_parser = Offering(serial, &["tty", "null", "file="]))]
    pub serial: Serial,

    /// The VM's name for vmmctl [default: vm-PID]
    #[arg(long, value_name = "NAME", value_parser = socket::valid_name)]
    pub name: Option<String>,

    /// Control socket [default: $XDG_RUNTIME_DIR/vmm/NAME/api.sock; without that variable /run/vmm
    /// for root, else a private directory in the temporary directory]
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,

    /// Unix socket for Hyper-V sockets [default: vsock.sock beside the control socket]
    #[arg(long, value_name = "PATH")]
    pub vsock: Option<PathBuf>,

    /// A friendly name for a service on Hyper-V sockets, by GUID or port. May be given several times
    #[arg(long, value_name = "GUID=NAME|PORT=NAME", value_parser = named_service, allow_hyphen_values = true)]
    pub hvsocket: Vec<(Guid, ServiceName)>,

    /// Integration services to offer: heartbeat, shutdown, timesync, kvp, vss, fcopy, vsock; all,
    /// none, or a change such as +fcopy
    #[arg(long, value_name = "LIST", default_value = "all,-fcopy", hide_possible_values = true, value_parser = Offering(services, SERVICES), allow_hyphen_values = true)]
    pub ic: ServiceSet,

    /// An item in the pool from host to guest; with @FILE its value is in a file. May be given
    /// several times
    #[arg(long, value_name = "KEY=VALUE|KEY=@FILE", value_parser = item, allow_hyphen_values = true)]
    pub kvp: Vec<(Key, Value)>,

    /// all tells the guest what Hyper-V tells (pool auto-external): this host's name and kernel
    /// version, the VM's name and ID, and more; none tells it nothing
    #[arg(long, value_name = "all|none", default_value = "all", value_parser = host_items, action = ArgAction::Set)]
    pub kvp_host_items: bool,

    /// The VM's ID that the guest sees (VirtualMachineId). A reset keeps it; a new start of vmm
    /// keeps it only with this option [default: random]
    #[arg(long, value_name = "GUID")]
    pub vm_id: Option<Guid>,

    /// Who emulates the SynIC: kernel is the host's KVM; user is this program; hybrid is this
    /// program with KVM's hypercalls; auto takes kernel if the host can, otherwise user
    #[arg(long, value_name = "auto|kernel|hybrid|user", default_value = "auto", hide_possible_values = true, value_parser = Offering(synic, &["auto", "kernel", "hybrid", "user"]))]
    pub synic: SynicChoice,

    /// Which timers the guest uses: the local APIC's, or Hyper-V's. Without Hyper-V's, Linux 7.3
    /// warns at boot; with them no Linux has a timer left after `rmmod hv_vmbus`, and it hangs
    #[arg(long, value_name = "apic|hyperv", default_value = "apic", hide_possible_values = true, value_parser = Offering(timers, &["apic", "hyperv"]))]
    pub timers: Timers,

    /// Newest VMBus version to accept, from 2.4 to 5.3
    #[arg(long, value_name = "X.Y", default_value = "5.3", hide_possible_values = true, value_parser = Offering(vmbus_version, VERSIONS))]
    pub vmbus_version: ProtocolVersion,

    /// Write every message and packet on the bus, decoded, one JSON object a line, to a file
    #[arg(long, value_name = "PATH")]
    pub vmbus_trace: Option<PathBuf>,

    /// Offer a test device: echo sends back what it gets; with :toggle=DUR it comes and goes
    #[arg(long, value_name = "echo[:toggle=DUR]", hide_possible_values = true, value_parser = Offering(device, &["echo", "echo:toggle="]))]
    pub device: Vec<TestDevice>,

    /// When the guest powers off: exit[:CODE] or reset
    #[arg(long, value_name = "ACTION", default_value = "exit:0", hide_possible_values = true, value_parser = Offering(on_shutdown, &["exit", "exit:0", "reset"]))]
    pub on_shutdown: Action,

    /// When the guest resets: reset (boot again) or exit[:CODE]
    #[arg(long, value_name = "ACTION", default_value = "reset", hide_possible_values = true, value_parser = Offering(on_reset, &["reset", "exit"]))]
    pub on_reset: Action,

    /// When the guest crashes: exit[:CODE], reset, or continue (leave it to the guest)
    #[arg(long, value_name = "ACTION", default_value = "exit:20", hide_possible_values = true, value_parser = Offering(on_crash, &["exit", "exit:20", "reset", "continue"]))]
    pub on_crash: Action,

    /// Give up after this long, such as 90s, 5m or 500ms, and exit with 30
    #[arg(long, value_name = "DUR", value_parser = duration, allow_hyphen_values = true)]
    pub timeout: Option<Duration>,

    /// Write events, one JSON object a line, to a file or to an open descriptor
    #[arg(long, value_name = "PATH|fd=N", value_parser = event_log)]
    pub event_log: Option<EventLogTarget>,

    /// System calls that a thread has no use for: true ends vmm with a message, log lets them
    /// through and the host's kernel log names them, false has no filters
    #[arg(long, value_name = "true|log|false", default_value = "true", hide_possible_values = true, value_parser = Offering(seccomp, &["true", "log", "false"]))]
    pub seccomp: sandbox::Mode,

    /// How much to log
    #[arg(
        long,
        value_name = "off|error|warn|info|debug|trace",
        default_value = "warn",
        hide_possible_values = true,
        value_parser = Offering(log_level, &["off", "error", "warn", "info", "debug", "trace"])
    )]
    pub log_level: log::LevelFilter,

    /// Log more: -v info, -vv debug, -vvv trace
    #[arg(short, action = ArgAction::Count)]
    pub verbose: u8,

    /// Log to a file instead of standard error
    #[arg(long, value_name = "PATH")]
    pub log_file: Option<PathBuf>,
}

/// Where the guest's serial port ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serial {
    /// Standard input and output, in raw mode if they are a terminal.
    Tty,
    /// Nowhere.
    Null,
    /// Output to a file, no input.
    File(PathBuf),
}

/// The timers that the guest is to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timers {
    /// Of the local APICs.
    Apic,
    /// Hyper-V's synthetic ones.
    Hyperv,
}

/// The SynIC that the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SynicChoice {
    /// The kernel's if it has one.
    Auto,
    /// This one.
    Only(vmbus_kvm::Mode),
}

/// What to do when the guest ends in one way or another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// End this process with a code.
    Exit(u8),
    /// Boot again in place.
    Reset,
    /// Note it and leave the rest to the guest.
    Continue,
}

/// A device on the bus that is there for testing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestDevice {
    /// Sends back every packet.
    Echo {
        /// Taken away and offered again this often.
        toggle: Option<Duration>,
    },
}

/// Where events are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventLogTarget {
    /// A file, created or truncated.
    Path(PathBuf),
    /// An open descriptor.
    Descriptor(i32),
}

impl fmt::Display for EventLogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Descriptor(fd) => write!(f, "fd={fd}"),
        }
    }
}

impl Args {
    /// The level that `--log-level` and `-v` together ask for.
    pub fn effective_log_level(&self) -> log::LevelFilter {
        let verbose = match self.verbose {
            0 => log::LevelFilter::Off,
            1 => log::LevelFilter::Info,
            2 => log::LevelFilter::Debug,
            _ => log::LevelFilter::Trace,
        };
        self.log_level.max(verbose)
    }

    /// What `--hvsocket` names; a usage error if two of them do not go together.
    pub fn registry(&self) -> Result<Registry, clap::Error> {
        Registry::of(&self.hvsocket).map_err(|error| {
            let message = format!("invalid value for '--hvsocket': {error}\n");
            Self::command().error(ErrorKind::ValueValidation, message)
        })
    }

    /// The SynIC that has to be used, if the user has a preference.
    pub fn wanted_synic(&self) -> Option<vmbus_kvm::Mode> {
        match self.synic {
            SynicChoice::Auto => None,
            SynicChoice::Only(mode) => Some(mode),
        }
    }
}

fn cpus(text: &str) -> Result<NonZeroU32, String> {
    let number = text.strip_prefix("boot=").unwrap_or(text);
    number
        .parse()
        .ok()
        .filter(|count: &NonZeroU32| count.get() <= MAX_CPUS)
        .ok_or_else(|| format!("expected a number from 1 to {MAX_CPUS}"))
}

fn memory(text: &str) -> Result<u64, String> {
    let size = size(text.strip_prefix("size=").unwrap_or(text))?;
    // The rest of the checks is of the layout's making and names the flag too.
    if size.is_multiple_of(4096) {
        Ok(size)
    } else {
        Err("expected a size such as 256M or 2G; without a unit it is bytes, and a multiple of 4096".into())
    }
}

/// Bytes, with a binary unit or without one.
pub(crate) fn size(number: &str) -> Result<u64, String> {
    const EXPECTED: &str = "expected a size such as 256M or 2G";
    let (digits, shift) = match number.char_indices().next_back() {
        Some((at, unit)) if !unit.is_ascii_digit() => {
            let shift = match unit.to_ascii_uppercase() {
                'K' => 10,
                'M' => 20,
                'G' => 30,
                'T' => 40,
                _ => return Err(EXPECTED.into()),
            };
            (number.split_at(at).0, shift)
        }
        _ => (number, 0),
    };
    let number = digits.parse::<u64>().map_err(|_| EXPECTED)?;
    let size = number.checked_mul(1 << shift);
    size.ok_or_else(|| "more than a computer can address".into())
}

fn serial(text: &str) -> Result<Serial, String> {
    match (text, text.strip_prefix("file=")) {
        ("tty", _) => Ok(Serial::Tty),
        ("null", _) => Ok(Serial::Null),
        (_, Some(path)) if !path.is_empty() => Ok(Serial::File(path.into())),
        _ => Err("expected tty, null or file=PATH".into()),
    }
}

fn synic(text: &str) -> Result<SynicChoice, String> {
    match text {
        "auto" => Ok(SynicChoice::Auto),
        name => name
            .parse()
            .map(SynicChoice::Only)
            .map_err(|_| "expected auto, kernel, hybrid or user".into()),
    }
}

fn seccomp(text: &str) -> Result<sandbox::Mode, String> {
    match text {
        "true" => Ok(sandbox::Mode::Enforce),
        "log" => Ok(sandbox::Mode::Log),
        "false" => Ok(sandbox::Mode::Off),
        _ => Err("expected true, log or false".into()),
    }
}

fn timers(text: &str) -> Result<Timers, String> {
    match text {
        "apic" => Ok(Timers::Apic),
        "hyperv" => Ok(Timers::Hyperv),
        _ => Err("expected apic or hyperv".into()),
    }
}

fn host_items(text: &str) -> Result<bool, String> {
    match text {
        "all" => Ok(true),
        "none" => Ok(false),
        _ => Err("expected all or none".into()),
    }
}

fn services(text: &str) -> Result<ServiceSet, String> {
    text.parse()
        .map_err(|error: ServiceSetError| error.to_string())
}

fn item(text: &str) -> Result<(Key, Value), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("expected KEY=VALUE or KEY=@FILE")?;
    let key = Key::new(key).map_err(|error| error.to_string())?;
    let value = match value.strip_prefix('@') {
        None => value.to_owned(),
        Some(path) => {
            std::fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))?
        }
    };
    let value = Value::text(&value).map_err(|error| error.to_string())?;
    Ok((key, value))
}

fn named_service(text: &str) -> Result<(Guid, ServiceName), String> {
    let (service, name) = text
        .split_once('=')
        .ok_or("expected GUID=NAME or PORT=NAME, as 5000=echo")?;
    let name = name.parse().map_err(|error: NameError| error.to_string())?;
    Ok((parse_service(service)?, name))
}

fn vmbus_version(text: &str) -> Result<ProtocolVersion, String> {
    text.parse()
        .ok()
        .filter(|version| (ProtocolVersion::V2_4..=ProtocolVersion::V5_3).contains(version))
        .ok_or_else(|| "expected 2.4, 3.0, 4.0, 4.1, 5.0, 5.1, 5.2 or 5.3".into())
}

fn device(text: &str) -> Result<TestDevice, String> {
    let toggle = match text.split_once(":toggle=") {
        None if text == "echo" => None,
        Some(("echo", every)) => Some(duration(every)?),
        _ => return Err("expected echo or echo:toggle=DUR".into()),
    };
    Ok(TestDevice::Echo { toggle })
}

fn log_level(text: &str) -> Result<log::LevelFilter, String> {
    text.parse()
        .map_err(|_| "expected off, error, warn, info, debug or trace".into())
}

/// `default` is the code of a bare `exit`.
fn action(text: &str, default: u8, may_continue: bool) -> Result<Action, String> {
    let parsed = match (text, text.strip_prefix("exit:")) {
        ("reset", _) => Some(Action::Reset),
        ("continue", _) if may_continue => Some(Action::Continue),
        ("exit", _) => Some(Action::Exit(default)),
        (_, Some(code)) => code.parse().ok().map(Action::Exit),
        _ => None,
    };
    parsed.ok_or_else(|| {
        let more = if may_continue { ", continue" } else { "" };
        format!("expected exit, exit:CODE (0 to 255){more} or reset")
    })
}

fn on_shutdown(text: &str) -> Result<Action, String> {
    action(text, exit::POWER_OFF, false)
}

fn on_reset(text: &str) -> Result<Action, String> {
    action(text, exit::RESET, false)
}

fn on_crash(text: &str) -> Result<Action, String> {
    action(text, exit::CRASH, true)
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    match digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(millis))
    {
        Some(millis) if millis > 0 => Ok(Duration::from_millis(millis)),
        _ => Err("expected a duration such as 500ms, 90s, 5m or 1h".into()),
    }
}

fn event_log(text: &str) -> Result<EventLogTarget, String> {
    match text.strip_prefix("fd=") {
        Some(number) => number
            .parse()
            .ok()
            .filter(|fd| *fd >= 0)
            .map(EventLogTarget::Descriptor)
            .ok_or_else(|| "expected a path or fd=N".into()),
        None => Ok(EventLogTarget::Path(text.into())),
    }
}

/// Ends a program whose command line was not understood. Help goes to standard
/// output, and is a success if it could be written; a mistake becomes one line.
pub fn usage(program: &str, error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        let mut out = io::stdout().lock();
        let text = error.render();
        let written = write!(out, "{text}").and_then(|()| out.flush());
        return match written {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                let _ = writeln!(io::stderr(), "{program}: cannot write the help: {error}");
                exit::HOST.into()
            }
            _ => ExitCode::SUCCESS,
        };
    }
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("wrong usage");
    let first = if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // What there is instead is the whole help.
        "a command is missing"
    } else {
        first.strip_prefix("error: ").unwrap_or(first)
    };
    // Where the first line is only a heading, what it announces follows; what
    // is accepted, or was meant, follows too.
    let more = if first.ends_with(':') {
        lines.next()
    } else {
        lines.find(|line| line.starts_with("[possible values") || line.starts_with("tip: "))
    };
    let _ = writeln!(
        io::stderr(),
        "{program}: {first}{}{} (see {program} --help)",
        match more {
            Some(more) if more.starts_with("tip: ") => "; ",
            Some(_) => " ",
            None => "",
        },
        more.unwrap_or_default()
    );
    exit::USAGE.into()
}

/// The exit codes that are part of the interface.
pub mod exit {
    /// The guest powered off.
    pub const POWER_OFF: u8 = 0;
    /// The host failed.
    pub const HOST: u8 = 1;
    /// The command line was wrong.
    pub const USAGE: u8 = 2;
    /// The guest reset, and that was to end it.
    pub const RESET: u8 = 10;
    /// The guest crashed.
    pub const CRASH: u8 = 20;
    /// `--timeout` passed.
    pub const TIMEOUT: u8 = 30;
    /// A signal or the user ended it.
    pub const INTERRUPTED: u8 = 130;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, String> {
        let line = ["vmm", "--kernel", "k"].iter().chain(args);
        Args::try_parse_from(line).map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_interface() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.cmdline, "console=ttyS0");
        assert_eq!((args.cpus.get(), args.memory), (1, 512 << 20));
        assert_eq!(args.serial, Serial::Tty);
        assert_eq!(args.wanted_synic(), None);
        assert_eq!(
            (args.on_shutdown, args.on_reset, args.on_crash),
            (Action::Exit(0), Action::Reset, Action::Exit(20))
        );
        assert_eq!(args.timeout, None);
        assert_eq!(args.effective_log_level(), log::LevelFilter::Warn);
    }

    #[test]
    fn both_spellings_of_cpus_memory_and_initramfs_work() {
        let args = parse(&["--cpus", "boot=4", "--memory", "size=2G", "--initrd", "r"]).unwrap();
        assert_eq!((args.cpus.get(), args.memory), (4, 2 << 30));
        assert_eq!(args.initramfs, Some("r".into()));
    }

    #[test]
    fn sizes_are_binary_and_overflow_is_refused() {
        let size = |text| parse(&["--memory", text]).map(|args| args.memory);
        assert_eq!(size("262144K"), Ok(256 << 20));
        assert_eq!(size("256m"), Ok(256 << 20));
        assert_eq!(size("1T"), Ok(1 << 40));
        assert_eq!(size("536870912"), Ok(512 << 20));
        for bad in ["", "M", "-1", "1.5G", "1X", "99999999999T", "1000", "é"] {
            let error = size(bad).unwrap_err();
            assert!(error.contains("--memory"), "{bad}: {error}");
        }
    }

    #[test]
    fn zero_and_absurd_numbers_of_cpus_are_refused_by_name() {
        for bad in ["0", "5000", "-1", "two", ""] {
            assert!(parse(&["--cpus", bad]).unwrap_err().contains("--cpus"));
        }
    }

    #[test]
    fn actions_have_codes_and_only_a_crash_may_be_left_to_the_guest() {
        let args = parse(&["--on-shutdown", "exit:7", "--on-reset", "exit"]).unwrap();
        assert_eq!(
            (args.on_shutdown, args.on_reset),
            (Action::Exit(7), Action::Exit(10))
        );
        let args = parse(&["--on-crash", "continue"]).unwrap();
        assert_eq!(args.on_crash, Action::Continue);
        assert!(parse(&["--on-reset", "continue"]).is_err());
        assert!(parse(&["--on-reset", "exit:256"]).is_err());
    }

    #[test]
    fn services_are_named_once() {
        let names = |args: &[&str]| {
            let args = args.iter().flat_map(|arg| ["--hvsocket", arg]);
            parse(&args.collect::<Vec<_>>())
        };
        let args = names(&["5000=echo", "0000138a-facb-11e6-bd58-64006a7986d3=log"]).unwrap();
        assert_eq!(args.registry().unwrap().iter().count(), 2);
        for bad in ["5000", "5000=", "x=y", "5000=a/b", "=x", "-1=x"] {
            let error = names(&[bad]).unwrap_err();
            assert!(error.contains("--hvsocket"), "{bad}: {error}");
        }
        let twice = names(&["1=x", "2=x"]).unwrap().registry().unwrap_err();
        assert!(
            twice
                .to_string()
                .contains("--hvsocket': the name 'x' is taken")
        );
    }

    #[test]
    fn what_the_guest_is_told_of_the_host_can_be_left_out() {
        let told = |args: &[&str]| parse(args).map(|args| args.kvp_host_items);
        assert_eq!(told(&[]), Ok(true));
        assert_eq!(told(&["--kvp-host-items", "all"]), Ok(true));
        assert_eq!(told(&["--kvp-host-items", "none"]), Ok(false));
        let error = told(&["--kvp-host-items", "some"]).unwrap_err();
        assert!(error.contains("expected all or none"), "{error}");
        let id = "461B2364-3901-4349-B3C2-FA4821CBEEFE";
        let parsed = parse(&["--vm-id", id]).unwrap().vm_id.unwrap();
        assert_eq!(parsed.to_string().to_uppercase(), id);
        let error = parse(&["--vm-id", "7"]).unwrap_err();
        assert!(
            error.contains("--vm-id") && error.contains("32 hex"),
            "{error}"
        );
    }

    #[test]
    fn durations_have_units() {
        let time = |text| parse(&["--timeout", text]).map(|args| args.timeout.unwrap());
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(time("5m"), Ok(Duration::from_secs(300)));
        for bad in ["", "0", "s", "5d", "99999999999999999999h", "-5s"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn more_v_is_more_log_but_never_less_than_asked() {
        let level = |args: &[&str]| parse(args).unwrap().effective_log_level();
        assert_eq!(level(&["-vv"]), log::LevelFilter::Debug);
        assert_eq!(
            level(&["-v", "--log-level", "trace"]),
            log::LevelFilter::Trace
        );
        assert_eq!(level(&["--log-level", "off"]), log::LevelFilter::Off);
    }
}
