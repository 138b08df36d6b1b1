// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMBus channel driven by a program: `uio_hv_generic`.
//!
//! ```text
//!  open  /dev/uioN   the guest's kernel opens the channel
//!  mmap  offset 0    both rings, the one to the host first
//!  read  4 bytes     waits for an interrupt, which also masks the next one
//!  write 1           unmasks, and signals the host
//! ```
//!
//! Kernels before 6.10 bind only channels that signal by shared memory, which
//! a host would have to poll; ours has none.

mod echo;
mod hotplug;
mod packet;
mod ring;
mod signals;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::raw::Mapping;

/// The echo device's type and instance, as sysfs writes them.
const ECHO_TYPE: &str = "7c5e1a5d-52c6-4b0e-9d3b-0f3c6f865e01";
const ECHO_INSTANCE: &str = "7c5e1a5d-52c6-4b0e-9d3b-0f3c6f865e02";

const DRIVER: &str = "/sys/bus/vmbus/drivers/uio_hv_generic";

/// `/init uio-NAME ARG…`.
pub fn run(name: &str, args: &[OsString]) -> ExitCode {
    let number = |place: usize| -> io::Result<u64> {
        let arg = args.get(place).map(|arg| arg.to_string_lossy());
        arg.and_then(|arg| arg.parse().ok())
            .ok_or_else(|| io::Error::other("usage: /init uio-echo|uio-signals|uio-hotplug COUNT"))
    };
    let result = bind().and_then(|()| match name {
        "uio-echo" => echo::run(number(0)?),
        "uio-signals" => signals::run(number(0)?),
        "uio-hotplug" => hotplug::run(number(0)?),
        _ => Err(io::Error::other("no such role")),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Tells the driver that the echo device's type is its own.
fn bind() -> io::Result<()> {
    let new_id = fs::write(format!("{DRIVER}/new_id"), ECHO_TYPE);
    match new_id {
        // It knows already.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// The echo device's number among uio devices, when the driver has it.
fn find() -> Option<String> {
    let dir = format!("/sys/bus/vmbus/devices/{ECHO_INSTANCE}/uio");
    let entry = fs::read_dir(dir).ok()?.next()?.ok()?;
    entry.file_name().into_string().ok()
}

/// Waits for the device to be there.
fn wait_for_device(limit: Duration) -> io::Result<PathBuf> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(name) = find() {
            let node = PathBuf::from(format!("/dev/{name}"));
            if node.exists() {
                return Ok(node);
            }
        }
        if Instant::now() >= deadline {
            return Err(io::Error::other(format!(
                "no echo device with a uio driver after {limit:?}"
            )));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// An open channel.
#[derive(Debug)]
struct Device {
    file: File,
    signals: u64,
}

impl Device {
    /// Opens it; its rings come with it.
    fn open(node: &Path) -> io::Result<(Self, Mapping, usize)> {
        let name = node.file_name().unwrap_or_default().to_string_lossy();
        let size = format!("/sys/class/uio/{name}/maps/map0/size");
        let size = fs::read_to_string(size)?;
        let size = size.trim().trim_start_matches("0x");
        let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
        let file = OpenOptions::new().read(true).write(true).open(node)?;
        let mapping = Mapping::of(&file, size)?;
        Ok((Self { file, signals: 0 }, mapping, size))
    }

    /// Signals the host. The kernel unmasks interrupts with it.
    fn signal(&mut self) -> io::Result<()> {
        self.signals += 1;
        self.file.write_all(&1_i32.to_ne_bytes())
    }

    /// Waits for an interrupt, and says whether one came. An error is, most of
    /// all, that the device has gone.
    fn wait(&mut self, limit: Duration) -> io::Result<bool> {
        let timeout = Timespec::try_from(limit).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout))? == 0 {
            return Ok(false);
        }
        let mut count = [0; 4];
        self.file.read_exact(&mut count)?;
        Ok(true)
    }
}

/// Whether the device has gone, rather than something being wrong: no such
/// file or device, or an I/O error, or (in the middle of it) EINVAL, or EAGAIN
/// from an open that the host refuses because it is just taking the device back.
fn is_gone(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| {
        [
            Errno::NOENT,
            Errno::IO,
            Errno::NXIO,
            Errno::NODEV,
            Errno::INVAL,
            Errno::AGAIN,
        ]
        .contains(&errno)
    })
}

/// Hypervisor interrupts so far, of all CPUs.
fn interrupts() -> u64 {
    let text = fs::read_to_string("/proc/interrupts").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("HYP:"));
    let numbers = line.unwrap_or_default().split_whitespace();
    numbers.map_while(|word| word.parse::<u64>().ok()).sum()
}
