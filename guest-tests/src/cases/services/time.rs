// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's clocks against the host's. How they are compared is told in
//! [`crate::suite::clock`].

use std::thread;
use std::time::{Duration, Instant};

use super::boot_ready;
use crate::cases::vmbus::{check_log, note};
use crate::ensure;
use crate::suite::clock::Offset;
use crate::suite::{Case, Context, Failure, Outcome, Vm};

pub(crate) const CASES: &[Case] = &[
    Case::new(
        "time-sync",
        "a clock that is an hour wrong is stepped to within 50 ms, when asked and only then",
        sync,
    )
    .with_cpus(&[1, 4])
    .with_both_synics_in_full(),
    Case::new(
        "time-ptp",
        "the PTP clock stays within 10 ms of the host's (10 minutes with --long)",
        ptp,
    )
    .with_both_synics_in_full(),
];

/// How wrong a clock may be that was stepped.
const STEPPED: Duration = Duration::from_millis(50);
/// How wrong the PTP clock may be.
const PTP: Duration = Duration::from_millis(10);

/// The guest's clock must be right; a step takes the guest a moment.
pub(crate) fn check(vm: &mut Vm, device: &str) -> Outcome<Offset> {
    let limit = if device.is_empty() { STEPPED } else { PTP };
    let mut offset = vm.clock_offset(device)?;
    // A nest under load has wide bounds now and then; a wrong clock has them always.
    for _ in 0..5 {
        if offset.within(limit) {
            return Ok(offset);
        }
        thread::sleep(Duration::from_millis(200));
        offset = vm.clock_offset(device)?;
    }
    Err(Failure(format!(
        "the guest's clock is off by {offset}, more than {limit:?}"
    )))
}

fn sync(context: &Context) -> Outcome {
    let (mut vm, control) = boot_ready(context, |setup| setup)?;
    let mut seen = Vec::new();
    for seconds in [-3600_i128, 3600] {
        vm.sh_ok(&format!("date -s @$(($(date +%s) + {seconds}))"))?;
        let wrong = vm.clock_offset("")?;
        let hour = seconds * 1_000_000_000;
        ensure!(
            (wrong.low - hour).abs() < 5_000_000_000,
            "the clock was set wrong by {seconds} s, and is off by {wrong}"
        );
        // Samples alone never step it.
        thread::sleep(Duration::from_secs(6));
        let still = vm.clock_offset("")?;
        ensure!(
            (still.low - hour).abs() < 5_000_000_000,
            "nobody asked for a step, and it is off by {still}"
        );
        control.ok(&["time", "sync"])?;
        seen.push(check(&mut vm, "")?.to_string());
    }
    let (status, time) = control.ask("GET", "/v1/time", "")?;
    ensure!(
        status == 200 && time["syncs"] == 3 && time["guest_offset_us"].is_null(),
        "GET /v1/time says {time}"
    );
    let shown = control.ok(&["time"])?;
    ensure!(shown.contains("3 times stepped"), "vmmctl time: {shown}");
    check_log(&mut vm, &[])?;
    note(&format!("off by {}", seen.join(", then by ")));
    vm.power_off()
}

fn ptp(context: &Context) -> Outcome {
    let length = Duration::from_secs(context.times(20, 600));
    let (mut vm, _control) = boot_ready(context, |setup| setup)?;
    vm.sh_ok("modprobe ptp 2> /dev/null; true")?;
    let device = vm.sh_ok("grep -l hyperv /sys/class/ptp/*/clock_name | cut -d/ -f5")?;
    ensure!(!device.is_empty(), "no PTP clock named hyperv");
    let device = format!("/dev/{device}");
    // It is the host's clock that it shows, not the guest's.
    vm.sh_ok("date -s @1000000000")?;
    let start = Instant::now();
    let mut worst = check(&mut vm, &device)?;
    while start.elapsed() < length {
        let offset = check(&mut vm, &device)?;
        worst.low = worst.low.min(offset.low);
        worst.high = worst.high.max(offset.high);
        thread::sleep(Duration::from_secs(1));
    }
    check_log(&mut vm, &[])?;
    note(&format!(
        "{device} is off by {worst} at the most, in {} s",
        length.as_secs()
    ));
    vm.power_off()
}
