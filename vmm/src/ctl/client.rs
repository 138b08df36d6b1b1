// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A client of the control API, and finding the VM that is meant.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::CtlError;
use crate::api::server::MAX_OUTPUT;
use crate::api::socket;
use crate::api::types::{ApiError, ErrorBody};
use crate::hvsocket::is_listening;

/// Longer than the longest operation may take.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Where more than the longest answer is announced, it is no VM's.
const MAX_LENGTH: u64 = MAX_OUTPUT as u64;
/// An answer that is ready comes within this time.
const SHORTEST: Duration = Duration::from_millis(500);

/// The VM's status without a look at the guest: for who does not want to know of its
/// daemons.
pub const AS_KNOWN: &str = "/v1/vm?look=false";

/// A VM that can be asked.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
    /// How long an answer may take.
    patience: Duration,
}

/// The VMs of this user that answer: name and socket.
pub fn running() -> Vec<(String, PathBuf)> {
    let mut vms = socket::known();
    vms.retain(|(_, path)| is_listening(path));
    vms
}

impl Client {
    /// The VM at a socket.
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.into(),
            patience: PATIENCE,
        }
    }

    /// The same VM, which has to answer within this time.
    #[must_use]
    pub fn within(&self, patience: Duration) -> Self {
        Self {
            patience,
            ..self.clone()
        }
    }

    /// The VM that is meant: by name, by socket, or because there is one.
    pub fn find(vm: Option<&str>, path: Option<&Path>) -> Result<Self, CtlError> {
        if let Some(path) = path {
            return Ok(Self::at(path));
        }
        let mut vms = running();
        if let Some(wanted) = vm {
            let found = vms.into_iter().find(|(name, _)| name == wanted);
            return found.map(|(_, path)| Self::at(&path)).ok_or_else(|| {
                CtlError::NoVm(format!(
                    "no VM named '{wanted}' is running (see vmmctl list)"
                ))
            });
        }
        match (vms.pop(), vms.as_slice()) {
            (None, _) => Err(CtlError::NoVm("no VM is running".into())),
            (Some((_, path)), []) => Ok(Self::at(&path)),
            (Some((last, _)), more) => {
                let mut names: Vec<&str> = more.iter().map(|(name, _)| name.as_str()).collect();
                names.push(&last);
                Err(CtlError::WhichVm(format!(
                    "{} VMs are running: say which with --vm ({})",
                    names.len(),
                    names.join(", ")
                )))
            }
        }
    }

    /// The same VM, whose answers are waited for until `end` and no longer: the
    /// process may be stopped, or stuck.
    #[must_use]
    pub fn until(&self, end: Instant) -> Self {
        let left = end.saturating_duration_since(Instant::now());
        // None at all would be for ever.
        self.within(left.clamp(SHORTEST, PATIENCE))
    }

    /// Its control socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether anybody answers at the socket.
    pub fn is_there(&self) -> bool {
        is_listening(&self.path)
    }

    /// Asks for something.
    pub fn get(&self, target: &str) -> Result<Value, CtlError> {
        self.ask("GET", target, &[])
    }

    /// Asks for something to be done.
    pub fn send(
        &self,
        method: &str,
        target: &str,
        body: &impl Serialize,
    ) -> Result<Value, CtlError> {
        let body = serde_json::to_vec(body).map_err(|e| CtlError::Protocol(e.to_string()))?;
        self.ask(method, target, &body)
    }

    fn ask(&self, method: &str, target: &str, body: &[u8]) -> Result<Value, CtlError> {
        answer(&mut self.request(method, target, body)?).map_err(|error| match error {
            CtlError::Io(error) if is_late(&error) => CtlError::Timeout(format!(
                "vmm did not answer within {} s: its process may be stopped, or stuck",
                self.patience.as_secs_f64()
            )),
            error => error,
        })
    }

    /// What happens from now on, behind what has happened.
    pub fn events(&self) -> Result<Events, CtlError> {
        let mut reader = self.request("GET", "/v1/events", &[])?;
        let (status, length) = head(&mut reader)?;
        if status != 200 {
            body(&mut reader, status, length)?;
        }
        let line = String::new();
        Ok(Events { reader, line })
    }

    /// Sends a body of `size` bytes while it is read, once the VM wants it.
    pub fn upload(
        &self,
        target: &str,
        size: u64,
        body: &mut impl Read,
        mut told: impl FnMut(u64),
    ) -> Result<Value, CtlError> {
        let mut reader = self.head("POST", target, size, "Expect: 100-continue\r\n")?;
        let mut sent = 0;
        // An empty body is not waited for.
        if size > 0 && reader.fill_buf()?.starts_with(b"HTTP/1.1 100") {
            head(&mut reader)?;
            let mut chunk = vec![0; 64 << 10];
            while sent < size {
                let left = usize::try_from(size - sent).unwrap_or(usize::MAX);
                let most = left.min(chunk.len());
                let count = body.read(chunk.get_mut(..most).unwrap_or_default())?;
                if count == 0 {
                    return Err(CtlError::Some(format!(
                        "the file has become shorter: {sent} of {size} bytes"
                    )));
                }
                let part = chunk.get(..count).unwrap_or_default();
                if reader.get_mut().write_all(part).is_err() {
                    // It has said why, and reads no more.
                    break;
                }
                sent += count as u64;
                told(sent);
            }
        }
        answer(&mut reader)
    }

    /// Copies the lines of a stream, or of what there is, as they come.
    pub fn lines(
        &self,
        target: &str,
        mut each: impl FnMut(&str) -> io::Result<()>,
    ) -> Result<(), CtlError> {
        let mut reader = self.request("GET", target, &[])?;
        let (_, length) = head(&mut reader)?;
        // What happens next may be long in coming.
        reader.get_ref().set_read_timeout(None)?;
        for line in BufReader::new(reader.take(length.unwrap_or(u64::MAX))).lines() {
            each(&line?)?;
        }
        Ok(())
    }

    fn request(
        &self,
        method: &str,
        target: &str,
        body: &[u8],
    ) -> Result<BufReader<UnixStream>, CtlError> {
        let fail = |error: io::Error| CtlError::Connect {
            path: self.path.display().to_string(),
            reason: error.to_string(),
        };
        let mut reader = self.head(method, target, body.len() as u64, "")?;
        reader.get_mut().write_all(body).map_err(fail)?;
        Ok(reader)
    }

    /// Sends the head of a request.
    fn head(
        &self,
        method: &str,
        target: &str,
        length: u64,
        more: &str,
    ) -> Result<BufReader<UnixStream>, CtlError> {
        let fail = |error: io::Error| CtlError::Connect {
            path: self.path.display().to_string(),
            reason: error.to_string(),
        };
        let mut stream = UnixStream::connect(&self.path).map_err(fail)?;
        stream.set_read_timeout(Some(self.patience)).map_err(fail)?;
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: vmm\r\nConnection: close\r\n{more}\
             Content-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).map_err(fail)?;
        Ok(BufReader::new(stream))
    }
}

/// The stream of events.
#[derive(Debug)]
pub struct Events {
    reader: BufReader<UnixStream>,
    /// As far as it has come.
    line: String,
}

/// What comes of waiting for an event.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// One.
    Event(Value),
    /// None in time.
    Late,
    /// There will be none any more.
    End,
}

impl Events {
    /// The next event, if it comes before `end`.
    pub fn next(&mut self, end: Instant) -> Result<Next, CtlError> {
        let left = end.saturating_duration_since(Instant::now());
        let left = left.max(Duration::from_millis(1));
        self.reader.get_ref().set_read_timeout(Some(left))?;
        match self.reader.read_line(&mut self.line) {
            Err(error) if is_late(&error) => Ok(Next::Late),
            // Whatever ended it: the process is gone.
            Ok(0) | Err(_) => Ok(Next::End),
            Ok(_) if !self.line.ends_with('\n') => Ok(Next::End),
            Ok(_) => {
                let line = std::mem::take(&mut self.line);
                let event = serde_json::from_str(&line);
                event
                    .map(Next::Event)
                    .map_err(|error| CtlError::Protocol(error.to_string()))
            }
        }
    }
}

/// Nothing came within the socket's time.
fn is_late(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// Reads a whole answer.
fn answer(reader: &mut impl BufRead) -> Result<Value, CtlError> {
    let (status, length) = head(reader)?;
    body(reader, status, length)
}

/// Reads an answer's body.
fn body(reader: &mut impl BufRead, status: u16, length: Option<u64>) -> Result<Value, CtlError> {
    let mut json = Vec::new();
    let length = length.unwrap_or(MAX_LENGTH);
    if length > MAX_LENGTH {
        return Err(CtlError::Protocol(format!(
            "its answer is {length} bytes long, and {MAX_LENGTH} are the most: is vmmctl of \
             another version than the VM's vmm?"
        )));
    }
    reader.take(length).read_to_end(&mut json)?;
    let bad = |error: serde_json::Error| CtlError::Protocol(error.to_string());
    if status == 200 {
        return serde_json::from_slice(&json).map_err(bad);
    }
    let ErrorBody { error } = serde_json::from_slice(&json).map_err(bad)?;
    Err(ApiError { status, ..error }.into())
}

/// Reads the head of an answer: its status, and its body's length if it has one.
fn head(reader: &mut impl BufRead) -> Result<(u16, Option<u64>), CtlError> {
    let bad = |what: &str| CtlError::Protocol(what.to_owned());
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| match line.as_str() {
        "" => bad("it ended before it answered"),
        _ => bad("not HTTP"),
    })?;
    let mut length = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(bad("it ends in its head"));
        }
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return Ok((status, length));
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok();
        }
    }
}
