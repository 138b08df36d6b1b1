// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Very many connections that end at once must not hold up the bus thread: whoever
//! asks the API meanwhile is answered as soon as ever.
//!
//! The limit counts where time is deterministic:
//!
//! ```sh
//! cargo xtask exec --icount -- target/guest/guest-suite run vsock-many --long
//! ```
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;

use super::HOST_PORT;
use crate::cases::vmbus::{eventfds, note, sh_long};
use crate::ensure;
use crate::suite::{Context, Control, Failure, Outcome, Vm};

/// What may be added to an answer's time.
const LIMIT: Duration = Duration::from_millis(20);
/// The same on a machine that others use too.
const LIMIT_IN_ANY_TIME: Duration = Duration::from_millis(400);
/// Between two questions.
const GAP: Duration = Duration::from_micros(200);
/// How long answers are timed before anything ends.
const CALM: Duration = Duration::from_millis(500);
/// For all to end.
const SOON: Duration = Duration::from_secs(120);
/// Channels that are no connections.
const SERVICES: u64 = 6;
/// Channels that are still closing when the next are opened make for a few more.
const FEW: usize = 16;
/// Programs in the guest that wait to be killed.
const HOLDERS: &str = "/tmp/holders";

pub(super) fn run(context: &Context) -> Outcome {
    raise_file_limit()?;
    let connections = usize::try_from(context.times(100, 1500)).unwrap_or(0);
    let deterministic = std::env::var_os("XTASK_ICOUNT").is_some();
    let limit = if deterministic {
        LIMIT
    } else {
        LIMIT_IN_ANY_TIME
    };
    let control = Control::new(context);
    let socket = control.socket().display().to_string();
    let path = std::env::temp_dir().join(format!("vsock-{}", std::process::id()));
    let text = path.display().to_string();
    let mut vm = context
        .setup()
        .args(&["--ic", "all", "--vsock", &text, "--api-socket", &socket])
        .args(&["--on-crash", "continue"])
        .boot()?;
    vm.sh_ok("modprobe -a hv_utils hv_sock")?;
    let came = hold_clients(&path, connections)?;
    control.until_ready(&["heartbeat"], SOON)?;

    hold(&mut vm, connections)?;
    ensure!(
        came.load(Ordering::Relaxed) == connections,
        "fewer than {connections} came"
    );
    let kept = eventfds(&vm)?;
    let calm = calm(&control)?;
    note(&format!(
        "{connections} connections: an answer takes up to {calm:?}"
    ));
    let most = calm + limit;

    during(&control, "the program exits", most, || {
        vm.sh_ok(&format!("kill -9 $(cat {HOLDERS})"))?;
        until_none(&control, connections)
    })?;

    hold(&mut vm, connections)?;
    let now = eventfds(&vm)?;
    ensure!(
        now <= kept + FEW,
        "{now} eventfds for as many connections as {kept} were for before"
    );
    during(&control, "sockets are disabled", most, || {
        control.ok(&["ic", "disable", "vsock"])?;
        until_none(&control, connections)
    })?;
    control.ok(&["ic", "enable", "vsock"])?;

    // The kernel that panics says good-bye to the bus with all channels open.
    hold(&mut vm, connections)?;
    during(&control, "the guest unloads", most, || {
        vm.sh_last("echo c >/proc/sysrq-trigger")?;
        until_none(&control, connections)
    })?;
    control.ok(&["kill"])?;
    Ok(())
}

/// A service of the host's that keeps so many clients, and how many came.
fn hold_clients(path: &Path, connections: usize) -> Outcome<Arc<AtomicUsize>> {
    let listener = UnixListener::bind(format!("{}_{HOST_PORT}", path.display()))?;
    let count = Arc::new(AtomicUsize::new(0));
    let came = Arc::clone(&count);
    thread::spawn(move || {
        let mut held: Vec<UnixStream> = Vec::new();
        for client in listener.incoming().flatten() {
            // Those of the time before have ended.
            if came
                .fetch_add(1, Ordering::Relaxed)
                .is_multiple_of(connections)
            {
                held.clear();
            }
            held.push(client);
        }
    });
    Ok(count)
}

/// Lets the guest connect so often and hold what it has.
fn hold(vm: &mut Vm, connections: usize) -> Outcome {
    let limit = Duration::from_secs(120)
        + Duration::from_millis(100) * u32::try_from(connections).unwrap_or(0);
    let script = format!(
        "rm -f /tmp/held; /init vsock-hold {HOST_PORT} {connections} >/tmp/held 2>&1 & echo $! >{HOLDERS};
        until grep -q . /tmp/held; do usleep 20000; done; cat /tmp/held"
    );
    let said = sh_long(vm, &script, limit)?;
    ensure!(
        said.contains(&format!("held={connections}")),
        "the guest says {said}"
    );
    Ok(())
}

/// Waits until the guest has closed all but the channels of the services.
fn until_none(control: &Control, connections: usize) -> Outcome {
    // The guest ends about four a second.
    let limit = SOON + Duration::from_secs(u64::try_from(connections).unwrap_or(0));
    let so = |vm: &Value| {
        let open = vm["vmbus"]["channels_open"].as_u64();
        open.is_some_and(|open| open <= SERVICES)
    };
    control.until("no connection is open", limit, so).map(drop)
}

/// The longest that an answer takes while nothing ends.
fn calm(control: &Control) -> Outcome<Duration> {
    let timing = Timing::start(control);
    thread::sleep(CALM);
    timing.finish()
}

/// Does something, and holds the longest answer meanwhile to a limit.
fn during(control: &Control, what: &str, most: Duration, act: impl FnOnce() -> Outcome) -> Outcome {
    let timing = Timing::start(control);
    let start = Instant::now();
    let done = act();
    let took = start.elapsed();
    let longest = timing.finish()?;
    done?;
    note(&format!(
        "{what}: {took:?}, an answer takes up to {longest:?}"
    ));
    ensure!(
        longest <= most,
        "while {what}, an answer took {longest:?}, and {most:?} is the limit"
    );
    Ok(())
}

/// Asks the bus thread for the status again and again, and times the answers.
struct Timing {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Outcome<Duration>>,
}

impl Timing {
    fn start(control: &Control) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, control) = (Arc::clone(&stop), control.clone());
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                let (status, _) = control.ask("GET", "/v1/vm?look=false", "")?;
                longest = longest.max(start.elapsed());
                ensure!(status == 200, "the status is {status}");
                thread::sleep(GAP);
            }
            Ok(longest)
        });
        Self { stop, thread }
    }

    fn finish(self) -> Outcome<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        ended.map_err(|_| Failure("the clock panicked".to_owned()))?
    }
}

/// As many files as this process may have.
fn raise_file_limit() -> Outcome {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum })?)
}
