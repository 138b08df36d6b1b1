// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The distribution's own Hyper-V daemons, and its `mkfs.xfs` for file systems to
//! freeze, with the libraries that they need, for a guest's image.
//!
//! | Release | Has |
//! |---|---|
//! | bullseye, bookworm | `hv_kvp_daemon`, `hv_vss_daemon`, `hv_fcopy_daemon` |
//! | trixie | `hv_kvp_daemon`, `hv_vss_daemon`; nothing for file copy |
//! | trixie-backports | `hv_kvp_daemon`, `hv_vss_daemon`, `hv_fcopy_uio_daemon` |
//! | sid | `hv_kvp_daemon`, `hv_vss_daemon`, `hv_fcopy_uio_daemon` |

use std::fs;
use std::path::{Path, PathBuf};

use crate::apt::Release;
use crate::cpio::Archive;
use crate::error::{Context, Result};
use crate::paths::{self, Lock};
use crate::progress::step;

const LAYER: &str = "daemons";

/// Packages whose files are taken.
const PACKAGES: [&str; 7] = [
    "hyperv-daemons",
    "libc6",
    "libc-bin",
    "xfsprogs",
    "libblkid1",
    "libuuid1",
    "libinih1",
];
/// One more that `xfsprogs` may depend on has another name in each release.
const URCU: &str = "liburcu";
/// Where they put their files: `/lib` and `/usr/lib` are one in newer releases.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
/// Libraries, by how their names begin: those of libc's that it loads by itself
/// to find a host's name too, and those of `mkfs.xfs`.
const WANTED: [&str; 10] = [
    "ld-linux-x86-64.so",
    "libc.so",
    "libnss_files.so",
    "libnss_dns.so",
    "libresolv.so",
    "libpthread.so",
    "libblkid.so.1",
    "libuuid.so.1",
    "libinih.so.1",
    "liburcu.so",
];
/// A locale that is no program's own.
const LOCALE: &str = "usr/lib/locale/C.utf8";

/// Packages of a release, unpacked.
#[derive(Clone, Debug)]
pub struct Daemons {
    dir: PathBuf,
}

impl Daemons {
    /// From the cache, fetched if they aren't there.
    pub fn get(release_name: &str) -> Result<Self> {
        let dir = paths::cache("daemons")?.join(release_name);
        let _lock = Lock::take(&format!("daemons-{release_name}"))?;
        // What is in it is told by a file beside it.
        let list = dir.with_extension("packages");
        let recipe = PACKAGES.join(",");
        if !dir.exists() || fs::read_to_string(&list).unwrap_or_default() != recipe {
            let _apt = Lock::take(&format!("apt-{release_name}"))?;
            let release = Release::open(release_name)?;
            step(&format!("fetching the daemons of {release_name}"), || {
                let fresh = paths::unfinished(&dir)?;
                let mut packages = PACKAGES.map(str::to_owned).to_vec();
                let more = release.depends("xfsprogs").or_else(|_| {
                    release.refresh()?;
                    release.depends("xfsprogs")
                })?;
                packages.extend(more.into_iter().filter(|name| name.starts_with(URCU)));
                for package in packages {
                    if release.unpack(&package, &fresh).is_err() {
                        release.refresh()?;
                        release.unpack_any(&package, &fresh)?;
                    }
                }
                paths::finish(&fresh, &dir)
            })?;
            fs::write(&list, recipe).context(LAYER, list.display())?;
        }
        Ok(Self { dir })
    }

    /// Puts them where they belong.
    pub fn put(&self, archive: &mut Archive) -> Result<()> {
        for dir in ["lib64", "usr/sbin", "var/lib", "var/log"] {
            archive.directory(dir);
        }
        self.put_all(archive, "usr/sbin", |name| name.starts_with("hv_"))?;
        self.put_all(archive, "usr/libexec/hypervkvpd", |_| true)?;
        for dir in ["sbin", "usr/sbin"] {
            self.put_all(archive, dir, |name| name == "mkfs.xfs")?;
        }
        for dir in LIBRARIES {
            self.put_all(archive, dir, |name| {
                WANTED.iter().any(|wanted| name.starts_with(wanted))
            })?;
            let loader = format!("{dir}/ld-linux-x86-64.so.2");
            if self.dir.join(&loader).exists() {
                archive.link("lib64/ld-linux-x86-64.so.2", &format!("/{loader}"));
            }
        }
        self.put_all(archive, LOCALE, |_| true)?;
        archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost guest.example\n");
        archive.file("etc/nsswitch.conf", 0o644, b"hosts: files\n");
        Ok(())
    }

    /// The files of a directory whose names are wanted.
    fn put_all(
        &self,
        archive: &mut Archive,
        dir: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let Ok(entries) = fs::read_dir(self.dir.join(dir)) else {
            return Ok(()); // not every release has each
        };
        archive.directory(dir);
        for entry in entries {
            let entry = entry.context(LAYER, dir)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if !wanted(&name) {
                continue;
            }
            put_file(archive, &path, &format!("{dir}/{name}"))?;
        }
        Ok(())
    }
}

/// Follows links: a library under each of its names. They are a few.
fn put_file(archive: &mut Archive, from: &Path, to: &str) -> Result<()> {
    if from.is_file() {
        let data = fs::read(from).context(LAYER, from.display())?;
        archive.file(to, 0o755, &data);
    }
    Ok(())
}
