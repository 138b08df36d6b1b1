// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Stock kernels by name, from the distribution's packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::apt::Release;
use crate::bzimage;
use crate::error::{Context, Result, failed};
use crate::paths::{self, Lock};
use crate::progress::step;
use crate::tools::XZ;

const LAYER: &str = "kernels";

/// A kernel we know where to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Our name for it.
    pub name: &'static str,
    /// The release that has it.
    pub release: &'static str,
    /// The package that depends on the newest build.
    pub package: &'static str,
    /// For people.
    pub about: &'static str,
}

const fn known(
    name: &'static str,
    release: &'static str,
    package: &'static str,
    about: &'static str,
) -> Known {
    Known {
        name,
        release,
        package,
        about,
    }
}

/// All kernels that guests are tested with.
pub const ALL: [Known; 7] = [
    known("bullseye", "bullseye", "linux-image-amd64", "Linux 5.10"),
    known("bookworm", "bookworm", "linux-image-amd64", "Linux 6.1"),
    known(
        "bookworm-cloud",
        "bookworm",
        "linux-image-cloud-amd64",
        "Linux 6.1 for clouds",
    ),
    known(
        "bookworm-rt",
        "bookworm",
        "linux-image-rt-amd64",
        "Linux 6.1, PREEMPT_RT",
    ),
    known("trixie", "trixie", "linux-image-amd64", "Linux 6.12"),
    known(
        "trixie-backports",
        "trixie-backports",
        "linux-image-amd64",
        "Linux 7.3",
    ),
    known("sid", "sid", "linux-image-amd64", "the newest Linux, 7.x"),
];

/// What tests and the demo use unless told otherwise.
pub const DEFAULT: &str = "trixie";

/// What the nest runs: its nested SVM is the one we know the faults of.
pub const NEST: &str = "bookworm";

/// What the Intel nest runs: its emulation is slow, and this one is packed with
/// LZ4, which is unpacked in a sixth of the time that others take.
pub const INTEL_NEST: &str = "bookworm-cloud";

/// What guests never need; leaving it out halves what a kernel takes on disk.
const UNWANTED: [&str; 8] = [
    "sound",
    "kernel/drivers/gpu",
    "kernel/drivers/media",
    "kernel/drivers/net/wireless",
    "kernel/drivers/net/ethernet",
    "kernel/drivers/infiniband",
    "kernel/drivers/staging",
    "kernel/drivers/iio",
];

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Our name for it.
    pub name: String,
    /// What `uname -r` says in it.
    pub release: String,
    dir: PathBuf,
}

/// A known kernel by its name.
pub fn find(name: &str) -> Result<Known> {
    ALL.into_iter()
        .find(|known| known.name == name)
        .ok_or_else(|| {
            let names = ALL.map(|known| known.name).join(", ");
            failed(LAYER, format!("no kernel `{name}`; there are {names}"))
        })
}

impl Kernel {
    /// A kernel from the cache, fetched if it isn't there.
    pub fn get(name: &str) -> Result<Self> {
        let known = find(name)?;
        let _lock = Lock::take(&format!("kernel-{name}"))?;
        let dir = paths::cache("kernels")?.join(name);
        if !dir.join("release").exists() {
            fetch(known, &dir)?;
        }
        Self::cached(name)
    }

    /// A kernel that is in the cache already.
    pub fn cached(name: &str) -> Result<Self> {
        let dir = paths::cache("kernels")?.join(name);
        let release = dir.join("release");
        let release = fs::read_to_string(&release).context(LAYER, release.display())?;
        Ok(Self {
            name: name.to_owned(),
            release: release.trim().to_owned(),
            dir,
        })
    }

    /// The bzImage.
    pub fn vmlinuz(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The directory of its modules.
    pub fn modules(&self) -> PathBuf {
        self.dir.join("modules")
    }

    /// Where the ELF file is once [`Kernel::vmlinux`] has unpacked it.
    pub fn vmlinux_path(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// The ELF file in the bzImage, unpacked on first use.
    pub fn vmlinux(&self) -> Result<PathBuf> {
        let path = self.vmlinux_path();
        let _lock = Lock::take(&format!("kernel-{}", self.name))?;
        if !path.exists() {
            let packed = self.vmlinuz();
            let elf = bzimage::vmlinux(&fs::read(&packed).context(LAYER, packed.display())?)?;
            let fresh = path.with_extension("unfinished");
            fs::write(&fresh, elf).context(LAYER, fresh.display())?;
            fs::rename(&fresh, &path).context(LAYER, path.display())?;
        }
        Ok(path)
    }
}

fn fetch(known: Known, dir: &Path) -> Result<()> {
    XZ.require()?; // dpkg-deb and the modules want it
    let _lock = Lock::take(&format!("apt-{}", known.release))?;
    let release = Release::open(known.release)?;
    let package = resolve(&release, known.package).or_else(|_| {
        release.refresh()?;
        resolve(&release, known.package)
    })?;
    step(
        &format!("fetching kernel {}: {package}", known.name),
        || {
            let fresh = paths::unfinished(dir)?;
            // If that fails, the lists are older than the archive.
            if unpack_parts(&release, &package, &fresh).is_err() {
                release.refresh()?;
                let package = resolve(&release, known.package)?;
                unpack_parts(&release, &package, &fresh)?;
            }
            arrange(&fresh)?;
            paths::finish(&fresh, dir)
        },
    )
}

/// Downloads and unpacks the packages with a kernel's files. Up to 6.12 the
/// image package has them all; later it is empty, and depends on those that
/// have the kernel, the modules, and lists of them.
fn unpack_parts(release: &Release, image: &str, into: &Path) -> Result<()> {
    let prefixes = ["linux-binary-", "linux-modules-", "linux-base-"];
    let is_part = |name: &String| prefixes.iter().any(|prefix| name.starts_with(prefix));
    let mut parts: Vec<String> = release
        .depends(image)?
        .into_iter()
        .filter(is_part)
        .collect();
    if parts.is_empty() {
        parts.push(image.to_owned());
    }
    for part in parts {
        let deb = release.download(&part)?;
        unpack(&deb, into)?;
        fs::remove_file(&deb).context(LAYER, deb.display())?;
    }
    Ok(())
}

/// The package with the newest kernel itself: the one that the package without
/// a version depends on.
fn resolve(release: &Release, package: &str) -> Result<String> {
    let depends = release.depends(package)?;
    let image = depends.into_iter().find(|name| is_image(name));
    image.ok_or_else(|| failed(LAYER, format!("{package} depends on no kernel")))
}

/// `linux-image-6.12.117+deb13-amd64`, but not `linux-image-amd64`.
fn is_image(package: &str) -> bool {
    let version = package.strip_prefix("linux-image-");
    version.is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
}

fn unpack(deb: &Path, into: &Path) -> Result<()> {
    let mut source = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .spawn()
        .context(LAYER, "dpkg-deb")?;
    let tar = source.stdout.take().map_or_else(Stdio::null, Stdio::from);
    let excludes = UNWANTED.map(|dir| format!("--exclude=*/{dir}"));
    let status = Command::new("tar")
        .arg("-x")
        .arg("-C")
        .arg(into)
        .args(excludes)
        .args(["--exclude=./usr/share", "--no-same-owner"])
        .stdin(tar)
        .status()
        .context(LAYER, "tar")?;
    let source = source.wait().context(LAYER, "dpkg-deb")?;
    if status.success() && source.success() {
        Ok(())
    } else {
        Err(failed(
            LAYER,
            format!(
                "unpacking {}: tar {status}, dpkg-deb {source}",
                deb.display()
            ),
        ))
    }
}

/// Moves what was in the package to where [`Kernel`] says it is: `/boot` and
/// `/lib/modules` (in newer releases `/usr/lib/modules`).
fn arrange(dir: &Path) -> Result<()> {
    let only = |parent: PathBuf, prefix: &str| -> Result<PathBuf> {
        let entries = fs::read_dir(&parent).context(LAYER, parent.display())?;
        let mut found = entries.filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            name.to_str()?.starts_with(prefix).then(|| entry.path())
        });
        found
            .next()
            .ok_or_else(|| failed(LAYER, format!("no {prefix}* in {}", parent.display())))
    };
    let rename =
        |from: &Path, to: &str| fs::rename(from, dir.join(to)).context(LAYER, from.display());
    let places = [dir.join("usr/lib/modules"), dir.join("lib/modules")];
    let [merged, plain] = places;
    let modules = only(if merged.exists() { merged } else { plain }, "")?;
    // Beside its modules, from 7.x on.
    let kernel = modules.join("vmlinuz");
    if kernel.exists() {
        rename(&kernel, "vmlinuz")?;
    } else {
        rename(&only(dir.join("boot"), "vmlinuz-")?, "vmlinuz")?;
    }
    rename(&modules, "modules")?;
    let release = modules
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    for rest in ["boot", "lib", "usr", "etc"] {
        let rest = dir.join(rest);
        if rest.exists() {
            fs::remove_dir_all(&rest).context(LAYER, rest.display())?;
        }
    }
    let file = dir.join("release");
    fs::write(&file, release).context(LAYER, file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_the_dependency_with_a_version() {
        assert!(is_image("linux-image-6.12.117+deb13-amd64"));
        assert!(is_image("linux-image-5.10.0-46-amd64"));
        assert!(!is_image("linux-image-amd64"));
        assert!(!is_image("linux-base-amd64"));
    }

    #[test]
    fn an_unknown_kernel_is_answered_with_the_known_ones() {
        let text = find("buster").unwrap_err().to_string();
        assert!(text.contains("bookworm-cloud"), "{text}");
        assert_eq!(find(DEFAULT).unwrap().name, DEFAULT);
        assert_eq!(find(NEST).unwrap().name, NEST);
    }
}
