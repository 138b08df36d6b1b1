// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control surface of a `vmm` under test, as its users have it: `vmmctl`,
//! and the API behind it.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Context, Failure, Outcome};
use crate::ensure;

/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(50);

/// A way to one VM.
#[derive(Clone, Debug)]
pub struct Control {
    vmmctl: PathBuf,
    socket: PathBuf,
}

/// How a run of `vmmctl` ended.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// Its exit code; -1 for a signal.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Control {
    /// A socket for one VM to come.
    pub fn new(context: &Context) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Short, since a socket's path has 107 bytes, and not shared between machines.
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vm-{}-{number}.sock", std::process::id());
        Self::at(context, &std::env::temp_dir().join(name))
    }

    /// The VM at this socket.
    pub fn at(context: &Context, socket: &Path) -> Self {
        Self::of(&context.vmm, socket)
    }

    /// The VM at this socket, with the `vmmctl` beside this `vmm`.
    pub fn of(vmm: &Path, socket: &Path) -> Self {
        Self {
            vmmctl: vmm.with_file_name("vmmctl"),
            socket: socket.to_owned(),
        }
    }

    /// Where the socket is.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The program.
    pub fn vmmctl(&self) -> &Path {
        &self.vmmctl
    }

    /// Runs `vmmctl`.
    pub fn run(&self, args: &[&str]) -> Outcome<Ran> {
        let output = self.command(args).output()?;
        Ok(Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// `vmmctl`, not started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.vmmctl);
        command.arg("--socket").arg(&self.socket).args(args);
        command.stdin(Stdio::null());
        command
    }

    /// Runs `vmmctl`, which must end with 0, and gives its output.
    pub fn ok(&self, args: &[&str]) -> Outcome<String> {
        let ran = self.run(args)?;
        ensure!(
            ran.code == 0,
            "vmmctl {} ended with {}: {}{}",
            args.join(" "),
            ran.code,
            ran.stdout,
            ran.stderr
        );
        Ok(ran.stdout)
    }

    /// Asks the API: status and body.
    pub fn ask(&self, method: &str, target: &str, body: &str) -> Outcome<(u16, Value)> {
        let mut stream = UnixStream::connect(&self.socket)?;
        let length = body.len();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: vm\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let bad = || Failure(format!("{method} {target}: no answer but {answer:?}"));
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        let body = serde_json::from_str(body).map_err(|_| bad())?;
        Ok((status.ok_or_else(bad)?, body))
    }

    /// `GET /v1/vm`.
    pub fn status(&self) -> Outcome<Value> {
        Ok(self.ask("GET", "/v1/vm", "")?.1)
    }

    /// What the status says of the guest's health.
    pub fn health(&self) -> Outcome<String> {
        Ok(text(&self.status()?["health"]))
    }

    /// The entry of a service.
    pub fn service(&self, name: &str) -> Outcome<Value> {
        let status = self.status()?;
        let services = status["services"].as_array();
        let found = services.and_then(|all| all.iter().find(|entry| entry["name"] == name));
        found
            .cloned()
            .ok_or_else(|| Failure(format!("no service {name} in {status}")))
    }

    /// Waits until the status is so, and says how long it took.
    pub fn until(
        &self,
        what: &str,
        limit: Duration,
        so: impl Fn(&Value) -> bool,
    ) -> Outcome<Duration> {
        let start = Instant::now();
        loop {
            let status = self.status()?;
            let took = start.elapsed();
            if so(&status) {
                return Ok(took);
            }
            ensure!(took < limit, "not {what} within {limit:?}: {status}");
            thread::sleep(LOOK);
        }
    }

    /// Waits for a health.
    pub fn until_health(&self, health: &str, limit: Duration) -> Outcome<Duration> {
        self.until(&format!("health {health}"), limit, |vm| {
            vm["health"] == health
        })
    }

    /// Waits until these services are ready.
    pub fn until_ready(&self, names: &[&str], limit: Duration) -> Outcome<Duration> {
        self.until(&format!("{names:?} ready"), limit, |vm| {
            let services = vm["services"].as_array().map_or(&[][..], Vec::as_slice);
            names.iter().all(|name| {
                let mut all = services.iter();
                all.any(|entry| entry["name"] == *name && entry["state"] == "ready")
            })
        })
    }
}

/// A JSON string's text.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
