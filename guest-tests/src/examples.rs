// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the documentation's examples of Hyper-V sockets want: `socat` and our own
//! programs, on both sides.
//!
//! For the guest they are an archive that is put behind its initial RAM disk,
//! which Linux unpacks over it. `socat` and its libraries are in a directory of
//! their own there, so that it does not matter which libc the guest has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::Release;
use crate::build;
use crate::cpio::Archive;
use crate::error::{Context, Result, failed, output_of};
use crate::paths::{self, Lock};
use crate::progress::step;
use crate::tools::SOCAT;

const LAYER: &str = "examples";

/// Where `socat` for guests comes from.
const RELEASE: &str = "bookworm";
/// Where it is in the guest.
const HOME: &str = "opt/socat";
/// Where its package and those that it needs put libraries.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Builds and fetches all of it.
pub fn prepare() -> Result<()> {
    SOCAT.require()?;
    build::example("vmm", "hvsocket_echo")?;
    let mut archive = Archive::default();
    let echo = build::guest_example("vsock_echo")?;
    archive.file("usr/bin/vsock_echo", 0o755, &read(&echo)?);
    put_socat(&mut archive)?;
    let path = archive_path()?;
    let fresh = path.with_extension("unfinished");
    fs::write(&fresh, archive.finish()).context(LAYER, fresh.display())?;
    fs::rename(&fresh, &path).context(LAYER, path.display())
}

/// Where the guest's part is.
pub fn archive_path() -> Result<PathBuf> {
    Ok(paths::cache("images")?.join("examples.cpio"))
}

fn put_socat(archive: &mut Archive) -> Result<()> {
    let dir = socat()?;
    let program = dir.join("usr/bin/socat");
    archive.file(&format!("{HOME}/socat"), 0o755, &read(&program)?);
    for library in libraries(&dir, &program)? {
        let name = library.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("{HOME}/lib/{name}"), 0o755, &read(&library)?);
    }
    let script = format!(
        "#!/bin/sh\nexec /{HOME}/lib/{LOADER} --library-path /{HOME}/lib /{HOME}/socat \"$@\"\n"
    );
    archive.file("usr/bin/socat", 0o755, script.as_bytes());
    Ok(())
}

/// The package and all that it needs, unpacked.
fn socat() -> Result<PathBuf> {
    let dir = paths::cache("socat")?.join(RELEASE);
    let _lock = Lock::take("socat")?;
    if !dir.exists() {
        let _apt = Lock::take(&format!("apt-{RELEASE}"))?;
        let release = Release::open(RELEASE)?;
        step("fetching socat for guests", || {
            let fresh = paths::unfinished(&dir)?;
            if release.unpack_all("socat", &fresh).is_err() {
                release.refresh()?;
                release.unpack_all("socat", &fresh)?;
            }
            paths::finish(&fresh, &dir)
        })?;
    }
    Ok(dir)
}

/// The libraries of a program, as its own loader finds them in `dir`.
fn libraries(dir: &Path, program: &Path) -> Result<Vec<PathBuf>> {
    let path = LIBRARIES.map(|sub| dir.join(sub).display().to_string());
    let loaders = LIBRARIES.map(|sub| dir.join(sub).join(LOADER));
    let loader = loaders.into_iter().find(|loader| loader.exists());
    let loader = loader.ok_or_else(|| failed(LAYER, "no loader came with socat"))?;
    let mut command = Command::new(&loader);
    command.args(["--library-path", &path.join(":"), "--list"]);
    let list = output_of(LAYER, command.arg(program))?;
    let list = String::from_utf8_lossy(&list).into_owned();
    let mut found = listed(&list);
    if let Some(missing) = found.iter().find(|path| !path.starts_with(dir)) {
        let missing = missing.display();
        return Err(failed(
            LAYER,
            format!("socat's {missing} is not in its packages"),
        ));
    }
    found.push(loader);
    Ok(found)
}

/// `libc.so.6 => /path/libc.so.6 (0x00007f…)`
fn listed(list: &str) -> Vec<PathBuf> {
    let paths = list.lines().filter_map(|line| line.split_once(" => "));
    let paths = paths.filter_map(|(_, found)| found.split(" (").next());
    paths
        .filter(|path| !path.ends_with(LOADER))
        .map(PathBuf::from)
        .collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).context(LAYER, path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_what_the_loader_lists() {
        let list = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibssl.so.3 => /x/usr/lib/libssl.so.3 (0x00007f00)\n\
            \t/lib64/ld-linux-x86-64.so.2 => /x/lib/ld-linux-x86-64.so.2 (0x00007f01)\n";
        assert_eq!(listed(list), [Path::new("/x/usr/lib/libssl.so.3")]);
    }
}
