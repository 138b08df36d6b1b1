// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Initial RAM disks: the agent as `/init`, busybox, and modules; or a whole
//! distribution, see [`crate::rootfs`].

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::Release;
use crate::build;
use crate::cpio::Archive;
use crate::daemons::Daemons;
use crate::error::{Context, Result, failed, output_of};
use crate::kernels::{self, Kernel};
use crate::modules::{Module, Modules, modules_dep};
use crate::paths::{self, Lock};
use crate::progress::whisper;
use crate::rootfs;

const LAYER: &str = "image";

/// Counted up when what is put into images changes in a way that the names and
/// files below don't show.
const FORMAT: u32 = 5;

/// Modules of a guest's image, whole directories with a `/` at the end.
const GUEST_MODULES: &[&str] = &[
    "drivers/hv/",
    "drivers/uio/",
    "drivers/ptp/",
    "hv_sock",
    "hyperv_keyboard",
    "hv_netvsc",
    "dummy",
    "hv_storvsc",
    "vsock",
    "ext4",
    "xfs",
    "brd",
    "loop",
    "crc32c_intel",
    "crc32c_generic",
];

/// Modules beside a distribution's files.
const SYSTEMD_MODULES: &[&str] = &["drivers/hv/", "drivers/ptp/", "hv_sock", "ext4", "loop"];

/// The image with systemd in it.
pub const SYSTEMD: &str = "trixie-systemd";

/// Modules of the image that benchmarks boot: both kinds of sockets.
const BENCH_MODULES: &[&str] = &[
    "drivers/hv/",
    "hv_sock",
    "virtio_pci",
    "virtio_mmio",
    "vmw_vsock_virtio_transport",
];

/// The kernel that benchmarks boot, as the published figures of others have it.
const BENCH_KERNEL: &str = "bookworm-cloud";

/// Modules of the nest's image, in the order they are loaded in.
const NEST_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm_amd",
    "tun",
    "vhost_vsock",
    "vsock_loopback",
    "vhost_net",
    "loop",
    "fuse",
];

/// Modules of the Intel nest's image.
const INTEL_NEST_MODULES: &[&str] = &["kvm_intel"];

/// A kernel and the initial RAM disk that goes with it.
#[derive(Clone, Debug)]
pub struct Image {
    /// The kernel.
    pub kernel: Kernel,
    /// The initial RAM disk.
    pub initramfs: PathBuf,
}

impl Image {
    /// The image of a guest, built if it isn't in the cache.
    pub fn guest(name: &str) -> Result<Self> {
        if name == SYSTEMD {
            let kernel = Kernel::get(rootfs::RELEASE)?;
            return Self::build("systemd", kernel, SYSTEMD_MODULES, None);
        }
        let known = kernels::find(name)
            .map_err(|error| failed(LAYER, format!("{error}, and {SYSTEMD}")))?;
        let daemons = Daemons::get(known.release)?;
        let kernel = Kernel::get(name)?;
        Self::build("guest", kernel, GUEST_MODULES, Some(&daemons))
    }

    /// Where [`Image::guest`] puts the one with systemd.
    pub fn systemd_path() -> Result<PathBuf> {
        Ok(paths::cache("images")?.join(format!("systemd-{}.cpio", rootfs::RELEASE)))
    }

    /// Where [`Image::guest`] puts the initial RAM disk.
    pub fn guest_path(name: &str) -> Result<PathBuf> {
        Ok(paths::cache("images")?.join(format!("guest-{name}.cpio")))
    }

    /// The image that benchmarks boot.
    pub fn bench() -> Result<Self> {
        Self::build("bench", Kernel::get(BENCH_KERNEL)?, BENCH_MODULES, None)
    }

    /// The same with the distribution's daemons, too large for a boot to be timed.
    pub fn bench_with_daemons() -> Result<Self> {
        let kernel = Kernel::get(BENCH_KERNEL)?;
        let daemons = Daemons::get(kernels::find(BENCH_KERNEL)?.release)?;
        Self::build("bench-daemons", kernel, BENCH_MODULES, Some(&daemons))
    }

    /// The image of the nest itself.
    pub fn nest() -> Result<Self> {
        Self::build("nest", Kernel::get(kernels::NEST)?, NEST_MODULES, None)
    }

    /// The image of the nest with an Intel CPU, without what a batch adds.
    pub fn intel_nest() -> Result<Self> {
        let kernel = Kernel::get(kernels::INTEL_NEST)?;
        Self::build("intel-nest", kernel, INTEL_NEST_MODULES, None)
    }

    fn build(
        role: &str,
        kernel: Kernel,
        modules: &[&str],
        daemons: Option<&Daemons>,
    ) -> Result<Self> {
        let agent = build::agent()?;
        let busybox = busybox()?;
        let _lock = Lock::take(&format!("image-{role}-{}", kernel.name))?;
        let initramfs = paths::cache("images")?.join(format!("{role}-{}.cpio", kernel.name));
        let key_file = initramfs.with_extension("key");
        let mut key = key(&kernel, modules, &[&agent, &busybox])?;
        if role == "systemd" {
            key.push_str(&rootfs::recipe());
        }
        let known = fs::read_to_string(&key_file).unwrap_or_default();
        if known != key || !initramfs.exists() {
            whisper(format_args!("building the {role} image of {}", kernel.name));
            let _ = fs::remove_file(&key_file);
            let bytes = match role {
                "systemd" => {
                    let modules = needed(&kernel, modules)?;
                    rootfs::compose(&kernel.release, &modules, &agent, &busybox)?
                }
                _ => compose(&kernel, modules, &agent, &busybox, daemons)?,
            };
            // A machine that reads the old one keeps it.
            let fresh = initramfs.with_extension("unfinished");
            fs::write(&fresh, bytes).context(LAYER, fresh.display())?;
            fs::rename(&fresh, &initramfs).context(LAYER, initramfs.display())?;
            fs::write(&key_file, key).context(LAYER, key_file.display())?;
        }
        Ok(Self { kernel, initramfs })
    }
}

/// What an image is made from, as text to compare.
fn key(kernel: &Kernel, modules: &[&str], files: &[&Path]) -> Result<String> {
    let mut key = format!(
        "format {FORMAT}\nkernel {}\nmodules {modules:?}\n",
        kernel.release
    );
    for file in files {
        let about = fs::metadata(file).context(LAYER, file.display())?;
        let time = about.modified().context(LAYER, file.display())?;
        let _ = writeln!(key, "{} {} {time:?}", file.display(), about.len());
    }
    Ok(key)
}

fn compose(
    kernel: &Kernel,
    wanted: &[&str],
    agent: &Path,
    busybox: &Path,
    daemons: Option<&Daemons>,
) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).context(LAYER, path.display());
    let mut archive = Archive::default();
    for dir in [
        "dev", "proc", "sys", "tmp", "run", "root", "etc", "mnt", "var",
    ] {
        archive.directory(dir);
    }
    // Before anything is mounted the kernel opens this one for /init.
    archive.device("dev/console", 0o600, 5, 1);
    archive.device("dev/null", 0o666, 1, 3);
    archive.file("init", 0o755, &read(agent)?);
    archive.file("bin/busybox", 0o755, &read(busybox)?);
    for applet in applets(busybox)? {
        archive.link(&applet, "/bin/busybox");
    }
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    archive.file("etc/group", 0o644, b"root:x:0:\n");

    if let Some(daemons) = daemons {
        daemons.put(&mut archive)?;
    }
    let modules = needed(kernel, wanted)?;
    let root = format!("lib/modules/{}", kernel.release);
    archive.directory(&root);
    for module in &modules {
        archive.file(&format!("{root}/{}", module.path), 0o644, &module.data);
    }
    archive.file(
        &format!("{root}/modules.dep"),
        0o644,
        modules_dep(&modules).as_bytes(),
    );
    // Everything of the nest's, in an order that works.
    let mut order = String::new();
    for module in &modules {
        let _ = writeln!(order, "/{root}/{}", module.path);
    }
    archive.file("modules.load", 0o644, order.as_bytes());
    Ok(archive.finish())
}

/// The modules of these names and directories, with what they need.
fn needed(kernel: &Kernel, wanted: &[&str]) -> Result<Vec<Module>> {
    let all = Modules::scan(&kernel.modules())?;
    let mut names = Vec::new();
    for name in wanted {
        match name.strip_suffix('/') {
            Some(dir) => names.extend(all.in_directory(dir)),
            None => names.push((*name).to_owned()),
        }
    }
    all.closure(&names)
}

/// Where busybox wants its links: `bin/ls`, `sbin/modprobe`, …
fn applets(busybox: &Path) -> Result<Vec<String>> {
    let list = output_of(LAYER, Command::new(busybox).arg("--list-full"))?;
    let list = String::from_utf8_lossy(&list);
    let wanted = list
        .lines()
        .filter(|path| *path != "bin/busybox" && !path.is_empty());
    Ok(wanted.map(str::to_owned).collect())
}

/// A static busybox, unpacked rather than installed: it would replace the
/// machine's own.
fn busybox() -> Result<PathBuf> {
    let _lock = Lock::take("busybox")?;
    let dir = paths::cache("")?.join("busybox");
    let find = || {
        ["usr/bin/busybox", "bin/busybox"]
            .map(|path| dir.join(path))
            .into_iter()
            .find(|path| path.is_file())
    };
    if let Some(path) = find() {
        return Ok(path);
    }
    let release_name = "bookworm";
    let _apt = Lock::take(&format!("apt-{release_name}"))?;
    let release = Release::open(release_name)?;
    let fresh = paths::unfinished(&dir)?;
    if release.unpack("busybox-static", &fresh).is_err() {
        release.refresh()?;
        release.unpack("busybox-static", &fresh)?;
    }
    paths::finish(&fresh, &dir)?;
    find().ok_or_else(|| failed(LAYER, "busybox-static has no busybox"))
}
