// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `trixie-systemd`: a guest with a real init, the distribution's own packages
//! installed by debootstrap, as one initial RAM disk.
//!
//! ```text
//!  debootstrap ─► tree in the cache ─► without what nobody reads ─► cpio
//!                                       + modules, agent, some units
//! ```
//!
//! Nothing of the distribution's is changed but what a machine's administrator
//! would: units enabled or disabled, and chrony told of its clock. The agent is
//! one more service, on the serial console.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt;
use crate::cpio::Archive;
use crate::error::{Context, Result, failed, output_of};
use crate::modules::Module;
use crate::paths::{self, Lock};
use crate::progress::step;
use crate::tools::DEBOOTSTRAP;

const LAYER: &str = "rootfs";

/// The release, which is also the one with the kernel.
pub const RELEASE: &str = "trixie";

const PACKAGES: &str = "systemd,systemd-sysv,udev,kmod,dbus,hyperv-daemons,chrony,openssh-server";

/// What nobody reads in a test; it is most of the tree.
const UNREAD: &[&str] = &[
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/zoneinfo",
    "usr/share/perl",
    "usr/share/perl5",
    "usr/share/bash-completion",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "usr/lib/udev/hwdb.d",
    "usr/lib/udev/hwdb.bin",
    "usr/lib/apt",
    "var/cache",
    "var/lib/apt",
    "var/lib/dpkg",
    "var/log/bootstrap.log",
    // Each machine makes its own.
    "etc/ssh/ssh_host_rsa_key",
    "etc/ssh/ssh_host_rsa_key.pub",
    "etc/ssh/ssh_host_ecdsa_key",
    "etc/ssh/ssh_host_ecdsa_key.pub",
    "etc/ssh/ssh_host_ed25519_key",
    "etc/ssh/ssh_host_ed25519_key.pub",
    // Work that a machine does some time after its start, over the network.
    "etc/systemd/system/timers.target.wants",
];

/// Files that are written over what is there.
const OURS: &[(&str, &str)] = &[
    ("etc/hostname", "guest\n"),
    // A machine that has one is not at its first boot.
    ("etc/machine-id", "b0a7b0a7b0a7b0a7b0a7b0a7b0a7b0a7\n"),
    ("etc/.updated", ""),
    ("var/.updated", ""),
    ("etc/chrony/sources.d/none.sources", ""),
    (
        "etc/chrony/conf.d/hyperv.conf",
        "refclock PHC /dev/ptp_hyperv poll 3 dpoll -2 offset 0 stratum 2\n",
    ),
    (
        "etc/systemd/system/chrony.service.d/hyperv.conf",
        "[Unit]\nWants=dev-ptp_hyperv.device\nAfter=dev-ptp_hyperv.device\n\
         ConditionPathExists=/dev/ptp_hyperv\n",
    ),
    (
        "etc/systemd/system/sshd-keygen.service.d/each-boot.conf",
        "[Unit]\nConditionFirstBoot=\n\n[Service]\nExecStart=\n\
         ExecStart=ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key\n",
    ),
    (
        "etc/systemd/system/guest-agent.service",
        "[Unit]\nDescription=The tests' agent on the serial console\n\n\
         [Service]\nExecStart=/usr/local/sbin/guest-agent --serve-guest\n",
    ),
];

/// Links that are made: what `systemctl enable` and `mask` make.
const LINKS: &[(&str, &str)] = &[
    ("init", "/lib/systemd/systemd"),
    (
        "etc/systemd/system/multi-user.target.wants/guest-agent.service",
        "/etc/systemd/system/guest-agent.service",
    ),
    // The agent has that console.
    ("etc/systemd/system/serial-getty@ttyS0.service", "/dev/null"),
];

/// What the image is made by, as text to compare.
pub fn recipe() -> String {
    format!("packages {PACKAGES}\nwithout {UNREAD:?}\nfiles {OURS:?}\nlinks {LINKS:?}\n")
}

/// The files of the image: the distribution's tree with these modules, agent and
/// busybox.
pub fn compose(release: &str, modules: &[Module], agent: &Path, busybox: &Path) -> Result<Vec<u8>> {
    let tree = tree()?;
    let work = paths::unfinished(&paths::cache("rootfs")?.join("image"))?;
    output_of(
        LAYER,
        Command::new("cp").arg("-a").arg(tree.join(".")).arg(&work),
    )?;
    for path in UNREAD {
        remove(&work.join(path))?;
    }
    for (path, text) in OURS {
        write(&work.join(path), text.as_bytes(), 0o644)?;
    }
    for (path, to) in LINKS {
        let path = work.join(path);
        remove(&path)?;
        symlink(to, &path).context(LAYER, path.display())?;
    }
    let read = |path: &Path| fs::read(path).context(LAYER, path.display());
    write(
        &work.join("usr/local/sbin/guest-agent"),
        &read(agent)?,
        0o755,
    )?;
    write(&work.join("usr/bin/busybox"), &read(busybox)?, 0o755)?;
    for module in modules {
        let path = work
            .join("usr/lib/modules")
            .join(release)
            .join(&module.path);
        write(&path, &module.data, 0o644)?;
    }
    output_of(
        LAYER,
        Command::new("chroot").arg(&work).args(["depmod", release]),
    )?;
    let mut archive = Archive::default();
    add(&mut archive, &work, "")?;
    // The rest of /dev is the kernel's.
    archive.owner(0, 0);
    archive.device("dev/console", 0o600, 5, 1);
    archive.device("dev/null", 0o666, 1, 3);
    remove(&work)?;
    Ok(archive.finish())
}

/// Where the distribution's tree is.
pub fn tree_path() -> Result<PathBuf> {
    Ok(paths::cache("rootfs")?.join(RELEASE))
}

/// The distribution's tree, installed if it isn't in the cache.
fn tree() -> Result<PathBuf> {
    let _lock = Lock::take("rootfs")?;
    let dir = tree_path()?;
    // Its packages are told by a file beside it.
    let list = dir.with_extension("packages");
    if dir.exists() && fs::read_to_string(&list).is_ok_and(|known| known == PACKAGES) {
        return Ok(dir);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(failed(
            LAYER,
            "debootstrap works as root only: run this as root once",
        ));
    }
    let program = DEBOOTSTRAP.require()?;
    let (mirror, keyring) = apt::source_of(RELEASE)?;
    let fresh = paths::unfinished(&dir)?;
    step("installing a root file system (debootstrap)", || {
        let mut command = Command::new(program);
        command
            .arg("--variant=minbase")
            .arg(format!("--include={PACKAGES}"))
            .arg(format!("--keyring={}", keyring.display()))
            .arg(RELEASE)
            .arg(&fresh)
            .arg(mirror);
        output_of(LAYER, &mut command)
    })?;
    paths::finish(&fresh, &dir)?;
    fs::write(&list, PACKAGES).context(LAYER, list.display())?;
    Ok(dir)
}

/// Adds what is under a directory, with its owners and modes.
fn add(archive: &mut Archive, root: &Path, under: &str) -> Result<()> {
    let dir = root.join(under);
    let entries = fs::read_dir(&dir).context(LAYER, dir.display())?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    for name in names {
        let inside = if under.is_empty() {
            name
        } else {
            format!("{under}/{name}")
        };
        let path = root.join(&inside);
        let about = fs::symlink_metadata(&path).context(LAYER, path.display())?;
        archive.owner(about.uid(), about.gid());
        let mode = about.permissions().mode() & 0o7777;
        let kind = about.file_type();
        if kind.is_dir() {
            archive.directory_of(&inside, mode);
            // Sockets and devices of a running system are not there yet.
            if inside != "dev" && inside != "run" {
                add(archive, root, &inside)?;
            }
        } else if kind.is_symlink() {
            let to = fs::read_link(&path).context(LAYER, path.display())?;
            archive.link(&inside, &to.to_string_lossy());
        } else if kind.is_file() {
            let data = fs::read(&path).context(LAYER, path.display())?;
            archive.file(&inside, mode, &data);
        }
    }
    Ok(())
}

fn write(path: &Path, data: &[u8], mode: u32) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).context(LAYER, parent.display())?;
    }
    fs::write(path, data).context(LAYER, path.display())?;
    let mode = fs::Permissions::from_mode(mode);
    fs::set_permissions(path, mode).context(LAYER, path.display())
}

/// Removes a file or a directory with all in it; one that is not there is fine.
fn remove(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(about) if about.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    result.context(LAYER, path.display())
}
