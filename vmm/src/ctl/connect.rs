// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl connect`: standard input and output to a Hyper-V socket of the guest.

use std::io::{self, Read, Write, stdin, stdout};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use super::CtlError;
use super::client::{AS_KNOWN, Client};
use crate::api::types::VmStatus;
use crate::hvsocket;

/// Where sshd listens.
pub const SSH: &str = "22";
/// How the answer begins when nobody has taken a connection.
const NOBODY: &str = "nobody in the guest";
/// What a guest lacks to which `vmmctl ssh` cannot connect.
const NO_SSHD: &str = "nothing in the guest listens on vsock port 22: it takes an openssh-server, \
    systemd 256 or newer (or a socket unit of yours), the hv_sock module, and a guest that has \
    come up (docs/ssh.md)";

/// Connects to a service of the guest, by port, GUID or registered name.
pub fn open(vm: &Client, service: &str) -> Result<UnixStream, CtlError> {
    let status: VmStatus = serde_json::from_value(vm.get(AS_KNOWN)?)
        .map_err(|error| CtlError::Protocol(error.to_string()))?;
    let path = status
        .vsock
        .ok_or_else(|| CtlError::Refused("this VM has no socket for Hyper-V sockets".into()))?;
    hvsocket::connect_at(Path::new(&path), service).map_err(|error| match error.kind() {
        // Not of the system's, which has no words with it.
        io::ErrorKind::ConnectionRefused if error.get_ref().is_some() => {
            CtlError::Refused(refusal(service, &error.to_string()))
        }
        _ => error.into(),
    })
}

/// Why there is no connection, for people.
fn refusal(service: &str, why: &str) -> String {
    if service == SSH && why.starts_with(NOBODY) {
        return NO_SSHD.into();
    }
    format!("{service}: {why}")
}

/// Copies both ways until the guest ends its direction.
pub fn connect(vm: &Client, service: &str) -> Result<(), CtlError> {
    let mut stream = open(vm, service)?;
    let mut input = stream.try_clone()?;
    thread::spawn(move || {
        let _ = io::copy(&mut stdin().lock(), &mut input);
        let _ = input.shutdown(Shutdown::Write);
    });
    let mut out = stdout().lock();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        out.write_all(buffer.get(..len).unwrap_or_default())?;
        // A shell's prompt has no line end.
        out.flush()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_sshd_is_told_with_what_it_takes() {
        let nobody = "nobody in the guest took the connection";
        assert!(refusal("22", nobody).contains("openssh-server"));
        assert_eq!(
            refusal("23", nobody),
            "23: nobody in the guest took the connection"
        );
        let off = refusal("22", "the guest is not connected to the bus");
        assert_eq!(off, "22: the guest is not connected to the bus");
    }
}
