// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's role: one command at a time, by lines over the serial console.
//!
//! Words on the kernel's command line for the agent:
//!
//! * `agent.poweroff`: print what the machine is, then power off.
//! * `agent.modules=a,b`: load these (with what they need) before serving.
//! * `agent.tty=NAME`: the console to serve on, `ttyS0` unless said.
//! * `agent.ignore-shutdown`: see [`crate::power`].
//! * `agent.mark`: say `agent: init` first of all, for those who measure.

mod clock;
mod facts;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use guest_agent::line::{CHUNK, Line};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::machine::{cmdline_has, cmdline_value, loopback_up, set_console_loglevel};
use crate::process::shell_status;

/// How long output is awaited after a command's end (see the nest's).
const OUTPUT_GRACE: Duration = Duration::from_secs(2);

/// Silences the kernel's talk (a panic still shows) and loads what was asked for.
pub fn prepare() {
    if cmdline_has("agent.mark") {
        println!("agent: init");
    }
    set_console_loglevel(1);
    loopback_up();
    for module in cmdline_value("agent.modules")
        .unwrap_or_default()
        .split(',')
    {
        if !module.is_empty() {
            let _ = Command::new("/bin/busybox")
                .args(["modprobe", module])
                .status();
        }
    }
}

/// Serves commands for as long as the machine runs.
pub fn serve() -> ExitCode {
    if cmdline_has("agent.poweroff") {
        print!("{}", facts::report());
        return ExitCode::SUCCESS; // and PID 1 powers off
    }
    let name = cmdline_value("agent.tty").unwrap_or_else(|| "ttyS0".to_owned());
    match Console::open(&name).and_then(|mut console| console.serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("agent: /dev/{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Console {
    tty: File,
    /// Input read but not used yet.
    pending: Vec<u8>,
}

impl Console {
    fn open(name: &str) -> io::Result<Self> {
        let tty = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/dev/{name}"))?;
        let mut modes = tcgetattr(&tty)?;
        modes.make_raw();
        tcsetattr(&tty, OptionalActions::Now, &modes)?;
        Ok(Self {
            tty,
            pending: Vec::new(),
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        self.answer(0, "hello", facts::short().as_bytes())?;
        loop {
            let text = self.read_line()?;
            match Line::parse(&text, 'Q') {
                Some(Ok(line)) => match line.word.as_str() {
                    "sh" => self.shell(line.id, &line.data)?,
                    "echo" => self.echo(line.id, &line.data)?,
                    "clock" => self.clock(line.id, &line.data)?,
                    _ => self.answer(line.id, "bad", b"unknown request")?,
                },
                Some(Err(error)) => self.answer(0, "bad", error.to_string().as_bytes())?,
                None if text.trim().is_empty() => {}
                None => self.answer(0, "bad", text.as_bytes())?,
            }
        }
    }

    fn answer(&mut self, id: u32, word: &str, data: &[u8]) -> io::Result<()> {
        // A line break first: a kernel message may stand unfinished there.
        let line = format!("\n{}", Line::answer(id, word, data).encode());
        self.tty.write_all(line.as_bytes())
    }

    /// Blocks until something was read.
    fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let length = self.tty.read(&mut buffer)?;
        match buffer.get(..length) {
            None | Some([]) => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(data) => {
                self.pending.extend_from_slice(data);
                Ok(())
            }
        }
    }

    fn read_line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            self.fill()?;
        }
    }

    /// Sends the next bytes back as they come: a test of the console itself.
    fn echo(&mut self, id: u32, count: &[u8]) -> io::Result<()> {
        let mut left: usize = String::from_utf8_lossy(count).trim().parse().unwrap_or(0);
        self.answer(id, "go", b"")?;
        while left > 0 {
            if self.pending.is_empty() {
                self.fill()?;
            }
            let now = left.min(self.pending.len());
            let data: Vec<u8> = self.pending.drain(..now).collect();
            self.tty.write_all(&data)?;
            left -= now;
        }
        self.answer(id, "exit", b"0")
    }

    fn shell(&mut self, id: u32, script: &[u8]) -> io::Result<()> {
        let script = String::from_utf8_lossy(script).into_owned();
        let started = Command::new("/bin/busybox")
            .args(["sh", "-c", &script])
            .env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin")
            .env("HOME", "/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) => {
                self.answer(id, "err", error.to_string().as_bytes())?;
                return self.answer(id, "exit", b"127");
            }
        };
        let (sender, pieces) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            pump("out", stdout, sender.clone());
        }
        if let Some(stderr) = child.stderr.take() {
            pump("err", stderr, sender.clone());
        }
        // The last sender belongs to the thread that sees the command's end.
        let (ended, end) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = ended.send(child.wait().map_or(255, shell_status));
            std::thread::sleep(OUTPUT_GRACE);
            let _ = sender.send(("late", Vec::new()));
        });
        let mut open = 2;
        while open > 0 {
            match pieces.recv() {
                Ok(("late", _)) | Err(_) => break,
                Ok((_, data)) if data.is_empty() => open -= 1,
                Ok((word, data)) => {
                    for chunk in data.chunks(CHUNK) {
                        self.answer(id, word, chunk)?;
                    }
                }
            }
        }
        let status = end.recv().unwrap_or(255);
        self.answer(id, "exit", status.to_string().as_bytes())
    }
}

/// Passes on what `source` gives; an empty piece is its end.
fn pump(
    word: &'static str,
    mut source: impl Read + Send + 'static,
    sender: mpsc::Sender<(&'static str, Vec<u8>)>,
) {
    std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        loop {
            let length = source.read(&mut buffer).unwrap_or(0);
            let data = buffer.get(..length).unwrap_or_default().to_vec();
            if sender.send((word, data)).is_err() || length == 0 {
                return;
            }
        }
    });
}
