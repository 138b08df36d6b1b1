// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A `vmm` under test and the guest in it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guest_agent::line::Line;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::console::Console;
use super::{Context, Failure, Outcome, seccomp};
use crate::ensure;

/// How long a guest may take to come up; the nest is slow and may be loaded.
const BOOT: Duration = Duration::from_secs(120);

/// How long a command in the guest may take unless said otherwise.
const SHELL: Duration = Duration::from_secs(120);

/// A machine to be launched.
#[derive(Debug)]
pub struct Setup<'a> {
    context: &'a Context,
    kernel: PathBuf,
    initramfs: Option<PathBuf>,
    cmdline: String,
    cpus: u32,
    memory: String,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

impl<'a> Setup<'a> {
    pub(super) fn new(context: &'a Context) -> Self {
        Self {
            context,
            kernel: context.vmlinuz.clone(),
            initramfs: Some(context.initramfs.clone()),
            // The log is in the guest; printing all of it takes seconds.
            cmdline: "console=ttyS0 loglevel=5".to_owned(),
            cpus: context.cpus,
            memory: "512M".to_owned(),
            args: Vec::new(),
            env: Vec::new(),
        }
    }

    /// Another kernel file.
    #[must_use]
    pub fn kernel(mut self, path: impl Into<PathBuf>) -> Self {
        self.kernel = path.into();
        self
    }

    /// Another initial RAM disk, or none.
    #[must_use]
    pub fn initramfs(mut self, path: Option<PathBuf>) -> Self {
        self.initramfs = path;
        self
    }

    /// More words for the kernel's command line.
    #[must_use]
    pub fn cmdline(mut self, words: &str) -> Self {
        self.cmdline.push(' ');
        self.cmdline.push_str(words);
        self
    }

    /// Another number of vCPUs than the case's.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Another size than 512 MiB.
    #[must_use]
    pub fn memory(mut self, size: &str) -> Self {
        size.clone_into(&mut self.memory);
        self
    }

    /// More arguments of `vmm`.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(OsString::from));
        self
    }

    /// A variable of `vmm`'s environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The command, not started, and where its event log will be.
    pub fn command(&self) -> (Command, PathBuf) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vm{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let events = self.context.dir.join(format!("{name}.events"));
        let mut command = Command::new(&self.context.vmm);
        command.arg("--kernel").arg(&self.kernel);
        if let Some(initramfs) = &self.initramfs {
            command.arg("--initramfs").arg(initramfs);
        }
        command
            .args(["--cmdline", &self.cmdline])
            .args(["--cpus", &self.cpus.to_string()])
            .args(["--memory", &self.memory])
            .arg("--event-log")
            .arg(&events);
        if let Some(synic) = &self.context.synic {
            command.args(["--synic", synic]);
        }
        if let Some(mode) = seccomp::wish() {
            command.args(["--seccomp", &mode]);
        }
        command.args(&self.args).envs(self.env.iter().cloned());
        (command, events)
    }

    /// Starts it, with pipes instead of a terminal.
    pub fn launch(&self) -> Outcome<Vm> {
        let (command, events) = self.command();
        Vm::start(command, events)
    }

    /// Starts it and waits for the agent.
    pub fn boot(&self) -> Outcome<Vm> {
        let mut vm = self.launch()?;
        vm.wait_agent()?;
        Ok(vm)
    }
}

/// A running `vmm`. Dropping it kills it.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    stdin: Option<ChildStdin>,
    /// The guest's serial console.
    pub console: Console,
    events: PathBuf,
    stderr: PathBuf,
    last_id: u32,
}

/// How a command in the guest ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shell {
    /// 128 + n if signal n ended it.
    pub status: u32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Vm {
    /// Starts a command whose standard input and output are a guest's console.
    /// Its logs are named like its event log.
    pub fn start(mut command: Command, events: PathBuf) -> Outcome<Self> {
        let stderr = events.with_extension("stderr");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr)?)
            .spawn()?;
        let stdin = child.stdin.take();
        let Some(stdout) = child.stdout.take() else {
            return Err(Failure("no pipe to the machine".to_owned()));
        };
        let console = Console::collect(stdout, &events.with_extension("serial"))?;
        Ok(Self {
            child,
            stdin,
            console,
            events,
            stderr,
            last_id: 0,
        })
    }

    /// Waits until the agent says hello, and gives its words.
    pub fn wait_agent(&mut self) -> Outcome<Hello> {
        self.wait_agent_within(BOOT)
    }

    /// The same, for a guest with more to do before.
    pub fn wait_agent_within(&mut self, limit: Duration) -> Outcome<Hello> {
        let deadline = Instant::now() + limit;
        let line = self
            .answer(0, deadline)
            .map_err(|error| Failure(format!("waiting for the guest's agent: {error}")))?;
        ensure!(
            line.word == "hello",
            "the agent said {line:?} instead of hello"
        );
        Ok(Hello::parse(&String::from_utf8_lossy(&line.data)))
    }

    /// Runs a command in the guest.
    pub fn sh(&mut self, script: &str) -> Outcome<Shell> {
        let id = self.ask("sh", script.as_bytes())?;
        let deadline = Instant::now() + SHELL;
        let mut shell = Shell::default();
        loop {
            let line = self
                .answer(id, deadline)
                .map_err(|error| Failure(format!("`{script}` in the guest: {error}")))?;
            let text = String::from_utf8_lossy(&line.data);
            match line.word.as_str() {
                "out" => shell.stdout.push_str(&text),
                "err" => shell.stderr.push_str(&text),
                "exit" => {
                    shell.status = text.parse().unwrap_or(255);
                    return Ok(shell);
                }
                _ => return Err(Failure(format!("`{script}` in the guest: {text}"))),
            }
        }
    }

    /// Runs a command in the guest that must succeed, and gives its output
    /// without the last line break.
    pub fn sh_ok(&mut self, script: &str) -> Outcome<String> {
        let shell = self.sh(script)?;
        ensure!(
            shell.status == 0,
            "`{script}` in the guest ended with {}: {}",
            shell.status,
            shell.stderr.trim()
        );
        Ok(shell.stdout.trim_end().to_owned())
    }

    /// Starts a command in the guest that ends the guest, so has no answer.
    pub fn sh_last(&mut self, script: &str) -> Outcome {
        self.ask("sh", script.as_bytes()).map(drop)
    }

    /// Sends a request to the agent and gives its number.
    pub fn ask(&mut self, word: &str, data: &[u8]) -> Outcome<u32> {
        self.last_id += 1;
        let line = Line::request(self.last_id, word, data).encode();
        self.type_in(line.as_bytes())?;
        Ok(self.last_id)
    }

    /// Types bytes on the console.
    pub fn type_in(&mut self, bytes: &[u8]) -> Outcome {
        match &mut self.stdin {
            Some(stdin) => Ok(stdin.write_all(bytes).and_then(|()| stdin.flush())?),
            None => Err(Failure("vmm's standard input is closed".to_owned())),
        }
    }

    /// Takes the console's input end away, for a thread that types.
    pub fn take_input(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// Gives it back.
    pub fn return_input(&mut self, stdin: ChildStdin) {
        self.stdin = Some(stdin);
    }

    /// The next line of the agent to a request.
    pub fn answer(&mut self, id: u32, deadline: Instant) -> Outcome<Line> {
        loop {
            let text = self.console.line(deadline)?;
            match Line::parse(&text, 'A') {
                Some(Err(error)) => return Err(Failure(error.to_string())),
                Some(Ok(line)) if line.word == "bad" => {
                    let text = String::from_utf8_lossy(&line.data).into_owned();
                    return Err(Failure(format!("the agent got garbage: {text:?}")));
                }
                Some(Ok(line)) if line.id == id => return Ok(line),
                // The kernel's talk, or of an earlier request that was given up.
                None | Some(Ok(_)) => {}
            }
        }
    }

    /// Powers the guest off and expects `vmm` to end with 0.
    pub fn power_off(mut self) -> Outcome {
        self.sh_last("poweroff -f")?;
        self.expect_exit(0)
    }

    /// Waits for `vmm` to end by itself, with this code.
    pub fn expect_exit(&mut self, code: i32) -> Outcome {
        let status = self.wait(Duration::from_secs(60))?;
        ensure!(
            status.code() == Some(code),
            "vmm ended with {status} instead of exit code {code}; it said: {}",
            self.said().trim()
        );
        Ok(())
    }

    /// Waits for `vmm` to end.
    pub fn wait(&mut self, limit: Duration) -> Outcome<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "vmm still runs after {} s",
                limit.as_secs()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// How `vmm` has ended, if it has.
    pub fn ended(&mut self) -> Outcome<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends `vmm` a signal.
    pub fn signal(&self, signal: Signal) -> Outcome {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        match pid {
            Some(pid) => Ok(kill_process(pid, signal)?),
            None => Err(Failure("vmm has no pid".to_owned())),
        }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What `vmm` has written to its standard error.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// The event log so far.
    pub fn events(&self) -> Outcome<Vec<Value>> {
        read_events(&self.events)
    }
}

/// Parses an event log.
pub fn read_events(path: &std::path::Path) -> Outcome<Vec<Value>> {
    let text = fs::read_to_string(path)?;
    let parse = |line: &str| {
        serde_json::from_str(line).map_err(|error| Failure(format!("event log: {error}: {line}")))
    };
    text.lines().map(parse).collect()
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the agent says when it is up.
#[derive(Clone, Debug, Default)]
pub struct Hello {
    /// `uname -r`.
    pub release: String,
    /// CPUs that it may run on.
    pub cpus: u32,
    /// What the kernel reads the time from.
    pub clocksource: String,
    /// The guest's wall clock, and this machine's when the words arrived.
    pub clocks: (u64, u64),
}

impl Hello {
    fn parse(text: &str) -> Self {
        let mut hello = Self::default();
        for (name, value) in text.split(' ').filter_map(|word| word.split_once('=')) {
            match name {
                "release" => value.clone_into(&mut hello.release),
                "cpus" => hello.cpus = value.parse().unwrap_or(0),
                "clocksource" => value.clone_into(&mut hello.clocksource),
                "time" => hello.clocks.0 = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        hello.clocks.1 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs());
        hello
    }
}
