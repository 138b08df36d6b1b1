// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest costs its host, counted by KVM's tracepoints, against the limits
//! in `benches/limits.json`: what does not depend on how fast a machine is.

use std::io::{Read, Write};
use std::path::Path;

use serde_json::Value;

use super::vmbus::note;
use super::vsock::connect;
use crate::bench::{memory, services, trace};
use crate::ensure;
use crate::suite::{Case, Context, Control, Failure, Outcome, Vm};

pub(super) const CASES: &[Case] = &[Case::new(
    "cost",
    "exits, signals, interrupts and memory stay within the limits",
    cost,
)
.once()
.with_cpus(&[1])];

/// The same for all who run this: it is compiled in.
const LIMITS: &str = include_str!("../../../benches/limits.json");
/// Where the guest listens.
const PORT: u32 = 6002;
/// Of a stream each way.
const MIB: u32 = 8;
/// Heartbeats that are counted.
const BEATS: u32 = 5;

fn cost(context: &Context) -> Outcome {
    let in_nest = std::env::var_os("XTASK_PLACE").is_some_and(|place| place == "nest");
    if !in_nest && !rustix::process::geteuid().is_root() {
        note("not measured: KVM's tracepoints are root's");
        return Ok(());
    }
    let limits = Limits(serde_json::from_str(LIMITS).map_err(|why| Failure(why.to_string()))?);
    let control = Control::new(context);
    // Not beside the logs: that file system may have no sockets.
    let path = std::env::temp_dir().join(format!("cost-{}", std::process::id()));
    let ((mut vm, control), counts) = trace::count(|| {
        let sockets = [control.socket(), &path].map(|path| path.display().to_string());
        let [api, vsock] = &sockets;
        let args = ["--ic", "all", "--api-socket", api, "--vsock", vsock];
        let mut vm = context.setup().args(&args).boot()?;
        vm.sh_ok("modprobe -a hv_utils hv_sock")?;
        Ok((vm, control))
    })?;
    limits.hold("boot", &counts.per(1.0), &["user_exits"])?;
    let memory = memory::of_process(vm.pid())?;
    limits.check("resident_kib", &memory, "/resident")?;
    limits.check("threads", &memory, "/threads")?;
    streams(&limits, &mut vm, &path)?;

    let all = ["user_exits", "signals", "interrupts"];
    if vm.sh("command -v hv_fcopy_daemon")?.status == 0 {
        services::start_daemons(&mut vm, &control)?;
        let counts = services::copied(&control)?;
        limits.hold("fcopy_fragment", &counts.per(services::fragments()), &all)?;
    } else {
        note("file copy is not measured: this distribution has no daemon for it");
    }
    let counts = services::beats(&control, BEATS)?;
    limits.hold("heartbeat", &counts.per(f64::from(BEATS)), &all)?;
    vm.power_off()
}

/// A stream each way.
fn streams(limits: &Limits, vm: &mut Vm, path: &Path) -> Outcome {
    vm.sh_ok(&format!("/init vsock-bench {PORT} >/tmp/bench 2>&1 &"))?;
    vm.sh_ok("n=0; until grep -q listening /tmp/bench; do n=$((n+1)); [ $n -lt 500 ] || exit 1; usleep 10000; done")?;
    for (order, name) in [(b's', "to_host_mib"), (b'r', "to_guest_mib")] {
        let ((), counts) = trace::count(|| stream(path, order))?;
        let counts = counts.per(f64::from(MIB));
        limits.hold(name, &counts, &["user_exits", "signals", "interrupts"])?;
    }
    Ok(())
}

/// Sends or receives so many MiB, as the agent's `vsock-bench` has it.
fn stream(path: &Path, order: u8) -> Outcome {
    let len = u64::from(MIB) << 20;
    let mut socket = connect(path, PORT)?;
    let mut words = vec![order];
    words.extend(len.to_le_bytes());
    socket.write_all(&words)?;
    if order == b's' {
        let got = std::io::copy(&mut socket.take(len), &mut std::io::sink())?;
        ensure!(got == len, "{got} bytes came instead of {len}");
        return Ok(());
    }
    let chunk = vec![7; 64 << 10];
    for _ in 0..len / (64 << 10) {
        socket.write_all(&chunk)?;
    }
    Ok(socket.read_exact(&mut [0])?)
}

/// The file of limits.
struct Limits(Value);

impl Limits {
    /// Holds counts to their limits, named `{operation}_{what}`.
    fn hold(&self, operation: &str, counts: &Value, what: &[&str]) -> Outcome {
        what.iter().try_for_each(|what| {
            let pointer = match *what {
                "user_exits" => "/kvm_userspace_exit/all",
                // HvCallSignalEvent.
                "signals" => "/kvm_hv_hypercall/93",
                _ => "/kvm_hv_synic_set_irq/all",
            };
            self.check(&format!("{operation}_{what}"), counts, pointer)
        })
    }

    /// Compares a figure, which is missing for 0, with its limit.
    fn check(&self, limit: &str, found: &Value, pointer: &str) -> Outcome {
        let most = self.0.get(limit).and_then(Value::as_f64);
        let most = most.ok_or_else(|| Failure(format!("benches/limits.json has no {limit}")))?;
        let value = found
            .pointer(pointer)
            .and_then(Value::as_f64)
            .unwrap_or(0.0);
        note(&format!("{limit}: {value} of {most}"));
        ensure!(value <= most, "{limit} is {value}, the limit is {most}");
        Ok(())
    }
}
