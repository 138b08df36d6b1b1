// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a client says first: `CONNECT 5000\n`, or `CONNECT` and a GUID, or a
//! registered name.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use vmbus::wire::Guid;

use super::registry::{MAX_NAME, ServiceName, parse_service};
use crate::sys;

/// More than any line that makes sense.
const MAX_LINE: usize = MAX_NAME + 16;

/// A service, as a client names it.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    /// By port or GUID.
    Service(Guid),
    /// By a name that may be registered.
    Named(ServiceName),
}

/// What came of listening to a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The line is not complete.
    NotYet,
    /// It wants this service of the guest.
    Connect(Wanted),
    /// It said something else.
    Nonsense,
    /// It went away.
    Gone,
}

/// A client that has not said yet what it wants.
pub struct Greeting {
    client: UnixStream,
}

impl Greeting {
    /// A client that has just come; its socket does not block.
    pub fn new(client: UnixStream) -> Self {
        Self { client }
    }

    /// Takes the line, if it is there, and nothing of what follows it.
    pub fn hear(&mut self) -> Heard {
        let mut bytes = [0; MAX_LINE];
        let seen = match sys::peek(&self.client, &mut bytes) {
            Ok(0) => return Heard::Gone,
            Ok(seen) => bytes.get(..seen).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Heard::NotYet,
            Err(_) => return Heard::Gone,
        };
        let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
            return if seen.len() == MAX_LINE {
                Heard::Nonsense
            } else {
                Heard::NotYet
            };
        };
        let line = seen.get(..end).unwrap_or_default().to_vec();
        let taken = bytes.get_mut(..=end).unwrap_or_default();
        if self.client.read_exact(taken).is_err() {
            return Heard::Gone;
        }
        wanted(&line).map_or(Heard::Nonsense, Heard::Connect)
    }

    /// Says no, and goes.
    pub fn refuse(mut self, why: &str) {
        // Its buffer is empty, or it does not listen.
        let _ = self.client.write(format!("ERR {why}\n").as_bytes());
    }

    /// The client, for its stream.
    pub fn into_client(self) -> UnixStream {
        self.client
    }
}

fn wanted(line: &[u8]) -> Option<Wanted> {
    let line = std::str::from_utf8(line).ok()?.trim_end();
    let service = line.strip_prefix("CONNECT ")?;
    match parse_service(service) {
        Ok(service) => Some(Wanted::Service(service)),
        Err(_) => service.parse().map(Wanted::Named).ok(),
    }
}

#[cfg(test)]
mod tests {
    use vmbus::hvsock::service_of_port;

    use super::*;

    #[test]
    fn lines_name_ports_or_guids_or_names() {
        let ssh = || Some(Wanted::Service(service_of_port(22)));
        assert_eq!(wanted(b"CONNECT 22"), ssh());
        assert_eq!(wanted(b"CONNECT 22\r"), ssh());
        assert_eq!(
            wanted(b"CONNECT 00000016-facb-11e6-bd58-64006a7986d3"),
            ssh()
        );
        let agent = Wanted::Named("build agent".parse().unwrap());
        assert_eq!(wanted(b"CONNECT build agent\r"), Some(agent));
        for bad in ["", "CONNECT", "CONNECT ", "CONNECT -1", "CONNECT /x", "22"] {
            assert_eq!(wanted(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(wanted(b"CONNECT 4294967296"), None);
        assert_eq!(wanted(b"CONNECT \xff"), None);
    }

    #[test]
    fn what_follows_the_line_is_left_for_the_stream() {
        let (mut client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let mut greeting = Greeting::new(server);
        assert_eq!(greeting.hear(), Heard::NotYet);
        client.write_all(b"CONN").unwrap();
        assert_eq!(greeting.hear(), Heard::NotYet);
        client.write_all(b"ECT 7\nmore").unwrap();
        assert_eq!(
            greeting.hear(),
            Heard::Connect(Wanted::Service(service_of_port(7)))
        );
        let mut rest = [0; 9];
        let mut server = greeting.into_client();
        assert_eq!(server.read(&mut rest).unwrap(), 4);
        assert_eq!(&rest[..4], b"more");
    }

    #[test]
    fn long_lines_and_silence_are_told_apart() {
        let (mut client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let mut greeting = Greeting::new(server);
        client.write_all(&[b'x'; MAX_LINE - 1]).unwrap();
        assert_eq!(greeting.hear(), Heard::NotYet);
        client.write_all(b"x").unwrap();
        assert_eq!(greeting.hear(), Heard::Nonsense);
        greeting.refuse("no");
        let mut said = String::new();
        // The unread bytes make it a reset.
        let _ = client.read_to_string(&mut said);
        assert_eq!(said, "ERR no\n");
    }

    #[test]
    fn a_client_that_leaves_is_gone() {
        let (client, server) = UnixStream::pair().unwrap();
        drop(client);
        assert_eq!(Greeting::new(server).hear(), Heard::Gone);
    }
}
