// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A root directory in the nest's memory, with all that is measured and every
//! library it loads. A machine in deterministic time that waits for a file of the
//! outer one sees its clock jump to its next timer, however long that is.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where figures and timelines are left, by the paths of that root.
pub(super) const RESULTS: &str = "/results/bench.json";

/// Firmware that the peer looks for.
const FIRMWARE: [&str; 2] = ["/usr/share/qemu", "/usr/share/seabios"];

/// `$1` is what the results begin with, `$2` how many files follow, by paths that
/// are the same inside; then the command.
const SCRIPT: &str = r#"set -e
out=$1 count=$2
shift 2
root=/tmp/bench
mkdir "$root"
mount -t tmpfs -o mode=755 bench "$root"
while [ "$count" -gt 0 ]; do
    cp -L --parents "$1" "$root"
    shift
    count=$((count - 1))
done
mkdir "$root/tmp" "$root/results"
for dir in dev proc sys; do
    mkdir "$root/$dir"
    mount --rbind "/$dir" "$root/$dir"
done
status=0
chroot "$root" "$@" || status=$?
cp "$root"/results/* "$out" || true
exit "$status"
"#;

/// What goes into it.
#[derive(Debug, Default)]
pub(super) struct Root(BTreeSet<PathBuf>);

impl Root {
    pub(super) fn file(&mut self, path: &Path) {
        self.0.insert(path.to_owned());
    }

    /// A program and what its loader wants.
    pub(super) fn program(&mut self, path: &Path) {
        self.file(path);
        // A static one makes `ldd` fail, and wants nothing.
        let said = Command::new("ldd").arg(path).output();
        let said = said.map(|output| output.stdout).unwrap_or_default();
        for library in libraries(&String::from_utf8_lossy(&said)) {
            self.file(&library);
        }
        let cache = Path::new("/etc/ld.so.cache");
        if cache.exists() {
            self.file(cache);
        }
    }

    pub(super) fn peers_firmware(&mut self) {
        let dirs = FIRMWARE.iter().flat_map(fs::read_dir).flatten();
        for path in dirs.flatten().map(|entry| entry.path()) {
            let kind = path.extension().and_then(|kind| kind.to_str());
            if path.is_file() && matches!(kind, Some("bin" | "rom")) {
                self.file(&path);
            }
        }
    }

    /// A command in it that leaves its results beside `out`.
    pub(super) fn command(&self, argv: Vec<OsString>, out: &Path) -> Vec<OsString> {
        let mut all: Vec<OsString> = ["/bin/sh", "-c", SCRIPT, "bench"]
            .map(OsString::from)
            .into();
        all.push(out.parent().unwrap_or(out).into());
        all.push(self.0.len().to_string().into());
        all.extend(self.0.iter().map(OsString::from));
        all.extend(argv);
        all
    }
}

/// The paths in what `ldd` says.
fn libraries(said: &str) -> Vec<PathBuf> {
    let word = |line: &str| {
        let (before, _) = line.rsplit_once(" (0x")?;
        let path = before.rsplit(' ').next()?.trim();
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    said.lines().filter_map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_what_ldd_says() {
        let said = "\tlinux-vdso.so.1 (0x00007ffe)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1a)\n\
            \tlibgone.so => not found\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f1b)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(libraries(said), expected.map(PathBuf::from));
        assert!(libraries("\tnot a dynamic executable\n").is_empty());
    }
}
