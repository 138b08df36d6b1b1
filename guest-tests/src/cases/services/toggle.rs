// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Services that come and go: the host's doing, and the guest's.

use std::thread;
use std::time::{Duration, Instant};

use super::{NAMES, boot_ready};
use crate::cases::measured::Measured;
use crate::cases::vmbus::{check_log, note, sh_long};
use crate::ensure;
use crate::suite::{Case, Context, Control, Outcome};

pub(crate) const CASES: &[Case] = &[
    Case::new(
        "services-toggle",
        "services are disabled and enabled in random order, and nothing is left over",
        toggle,
    )
    .with_both_synics_in_full(),
    Case::new(
        "services-reload",
        "hv_utils is unloaded and loaded again and again (50 times with --long)",
        reload,
    )
    .with_both_synics_in_full(),
];

/// How long a guest may take to follow.
const FOLLOW: Duration = Duration::from_secs(10);
/// A service is ready before its driver's probe has returned. If the device goes
/// right then, the probe fails, and the kernel says so: not what is tested here.
const SETTLE: Duration = Duration::from_millis(200);

fn toggle(context: &Context) -> Outcome {
    let (mut vm, control) = boot_ready(context, |setup| setup)?;
    let times = context.times(8, 100);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut left = NAMES.map(|name| (name, times));
    let before = Measured::of(&mut vm)?;
    // More than are toggled.
    let offered = before.relids.len();
    let mut warm = None;
    let mut relids = before.relids.clone();
    let start = Instant::now();
    while let Some(name) = next(&mut left, &mut random) {
        one(&control, name)?;
        if random.below(10) == 0 {
            relids.extend(Measured::of(&mut vm)?.relids);
        }
        if left.iter().map(|(_, left)| left).sum::<u64>() == times * 3 / 2 {
            warm = Some(Measured::of(&mut vm)?);
        }
    }
    let took = start.elapsed().as_secs_f64();
    control.until_ready(&NAMES, FOLLOW)?;
    control.until_health("ok", FOLLOW)?;
    let after = Measured::of(&mut vm)?;
    after.check(&warm.unwrap_or(before))?;
    relids.extend(after.relids.iter().copied());
    let highest = relids.last().copied().unwrap_or(0);
    ensure!(
        after.relids.len() == offered && highest <= 8,
        "the guest has the channels {:?}, and had {relids:?}",
        after.relids
    );
    check_log(&mut vm, &[])?;
    let violations = control.status()?["vmbus"]["violations"].clone();
    ensure!(violations == 0, "{violations} violations");
    note(&format!(
        "{} times in {took:.1} s; relids {relids:?}, {after}",
        times * 3
    ));
    control.ok(&["shutdown"])?;
    vm.expect_exit(0)
}

/// One of those that are left, at random.
fn next(left: &mut [(&'static str, u64)], random: &mut Random) -> Option<&'static str> {
    let all: u64 = left.iter().map(|(_, left)| left).sum();
    let mut at = random.below(all.max(1));
    for (name, left) in left {
        if at < *left {
            *left -= 1;
            return Some(name);
        }
        at -= *left;
    }
    None
}

/// Takes a service away and gives it back; the others must not notice.
fn one(control: &Control, name: &str) -> Outcome {
    let path = format!("/v1/services/{name}");
    let (status, entry) = control.ask("PATCH", &path, r#"{"enabled":false}"#)?;
    ensure!(
        status == 200 && entry["enabled"] == false && entry["state"] == "disabled",
        "disabled: {status} {entry}"
    );
    let others: Vec<&str> = NAMES.into_iter().filter(|other| *other != name).collect();
    control.until_ready(&others, Duration::from_secs(1))?;
    if name != "heartbeat" {
        let health = control.health()?;
        ensure!(health == "ok", "{health} without {name}");
    }
    let (status, entry) = control.ask("PATCH", &path, r#"{"enabled":true}"#)?;
    ensure!(
        status == 200 && entry["enabled"] == true,
        "enabled: {status} {entry}"
    );
    control.until_ready(&[name], FOLLOW)?;
    control.until_health("ok", FOLLOW)?;
    thread::sleep(SETTLE);
    Ok(())
}

fn reload(context: &Context) -> Outcome {
    let times = context.times(10, 50);
    let (mut vm, control) = boot_ready(context, |setup| setup)?;
    let mut warm = Measured::of(&mut vm)?;
    let start = Instant::now();
    for round in 0..times {
        vm.sh_ok("rmmod hv_utils")?;
        if round % 5 == 0 {
            let health = control.health()?;
            ensure!(health == "lost", "without a driver it is {health}");
        }
        vm.sh_ok("modprobe hv_utils")?;
        control.until_ready(&NAMES, FOLLOW)?;
        control.until_health("ok", FOLLOW)?;
        if round == times / 2 {
            warm = Measured::of(&mut vm)?;
        }
    }
    // And as fast as it goes.
    sh_long(
        &mut vm,
        &format!("for i in $(seq {times}); do rmmod hv_utils && modprobe hv_utils || exit 1; done"),
        Duration::from_secs(60 + 2 * times),
    )?;
    let took = start.elapsed().as_secs_f64();
    control.until_ready(&NAMES, FOLLOW)?;
    control.until_health("ok", FOLLOW)?;
    let after = Measured::of(&mut vm)?;
    after.check(&warm)?;
    check_log(&mut vm, &[])?;
    note(&format!("{} times in {took:.1} s; {after}", 2 * times));
    control.ok(&["shutdown"])?;
    vm.expect_exit(0)
}

/// The same sequence each time, so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
