// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl connect`: standard input and output to a Hyper-V socket of the guest.

use std::io::{self, Read, Write, stdin, stdout};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use super::CtlError;
use super::client::Client;
use crate::api::types::VmStatus;
use crate::hvsocket;

/// Connects to a service of the guest, by port, GUID or registered name.
pub fn open(vm: &Client, service: &str) -> Result<UnixStream, CtlError> {
    let status: VmStatus = serde_json::from_value(vm.get("/v1/vm")?)
        .map_err(|error| CtlError::Protocol(error.to_string()))?;
    let path = status
        .vsock
        .ok_or_else(|| CtlError::Refused("this VM has no socket for Hyper-V sockets".into()))?;
    hvsocket::connect_at(Path::new(&path), service).map_err(|error| match error.kind() {
        // Not of the system's, which has no words with it.
        io::ErrorKind::ConnectionRefused if error.get_ref().is_some() => {
            CtlError::Refused(format!("{service}: {error}"))
        }
        _ => error.into(),
    })
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
