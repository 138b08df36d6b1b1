// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The programs as a user calls them, with a socket in a VM's place that answers what
//! a test wants, and in some a script in the place of ssh.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const VMMCTL: &str = env!("CARGO_BIN_EXE_vmmctl");

/// A directory in which VMs are found, and programs that stand in for others.
struct Place(PathBuf);

impl Place {
    fn new(test: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("cli-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        for dir in [dir.join("vmm"), dir.join("bin"), dir.join("to")] {
            fs::create_dir_all(&dir).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        }
        Self(dir)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.0.join("vmm").join(name).join("api.sock")
    }

    fn listen(&self, name: &str) -> UnixListener {
        fs::create_dir_all(self.0.join("vmm").join(name)).unwrap();
        UnixListener::bind(self.socket(name)).unwrap()
    }

    /// A VM of this name that answers every question with this.
    fn vm(&self, name: &str, answer: &Value) {
        let listener = self.listen(name);
        let body = answer.to_string();
        thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
                while lines
                    .next()
                    .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
                {}
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = client.write_all((head + &body).as_bytes());
            }
        });
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.0.join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn vmmctl(&self, args: &[&str]) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(VMMCTL);
        command
            .args(args)
            .env("XDG_RUNTIME_DIR", &self.0)
            .env("TMPDIR", &self.0)
            .env("PATH", format!("{}:{path}", self.0.join("bin").display()))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.vmmctl(args).output().unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn status(name: &str) -> Value {
    json!({"name": name, "pid": 1, "state": "running", "uptime_ms": 5, "resets": 0, "vcpus": 1,
        "memory_mib": 512, "synic": "kernel", "health": "ok", "vsock": "/nowhere/vsock.sock",
        "vmbus": {"channels_open": 0, "violations": 0},
        "services": [{"name": "kvp", "enabled": true, "state": "ready", "detail": "fine"}]})
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What ssh would do: the lines of `ssh -G`. Nothing where there is no ssh.
fn effective(place: &Place, args: &[&str]) -> Option<Vec<String>> {
    if Command::new("ssh").arg("-V").output().is_err() {
        eprintln!("there is no ssh here, so nothing is tested");
        return None;
    }
    let output = place.run(&[&["--vm", "web", "ssh"], args, &["-G"]].concat());
    assert!(output.status.success(), "{args:?}: {output:?}");
    let out = text(&output.stdout);
    Some(out.lines().map(str::to_ascii_lowercase).collect())
}

fn ssh_place(test: &str) -> (Place, String) {
    let place = Place::new(test);
    place.vm("web", &status("web"));
    let config = place.0.join("config");
    fs::write(
        &config,
        "Host *\n ForwardAgent yes\n ForwardX11 yes\n ForwardX11Trusted yes\n Tunnel yes\n \
         PermitLocalCommand yes\n LocalCommand id\n ControlMaster auto\n ControlPath /tmp/x-%h\n \
         UpdateHostKeys yes\n RemoteForward 2222 localhost:22\n LocalForward 8081 localhost:81\n \
         DynamicForward 1080\n SendEnv MY_* LANG\n Compression yes\n",
    )
    .unwrap();
    let config = config.display().to_string();
    (place, config)
}

#[test]
fn a_configuration_of_ssh_forwards_nothing_to_a_guest() {
    let (place, config) = ssh_place("ssh-off");
    let Some(lines) = effective(&place, &["-F", &config]) else {
        return;
    };
    for wanted in [
        "forwardagent no",
        "forwardx11 no",
        "forwardx11trusted no",
        "tunnel false",
        "permitlocalcommand no",
        "controlmaster false",
        "updatehostkeys false",
        // All else is the configuration's.
        "compression yes",
    ] {
        assert!(
            lines.iter().any(|line| line == wanted),
            "no {wanted:?} in {lines:#?}"
        );
    }
    for never in [
        "remoteforward",
        "localforward",
        "dynamicforward",
        "controlpath",
    ] {
        assert!(!lines.iter().any(|line| line.starts_with(never)), "{never}");
    }
}

#[test]
fn what_this_command_line_says_wins() {
    let (place, config) = ssh_place("ssh-on");
    let Some(lines) = effective(&place, &["-F", &config, "-AY"]) else {
        return;
    };
    for wanted in [
        "forwardagent yes",
        "forwardx11 yes",
        "forwardx11trusted yes",
    ] {
        let has = lines.iter().any(|line| line == wanted);
        assert!(has, "no {wanted:?} in {lines:#?}");
    }
    let lines = effective(&place, &["-F", "none", "-w", "1:2"]).unwrap();
    let has = lines.iter().any(|line| line == "tunneldevice 1:2");
    assert!(
        has && !lines.iter().any(|line| line == "tunnel false"),
        "{lines:#?}"
    );
    // Ports of its own, and none of the configuration's.
    let lines = effective(&place, &["-F", "none", "-L", "8080:localhost:80"]).unwrap();
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("localforward 8080")),
        "{lines:#?}"
    );
    let output = place.run(&[
        "--vm",
        "web",
        "ssh",
        "-F",
        &config,
        "-L",
        "8080:localhost:80",
        "-G",
    ]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("adds '") && said.contains("-F none"),
        "{said}"
    );
    let lines = effective(&place, &["-F", &config, "-o", "ClearAllForwardings=no"]).unwrap();
    assert!(
        lines.iter().any(|line| line.starts_with("remoteforward")),
        "{lines:#?}"
    );
    // A mistake is ssh's to tell, once.
    let output = place.run(&["--vm", "web", "ssh", "-o", "Nonsense=1"]);
    let said = text(&output.stderr).to_lowercase();
    assert_eq!(
        (output.status.code(), said.matches("nonsense").count()),
        (Some(255), 1),
        "{said}"
    );
}

#[test]
fn variables_that_a_configuration_sends_do_not_reach_ssh() {
    let place = Place::new("ssh-env");
    place.vm("web", &status("web"));
    let script = "own=; for word; do [ \"$word\" != none ] || own=1; done\n\
        case \" $* \" in *' -G '*) [ -n \"$own\" ] || echo 'sendenv MY_* LANG *'; exit 0;; esac\n\
        echo \"my=$MY_TOKEN lang=$LANG home=${HOME:+set} other=$OTHER\"";
    place.program("ssh", script);
    let mut command = place.vmmctl(&["--vm", "web", "ssh"]);
    command
        .env("MY_TOKEN", "secret")
        .env("LANG", "C")
        .env("OTHER", "x");
    let output = command.output().unwrap();
    assert_eq!(
        text(&output.stdout),
        "my= lang=C home=set other=\n",
        "{output:?}"
    );
    // And what is said here is sent.
    place.program("ssh", &script.replace("[ -n \"$own\" ] ||", ""));
    let mut command = place.vmmctl(&["--vm", "web", "ssh"]);
    command
        .env("MY_TOKEN", "secret")
        .env("OTHER", "x")
        .env("LANG", "C");
    let output = command.output().unwrap();
    assert_eq!(
        text(&output.stdout),
        "my=secret lang=C home=set other=x\n",
        "{output:?}"
    );
}

#[test]
fn a_copy_out_of_a_guest_keeps_a_key_private_and_links_what_is_linked() {
    let place = Place::new("cp");
    place.vm("web", &status("web"));
    let guest = place.0.join("guest");
    fs::create_dir_all(&guest).unwrap();
    for (name, mode) in [("key", 0o600), ("su", 0o4755), ("big", 0o644)] {
        fs::write(guest.join(name), vec![b'x'; 100_000]).unwrap();
        fs::set_permissions(guest.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for number in 0..50 {
        fs::hard_link(guest.join("big"), guest.join(format!("link{number}"))).unwrap();
    }
    let script = format!(
        "case \" $* \" in *' -G '*) exit 0;; esac\nexec tar -C '{}' -cf - .",
        guest.display()
    );
    place.program("ssh", &script);
    let to = place.0.join("to");
    let output = place.run(&["--vm", "web", "cp", "guest:/srv/top", to.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let about = |name: &str| fs::symlink_metadata(to.join("top").join(name)).unwrap();
    assert_eq!(
        about("key").mode() & 0o7777 & !0o600,
        0,
        "{:o}",
        about("key").mode()
    );
    assert_eq!(about("su").mode() & 0o7000, 0, "{:o}", about("su").mode());
    assert_eq!(about("link7").nlink(), 51);
    assert_eq!(about("big").ino(), about("link7").ino());
}

#[test]
fn nothing_that_is_shown_steers_a_terminal() {
    let place = Place::new("shown");
    let bad = "a\u{1b}[2J\u{9b}31m\u{202e}b\u{2066}\u{200b}\u{2028}c";
    let mut answer = status("web");
    answer["services"][0]["detail"] = json!(bad);
    answer["vmbus"]["guest_os"] = json!(bad);
    place.vm("web", &answer);
    for args in [
        &["status"][..],
        &["--json", "status"],
        &["--json", "list"],
        &["events"],
        &["--json", "events"],
    ] {
        let output = place.run(&[&["--vm", "web"], args].concat());
        for (what, bytes) in [("out", &output.stdout), ("err", &output.stderr)] {
            let text = text(bytes);
            let bad =
                |c: char| (c.is_control() && c != '\n') || ('\u{200b}'..='\u{2069}').contains(&c);
            assert!(!text.contains(bad), "{args:?}, {what}: {text:?}");
        }
        assert!(!output.stdout.is_empty(), "{args:?}: {output:?}");
    }
    // JSON means what it meant.
    let output = place.run(&["--vm", "web", "--json", "status"]);
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(read, answer);
}

#[test]
fn help_that_cannot_be_written_is_a_failure() {
    let vmm = Path::new(VMMCTL).with_file_name("vmm");
    for (program, args) in [
        (Path::new(VMMCTL), &["--help"][..]),
        (Path::new(VMMCTL), &["ssh", "--help"]),
        (Path::new(VMMCTL), &["--version"]),
        (Path::new(VMMCTL), &["completions", "bash"]),
        (&vmm, &["--help"]),
    ] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = Command::new(program)
            .args(args)
            .stdout(full)
            .output()
            .unwrap();
        let said = text(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{program:?} {args:?}: {said}"
        );
        assert!(said.contains("No space left"), "{said}");
        // A reader that has seen enough is none.
        let mut child = Command::new(program)
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn several_vms_and_none_named_is_a_mistake_of_the_command_line() {
    let place = Place::new("several");
    place.vm("web", &status("web"));
    place.vm("db", &status("db"));
    let output = place.run(&["status"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("--vm") && said.contains("web") && said.contains("db"),
        "{said}"
    );
}

#[test]
fn a_vm_that_hangs_holds_up_no_list() {
    let place = Place::new("hangs");
    let hung: Vec<UnixListener> = ["a", "b", "c"].map(|name| place.listen(name)).into();
    place.vm("web", &status("web"));
    let start = Instant::now();
    let mut child = place
        .vmmctl(&["list"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The old way would take an hour for each.
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(20) {
            let _ = child.kill();
            panic!("it is held up");
        }
        thread::sleep(Duration::from_millis(20));
    }
    let mut told = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut told)
        .unwrap();
    assert_eq!(told.matches("no answer").count(), 3, "{told}");
    assert!(told.contains("web") && told.contains("running"), "{told}");
    let output = place.run(&["--json", "list"]);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list[0], json!({"name": "a", "state": "no-answer"}));
    let names = text(&place.run(&["list", "--names"]).stdout);
    assert!(
        names.starts_with("a\nb\nc\n") && names.contains("web\n"),
        "{names}"
    );
    drop(hung);
}

#[test]
fn manual_pages_are_the_same_on_any_day() {
    let place = Place::new("man");
    let dir = place.0.join("man");
    let mut command = place.vmmctl(&["man", dir.to_str().unwrap()]);
    assert!(
        command
            .env("SOURCE_DATE_EPOCH", "86400")
            .output()
            .unwrap()
            .status
            .success()
    );
    let page = fs::read_to_string(dir.join("vmmctl-forward.1")).unwrap();
    assert!(
        page.contains("1970-01-02") && page.contains(".SH EXAMPLES"),
        "{page}"
    );
    assert!(dir.join("vmm.1").exists() && dir.join("vmmctl-kvp-list.1").exists());
}
