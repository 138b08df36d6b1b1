// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest with a real init and the distribution's own packages: what it makes
//! of the services without anybody's help. See [`crate::rootfs`].

mod ssh;

use std::thread;
use std::time::{Duration, Instant};

use super::services::NAMES;
use super::vmbus::note;
use crate::ensure;
use crate::image::Image;
use crate::rootfs::RELEASE;
use crate::suite::{Case, Context, Control, Failure, Outcome, Vm};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "systemd-shutdown",
        "systemd comes up without a failed unit, its daemons too, reboots and powers off",
        shutdown,
    )
    .once()
    .within(600),
    Case::new(
        "systemd-chrony",
        "chrony keeps the guest's clock by the PTP clock (10 minutes with --long)",
        chrony,
    )
    .once()
    .within(600),
    Case::new(
        "systemd-ssh",
        "vmmctl ssh and systemd's own proxy reach a stock sshd; a missing one is told",
        ssh::shell,
    )
    .once()
    .within(600),
    Case::new(
        "systemd-cp",
        "files and directories come out of the guest whole, or not at all (100 MB with --long)",
        ssh::files,
    )
    .once()
    .within(600),
];

/// How long systemd may take, also to end.
const LIMIT: Duration = Duration::from_secs(200);

/// A guest that has come up; `None` with a kernel whose modules it has not.
fn boot(context: &Context) -> Outcome<Option<(Vm, Control)>> {
    boot_with(context, &[])
}

/// The same, with more arguments for `vmm`.
fn boot_with(context: &Context, args: &[&str]) -> Outcome<Option<(Vm, Control)>> {
    if context.kernel != RELEASE {
        note(&format!(
            "not with {}: the image is of {RELEASE}",
            context.kernel
        ));
        return Ok(None);
    }
    let control = Control::new(context);
    let socket = control.socket().display().to_string();
    let mut vm = context
        .setup()
        .initramfs(Some(Image::systemd_path()?))
        .memory("1G")
        .cmdline("systemd.show_status=false")
        .args(&["--api-socket", &socket])
        .args(args)
        .launch()?;
    vm.wait_agent_within(LIMIT)?;
    Ok(Some((vm, control)))
}

/// It is up, it knows where it is, and nothing has failed.
fn check_up(vm: &mut Vm, control: &Control) -> Outcome {
    let start = Instant::now();
    let state = loop {
        let state = vm.sh("systemctl is-system-running")?.stdout;
        if !matches!(state.trim(), "initializing" | "starting") {
            break state;
        }
        ensure!(start.elapsed() < LIMIT, "still {state}");
        thread::sleep(Duration::from_secs(1));
    };
    let failed = vm.sh_ok("systemctl --failed --no-legend --plain")?;
    ensure!(
        failed.is_empty() && state.trim() == "running",
        "it is {state}: {failed}\n{}",
        vm.sh("journalctl -b -p 4 --no-pager | tail -n 40")?.stdout
    );
    let place = vm.sh_ok("systemd-detect-virt")?;
    ensure!(place == "microsoft", "systemd-detect-virt says {place}");
    // udev has loaded what the services need.
    control.until_ready(&NAMES, Duration::from_secs(10))?;
    // And the distribution's own units have started what is behind these.
    control.until_ready(&["kvp", "vss"], Duration::from_secs(30))?;
    let units = vm.sh("systemctl is-active hv-kvp-daemon.service hv-vss-daemon.service")?;
    ensure!(
        units.stdout == "active\nactive\n",
        "the daemons' units are {:?}",
        units.stdout
    );
    let name = vm.sh_ok(". /etc/os-release; echo \"$NAME\"")?;
    let told = control.ok(&["kvp", "get", "OSName"])?;
    ensure!(
        !name.is_empty() && told.trim() == name,
        "OSName is {told:?}, and {name:?} in the guest"
    );
    control.ok(&["vss", "check"])?;
    control.until_health("ok", Duration::from_secs(5)).map(drop)
}

fn shutdown(context: &Context) -> Outcome {
    let start = Instant::now();
    let Some((mut vm, control)) = boot(context)? else {
        return Ok(());
    };
    check_up(&mut vm, &control)?;
    let up = start.elapsed().as_secs_f64();
    let said = control.ok(&["shutdown", "--reboot", "--timeout", "200s"])?;
    ensure!(
        said == "accepted by the guest\nrebooted\n",
        "vmmctl shutdown --reboot said {said:?}"
    );
    vm.wait_agent_within(LIMIT)?;
    check_up(&mut vm, &control)?;
    let before = Instant::now();
    let said = control.ok(&["shutdown", "--timeout", "200s"])?;
    ensure!(
        said == "accepted by the guest\nstopped\n",
        "vmmctl shutdown said {said:?}"
    );
    vm.expect_exit(0)?;
    note(&format!(
        "up after {up:.1} s, down after {:.1} s",
        before.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn chrony(context: &Context) -> Outcome {
    let length = Duration::from_secs(context.times(20, 600));
    let Some((mut vm, control)) = boot(context)? else {
        return Ok(());
    };
    check_up(&mut vm, &control)?;
    let start = Instant::now();
    let mut synced = None;
    let mut line = String::new();
    while start.elapsed() < LIMIT.max(length) {
        line = vm.sh_ok("chronyc -n sources | grep '#'")?;
        // `#*`: a local clock, and the one that is followed.
        match (&synced, line.starts_with("#*")) {
            (None, true) => synced = Some(start.elapsed()),
            (Some(_), false) => {
                return Err(Failure(format!("chrony has lost its source: {line}")));
            }
            _ => {}
        }
        let since = synced.map(|at| start.elapsed().saturating_sub(at));
        if since.is_some_and(|since| since >= length) {
            break;
        }
        thread::sleep(Duration::from_secs(2));
    }
    let Some(synced) = synced else {
        return Err(Failure(format!(
            "chrony does not follow its source: {line}"
        )));
    };
    let offset = super::services::time::check(&mut vm, "")?;
    note(&format!(
        "followed after {:.0} s, and for {} s; the clock is off by {offset}",
        synced.as_secs_f64(),
        length.as_secs()
    ));
    control.ok(&["shutdown", "--timeout", "200s"])?;
    vm.expect_exit(0)
}
