// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An echo service over Hyper-V sockets: the host's side, with `vmm::hvsocket`.
//!
//! ```text
//! hvsocket_echo serve 6000          send back what any guest sends to port 6000
//! hvsocket_echo serve 6000 web      only for the VM `web`
//! hvsocket_echo call 5000 web       send standard input to port 5000 of `web`, print the answer
//! ```
//!
//! A service is a port or a GUID; a VM is a name, or the path of its socket. The
//! guest's side is `guest-tests/agent/examples/vsock_echo.rs`, or `socat`.

use std::env;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use vmm::hvsocket::{Address, Listener, VmId, connect};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["serve", service] => address(service, None).and_then(|address| serve(&address)),
        ["serve", service, vm] => address(service, Some(vm)).and_then(|address| serve(&address)),
        ["call", service] => address(service, None).and_then(|address| call(&address)),
        ["call", service, vm] => address(service, Some(vm)).and_then(|address| call(&address)),
        _ => {
            eprintln!("usage: hvsocket_echo serve|call PORT|GUID [NAME|PATH]");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hvsocket_echo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn address(service: &str, vm: Option<&str>) -> io::Result<Address> {
    let vm = match vm {
        None => VmId::Wildcard,
        Some(path) if path.contains('/') => Path::new(path).into(),
        Some(name) => name.into(),
    };
    Ok(Address {
        vm,
        service: service.parse()?,
    })
}

/// Takes connections for ever, each in a thread of its own.
fn serve(address: &Address) -> io::Result<()> {
    let mut listener = Listener::bind(address)?;
    loop {
        let (stream, peer) = listener.accept()?;
        eprintln!("a connection from {peer}");
        thread::spawn(move || {
            if let Err(error) = echo(&stream) {
                eprintln!("{peer}: {error}");
            }
        });
    }
}

/// Sends everything back, and the end of it.
fn echo(mut stream: &UnixStream) -> io::Result<()> {
    io::copy(&mut { stream }, &mut stream)?;
    stream.shutdown(Shutdown::Write)
}

fn call(address: &Address) -> io::Result<()> {
    let mut stream = connect(address)?;
    let mut writer = stream.try_clone()?;
    thread::spawn(move || {
        io::copy(&mut io::stdin().lock(), &mut writer)?;
        writer.shutdown(Shutdown::Write)
    });
    io::copy(&mut stream, &mut io::stdout().lock()).map(drop)
}
