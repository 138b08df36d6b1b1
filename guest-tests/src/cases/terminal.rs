// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The user's terminal: raw while the guest has it, restored whatever happens.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

use crate::ensure;
use crate::suite::console::Console;
use crate::suite::{Case, Context, Failure, Outcome};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "terminal-power-off",
        "the terminal is restored after a power-off",
        power_off,
    )
    .once(),
    Case::new(
        "terminal-signals",
        "the terminal is restored after signals",
        signals,
    )
    .once(),
    Case::new(
        "terminal-crash",
        "the terminal is restored after a guest's crash",
        crash,
    )
    .once(),
    Case::new(
        "terminal-keys",
        "Ctrl-A x quits; Ctrl-C goes to the guest",
        keys,
    )
    .once(),
];

/// A `vmm` on a terminal of its own.
struct OnTerminal {
    child: Child,
    console: Console,
    master: File,
    slave: OwnedFd,
    before: Termios,
}

impl OnTerminal {
    fn launch(context: &Context, cmdline: &str) -> Outcome<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        let before = tcgetattr(&slave)?;
        let (mut command, events) = context
            .setup()
            .cmdline("loglevel=7")
            .cmdline(cmdline)
            .command();
        let child = command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(File::create(events.with_extension("stderr"))?)
            .spawn()?;
        drop(command);
        let master = File::from(master);
        let console = Console::collect(master.try_clone()?, &events.with_extension("serial"))?;
        Ok(Self {
            child,
            console,
            master,
            slave,
            before,
        })
    }

    fn expect(&mut self, text: &str) -> Outcome {
        self.console
            .expect(text, Instant::now() + Duration::from_secs(120))
    }

    fn check_raw(&self) -> Outcome {
        let now = tcgetattr(self.slave.as_fd())?;
        let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        ensure!(
            !now.local_modes.intersects(cooked),
            "the terminal is not raw while the guest runs: {:?}",
            now.local_modes
        );
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Outcome {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Failure("no pid".to_owned()))?;
        Ok(kill_process(pid, signal)?)
    }

    fn check_end(&mut self, code: i32) -> Outcome {
        let deadline = Instant::now() + Duration::from_secs(60);
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "vmm still runs");
            thread::sleep(Duration::from_millis(5));
        };
        ensure!(
            status.code() == Some(code),
            "vmm ended with {status} instead of {code}"
        );
        let now = tcgetattr(self.slave.as_fd())?;
        let same = now.local_modes == self.before.local_modes
            && now.input_modes == self.before.input_modes
            && now.output_modes == self.before.output_modes
            && now.control_modes == self.before.control_modes;
        ensure!(same, "the terminal is {now:?}, it was {:?}", self.before);
        Ok(())
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn power_off(context: &Context) -> Outcome {
    let mut vm = OnTerminal::launch(context, "agent.poweroff")?;
    vm.expect("Linux version")?;
    vm.check_raw()?;
    vm.check_end(0)
}

fn signals(context: &Context) -> Outcome {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let mut vm = OnTerminal::launch(context, "")?;
        vm.expect("Linux version")?;
        vm.check_raw()?;
        vm.signal(signal)?;
        vm.check_end(130)?;
    }
    Ok(())
}

fn crash(context: &Context) -> Outcome {
    // Nothing to run: the kernel panics.
    let mut vm = OnTerminal::launch(context, "rdinit=/nothing init=/nothing")?;
    vm.expect("Linux version")?;
    vm.check_raw()?;
    vm.check_end(20)
}

fn keys(context: &Context) -> Outcome {
    let mut vm = OnTerminal::launch(context, "")?;
    vm.expect("Linux version")?;
    vm.master.write_all(b"\x03")?;
    vm.expect("@A 0 hello")?;
    ensure!(vm.child.try_wait()?.is_none(), "Ctrl-C ended vmm");
    vm.master.write_all(b"\x01x")?;
    vm.check_end(130)
}
