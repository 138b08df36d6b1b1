// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The serial console carries every byte, in order, in both directions.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::ensure;
use crate::suite::{Case, Context, Failure, Outcome};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "console-echo",
        "16 KiB typed in bursts come back unchanged",
        echo,
    )
    .once(),
    Case::new(
        "console-output",
        "50 KB of a command's output arrive whole",
        output,
    )
    .once(),
    Case::new("console-null", "--serial null and file=PATH", elsewhere).once(),
];

/// What a guest's terminal surely keeps for a slow reader: a serial line has no
/// flow control, so beyond its 4 KiB Linux may drop.
const BURST: usize = 2048;

fn echo(context: &Context) -> Outcome {
    let mut vm = context.setup().boot()?;
    // All byte values: the console is raw on both sides.
    let sent: Vec<u8> = (0..16 * 1024_u32)
        .map(|n| (n.wrapping_mul(31) >> 3).to_le_bytes()[0])
        .collect();
    let deadline = Instant::now() + Duration::from_secs(120);
    let id = vm.ask("echo", sent.len().to_string().as_bytes())?;
    let go = vm.answer(id, deadline)?;
    ensure!(go.word == "go", "the agent said {go:?}");
    let mut input = vm
        .take_input()
        .ok_or_else(|| Failure("no input".to_owned()))?;
    let mut got = Vec::with_capacity(sent.len());
    for burst in sent.chunks(BURST) {
        input.write_all(burst).and_then(|()| input.flush())?;
        got.extend(vm.console.bytes(burst.len(), deadline)?);
    }
    vm.return_input(input);
    let first = sent.iter().zip(&got).position(|(a, b)| a != b);
    ensure!(first.is_none(), "the bytes differ from {first:?} on");
    let end = vm.answer(id, deadline)?;
    ensure!(end.word == "exit", "the agent said {end:?}");
    vm.power_off()
}

fn output(context: &Context) -> Outcome {
    let mut vm = context.setup().boot()?;
    let text = vm.sh_ok("seq 1 2000")?;
    let expected: Vec<String> = (1..=2000).map(|n| n.to_string()).collect();
    ensure!(
        text == expected.join("\n"),
        "{} bytes arrived, not what was sent",
        text.len()
    );
    vm.power_off()
}

fn elsewhere(context: &Context) -> Outcome {
    let mut vm = context
        .setup()
        .cmdline("agent.poweroff")
        .args(&["--serial", "null"])
        .launch()?;
    vm.expect_exit(0)?;
    let text = vm.console.text();
    ensure!(text.is_empty(), "--serial null still printed {text:?}");
    let log = context.dir.join("serial.log");
    let serial = format!("file={}", log.display());
    let mut vm = context
        .setup()
        .cmdline("agent.poweroff")
        .args(&["--serial", &serial])
        .launch()?;
    vm.expect_exit(0)?;
    let text = std::fs::read_to_string(&log)?;
    ensure!(
        text.contains("agent: kernel"),
        "{serial}: the end of the boot is missing"
    );
    Ok(())
}
