// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The emulator's command line and process.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::Options;
use crate::error::{Context, Result};
use crate::image::Image;
use crate::paths;

const LAYER: &str = "qemu";

/// Enough for 64 vCPUs and guests of several GiB; touched lazily.
const MEMORY_MIB: u64 = 8 * 1024;

/// The running emulator and the logs it writes.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) child: Child,
    /// Of this run; removed when all went well.
    pub(super) dir: PathBuf,
    /// What the nest's kernel and agent print.
    pub(super) console: PathBuf,
}

/// Starts the emulator; its standard input and output are the agent's port.
pub(super) fn launch(qemu: &Path, image: &Image, options: &Options) -> Result<Process> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let run = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = paths::cache("runs")?.join(format!("{}-{run}", std::process::id()));
    fs::create_dir_all(&dir).context(LAYER, dir.display())?;
    let console = dir.join("console.log");
    let vmlinux = image.kernel.vmlinux()?;
    let log_path = dir.join("qemu.log");
    let log = File::create(&log_path).context(LAYER, log_path.display())?;
    // Whatever becomes of us, the emulator doesn't outlive us. A group of its
    // own keeps a terminal's Ctrl-C from it.
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(qemu)
        .env("QEMU_MODULE_DIR", module_dir())
        .args(arguments(image, vmlinux, options, &console))
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context(LAYER, qemu.display())?;
    Ok(Process {
        child,
        dir,
        console,
    })
}

/// Where the distribution has the emulator's parts; a copy of the program in
/// another place doesn't find them by itself.
fn module_dir() -> &'static str {
    let places = [
        "/usr/lib/x86_64-linux-gnu/qemu",
        "/usr/lib64/qemu",
        "/usr/lib/qemu",
    ];
    let found = places.into_iter().find(|place| Path::new(place).is_dir());
    found.unwrap_or("/usr/lib/qemu")
}

fn arguments(image: &Image, vmlinux: PathBuf, options: &Options, console: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    let mut add = |words: &str| args.extend(words.split(' ').map(OsString::from));
    add("-nodefaults -no-user-config -display none -no-reboot -machine pc");
    // Without XSAVE: the emulation lets a guest's XSETBV pass KVM by. KVM then
    // enters the guest with the XCR0 of a reset, which loses SSE registers:
    // guests' programs crash at random. What cannot be used without XSAVE has to
    // be taken away by name: 7.x kernels look only for AVX itself.
    add("-L /usr/share/seabios -L /usr/share/qemu");
    let cpu = "max,-xsave,-avx,-avx2,-f16c,-fma,-vaes,-vpclmulqdq,-pku";
    if options.icount {
        // A CPU that boasts of fast string operations is copied on with `rep movsb`,
        // and the emulation takes each byte of it for an instruction.
        add(&format!("-cpu {cpu},-erms,-fsrm"));
        add("-accel tcg,thread=single -icount shift=0,sleep=off");
    } else {
        add(&format!("-cpu {cpu}"));
        add("-accel tcg,thread=multi");
    }
    add(&format!("-smp {} -m {}", options.cpus, memory_mib()));
    add("-chardev stdio,id=port,signal=off -device virtio-serial-pci");
    add("-device virtserialport,chardev=port,name=xtask");
    add("-device virtio-9p-pci,fsdev=host,mount_tag=host");
    add("-device virtio-9p-pci,fsdev=scratch,mount_tag=scratch");
    add("-fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap");
    let mut pair = |name: &str, value: OsString| args.extend([name.into(), value]);
    pair(
        "-fsdev",
        with_path(
            "local,id=scratch,security_model=none,path=",
            &options.scratch,
        ),
    );
    pair("-serial", with_path("file:", console));
    // Unpacked here, since an emulated CPU takes seconds for that.
    pair("-kernel", vmlinux.into());
    pair("-initrd", image.initramfs.clone().into());
    pair("-append", cmdline(&options.scratch).into());
    // For looking into a nest that locks up, e.g. `-monitor unix:/tmp/m,server=on,wait=off`.
    let extra = env::var("XTASK_QEMU_ARGS").unwrap_or_default();
    args.extend(extra.split_whitespace().map(OsString::from));
    args
}

fn cmdline(scratch: &Path) -> String {
    let mut hex = String::new();
    for byte in scratch.as_os_str().as_bytes() {
        let _ = write!(hex, "{byte:02x}");
    }
    // The emulated CPUs' mitigations cost time and protect nothing. The TSC is
    // the host's, so there is no use in watching it with an emulated timer. No
    // `audit=0`: the kernel would not log what a seccomp filter has seen.
    format!(
        "console=ttyS0 loglevel=4 panic=1 mitigations=off nokaslr tsc=reliable \
         no_timer_check nmi_watchdog=0 agent.role=nest agent.scratch={hex}"
    )
}

/// An emulator's option that ends with a path; it wants commas doubled.
fn with_path(option: &str, path: &Path) -> OsString {
    let mut bytes = option.as_bytes().to_vec();
    for byte in path.as_os_str().as_bytes() {
        bytes.push(*byte);
        if *byte == b',' {
            bytes.push(b',');
        }
    }
    std::os::unix::ffi::OsStringExt::from_vec(bytes)
}

/// What the nest gets: less on a small machine.
fn memory_mib() -> u64 {
    MEMORY_MIB.min(machine_mib() * 3 / 4)
}

/// How many nests this machine has memory for.
pub fn at_once() -> usize {
    usize::try_from(machine_mib() / MEMORY_MIB).unwrap_or(1)
}

fn machine_mib() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(MEMORY_MIB, |kib| kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_paths_are_doubled() {
        assert_eq!(with_path("file:", Path::new("/a,b")), "file:/a,,b");
    }

    #[test]
    fn the_scratch_path_is_hexadecimal_on_the_command_line() {
        assert!(cmdline(Path::new("/a b")).ends_with(" agent.scratch=2f612062"));
    }
}
