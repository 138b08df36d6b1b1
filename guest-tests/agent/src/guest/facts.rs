// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest says about itself when it is up.

use std::fmt::Write as _;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// One line, for the hello of the line protocol.
pub fn short() -> String {
    format!(
        "release={} cpus={} clocksource={} time={}",
        read("/proc/sys/kernel/osrelease"),
        cpus(),
        clocksource(),
        now()
    )
}

/// Some lines for a person: what `agent.poweroff` prints.
pub fn report() -> String {
    let mut out = String::from("\n");
    let _ = writeln!(out, "agent: {} is up", read("/proc/sys/kernel/ostype"));
    let _ = writeln!(
        out,
        "agent: kernel        {}",
        read("/proc/sys/kernel/osrelease")
    );
    let _ = writeln!(out, "agent: cpus          {}", cpus());
    let _ = writeln!(out, "agent: memory        {}", meminfo("MemTotal:"));
    let _ = writeln!(out, "agent: clocksource   {}", clocksource());
    let _ = writeln!(out, "agent: uptime        {} s", word("/proc/uptime"));
    for line in kernel_log() {
        let about_us = ["Hypervisor detected", "Hyper-V:", "hv_vmbus:", "hv_utils:"];
        if about_us.iter().any(|word| line.contains(word)) {
            let _ = writeln!(out, "{line}");
        }
    }
    out
}

/// The kernel's messages so far, without their priorities.
fn kernel_log() -> Vec<String> {
    let log = std::process::Command::new("/bin/busybox")
        .arg("dmesg")
        .output();
    let log = log.map(|log| log.stdout).unwrap_or_default();
    String::from_utf8_lossy(&log)
        .lines()
        .map(str::to_owned)
        .collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn word(path: &str) -> String {
    read(path).split(' ').next().unwrap_or_default().to_owned()
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(0, Into::into)
}

fn clocksource() -> String {
    read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
}

fn meminfo(key: &str) -> String {
    let text = read("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or_default().trim().to_owned()
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs())
}
