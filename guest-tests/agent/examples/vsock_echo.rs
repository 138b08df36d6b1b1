// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An echo service over Hyper-V sockets: the guest's side, on plain AF_VSOCK.
//!
//! ```text
//! vsock_echo serve 5000     send back what the host sends to port 5000
//! vsock_echo call 6000      send standard input to port 6000 of the host, print the answer
//! ```
//!
//! The host's side is `vmm/examples/hvsocket_echo.rs`, or `socat`. Linked
//! statically, it runs in any guest:
//!
//! ```text
//! RUSTFLAGS=-Ctarget-feature=+crt-static cargo build --package guest-agent \
//!     --example vsock_echo --target x86_64-unknown-linux-gnu
//! ```

use std::env;
use std::io;
use std::net::Shutdown;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::thread;

/// The host, as a socket's peer.
const HOST: u32 = 2;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["serve", port] => parse(port).and_then(serve),
        ["call", port] => parse(port).and_then(call),
        _ => Err(io::Error::other("usage: vsock_echo serve|call PORT")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vsock_echo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(port: &str) -> io::Result<u32> {
    port.parse()
        .map_err(|_| io::Error::other(format!("'{port}' is no port")))
}

/// Takes connections for ever, each in a thread of its own.
fn serve(port: u32) -> io::Result<()> {
    let listener = vsock::listen(port, BACKLOG)?;
    loop {
        let stream = UnixStream::from(vsock::accept(&listener)?);
        thread::spawn(move || echo(&stream));
    }
}

/// Sends everything back, and the end of it.
fn echo(mut stream: &UnixStream) -> io::Result<()> {
    io::copy(&mut { stream }, &mut stream)?;
    stream.shutdown(Shutdown::Write)
}

fn call(port: u32) -> io::Result<()> {
    let mut stream = UnixStream::from(vsock::connect(HOST, port)?);
    let mut writer = stream.try_clone()?;
    thread::spawn(move || {
        io::copy(&mut io::stdin().lock(), &mut writer)?;
        writer.shutdown(Shutdown::Write)
    });
    io::copy(&mut stream, &mut io::stdout().lock()).map(drop)
}

/// The three calls that the standard library does not have. What they give is a
/// connected socket, and a `UnixStream` reads and writes any of those.
mod vsock {
    use std::os::fd::AsRawFd;

    use super::{FromRawFd, OwnedFd, io};

    const SIZE: usize = size_of::<libc::sockaddr_vm>();

    pub(super) fn connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
        let (socket, address) = (socket()?, address(cid, port));
        let pointer = (&raw const address).cast();
        // SAFETY: the pointer is to an address of that length, which is only read.
        let result = unsafe { libc::connect(socket.as_raw_fd(), pointer, length()) };
        checked(result).map(|_| socket)
    }

    pub(super) fn listen(port: u32, backlog: i32) -> io::Result<OwnedFd> {
        let (socket, address) = (socket()?, address(libc::VMADDR_CID_ANY, port));
        let pointer = (&raw const address).cast();
        // SAFETY: the pointer is to an address of that length, which is only read.
        let result = unsafe { libc::bind(socket.as_raw_fd(), pointer, length()) };
        checked(result)?;
        // SAFETY: the call takes any numbers.
        checked(unsafe { libc::listen(socket.as_raw_fd(), backlog) })?;
        Ok(socket)
    }

    pub(super) fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
        let (nobody, nothing) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: null pointers mean that the peer's address is not wanted.
        let fd =
            unsafe { libc::accept4(listener.as_raw_fd(), nobody, nothing, libc::SOCK_CLOEXEC) };
        owned(fd)
    }

    fn socket() -> io::Result<OwnedFd> {
        // SAFETY: the call takes any numbers.
        owned(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })
    }

    fn owned(fd: i32) -> io::Result<OwnedFd> {
        let fd = checked(fd)?;
        // SAFETY: the descriptor was just made and belongs to nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
        // SAFETY: all zeroes are a valid address.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).unwrap_or(0);
        (address.svm_cid, address.svm_port) = (cid, port);
        address
    }

    fn length() -> libc::socklen_t {
        libc::socklen_t::try_from(SIZE).unwrap_or(0)
    }

    fn checked(result: i32) -> io::Result<i32> {
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(result)
    }
}
