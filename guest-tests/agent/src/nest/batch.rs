// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The role of a nest without a way in: it runs the commands of the plan in its
//! initial RAM disk, and says on the second serial port what became of them, see
//! [`guest_agent::batch`]. The first serial port is the kernel's console.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use guest_agent::batch::{self, PLAN, Plan, TOO_LONG};
use guest_agent::line::{CHUNK, Line};
use rustix::mount::MountFlags;
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};

use crate::machine::{load_modules, loopback_up, mount_on};
use crate::process::shell_status;

/// Where the lines go.
const PORT: &str = "/dev/ttyS1";

const BAUD: u32 = 115_200;

/// Programs of busybox, as cases call them.
const PATH: &str = "/bin:/sbin:/usr/bin:/usr/sbin";

const HEARTBEAT: Duration = Duration::from_millis(500);

/// How long output is awaited after a command's end, see the other nest.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);

/// Between two looks at whether a command has ended.
const LOOK: Duration = Duration::from_millis(20);

/// The emulator loses what is in the serial port when the machine powers off.
const LAST_BYTES: Duration = Duration::from_secs(1);

type Port = Arc<Mutex<File>>;

/// Loads the modules.
pub fn prepare() {
    load_modules();
    let none = MountFlags::empty();
    mount_on("debugfs", "/sys/kernel/debug", "debugfs", none, "");
    mount_on("tracefs", "/sys/kernel/tracing", "tracefs", none, "");
    loopback_up();
}

/// Runs the batch; then PID 1 powers off.
pub fn serve() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("agent: batch: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let port = Arc::new(Mutex::new(open()?));
    say(&port, 0, "hello", facts().as_bytes())?;
    let plan = fs::read_to_string(PLAN)?;
    let plan = Plan::parse(&plan).map_err(io::Error::other)?;
    let beating = Arc::clone(&port);
    thread::spawn(move || {
        for beat in 0_u32.. {
            if say(&beating, 0, "beat", beat.to_string().as_bytes()).is_err() {
                return;
            }
            thread::sleep(HEARTBEAT);
        }
    });
    for command in &plan.commands {
        say(&port, command.id, "start", b"")?;
        let status = match start(command, &plan.env) {
            Ok(child) => wait(child, command, &port)?,
            Err(error) => {
                let program = command.argv.first().map_or("", String::as_str);
                let text = format!("agent: cannot start {program}: {error}\n");
                say(&port, command.id, "err", text.as_bytes())?;
                125
            }
        };
        say(&port, command.id, "exit", status.to_string().as_bytes())?;
    }
    say(&port, 0, "bye", b"")?;
    let port = port.lock().unwrap_or_else(PoisonError::into_inner);
    tcdrain(&*port)?;
    // The heartbeat waits for the port meanwhile.
    thread::sleep(LAST_BYTES);
    Ok(())
}

fn open() -> io::Result<File> {
    let tty = OpenOptions::new().read(true).write(true).open(PORT)?;
    let mut modes = tcgetattr(&tty)?;
    modes.make_raw();
    modes.set_speed(BAUD)?;
    tcsetattr(&tty, OptionalActions::Now, &modes)?;
    Ok(tty)
}

fn say(port: &Port, id: u32, word: &str, data: &[u8]) -> io::Result<()> {
    let line = Line::answer(id, word, data).encode();
    let mut port = port.lock().unwrap_or_else(PoisonError::into_inner);
    port.write_all(line.as_bytes())
}

/// The CPU, and what KVM makes of it.
fn facts() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("?", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let uptime = read("/proc/uptime");
    let mut text = format!(
        "Linux {}, {model}, up {} s, /dev/kvm {}",
        read("/proc/sys/kernel/osrelease").trim(),
        uptime.split(' ').next().unwrap_or("?"),
        if fs::exists("/dev/kvm").unwrap_or(false) {
            "present"
        } else {
            "missing"
        }
    );
    for name in ["ept", "vpid", "unrestricted_guest", "enable_apicv", "pml"] {
        let value = read(&format!("/sys/module/kvm_intel/parameters/{name}"));
        let _ = write!(text, " {name}={}", value.trim());
    }
    text
}

fn start(command: &batch::Command, env: &[(String, String)]) -> io::Result<Child> {
    let (program, args) = command
        .argv
        .split_first()
        .ok_or_else(|| io::Error::other("no program"))?;
    Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// Waits for the command's end, and ends it with all that it has started if
/// that takes too long.
fn wait(mut child: Child, command: &batch::Command, port: &Port) -> io::Result<u32> {
    let mut outputs = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        outputs.push(pump(stdout, "out", command.id, port));
    }
    if let Some(stderr) = child.stderr.take() {
        outputs.push(pump(stderr, "err", command.id, port));
    }
    let deadline = Instant::now() + Duration::from_secs(command.limit);
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break shell_status(status);
        }
        if Instant::now() >= deadline {
            if let Some(group) = group {
                let _ = kill_process_group(group, Signal::KILL);
            }
            child.wait()?;
            let text = format!("no end after {} s\n", command.limit);
            say(port, command.id, "err", text.as_bytes())?;
            break TOO_LONG;
        }
        thread::sleep(LOOK);
    };
    // A machine that the command left behind would slow the next one down.
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let deadline = Instant::now() + OUTPUT_GRACE;
    while outputs.iter().any(|output| !output.is_finished()) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(status)
}

/// Passes on what `source` gives, until its end.
fn pump(
    mut source: impl Read + Send + 'static,
    word: &'static str,
    id: u32,
    port: &Port,
) -> JoinHandle<()> {
    let port = Arc::clone(port);
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        while let Ok(length) = source.read(&mut buffer) {
            match buffer.get(..length) {
                None | Some([]) => return,
                Some(data) => {
                    if say(&port, id, word, data).is_err() {
                        return;
                    }
                }
            }
        }
    })
}
