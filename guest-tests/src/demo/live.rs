// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The demo where the VM runs: boots it, looks at it twice a second, and shows
//! what it sees. On a terminal until `q` is pressed or the VM ends, elsewhere for
//! some seconds, in plain lines.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Read, Write, stdin, stdout};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::view::{Traffic, View};
use crate::ensure;
use crate::suite::clock::Offset;
use crate::suite::{Context, Control, Outcome, Vm};
use crate::terminal::{self, RawTerminal};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// How often lines are printed where nobody sits, a second apart.
const LINES: usize = 6;
/// How long the guest may take to say what time it is.
const CLOCK: Duration = Duration::from_secs(3);
/// How long the guest's daemons may take.
const DAEMONS: Duration = Duration::from_secs(30);
/// The other screen of a terminal, without a cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Shows a guest. `offer` is how to call `vmmctl` in another terminal.
pub fn run(context: &Context, socket: &Path, offer: &str) -> Outcome {
    let control = Control::at(context, socket);
    let trace = context.dir.join("demo.trace");
    let path = |path: &Path| path.display().to_string();
    let mut vm = context
        .setup()
        .cmdline("agent.modules=hv_utils")
        .args(&["--name", "demo", "--vmbus-trace", &path(&trace)])
        .args(&["--api-socket", &path(socket)])
        .args(&["--kvp", "greeting=hello from the host"])
        .boot()?;
    let words = "Hypervisor detected|Hyper-V:|hv_vmbus:|hv_utils:";
    let mut said = vm.sh_ok(&format!("dmesg | grep -E '{words}'"))?;
    // What else there is to see can be seen without.
    let told = daemons(&mut vm, &control);
    said.push_str(&told.unwrap_or_else(|failure| format!("\nwithout data exchange: {failure}")));
    let mut view = View::new(offer, &said, Traffic::of(&trace));
    let live = terminal::interactive();
    print(&view.guest())?;
    let clock = Clock::start(vm);
    let shown = if live {
        watch(&control, &mut view, &clock)
    } else {
        lines(&control, &mut view, &clock)
    };
    let mut vm = clock.stop()?;
    shown?;
    // Somebody may have ended it from elsewhere.
    if control.status().is_ok() {
        print("asking the guest to shut down\n")?;
        let said = control.ok(&["shutdown", "--then-kill"])?;
        print(&said)?;
    }
    let status = vm.wait(Duration::from_secs(60))?;
    print(&format!("vmm ended with {}\n", status.code().unwrap_or(-1)))?;
    ensure!(status.success() || live, "vmm ended with {status}");
    Ok(())
}

/// Starts what the guest's distribution has for data exchange and backup, with a
/// file system that can be frozen, and gives what passed both ways.
fn daemons(vm: &mut Vm, control: &Control) -> Outcome<String> {
    vm.sh_ok(
        "hostname guest.example; hv_kvp_daemon; hv_vss_daemon; \
         modprobe crc32c_generic; modprobe brd rd_nr=1 rd_size=8192 && modprobe ext4 && \
         mke2fs /dev/ram0 && mount -t ext4 /dev/ram0 /mnt",
    )?;
    control.until_ready(&["kvp", "vss"], DAEMONS)?;
    let mut told = String::from("\nby data exchange (kvp), from the guest:");
    for key in ["FullyQualifiedDomainName", "OSBuildNumber"] {
        let value = control.ok(&["kvp", "get", key])?;
        let _ = write!(told, "\n  {key} = {}", value.trim());
    }
    control.ok(&["kvp", "get", "--pool", "external", "greeting"])?;
    let file = "/var/lib/hyperv/.kvp_pool_0";
    let ours = vm.sh_ok(&format!("tr -s '\\000' ' ' < {file}"))?;
    let _ = write!(told, "\nand in its {file}:\n  {}", ours.trim());
    Ok(told)
}

fn print(text: &str) -> io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn lines(control: &Control, view: &mut View, clock: &Clock) -> Outcome {
    for _ in 0..LINES {
        thread::sleep(LOOK * 2);
        let status = control.status()?;
        print(&view.line(&status, clock.offset()))?;
    }
    print(&view.offer())?;
    Ok(())
}

/// Redraws the screen until somebody or the VM ends it.
fn watch(control: &Control, view: &mut View, clock: &Clock) -> Outcome {
    let ended = Arc::new(AtomicBool::new(false));
    for number in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(number, Arc::clone(&ended))?;
    }
    let raw = RawTerminal::enter();
    let keys = keys();
    print(ENTER)?;
    let result = loop {
        let Ok(status) = control.status() else {
            break Ok(());
        };
        let screen = view.screen(&status, clock.offset(), terminal::size());
        if let Err(error) = print(&screen) {
            break Err(error.into());
        }
        let key = keys.recv_timeout(LOOK);
        // Ctrl-C is a byte on a raw terminal.
        if matches!(key, Ok(b'q' | b'Q' | 3)) || ended.load(Ordering::Relaxed) {
            break Ok(());
        }
    };
    print(LEAVE)?;
    drop(raw);
    result
}

/// What is typed.
fn keys() -> Receiver<u8> {
    let (sender, keys) = channel();
    if stdin().is_terminal() {
        thread::spawn(move || {
            for byte in stdin().lock().bytes().map_while(Result::ok) {
                if sender.send(byte).is_err() {
                    return;
                }
            }
        });
    }
    keys
}

/// Asks the guest for its clock again and again, on a thread that may wait for a
/// guest that is paused or has been reset.
struct Clock {
    state: Arc<(AtomicBool, Mutex<Option<Offset>>)>,
    thread: thread::JoinHandle<Vm>,
}

impl Clock {
    fn start(mut vm: Vm) -> Self {
        let state = Arc::new((AtomicBool::new(false), Mutex::new(None)));
        let shared = Arc::clone(&state);
        let thread = thread::spawn(move || {
            while !shared.0.load(Ordering::Relaxed) {
                let offset = vm.clock_offset_within("", CLOCK);
                if offset.is_err() {
                    // It may be another guest by now.
                    let _ = vm.wait_agent_within(CLOCK);
                }
                *shared.1.lock().unwrap_or_else(PoisonError::into_inner) = offset.ok();
                thread::sleep(LOOK);
            }
            vm
        });
        Self { state, thread }
    }

    fn offset(&self) -> Option<Offset> {
        *self.state.1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(self) -> Outcome<Vm> {
        self.state.0.store(true, Ordering::Relaxed);
        let vm = self.thread.join();
        vm.map_err(|_| "the clock's thread panicked".to_owned().into())
    }
}
