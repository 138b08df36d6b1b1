// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Four VMs at once with every service in use, for an hour with `--long`, or
//! for as many seconds as `XTASK_SOAK` says.
//!
//! Each VM goes through rounds: everything is used, then all is let rest and
//! measured. What is measured a quarter into the time must not grow from there.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::measured::{Measured, relids};
use super::services::{NAMES, load};
use super::vmbus::{check_traces, note, sh_long};
use super::vsock;
use crate::ensure;
use crate::suite::{Case, Context, Control, Failure, Outcome, Vm};

pub(super) const CASES: &[Case] = &[Case::new(
    "soak",
    "four VMs with every service in use do not grow (an hour with --long)",
    soak,
)
.with_cpus(&[1])
.within(1200)];

const VMS: usize = 4;
/// How long, in seconds, if not as the case has it; less than the case's limit.
const WISH: &str = "XTASK_SOAK";
/// Every so many rounds all that is seldom done has been done.
const CYCLE: u64 = 5;
/// Between two rounds: it is the length that matters, not the load.
const PAUSE: Duration = Duration::from_secs(2);
/// How long a guest may take to come up, and for anything after it, on a machine that has three more.
const BOOT: Duration = Duration::from_secs(300);
const FOLLOW: Duration = Duration::from_secs(120);
/// A service that comes back before the guest has let go of its old relid gets
/// another, and so does the connection that follows.
const SPARE: usize = 3;
/// Bytes of a file that is copied, and of one connection.
const BYTES: usize = 20_000;

fn soak(context: &Context) -> Outcome {
    let length = Duration::from_secs(match std::env::var(WISH) {
        Ok(text) => text
            .parse()
            .map_err(|_| Failure(format!("{WISH}={text}: a number of seconds is wanted")))?,
        Err(_) => context.times(30, 3600),
    });
    let mut members = Vec::new();
    for number in 0..VMS {
        members.push(Member::boot(context, number)?);
    }
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let ends: Vec<Outcome> = thread::scope(|scope| {
        let threads: Vec<_> = members
            .iter_mut()
            .map(|member| {
                let stop = &stop;
                scope.spawn(move || {
                    let ended = member.run(start, length, stop);
                    if ended.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    ended
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                let panicked = |_| Err(Failure("a VM's thread panicked".to_owned()));
                thread.join().unwrap_or_else(panicked)
            })
            .collect()
    });
    for (number, ended) in ends.into_iter().enumerate() {
        ended.map_err(|failure| Failure(format!("VM {number}: {failure}")))?;
    }
    for member in members {
        member.finish()?;
    }
    Ok(())
}

/// One of the VMs.
struct Member {
    vm: Vm,
    control: Control,
    vsock: PathBuf,
    /// What is copied.
    file: PathBuf,
    /// Where its figures go, for who wants to look while it runs.
    figures: PathBuf,
    daemons: &'static str,
    has_fcopy: bool,
    deeds: u64,
    rounds: u64,
    /// What had to be done twice, and why.
    again: Vec<String>,
    /// A quarter into the time, and the most and the last since.
    warm: Option<Measured>,
    most_kib: u64,
    last: Option<Measured>,
    /// How many channels there are without connections.
    offered: Option<usize>,
}

impl Member {
    fn boot(context: &Context, number: usize) -> Outcome<Self> {
        let control = Control::new(context);
        let socket = control.socket().display().to_string();
        let name = format!("soak-{}-{number}", std::process::id());
        let vsock = std::env::temp_dir().join(name);
        let setup = context.setup().memory("256M").args(&[
            "--api-socket",
            &socket,
            "--vsock",
            &vsock.display().to_string(),
            "--ic",
            "all",
        ]);
        let mut vm = setup.launch()?;
        vm.wait_agent_within(BOOT)?;
        load(&mut vm)?;
        for step in [
            "modprobe hv_sock; modprobe crc32c_generic; modprobe ext4",
            "modprobe brd rd_nr=1 rd_size=8192 && mke2fs /dev/ram0 4096",
            "mkdir /mnt/ext4 && mount -t ext4 /dev/ram0 /mnt/ext4",
            "(n=0; while :; do n=$((n+1)); echo $n > /mnt/ext4/n; sync /mnt/ext4/n; \
             usleep 300000; done) > /dev/null 2>&1 < /dev/null &",
        ] {
            vm.sh_ok(step)?;
        }
        let has_fcopy = vm.sh("ls /usr/sbin/hv_fcopy_daemon")?.status == 0;
        let daemons = if has_fcopy {
            "hv_kvp_daemon hv_vss_daemon hv_fcopy_daemon"
        } else {
            "hv_kvp_daemon hv_vss_daemon"
        };
        vsock::serve(&vsock)?;
        vsock::serve_in_guest(&mut vm)?;
        let file = context.dir.join(format!("file-{number}"));
        fs::write(&file, vec![b'x'; BYTES])?;
        let figures = context.dir.join(format!("figures-{number}"));
        let mut member = Self {
            vm,
            control,
            vsock,
            file,
            figures,
            daemons,
            has_fcopy,
            deeds: 0,
            rounds: 0,
            again: Vec::new(),
            warm: None,
            most_kib: 0,
            last: None,
            offered: None,
        };
        member.start_daemons()?;
        Ok(member)
    }

    fn start_daemons(&mut self) -> Outcome {
        for daemon in self.daemons.split(' ') {
            self.vm.sh_ok(daemon)?;
        }
        let mut names = NAMES.to_vec();
        names.extend(["kvp", "vss"]);
        names.extend(self.has_fcopy.then_some("fcopy"));
        self.control.until_ready(&names, FOLLOW)?;
        self.control.until_health("ok", FOLLOW).map(drop)
    }

    fn run(&mut self, start: Instant, length: Duration, stop: &AtomicBool) -> Outcome {
        let (warm, end) = (start + length / 4, start + length);
        while self.rounds < 2 * CYCLE || Instant::now() < end {
            if stop.load(Ordering::Relaxed) {
                return Ok(()); // Another tells why.
            }
            self.round()?;
            self.rounds += 1;
            let now = self.at_rest()?;
            self.tell(&now)?;
            self.most_kib = self.most_kib.max(now.memory_kib);
            self.last = Some(now.clone());
            if let Some(warm) = &self.warm {
                now.check(warm)?;
            } else if self.rounds >= CYCLE && Instant::now() >= warm {
                self.warm = Some(now);
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn round(&mut self) -> Outcome {
        self.deed("heartbeat and time", Self::time)?;
        self.deed("kvp", Self::kvp)?;
        self.deed("vss", Self::vss)?;
        if self.has_fcopy {
            self.deed("fcopy", Self::fcopy)?;
        }
        self.deed("vsock", Self::vsock)?;
        match self.rounds % CYCLE {
            1 => self.deed("reload of hv_utils", Self::reload),
            3 => self.deed("services off and on", Self::toggle),
            _ => Ok(()),
        }
    }

    /// Does it. A machine this busy may be late for one of the guest's own
    /// deadlines: then once more, which is told.
    fn deed(&mut self, what: &str, deed: fn(&mut Self) -> Outcome) -> Outcome {
        self.deeds += 1;
        let Err(failure) = deed(self) else {
            return Ok(());
        };
        self.again.push(format!("{what}: {failure}"));
        thread::sleep(Duration::from_secs(10));
        deed(self).map_err(|failure| Failure(format!("{what}, twice: {failure}")))
    }

    fn time(&mut self) -> Outcome {
        self.control.until_health("ok", FOLLOW)?;
        self.control.ok(&["time", "sync"])?;
        let before = self.samples()?;
        let began = Instant::now();
        while self.samples()? <= before {
            ensure!(began.elapsed() < FOLLOW, "no samples of the time");
            thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    }

    fn samples(&self) -> Outcome<Option<u64>> {
        let (_, answer) = self.control.ask("GET", "/v1/time", "")?;
        Ok(answer.get("samples").and_then(serde_json::Value::as_u64))
    }

    fn kvp(&mut self) -> Outcome {
        let value = format!("round {}", self.rounds);
        self.control.ok(&["kvp", "set", "soak", &value])?;
        let said = self.control.ok(&["kvp", "get", "soak"])?;
        ensure!(said.trim() == value, "the item is {said:?}, not {value:?}");
        let said = self.control.ok(&["kvp", "list", "--pool", "auto"])?;
        ensure!(said.contains("OSName"), "the guest's own items: {said}");
        self.control.ok(&["kvp", "delete", "soak"]).map(drop)
    }

    fn vss(&mut self) -> Outcome {
        self.control
            .ok(&["vss", "run", "--max", "60s", "--", "true"])?;
        self.control.ok(&["vss", "freeze", "--max", "60s"])?;
        let said = self.control.ok(&["vss", "thaw"])?;
        ensure!(said == "thawed\n", "vss thaw said {said:?}");
        Ok(())
    }

    fn fcopy(&mut self) -> Outcome {
        let file = self.file.display().to_string();
        self.control
            .ok(&["cp", &file, "guest:/tmp/soak", "--overwrite"])?;
        let size = self.vm.sh_ok("wc -c < /tmp/soak && rm /tmp/soak")?;
        ensure!(size == BYTES.to_string(), "{size} of {BYTES} bytes arrived");
        Ok(())
    }

    fn vsock(&mut self) -> Outcome {
        let len = u64::try_from(BYTES).unwrap_or(0);
        let script = format!("/init vsock-exchange {} 3 {len}", vsock::HOST_PORT);
        sh_long(&mut self.vm, &script, FOLLOW)?;
        for seed in 0..3 {
            vsock::one(&self.vsock, seed, len)?;
        }
        Ok(())
    }

    fn reload(&mut self) -> Outcome {
        let script = format!(
            "killall {}; n=0; until rmmod hv_utils; do n=$((n+1)); [ $n -lt 100 ] || exit 1; \
             usleep 100000; done; modprobe hv_utils",
            self.daemons
        );
        sh_long(&mut self.vm, &script, FOLLOW)?;
        self.start_daemons()
    }

    fn toggle(&mut self) -> Outcome {
        for name in NAMES {
            self.control.ok(&["ic", "disable", name])?;
            self.control.ok(&["ic", "enable", name])?;
            self.control.until_ready(&[name], FOLLOW)?;
            // The driver's probe returns a moment later.
            thread::sleep(Duration::from_millis(500));
        }
        self.control.until_health("ok", FOLLOW).map(drop)
    }

    /// What is there when nothing is in use: soon no more than a quarter into the
    /// time.
    fn at_rest(&mut self) -> Outcome<Measured> {
        let began = Instant::now();
        let mut now = Measured::of(&mut self.vm)?;
        let offered = *self.offered.get_or_insert(now.relids.len());
        let most = self.warm.as_ref().map_or(usize::MAX, |warm| warm.files);
        while now.files > most || now.relids.len() != offered {
            ensure!(
                began.elapsed() < FOLLOW,
                "after round {} {now} and the guest the channels {:?}, which were {offered}; \
                 a quarter into the time: {:?}",
                self.rounds,
                now.relids,
                self.warm
            );
            thread::sleep(Duration::from_millis(500));
            now = Measured::of(&mut self.vm)?;
        }
        // A connection takes the lowest relid that is free. If each gives its own
        // back, that is never far from the services'.
        let connection = vsock::connect(&self.vsock, vsock::GUEST_PORT)?;
        let with_one = relids(&mut self.vm)?;
        drop(connection);
        let highest = with_one.last().and_then(|id| usize::try_from(*id).ok());
        ensure!(
            with_one.len() == offered + 1 && highest.is_some_and(|id| id <= offered + SPARE),
            "with {offered} services and one connection the relids are {with_one:?}"
        );
        Ok(now)
    }

    fn tell(&self, now: &Measured) -> Outcome {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.figures)?;
        let (relids, again) = (&now.relids, &self.again);
        writeln!(
            file,
            "round {}: {now}; relids {relids:?}; again {again:?}",
            self.rounds
        )?;
        Ok(())
    }

    fn finish(mut self) -> Outcome {
        check_traces(&mut self.vm)?;
        let status = self.control.status()?;
        let of_bus = |name| status.get("vmbus").and_then(|bus| bus.get(name)).cloned();
        let violations = of_bus("violations");
        ensure!(
            violations.as_ref().and_then(serde_json::Value::as_u64) == Some(0),
            "violations: {violations:?}"
        );
        let (Some(warm), Some(last)) = (&self.warm, &self.last) else {
            return Err(Failure("nothing was measured".to_owned()));
        };
        note(&format!(
            "{} rounds, {} deeds: after a quarter {warm}; in the end {last}; at most {} KiB; \
             relids {:?}; file copy: {}; {} again{}",
            self.rounds,
            self.deeds,
            self.most_kib,
            last.relids,
            if self.has_fcopy { "yes" } else { "no daemon" },
            self.again.len(),
            self.again
                .iter()
                .fold(String::new(), |all, why| format!("{all} | {why}")),
        ));
        self.control.ok(&["shutdown", "--timeout", "60s"])?;
        self.vm.expect_exit(0)
    }
}
