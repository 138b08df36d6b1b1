// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The disc that the Intel nest is booted from, with all that a batch needs.
//!
//! ```text
//!  ISOLINUX ── vmlinuz          the nest's kernel
//!           ── base.img         /init (the agent), busybox, kvm-intel: kept
//!           └─ batch.img        of one batch:
//!                /batch/plan
//!                /batch/bin     guest-suite, vmm, vmmctl
//!                /batch/cache   kernels and images, as in our cache
//!                /lib…          the programs' shared libraries
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest_agent::batch::{PLAN, Plan};

use super::LAYER;
use crate::cpio::Archive;
use crate::error::{Context, Result, failed, output_of};
use crate::image::Image;
use crate::paths;
use crate::tools::XORRISO;

/// Where programs are in the nest.
const BIN: &str = "/batch/bin";
/// What is there as it is in our cache.
const CACHE: &str = "/batch/cache";
/// Where commands may write.
const SCRATCH: &str = "/batch/scratch";

/// Lists what a program is linked with.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// What a batch needs.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Our programs.
    pub programs: Vec<PathBuf>,
    /// A guest of our own, which cases look for beside them.
    pub hostile: PathBuf,
    /// The guests.
    pub guests: Vec<Guest>,
}

/// A guest on the disc. What nobody boots is left out: the nest has all of the
/// disc in memory, and takes seconds for that.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its kernel and initial RAM disk.
    pub image: Image,
    /// Some test boots the bzImage.
    pub vmlinuz: bool,
    /// Some test boots the ELF file in it.
    pub vmlinux: bool,
}

/// A file of the disc: its path in the nest, its mode, and where it is here.
type Entry = (String, u32, PathBuf);

impl Contents {
    /// What the commands' environment has to say.
    pub fn environment() -> Vec<(String, String)> {
        let mut env: Vec<(String, String)> = [
            ("XTASK_CACHE", CACHE),
            ("XTASK_SCRATCH", SCRATCH),
            ("XTASK_PLACE", "nest"),
            ("XTASK_RUN", "intel"),
            ("TMPDIR", "/tmp"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        if let Ok(mode) = std::env::var("XTASK_SECCOMP") {
            env.push(("XTASK_SECCOMP".to_owned(), mode));
        }
        env
    }

    /// The files but the programs and their libraries.
    fn guest_files(&self) -> Vec<Entry> {
        let mut files = Vec::new();
        for guest in &self.guests {
            let image = &guest.image;
            let name = &image.kernel.name;
            let dir = format!("{CACHE}/kernels/{name}");
            let vmlinuz = image.kernel.vmlinuz();
            files.push((
                format!("{dir}/release"),
                0o644,
                vmlinuz.with_file_name("release"),
            ));
            if guest.vmlinuz {
                files.push((format!("{dir}/vmlinuz"), 0o644, vmlinuz));
            }
            if guest.vmlinux {
                let vmlinux = image.kernel.vmlinux_path();
                files.push((format!("{dir}/vmlinux"), 0o644, vmlinux));
            }
            let initramfs = image.initramfs.clone();
            files.push((
                format!("{CACHE}/images/guest-{name}.cpio"),
                0o644,
                initramfs,
            ));
        }
        files
    }

    /// The programs, without what only a debugger reads, and their libraries.
    fn program_files(&self, dir: &Path) -> Result<Vec<Entry>> {
        let mut files = Vec::new();
        let mut libraries = BTreeSet::new();
        for path in &self.programs {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let stripped = dir.join(&*name);
            let mut strip = Command::new("strip");
            output_of(LAYER, strip.arg("-o").arg(&stripped).arg(path))?;
            let list = output_of(LAYER, Command::new(LOADER).arg("--list").arg(path))?;
            libraries.extend(linked(&String::from_utf8_lossy(&list)));
            files.push((format!("{BIN}/{name}"), 0o755, stripped));
        }
        let name = self.hostile.file_name().unwrap_or_default();
        let path = format!("{BIN}/{}", name.to_string_lossy());
        files.push((path, 0o755, self.hostile.clone()));
        files.extend(libraries.into_iter().map(|path| {
            let here = PathBuf::from(&path);
            (path, 0o755, here)
        }));
        Ok(files)
    }

    /// Makes the disc in this directory.
    pub(super) fn burn(&self, dir: &Path, plan: &Plan, cmdline: &str) -> Result<PathBuf> {
        let base = Image::intel_nest()?;
        let root = dir.join("disc");
        paths::fresh(&root)?;
        let mut files = self.program_files(dir)?;
        files.extend(self.guest_files());
        let plan = plan.encode().map_err(|error| failed(LAYER, error))?;
        let batch = root.join("batch.img");
        fs::write(&batch, archive(&files, &plan)?).context(LAYER, batch.display())?;
        for (_, _, path) in files.iter().filter(|(_, _, path)| path.starts_with(dir)) {
            fs::remove_file(path).context(LAYER, path.display())?;
        }
        link(&base.initramfs, &root.join("base.img"))?;
        link(&base.kernel.vmlinuz(), &root.join("vmlinuz"))?;
        for (path, name) in super::emulator::boot_loader()? {
            link(&path, &root.join(name))?;
        }
        let config = root.join("isolinux.cfg");
        fs::write(&config, isolinux(cmdline)).context(LAYER, config.display())?;
        let iso = dir.join("nest.iso");
        let mut xorriso = Command::new(XORRISO.require()?);
        xorriso
            .args(["-as", "mkisofs", "-quiet", "-o"])
            .arg(&iso)
            .args("-b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4".split(' '))
            .arg("-boot-info-table")
            .arg(&root);
        output_of(LAYER, &mut xorriso)?;
        fs::remove_dir_all(&root).context(LAYER, root.display())?;
        Ok(iso)
    }
}

/// Where a program is in the nest.
pub(super) fn program(name: &str) -> PathBuf {
    Path::new(BIN).join(name)
}

/// The initial RAM disk of a batch.
fn archive(files: &[Entry], plan: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.directory(SCRATCH);
    archive.file(PLAN, 0o644, plan.as_bytes());
    for (path, mode, here) in files {
        let data = fs::read(here).context(LAYER, here.display())?;
        archive.file(path, *mode, &data);
    }
    Ok(archive.finish())
}

/// The same file under another name, or a copy of it.
fn link(from: &Path, to: &Path) -> Result<()> {
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).context(LAYER, from.display())?;
    }
    Ok(())
}

/// The files in what the loader lists: `NAME => PATH (ADDRESS)`, or a path alone.
fn linked(list: &str) -> Vec<String> {
    let paths = list.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(str::to_owned).collect()
}

fn isolinux(cmdline: &str) -> String {
    format!(
        "DEFAULT nest\nPROMPT 0\nLABEL nest\n  KERNEL vmlinuz\n  \
         INITRD base.img,batch.img\n  APPEND {cmdline}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_paths_that_the_loader_lists() {
        let list = "\tlinux-vdso.so.1 (0x00007ffd3a5f2000)\n\
            \tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f9a)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f9b)\n";
        assert_eq!(
            linked(list),
            [
                "/lib/x86_64-linux-gnu/libgcc_s.so.1",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
    }

    #[test]
    fn the_batch_has_its_plan_and_what_it_names() {
        let here = std::env::temp_dir().join(format!("disc-{}", std::process::id()));
        fs::write(&here, b"program").unwrap();
        let files = [(format!("{BIN}/vmm"), 0o755, here.clone())];
        let bytes = archive(&files, "run 1 2 /batch/bin/vmm\n").unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for part in [
            "batch/plan\0",
            "run 1 2 /batch/bin/vmm\n",
            "batch/bin/vmm\0",
            "batch/scratch\0",
        ] {
            assert!(text.contains(part), "{part:?}");
        }
        fs::remove_file(&here).unwrap();
        let error = archive(&files, "").unwrap_err().to_string();
        assert!(error.contains("disc-"), "{error}");
    }

    #[test]
    fn the_boot_loader_loads_both_parts_and_asks_nobody() {
        let text = isolinux("console=ttyS0");
        assert!(text.contains("PROMPT 0\n"));
        assert!(text.contains("INITRD base.img,batch.img\n"));
        assert!(text.ends_with("APPEND console=ttyS0\n"));
    }
}
