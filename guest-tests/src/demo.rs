// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask demo`: a stock kernel with every service, shown live.
//!
//! ```text
//!  xtask demo ── exec ──► guest-suite demo ── vmm ── guest       here, or in the nest
//!      └─ a socket here ──► guest-suite relay ─┘ API             for vmmctl in another terminal
//! ```

pub mod live;
mod view;

use std::ffi::OsString;
use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use crate::build;
use crate::error::{Context, Result, failed};
use crate::exec::{self, Exec};
use crate::forward::Forward;
use crate::image::Image;
use crate::kernels;
use crate::place::{self, Place};
use crate::progress::{say, step};

const LAYER: &str = "demo";

/// Where the VM's socket is in the nest.
const IN_NEST: &str = "/tmp/vmm-demo.sock";

/// Runs the demo; 0 if the guest powered off.
pub fn demo() -> Result<u8> {
    build::show_progress();
    let image = Image::guest(kernels::DEFAULT)?;
    let (vmm, vmmctl, suite) = step("building vmm", || {
        Ok((
            build::program("vmm", "vmm")?,
            build::program("vmm", "vmmctl")?,
            build::program("guest-tests", "guest-suite")?,
        ))
    })?;
    let socket = socket()?;
    let (there, forward) = match place::decide()? {
        Place::Here => (socket.clone(), None),
        Place::Nest(_) => (
            PathBuf::from(IN_NEST),
            Some(Forward {
                socket: socket.clone(),
                relay: vec![suite.clone().into(), "relay".into(), IN_NEST.into()],
            }),
        ),
    };
    say(format_args!(
        "booting Debian's Linux {}, unmodified, in vmm",
        image.kernel.release
    ));
    let argv: Vec<OsString> = vec![
        suite.into(),
        "demo".into(),
        "--vmm".into(),
        vmm.into(),
        "--socket".into(),
        there.into(),
        "--offer".into(),
        format!("{} --socket {}", vmmctl.display(), socket.display()).into(),
    ];
    let status = exec::exec(&Exec {
        argv,
        forward,
        ..Exec::default()
    })?;
    if status != 0 {
        return Err(failed(LAYER, format!("it ended with {status}")));
    }
    Ok(status)
}

/// Where `vmmctl` finds a VM named demo, in a directory of this user's alone.
fn socket() -> Result<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let base = std::env::temp_dir().join(format!("vmm-{user}"));
    let dir = base.join("demo");
    for dir in [&base, &dir] {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(dir);
        made.context(LAYER, dir.display())?;
        let about = std::fs::symlink_metadata(dir).context(LAYER, dir.display())?;
        if about.uid() != user || !about.is_dir() {
            return Err(failed(
                LAYER,
                format!("{} is somebody else's", dir.display()),
            ));
        }
        std::fs::set_permissions(dir, Permissions::from_mode(0o700))
            .context(LAYER, dir.display())?;
    }
    Ok(dir.join("api.sock"))
}
