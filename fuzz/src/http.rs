// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control API's parser: any bytes on a connection are requests one after
//! the other, the start of one, or refused; and it does not matter in which
//! pieces they come.

use vmm::api::http::{self, MAX_BODY, MAX_HEAD, Parsed};
use vmm::api::routes::route;

/// What a connection's bytes came to.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Request(String, String, usize),
    Upload(String, u64),
    Refused(u16),
}

/// Parses `data` at once, and byte by byte.
pub fn run(data: &[u8]) {
    let whole = parse(data, data.len().max(1));
    let step = data.first().map_or(1, |byte| usize::from(byte % 7) + 1);
    let pieces = parse(data, step);
    // What comes in pieces may be refused before it is whole, by its size only.
    let same = whole.iter().zip(&pieces).all(|(a, b)| a == b);
    assert!(same, "{whole:?} became {pieces:?}");
}

fn parse(data: &[u8], step: usize) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut buffer = Vec::new();
    for piece in data.chunks(step) {
        buffer.extend_from_slice(piece);
        loop {
            match http::parse(&buffer) {
                Ok(Parsed::Partial(_)) => {
                    assert!(buffer.len() <= MAX_HEAD + MAX_BODY, "kept {}", buffer.len());
                    break;
                }
                Ok(Parsed::Whole(request, used)) => {
                    assert!(used > 0 && used <= buffer.len());
                    assert!(request.body.len() <= MAX_BODY);
                    // Whatever it asks for, it is an operation or an error.
                    let _ = route(&request);
                    buffer.drain(..used);
                    let length = request.body.len();
                    seen.push(Seen::Request(request.method, request.target, length));
                }
                Ok(Parsed::Head {
                    request,
                    used,
                    length,
                    ..
                }) => {
                    assert!(used > 0 && used <= MAX_HEAD);
                    // What follows is a file's.
                    seen.push(Seen::Upload(request.target, length));
                    return seen;
                }
                Err(error) => {
                    seen.push(Seen::Refused(error.status()));
                    return seen;
                }
            }
        }
    }
    seen
}

/// Requests of each kind.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("status", b"GET /v1/vm HTTP/1.1\r\nHost: vm\r\n\r\n".to_vec()),
        (
            "power",
            b"PUT /v1/vm/power HTTP/1.1\r\nContent-Length: 17\r\n\r\n{\"action\":\"kill\"}GET /v1/time HTTP/1.0\r\n\r\n"
                .to_vec(),
        ),
        (
            "file",
            b"POST /v1/files?path=/etc/a&mkdir=true HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc"
                .to_vec(),
        ),
        (
            "item",
            b"PUT /v1/kvp/external/a%20b HTTP/1.1\r\nConnection: close\r\nContent-Length: 13\r\n\r\n{\"value\":\"x\"}"
                .to_vec(),
        ),
        ("chunked", b"POST /v1/vss/freeze HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec()),
        (
            "absolute",
            b"POST http://vm/v1/files?path=/a HTTP/1.1\r\nContent-Length: 1\r\n\r\nx".to_vec(),
        ),
        ("long", b"GET / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n".to_vec()),
    ]
}
