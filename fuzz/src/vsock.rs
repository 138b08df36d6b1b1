// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A client of the host at the Hyper-V sockets' Unix socket: what it says first, in
//! whatever pieces, and the stream that follows.
//!
//! An input is the pieces: one byte that says how many bytes follow, and these.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use arbitrary::Unstructured;
use vmbus::hvsock::{Stream, StreamError};
use vmm::vsock::greeting::{Greeting, Heard};
use vmm::vsock::stream::{Signs, UnixEnd};
use vmm_sys_util::epoll::{Epoll, EventSet};

use crate::step::{blob, write_blob};

/// The longest line that is waited for.
const MAX_LINE: usize = 80;

/// Says `data`, and goes.
pub fn run(data: &[u8]) {
    let (mut client, server) = UnixStream::pair().unwrap();
    server.set_nonblocking(true).unwrap();
    client.set_nonblocking(true).unwrap();
    let mut input = Unstructured::new(data);
    let mut greeting = Greeting::new(server);
    let mut said = Vec::new();
    let wanted = loop {
        let piece = blob(&mut input).unwrap_or_default();
        if piece.is_empty() {
            // A client that says no more: nothing is left to be waited for.
            drop(client);
            assert!(!matches!(greeting.hear(), Heard::NotYet) || said.len() < MAX_LINE);
            return;
        }
        client.write_all(&piece).unwrap();
        said.extend_from_slice(&piece);
        match greeting.hear() {
            Heard::NotYet => {
                assert!(said.len() < MAX_LINE && !said.contains(&b'\n'), "{said:?}");
            }
            Heard::Connect(wanted) => break wanted,
            Heard::Nonsense => {
                assert!(said.len() >= MAX_LINE || said.contains(&b'\n'), "{said:?}");
                return greeting.refuse("no");
            }
            Heard::Gone => panic!("it is there"),
        }
    };
    let end = said.iter().position(|byte| *byte == b'\n').unwrap();
    assert!(said.starts_with(b"CONNECT "), "{wanted:?} of {said:?}");
    said.drain(..=end);
    stream(&mut client, greeting.into_client(), &said, &mut input);
}

/// What stood behind the line, and what comes then, reaches the guest whole.
fn stream(
    client: &mut UnixStream,
    server: UnixStream,
    behind: &[u8],
    input: &mut Unstructured<'_>,
) {
    let signs = Arc::new(Signs::new());
    let epoll = Arc::new(Epoll::new().unwrap());
    let end = UnixEnd::new(server, epoll, 1, Arc::clone(&signs));
    let mut end = end.answering("it");
    end.opened();
    let mut sent = behind.to_vec();
    let mut received = Vec::new();
    let mut chunk = [0; 100];
    while let Ok(piece) = blob(input) {
        if piece.is_empty() {
            break;
        }
        client.write_all(&piece).unwrap();
        sent.extend_from_slice(&piece);
        signs.note(EventSet::IN);
        if let Ok(count) = end.read(&mut chunk) {
            received.extend_from_slice(&chunk[..count]);
        }
        let _ = end.write(&piece);
    }
    client.shutdown(std::net::Shutdown::Write).unwrap();
    signs.note(EventSet::IN | EventSet::READ_HANG_UP);
    loop {
        match end.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => received.extend_from_slice(&chunk[..count]),
            Err(error) => assert_eq!(error, StreamError::WouldBlock, "the end comes"),
        }
    }
    assert_eq!(received, sent);
    end.close_write();
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer);
    assert!(answer.starts_with(b"OK it\n"));
}

fn pieces(all: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in all {
        write_blob(&mut out, piece);
    }
    out
}

/// Clients of each kind.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("port", pieces(&[b"CONNECT 5000\n", b"hello", b"more"])),
        ("behind", pieces(&[b"CONN", b"ECT 22\r\nhello", &[7; 200]])),
        (
            "guid",
            pieces(&[b"CONNECT 00000016-facb-11e6-bd58-64006a7986d3\n"]),
        ),
        ("name", pieces(&[b"CONNECT build agent\n", b"x"])),
        ("nonsense", pieces(&[b"GET / HTTP/1.1\r\n"])),
        ("long", pieces(&[&[b'x'; 79], b"x"])),
    ]
}
