// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl forward`: programs that know TCP only reach a Hyper-V socket of the guest.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use guest_agent::exchange::exchange;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::super::vmbus::note;
use super::{GUEST_PORT, STUCK, at_rest, serve_in_guest};
use crate::ensure;
use crate::suite::{Context, Control, Failure, Outcome};

/// At once.
const CONNECTIONS: u64 = 50;
/// How long its end may take.
const LIMIT: Duration = Duration::from_secs(20);

/// A running `vmmctl forward`, and the port that it has taken.
struct Forward {
    child: Child,
    port: u16,
}

impl Forward {
    fn start(mut command: Command) -> Outcome<Self> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let told: Value = serde_json::from_str(&line).unwrap_or_default();
        let port = told.get("port").and_then(Value::as_u64);
        if let Some(port) = port.and_then(|port| u16::try_from(port).ok()) {
            return Ok(Self { child, port });
        }
        let _ = child.kill();
        let output = child.wait_with_output()?;
        Err(Failure(format!("no port in {line:?}: {output:?}")))
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(STUCK))?;
        stream.set_write_timeout(Some(STUCK))?;
        Ok(stream)
    }

    /// Its exit code, and what it has said, once it ends by itself.
    fn ended(mut self) -> Outcome<(Option<i32>, String)> {
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            if start.elapsed() > LIMIT {
                let _ = self.child.kill();
                return Err(Failure("vmmctl forward goes on".to_owned()));
            }
            thread::sleep(Duration::from_millis(20));
        }
        let output = self.child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.code(), said))
    }
}

fn one(stream: TcpStream, seed: u64, len: u64) -> io::Result<()> {
    let writer = stream.try_clone()?;
    // It ends its direction, and reads on.
    let close = |writer: TcpStream| writer.shutdown(Shutdown::Write);
    exchange(seed, len, stream, writer, close)
}

pub(super) fn run(context: &Context) -> Outcome {
    let len = context.times(16 << 10, 1 << 20);
    let control = Control::new(context);
    let socket = control.socket().display().to_string();
    let vsock = format!("{socket}.vsock");
    let args = ["--ic", "vsock", "--api-socket", &socket, "--vsock", &vsock];
    let mut vm = context.setup().args(&args).boot()?;
    vm.sh_ok("modprobe hv_sock")?;
    serve_in_guest(&mut vm)?;
    let port = GUEST_PORT.to_string();
    let start = || Forward::start(control.command(&["--json", "forward", "0", &port]));
    let forward = start()?;
    // All are there before the first of them says anything.
    let began = Instant::now();
    let streams: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| forward.connect())
        .collect::<io::Result<_>>()?;
    let threads: Vec<_> = (0..)
        .zip(streams)
        .map(|(seed, stream)| thread::spawn(move || one(stream, seed, len)))
        .collect();
    for thread in threads {
        let ended = thread.join();
        ended.map_err(|_| Failure("a connection panicked".to_owned()))??;
    }
    note(&format!(
        "{CONNECTIONS} connections at once, {len} bytes each way: {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    slow(&forward)?;
    // Nobody listens: the client sees it, and the others go on.
    let nobody = Forward::start(control.command(&["--json", "forward", "0", "6009"]))?;
    let answer = nobody.connect()?.read(&mut [0; 10]);
    ensure!(
        matches!(&answer, Err(error) if error.kind() == io::ErrorKind::ConnectionReset),
        "of a port where nobody listens comes {answer:?}"
    );
    one(forward.connect()?, 7, len)?;
    at_rest(&mut vm)?;
    // A signal ends it; and so does the end of the VM.
    if let Some(pid) = i32::try_from(nobody.child.id())
        .ok()
        .and_then(Pid::from_raw)
    {
        kill_process(pid, Signal::INT)?;
    }
    let (code, said) = nobody.ended()?;
    ensure!(
        code == Some(0) && said.contains("6009: nobody in the guest"),
        "after SIGINT: {code:?}, {said:?}"
    );
    vm.power_off()?;
    let (code, said) = forward.ended()?;
    ensure!(
        code == Some(0) && said.contains("the VM has ended"),
        "after the VM: {code:?}, {said:?}"
    );
    Ok(())
}

/// One that does not read stops its writer, and nobody else.
fn slow(forward: &Forward) -> Outcome {
    let mut stuck = forward.connect()?;
    stuck.set_write_timeout(Some(Duration::from_secs(2)))?;
    let (data, mut sent) = (vec![0; 64 << 10], 0);
    let stopped = loop {
        match stuck.write(&data) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
        ensure!(
            sent < 64 << 20,
            "{sent} bytes are kept for one who does not read"
        );
    };
    ensure!(
        stopped.kind() == io::ErrorKind::WouldBlock,
        "one who does not read what comes back sees {stopped}"
    );
    one(forward.connect()?, 5, 1000)?;
    note(&format!(
        "a client that does not read is stopped after {sent} bytes"
    ));
    Ok(())
}
