// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writes the seeds of every target to `corpus/`, and runs them.

#![allow(clippy::unwrap_used)] // a test may stumble

use std::fmt::Debug;
use std::fs;
use std::path::Path;

use vmbus_fuzz::control::Control;
use vmbus_fuzz::step::{Step, bytes, steps};
use vmbus_fuzz::trace;

fn write_and_run<S>(target: &str, seeds: Vec<(&'static str, Vec<S>)>, run: impl Fn(&[u8]))
where
    S: Step + Debug + PartialEq,
{
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&directory).unwrap();
    for (name, seed) in seeds {
        let data = bytes(&seed);
        assert_eq!(
            steps(&data).collect::<Vec<S>>(),
            seed,
            "{name} reads as written"
        );
        let path = directory.join(name);
        if fs::read(&path).ok().as_deref() != Some(&data[..]) {
            fs::write(path, &data).unwrap();
        }
        run(&data);
        assert_eq!(vmbus_fuzz::guest::dirty_page(), None, "after {name}");
    }
}

/// A Debian 13's start with its daemons, a few requests, and its end.
const TRACE: &str = include_str!("../traces/debian-13.ndjson");

#[test]
fn control_messages() {
    let mut seeds = vmbus_fuzz::control::seeds();
    let session = trace::session(TRACE);
    let count = |wanted: fn(&Control) -> bool| session.iter().filter(|step| wanted(step)).count();
    assert!(count(|step| matches!(step, Control::Open(..))) > 6);
    assert!(count(|step| matches!(step, Control::Rescind(..))) > 0);
    assert!(count(|step| matches!(step, Control::Released(..))) > 0);
    seeds.push(("debian-13", session));
    write_and_run("control_messages", seeds, vmbus_fuzz::control::run);
}

#[test]
fn ring() {
    write_and_run("ring", vmbus_fuzz::ring::seeds(), vmbus_fuzz::ring::run);
}

#[test]
fn synic() {
    write_and_run("synic", vmbus_fuzz::synic::seeds(), vmbus_fuzz::synic::run);
}

#[test]
fn hvsock() {
    use vmbus_fuzz::hvsock::{run, seeds};
    write_and_run("hvsock", seeds(), run);
}

#[test]
fn services() {
    use vmbus_fuzz::service::{run_fcopy, run_kvp, run_vss, seeds};
    let with_trace = |name| {
        let real = trace::service(TRACE, name);
        assert!(real.len() > 5, "{name}: {real:?}");
        let mut seeds = seeds();
        seeds.push(("debian-13", real));
        seeds
    };
    write_and_run("kvp", with_trace("kvp"), run_kvp);
    write_and_run("vss", with_trace("vss"), run_vss);
    write_and_run("fcopy", seeds(), run_fcopy);
}

fn write_and_run_files(target: &str, seeds: Vec<(&'static str, Vec<u8>)>, run: impl Fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&directory).unwrap();
    for (name, data) in seeds {
        let path = directory.join(name);
        if fs::read(&path).ok().as_deref() != Some(&data[..]) {
            fs::write(path, &data).unwrap();
        }
        run(&data);
    }
}

#[test]
fn service_replies() {
    use vmbus_fuzz::service::{reply_seeds, run_replies};
    write_and_run_files("service_replies", reply_seeds(), run_replies);
}

#[test]
fn kernel_image() {
    use vmbus_fuzz::image::{run, seeds};
    write_and_run_files("kernel_image", seeds(), run);
}

#[test]
fn tar() {
    use vmbus_fuzz::tar::{run, seeds};
    write_and_run_files("tar", seeds(), run);
}

#[test]
fn ring_race() {
    write_and_run(
        "ring_race",
        vmbus_fuzz::ring::seeds(),
        vmbus_fuzz::race::run,
    );
}

#[test]
fn http() {
    use vmbus_fuzz::http::{run, seeds};
    write_and_run_files("http", seeds(), run);
}

#[test]
fn boot_tables() {
    use vmbus_fuzz::boot::{run, seeds};
    write_and_run_files("boot_tables", seeds(), run);
}

#[test]
fn plain_services() {
    use vmbus_fuzz::service::{plain_seeds, run_plain};
    write_and_run_files("services", plain_seeds(), run_plain);
}

#[test]
fn hyperv() {
    use vmbus_fuzz::hyperv::{run, seeds};
    write_and_run("hyperv", seeds(), run);
}

#[test]
fn trace_decoder() {
    use vmbus_fuzz::trace_decoder::{run, seeds};
    write_and_run("trace_decoder", seeds(), run);
}

#[test]
fn vsock() {
    use vmbus_fuzz::vsock::{run, seeds};
    write_and_run_files("vsock", seeds(), run);
}

#[test]
fn fetch() {
    // The archives of `tar`.
    write_and_run_files("fetch", vmbus_fuzz::tar::seeds(), vmbus_fuzz::fetch::run);
}
