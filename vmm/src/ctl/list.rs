// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl list`: all VMs, asked at once, so that one that hangs holds up no other.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{AS_KNOWN, Client, running};
use super::commands::{parse, print};
use super::{CtlError, show};

/// How long a VM may take to answer; all are waited for together.
const PATIENCE: Duration = Duration::from_secs(2);
/// What is told of one that does not.
const NO_ANSWER: &str = "no-answer";

/// Runs `vmmctl list`.
pub(super) fn list(names_only: bool, json: bool) -> Result<(), CtlError> {
    let vms = running();
    if names_only {
        let names: Vec<Value> = vms.iter().map(|(name, _)| name.clone().into()).collect();
        return print(json, &Value::Array(names), || {
            let lines = vms.iter().flat_map(|(name, _)| [name.as_str(), "\n"]);
            Ok(lines.collect())
        });
    }
    let clients = vms
        .into_iter()
        .map(|(name, path)| (name, Client::at(&path)));
    let all = Value::Array(ask_all(clients.collect(), PATIENCE));
    print(json, &all, || {
        let rows = all.as_array().into_iter().flatten();
        let rows: Vec<_> = rows
            .map(|vm| match vm.get("state").and_then(Value::as_str) {
                Some(NO_ANSWER) => Ok(Err(vm
                    .get("name")
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned())),
                _ => parse(vm).map(Ok),
            })
            .collect::<Result<_, CtlError>>()?;
        Ok(match rows.as_slice() {
            [] => "no VM is running\n".into(),
            rows => show::vms(rows),
        })
    })
}

/// The status of each VM that there is, in their order.
fn ask_all(vms: Vec<(String, Client)>, patience: Duration) -> Vec<Value> {
    let end = Instant::now() + patience;
    let (sender, answers) = channel();
    let mut all: Vec<Option<Value>> = Vec::new();
    for (at, (name, vm)) in vms.into_iter().enumerate() {
        all.push(Some(json!({"name": name, "state": NO_ANSWER})));
        let sender = sender.clone();
        // One that hangs keeps its thread until this program ends, which is soon.
        thread::spawn(move || {
            let answer = match vm.within(patience).get(AS_KNOWN) {
                Ok(status) => Some(status),
                Err(_) if vm.is_there() => return,
                // One that ends just now is not listed.
                Err(_) => None,
            };
            let _ = sender.send((at, answer));
        });
    }
    drop(sender);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match answers.recv_timeout(left) {
            Ok((at, answer)) => {
                if let Some(slot) = all.get_mut(at) {
                    *slot = answer;
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    all.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    #[test]
    fn those_that_hang_hold_up_nobody() {
        let dir = std::env::temp_dir().join(format!("list-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let mut vms = Vec::new();
        let mut keep = Vec::new();
        for name in ["a-hangs", "b-hangs", "c-answers", "d-hangs", "e-ended"] {
            let path = dir.join(name);
            let listener = UnixListener::bind(&path).unwrap();
            vms.push((name.to_owned(), Client::at(&path)));
            match name {
                "c-answers" => drop(thread::spawn(move || {
                    let (mut client, _) = listener.accept().unwrap();
                    let _ = client.read(&mut [0; 1000]);
                    let body = r#"{"name":"c-answers"}"#;
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    let _ = client.write_all((head + body).as_bytes());
                })),
                "e-ended" => drop(listener),
                _ => keep.push(listener),
            }
        }
        let start = Instant::now();
        let all = ask_all(vms, Duration::from_secs(2));
        let took = start.elapsed();
        // Three that hang, one after the other, would take three times as long.
        assert!(took < Duration::from_secs(5), "{took:?}");
        let told: Vec<_> = all
            .iter()
            .map(|vm| {
                let word = |key| vm.get(key).and_then(Value::as_str).unwrap_or("-");
                (word("name"), word("state"))
            })
            .collect();
        let hangs = |name| (name, NO_ANSWER);
        assert_eq!(
            told,
            [
                hangs("a-hangs"),
                hangs("b-hangs"),
                ("c-answers", "-"),
                hangs("d-hangs")
            ]
        );
        std::fs::remove_dir_all(dir).unwrap();
    }
}
