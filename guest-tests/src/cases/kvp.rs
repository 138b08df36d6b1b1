// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Data exchange with the distribution's own `hv_kvp_daemon`.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

mod many;
mod told;

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::services::{boot, load};
use crate::ensure;
use crate::suite::{Case, Context, Control, Failure, Outcome, Vm};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "kvp-items",
        "items of all lengths, set, read back on both sides byte for byte, deleted",
        items,
    )
    .within(400),
    Case::new(
        "kvp-daemon",
        "without its daemon no-daemon within 2 s, and items again when it is back",
        daemon,
    ),
    Case::new(
        "kvp-unwatched",
        "a daemon that stops while nobody watches is known by the first status",
        unwatched,
    ),
    Case::new(
        "kvp-killed",
        "a daemon killed in the middle of a transfer loses no later request",
        killed,
    ),
    Case::new(
        "kvp-guest",
        "the guest's own items and what it tells of itself",
        guest,
    ),
    Case::new(
        "kvp-host-items",
        "the guest's daemon keeps what Hyper-V tells of host and VM, also after a restart",
        told::host_items,
    ),
    Case::new(
        "kvp-many",
        "4096 items of the longest texts are listed, in little memory, beside 64 who do not read",
        many::many,
    )
    .once()
    .within(600),
];

/// Of the guest's daemon, from its start on.
const READY: Duration = Duration::from_secs(10);
/// Of the NIC that a guest has.
const MAC: &str = "52:54:00:12:34:57";
/// A record in a pool's file.
const KEY: usize = 512;
const VALUE: usize = 2048;
/// The most UTF-16 units that they have without the zero that ends them.
const KEY_UNITS: usize = 255;
const VALUE_UNITS: usize = 1023;
/// Of one to four bytes.
const LETTERS: [&str; 4] = ["\u{1f980}", "a", "\u{e4}", "\u{20ac}"];

fn start(vm: &mut Vm, control: &Control) -> Outcome {
    vm.sh_ok("hv_kvp_daemon")?;
    control.until_ready(&["kvp"], READY).map(drop)
}

fn pool_file(pool: u8) -> String {
    format!("/var/lib/hyperv/.kvp_pool_{pool}")
}

fn put(control: &Control, key: &str, value: &str) -> Outcome {
    let path = format!("/v1/kvp/external/{}", vmm_path(key));
    let (status, answer) = control.ask("PUT", &path, &json!({ "value": value }).to_string())?;
    ensure!(status == 200, "setting {key:?}: {status} {answer}");
    Ok(())
}

fn vmm_path(key: &str) -> String {
    let mut path = String::new();
    for byte in key.bytes() {
        path += "%";
        path.extend(
            [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0')),
        );
    }
    path
}

fn listed(control: &Control, pool: &str) -> Outcome<Vec<(String, String)>> {
    let mut items = Vec::new();
    let mut target = format!("/v1/kvp/{pool}");
    loop {
        let (status, answer) = control.ask("GET", &target, "")?;
        ensure!(status == 200, "listing {pool}: {status} {answer}");
        ensure!(answer["unreadable"] == 0, "not all of {pool} can be read");
        items.extend(answer["items"].as_array().cloned().unwrap_or_default());
        let next = answer["next"].as_u64();
        ensure!(
            answer["cut"] == next.is_some(),
            "not all of {pool} was listed"
        );
        match next {
            Some(next) => target = format!("/v1/kvp/{pool}?from={next}"),
            None => break,
        }
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(items
        .iter()
        .map(|item| (text(&item["key"]), text(&item["value"])))
        .collect())
}

/// Whether the guest's file has these items in this order. What is behind the
/// zero that ends a text is the daemon's memory.
fn same_file(
    context: &Context,
    vm: &mut Vm,
    file: &str,
    items: &[(String, String)],
) -> Outcome<bool> {
    let path = context.dir.join("expected");
    let lines: Vec<String> = items
        .iter()
        .map(|(key, value)| format!("{key}\n{value}\n"))
        .collect();
    fs::write(&path, lines.concat())?;
    let sum = Command::new("sha256sum").arg(&path).output()?;
    let ours = String::from_utf8_lossy(&sum.stdout).into_owned();
    let theirs = vm.sh_ok(&format!("/init kvp-pool {file} | sha256sum"))?;
    Ok(ours.split(' ').next() == theirs.split(' ').next())
}

fn items(context: &Context) -> Outcome {
    let (mut vm, control) = boot(context, |setup| {
        setup.args(&["--kvp", "first=from the start"])
    })?;
    load(&mut vm)?;
    start(&mut vm, &control)?;
    let mut all = vec![("first".to_owned(), "from the start".to_owned())];
    // Every length of keys comes, and with --long every length of values.
    let rounds = context.times(1, 5);
    let mut took = Duration::ZERO;
    for round in 0..usize::try_from(rounds).unwrap_or(1) {
        all.truncate(1);
        for length in 1..=KEY_UNITS {
            let value = match rounds {
                1 => length * 4 + 3,
                _ => ((length - 1) * 5 + round) % (VALUE_UNITS + 1),
            };
            all.push((
                text(LETTERS[length % 4], length, KEY - 1),
                text(LETTERS[(length + round) % 4], value, VALUE - 1),
            ));
        }
        let began = Instant::now();
        for (key, value) in all.iter().skip(1) {
            put(&control, key, value)?;
        }
        took += began.elapsed();
        ensure!(
            same_file(context, &mut vm, &pool_file(0), &all)?,
            "the guest's file is not what was set"
        );
        let list = listed(&control, "external")?;
        let other = list.iter().zip(&all).find(|(is, should)| is != should);
        ensure!(
            list.len() == all.len() && other.is_none(),
            "{} items are listed, the first other one is {other:?}",
            list.len()
        );
    }
    // What is too long is refused, and nothing else suffers.
    for (key, value) in [
        ("k".repeat(256), "v".into()),
        ("k".into(), "v".repeat(1024)),
    ] {
        let path = format!("/v1/kvp/external/{key}");
        let (status, answer) = control.ask("PUT", &path, &json!({ "value": value }).to_string())?;
        ensure!(status == 400, "too long, and {status} {answer}");
    }
    for (number, expected) in [("u32", "4294967295"), ("u64", "18446744073709551615")] {
        control.ok(&["kvp", "set", number, expected, "--type", number])?;
        let said = control.ok(&["kvp", "get", number])?;
        ensure!(said.trim() == expected, "{number}: {said}");
        let there = vm.sh_ok(&format!("grep -a -c {expected} {}", pool_file(0)))?;
        ensure!(
            there == "1",
            "{number} is {there} times in the guest's file"
        );
        control.ok(&["kvp", "delete", number])?;
    }
    for (key, _) in all.iter().skip(1) {
        let path = format!("/v1/kvp/external/{}", vmm_path(key));
        let (status, answer) = control.ask("DELETE", &path, "{}")?;
        ensure!(status == 200, "deleting {key:?}: {status} {answer}");
    }
    all.truncate(1);
    ensure!(
        same_file(context, &mut vm, &pool_file(0), &all)?,
        "after deleting, the guest's file has more than one item"
    );
    let ran = control.run(&["kvp", "delete", "no such key"])?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("not-found"),
        "deleting what is not there: {ran:?}"
    );
    super::vmbus::note(&format!(
        "{} items set in {:.1} s",
        u64::try_from(KEY_UNITS).unwrap_or(0) * rounds,
        took.as_secs_f64()
    ));
    vm.power_off()
}

/// A text of so many UTF-16 units, in as many of these letters as fit into so
/// many bytes; the rest is plain.
fn text(letter: &str, units: usize, most: usize) -> String {
    let (bytes, wide) = (letter.len(), letter.encode_utf16().count());
    let fit = match bytes.saturating_sub(wide) {
        0 => units,
        more => most.saturating_sub(units) / more,
    };
    let count = fit.min(units / wide);
    letter.repeat(count) + &"x".repeat(units - count * wide)
}

fn daemon(context: &Context) -> Outcome {
    let (mut vm, control) = boot(context, |setup| setup.args(&["--kvp", "a=1"]))?;
    load(&mut vm)?;
    control.until("kvp no-daemon", READY, |vm| {
        let services = vm["services"].as_array().cloned().unwrap_or_default();
        let mut all = services.iter();
        all.any(|entry| entry["name"] == "kvp" && entry["state"] == "no-daemon")
    })?;
    no_daemon(&control)?;
    for round in 0..3 {
        start(&mut vm, &control)?;
        wait_item(&mut vm, "1")?;
        control.ok(&["kvp", "set", "a", "1"])?;
        // A new one that has lost its files gets the items all the same.
        vm.sh_ok("killall -9 hv_kvp_daemon; rm -f /var/lib/hyperv/.kvp_pool_*")?;
        if round > 0 {
            thread::sleep(Duration::from_secs(1));
        }
        no_daemon(&control)?;
    }
    start(&mut vm, &control)?;
    wait_item(&mut vm, "1")?;
    // A daemon that hangs is the guest's to time out.
    vm.sh_ok("killall -STOP hv_kvp_daemon")?;
    let began = Instant::now();
    let ran = control.run(&["kvp", "get", "--pool", "auto", "OSName"])?;
    let took = began.elapsed();
    ensure!(ran.code == 1, "a daemon that hangs: {ran:?}");
    vm.sh_ok("killall -CONT hv_kvp_daemon")?;
    let began = Instant::now();
    while control
        .run(&["kvp", "get", "--pool", "auto", "OSName"])?
        .code
        != 0
    {
        ensure!(began.elapsed() < READY, "it does not go on");
        thread::sleep(Duration::from_millis(200));
    }
    super::vmbus::note(&format!(
        "a daemon that hangs: {:.0} s, {}",
        took.as_secs_f64(),
        ran.stderr.trim()
    ));
    vm.power_off()
}

/// Without an event log, which watches all the time.
fn unwatched(context: &Context) -> Outcome {
    let control = Control::new(context);
    let socket = control.socket().display().to_string();
    let setup = context.setup().cmdline("agent.modules=hv_utils");
    let (command, events) = setup.args(&["--api-socket", &socket]).command();
    let mut silent = Command::new(command.get_program());
    for arg in command.get_args() {
        if arg != "--event-log" && arg != events.as_os_str() {
            silent.arg(arg);
        }
    }
    let mut vm = Vm::start(silent, events)?;
    vm.wait_agent()?;
    load(&mut vm)?;
    start(&mut vm, &control)?;
    let state = || -> Outcome<(Value, Duration)> {
        let began = Instant::now();
        let status = control.status()?;
        let services = status["services"].as_array().cloned().unwrap_or_default();
        let kvp = services.into_iter().find(|entry| entry["name"] == "kvp");
        Ok((kvp.unwrap_or_default()["state"].clone(), began.elapsed()))
    };
    // Longer than whoever has asked counts as watching.
    thread::sleep(Duration::from_secs(12));
    vm.sh_ok("killall -9 hv_kvp_daemon")?;
    thread::sleep(Duration::from_secs(6));
    let (said, took) = state()?;
    ensure!(said == "no-daemon", "without its daemon: {said}");
    ensure!(
        Duration::from_secs(1) < took && took < Duration::from_secs(4),
        "it took {took:?}: somebody looked before, or the answer did not wait"
    );
    super::vmbus::note(&format!("known after {took:.1?}"));
    vm.sh_ok("hv_kvp_daemon")?;
    thread::sleep(Duration::from_secs(1));
    let (said, _) = state()?;
    ensure!(said == "ready", "with its daemon again: {said}");
    // A question that waits is answered though the machine ends meanwhile.
    thread::sleep(Duration::from_secs(12));
    vm.sh_ok("killall -9 hv_kvp_daemon")?;
    thread::sleep(Duration::from_secs(6));
    let asked = {
        let control = control.clone();
        thread::spawn(move || control.ask("GET", "/v1/vm", ""))
    };
    thread::sleep(Duration::from_millis(500));
    ensure!(!asked.is_finished(), "the answer did not wait");
    control.ok(&["reset"])?;
    let (status, answer) = asked.join().map_err(|_| Failure("no answer".into()))??;
    ensure!(status == 200, "asked before a reset: {status} {answer}");
    control.ok(&["kill"])?;
    vm.expect_exit(130)
}

fn no_daemon(control: &Control) -> Outcome {
    let began = Instant::now();
    let ran = control.run(&["kvp", "list", "--pool", "guest"])?;
    let took = began.elapsed();
    ensure!(
        ran.code == 1 && ran.stderr.contains("no-daemon"),
        "without a daemon: {ran:?}"
    );
    ensure!(took < Duration::from_secs(2), "it took {took:?}");
    Ok(())
}

fn wait_item(vm: &mut Vm, value: &str) -> Outcome {
    let began = Instant::now();
    let script = format!("tail -c +513 {} | tr -d '\\000'", pool_file(0));
    loop {
        let shell = vm.sh(&script)?;
        if shell.stdout == value {
            return Ok(());
        }
        ensure!(
            began.elapsed() < Duration::from_secs(20),
            "the item has not come: {:?}",
            shell.stdout
        );
        thread::sleep(Duration::from_millis(300));
    }
}

fn killed(context: &Context) -> Outcome {
    let rounds = context.times(10, 50);
    let (mut vm, control) = boot(context, |setup| setup)?;
    load(&mut vm)?;
    start(&mut vm, &control)?;
    let mut failed = 0;
    for round in 0..rounds {
        let setter = {
            let control = control.clone();
            thread::spawn(move || {
                let mut failed = 0;
                for n in 0..8 {
                    let ran = control.run(&["kvp", "set", "k", &n.to_string()]);
                    failed += u32::from(!ran.is_ok_and(|ran| ran.code == 0));
                }
                failed
            })
        };
        vm.sh_ok("killall -9 hv_kvp_daemon; hv_kvp_daemon")?;
        failed += setter.join().map_err(|_| Failure("no setter".into()))?;
        control.until_ready(&["kvp"], READY)?;
        let value = round.to_string();
        control.ok(&["kvp", "set", "after", &value])?;
        let said = control.ok(&["kvp", "get", "after"])?;
        ensure!(said.trim() == value, "round {round}: {said:?}");
    }
    super::vmbus::note(&format!("{rounds} kills, {failed} requests lost in them"));
    vm.power_off()
}

fn guest(context: &Context) -> Outcome {
    let (mut vm, control) = boot(context, |setup| setup)?;
    vm.sh_ok("printf 'NAME=\"Our Guest\"\\nVERSION_ID=\"4.2\"\\n' > /etc/os-release")?;
    vm.sh_ok("hostname guest.example")?;
    // The daemon tells nothing of loopback.
    vm.sh_ok(&format!(
        "modprobe dummy numdummies=0; ip link add dummy0 address {MAC} type dummy && \
         ip addr add 192.0.2.7/24 dev dummy0 && ip addr add 2001:db8::7/64 dev dummy0 && \
         ip link set dummy0 up"
    ))?;
    load(&mut vm)?;
    start(&mut vm, &control)?;
    let release = vm.sh_ok("uname -r")?;
    let version = release.split('-').next().unwrap_or_default().to_owned();
    let auto = listed(&control, "auto")?;
    let value = |key: &str| {
        let item = auto.iter().find(|item| item.0 == key);
        item.map(|item| item.1.clone()).unwrap_or_default()
    };
    for (key, expected) in [
        ("OSName", "Our Guest"),
        ("OSMajorVersion", "4.2"),
        ("OSBuildNumber", release.as_str()),
        ("OSVersion", version.as_str()),
        ("ProcessorArchitecture", "x86_64"),
        ("IntegrationServicesVersion", "3.1"),
    ] {
        ensure!(
            value(key) == expected,
            "{key} is {:?} instead of {expected:?}",
            value(key)
        );
    }
    ensure!(auto.len() == 10, "intrinsic items: {auto:?}");
    ensure!(
        value("FullyQualifiedDomainName") == vm.sh_ok("hostname -f")?,
        "its own name: {auto:?}"
    );
    for (key, address) in [
        ("NetworkAddressIPv4", "192.0.2.7"),
        ("NetworkAddressIPv6", "2001:db8::7"),
    ] {
        let told = value(key);
        ensure!(
            told.split(';').any(|one| one == address),
            "{key} is {told:?} and has no {address}"
        );
    }
    let (status, ip) = control.ask("GET", &format!("/v1/ip/{MAC}"), "")?;
    let has = |address: &str| {
        let all = ip["addresses"].as_array();
        all.is_some_and(|all| all.iter().any(|one| one == address))
    };
    ensure!(
        status == 200 && has("192.0.2.7/24") && has("2001:db8::7/64"),
        "the addresses of {MAC}: {status} {ip}"
    );
    // An item as a program of the guest writes it, and one that is no UTF-8.
    let record = |key: &str, value: &str| {
        format!(
            "{{ printf '{key}' ; head -c {KEY} /dev/zero; }} | head -c {KEY}; \
             {{ printf '{value}' ; head -c {VALUE} /dev/zero; }} | head -c {VALUE}; "
        )
    };
    let script = record("made", "in the guest")
        + &record("bad", "\\377\\376")
        + &record("\\303\\244", "\\360\\237\\246\\200");
    vm.sh_ok(&format!("({script}) > {}", pool_file(1)))?;
    let (status, answer) = control.ask("GET", "/v1/kvp/guest", "")?;
    ensure!(status == 200, "the guest's pool: {status} {answer}");
    let expected = json!([
        {"key": "made", "value": "in the guest"},
        {"key": "\u{e4}", "value": "\u{1f980}"},
    ]);
    ensure!(
        answer["items"] == expected && answer["unreadable"] == 1,
        "the guest's pool: {answer}"
    );
    let ran = control.run(&["kvp", "set", "OSName", "x", "--pool", "auto"])?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("unsupported"),
        "writing what the guest tells: {ran:?}"
    );
    let ran = control.run(&["ip", "set", "52:54:00:12:34:56", "10.0.0.2/24"])?;
    ensure!(
        ran.code == 1 && ran.stderr.contains("guest-error"),
        "setting an address without a Hyper-V NIC: {ran:?}"
    );
    let ip = control.run(&["ip", "get", "00:00:00:00:00:00"])?;
    super::vmbus::note(&format!(
        "{}; lo: {}{}",
        ran.stderr.trim(),
        ip.stdout.replace('\n', "; "),
        ip.stderr.trim()
    ));
    vm.power_off()
}
