// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The library against VMs that are only sockets in a directory.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::thread;

use super::*;
use crate::vsock::peer;

/// A directory of this user's VMs.
struct Host(PathBuf);

impl Host {
    fn new(name: &str) -> Self {
        let name = format!("vmm-hvsocket-{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        Self(dir)
    }

    fn places(&self) -> Vec<PathBuf> {
        vec![self.0.clone()]
    }

    /// The hybrid socket of a VM that gives each client the answer, and then its own
    /// words back.
    fn start(&self, name: &str, answer: &'static str) -> Fake {
        let dir = self.0.join(name);
        let _ = fs::create_dir(&dir);
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        let api = UnixListener::bind(dir.join("api.sock")).unwrap();
        let socket = dir.join(VSOCK);
        let vsock = UnixListener::bind(&socket).unwrap();
        thread::spawn(move || {
            for client in vsock.incoming().flatten() {
                let mut words = BufReader::new(&client);
                let mut line = String::new();
                words.read_line(&mut line).unwrap();
                let service = line.trim_end().strip_prefix("CONNECT ").unwrap();
                // With the first bytes of the stream right behind it.
                let answer = answer.replace("SERVICE", service);
                (&client).write_all(answer.as_bytes()).unwrap();
                let _ = io::copy(&mut words, &mut &client);
            }
        });
        Fake { _api: api, dir }
    }

    fn bind(&self, vm: impl Into<VmId>, service: u32) -> io::Result<Listener> {
        Listener::bind_in(self.places(), &Address::new(vm, service))
    }

    fn connect(&self, vm: impl Into<VmId>, service: u32) -> io::Result<UnixStream> {
        connect_in(&self.places(), &Address::new(vm, service))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Fake {
    _api: UnixListener,
    dir: PathBuf,
}

impl Fake {
    fn socket(&self) -> PathBuf {
        self.dir.join(VSOCK)
    }

    /// What `vmm` does when its guest connects.
    fn call(&self, service: &str) -> io::Result<UnixStream> {
        UnixStream::connect(peer(&self.socket(), service))
    }
}

/// Within the time that a VM takes to be found.
fn accepted(listener: &mut Listener) -> Option<Peer> {
    let accepted = listener.accept_within(Some(Duration::from_secs(10)));
    accepted.unwrap().map(|(_, peer)| peer)
}

fn read(mut stream: &UnixStream, len: usize) -> String {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_connection_is_greeted_and_nothing_behind_the_answer_is_lost() {
    let host = Host::new("connect");
    let web = host.start("web", "OK SERVICE\nfirst");
    let by_socket = VmId::Socket(web.socket());
    for vm in [VmId::from("web"), VmId::Wildcard, VmId::Children, by_socket] {
        let mut stream = host.connect(vm, 5000).unwrap();
        stream.write_all(b" words").unwrap();
        assert_eq!(read(&stream, 11), "first words");
    }
}

#[test]
fn a_guid_that_is_no_port_is_sent_as_it_is() {
    let host = Host::new("guid");
    let web = host.start("web", "OK\nSERVICE");
    let guid = "0f0f0f0f-0000-4000-8000-000000000001";
    let answered = connect_at(&web.socket(), guid).unwrap_err();
    assert_eq!(answered.kind(), io::ErrorKind::ConnectionRefused);
    let web = host.start("web2", "OK SERVICE\nSERVICE");
    let service: ServiceId = guid.parse().unwrap();
    let address = Address::new(web.socket().as_path(), service);
    let stream = connect_in(&[], &address).unwrap();
    assert_eq!(read(&stream, guid.len()), guid);
}

#[test]
fn who_is_not_there_or_refuses_is_told_apart() {
    let host = Host::new("refused");
    let missing = host.connect("web", 1).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    assert!(missing.to_string().contains("'web'"));
    let none = host.connect(VmId::Wildcard, 1).unwrap_err();
    assert_eq!(none.kind(), io::ErrorKind::NotFound);
    let _web = host.start("web", "ERR nobody is at home\n");
    let refused = host.connect("web", 1).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(refused.to_string(), "nobody is at home");
    let _more = host.start("more", "");
    let many = host.connect(VmId::Children, 1).unwrap_err();
    assert_eq!(many.kind(), io::ErrorKind::InvalidInput);
    let line = connect_at(Path::new("/"), "1\nCONNECT 2").unwrap_err();
    assert_eq!(line.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_listener_is_beside_the_vms_socket_and_goes_with_its_owner() {
    let host = Host::new("listen");
    let web = host.start("web", "");
    assert!(web.call("6000").is_err());
    let mut listener = host.bind("web", 6000).unwrap();
    assert!(is_listening(&peer(&web.socket(), 6000)));
    let mut guest = web.call("6000").unwrap();
    let (stream, peer) = listener.accept().unwrap();
    assert_eq!(peer.vm.as_deref(), Some("web"));
    assert_eq!(peer.to_string(), "web");
    guest.write_all(b"hello").unwrap();
    assert_eq!(read(&stream, 5), "hello");
    let own = listener.paths().next().unwrap().to_owned();
    drop(listener);
    assert!(!own.exists());
    // The VM's own files are left.
    assert!(web.socket().exists());
}

#[test]
fn asking_whether_somebody_listens_is_not_seen() {
    let host = Host::new("ask");
    let web = host.start("web", "");
    let mut listener = host.bind("web", 6000).unwrap();
    let path = listener.paths().next().unwrap().to_owned();
    for _ in 0..3 {
        assert!(is_listening(&path));
    }
    let nobody = listener.accept_within(Some(Duration::ZERO)).unwrap();
    assert!(nobody.is_none());
    drop(listener);
    assert!(!is_listening(&path) && !is_listening(&web.dir));
}

#[test]
fn a_live_listener_is_left_and_a_dead_one_replaced() {
    let host = Host::new("use");
    let web = host.start("web", "");
    let first = host.bind("web", 6000).unwrap();
    let in_use = host.bind("web", 6000).unwrap_err();
    assert_eq!(in_use.kind(), io::ErrorKind::AddrInUse);
    assert!(in_use.to_string().contains("vsock.sock_6000"), "{in_use}");
    assert!(web.call("6000").is_ok());
    drop(first);
    // Std leaves the file.
    drop(UnixListener::bind(peer(&web.socket(), 6000)).unwrap());
    assert!(web.call("6000").is_err());
    let second = host.bind("web", 6000).unwrap();
    assert!(web.call("6000").is_ok());
    drop(second);
    let file = peer(&web.socket(), 6000);
    fs::write(&file, "precious").unwrap();
    let kept = host.bind("web", 6000).unwrap_err();
    assert_eq!(kept.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn what_another_has_put_in_its_place_is_not_removed() {
    let host = Host::new("other");
    let web = host.start("web", "");
    let first = host.bind(web.socket().as_path(), 6000).unwrap();
    let path = peer(&web.socket(), 6000);
    fs::remove_file(&path).unwrap();
    let _second = UnixListener::bind(&path).unwrap();
    drop(first);
    assert!(is_listening(&path));
}

#[test]
fn a_wildcard_is_for_vms_that_run_and_those_that_start_later() {
    let host = Host::new("wildcard");
    let web = host.start("web", "");
    // Left behind by a VM that was killed.
    let dead = host.start("dead", "");
    let gone = dead.dir.clone();
    drop(dead);
    fs::remove_file(gone.join(VSOCK)).unwrap();
    let mut listener = host.bind(VmId::Wildcard, 6000).unwrap();
    let _call = web.call("6000").unwrap();
    assert_eq!(accepted(&mut listener).unwrap().vm.as_deref(), Some("web"));
    let late = host.start("late", "");
    let name = thread::scope(|scope| {
        let accepted = scope.spawn(|| accepted(&mut listener).unwrap().vm.unwrap());
        while late.call("6000").is_err() {
            thread::sleep(Duration::from_millis(5));
        }
        accepted.join().unwrap()
    });
    assert_eq!(name, "late");
    assert_eq!(listener.paths().count(), 2);
    // A VM that ends takes its directory along, which our socket is in.
    drop(web);
    for name in ["api.sock", VSOCK] {
        fs::remove_file(host.0.join("web").join(name)).unwrap();
    }
    while listener.paths().count() > 1 {
        let nobody = listener.accept_within(Some(Duration::from_millis(20)));
        assert!(nobody.unwrap().is_none());
    }
    assert!(!host.0.join("web").exists());
}

#[test]
fn a_vm_that_is_named_need_not_run_yet() {
    let host = Host::new("before");
    let mut listener = host.bind("web", 6000).unwrap();
    let web = host.start("web", "");
    let _call = web.call("6000").unwrap();
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(peer.socket, web.socket());
    drop(listener);
    let never = host.bind("never", 6000).unwrap();
    assert!(host.0.join("never").exists());
    drop(never);
    assert!(!host.0.join("never").exists());
    for bad in ["", "..", "a/b"] {
        assert!(host.bind(bad, 6000).is_err(), "{bad}");
    }
}

#[test]
fn a_socket_elsewhere_is_found_through_its_link() {
    let host = Host::new("elsewhere");
    let web = host.start("web", "OK SERVICE\n");
    let elsewhere = host.0.join("elsewhere.sock");
    fs::rename(web.socket(), &elsewhere).unwrap();
    symlink(&elsewhere, web.socket()).unwrap();
    host.connect("web", 5000).unwrap();
    let mut listener = host.bind(VmId::Wildcard, 6000).unwrap();
    let _call = UnixStream::connect(peer(&elsewhere, 6000)).unwrap();
    let (_, peer) = listener.accept().unwrap();
    assert_eq!((peer.vm.as_deref(), peer.socket), (Some("web"), elsewhere));
}
