// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is run on this machine itself: unit tests, and cases where
//! `/dev/kvm` is good.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::build;
use crate::error::{Context, Result, failed};
use crate::progress::say;

const LAYER: &str = "tests";

/// Runs the unit tests of all crates but the fuzz targets', which want a C++ compiler, and gives how many passed and failed.
pub(super) fn cargo_test(filter: Option<&str>) -> Result<(u64, u64)> {
    say("unit tests: cargo test");
    let mut child = build::cargo()
        .args(["test", "--no-fail-fast"])
        .args(filter)
        .stdout(Stdio::piped())
        .spawn()
        .context(LAYER, "cargo test")?;
    let (mut passed, mut failed_count) = (0, 0);
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context(LAYER, "cargo test")?;
            if let Some((ok, bad)) = result_line(&line) {
                passed += ok;
                failed_count += bad;
            } else if is_news(&line) {
                println!("{line}");
            }
        }
    }
    let status = child.wait().context(LAYER, "cargo test")?;
    if !status.success() && failed_count == 0 {
        failed_count = 1; // it didn't build
    }
    println!("unit tests: {passed} passed, {failed_count} failed");
    Ok((passed, failed_count))
}

/// `test result: ok. 12 passed; 0 failed; …`
fn result_line(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("test result: ")?;
    let count = |what: &str| -> Option<u64> {
        let part = rest
            .split([';', '.'])
            .find(|part| part.trim_end().ends_with(what))?;
        part.split_whitespace().next()?.parse().ok()
    };
    Some((count("passed")?, count("failed")?))
}

fn is_news(line: &str) -> bool {
    let dull = line.is_empty()
        || line.starts_with("running ")
        || (line.starts_with("test ")
            && (line.ends_with("... ok") || line.ends_with("... ignored")));
    !dull
}

/// Runs a case on this machine.
pub(super) fn run(argv: &[OsString], limit: Duration) -> Result<(u32, String)> {
    let (program, args) = argv
        .split_first()
        .ok_or_else(|| failed(LAYER, "no command"))?;
    let mut child = Command::new(program)
        .args(args)
        .env("XTASK_RUN", std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(LAYER, program.display())?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().context(LAYER, program.display())? {
            let code = status.code().or_else(|| status.signal().map(|n| 128 + n));
            let output = [stdout.join(), stderr.join()].map(std::result::Result::unwrap_or_default);
            return Ok((
                u32::try_from(code.unwrap_or(255)).unwrap_or(255),
                output.concat(),
            ));
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Ok((124, format!("no end after {} s", limit.as_secs())));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_result_lines_are_counted() {
        let line = "test result: ok. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(result_line(line), Some((12, 3)));
        let line = "test result: FAILED. 0 passed; 1 failed; 0 ignored";
        assert_eq!(result_line(line), Some((0, 1)));
        assert_eq!(result_line("test foo ... ok"), None);
    }

    #[test]
    fn passing_tests_are_no_news() {
        assert!(!is_news("test a::b ... ok"));
        assert!(is_news("test a::b ... FAILED"));
        assert!(is_news("thread 'x' panicked"));
    }
}
