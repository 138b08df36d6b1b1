// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Clients of a port, with a program of this host in the guest's place.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::time::Instant;

use super::*;

/// A socket as `vmm --vsock` has it. Service 1 sends back what it gets when it has
/// all of it, 2 sends for ever, 3 reads nothing; nobody takes others.
fn guest(test: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("forward-{test}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve_as_guest(stream));
        }
    });
    path
}

fn serve_as_guest(mut stream: UnixStream) -> io::Result<()> {
    let mut line = String::new();
    BufReader::with_capacity(1, &stream).read_line(&mut line)?;
    match line.trim_end() {
        "CONNECT 1" => {
            writeln!(stream, "OK 1")?;
            let mut all = Vec::new();
            stream.read_to_end(&mut all)?;
            stream.write_all(&all)
        }
        "CONNECT 2" => {
            writeln!(stream, "OK 2")?;
            loop {
                stream.write_all(&[7; 1000])?;
            }
        }
        "CONNECT 3" => {
            writeln!(stream, "OK 3")?;
            thread::sleep(Duration::from_secs(60));
            Ok(())
        }
        _ => writeln!(stream, "ERR nobody"),
    }
}

/// Where a port leads to this service.
fn forward(socket: PathBuf, service: &str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let target = Target::new(socket, service.into());
    thread::spawn(move || accept(&listener, &target));
    address
}

#[test]
fn addresses_are_loopback_unless_they_are_said() {
    let at = |text: &str| listen_at(text).map(|address| address.to_string());
    assert_eq!(at("80"), Ok("127.0.0.1:80".into()));
    assert_eq!(at("localhost:0"), Ok("127.0.0.1:0".into()));
    assert_eq!(at("0.0.0.0:80"), Ok("0.0.0.0:80".into()));
    assert_eq!(at("[::1]:80"), Ok("[::1]:80".into()));
    for bad in [
        "",
        "65536",
        ":80",
        "*:80",
        "example.org:80",
        "127.0.0.1",
        "::1:",
    ] {
        assert!(at(bad).is_err(), "{bad}");
    }
}

#[test]
fn fifty_at_once_get_back_what_they_sent_before_they_ended_their_direction() {
    let address = forward(guest("fifty"), "1");
    let threads: Vec<_> = (0..50_u8)
        .map(|number| {
            thread::spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                let data = vec![number; 100_000 + usize::from(number)];
                stream.write_all(&data).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut back = Vec::new();
                stream.read_to_end(&mut back).unwrap();
                assert!(back == data, "{number}: {} bytes", back.len());
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn one_that_nobody_takes_is_reset_and_others_go_on() {
    let socket = guest("refused");
    let refused = forward(socket.clone(), "9");
    let mut stream = TcpStream::connect(refused).unwrap();
    let error = stream.read(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let mut stream = TcpStream::connect(forward(socket, "2")).unwrap();
    stream.read_exact(&mut [0; 5000]).unwrap();
}

#[test]
fn a_reader_that_stops_stops_its_writer_only() {
    let socket = guest("slow");
    let address = forward(socket.clone(), "3");
    let mut stuck = TcpStream::connect(address).unwrap();
    stuck
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let (data, mut sent) = (vec![0; 65536], 0);
    let error = loop {
        match stuck.write(&data) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
        assert!(
            sent < 64 << 20,
            "{sent} bytes are kept for one who does not read"
        );
    };
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    // The same port, and another.
    for address in [address, forward(socket, "2")] {
        let start = Instant::now();
        drop(TcpStream::connect(address).unwrap());
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn a_guest_that_answers_before_it_has_read_all_is_heard() {
    let (guest, mut far) = UnixStream::pair().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (near, _) = listener.accept().unwrap();
    let thread = thread::spawn(move || both_ways(&near, &guest));
    far.write_all(b"no").unwrap();
    drop(far);
    // What it does not want any more.
    while client.write_all(&[0; 1000]).is_ok() {
        let mut answer = [0; 2];
        if client.peek(&mut answer).is_ok_and(|count| count == 2) {
            client.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"no");
            break;
        }
    }
    drop(client);
    let _ = thread.join().unwrap();
}

#[test]
fn a_client_that_is_gone_ends_the_guests_stream() {
    let (guest, far) = UnixStream::pair().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (near, _) = listener.accept().unwrap();
    let thread = thread::spawn(move || both_ways(&near, &guest));
    drop(client);
    // It may still read, as far as the guest can tell; then it turns out that nobody does.
    let mut far = far;
    let mut failed = None;
    for _ in 0..1000 {
        if let Err(error) = far.write_all(&[0; 1000]) {
            failed = Some(error.kind());
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(failed, Some(io::ErrorKind::BrokenPipe));
    assert!(thread.join().unwrap().is_err());
}
