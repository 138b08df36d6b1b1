// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A user's mistakes: one clear line that names the flag, never a hang or a panic.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::ensure;
use crate::suite::{Case, Context, Failure, Outcome};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "bad-files",
        "kernels and RAM disks that are none are refused",
        files,
    )
    .once(),
    Case::new(
        "bad-sizes",
        "sizes and counts that can't be are refused",
        sizes,
    )
    .once(),
    Case::new(
        "bad-words",
        "unknown words and missing values are refused",
        words,
    )
    .once(),
];

/// What is wrong, the arguments, and a word that the answer must have.
type Mistake<'a> = (&'a str, Vec<String>, &'a str);

/// Runs `vmm` and expects a quick refusal.
fn refuse(context: &Context, (what, args, word): &Mistake<'_>) -> Outcome {
    let start = Instant::now();
    let mut child = std::process::Command::new(&context.vmm)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    while child.try_wait()?.is_none() {
        if start.elapsed() > Duration::from_secs(20) {
            child.kill()?;
            return Err(Failure(format!(
                "{what}: vmm runs instead of refusing {args:?}"
            )));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        matches!(output.status.code(), Some(1 | 2)),
        "{what}: ended with {} instead of 1 or 2: {said}",
        output.status
    );
    ensure!(
        said.contains(word),
        "{what}: the answer doesn't name {word}: {said}"
    );
    ensure!(!said.contains("panicked"), "{what}: vmm panicked: {said}");
    // clap's answers have a few lines of help after the one that matters.
    let lines = said.lines().filter(|line| !line.trim().is_empty()).count();
    let limit = if output.status.code() == Some(2) {
        6
    } else {
        1
    };
    ensure!(lines <= limit, "{what}: an answer of {lines} lines: {said}");
    Ok(())
}

fn refuse_all(context: &Context, mistakes: &[Mistake<'_>]) -> Outcome {
    let failures: Vec<String> = mistakes
        .iter()
        .filter_map(|mistake| refuse(context, mistake).err())
        .map(|failure| failure.0)
        .collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn files(context: &Context) -> Outcome {
    let write = |name: &str, data: &[u8]| -> Outcome<String> {
        let path: PathBuf = context.dir.join(name);
        fs::write(&path, data)?;
        Ok(path.display().to_string())
    };
    let kernel = fs::read(&context.vmlinuz)?;
    let vmlinux = fs::read(&context.vmlinux)?;
    let good = context.vmlinuz.display().to_string();
    let part = |data: &[u8], length: usize| data.get(..length).unwrap_or_default().to_vec();
    let big = context.dir.join("big.img");
    fs::File::create(&big)?.set_len(600 << 20)?;
    let big = big.display().to_string();
    let dir = context.dir.display().to_string();

    let mut broken = vmlinux.clone();
    if let Some(entry) = broken.get_mut(0x20..0x28) {
        entry.fill(0xff); // the program headers' place
    }
    let kernels = [
        ("a missing kernel", "/nonexistent/kernel".to_owned()),
        ("a directory", dir.clone()),
        ("an empty file", write("empty", b"")?),
        ("a text", write("text", b"this is not a kernel\n")?),
        ("64 KiB of zeroes", write("zeroes", &vec![0; 65536])?),
        (
            "a bzImage's first sector",
            write("sector", &part(&kernel, 512))?,
        ),
        ("a bzImage's header", write("header", &part(&kernel, 4096))?),
        (
            "half a bzImage",
            write("half", &part(&kernel, kernel.len() / 2))?,
        ),
        ("an ELF header", write("elf", &part(&vmlinux, 64))?),
        (
            "half a vmlinux",
            write("half-elf", &part(&vmlinux, vmlinux.len() / 2))?,
        ),
        ("a vmlinux with a wild table", write("wild-elf", &broken)?),
        ("an ELF program", context.vmm.display().to_string()),
    ];
    let mut mistakes: Vec<Mistake<'_>> = Vec::new();
    for (what, path) in &kernels {
        mistakes.push((what, strings(&["--kernel", path]), "kernel"));
    }
    for (what, path) in [
        ("a missing RAM disk", "/nonexistent/rd.img"),
        ("a directory as RAM disk", dir.as_str()),
        ("a RAM disk larger than memory", big.as_str()),
    ] {
        mistakes.push((
            what,
            strings(&["--kernel", &good, "--initramfs", path]),
            "initramfs",
        ));
    }
    let unwritable = "/nonexistent/dir/log";
    mistakes.push((
        "an event log that can't be",
        strings(&["--kernel", &good, "--event-log", unwritable]),
        "event-log",
    ));
    mistakes.push((
        "a serial file that can't be",
        strings(&["--kernel", &good, "--serial", &format!("file={unwritable}")]),
        "serial",
    ));
    refuse_all(context, &mistakes)
}

fn sizes(context: &Context) -> Outcome {
    let good = context.vmlinuz.display().to_string();
    let long = "x".repeat(5000);
    let pairs = [
        ("no memory", "--memory", "0"),
        ("one byte", "--memory", "1"),
        ("1 MiB", "--memory", "1M"),
        ("a million TiB", "--memory", "1000000T"),
        ("64 PiB", "--memory", "65536T"),
        ("negative memory", "--memory=-5", ""),
        ("memory in words", "--memory", "much"),
        ("no memory size", "--memory", ""),
        ("no CPUs", "--cpus", "0"),
        ("65536 CPUs", "--cpus", "65536"),
        ("too many CPUs", "--cpus", "4294967296"),
        ("CPUs in words", "--cpus", "two"),
        ("a command line of 5000", "--cmdline", long.as_str()),
        ("a timeout of nothing", "--timeout", ""),
        ("a timeout in words", "--timeout", "soon"),
    ];
    let mistakes: Vec<Mistake<'_>> = pairs
        .iter()
        .map(|(what, flag, value)| {
            let mut args = strings(&["--kernel", &good, flag]);
            if !flag.contains('=') {
                args.push((*value).to_owned());
            }
            let word = flag
                .trim_start_matches('-')
                .split('=')
                .next()
                .unwrap_or_default();
            (*what, args, word)
        })
        .collect();
    refuse_all(context, &mistakes)
}

fn words(context: &Context) -> Outcome {
    let good = context.vmlinuz.display().to_string();
    let mistakes: Vec<Mistake<'_>> = vec![
        ("no kernel at all", vec![], "--kernel"),
        (
            "an unknown flag",
            strings(&["--kernel", &good, "--colour"]),
            "--colour",
        ),
        (
            "a stray word",
            strings(&["--kernel", &good, "stray"]),
            "stray",
        ),
        (
            "a flag without its value",
            strings(&["--kernel"]),
            "--kernel",
        ),
        (
            "an unknown serial",
            strings(&["--kernel", &good, "--serial", "usb"]),
            "--serial",
        ),
        (
            "an unknown synic",
            strings(&["--kernel", &good, "--synic", "both"]),
            "--synic",
        ),
        (
            "an unknown reaction",
            strings(&["--kernel", &good, "--on-reset", "shrug"]),
            "--on-reset",
        ),
        (
            "a key that is not there",
            strings(&["--kernel", &good, "--ssh-key", "/nonexistent/key.pub"]),
            "--ssh-key",
        ),
        (
            "a key that is none",
            strings(&["--kernel", &good, "--ssh-key", "/proc/version"]),
            "--ssh-key",
        ),
        (
            "an exit code too large",
            strings(&["--kernel", &good, "--on-reset", "exit:256"]),
            "--on-reset",
        ),
    ];
    refuse_all(context, &mistakes)
}
