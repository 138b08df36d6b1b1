// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Seeds from traces of real guests, as `vmm --vmbus-trace` writes them; some are
//! in `traces/`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::control::Control;
use crate::service::Event;

/// More steps are not run.
const MOST: usize = 100;
/// An answer takes eight bytes of an input, of which there are 512.
const MOST_EVENTS: usize = 60;

/// What the guest did on the bus.
pub fn session(trace: &str) -> Vec<Control> {
    let mut lists = BTreeMap::new();
    let mut offers = 0;
    let mut steps = Vec::new();
    for line in lines(trace) {
        let from_guest = line["from"] == "guest";
        let number = |field: &str| small(&line[field]);
        let mut list = || {
            let next = lists.len();
            let known = *lists.entry(line["gpadl"].as_u64()).or_insert(next);
            u8::try_from(known % 256).expect("small")
        };
        if from_guest && line["signal"] == true {
            // Nothing is in the rings here: once is enough.
            let signal = Control::Signal(number("relid"), 0);
            if !steps.contains(&signal) {
                steps.push(signal);
            }
        }
        let Some(message) = line["message"].as_str() else {
            continue;
        };
        if !from_guest {
            if message == "OFFERCHANNEL" {
                // The target itself offers the first.
                offers += 1;
                if offers > 1 {
                    steps.push(Control::Offer(offers - 1));
                }
            }
            if message == "RESCIND_CHANNELOFFER" {
                steps.push(Control::Rescind(number("relid")));
            }
            continue;
        }
        steps.push(match message {
            "INITIATE_CONTACT" => {
                let version = line["version"].as_str().unwrap_or_default();
                let minor = version
                    .split('.')
                    .nth(1)
                    .and_then(|minor| minor.parse().ok());
                Control::Contact(minor.unwrap_or(3), number("target_vcpu"))
            }
            "REQUESTOFFERS" => Control::RequestOffers,
            "GPADL_HEADER" => {
                let pages = line["byte_count"].as_u64().unwrap_or(0) / 4096;
                let beyond = u8::try_from(pages.saturating_sub(1)).unwrap_or(u8::MAX);
                Control::Gpadl(number("relid"), list(), 0, beyond)
            }
            "OPENCHANNEL" => {
                let split = number("downstream_offset");
                Control::Open(number("relid"), list(), split, number("target_vp"))
            }
            "MODIFYCHANNEL" => Control::Modify(number("relid"), number("target_vp")),
            "GPADL_TEARDOWN" => Control::Teardown(number("relid"), list()),
            "CLOSECHANNEL" => Control::Close(number("relid")),
            "RELID_RELEASED" => Control::Released(number("relid")),
            "TL_CONNECT_REQUEST" => Control::Connect(1),
            "UNLOAD" => Control::Unload,
            _ => continue,
        });
    }
    steps.truncate(MOST);
    steps
}

/// What happened on the channel of the service of this name, say `kvp`.
pub fn service(trace: &str, name: &str) -> Vec<Event> {
    let lines: Vec<Value> = lines(trace).collect();
    let Some(relid) = lines
        .iter()
        .find(|line| line["service"]["message"] == name)
        .map(|line| &line["relid"])
    else {
        return Vec::new();
    };
    let mut last = None;
    let mut steps = Vec::new();
    for line in lines.iter().filter(|line| line["relid"] == *relid) {
        let service = &line["service"];
        let now = line["time_us"].as_u64().unwrap_or(0) / 16_000;
        let passed = now - *last.get_or_insert(now);
        if service.is_null() {
            continue;
        }
        if let Ok(passed @ 1..) = u16::try_from(passed) {
            steps.push(Event::Wait(passed));
        }
        last = Some(now);
        if line["from"] == "guest" {
            let status = service["status"].as_u64().unwrap_or(0);
            let status = u32::try_from(status).expect("as in the frame");
            steps.push(Event::Answer(status, 0, Vec::new()));
        } else if let Some(wish) = service["operation"].as_str().and_then(wish) {
            steps.push(Event::Ask(wish));
        }
    }
    steps.truncate(MOST_EVENTS);
    steps
}

/// What to ask for, so that the guest is told this; see [`crate::service`].
fn wish(operation: &str) -> Option<u8> {
    Some(match operation {
        "enumerate" | "check" => 0,
        "get" | "thaw" => 1,
        "delete" => 2,
        "get-ip" => 3,
        "set" => 4,
        "freeze" => 50,
        "start" => 35,
        _ => return None,
    })
}

fn lines(trace: &str) -> impl Iterator<Item = Value> {
    trace
        .lines()
        .map(|line| serde_json::from_str(line).expect("a trace has a JSON object a line"))
}

fn small(number: &Value) -> u8 {
    u8::try_from(number.as_u64().unwrap_or(0)).unwrap_or(u8::MAX)
}
