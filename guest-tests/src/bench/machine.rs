// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machines that are compared: ours, and QEMU's two kinds.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::Ground;
use crate::suite::{Outcome, Vm};

/// A way to run the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    /// `vmm`, with every service on.
    Ours,
    /// QEMU's machine without PCI and with as few devices as it can have.
    Microvm,
    /// QEMU's usual machine.
    Pc,
}

/// Of the guest, for virtio sockets.
const CID: u32 = 3;
/// Where the guest listens.
const PORT: u32 = 5000;

impl Machine {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "vmm",
            Self::Microvm => "QEMU microvm",
            Self::Pc => "QEMU pc",
        }
    }

    /// The command; it runs the guest on its standard input and output.
    pub(super) fn command(self, ground: &Ground, elf: bool, words: &str) -> Command {
        let kernel = if elf {
            &ground.vmlinux
        } else {
            &ground.vmlinuz
        };
        let cmdline = format!("console=ttyS0 quiet {words}");
        if self == Self::Ours {
            let mut command = Command::new(&ground.vmm);
            command
                .arg("--kernel")
                .arg(kernel)
                .arg("--initramfs")
                .arg(&ground.initramfs)
                .args(["--cmdline", &cmdline, "--memory", "256M", "--ic", "all"])
                .arg("--api-socket")
                .arg(socket("api"))
                .arg("--vsock")
                .arg(socket("vsock"))
                .arg("--event-log")
                .arg(ground.events());
            return command;
        }
        let mut command = Command::new(&ground.qemu);
        command
            .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
            .args(["-accel", "kvm", "-cpu", "host", "-m", "256M"])
            .args(["-L", "/usr/share/seabios", "-L", "/usr/share/qemu"])
            .args(["-serial", "stdio"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(&ground.initramfs)
            .args(["-append", &cmdline]);
        if self == Self::Microvm {
            // Without an RTC the guest looks for one for ever.
            let lean = "microvm,x-option-roms=off,rtc=on,pit=off,pic=off,isa-serial=on";
            command.args(["-machine", lean, "-bios", "qboot.rom"]);
        } else {
            command.args(["-machine", "pc"]);
        }
        command
    }

    /// Boots the guest with its end of the streams listening.
    pub(super) fn boot(self, ground: &Ground, more: &[&str]) -> Outcome<Vm> {
        let modules = match self {
            Self::Ours => "hv_utils,hv_sock",
            Self::Microvm => "virtio_mmio,vmw_vsock_virtio_transport",
            Self::Pc => "virtio_pci,vmw_vsock_virtio_transport",
        };
        let mut command = self.command(ground, false, &format!("agent.modules={modules}"));
        let device = match self {
            Self::Ours => None,
            Self::Microvm => Some("vhost-vsock-device"),
            Self::Pc => Some("vhost-vsock-pci"),
        };
        if let Some(device) = device {
            command.args(["-device", &format!("{device},guest-cid={CID}")]);
        }
        command.args(more);
        let _ = fs::remove_file(socket("vsock"));
        let mut vm = Vm::start(command, ground.events())?;
        vm.wait_agent()?;
        vm.sh_ok(&format!("/init vsock-bench {PORT} >/tmp/bench 2>&1 &"))?;
        vm.sh_ok("n=0; until grep -q listening /tmp/bench; do n=$((n+1)); [ $n -lt 500 ] || exit 1; usleep 10000; done")?;
        Ok(vm)
    }

    /// How `vsock-drive` gets to the guest.
    pub(super) fn place(self) -> String {
        match self {
            Self::Ours => format!("unix:{}:{PORT}", socket("vsock").display()),
            _ => format!("vsock:{CID}:{PORT}"),
        }
    }
}

/// A socket's path: not beside the logs, since that file system may have none.
pub(super) fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("bench-{}-{name}", std::process::id()))
}

impl Ground {
    pub(super) fn events(&self) -> PathBuf {
        self.dir.join("bench.events")
    }

    /// Where to write down what happens.
    pub(super) fn timeline(&self, machine: Machine, what: &str) -> PathBuf {
        let name = machine.name().replace(' ', "-");
        self.out.with_extension(format!("{name}.{what}"))
    }
}
