// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each command of `vmmctl` does.

use std::io::{Write as _, stdout};
use std::thread;
use std::time::{Duration, Instant};

use ics_devices::ServiceKind;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::cli::{Args, Command, Condition, Ic, Time};
use super::client::{AS_KNOWN, Client};
use super::shutdown::shutdown;
use super::{CtlError, connect, cp, forward, hvsocket, kvp, list, show, ssh, vss};
use crate::api::types::{PowerAction, PowerBody, ServiceEntry, ServicePatch, VmState, VmStatus};
use crate::completions::completions;
use crate::escape;
use crate::man;
use crate::services::RESUME;

/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(100);

/// A status may wait so long for what the guest's daemons answer.
const LOOK_AT_DAEMONS: Duration = Duration::from_secs(3);

/// Runs a command.
pub fn run(args: &Args) -> Result<(), CtlError> {
    match &args.command {
        Command::List { names } => return list::list(*names, args.json),
        Command::Completions { shell, program } => {
            let mut out = stdout().lock();
            out.write_all(completions(*shell, *program).as_bytes())?;
            return Ok(out.flush()?);
        }
        Command::Man { dir } => return Ok(man::write(dir)?),
        // Before a VM is looked for: it makes no sense with any.
        Command::Cp(what) => what.check()?,
        Command::Wait { condition, timeout } => {
            let find = || Client::find(args.vm.as_deref(), args.socket.as_deref());
            return wait(find, condition, *timeout);
        }
        _ => {}
    }
    let vm = Client::find(args.vm.as_deref(), args.socket.as_deref())?;
    match &args.command {
        Command::Status => {
            let status = vm.get("/v1/vm")?;
            print(args.json, &status, || Ok(show::status(&parse(&status)?)))
        }
        Command::Shutdown(how) => shutdown(&vm, how, args.json),
        Command::Kill => power(&vm, &PowerBody::of(PowerAction::Kill), "ended", args.json),
        Command::Reset => power(&vm, &PowerBody::of(PowerAction::Reset), "reset", args.json),
        Command::Pause => power(&vm, &PowerBody::of(PowerAction::Pause), "paused", args.json),
        Command::Resume => power(
            &vm,
            &PowerBody::of(PowerAction::Resume),
            "running again",
            args.json,
        ),
        Command::Nmi => power(&vm, &PowerBody::of(PowerAction::Nmi), "NMI sent", args.json),
        Command::Ic(Ic::List) => {
            let services = vm.get("/v1/services")?;
            print(args.json, &services, || {
                Ok(show::services(&parse::<Vec<_>>(&services)?))
            })
        }
        Command::Ic(Ic::Enable { name }) => enable(&vm, name, true, args.json),
        Command::Ic(Ic::Disable { name }) => enable(&vm, name, false, args.json),
        Command::Time { command: None } => {
            let time = vm.get("/v1/time")?;
            print(args.json, &time, || Ok(show::clock(&parse(&time)?)))
        }
        Command::Time {
            command: Some(Time::Sync),
        } => {
            let done = vm.send("POST", "/v1/time/sync", &json!({}))?;
            print(
                args.json,
                &done,
                || Ok("the guest's clock was set\n".into()),
            )
        }
        Command::Connect { service } => connect::connect(&vm, service),
        Command::Kvp(what) => kvp::kvp(&vm, what, args.json),
        Command::Ip(what) => kvp::ip(&vm, what, args.json),
        Command::Vss(what) => vss::run(&vm, what, args.json),
        Command::Hvsocket(what) => hvsocket::run(&vm, what, args.json),
        Command::Cp(what) => cp::run(&vm, what, args.json),
        Command::Ssh(what) => ssh::run(&vm, what),
        Command::Events { follow } => {
            let target = format!("/v1/events?follow={follow}");
            follow_lines(&vm, &target, args.json, show::event)
        }
        Command::Trace { lines: None } => follow_lines(&vm, "/v1/trace", args.json, show::traffic),
        Command::Trace { lines: Some(count) } => {
            let target = format!("/v1/trace?lines={count}");
            follow_lines(&vm, &target, args.json, show::traffic)
        }
        Command::Forward(what) => forward::run(&vm, what, args.json),
        Command::List { .. }
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Wait { .. } => Ok(()),
    }
}

/// Prints lines as they come: as they are, or what they mean to people.
fn follow_lines(
    vm: &Client,
    target: &str,
    json: bool,
    text: fn(&Value) -> String,
) -> Result<(), CtlError> {
    vm.lines(target, |line| {
        let mut out = stdout().lock();
        match serde_json::from_str(line) {
            Ok(value) if !json => writeln!(out, "{}", text(&value))?,
            _ => writeln!(out, "{}", escape::json(line.to_owned()))?,
        }
        out.flush()
    })?;
    let endless = !target.contains("lines=") && !target.contains("follow=false");
    if endless && vm.is_there() {
        let why = "the VM has let this reader go: it was too slow";
        return Err(CtlError::Refused(why.into()));
    }
    Ok(())
}

pub(super) fn power(vm: &Client, body: &PowerBody, done: &str, json: bool) -> Result<(), CtlError> {
    let answer = vm.send("PUT", "/v1/vm/power", body)?;
    print(json, &answer, || Ok(format!("{done}\n")))
}

fn enable(vm: &Client, name: &str, enabled: bool, json: bool) -> Result<(), CtlError> {
    let patch = ServicePatch { enabled };
    let entry = vm.send("PATCH", &format!("/v1/services/{name}"), &patch)?;
    let word = if enabled { "enabled" } else { "disabled" };
    print(json, &entry, || Ok(format!("{name} {word}\n")))
}

/// Waits also for the VM, which may be about to start.
fn wait(
    find: impl Fn() -> Result<Client, CtlError>,
    condition: &Condition,
    limit: Duration,
) -> Result<(), CtlError> {
    let end = Instant::now() + limit;
    let mut missing = None;
    let vm = loop {
        match find() {
            Ok(vm) if vm.is_there() || *condition == Condition::Stopped => break vm,
            Ok(_) => {}
            Err(CtlError::NoVm(why)) if *condition != Condition::Stopped => missing = Some(why),
            Err(error) => return Err(error),
        }
        if Instant::now() >= end {
            let seconds = limit.as_secs_f64();
            let what = missing.unwrap_or_else(|| "nobody answers at the socket".into());
            return Err(CtlError::Timeout(format!("{what}, after {seconds} s")));
        }
        thread::sleep(LOOK);
    };
    loop {
        // Who only wants to know of the end has no use for a look at the daemons.
        let target = match condition {
            Condition::Stopped => AS_KNOWN,
            _ => "/v1/vm",
        };
        let unmet = match vm.until(end + LOOK_AT_DAEMONS).get(target) {
            Ok(status) => unmet(condition, &parse(&status)?),
            Err(error) if vm.is_there() => return Err(error),
            Err(_) if *condition == Condition::Stopped => None,
            Err(error) => return Err(error),
        };
        let Some(unmet) = unmet else {
            return Ok(());
        };
        if Instant::now() >= end {
            return Err(CtlError::Timeout(format!(
                "condition not met within {} s: {unmet}",
                limit.as_secs_f64()
            )));
        }
        thread::sleep(LOOK);
    }
}

/// What the condition lacks; nothing if it is met.
fn unmet(condition: &Condition, vm: &VmStatus) -> Option<String> {
    let state = |service: &ServiceEntry| {
        let detail = match service.detail.as_str() {
            "" => String::new(),
            detail => format!(" ({})", escape::line(detail)),
        };
        format!("{} is {}{detail}", service.name, service.state)
    };
    let what = match condition {
        Condition::Ready if vm.vmbus.version.is_none() => {
            "the guest is not connected to VMBus (is hv_vmbus loaded?)".into()
        }
        Condition::Ready => {
            // Hyper-V sockets have no driver whose readiness could be seen, and a
            // guest need not have the daemons.
            let vsock = ServiceKind::Vsock.name();
            let is_up = |state: &str| matches!(state, "ready" | "no-daemon");
            let services = vm.services.iter();
            let lacking = services
                .filter(|one| one.enabled && one.name != vsock && !is_up(&one.state))
                .map(state)
                .collect::<Vec<_>>();
            if lacking.is_empty() {
                return None;
            }
            lacking.join(", ")
        }
        Condition::Heartbeat if vm.health == "ok" => return None,
        Condition::Heartbeat => format!("the guest's health is {}", vm.health),
        Condition::Service(name) => {
            match vm.services.iter().find(|service| service.name == *name) {
                Some(service) if service.state == "ready" => return None,
                Some(service) => state(service),
                None => format!("the VM does not know the service {name}"),
            }
        }
        Condition::Stopped => "the VM has not ended".into(),
    };
    Some(if vm.state == VmState::Paused {
        format!("{what}; the VM is paused{RESUME}")
    } else {
        what
    })
}

/// Prints the answer as it is, or what it means to people.
pub(super) fn print(
    json: bool,
    answer: &Value,
    text: impl FnOnce() -> Result<String, CtlError>,
) -> Result<(), CtlError> {
    let text = if json {
        format!("{}\n", escape::json(answer.to_string()))
    } else {
        text()?
    };
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

pub(super) fn parse<T: DeserializeOwned>(answer: &Value) -> Result<T, CtlError> {
    serde_json::from_value(answer.clone()).map_err(|error| CtlError::Protocol(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_vm_that_is_about_to_start_is_waited_for() {
        let limit = LOOK * 2;
        let missing = || Err(CtlError::NoVm("no VM named 'x' is running".into()));
        let start = Instant::now();
        let said = wait(missing, &Condition::Ready, limit);
        assert!(start.elapsed() >= limit);
        assert!(
            matches!(&said, Err(CtlError::Timeout(why)) if why.contains("'x'")),
            "{said:?}"
        );
        let said = wait(missing, &Condition::Stopped, limit);
        assert!(matches!(said, Err(CtlError::NoVm(_))), "{said:?}");
        let many = || Err(CtlError::WhichVm("two".into()));
        let said = wait(many, &Condition::Ready, limit);
        assert!(matches!(said, Err(CtlError::WhichVm(_))), "{said:?}");
        let nobody = || Ok(Client::at(Path::new("/nowhere/api.sock")));
        let said = wait(nobody, &Condition::Heartbeat, limit);
        assert!(matches!(said, Err(CtlError::Timeout(_))), "{said:?}");
        let said = wait(nobody, &Condition::Stopped, limit);
        assert!(said.is_ok(), "{said:?}");
    }

    fn status(state: &str, services: &[(&str, &str)]) -> VmStatus {
        let services = services.iter().map(
            |(name, state)| json!({"name": name, "enabled": true, "state": state, "detail": "why"}),
        );
        let status = json!({
            "name": "t", "pid": 1, "state": state, "uptime_ms": 0, "resets": 0, "vcpus": 1,
            "memory_mib": 1, "synic": "user", "health": "lost",
            "vmbus": {"version": "5.3", "channels_open": 0, "violations": 0},
            "services": services.collect::<Vec<_>>(),
        });
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn what_is_missing_is_named() {
        let services = [("kvp", "no-daemon"), ("vss", "open"), ("vsock", "offered")];
        let mut vm = status("running", &services);
        let lacks = |condition, vm: &VmStatus| unmet(&condition, vm).unwrap_or_default();
        let kvp = || Condition::Service("kvp".into());
        assert_eq!(lacks(Condition::Ready, &vm), "vss is open (why)");
        assert_eq!(lacks(kvp(), &vm), "kvp is no-daemon (why)");
        assert_eq!(
            lacks(Condition::Heartbeat, &vm),
            "the guest's health is lost"
        );
        assert_eq!(lacks(Condition::Stopped, &vm), "the VM has not ended");
        vm.state = VmState::Paused;
        let said = lacks(Condition::Ready, &vm);
        assert!(said.starts_with("vss is open (why); the VM is paused (vmmctl resume"));
        vm.vmbus.version = None;
        assert!(lacks(Condition::Ready, &vm).contains("not connected to VMBus"));
        let vm = status("running", &[("kvp", "ready"), ("vss", "no-daemon")]);
        assert_eq!(lacks(Condition::Ready, &vm), "");
        assert_eq!(lacks(kvp(), &vm), "");
    }
}
