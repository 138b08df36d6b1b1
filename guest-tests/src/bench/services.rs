// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the integration services cost, with the distribution's own daemons: by
//! the control API, from a request to its answer.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::machine::{Machine, socket};
use super::trace::{self, Counts};
use super::{Ground, tell};
use crate::ensure;
use crate::suite::{Control, Outcome, Vm};

/// Items that are set.
const ITEMS: u32 = 200;
/// Bytes of a file in one message.
const FRAGMENT: usize = 6144;
/// Of the file that is copied.
const FRAGMENTS: u32 = 512;
/// Beats that are counted.
const BEATS: u32 = 20;
/// From one beat to the next.
const BEAT: Duration = Duration::from_secs(2);
/// Until everything is ready.
const READY: Duration = Duration::from_secs(30);

/// All of them: microseconds or MB/s, and what each operation is counted to take.
pub(super) fn measure(ground: &Ground) -> Outcome<Value> {
    let ground = Ground {
        initramfs: ground.with_daemons.clone(),
        ..ground.clone()
    };
    let (vm, control) = boot(&ground)?;
    let mut found = Map::new();
    let mut add = |name: &str, value: f64, counts: Value| {
        tell(&format!("{name}: {value:.1}; {counts}"));
        found.insert(name.to_owned(), json!({"value": value, "counts": counts}));
    };

    let took = timed(|| set_items(&control, "one"))?;
    let ((), counts) = trace::count(|| set_items(&control, "another"))?;
    let each = took.as_secs_f64() * 1e6 / f64::from(ITEMS);
    add("kvp-set", each, counts.per(f64::from(ITEMS)));
    let get = || ask(&control, "GET", "/v1/kvp/external/item-100", "");
    let took = timed(get)?;
    let ((), counts) = trace::count(get)?;
    add("kvp-get", took.as_secs_f64() * 1e6, counts.per(1.0));

    let took = timed(|| copy_file(&control, FRAGMENTS))?;
    let (counts, rate) = (copied(&control)?, rate(took));
    add("fcopy", rate, counts.per(f64::from(FRAGMENTS)));

    let counts = beats(&control, BEATS)?;
    add("beat", 0.0, counts.per(f64::from(BEATS)));

    let shutdown = json!({"action": "shutdown"}).to_string();
    let accept = |control: &Control| ask(control, "PUT", "/v1/vm/power", &shutdown);
    let took = timed(|| accept(&control))?;
    drop(vm);
    let (vm, control) = boot(&ground)?;
    let ((), counts) = trace::count(|| accept(&control))?;
    add("shutdown", took.as_secs_f64() * 1e6, counts.per(1.0));
    drop(vm);
    Ok(found.into())
}

fn boot(ground: &Ground) -> Outcome<(Vm, Control)> {
    let command = Machine::Ours.command(ground, false, "agent.modules=hv_utils");
    let mut vm = Vm::start(command, ground.events())?;
    vm.wait_agent()?;
    let control = Control::of(&ground.vmm, &socket("api"));
    start_daemons(&mut vm, &control)?;
    Ok((vm, control))
}

/// Starts a guest's daemons, and waits for all that has to be ready.
pub(crate) fn start_daemons(vm: &mut Vm, control: &Control) -> Outcome {
    vm.sh_ok("hv_kvp_daemon && hv_fcopy_daemon")?;
    let names = ["heartbeat", "shutdown", "timesync", "kvp", "fcopy"];
    control.until_ready(&names, READY).map(drop)
}

/// Counts while a file is copied of [`FRAGMENTS`] messages.
pub(crate) fn copied(control: &Control) -> Outcome<Counts> {
    let ((), counts) = trace::count(|| copy_file(control, FRAGMENTS))?;
    Ok(counts)
}

/// Counts what so many beats take, with nothing else going on.
pub(crate) fn beats(control: &Control, beats: u32) -> Outcome<Counts> {
    // Their samples, and looks for daemons, are not to be counted.
    for service in ["timesync", "kvp", "vss"] {
        let target = format!("/v1/services/{service}");
        ask(control, "PATCH", &target, "{\"enabled\": false}")?;
    }
    thread::sleep(BEAT);
    let ((), counts) = trace::count(|| {
        thread::sleep(BEAT * beats);
        Ok(())
    })?;
    Ok(counts)
}

/// Messages of the file that is copied.
pub(crate) fn fragments() -> f64 {
    f64::from(FRAGMENTS)
}

fn set_items(control: &Control, value: &str) -> Outcome {
    let body = json!({ "value": value }).to_string();
    (0..ITEMS).try_for_each(|n| ask(control, "PUT", &format!("/v1/kvp/external/item-{n}"), &body))
}

fn copy_file(control: &Control, fragments: u32) -> Outcome {
    let body = "x".repeat(FRAGMENT * usize::try_from(fragments).unwrap_or(0));
    ask(
        control,
        "POST",
        "/v1/files?path=/tmp/file&overwrite=true",
        &body,
    )
}

fn ask(control: &Control, method: &str, target: &str, body: &str) -> Outcome {
    let (status, answer) = control.ask(method, target, body)?;
    ensure!(status == 200, "{method} {target}: {status} {answer}");
    Ok(())
}

fn timed(run: impl FnOnce() -> Outcome) -> Outcome<Duration> {
    let start = Instant::now();
    run()?;
    Ok(start.elapsed())
}

/// MB/s of a copied file.
fn rate(took: Duration) -> f64 {
    #[allow(clippy::cast_precision_loss)] // A size in thousands.
    let bytes = FRAGMENT as f64 * fragments();
    bytes / took.as_secs_f64() / 1e6
}
