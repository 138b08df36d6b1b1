// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask demo`: a stock kernel, from the mirror to its own power-off.

use std::ffi::OsString;

use crate::build;
use crate::error::{Result, failed};
use crate::exec::{self, Exec};
use crate::image::Image;
use crate::kernels;
use crate::progress::{say, step};

const LAYER: &str = "demo";

/// Runs the demo; its status is `vmm`'s.
pub fn demo() -> Result<u8> {
    let image = Image::guest(kernels::DEFAULT)?;
    let vmm = step("building vmm", || build::program("vmm", "vmm"))?;
    let release = &image.kernel.release;
    say(format_args!(
        "booting Debian's Linux {release}, unmodified, in vmm; Ctrl-A x quits"
    ));
    let argv: Vec<OsString> = vec![
        vmm.into(),
        "--kernel".into(),
        image.kernel.vmlinuz().into(),
        "--initramfs".into(),
        image.initramfs.into(),
        "--cmdline".into(),
        "console=ttyS0 agent.modules=hv_vmbus agent.poweroff".into(),
        "--cpus".into(),
        "2".into(),
        "--timeout".into(),
        "5m".into(),
    ];
    let status = exec::exec(&Exec {
        argv,
        ..Exec::default()
    })?;
    if status != 0 {
        return Err(failed(LAYER, format!("vmm ended with {status}")));
    }
    say("the guest found Hyper-V, told so above, and powered itself off");
    say(
        "your own kernel: cargo xtask exec -- target/guest/vmm --kernel bzImage --initramfs rd.img",
    );
    Ok(status)
}
