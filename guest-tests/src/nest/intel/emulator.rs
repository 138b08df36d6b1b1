// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bochs: where it comes from, its configuration, its process.
//!
//! The distribution's package has Bochs with its debugger, which makes it three
//! times slower. So its source is built once, without, and kept in the cache.

use std::env;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use guest_agent::batch::Plan;

use super::{Contents, LAYER};
use crate::apt::{Release, SourceRelease};
use crate::error::{Context, Result, failed, output_of};
use crate::paths::{self, Lock};
use crate::progress::step;
use crate::tools::{CXX, MAKE, XZ};

/// The release whose Bochs and firmware are used: a stable one.
const RELEASE: &str = "trixie";

/// How it is built. `--with-nogui` leaves out every display.
const CONFIGURE: &str = "--with-nogui --disable-docbook --enable-cpu-level=6 --enable-x86-64 \
    --enable-pci --enable-vmx=2 --enable-svm --enable-avx --enable-evex --enable-memtype \
    --enable-all-optimizations --enable-trace-linking";

/// The packages with firmware and boot loader.
const FIRMWARE: [&str; 4] = ["bochsbios", "vgabios", "isolinux", "syslinux-common"];

/// The CPU: VMX with EPT, VPID and unrestricted guests, without APIC
/// virtualization.
const CPU: &str = "corei7_haswell_4770";

/// Guests have 512 MiB, and all files of the batch are in memory too.
const MEMORY_MIB: u32 = 2048;

/// Instructions that make a second. More is a faster machine by its own clock,
/// and so an idle second that takes longer here.
const IPS: u32 = 100_000_000;

/// An emulated CPU wants no mitigations. Its clocks are right, and so are the
/// kernel's own checks of itself.
const CMDLINE: &str = "console=ttyS0,115200 nokaslr mitigations=off tsc=reliable no_timer_check \
    nmi_watchdog=0 loglevel=4 panic=1 cryptomgr.notests agent.role=batch";

/// How long the emulator may take to end after the nest has powered off.
const FINISH: Duration = Duration::from_secs(30);

/// The emulator's files.
#[derive(Clone, Debug)]
pub(super) struct Emulator {
    program: PathBuf,
    firmware: PathBuf,
}

/// The emulator, built if it isn't in the cache.
pub(super) fn bochs() -> Result<Emulator> {
    let firmware = firmware()?;
    if let Some(program) = env::var_os("XTASK_BOCHS") {
        return Ok(Emulator {
            program: program.into(),
            firmware,
        });
    }
    let _lock = Lock::take("bochs")?;
    let dir = paths::cache("")?.join("bochs");
    let key_file = dir.join("key");
    let key = format!("{RELEASE} {CONFIGURE}");
    if fs::read_to_string(&key_file).unwrap_or_default() != key {
        let (cxx, make) = (CXX.require()?, MAKE.require()?);
        XZ.require()?;
        let fresh = paths::unfinished(&dir)?;
        let source = fresh.join("source");
        fs::create_dir_all(&source).context(LAYER, source.display())?;
        step("fetching the source of Bochs", || fetch(&source))?;
        step("building Bochs, once (some minutes)", || {
            let mut configure = Command::new("./configure");
            configure
                .args(CONFIGURE.split_whitespace())
                .env("CXX", cxx)
                .env("CXXFLAGS", "-O2 -w")
                .env("CFLAGS", "-O2 -w");
            output_of(LAYER, configure.current_dir(&source))?;
            let jobs = thread::available_parallelism().map_or(1, usize::from);
            let mut command = Command::new(make);
            command.arg(format!("-j{jobs}"));
            output_of(LAYER, command.current_dir(&source)).map(drop)
        })?;
        let (built, kept) = (source.join("bochs"), fresh.join("bochs"));
        fs::rename(&built, &kept).context(LAYER, built.display())?;
        fs::remove_dir_all(&source).context(LAYER, source.display())?;
        fs::write(fresh.join("key"), key).context(LAYER, key_file.display())?;
        paths::finish(&fresh, &dir)?;
    }
    Ok(Emulator {
        program: dir.join("bochs"),
        firmware,
    })
}

fn fetch(into: &Path) -> Result<()> {
    let _apt = Lock::take(&format!("apt-{RELEASE}-source"))?;
    let release = SourceRelease::open(RELEASE)?;
    release.unpack("bochs", into).or_else(|_| {
        release.refresh()?;
        release.unpack("bochs", into)
    })
}

/// The firmware's packages, unpacked.
fn firmware() -> Result<PathBuf> {
    let _lock = Lock::take("firmware")?;
    let dir = paths::cache("")?.join("firmware");
    if !dir.exists() {
        let _apt = Lock::take(&format!("apt-{RELEASE}"))?;
        let release = Release::open(RELEASE)?;
        step("fetching the Intel nest's firmware", || {
            let fresh = paths::unfinished(&dir)?;
            for package in FIRMWARE {
                if release.unpack(package, &fresh).is_err() {
                    release.refresh()?;
                    release.unpack(package, &fresh)?;
                }
            }
            paths::finish(&fresh, &dir)
        })?;
    }
    Ok(dir)
}

/// The boot loader's files, with their names on the disc.
pub(super) fn boot_loader() -> Result<[(PathBuf, &'static str); 2]> {
    let dir = firmware()?.join("usr/lib");
    Ok([
        (dir.join("ISOLINUX/isolinux.bin"), "isolinux.bin"),
        (dir.join("syslinux/modules/bios/ldlinux.c32"), "ldlinux.c32"),
    ])
}

/// A running nest. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Machine {
    child: Child,
    dir: PathBuf,
    /// What the nest's kernel prints.
    pub(super) console: PathBuf,
    /// What the nest's agent says.
    pub(super) port: PathBuf,
}

impl Machine {
    /// Makes the disc and starts the emulator.
    pub(super) fn start(emulator: &Emulator, contents: &Contents, plan: &Plan) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let run = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = paths::cache("runs")?.join(format!("intel-{}-{run}", std::process::id()));
        paths::fresh(&dir)?;
        let more = env::var("XTASK_NEST_CMDLINE").unwrap_or_default();
        contents.burn(&dir, plan, format!("{CMDLINE} {more}").trim_end())?;
        let cpu = env::var("XTASK_BOCHS_CPU").unwrap_or_else(|_| CPU.to_owned());
        let config = dir.join("bochsrc");
        fs::write(&config, configuration(&emulator.firmware, &cpu)?)
            .context(LAYER, config.display())?;
        let log_path = dir.join("bochs.out");
        let log = File::create(&log_path).context(LAYER, log_path.display())?;
        let errors = log.try_clone().context(LAYER, log_path.display())?;
        // Like the other nest's: it doesn't outlive us.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&emulator.program)
            .args(["-q", "-f", "bochsrc"])
            .current_dir(&dir)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .context(LAYER, emulator.program.display())?;
        Ok(Self {
            child,
            console: dir.join("console.log"),
            port: dir.join("port.log"),
            dir,
        })
    }

    /// How the emulator has ended, if it has.
    pub(super) fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(status.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Waits for the emulator's end after the nest's last word, and removes
    /// what nobody reads of a run that went well.
    pub(super) fn finish(mut self) {
        let deadline = Instant::now() + FINISH;
        // A power-off ends it with status 1.
        while self.ended().is_none() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = fs::remove_dir_all(&self.dir);
    }

    /// The end of the emulator's own log.
    pub(super) fn last_words(&self) -> String {
        let log = fs::read(self.dir.join("bochs.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let bad = |line: &&str| line.contains("PANIC") || line.contains(">>PANIC<<");
        let mut text = String::new();
        for line in log.lines().filter(bad).take(5) {
            let _ = write!(text, "\n    {}", line.trim_end());
        }
        text
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _: std::io::Result<()> = self.child.kill();
        let _: std::io::Result<ExitStatus> = self.child.wait();
    }
}

/// What Bochs reads at its start; other paths are in the run's own directory.
fn configuration(firmware: &Path, cpu: &str) -> Result<String> {
    let file = |path: &str| -> Result<String> {
        let path = firmware.join(path);
        let text = path.display().to_string();
        if text.contains(['"', ',', '\n']) {
            return Err(failed(
                LAYER,
                format!(
                    "Bochs' configuration cannot have the path {text:?}; set XTASK_CACHE to another"
                ),
            ));
        }
        Ok(text)
    };
    let bios = file("usr/share/bochs/BIOS-bochs-latest")?;
    let vga = file("usr/share/vgabios/vgabios.bin")?;
    // The log has errors of a guest that does nothing wrong: all that KVM tries.
    Ok(format!(
        "config_interface: textconfig\n\
         display_library: nogui\n\
         cpu: model={cpu}, count=1, ips={IPS}, reset_on_triple_fault=0, ignore_bad_msrs=1\n\
         memory: guest={MEMORY_MIB}, host={MEMORY_MIB}\n\
         romimage: file=\"{bios}\"\n\
         vgaromimage: file=\"{vga}\"\n\
         pci: enabled=1, chipset=i440fx\n\
         ata0-master: type=cdrom, path=nest.iso, status=inserted\n\
         boot: cdrom\n\
         com1: enabled=1, mode=file, dev=console.log\n\
         com2: enabled=1, mode=file, dev=port.log\n\
         clock: sync=none, time0=utc\n\
         speaker: enabled=0\n\
         log: bochs.log\n\
         panic: action=fatal\n\
         error: action=ignore\n\
         info: action=ignore\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_and_results_have_a_port_each() {
        let text = configuration(Path::new("/f"), CPU).unwrap();
        assert!(text.contains("com1: enabled=1, mode=file, dev=console.log\n"));
        assert!(text.contains("com2: enabled=1, mode=file, dev=port.log\n"));
        assert!(text.contains("romimage: file=\"/f/usr/share/bochs/BIOS-bochs-latest\"\n"));
        assert!(text.contains("model=corei7_haswell_4770, count=1,"));
    }

    #[test]
    fn a_path_that_bochs_would_misread_is_refused() {
        let error = configuration(Path::new("/a,b"), CPU).unwrap_err();
        assert!(error.to_string().contains("XTASK_CACHE"), "{error}");
    }

    #[test]
    fn the_nest_runs_the_batch_and_says_what_goes_wrong_on_the_console() {
        assert!(CMDLINE.contains("console=ttyS0"));
        assert!(CMDLINE.ends_with("agent.role=batch"));
    }
}
