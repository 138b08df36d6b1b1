// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest is told of its host and of itself: pool 3, as the distribution's daemon
//! keeps it.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::super::services::{boot, load};
use super::{READY, listed, no_daemon, pool_file, start, wait_item};
use crate::ensure;
use crate::suite::{Context, Outcome, Vm};

/// The names that Hyper-V gives a guest, in its order.
const HOST_ITEMS: [&str; 16] = [
    "HostName",
    "HostingSystemEditionId",
    "HostingSystemNestedLevel",
    "HostingSystemOsMajor",
    "HostingSystemOsMinor",
    "HostingSystemProcessorArchitecture",
    "HostingSystemProcessorIdleStateMax",
    "HostingSystemProcessorThrottleMax",
    "HostingSystemProcessorThrottleMin",
    "HostingSystemSpMajor",
    "HostingSystemSpMinor",
    "PhysicalHostName",
    "PhysicalHostNameFullyQualified",
    "VirtualMachineDynamicMemoryBalancingEnabled",
    "VirtualMachineId",
    "VirtualMachineName",
];
const VM_ID: &str = "461B2364-3901-4349-B3C2-FA4821CBEEFE";

/// Pool 3, as the guest's file has it once it has all items.
fn told(vm: &mut Vm) -> Outcome<Vec<(String, String)>> {
    let began = Instant::now();
    loop {
        let text = vm.sh_ok(&format!("/init kvp-pool {}", pool_file(3)))?;
        let mut lines = text.lines().map(str::to_owned);
        let mut items = Vec::new();
        while let (Some(key), Some(value)) = (lines.next(), lines.next()) {
            items.push((key, value));
        }
        if items.len() >= HOST_ITEMS.len() {
            return Ok(items);
        }
        ensure!(
            began.elapsed() < READY,
            "of the host there is only {items:?}"
        );
        thread::sleep(Duration::from_millis(200));
    }
}

pub(super) fn host_items(context: &Context) -> Outcome {
    let (mut vm, control) = boot(context, |setup| {
        setup.args(&["--vm-id", VM_ID, "--name", "told"])
    })?;
    load(&mut vm)?;
    start(&mut vm, &control)?;
    let items = told(&mut vm)?;
    let names: Vec<&str> = items.iter().map(|(key, _)| key.as_str()).collect();
    ensure!(names == HOST_ITEMS, "the guest is told {items:?}");
    let value = |key: &str| {
        let item = items.iter().find(|item| item.0 == key);
        item.map(|item| item.1.clone()).unwrap_or_default()
    };
    let host = fs::read_to_string("/proc/sys/kernel/hostname")?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let major = release.split('.').next().unwrap_or_default();
    for (key, expected) in [
        ("HostName", host.trim()),
        ("PhysicalHostNameFullyQualified", host.trim()),
        ("HostingSystemOsMajor", major),
        ("HostingSystemProcessorArchitecture", "9"),
        ("VirtualMachineId", VM_ID),
        ("VirtualMachineName", "told"),
    ] {
        ensure!(
            value(key) == expected,
            "{key} is {:?} instead of {expected:?}",
            value(key)
        );
    }
    ensure!(
        listed(&control, "auto-external")? == items,
        "the API lists another pool auto-external than the guest's file has"
    );
    let said = control.ok(&["kvp", "get", "VirtualMachineId"])?;
    ensure!(said.trim() == VM_ID, "kvp get: {said}");
    for args in [
        &["kvp", "set", "HostName", "x", "--pool", "auto-external"][..],
        &["kvp", "delete", "HostName", "--pool", "auto-external"],
    ] {
        let ran = control.run(args)?;
        ensure!(
            ran.code == 1 && ran.stderr.contains("unsupported"),
            "writing what the host tells: {ran:?}"
        );
    }
    // A daemon that starts over without its files is told again.
    vm.sh_ok("killall -9 hv_kvp_daemon; rm -f /var/lib/hyperv/.kvp_pool_*")?;
    no_daemon(&control)?;
    start(&mut vm, &control)?;
    let again = told(&mut vm)?;
    ensure!(
        again == items,
        "after a restart the guest is told {again:?}"
    );
    // The VM is the same one after a reset.
    control.ok(&["reset"])?;
    vm.wait_agent()?;
    load(&mut vm)?;
    start(&mut vm, &control)?;
    let again = told(&mut vm)?;
    ensure!(again == items, "after a reset the guest is told {again:?}");
    vm.power_off()?;
    let (mut vm, control) = boot(context, |setup| {
        setup.args(&["--kvp-host-items", "none", "--kvp", "a=1"])
    })?;
    load(&mut vm)?;
    start(&mut vm, &control)?;
    wait_item(&mut vm, "1")?;
    let size = vm.sh_ok(&format!("stat -c %s {}", pool_file(3)))?;
    ensure!(size == "0", "left out, pool 3 has {size} bytes");
    ensure!(
        listed(&control, "auto-external")?.is_empty(),
        "left out, and listed"
    );
    vm.power_off()
}
