// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest costs its host, counted by KVM's tracepoints, against the limits
//! in `benches/limits.json`: what does not depend on how fast a machine is.

use std::io::{Read, Write};
use std::path::Path;

use serde_json::Value;

use super::vmbus::note;
use super::vsock::{boot, connect};
use crate::bench::{memory, trace};
use crate::ensure;
use crate::suite::{Case, Context, Failure, Outcome};

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

fn cost(context: &Context) -> Outcome {
    let in_nest = std::env::var_os("XTASK_PLACE").is_some_and(|place| place == "nest");
    if !in_nest && !rustix::process::geteuid().is_root() {
        note("not measured: KVM's tracepoints are root's");
        return Ok(());
    }
    let limits: Value = serde_json::from_str(LIMITS).map_err(|error| Failure(error.to_string()))?;
    let ((mut vm, path), counts) = trace::count(|| boot(context))?;
    let counts = counts.per(1.0);
    within(
        &limits,
        "boot_user_exits",
        &counts,
        "/kvm_userspace_exit/all",
    )?;
    let memory = memory::of_process(vm.pid())?;
    within(&limits, "resident_kib", &memory, "/resident")?;
    within(&limits, "threads", &memory, "/threads")?;
    vm.sh_ok(&format!("/init vsock-bench {PORT} >/tmp/bench 2>&1 &"))?;
    vm.sh_ok("n=0; until grep -q listening /tmp/bench; do n=$((n+1)); [ $n -lt 500 ] || exit 1; usleep 10000; done")?;
    for (order, name) in [(b's', "to_host"), (b'r', "to_guest")] {
        let ((), counts) = trace::count(|| stream(&path, order))?;
        let counts = counts.per(f64::from(MIB));
        for (what, pointer) in [
            ("user_exits", "/kvm_userspace_exit/all"),
            ("signals", "/kvm_hv_hypercall/93"),
            ("interrupts", "/kvm_hv_synic_set_irq/all"),
        ] {
            within(&limits, &format!("{name}_{what}_per_mib"), &counts, pointer)?;
        }
    }
    vm.power_off()
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

/// Compares a figure, which may be missing for 0, with its limit.
fn within(limits: &Value, limit: &str, found: &Value, pointer: &str) -> Outcome {
    let most = limits.get(limit).and_then(Value::as_f64);
    let most = most.ok_or_else(|| Failure(format!("benches/limits.json has no {limit}")))?;
    let value = found
        .pointer(pointer)
        .and_then(Value::as_f64)
        .unwrap_or(0.0);
    note(&format!("{limit}: {value} of {most}"));
    ensure!(value <= most, "{limit} is {value}, the limit is {most}");
    Ok(())
}
