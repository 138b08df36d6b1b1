// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each forbidden call is made by this test program itself, started once more:
//! the filters stay for as long as a process lives.

use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{ExitStatusExt, parent_id};
use std::process::{Command, Output, Stdio};
use std::{env, fs};

use super::*;

const CHILD: &str = "VMM_SANDBOX_CHILD";

const KINDS: [(&str, Kind); 9] = [
    ("main", Kind::Main),
    ("maker", Kind::Maker),
    (FIRST_MAKER, Kind::Maker),
    ("vcpu0", Kind::Vcpu),
    ("bus", Kind::Bus),
    ("timers", Kind::Timers),
    ("api", Kind::Api),
    ("console", Kind::Output),
    (BEFORE, Kind::Output),
];

/// The threads that are started before the main thread is under its filters.
const BEFORE: &str = "events";
const FIRST_MAKER: &str = "first-maker";

/// What a thread does in the child.
const DEEDS: &[(&str, fn())] = &[
    ("nothing", || {}),
    ("getppid", || assert!(parent_id() > 0)),
    ("tcp", || drop(TcpListener::bind("127.0.0.1:0"))),
    ("program", || drop(Command::new("/bin/true").status())),
    ("open", || {
        let error = fs::read("/proc/self/status").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
    }),
    ("listen", || {
        let path = env::temp_dir().join(format!("vmm-sandbox-{}", std::process::id()));
        drop(UnixListener::bind(path));
    }),
    ("connect", || drop(UnixStream::connect("/nonexistent"))),
    ("thread", || {
        let _ = thread::Builder::new().spawn(|| {}).map(JoinHandle::join);
    }),
    ("allocate", || {
        let much: Vec<Vec<u8>> = (0..100).map(|n| vec![1; n << 12]).collect();
        assert_eq!(much.iter().map(Vec::len).sum::<usize>(), 4950 << 12);
    }),
    ("panic", || {
        assert!(thread::current().name().is_none(), "on purpose");
    }),
];

/// What is done in the child process; in the test run itself, nothing.
#[test]
fn child() {
    let Ok(wish) = env::var(CHILD) else { return };
    let mut words = wish.split(' ');
    let mode = match words.next() {
        Some("log") => Mode::Log,
        Some("off") => Mode::Off,
        _ => Mode::Enforce,
    };
    let name = words.next().unwrap();
    let deed = words.next().unwrap();
    let (_, kind) = KINDS.into_iter().find(|(of, _)| *of == name).unwrap();
    let (_, run) = DEEDS.iter().find(|(of, _)| *of == deed).unwrap();
    init(mode).unwrap();
    if kind != Kind::Main && ![BEFORE, FIRST_MAKER].contains(&name) {
        enter(Kind::Main).unwrap();
    }
    let ended = spawn(kind, name.into(), *run).unwrap().join();
    eprintln!("{}", if ended.is_ok() { "done" } else { "panicked" });
    std::process::exit(0);
}

fn run(mode: &str, thread: &str, deed: &str) -> Output {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "sandbox::tests::child", "--nocapture"])
        .env(CHILD, format!("{mode} {thread} {deed}"))
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn ends(thread: &str, deed: &str, call: i64) {
    let output = run("true", thread, deed);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{thread} {deed}: {said}");
    let words = format!("vmm: seccomp: the thread '{thread}' made the system call {call},");
    assert!(said.contains(&words), "{thread} {deed}: {said}");
    assert!(!said.contains("done"), "{thread} {deed}: {said}");
}

/// Ends it too, but where the C library has blocked all signals, by the signal.
#[track_caller]
fn is_killed(thread: &str, deed: &str) {
    let output = run("true", thread, deed);
    let status = output.status;
    let said = said(&output);
    assert_eq!(
        status.signal(),
        Some(libc::SIGSYS),
        "{thread} {deed}: {status} {said}"
    );
    assert!(!said.contains("done"), "{thread} {deed}: {said}");
}

#[track_caller]
fn goes_on(mode: &str, thread: &str, deed: &str) {
    let output = run(mode, thread, deed);
    let said = said(&output);
    assert!(said.contains("done"), "{mode} {thread} {deed}: {said}");
}

#[test]
fn a_forbidden_call_ends_the_process_in_every_thread() {
    for (thread, _) in KINDS {
        goes_on("true", thread, "nothing");
        goes_on("true", thread, "allocate");
        ends(thread, "getppid", libc::SYS_getppid);
        ends(thread, "tcp", libc::SYS_socket);
    }
}

#[test]
fn no_thread_starts_a_program_or_opens_a_file() {
    for (thread, _) in KINDS {
        is_killed(thread, "program");
        goes_on("true", thread, "open");
    }
}

#[test]
fn only_the_bus_connects_nobody_listens_and_only_main_starts_threads() {
    ends("maker", "connect", libc::SYS_socket);
    ends("vcpu0", "connect", libc::SYS_socket);
    ends("api", "connect", libc::SYS_socket);
    ends("console", "connect", libc::SYS_socket);
    goes_on("true", "bus", "connect");
    goes_on("true", "main", "thread");
    for thread in ["maker", FIRST_MAKER, "vcpu0", "bus", "api", "console"] {
        is_killed(thread, "thread");
    }
    ends("bus", "listen", libc::SYS_bind);
}

#[test]
fn a_panic_is_told_and_unwinds_under_a_filter() {
    for (thread, _) in KINDS {
        let said = said(&run("true", thread, "panic"));
        assert!(said.contains("on purpose"), "{thread}: {said}");
        assert!(said.contains("panicked\n"), "{thread}: {said}");
    }
}

#[test]
fn log_and_false_let_calls_through() {
    for mode in ["log", "off"] {
        goes_on(mode, "vcpu0", "getppid");
        goes_on(mode, "vcpu0", "tcp");
    }
}

#[test]
fn there_are_no_new_privileges_even_without_filters() {
    init(Mode::Off).unwrap();
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
}

#[test]
fn signals_are_left_to_the_main_thread() {
    let (sender, status) = sync_channel(1);
    let tell = move || sender.send(fs::read_to_string("/proc/thread-self/status").unwrap());
    spawn(Kind::Vcpu, "test".into(), move || tell().unwrap()).unwrap();
    let status = status.recv().unwrap();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let blocked = u64::from_str_radix(blocked.unwrap().trim(), 16).unwrap();
    let wanted = SIGNALS
        .iter()
        .fold(0, |all, signal| all | 1 << (signal - 1));
    assert_eq!(blocked & wanted, wanted, "{blocked:#x}");
}

/// The main thread's filter is also that of all threads that are started later.
#[test]
fn the_main_thread_may_do_what_its_threads_do() {
    let main = calls::of(Kind::Main);
    for kind in Kind::ALL {
        for (call, verdict) in calls::of(kind) {
            let within = match (main.get(&call), &verdict) {
                (Some(Verdict::If(all)), Verdict::If(some)) => {
                    some.iter().all(|rule| all.contains(rule))
                }
                (Some(Verdict::Allow), _) => true,
                (of_main, verdict) => of_main == Some(verdict),
            };
            assert!(within, "{kind:?}: {call}");
        }
    }
}
