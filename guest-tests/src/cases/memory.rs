// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory: above the 32-bit gap, and too little of it.

use crate::ensure;
use crate::suite::{Case, Context, Outcome};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "memory-above-gap",
        "3.5 GiB: the part above 4 GiB is seen",
        above_gap,
    ),
    Case::new(
        "too-little-memory",
        "64 MiB less than it needs: a crash with the kernel's words",
        too_little,
    )
    .once(),
];

fn above_gap(context: &Context) -> Outcome {
    let mut vm = context.setup().memory("3584M").boot()?;
    let map = vm.sh_ok("dmesg | grep BIOS-e820")?;
    // 7.x calls it "System RAM".
    let is_ram = |line: &str| line.contains("usable") || line.contains("System RAM");
    ensure!(
        map.lines()
            .any(|line| line.contains("[mem 0x0000000100000000-") && is_ram(line)),
        "no memory at 4 GiB in the map:\n{map}"
    );
    let total: u64 = vm
        .sh_ok("awk '/^MemTotal/ {print $2}' /proc/meminfo")?
        .parse()
        .unwrap_or(0);
    ensure!(total > 3_300_000, "only {total} KiB of 3.5 GiB are there");
    // Linux takes memory from the top, so this is above the gap.
    let sum = vm.sh_ok(
        "mount -t tmpfs -o size=90% big /mnt && dd if=/dev/zero of=/mnt/x bs=1M count=100 \
         2>/dev/null && md5sum </mnt/x",
    )?;
    ensure!(
        sum.starts_with("2f282b84e7e608d5852449ed940bfc51"),
        "100 MiB of zeroes came back as {sum}"
    );
    vm.power_off()
}

/// What the default kernel needs for [`WORK`] with our image, in MiB: it boots
/// with 90.
const NEEDED: u64 = 160;
/// Something that takes 48 MiB at once. A kernel that has none panics instead
/// of ending a program.
const WORK: &str =
    "echo 1 > /proc/sys/vm/panic_on_oom && dd if=/dev/zero of=/dev/null bs=48M count=1";

fn too_little(context: &Context) -> Outcome {
    let mut enough = context.setup().memory(&format!("{NEEDED}M")).boot()?;
    enough.sh_ok(WORK)?;
    enough.power_off()?;
    let memory = format!("{}M", NEEDED - 64);
    let mut vm = context.setup().memory(&memory).boot()?;
    vm.sh_last(WORK)?;
    vm.expect_exit(20)?;
    let (said, text) = (vm.said(), "Out of memory");
    ensure!(
        said.contains("Kernel panic") && said.contains(text),
        "the kernel's panic is not shown, but: {said}"
    );
    super::lifecycle::check_crash_event(&vm, text)?;
    // And with less than the kernel itself takes, nothing is started.
    let mut vm = context.setup().memory("64M").launch()?;
    vm.expect_exit(1)?;
    ensure!(
        vm.said().contains("needs memory up to"),
        "the answer does not say what is needed: {}",
        vm.said()
    );
    Ok(())
}
