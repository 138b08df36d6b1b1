// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl shutdown`: asks the guest, tells what it says, and how the VM ended.
//!
//! ```text
//!   ask ─► accepted by the guest ─► events ─┬─ powered-off, exit ─► stopped
//!    │                                      ├─ exit, for another reason ─► that is told
//!    └─ refused, too late ─► --then-kill    └─ nothing in time
//! ```
//! That a VM is gone does not say that its guest has shut down: `vmm --timeout`,
//! another user or a crash may have ended it. Its last events tell.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

use std::io::{Write as _, stdout};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cli::Shutdown;
use super::client::{AS_KNOWN, Client, Events, Next};
use super::commands::{parse, power, print};
use super::{CtlError, tell};
use crate::api::types::{PowerAction, PowerBody, VmState, VmStatus};
use crate::escape;

/// Between two looks whether a process is gone.
const LOOK: Duration = Duration::from_millis(100);
/// An answer that was sent in time may come so much later.
const GRACE: Duration = Duration::from_secs(1);

/// Asks the guest, and waits until it has done it.
pub(super) fn shutdown(vm: &Client, how: &Shutdown, json: bool) -> Result<(), CtlError> {
    let action = if how.reboot {
        PowerAction::Reboot
    } else if how.hibernate {
        PowerAction::Hibernate
    } else {
        PowerAction::Shutdown
    };
    match ask(vm, action, how, json) {
        Ok(done) => {
            if !json {
                writeln!(stdout(), "{done}")?;
            }
            Ok(())
        }
        Err(error) if how.then_kill && vm.is_there() => {
            tell(format_args!("{error}: ending the VM"));
            let body = PowerBody {
                as_shutdown: action == PowerAction::Shutdown,
                ..PowerBody::of(PowerAction::Kill)
            };
            let soon = vm.until(Instant::now() + GRACE * 10);
            power(&soon, &body, "ended", json)
        }
        Err(error) => Err(error),
    }
}

fn ask(
    vm: &Client,
    action: PowerAction,
    how: &Shutdown,
    json: bool,
) -> Result<&'static str, CtlError> {
    let end = Instant::now() + how.timeout;
    let soon = vm.until(end + GRACE);
    let timeout_ms = u64::try_from(how.timeout.as_millis()).unwrap_or(u64::MAX);
    let body = PowerBody {
        force: how.force,
        timeout_ms,
        ..PowerBody::of(action)
    };
    let before: VmStatus = parse(&soon.get(AS_KNOWN)?)?;
    // From before the request on: the end may come right behind the answer.
    let events = soon.events()?;
    let answer = soon.send("PUT", "/v1/vm/power", &body)?;
    print(json, &answer, || Ok("accepted by the guest\n".into()))?;
    wait_done(vm, events, action, before.uptime_ms, end)
}

/// Follows what happens until the guest has done it.
fn wait_done(
    vm: &Client,
    mut events: Events,
    action: PowerAction,
    since_ms: u64,
    end: Instant,
) -> Result<&'static str, CtlError> {
    let mut story = Story::new(action);
    loop {
        match events.next(end)? {
            Next::Event(event) => {
                // Others are of before the request.
                if event["uptime_ms"].as_u64() >= Some(since_ms)
                    && let Some(done) = story.hear(&event)
                {
                    if story.ended {
                        wait_gone(vm, end);
                    }
                    return done;
                }
            }
            Next::End => {
                wait_gone(vm, end);
                return Err(ended(
                    "its process ended without a word: it was killed, or failed",
                ));
            }
            Next::Late => return Err(CtlError::Timeout(late(vm))),
        }
    }
}

/// `vmm` has said that it ends. Its socket goes last.
fn wait_gone(vm: &Client, end: Instant) {
    let end = end.max(Instant::now() + GRACE);
    while vm.is_there() && Instant::now() < end {
        thread::sleep(LOOK / 10);
    }
}

/// What it is that was not done in time.
fn late(vm: &Client) -> String {
    let status = vm.until(Instant::now() + GRACE).get(AS_KNOWN);
    let state = status.and_then(|status| parse::<VmStatus>(&status));
    match state.map(|status| status.state) {
        Ok(VmState::Paused) => {
            "the guest accepted, and the VM is paused (vmmctl resume lets it go on)".into()
        }
        _ => "the guest accepted, and has not done it in time".into(),
    }
}

fn ended(why: &str) -> CtlError {
    CtlError::Some(format!("the guest has not shut down: {why}"))
}

/// What is heard of a VM on its way to the end.
struct Story {
    action: PowerAction,
    /// What came last of all that can end a machine.
    cause: Option<Value>,
    /// The process ends.
    ended: bool,
}

impl Story {
    fn new(action: PowerAction) -> Self {
        Self {
            action,
            cause: None,
            ended: false,
        }
    }

    /// How it came out, if this event decides it.
    fn hear(&mut self, event: &Value) -> Option<Result<&'static str, CtlError>> {
        match event["event"].as_str().unwrap_or_default() {
            "exit" => {
                self.ended = true;
                Some(self.end(event["code"].as_u64().unwrap_or_default()))
            }
            "running" => match self.cause() {
                "reset" if self.action == PowerAction::Reboot => Some(Ok("rebooted")),
                "powered-off" if self.action != PowerAction::Reboot => {
                    Some(Ok("stopped, and started again (vmm --on-shutdown reset)"))
                }
                "crashed" => Some(Err(ended("it crashed, and started again"))),
                "reset" => Some(Err(ended("it was reset"))),
                _ => None,
            },
            "powered-off" | "reset" | "crashed" | "timed-out" | "interrupted" | "host-failed" => {
                self.cause = Some(event.clone());
                None
            }
            _ => None,
        }
    }

    fn cause(&self) -> &str {
        let cause = self.cause.as_ref();
        cause
            .and_then(|cause| cause["event"].as_str())
            .unwrap_or_default()
    }

    fn end(&self, code: u64) -> Result<&'static str, CtlError> {
        let told = |key: &str| {
            let cause = self.cause.as_ref().and_then(|cause| cause[key].as_str());
            escape::line(cause.unwrap_or("somebody"))
        };
        let why = match self.cause() {
            "powered-off" => return Ok("stopped"),
            "reset" if self.action == PowerAction::Reboot => {
                return Ok("rebooted, and vmm ended (--on-reset exit)");
            }
            "reset" => "it was reset, and vmm ended (--on-reset exit)".into(),
            "crashed" => "it crashed".into(),
            "timed-out" => "vmm --timeout passed and ended the VM".into(),
            "interrupted" => format!("the VM was ended by {}", told("by")),
            "host-failed" => format!("vmm failed: {}", told("message")),
            _ => "the VM ended".into(),
        };
        Err(ended(&format!("{why} (vmm exits with {code})")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(action: PowerAction, events: &[Value]) -> Result<&'static str, String> {
        let mut story = Story::new(action);
        let heard = events.iter().find_map(|event| story.hear(event));
        heard.unwrap().map_err(|error| error.to_string())
    }

    #[test]
    fn only_a_guest_that_powered_off_has_stopped() {
        let exit = |code| json!({"event": "exit", "code": code});
        let event = |name: &str| json!({"event": name, "by": "SIGTERM", "message": "no memory"});
        let stop = PowerAction::Shutdown;
        let after = |name| told(stop, &[event(name), exit(7)]);
        assert_eq!(after("powered-off"), Ok("stopped"));
        for (name, why) in [
            ("timed-out", "vmm --timeout passed"),
            ("interrupted", "ended by SIGTERM"),
            ("host-failed", "vmm failed: no memory"),
            ("crashed", "it crashed"),
            ("reset", "it was reset"),
            ("paused", "the VM ended"),
        ] {
            let error = after(name).unwrap_err();
            assert!(
                error.contains(why) && error.contains("exits with 7"),
                "{error}"
            );
        }
        // What came last counts.
        let both = [event("crashed"), event("timed-out"), exit(30)];
        assert!(told(stop, &both).unwrap_err().contains("--timeout"));
    }

    #[test]
    fn what_starts_again_has_done_what_it_was_asked_for_or_not() {
        let event = |name: &str| json!({"event": name});
        let again = |action, name| told(action, &[event(name), event("running")]);
        assert_eq!(again(PowerAction::Reboot, "reset"), Ok("rebooted"));
        let stop = PowerAction::Shutdown;
        assert!(
            again(stop, "powered-off")
                .unwrap()
                .contains("started again")
        );
        assert!(again(stop, "reset").unwrap_err().contains("reset"));
        assert!(
            again(PowerAction::Reboot, "crashed")
                .unwrap_err()
                .contains("crashed")
        );
    }
}
