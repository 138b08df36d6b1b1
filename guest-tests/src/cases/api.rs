// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control API of a `vmm` with a guest in it: as it is described, as the
//! documentation's examples have it, and against clients that mean no good.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

mod examples;
mod fuzz;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::services::boot_ready;
use super::vmbus::{note, open_files};
use crate::ensure;
use crate::openapi::Description;
use crate::suite::{Case, Context, Control, Failure, Outcome, Vm};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "api-description",
        "every answer is what docs/openapi.json says",
        description,
    ),
    Case::new(
        "api-curl",
        "the documentation's curl examples do what it says",
        examples::curl,
    )
    .once(),
    Case::new(
        "api-trace",
        "vmmctl trace shows what passes, in both its forms, and costs nothing after",
        trace,
    )
    .once(),
    Case::new(
        "api-hostile",
        "clients that are silent, mad, huge or gone harm neither others nor the guest",
        hostile,
    )
    .once(),
    Case::new(
        FUZZ,
        "schemathesis finds nothing in half an hour of power, files and everything else",
        fuzz::fuzz,
    )
    .once()
    .within(1200),
];

/// The case that is run by `cargo xtask test --api-fuzz`, and only by it.
pub const FUZZ: &str = "api-fuzz";

/// What the API is said to be.
pub(super) fn described() -> Outcome<Description> {
    Ok(Description::parse(include_str!(
        "../../../docs/openapi.json"
    ))?)
}

const ECHO: &str = r#"{"name":"echo"}"#;
fn trace(context: &Context) -> Outcome {
    let described = described()?;
    let (vm, control) = boot_ready(context, |setup| setup)?;
    // A beat comes every 2 s: its packet, a signal, the answer.
    let said = control.ok(&["--json", "trace", "--lines", "8"])?;
    let mut beats = 0;
    for line in said.lines() {
        let line: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        described.check_named("Traffic", &line)?;
        beats += usize::from(line["service"]["message"] == "heartbeat");
    }
    ensure!(
        said.lines().count() == 8 && beats >= 2,
        "vmmctl --json trace shows {said}"
    );
    let said = control.ok(&["trace", "-n", "8"])?;
    ensure!(
        said.lines().count() == 8 && said.contains("service: ") && !said.contains('{'),
        "vmmctl trace shows {said}"
    );
    vm.power_off()
}

fn description(context: &Context) -> Outcome {
    let described = described()?;
    let (mut vm, control) = boot_ready(context, |setup| setup)?;
    for (method, target, body, wanted) in [
        ("GET", "/v1/vm", "", 200),
        ("GET", "/v1/services", "", 200),
        (
            "PATCH",
            "/v1/services/timesync",
            r#"{"enabled":false}"#,
            200,
        ),
        ("GET", "/v1/time", "", 409),
        ("POST", "/v1/time/sync", "", 409),
        ("GET", "/v1/vm", "", 200),
        ("PATCH", "/v1/services/timesync", r#"{"enabled":true}"#, 200),
        ("PATCH", "/v1/services/vsock", r#"{"enabled":false}"#, 200),
        ("PATCH", "/v1/services/vsock", r#"{"enabled":true}"#, 200),
        ("PUT", "/v1/hvsocket/services/5000", ECHO, 200),
        ("PUT", "/v1/hvsocket/services/5001", ECHO, 409),
        ("PUT", "/v1/hvsocket/services/echo", ECHO, 400),
        ("GET", "/v1/hvsocket/services", "", 200),
        ("DELETE", "/v1/hvsocket/services/5000", "", 200),
        ("DELETE", "/v1/hvsocket/services/5000", "", 404),
        ("PATCH", "/v1/services/lunch", r#"{"enabled":true}"#, 404),
        ("POST", "/v1/files?path=/tmp/new", "hello", 409),
        ("POST", "/v1/files?path=name", "hello", 400),
        ("PATCH", "/v1/services/timesync", "{}", 400),
        ("PUT", "/v1/vm/power", r#"{"action":"hibernate"}"#, 502),
        ("PUT", "/v1/vm/power", r#"{"action":"explode"}"#, 400),
        ("PUT", "/v1/vm/power", r#"{"action":"pause"}"#, 200),
        ("GET", "/v1/vm", "", 200),
        ("PUT", "/v1/vm/power", r#"{"action":"nmi"}"#, 409),
        ("PUT", "/v1/vm/power", r#"{"action":"resume"}"#, 200),
    ] {
        let (status, answer) = control.ask(method, target, body)?;
        ensure!(
            status == wanted,
            "{method} {target} {body} answers {status} {answer}"
        );
        described.check_answer(method, target, status, &answer)?;
    }
    control.until_ready(&super::services::NAMES, Duration::from_secs(10))?;
    for target in ["/v1/time", "/v1/vm"] {
        let (status, answer) = control.ask("GET", target, "")?;
        described.check_answer("GET", target, status, &answer)?;
    }
    let (status, answer) = control.ask("POST", "/v1/time/sync", "")?;
    described.check_answer("POST", "/v1/time/sync", status, &answer)?;
    let body = r#"{"action":"shutdown"}"#;
    let (status, answer) = control.ask("PUT", "/v1/vm/power", body)?;
    described.check_answer("PUT", "/v1/vm/power", status, &answer)?;
    vm.expect_exit(0)?;
    for event in vm.events()? {
        described.check_named("Event", &event)?;
    }
    Ok(())
}

fn hostile(context: &Context) -> Outcome {
    let (mut vm, control) = boot_ready(context, |setup| setup)?;
    let mode = fs::metadata(control.socket())?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the socket's mode is {mode:o}");
    let files = open_files(&vm)?;
    let memory = resident(&vm)?;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(UnixStream::connect(control.socket())?);
    }
    answers(&control, "silent clients")?;
    ensure!(
        open_files(&vm)? <= files + 70,
        "300 silent clients keep {} files open",
        open_files(&vm)? - files
    );
    for garbage in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 what\r\n\r\n".as_slice(),
        b"GET /v1/vm\r\n\r\n",
        b"\0\0\0\0\r\n\r\n\r\n\r\n",
        b"GET /v1/vm HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    ] {
        let mut stream = UnixStream::connect(control.socket())?;
        stream.write_all(garbage)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        ensure!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains("bad-request"),
            "{garbage:?} is answered {answer:?}"
        );
    }
    answers(&control, "garbage")?;
    let sent = flood(
        &control,
        "PUT /v1/vm/power HTTP/1.1\r\nContent-Length: 104857600\r\n\r\n",
    )?;
    let headless = flood(&control, "GET /")?;
    answers(&control, "100 MB")?;
    for _ in 0..300 {
        let mut stream = UnixStream::connect(control.socket())?;
        stream.write_all(b"GET /v1/vm HTTP/1.1\r\n\r\nGET /v1/ev")?;
    }
    answers(&control, "clients that vanish")?;
    drop(silent);
    // Whoever is gone leaves nothing behind.
    let start = Instant::now();
    while open_files(&vm)? > files {
        ensure!(
            start.elapsed() < Duration::from_secs(10),
            "{} open files instead of {files}",
            open_files(&vm)?
        );
        answers(&control, "all")?;
    }
    let grown = resident(&vm)?.saturating_sub(memory);
    ensure!(grown < 16 << 10, "vmm has grown by {grown} KiB");
    note(&format!(
        "100 MB: {sent} and {headless} bytes were taken; vmm has grown by {grown} KiB"
    ));
    control.ok(&["shutdown"])?;
    vm.expect_exit(0)
}

/// The guest is well, and who asks is answered soon.
fn answers(control: &Control, after: &str) -> Outcome {
    let start = Instant::now();
    let status: Value = control.status()?;
    let took = start.elapsed();
    ensure!(
        took < Duration::from_secs(2) && status["health"] == "ok",
        "after {after} the status took {took:?}: {status}"
    );
    Ok(())
}

/// Sends a head and then 100 MB, until nobody takes them; how many were.
fn flood(control: &Control, head: &str) -> Outcome<usize> {
    const ALL: usize = 100 << 20;
    let mut stream = UnixStream::connect(control.socket())?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(head.as_bytes())?;
    let chunk = vec![b'x'; 64 << 10];
    let mut sent = 0;
    while sent < ALL && stream.write_all(&chunk).is_ok() {
        sent += chunk.len();
    }
    ensure!(sent < ALL / 10, "{sent} bytes of 100 MB were taken");
    Ok(sent)
}

/// KiB of memory that `vmm` uses, its guest's included.
fn resident(vm: &Vm) -> Outcome<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.ok_or_else(|| Failure("no VmRSS".to_owned()))
}
