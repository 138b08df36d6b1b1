// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask exec`: a command where VMs can run, as if it ran here.

use std::ffi::OsString;
use std::io::{Write, stderr, stdin, stdout};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};

use crate::error::{Context, Result, failed};
use crate::forward::Forward;
use crate::nest::{Event, Nest, Options, Session};
use crate::paths;
use crate::place::{self, Place};
use crate::progress::{say, whisper};
use crate::terminal::{self, RawTerminal};

const LAYER: &str = "exec";

/// The status for a command that `--timeout` ended, as of `timeout(1)`.
const TIMED_OUT: u8 = 124;

/// How a command is run.
#[derive(Clone, Debug, Default)]
pub struct Exec {
    /// The program and its arguments.
    pub argv: Vec<OsString>,
    /// End it after this long.
    pub timeout: Option<Duration>,
    /// In the nest, and there in deterministic time.
    pub icount: bool,
    /// A socket to lead into the nest meanwhile.
    pub forward: Option<Forward>,
}

/// Runs the command and gives its status.
pub fn exec(exec: &Exec) -> Result<u8> {
    let place = if exec.icount {
        Place::Nest("deterministic time".to_owned())
    } else {
        place::decide()?
    };
    match place {
        Place::Here => here(exec),
        Place::Nest(why) => in_nest(exec, &why),
    }
}

fn here(exec: &Exec) -> Result<u8> {
    let (program, args) = exec
        .argv
        .split_first()
        .ok_or_else(|| failed(LAYER, "no command"))?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env("XTASK_SCRATCH", paths::scratch()?)
        .env("XTASK_PLACE", "here");
    let Some(timeout) = exec.timeout else {
        // It takes our place: signals, terminal and status are its own.
        return Err(command.exec()).context(LAYER, program.display());
    };
    let mut child = command.spawn().context(LAYER, program.display())?;
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait().context(LAYER, program.display())? {
            let code = status.code().or_else(|| status.signal().map(|n| 128 + n));
            return Ok(u8::try_from(code.unwrap_or(255)).unwrap_or(255));
        }
        if Instant::now() >= deadline {
            say_timeout(exec, timeout);
            let _ = child.kill();
            let _ = child.wait();
            return Ok(TIMED_OUT);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn say_timeout(exec: &Exec, timeout: Duration) {
    let words: Vec<_> = exec
        .argv
        .iter()
        .map(|word| word.to_string_lossy())
        .collect();
    say(format_args!(
        "ended after {} s: {}",
        timeout.as_secs(),
        words.join(" ")
    ));
}

fn in_nest(exec: &Exec, why: &str) -> Result<u8> {
    let signals = Signals::catch()?;
    let mut options = Options::usual()?;
    options.icount = exec.icount;
    let start = Instant::now();
    let nest = Nest::start(&options)?;
    let took = start.elapsed().as_secs_f64();
    whisper(format_args!(
        "in the nest ({why}), up in {took:.1} s: {}",
        nest.about()
    ));
    let mut spec = nest.spec(exec.argv.clone());
    let raw = if terminal::interactive() {
        spec.terminal = Some(terminal::size());
        RawTerminal::enter()
    } else {
        None
    };
    let mut session = nest.spawn(&spec)?;
    session.feed(stdin());
    let stop = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        if let Some(forward) = &exec.forward {
            scope.spawn(|| forward.serve(&nest, &stop));
        }
        let result = relay(exec, &mut session, &signals);
        stop.store(true, Ordering::Relaxed);
        result
    });
    drop(raw);
    if let Some(status) = result? {
        nest.stop();
        Ok(u8::try_from(status).unwrap_or(255))
    } else {
        say_timeout(exec, exec.timeout.unwrap_or_default());
        Ok(TIMED_OUT)
    }
}

/// Passes output and signals on until the command ends, or its time is over.
fn relay(exec: &Exec, session: &mut Session<'_>, signals: &Signals) -> Result<Option<u32>> {
    let deadline = exec.timeout.map(|timeout| Instant::now() + timeout);
    loop {
        for number in signals.taken() {
            if number == SIGWINCH {
                let (rows, cols) = terminal::size();
                session.resize(rows, cols)?;
            } else {
                session.signal(u32::try_from(number).unwrap_or(0))?;
            }
        }
        match session.next(Duration::from_millis(50))? {
            // A reader that went away is the command's matter, not ours.
            Some(Event::Stdout(data)) => {
                drop(stdout().write_all(&data).and_then(|()| stdout().flush()));
            }
            Some(Event::Stderr(data)) => drop(stderr().write_all(&data)),
            Some(Event::Exit(status)) => return Ok(Some(status)),
            None => {}
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(None);
        }
    }
}

/// The signals that are passed on.
struct Signals(Vec<(i32, Arc<AtomicBool>)>);

impl Signals {
    fn catch() -> Result<Self> {
        let mut flags = Vec::new();
        for number in [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH] {
            let flag = Arc::new(AtomicBool::new(false));
            signal_hook::flag::register(number, Arc::clone(&flag)).context(LAYER, "signals")?;
            flags.push((number, flag));
        }
        Ok(Self(flags))
    }

    /// Those that came since the last call.
    fn taken(&self) -> impl Iterator<Item = i32> + '_ {
        let came = self
            .0
            .iter()
            .filter(|(_, flag)| flag.swap(false, Ordering::Relaxed));
        came.map(|(number, _)| *number)
    }
}
