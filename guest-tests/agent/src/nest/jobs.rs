// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Many commands at once over one port.
//!
//! One thread reads frames and never blocks on a command; each command has a
//! thread that waits for it, one per output, and one that feeds its input.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use guest_agent::frame::{Frame, Kind};
use guest_agent::job::Spec;
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::process::shell_status;

/// How long output is awaited after a command's end, for the case that a
/// process it left behind still holds the pipe.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);

const HEARTBEAT: Duration = Duration::from_millis(500);

type Port = Arc<Mutex<File>>;

/// What the reader of frames knows of a running command.
struct Job {
    pid: Option<Pid>,
    input: Sender<Vec<u8>>,
    terminal: Option<OwnedFd>,
}

/// Serves until the host says stop or closes its end.
pub fn serve(port: File) {
    let mut reader = match port.try_clone() {
        Ok(reader) => reader,
        Err(error) => return eprintln!("agent: port: {error}"),
    };
    let port: Port = Arc::new(Mutex::new(port));
    send(&port, &Frame::new(Kind::Hello, 0, facts().into_bytes()));
    let beating = Arc::clone(&port);
    thread::spawn(move || {
        for beat in 0_u32.. {
            send(&beating, &Frame::number(Kind::Heartbeat, 0, beat));
            thread::sleep(HEARTBEAT);
        }
    });
    let jobs: Arc<Mutex<HashMap<u32, Job>>> = Arc::default();
    loop {
        let frame = match Frame::read_from(&mut reader) {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(error) => return eprintln!("agent: port: {error}"),
        };
        let mut running = jobs.lock().unwrap_or_else(PoisonError::into_inner);
        match (frame.kind, running.get(&frame.job)) {
            (Kind::Run, _) => match start(&frame, &port, &jobs) {
                Ok(job) => drop(running.insert(frame.job, job)),
                Err(error) => {
                    let text = format!("xtask exec: cannot start: {error}\n");
                    send(&port, &Frame::new(Kind::Stderr, frame.job, text.into()));
                    send(&port, &Frame::number(Kind::Exit, frame.job, 125));
                }
            },
            (Kind::Stdin, Some(job)) => drop(job.input.send(frame.payload)),
            (Kind::StdinEof, Some(job)) => drop(job.input.send(Vec::new())),
            (Kind::Signal, Some(job)) => signal(job, frame.as_number()),
            (Kind::Resize, Some(job)) => resize(job, &frame.payload),
            (Kind::Stop, _) => {
                rustix::fs::sync();
                send(&port, &Frame::empty(Kind::Bye, 0));
                return;
            }
            _ => {} // for a command that has ended
        }
    }
}

fn facts() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let release = read("/proc/sys/kernel/osrelease");
    let uptime = read("/proc/uptime");
    let kvm = std::fs::exists("/dev/kvm").unwrap_or(false);
    format!(
        "Linux {}, up {} s, /dev/kvm {}",
        release.trim(),
        uptime.split(' ').next().unwrap_or("?"),
        if kvm { "present" } else { "missing" }
    )
}

fn send(port: &Port, frame: &Frame) {
    let mut port = port.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = frame.write_to(&mut *port) {
        eprintln!("agent: port: {error}");
    }
}

fn signal(job: &Job, number: Option<u32>) {
    let signal = number
        .and_then(|number| i32::try_from(number).ok())
        .and_then(Signal::from_named_raw);
    if let (Some(pid), Some(signal)) = (job.pid, signal) {
        let _ = kill_process_group(pid, signal);
    }
}

fn resize(job: &Job, payload: &[u8]) {
    if let (Some(terminal), [r0, r1, c0, c1]) = (&job.terminal, payload) {
        let (rows, cols) = (
            u16::from_le_bytes([*r0, *r1]),
            u16::from_le_bytes([*c0, *c1]),
        );
        let _ = tcsetwinsize(terminal, winsize(rows, cols));
    }
}

fn winsize(rows: u16, cols: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn start(frame: &Frame, port: &Port, jobs: &Arc<Mutex<HashMap<u32, Job>>>) -> io::Result<Job> {
    let spec = Spec::decode(&frame.payload)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed request"))?;
    let id = frame.job;
    let mut command = Command::new(crate::SELF);
    command
        .args([
            "--job",
            if spec.terminal.is_some() {
                "pty"
            } else {
                "pipe"
            },
        ])
        .args([super::HOST.as_ref(), spec.cwd.as_os_str()])
        .args(&spec.argv)
        .env_clear()
        .envs(spec.env.iter().map(|(name, value)| (name, value)));
    let (input, queue) = mpsc::channel();
    let (mut child, outputs, terminal) = match spec.terminal {
        Some((rows, cols)) => on_terminal(command, id, port, queue, winsize(rows, cols))?,
        None => on_pipes(command, id, port, queue)?,
    };
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let (port, jobs) = (Arc::clone(port), Arc::clone(jobs));
    thread::spawn(move || {
        let status = child.wait().map_or(255, shell_status);
        let deadline = Instant::now() + OUTPUT_GRACE;
        while outputs.iter().any(|output| !output.is_finished()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        jobs.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
        send(&port, &Frame::number(Kind::Exit, id, status));
    });
    Ok(Job {
        pid,
        input,
        terminal,
    })
}

type Started = (Child, Vec<JoinHandle<()>>, Option<OwnedFd>);

fn on_pipes(
    mut command: Command,
    id: u32,
    port: &Port,
    queue: Receiver<Vec<u8>>,
) -> io::Result<Started> {
    let mut child = command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut outputs = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        outputs.push(pump(stdout, Kind::Stdout, id, port));
    }
    if let Some(stderr) = child.stderr.take() {
        outputs.push(pump(stderr, Kind::Stderr, id, port));
    }
    if let Some(stdin) = child.stdin.take() {
        feed(stdin, queue, id, port);
    }
    Ok((child, outputs, None))
}

fn on_terminal(
    mut command: Command,
    id: u32,
    port: &Port,
    queue: Receiver<Vec<u8>>,
    size: Winsize,
) -> io::Result<Started> {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    tcsetwinsize(&master, size)?;
    let child = command
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave)
        .spawn()?;
    drop(command); // holds the slave's other copies
    let output = pump(File::from(master.try_clone()?), Kind::Stdout, id, port);
    feed(File::from(master.try_clone()?), queue, id, port);
    Ok((child, vec![output], Some(master)))
}

/// Sends what `source` gives, until its end (for a terminal: an error).
fn pump(
    mut source: impl Read + Send + 'static,
    kind: Kind,
    id: u32,
    port: &Port,
) -> JoinHandle<()> {
    let port = Arc::clone(port);
    thread::spawn(move || {
        let mut buffer = vec![0; 32 * 1024];
        while let Ok(length) = source.read(&mut buffer) {
            match buffer.get(..length) {
                None | Some([]) => return,
                Some(data) => send(&port, &Frame::new(kind, id, data.to_vec())),
            }
        }
    })
}

/// Writes queued input; an empty piece is the end of it. Credit is given back
/// for what the command didn't take too, or its sender would wait for ever.
fn feed(sink: impl Write + Send + 'static, queue: Receiver<Vec<u8>>, id: u32, port: &Port) {
    let port = Arc::clone(port);
    thread::spawn(move || {
        let mut sink = Some(sink);
        for data in queue {
            if data.is_empty() {
                sink = None;
                continue;
            }
            let broken = sink
                .as_mut()
                .is_some_and(|sink| sink.write_all(&data).is_err());
            if broken {
                sink = None;
            }
            let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
            send(&port, &Frame::number(Kind::Credit, id, length));
        }
    });
}
