// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hyper-V sockets as a service: switched at run time, and their services' names.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{
    GUEST_PORT, HOST_PORT, at_rest, connect, one, send_back, serve, serve_as, serve_in_guest,
};
use crate::cases::vmbus::note;
use crate::ensure;
use crate::suite::{Context, Control, Failure, Outcome, Vm};

/// How soon a connection has to end when it is taken away.
const SOON: Duration = Duration::from_secs(5);

pub(super) fn run(context: &Context) -> Outcome {
    let control = Control::new(context);
    let socket = control.socket().display().to_string();
    let path = std::env::temp_dir().join(format!("vsock-{}", std::process::id()));
    let text = path.display().to_string();
    let named = format!("{GUEST_PORT}=echo");
    let mut vm = context
        .setup()
        .args(&["--ic", "none", "--vsock", &text, "--api-socket", &socket])
        .args(&["--hvsocket", &named])
        .boot()?;
    vm.sh_ok("modprobe hv_sock")?;
    serve(&path)?;
    serve_in_guest(&mut vm)?;
    off(&mut vm, &control, &path)?;
    let said = control.ok(&["ic", "enable", "vsock"])?;
    ensure!(said.contains("vsock enabled"), "vmmctl says {said:?}");
    on(&mut vm, &control, &path)?;

    // With connections in both directions, and one that nobody in the guest answers.
    let held = connect(&path, GUEST_PORT)?;
    let script =
        format!("(/init vsock-exchange {HOST_PORT} 1 100000000000; echo $? >/tmp/ended) &");
    vm.sh_ok(&format!("{{ {script} }} >/dev/null 2>&1"))?;
    until_connections(&control, 2)?;
    let mut pending = UnixStream::connect(&path)?;
    pending.write_all(b"CONNECT 6009\n")?;
    control.ok(&["ic", "disable", "vsock"])?;
    let start = Instant::now();
    for (what, mut stream) in [("an open", held), ("a pending", pending)] {
        stream.set_read_timeout(Some(SOON))?;
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        // With unread data of ours in it, it ends by a reset.
        let reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
        ensure!(
            ended.as_ref().map_or_else(reset, |_| true),
            "{what} connection does not end: {ended:?}"
        );
    }
    vm.sh_ok(
        "n=0; until [ -s /tmp/ended ]; do n=$((n+1)); [ $n -lt 500 ] || exit 1; usleep 10000; done",
    )?;
    let ended = vm.sh_ok("cat /tmp/ended")?;
    ensure!(ended != "0", "the guest exchanged 100 GB");
    note(&format!("all connections ended in {:?}", start.elapsed()));
    at_rest(&mut vm)?;
    off(&mut vm, &control, &path)?;
    control.ok(&["ic", "enable", "vsock"])?;
    on(&mut vm, &control, &path)?;
    names(&mut vm, &control, &path)?;
    at_rest(&mut vm)?;
    vm.power_off()
}

/// It is disabled, and each side hears it.
fn off(vm: &mut Vm, control: &Control, path: &Path) -> Outcome {
    let entry = control.service("vsock")?;
    ensure!(
        entry["enabled"] == false && entry["state"] == "disabled",
        "the status says {entry}"
    );
    let error = connect(path, GUEST_PORT)
        .err()
        .map(|error| error.to_string());
    ensure!(
        error
            .as_ref()
            .is_some_and(|error| error.contains("ERR disabled")),
        "disabled, a connect gives {error:?}"
    );
    let ran = control.run(&["connect", &GUEST_PORT.to_string()])?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("disabled"),
        "vmmctl connect ends with {} and says {}",
        ran.code,
        ran.stderr
    );
    let said = vm.sh(&format!("/init vsock-short {HOST_PORT} 1"))?;
    ensure!(said.status != 0, "the guest connected, disabled");
    Ok(())
}

/// It is enabled, and each side can connect.
fn on(vm: &mut Vm, control: &Control, path: &Path) -> Outcome {
    let entry = control.service("vsock")?;
    ensure!(
        entry["enabled"] == true && entry["state"] == "ready",
        "the status says {entry}"
    );
    one(path, 1, 10_000)?;
    vm.sh_ok(&format!("/init vsock-short {HOST_PORT} 2"))
        .map(drop)
}

fn until_connections(control: &Control, wanted: u64) -> Outcome {
    let so = |vm: &Value| {
        let all = vm["services"].as_array().map_or(&[][..], Vec::as_slice);
        let detail = all.iter().find(|one| one["name"] == "vsock");
        let detail = detail.and_then(|one| one["detail"].as_str());
        let plural = if wanted == 1 { "" } else { "s" };
        detail.is_some_and(|detail| detail == format!("{wanted} connection{plural}"))
    };
    control.until("connected", SOON, so).map(drop)
}

/// Services by name, from the command line on.
fn names(vm: &mut Vm, control: &Control, path: &Path) -> Outcome {
    let guid = format!("{GUEST_PORT:08x}-facb-11e6-bd58-64006a7986d3");
    let shown = control.ok(&["hvsocket", "list"])?;
    ensure!(
        shown.contains(&guid) && shown.contains("echo") && !shown.contains("listening"),
        "vmmctl hvsocket list shows {shown}"
    );
    drop(connect(path, "echo")?);
    let unknown = connect(path, "lunch").err().map(|error| error.to_string());
    ensure!(
        unknown.as_ref().is_some_and(|why| why.contains("'lunch'")),
        "a name that nobody has gives {unknown:?}"
    );

    // The guest's connection reaches a listener at the name.
    let port = "7000";
    control.ok(&["hvsocket", "register", port, "build agent"])?;
    serve_as(path, "build agent", send_back)?;
    let held = connect(path, GUEST_PORT)?;
    // The one made by name has ended for us; the guest may not have let go yet.
    until_connections(control, 1)?;
    let list: Value = serde_json::from_str(&control.ok(&["--json", "hvsocket", "list"])?)
        .map_err(|error| Failure(error.to_string()))?;
    ensure!(
        list[0]["name"] == "echo" && list[0]["connections"] == 1 && list[0]["listening"] == false,
        "the list has {list}"
    );
    ensure!(
        list[1]["port"] == 7000 && list[1]["listening"] == true,
        "the list has {list}"
    );
    drop(held);
    vm.sh_ok(&format!("/init vsock-short {port} 2"))?;
    control.ok(&["hvsocket", "unregister", port])?;
    let said = vm.sh(&format!("/init vsock-short {port} 1"))?;
    ensure!(said.status != 0, "a name that is gone was found");

    for (args, code, words) in [
        (
            &["hvsocket", "register", "7000", "echo"][..],
            1,
            "name-taken",
        ),
        (&["hvsocket", "unregister", "7000"], 1, "not-found"),
        (&["hvsocket", "register", "lunch", "echo"], 2, "GUID"),
        (&["hvsocket", "register", "7000", "a/b"], 2, "letters"),
    ] {
        let ran = control.run(args)?;
        ensure!(
            ran.code == code && ran.stderr.contains(words),
            "vmmctl {args:?} ends with {} and says {}",
            ran.code,
            ran.stderr
        );
    }
    Ok(())
}
