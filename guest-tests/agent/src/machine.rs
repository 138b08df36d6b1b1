// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What all roles do to a machine: mounts, modules, the command line, power.

use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

/// Mounts one file system, making its directory; says so if it can't.
pub fn mount_on(source: &str, target: &str, kind: &str, flags: MountFlags, options: &str) -> bool {
    // May fail on a read-only file system where the directory exists already.
    let _ = fs::create_dir_all(target);
    let result = CString::new(options)
        .map_err(|_| rustix::io::Errno::INVAL)
        .and_then(|options| mount(source, target, kind, flags, options.as_c_str()));
    if let Err(error) = result {
        eprintln!("agent: mount {kind} on {target} ({options}): {error}");
    }
    result.is_ok()
}

/// The mounts that every Linux program expects.
pub fn mount_basics() {
    let none = MountFlags::empty();
    mount_on("dev", "/dev", "devtmpfs", none, "mode=0755");
    mount_on("proc", "/proc", "proc", none, "");
    mount_on("sys", "/sys", "sysfs", none, "");
    mount_on(
        "devpts",
        "/dev/pts",
        "devpts",
        none,
        "mode=620,ptmxmode=666",
    );
    mount_on("tmp", "/tmp", "tmpfs", none, "mode=1777");
    mount_on("run", "/run", "tmpfs", none, "mode=0755");
    mount_on("shm", "/dev/shm", "tmpfs", none, "mode=1777");
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(to, link);
    }
}

/// The value of `name=value` on the kernel's command line, the last one if repeated.
pub fn cmdline_value(name: &str) -> Option<String> {
    let cmdline = fs::read_to_string("/proc/cmdline").ok()?;
    cmdline
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value.to_owned())
        .next_back()
}

/// Whether the bare word is on the kernel's command line.
pub fn cmdline_has(word: &str) -> bool {
    fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.split_whitespace().any(|w| w == word))
}

/// Loads the module in `path` with its parameters of the kernel's command line,
/// `MODULE.NAME=VALUE`; one that is loaded already is fine.
pub fn load_module(path: &Path) {
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let parameters = CString::new(parameters(&cmdline, &name)).unwrap_or_default();
    let result = fs::File::open(path)
        .map_err(|error| error.to_string())
        .and_then(|file| match finit_module(&file, &parameters, 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(error) => Err(error.to_string()),
        });
    if let Err(error) = result {
        eprintln!("agent: module {}: {error}", path.display());
    }
}

/// What a command line says of a module's parameters; `-` and `_` are the same in
/// its name.
fn parameters(cmdline: &str, module: &str) -> String {
    let module = module.replace('-', "_");
    let of_it = |word: &&str| {
        word.split_once('.')
            .is_some_and(|(name, _)| name.replace('-', "_") == module)
    };
    let words: Vec<&str> = cmdline
        .split_whitespace()
        .filter(of_it)
        .filter_map(|word| Some(word.split_once('.')?.1))
        .collect();
    words.join(" ")
}

/// Loads all modules of the image, in its order.
pub fn load_modules() {
    let list = fs::read_to_string("/modules.load").unwrap_or_default();
    for module in list.lines() {
        load_module(Path::new(module));
    }
}

/// Gives the machine the first address that a program may bind to.
pub fn loopback_up() {
    let _ = std::process::Command::new("/bin/busybox")
        .args(["ip", "link", "set", "lo", "up"])
        .status();
}

/// Keeps the kernel's messages below `level` off the console.
pub fn set_console_loglevel(level: u8) {
    let _ = fs::write("/proc/sys/kernel/printk", format!("{level} 4 1 7"));
}

/// Ends the machine. Doesn't return where that works.
pub fn end(command: RebootCommand) -> ExitCode {
    rustix::fs::sync();
    if let Err(error) = reboot(command) {
        eprintln!("agent: ending the machine: {error}");
    }
    std::thread::sleep(Duration::from_secs(5));
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::parameters;

    #[test]
    fn a_modules_parameters_are_those_with_its_name() {
        let cmdline = "quiet kvm-intel.enable_apicv=0 kvm.x=1 kvm_intel.pml=0 a=kvm_intel.b";
        assert_eq!(parameters(cmdline, "kvm_intel"), "enable_apicv=0 pml=0");
        assert_eq!(parameters(cmdline, "kvm-intel"), "enable_apicv=0 pml=0");
        assert_eq!(parameters(cmdline, "kvm"), "x=1");
        assert_eq!(parameters(cmdline, "vsock"), "");
    }
}
