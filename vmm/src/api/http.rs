// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! As much of HTTP/1.1 as the control API needs: requests with a length, one
//! after the other on a connection; answers with JSON, or with an endless body.
//!
//! Pure: bytes in, requests out.

use std::borrow::Cow;

use httparse::{EMPTY_HEADER, Status};

use super::data::is_upload;

/// A request line and its headers may be this long.
pub const MAX_HEAD: usize = 8 << 10;
/// A body may be this long, but for files; the API's are a few hundred bytes.
pub const MAX_BODY: usize = 64 << 10;
/// More headers than any client sends.
const MAX_HEADERS: usize = 64;

/// A whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `PUT`, …
    pub method: String,
    /// The target: path and query.
    pub target: String,
    /// The body.
    pub body: Vec<u8>,
    /// The client wants to go on with this connection.
    pub keep_alive: bool,
}

/// Why bytes are no request; the connection is closed after the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Not HTTP.
    #[error("this is not HTTP/1.1")]
    Malformed,
    /// The head does not end.
    #[error("the request's head is longer than {MAX_HEAD} bytes")]
    HeadTooLong,
    /// The body is announced as too long.
    #[error("the request's body is longer than {MAX_BODY} bytes")]
    BodyTooLong,
    /// A body of unknown length.
    #[error("the request's body needs a Content-Length")]
    LengthRequired,
}

impl HttpError {
    /// The status that fits.
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::HeadTooLong => 431,
            Self::BodyTooLong => 413,
            Self::LengthRequired => 411,
        }
    }
}

/// What the bytes at the start of a connection's buffer are.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A request, and how many bytes it took.
    Whole(Request, usize),
    /// The start of one. `true` if the client waits for leave to send the body.
    Partial(bool),
    /// The head of a request whose body is passed on while it comes.
    Head {
        /// Without its body.
        request: Request,
        /// How many bytes the head took.
        used: usize,
        /// How long the body is.
        length: u64,
        /// The client waits for leave to send the body.
        expects: bool,
    },
}

/// Parses the start of `bytes`.
pub fn parse(bytes: &[u8]) -> Result<Parsed, HttpError> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_len = match head.parse(bytes.get(..MAX_HEAD).unwrap_or(bytes)) {
        Ok(Status::Complete(len)) => len,
        Ok(Status::Partial) if bytes.len() >= MAX_HEAD => return Err(HttpError::HeadTooLong),
        Ok(Status::Partial) => return Ok(Parsed::Partial(false)),
        Err(_) => return Err(HttpError::Malformed),
    };
    let (Some(method), Some(target)) = (head.method, head.path) else {
        return Err(HttpError::Malformed);
    };
    let target = origin_form(target);
    let target = target.as_ref();
    let mut fields = Fields {
        keep_alive: head.version == Some(1),
        ..Fields::default()
    };
    for header in head.headers.iter() {
        fields.take(header)?;
    }
    if is_upload(method, target) {
        if !fields.length_seen {
            return Err(HttpError::LengthRequired);
        }
        let request = Request {
            method: method.to_owned(),
            target: target.to_owned(),
            body: Vec::new(),
            keep_alive: fields.keep_alive,
        };
        return Ok(Parsed::Head {
            request,
            used: head_len,
            length: fields.length,
            expects: fields.expects,
        });
    }
    let length = usize::try_from(fields.length).map_err(|_| HttpError::BodyTooLong)?;
    if length > MAX_BODY {
        return Err(HttpError::BodyTooLong);
    }
    let end = head_len.saturating_add(length);
    let Some(body) = bytes.get(head_len..end) else {
        return Ok(Parsed::Partial(fields.expects));
    };
    Ok(Parsed::Whole(
        Request {
            method: method.to_owned(),
            target: target.to_owned(),
            body: body.to_vec(),
            keep_alive: fields.keep_alive,
        },
        end,
    ))
}

/// A target as path and query. A client that takes the socket for a proxy sends
/// a whole URL, which a server has to take as well (RFC 9112, 3.2.2); whatever
/// host it names, it is this one.
fn origin_form(target: &str) -> Cow<'_, str> {
    const SCHEME: &str = "http://";
    let scheme = target.get(..SCHEME.len());
    if !scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME)) {
        return target.into();
    }
    let rest = target.get(SCHEME.len()..).unwrap_or_default();
    let host = rest.find(['/', '?']).unwrap_or(rest.len());
    match rest.get(host..).unwrap_or_default() {
        path if path.starts_with('/') => path.into(),
        query => format!("/{query}").into(),
    }
}

/// The header fields that matter.
#[derive(Default)]
struct Fields {
    length: u64,
    length_seen: bool,
    keep_alive: bool,
    expects: bool,
}

impl Fields {
    fn take(&mut self, header: &httparse::Header<'_>) -> Result<(), HttpError> {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let value = std::str::from_utf8(header.value).unwrap_or("").trim();
        if is("content-length") {
            let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            // Two lengths are a way to smuggle a request past somebody.
            if !digits || self.length_seen {
                return Err(HttpError::Malformed);
            }
            self.length_seen = true;
            self.length = value.parse().map_err(|_| HttpError::BodyTooLong)?;
        } else if is("transfer-encoding") {
            return Err(HttpError::LengthRequired);
        } else if is("connection") {
            if value.eq_ignore_ascii_case("close") {
                self.keep_alive = false;
            } else if value.eq_ignore_ascii_case("keep-alive") {
                self.keep_alive = true;
            }
        } else if is("expect") {
            self.expects = value.eq_ignore_ascii_case("100-continue");
        }
        Ok(())
    }
}

/// The answer that gives leave to send a body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The head of an endless answer: the connection's end is the body's.
pub const STREAM: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n";

/// A whole answer of one JSON value. `allow` are the methods that would do.
pub fn response(status: u16, json: &[u8], allow: &[&str], keep_alive: bool) -> Vec<u8> {
    whole(status, "application/json", json, allow, keep_alive)
}

/// A whole answer of one JSON value a line.
pub fn lines(json: &[u8], keep_alive: bool) -> Vec<u8> {
    whole(200, "application/x-ndjson", json, &[], keep_alive)
}

fn whole(status: u16, kind: &str, body: &[u8], allow: &[&str], keep_alive: bool) -> Vec<u8> {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let allow = match allow {
        [] => String::new(),
        some => format!("Allow: {}\r\n", some.join(", ")),
    };
    let mut bytes = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         {allow}Connection: {connection}\r\n\r\n",
        reason(status),
        body.len(),
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        507 => "Insufficient Storage",
        504 => "Gateway Timeout",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PUT: &[u8] =
        b"PUT /v1/vm/power HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\n";

    #[test]
    fn a_request_takes_its_own_bytes_and_leaves_the_next() {
        let Ok(Parsed::Whole(request, used)) = parse(PUT) else {
            panic!("not whole");
        };
        assert_eq!(
            (request.method.as_str(), request.target.as_str()),
            ("PUT", "/v1/vm/power")
        );
        assert_eq!(
            (request.body.as_slice(), request.keep_alive),
            (&b"hello"[..], true)
        );
        assert!(PUT[used..].starts_with(b"GET /"));
    }

    #[test]
    fn every_prefix_of_a_request_is_partial() {
        let end = PUT.len() - b"GET / HTTP/1.1\r\n".len();
        for len in 0..end {
            assert_eq!(parse(&PUT[..len]), Ok(Parsed::Partial(false)), "{len}");
        }
    }

    #[test]
    fn a_client_may_ask_before_it_sends_a_body() {
        let head = b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2000\r\n\r\n";
        assert_eq!(parse(head), Ok(Parsed::Partial(true)));
    }

    #[test]
    fn a_whole_url_is_as_good_as_a_path() {
        let target = |target: &str| {
            let head = format!("GET {target} HTTP/1.1\r\nHost: vm\r\n\r\n");
            match parse(head.as_bytes()) {
                Ok(Parsed::Whole(request, _)) => request.target,
                other => panic!("{other:?}"),
            }
        };
        for (url, path) in [
            ("http://vm/v1/vm", "/v1/vm"),
            ("HTTP://vm:80/v1/vm?look=false", "/v1/vm?look=false"),
            ("http://vm", "/"),
            ("http://vm?look=false", "/?look=false"),
            ("http://[::1]:80/a?b=http://c/d", "/a?b=http://c/d"),
            ("/v1/http://vm", "/v1/http://vm"),
            ("https://vm/v1/vm", "https://vm/v1/vm"),
        ] {
            assert_eq!(target(url), path, "{url}");
        }
        let upload = b"POST http://vm/v1/files?path=/a HTTP/1.1\r\nContent-Length: 5\r\n\r\n";
        assert!(matches!(
            parse(upload),
            Ok(Parsed::Head { request, .. }) if request.target == "/v1/files?path=/a"
        ));
    }

    #[test]
    fn connections_are_kept_as_the_version_and_the_client_say() {
        let keep = |head: &str| match parse(head.as_bytes()) {
            Ok(Parsed::Whole(request, _)) => request.keep_alive,
            other => panic!("{other:?}"),
        };
        assert!(keep("GET / HTTP/1.1\r\n\r\n"));
        assert!(!keep("GET / HTTP/1.0\r\n\r\n"));
        assert!(!keep("GET / HTTP/1.1\r\nConnection: close\r\n\r\n"));
    }

    #[test]
    fn what_cannot_be_served_is_refused() {
        let error = |bytes: &[u8]| parse(bytes).unwrap_err();
        assert_eq!(error(b"\x16\x03\x01\x02\x00\r\n\r\n"), HttpError::Malformed);
        assert_eq!(error(&[b'A'; MAX_HEAD + 1]), HttpError::HeadTooLong);
        for length in ["100000000", "99999999999999999999999"] {
            let head = format!("PUT / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
            assert_eq!(error(head.as_bytes()), HttpError::BodyTooLong);
        }
        for length in ["-1", "+5", "", "5, 5", "0x5"] {
            let head = format!("PUT / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
            assert_eq!(error(head.as_bytes()), HttpError::Malformed, "{length}");
        }
        let twice = b"PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx";
        assert_eq!(error(twice), HttpError::Malformed);
        let chunked = b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        assert_eq!(error(chunked), HttpError::LengthRequired);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = parse(&bytes);
        }
    }
}
