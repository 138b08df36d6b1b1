// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Clients of all kinds against a server whose operations are answered by a thread.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use serde_json::json;
use vmbus::host::TraceEvent;
use vmbus::wire::Relid;

use super::client::is_later;
use super::*;
use crate::api::Op;
use crate::api::types::ErrorBody;
use crate::events::Event;

struct Fixture {
    dir: std::path::PathBuf,
    hub: EventHub,
    trace: Trace,
    _server: ApiServer,
}

/// A server whose `Op::Time` is never answered, and everything else at once.
fn fixture(name: &str) -> Fixture {
    let dir = std::env::temp_dir().join(format!("vmm-api-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir).unwrap();
    let listener = UnixListener::bind(dir.join("s")).unwrap();
    let (queue, calls) = unbounded::<Call>();
    let bell = Arc::new(eventfd().unwrap());
    let hub = EventHub::none();
    let trace = Trace::default();
    let calls_to = CallSender { queue, bell };
    let server = ApiServer::start(listener, calls_to, &hub, &trace).unwrap();
    thread::spawn(move || {
        let mut kept = Vec::new();
        for call in calls {
            match call.op {
                Op::Time => kept.push(call.reply),
                Op::TimeSync => drop(call.reply),
                // As long as an answer can be, and one byte more.
                Op::Kvp(_) => call.reply.send(Ok("x".repeat(MAX_ANSWER - 2).into())),
                Op::Hvsocket(_) => call.reply.send(Ok("x".repeat(MAX_ANSWER - 1).into())),
                // How many have hung up of those that are kept.
                Op::VssState => {
                    let gone = kept.iter().filter(|one: &&Reply| one.waiter().is_gone());
                    let gone = gone.count();
                    call.reply.send(Ok(json!({"gone": gone})));
                }
                Op::Copy(file) => take_file(&file, call.reply),
                op => call.reply.send(Ok(json!({"op": format!("{op:?}")}))),
            }
        }
    });
    Fixture {
        dir,
        hub,
        trace,
        _server: server,
    }
}

/// A guest that takes files, slowly: what it got, and whether it got it all. It
/// has a file `/old` already.
fn take_file(file: &data::FileCopy, reply: Reply) {
    let path = file.target.to_string();
    if path == "/old" {
        return reply.send(Err(ApiError::new(409, "guest-error", "guest", "exists")));
    }
    file.pipe.set_ready();
    let mut taken: u64 = 0;
    let mut sum: u64 = 0;
    let mut closed = false;
    while taken < file.pipe.size() && !closed {
        closed = reply.waiter().is_gone();
        let part = file.pipe.take(7000);
        taken += part.len() as u64;
        sum += part.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        thread::sleep(Duration::from_micros(200));
    }
    reply.send(Ok(json!({"taken": taken, "sum": sum})));
}

impl Fixture {
    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.join("s")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream
    }

    fn ask(&self, request: &str) -> (u16, String) {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        answer_of(&mut BufReader::new(stream))
    }
}

fn answer_of(reader: &mut BufReader<UnixStream>) -> (u16, String) {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap().parse().unwrap();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim().split_once(": ") {
            Some(("Content-Length", value)) => length = value.parse().unwrap(),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    (status, String::from_utf8(body).unwrap())
}

const STATUS: &str = "GET /v1/vm HTTP/1.1\r\n\r\n";

#[test]
fn requests_on_one_connection_are_answered_in_order() {
    let fixture = fixture("order");
    let mut stream = fixture.connect();
    let both = format!("{STATUS}GET /v1/services HTTP/1.1\r\nConnection: close\r\n\r\n");
    stream.write_all(both.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    assert_eq!(
        answer_of(&mut reader),
        (200, "{\"op\":\"Status(true)\"}\n".into())
    );
    assert_eq!(
        answer_of(&mut reader),
        (200, "{\"op\":\"Services\"}\n".into())
    );
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}

#[test]
fn errors_are_objects_that_name_code_and_layer() {
    let fixture = fixture("errors");
    let (status, body) = fixture.ask("GET /nowhere HTTP/1.1\r\n\r\n");
    assert_eq!(status, 404);
    let error: ErrorBody = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (error.error.code.as_str(), error.error.layer.as_str()),
        ("not-found", "api")
    );
    assert_eq!(fixture.ask("nonsense\r\n\r\n").0, 400);
}

#[test]
fn an_operation_that_nobody_answers_any_more_is_an_error() {
    let fixture = fixture("gone");
    let (status, body) = fixture.ask("POST /v1/time/sync HTTP/1.1\r\n\r\n");
    assert_eq!(status, 503, "{body}");
}

#[test]
fn silent_and_waiting_clients_hold_up_nobody() {
    let fixture = fixture("silent");
    // More than there is room for.
    let silent: Vec<_> = (0..200).map(|_| fixture.connect()).collect();
    let mut waiting = fixture.connect();
    waiting.write_all(b"GET /v1/time HTTP/1.1\r\n\r\n").unwrap();
    let start = Instant::now();
    assert_eq!(fixture.ask(STATUS).0, 200);
    assert!(start.elapsed() < Duration::from_secs(5));
    drop(silent);
}

#[test]
fn an_answer_is_as_long_as_may_wait_for_a_client_and_no_longer() {
    let fixture = fixture("long");
    let (status, body) = fixture.ask("GET /v1/kvp/guest HTTP/1.1\r\n\r\n");
    assert_eq!((status, body.len()), (200, MAX_ANSWER + 1));
    let (status, body) = fixture.ask("GET /v1/hvsocket/services HTTP/1.1\r\n\r\n");
    assert_eq!(status, 500);
    assert!(body.contains("too-long") && body.len() < 200, "{body}");
    // Who does not read holds up nobody, and more than one answer does not wait for it.
    let silent: Vec<_> = (0..MAX_CLIENTS)
        .map(|_| {
            let mut stream = fixture.connect();
            let twice = "GET /v1/kvp/guest HTTP/1.1\r\n\r\n".repeat(2);
            stream.write_all(twice.as_bytes()).unwrap();
            stream
        })
        .collect();
    assert_eq!(fixture.ask(STATUS).0, 200);
    let mut last = BufReader::new(silent.into_iter().next_back().unwrap());
    for _ in 0..2 {
        assert_eq!(answer_of(&mut last).1.len(), MAX_ANSWER + 1);
    }
}

#[test]
fn a_hundred_megabytes_are_refused_and_not_kept() {
    let fixture = fixture("large");
    let (status, _) = fixture.ask("PUT /v1/vm/power HTTP/1.1\r\nContent-Length: 104857600\r\n\r\n");
    assert_eq!(status, 413);
    // And a head without an end: the server stops reading.
    let mut stream = fixture.connect();
    let chunk = vec![b'x'; 65536];
    let wrote = (0..1600)
        .take_while(|_| stream.write_all(&chunk).is_ok())
        .count();
    assert!(wrote < 1600, "all 100 MB were taken");
    assert_eq!(fixture.ask(STATUS).0, 200);
}

#[test]
fn garbage_is_answered_once_and_then_hung_up_on() {
    let fixture = fixture("garbage");
    for garbage in [
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n".as_slice(),
        b"GET /v1/vm\r\n\r\n",
        b"PUT / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ] {
        let mut stream = fixture.connect();
        stream.write_all(garbage).unwrap();
        let mut reader = BufReader::new(stream);
        assert_eq!(answer_of(&mut reader).0, 400);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
    assert_eq!(fixture.ask(STATUS).0, 200);
}

#[test]
fn there_are_no_more_clients_than_places() {
    let fixture = fixture("bounded");
    let mut all: Vec<_> = (0..MAX_CLIENTS * 3).map(|_| fixture.connect()).collect();
    assert_eq!(fixture.ask(STATUS).0, 200);
    let mut open = 0;
    for stream in &mut all {
        stream.set_nonblocking(true).unwrap();
        let left = stream.read(&mut [0]);
        open += usize::from(left.is_err_and(|error| is_later(&error)));
    }
    assert!(open < MAX_CLIENTS, "{open} connections are open");
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let fixture = fixture("vanish");
    for _ in 0..300 {
        let mut stream = fixture.connect();
        stream.write_all(b"GET /v1/time HTTP/1.1\r\n\r\n").unwrap();
    }
    assert_eq!(fixture.ask(STATUS).0, 200);
}

#[test]
fn who_does_the_work_learns_of_a_client_that_has_hung_up() {
    let fixture = fixture("hung-up");
    let mut stays = fixture.connect();
    let mut goes = fixture.connect();
    for stream in [&mut stays, &mut goes] {
        stream.write_all(b"GET /v1/time HTTP/1.1\r\n\r\n").unwrap();
    }
    // Half a close is none: it waits for its answer.
    stays.shutdown(Shutdown::Write).unwrap();
    let gone = || {
        fixture
            .ask("GET /v1/vss HTTP/1.1\r\nConnection: close\r\n\r\n")
            .1
    };
    thread::sleep(Duration::from_millis(200));
    assert!(gone().contains("\"gone\":0"));
    drop(goes);
    let end = Instant::now() + Duration::from_secs(20);
    while !gone().contains("\"gone\":1") {
        assert!(Instant::now() < end);
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_client_that_sends_half_a_close_still_gets_its_answer() {
    let fixture = fixture("half");
    let mut stream = fixture.connect();
    stream.write_all(STATUS.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer_of(&mut BufReader::new(stream)).0, 200);
}

#[test]
fn events_are_streamed_from_the_past_on_without_repetition() {
    let fixture = fixture("events");
    fixture.hub.write(&Event::Paused);
    let mut stream = fixture.connect();
    stream
        .write_all(b"GET /v1/events HTTP/1.1\r\n\r\n")
        .unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert!(lines.by_ref().any(|line| line.is_empty()));
    assert!(lines.next().unwrap().contains("\"paused\""));
    fixture.hub.write(&Event::Resumed);
    assert!(lines.next().unwrap().contains("\"resumed\""));
    let (status, body) = fixture.ask("GET /v1/events?follow=false HTTP/1.1\r\n\r\n");
    assert_eq!((status, body.lines().count()), (200, 2));
}

/// Traffic of a bus: one signal.
fn pass_a_signal(fixture: &Fixture) {
    let mut tracer = fixture.trace.tracer(BTreeSet::new());
    tracer.trace(Duration::ZERO, TraceEvent::GuestSignal(Relid(7)));
}

#[test]
fn traffic_is_shown_while_somebody_follows_it_and_for_as_many_lines() {
    let fixture = fixture("trace");
    assert_eq!(fixture.trace.audience().count(), 0);
    // Nobody is there to see this one.
    pass_a_signal(&fixture);
    fixture.trace.flush();
    let mut stream = fixture.connect();
    stream
        .write_all(b"GET /v1/trace?lines=2 HTTP/1.1\r\n\r\n")
        .unwrap();
    let mut reader = BufReader::new(stream);
    let mut lines = reader.by_ref().lines().map_while(Result::ok);
    lines.find(String::is_empty).unwrap();
    assert_eq!(fixture.trace.audience().count(), 1);
    for _ in 0..3 {
        pass_a_signal(&fixture);
    }
    fixture.trace.flush();
    let lines: Vec<String> = lines.collect();
    let wanted = r#"{"from":"guest","relid":7,"signal":true,"time_us":0}"#;
    assert_eq!(lines, [wanted, wanted]);
    assert_eq!(fixture.trace.audience().count(), 0);
}

#[test]
fn a_reader_of_traffic_that_is_too_slow_is_told_what_it_missed() {
    let fixture = fixture("lost");
    let mut stream = fixture.connect();
    stream.write_all(b"GET /v1/trace HTTP/1.1\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    lines.find(String::is_empty).unwrap();
    for _ in 0..10_000 {
        pass_a_signal(&fixture);
    }
    fixture.trace.flush();
    let seen = lines.by_ref().take_while(|line| !line.contains("lost"));
    let seen = seen.count();
    assert!(seen > 1000 && seen < 10_000, "{seen}");
    // Of what comes after, nothing is missing.
    pass_a_signal(&fixture);
    fixture.trace.flush();
    assert!(lines.next().unwrap().contains("signal"));
}

#[test]
fn a_reader_of_events_that_does_not_read_is_let_go() {
    let fixture = fixture("slow");
    let mut slow = fixture.connect();
    slow.write_all(b"GET /v1/events HTTP/1.1\r\n\r\n").unwrap();
    let message = "x".repeat(4000);
    for _ in 0..2000 {
        fixture.hub.write(&Event::HostFailed {
            message: message.clone(),
        });
    }
    assert_eq!(fixture.ask(STATUS).0, 200);
}

#[test]
fn a_client_that_reads_no_answers_costs_no_memory() {
    let fixture = fixture("unread");
    for _ in 0..200 {
        fixture.hub.write(&Event::Paused);
    }
    let mut stream = fixture.connect();
    stream
        .set_write_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let requests = "GET /v1/events?follow=false HTTP/1.1\r\n\r\n".repeat(100);
    // The server stops reading, so the socket fills up.
    let wrote = (0..10_000)
        .take_while(|_| stream.write_all(requests.as_bytes()).is_ok())
        .count();
    assert!(wrote < 10_000);
    assert_eq!(fixture.ask(STATUS).0, 200);
}

#[test]
fn followers_of_events_leave_room_for_others() {
    let fixture = fixture("followers");
    let mut followers = Vec::new();
    for _ in 0..MAX_STREAMS {
        let mut stream = fixture.connect();
        stream
            .write_all(b"GET /v1/events HTTP/1.1\r\n\r\n")
            .unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap())
            .read_line(&mut line)
            .unwrap();
        followers.push(stream);
    }
    assert_eq!(fixture.ask("GET /v1/events HTTP/1.1\r\n\r\n").0, 503);
    assert_eq!(fixture.ask(STATUS).0, 200);
}

fn upload(path: &str, size: usize, more: &str) -> String {
    format!("POST /v1/files?path={path} HTTP/1.1\r\nContent-Length: {size}\r\n{more}\r\n")
}

#[test]
fn a_file_larger_than_all_buffers_passes_through() {
    let fixture = fixture("upload");
    let size = 1_000_000;
    let mut stream = fixture.connect();
    stream
        .write_all(upload("/new", size, "").as_bytes())
        .unwrap();
    stream.write_all(&vec![3; size]).unwrap();
    // And the connection goes on.
    stream.write_all(STATUS.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let (status, body) = answer_of(&mut reader);
    assert_eq!(status, 200);
    assert_eq!(body, "{\"sum\":3000000,\"taken\":1000000}\n");
    assert_eq!(answer_of(&mut reader).0, 200);
}

#[test]
fn leave_to_send_a_file_comes_when_the_guest_takes_it() {
    let fixture = fixture("leave");
    let expect = "Expect: 100-continue\r\n";
    let mut stream = fixture.connect();
    let head = upload("/new", 3, expect);
    stream.write_all(head.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    assert_eq!(answer_of(&mut reader).0, 100);
    reader.get_mut().write_all(b"abc").unwrap();
    assert_eq!(answer_of(&mut reader).0, 200);
    // A file that the guest does not want is not asked for.
    let (status, body) = fixture.ask(&upload("/old", 3, expect));
    assert!(status == 409 && body.contains("exists"), "{body}");
}

#[test]
fn files_without_a_length_or_a_name_are_refused() {
    let fixture = fixture("bad-upload");
    let (status, _) = fixture.ask("POST /v1/files?path=/a HTTP/1.1\r\n\r\n");
    assert_eq!(status, 411);
    let (status, body) = fixture.ask(&upload("relative", 3, ""));
    assert!(status == 400 && body.contains("bad-name"), "{body}");
    // An empty one is a file too.
    assert_eq!(fixture.ask(&upload("/new", 0, "")).0, 200);
}

#[test]
fn a_client_that_goes_in_the_middle_of_a_file_is_gone() {
    let fixture = fixture("gone-upload");
    let mut stream = fixture.connect();
    let head = upload("/new", 1000, "");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&[1; 10]).unwrap();
    drop(stream);
    // The one thread that takes files is free again.
    assert_eq!(fixture.ask(&upload("/new", 0, "")).0, 200);
}

#[test]
fn a_wrong_method_is_told_the_right_ones_in_a_header() {
    let fixture = fixture("allow");
    let whole = |method: &str| {
        let mut stream = fixture.connect();
        let target = "http://vm/v1/kvp/guest/a";
        let request = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let answer = whole("POST");
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(
        answer.contains("\r\nAllow: GET, PUT, DELETE\r\n"),
        "{answer}"
    );
    assert!(answer.ends_with("}\n"), "{answer}");
    // Its answers have no body.
    let answer = whole("HEAD");
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(!whole("GET").contains("Allow"));
}

#[test]
fn so_many_lines_of_what_has_happened_are_given_and_no_more() {
    let fixture = fixture("past");
    for _ in 0..5 {
        fixture.hub.write(&Event::Paused);
    }
    let (status, body) = fixture.ask("GET /v1/events?follow=false&lines=2 HTTP/1.1\r\n\r\n");
    assert_eq!((status, body.lines().count()), (200, 2), "{body}");
}
