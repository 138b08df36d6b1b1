// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `docs/openapi.json` against the router, the server and the types behind it.
//! The same description is held against a running guest's answers by the case
//! `api-description` of the guest tests.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::expect_used, clippy::indexing_slicing)]

#[path = "../../guest-tests/src/openapi.rs"]
#[allow(dead_code, unreachable_pub)]
mod openapi;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::unbounded;
use ics_devices::{KvpRequest, VssRequest};
use openapi::{Description, Operation};
use serde_json::{Value, json};
use vmbus::hvsock::service_of_port;
use vmm::api::data::{FileCopy, IpEntry, ItemEntry, ItemList, is_upload, upload};
use vmm::api::http::Request;
use vmm::api::pipe::Pipe;
use vmm::api::routes::route;
use vmm::api::server::ApiServer;
use vmm::api::types::{
    Answer, ApiError, BusStatus, PowerAction, ServiceEntry, TimeStatus, VmState, VmStatus, answer,
};
use vmm::api::{Call, CallSender, Op};
use vmm::events::{CrashCause, CrashRecord, Event, EventHub};
use vmm::trace::Trace;
use vmm::vsock::registry::{HvsocketEntry, HvsocketRequest, RegistryError};
use vmm_sys_util::eventfd::EventFd;

fn description() -> Description {
    Description::parse(include_str!("../../docs/openapi.json")).unwrap()
}

/// The examples of an operation: target and body.
fn examples(operation: &Operation) -> Vec<(String, Value)> {
    let about = &operation.about;
    let mut target = operation.path.clone();
    let mut separator = '?';
    for parameter in about["parameters"].as_array().into_iter().flatten() {
        let name = parameter["name"].as_str().unwrap();
        let example = &parameter["example"];
        let example = example.as_str().map_or(example.to_string(), str::to_owned);
        if parameter["in"] == "path" {
            target = target.replace(&format!("{{{name}}}"), &example);
        } else {
            target = format!("{target}{separator}{name}={example}");
            separator = '&';
        }
    }
    let bodies = &about["requestBody"]["content"]["application/json"]["examples"];
    match bodies.as_object() {
        None => vec![(target, Value::Null)],
        Some(all) => {
            let values = all.values().map(|example| example["value"].clone());
            values.map(|body| (target.clone(), body)).collect()
        }
    }
}

fn ask_router(method: &str, target: &str, body: &Value) -> Result<(), u16> {
    if is_upload(method, target) {
        // Its body is passed on while it comes, and is no JSON.
        let pipe = Pipe::new(0, Arc::new(EventFd::new(0).unwrap()));
        return upload(target, pipe).map(drop).map_err(|error| error.status);
    }
    let request = Request {
        method: method.into(),
        target: target.into(),
        body: body.to_string().into_bytes(),
        keep_alive: false,
    };
    route(&request).map(drop).map_err(|error| error.status)
}

#[test]
fn every_described_operation_exists_and_takes_its_examples() {
    let description = description();
    for operation in description.operations() {
        for (target, body) in examples(&operation) {
            let name = format!("{} {target} {body}", operation.method);
            description.check_body(&operation, &body).expect(&name);
            ask_router(&operation.method, &target, &body).expect(&name);
        }
    }
}

#[test]
fn nothing_else_exists_at_described_paths() {
    let all = description().operations();
    for operation in &all {
        let (target, _) = examples(operation).remove(0);
        for method in ["GET", "PUT", "POST", "PATCH", "DELETE"] {
            let described = all
                .iter()
                .any(|other| other.path == operation.path && other.method == method);
            if !described {
                let result = ask_router(method, &target, &Value::Null);
                assert_eq!(result, Err(405), "{method} {target}");
            }
        }
    }
}

/// Bodies, and whether they are right.
type Bodies = Vec<(bool, Value)>;

#[test]
fn what_the_description_forbids_the_router_refuses() {
    let long = "a".repeat(1024);
    let many = |count| vec!["10.0.0.1"; count];
    let max = |max: u64| json!({ "max_ms": max });
    let cases: [(&str, &str, Bodies); 5] = [
        (
            "PUT",
            "/v1/vm/power",
            vec![
                (true, json!({"action": "nmi", "force": true})),
                (true, json!({"action": "shutdown", "timeout_ms": u64::MAX})),
                (false, json!({})),
                (false, json!({"action": "explode"})),
                (false, json!({"action": "kill", "more": 1})),
                (false, json!({"action": "shutdown", "timeout_ms": -1})),
                (false, json!({"action": "shutdown", "timeout_ms": "1"})),
                (false, json!({"action": "shutdown", "force": 1})),
            ],
        ),
        (
            "PUT",
            "/v1/kvp/{pool}/{key}",
            vec![
                (true, json!({"value": &long[1..]})),
                (true, json!({"value": u64::MAX})),
                (true, json!({"value": 7, "type": "string"})),
                (true, json!({"value": "7", "type": "u32"})),
                (false, json!({"value": long})),
                (false, json!({"value": -1})),
                (false, json!({"value": 1.5, "type": "string"})),
                (false, json!({"value": true})),
                (false, json!({"value": 1_u64 << 32, "type": "u32"})),
                (false, json!({"value": "7", "type": "u16"})),
                (false, json!({"type": "string"})),
            ],
        ),
        (
            "PUT",
            "/v1/ip/{adapter}",
            vec![
                (true, json!({"dhcp": true})),
                (true, json!({"dhcp": true, "gateways": many(12)})),
                (false, json!({})),
                (false, json!({"dhcp": false})),
                (false, json!({"addresses": []})),
                (false, json!({"dhcp": true, "gateways": many(13)})),
                (false, json!({"dhcp": true, "dns": many(26)})),
                (false, json!({"dhcp": true, "more": 1})),
            ],
        ),
        (
            "POST",
            "/v1/vss/freeze",
            vec![
                (true, json!({})),
                (true, max(1)),
                (true, max(900_000)),
                (false, max(0)),
                (false, max(900_001)),
                (false, json!({"max_ms": "1"})),
            ],
        ),
        (
            "PUT",
            "/v1/hvsocket/services/{service}",
            vec![
                (true, json!({"name": "a".repeat(64)})),
                (false, json!({"name": "a".repeat(65)})),
                (false, json!({"name": ""})),
                (false, json!({"name": 1})),
                (false, json!({"name": "a", "more": 1})),
            ],
        ),
    ];
    let description = description();
    for (method, path, bodies) in cases {
        let mut all = description.operations().into_iter();
        let operation = all
            .find(|one| one.path == path && one.method == method)
            .unwrap();
        let (target, _) = examples(&operation).remove(0);
        for (good, body) in bodies {
            let described = description.check_body(&operation, &body).is_ok();
            let taken = ask_router(method, &target, &body).is_ok();
            assert_eq!((described, taken), (good, good), "{target} {body}");
        }
    }
}

#[test]
fn no_path_or_query_is_taken_that_is_not_described() {
    for operation in description().operations() {
        for (target, body) in examples(&operation) {
            let separator = if target.contains('?') { '&' } else { '?' };
            let target = format!("{target}{separator}surprise=1");
            let result = ask_router(&operation.method, &target, &body);
            assert_eq!(result, Err(400), "{} {target}", operation.method);
        }
        let about = &operation.about;
        for parameter in about["parameters"].as_array().into_iter().flatten() {
            let (name, schema) = (parameter["name"].as_str().unwrap(), &parameter["schema"]);
            let has = |rule| schema.get(rule).is_some();
            // Nothing about the free ones: what they are is said somewhere.
            let told = has("enum") || has("minimum") || has("pattern") || has("anyOf");
            assert!(told, "{} {name}", operation.path);
        }
    }
}

#[test]
fn each_operation_declares_what_any_request_can_come_to() {
    for operation in description().operations() {
        let responses = operation.about["responses"].as_object().unwrap();
        for status in ["200", "400", "411", "413", "431", "503"] {
            assert!(
                responses.contains_key(status),
                "{} {}: {status}",
                operation.method,
                operation.path
            );
        }
        assert!(!responses.contains_key("500"), "never on purpose");
    }
}

#[test]
fn a_status_comes_with_the_codes_that_belong_to_it_and_no_others() {
    let description = description();
    let check = |method, target, status, code| {
        let body = json!({"error": {"code": code, "layer": "guest", "message": "why"}});
        description.check_answer(method, target, status, &body)
    };
    for (status, code) in [
        (502, "guest-error"),
        (503, "no-daemon"),
        (503, "gone"),
        (504, "timeout"),
    ] {
        check("POST", "/v1/vss/freeze", status, code).unwrap();
    }
    for (status, code) in [
        (500, "internal"),
        (502, "internal"),
        (502, "timeout"),
        (503, "guest-error"),
        (503, "surprise"),
        (409, "gone"),
    ] {
        let checked = check("POST", "/v1/vss/freeze", status, code);
        assert!(checked.is_err(), "{status} {code}");
    }
    check("POST", "/v1/files?path=/a", 507, "guest-error").unwrap();
}

#[test]
fn answers_are_as_described() {
    let server = Server::start("answers");
    let description = description();
    for operation in description.operations() {
        if ["/v1/events", "/v1/trace"].contains(&operation.path.as_str()) {
            continue; // Lines, see below.
        }
        for (target, body) in examples(&operation) {
            let (status, answer) = server.ask(&operation.method, &target, &body);
            assert_eq!(status, 200, "{target}: {answer}");
            let checked = description.check_answer(&operation.method, &target, status, &answer);
            checked.unwrap();
        }
    }
    for (method, target, body, status) in [
        ("PUT", "/v1/vm/power", json!({"action": "hibernate"}), 502),
        ("PUT", "/v1/vm/power", json!({"action": "explode"}), 400),
        (
            "PUT",
            "/v1/hvsocket/services/5000",
            json!({"name": "taken"}),
            409,
        ),
        (
            "PUT",
            "/v1/hvsocket/services/5000",
            json!({"name": "/"}),
            400,
        ),
        ("DELETE", "/v1/hvsocket/services/6000", json!({}), 404),
        ("PATCH", "/v1/services/lunch", json!({"enabled": true}), 404),
        ("PATCH", "/v1/services/heartbeat", json!({}), 400),
        ("POST", "/v1/files", json!("x"), 400),
        ("POST", "/v1/files?path=name", json!("x"), 400),
        ("POST", "/v1/files?path=/a&mkdir=7", json!("x"), 400),
        ("GET", "/v1/vm?look=banana", json!({}), 400),
        ("GET", "/v1/time?x=1", json!({}), 400),
    ] {
        let (found, answer) = server.ask(method, target, &body);
        assert_eq!(found, status, "{method} {target}: {answer}");
        let checked = description.check_answer(method, target, status, &answer);
        checked.unwrap();
    }
}

#[test]
fn events_are_as_described() {
    let server = Server::start("events");
    let crash = |message| Event::Crashed {
        cause: CrashCause::Reported,
        report: Some(CrashRecord {
            parameters: [1; 5],
            message,
        }),
        registers: None,
    };
    let all = [
        Event::PoweredOff,
        Event::Reset,
        crash(None),
        crash(Some("panic".into())),
        Event::Paused,
        Event::Resumed,
        Event::Service {
            name: "heartbeat",
            state: "ready",
            detail: String::new(),
        },
        Event::Health { health: "lost" },
        Event::Filesystems { state: "frozen" },
        Event::ShutdownAccepted { action: "reboot" },
        Event::TimedOut,
        Event::Interrupted { by: "it".into() },
        Event::HostFailed {
            message: "it".into(),
        },
        Event::Exit { code: 30 },
    ];
    for event in &all {
        server.hub.write(event);
    }
    let lines = server.raw("GET", "/v1/events?follow=false", "");
    let (head, lines) = lines.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("application/x-ndjson"), "{head}");
    // And the one that tells of the start.
    assert_eq!(lines.lines().count(), all.len() + 1);
    for line in lines.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        description().check_named("Event", &event).unwrap();
    }
}

#[test]
fn the_check_finds_what_is_wrong() {
    let description = description();
    let mut status = serde_json::to_value(status()).unwrap();
    let check = |status: &Value| description.check_answer("GET", "/v1/vm", 200, status);
    assert_eq!(check(&status), Ok(()));
    let elsewhere = description.check_answer("GET", "/v1/nothing", 200, &status);
    assert!(elsewhere.is_err());
    assert!(
        description
            .check_answer("GET", "/v1/vm", 418, &status)
            .is_err()
    );
    for (field, wrong) in [
        ("state", json!("asleep")),
        ("uptime_ms", json!(-1)),
        ("vcpus", json!("2")),
        ("services", json!([{"name": "x"}])),
    ] {
        let before = status[field].take();
        status[field] = wrong;
        assert!(check(&status).is_err(), "{field}");
        status[field] = before;
    }
    status["surprise"] = json!(1);
    assert!(check(&status).is_err());
    status.as_object_mut().unwrap().remove("surprise");
    status.as_object_mut().unwrap().remove("health");
    assert!(check(&status).is_err());
}

fn status() -> VmStatus {
    VmStatus {
        name: "t1".into(),
        pid: 1,
        state: VmState::Stopping,
        uptime_ms: 0,
        resets: 0,
        vcpus: 1,
        memory_mib: 1,
        synic: "user".into(),
        health: "lost".into(),
        vsock: Some("/run/vmm/x/vsock.sock".into()),
        vmbus: BusStatus {
            version: Some("5.3".into()),
            guest_os: Some("Linux".into()),
            channels_open: 3,
            violations: 0,
        },
        services: vec![service("ready"), service("disabled")],
    }
}

fn service(state: &str) -> ServiceEntry {
    let version = (state == "ready").then(|| "3.0".to_owned());
    ServiceEntry {
        name: "heartbeat".into(),
        enabled: version.is_some(),
        state: state.into(),
        framework: version.clone(),
        version,
        detail: String::new(),
    }
}

fn hvsocket(port: Option<u32>) -> HvsocketEntry {
    HvsocketEntry {
        guid: "00001388-facb-11e6-bd58-64006a7986d3".into(),
        port,
        name: "echo".into(),
        listening: port.is_some(),
        path: port.map(|port| format!("/run/vmm/x/vsock.sock_{port}")),
        connections: 1,
    }
}

/// What a machine would answer.
fn perform(op: &Op) -> Answer {
    match op {
        Op::Status(_) => answer(&status()),
        Op::Services => answer(&status().services),
        Op::SetService(name, _) => {
            vmm::services::find(name)?;
            answer(&service("offered"))
        }
        Op::Time => answer(&TimeStatus {
            guest_offset_us: None,
            syncs: 1,
            samples: 2,
            last_message_ms: Some(3),
        }),
        Op::TimeSync => Ok(json!({"synced": true})),
        Op::Power(body) => match body.action {
            PowerAction::Hibernate => {
                let mut error = ApiError::new(502, "guest-error", "guest", "no");
                error.hresult = Some(0x8000_4005);
                Err(error)
            }
            PowerAction::Shutdown | PowerAction::Reboot => Ok(json!({"accepted": true})),
            _ => Ok(json!({"done": true})),
        },
        Op::Kvp(KvpRequest::List(..)) => answer(&ItemList {
            items: vec![ItemEntry {
                key: "role".into(),
                value: "web".into(),
            }],
            unreadable: 1,
            cut: true,
            next: Some(1),
        }),
        Op::Kvp(KvpRequest::Get(..)) => Ok(json!({"value": "web"})),
        Op::Kvp(KvpRequest::GetIp(_)) => answer(&IpEntry {
            addresses: vec!["10.0.0.2/24".into()],
            ..IpEntry::default()
        }),
        Op::Kvp(_) => Ok(json!({"done": true})),
        Op::VssState => Ok(json!({
            "filesystems": "thawed", "thawed_in_ms": null, "expired": 0, "paused": false,
        })),
        Op::Vss(VssRequest::Check) => Ok(json!({"possible": true})),
        Op::Vss(VssRequest::Thaw) => Ok(json!({"thawed": true, "was_frozen": true})),
        Op::Vss(VssRequest::Freeze { .. }) => Ok(json!({"frozen": true, "max_ms": 10})),
        Op::Copy(file) => Ok(take_file(file)),
        Op::Hvsocket(HvsocketRequest::List) => answer(&[hvsocket(None), hvsocket(Some(1))]),
        Op::Hvsocket(HvsocketRequest::Register(_, name)) if name.as_str() == "taken" => {
            let (name, by) = (name.clone(), service_of_port(1));
            Err(RegistryError::Taken { name, by }.into())
        }
        Op::Hvsocket(HvsocketRequest::Register(..)) => answer(&hvsocket(Some(5000))),
        Op::Hvsocket(HvsocketRequest::Unregister(service)) => {
            if *service != service_of_port(5000) {
                return Err(RegistryError::Unknown(*service).into());
            }
            Ok(json!({"done": true}))
        }
    }
}

/// A guest that takes files as they come.
fn take_file(file: &FileCopy) -> Value {
    file.pipe.set_ready();
    let mut size = 0;
    while size < file.pipe.size() {
        size += file.pipe.take(1000).len() as u64;
        thread::yield_now();
    }
    json!({"path": file.target.to_string(), "size": size, "fragments": size.div_ceil(6144)})
}

struct Server {
    socket: PathBuf,
    hub: EventHub,
    _api: ApiServer,
}

impl Server {
    fn start(name: &str) -> Self {
        let name = format!("vmm-openapi-{name}-{}", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let (queue, calls) = unbounded::<Call>();
        let bell = Arc::new(EventFd::new(0).unwrap());
        let hub = EventHub::none();
        let calls_to = CallSender { queue, bell };
        let server = ApiServer::start(listener, calls_to, &hub, &Trace::default()).unwrap();
        hub.write(&Event::Running {
            vcpus: 1,
            memory_mib: 1,
            synic: "user",
            resets: 0,
        });
        thread::spawn(move || {
            for call in calls {
                call.reply.send(perform(&call.op));
            }
        });
        Self {
            socket,
            hub,
            _api: server,
        }
    }

    fn raw(&self, method: &str, target: &str, body: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        let length = body.len();
        let head = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n");
        let request = format!("{head}Content-Length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn ask(&self, method: &str, target: &str, body: &Value) -> (u16, Value) {
        let answer = self.raw(method, target, &body.to_string());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}
