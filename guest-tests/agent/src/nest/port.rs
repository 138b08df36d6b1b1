// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Finding the virtio-serial port that leads to `cargo xtask`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::time::{Duration, Instant};

/// Opens the port with the given name, waiting a little for its driver.
pub fn open(name: &str) -> io::Result<File> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match find(name) {
            Ok(Some(device)) => return OpenOptions::new().read(true).write(true).open(device),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::NotFound, name.to_owned()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn find(name: &str) -> io::Result<Option<String>> {
    for port in fs::read_dir("/sys/class/virtio-ports")? {
        let port = port?;
        let found = fs::read_to_string(port.path().join("name")).unwrap_or_default();
        let device = format!("/dev/{}", port.file_name().display());
        if found.trim() == name && fs::exists(&device)? {
            return Ok(Some(device));
        }
    }
    Ok(None)
}
