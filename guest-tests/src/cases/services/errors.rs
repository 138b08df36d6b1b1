// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each error code of the services, from a guest that is really like that: layer
//! by layer from the host to the daemon, and what the guest itself gets wrong.

use std::thread;
use std::time::{Duration, Instant};

use crate::cases::api::described;
use crate::cases::vmbus::note;
use crate::ensure;
use crate::openapi::Description;
use crate::suite::{Case, Context, Control, Failure, Outcome, Vm};

pub(in crate::cases) const CASES: &[Case] = &[Case::new(
    "service-errors",
    "each of the error codes, of each service that can have it",
    errors,
)
.within(400)];

const READY: Duration = Duration::from_secs(15);

/// A request: method, target, body.
type Ask = (&'static str, &'static str, &'static str);

const POWER: &str = "/v1/vm/power";
const SHUTDOWN: Ask = ("PUT", POWER, r#"{"action":"shutdown","timeout_ms":2000}"#);
const HIBERNATE: Ask = ("PUT", POWER, r#"{"action":"hibernate"}"#);
const SYNC: Ask = ("POST", "/v1/time/sync", "");
const LIST: Ask = ("GET", "/v1/kvp/auto", "");
const CHECK: Ask = ("POST", "/v1/vss/check", "");
const FREEZE: Ask = ("POST", "/v1/vss/freeze", r#"{"max_ms":3000}"#);
const COPY: Ask = ("POST", "/v1/files?path=/tmp/new", "hello");
/// One of each service that does what a user wants.
const ALL: [Ask; 5] = [SHUTDOWN, SYNC, LIST, CHECK, COPY];

/// Those that another driver takes, and their types.
const TAKEN: [(Ask, &str); 3] = [
    (SHUTDOWN, "0e0b6031-5213-4934-818b-38d90ced39db"),
    (SYNC, "9527e630-d0ae-497b-adce-e80ab0175caf"),
    (CHECK, "35fa2e29-ea23-4236-96ae-3a6ebacba440"),
];

/// Asks, and expects this code, from this layer, with this status.
struct Expect<'a> {
    control: &'a Control,
    described: Description,
    seen: Vec<&'static str>,
}

impl Expect<'_> {
    fn error(&mut self, asks: &[Ask], code: &'static str, layer: &str, status: u16) -> Outcome {
        for (method, target, body) in asks {
            let (found, answer) = self.control.ask(method, target, body)?;
            let error = answer.get("error").cloned().unwrap_or_default();
            let text = |name: &str| {
                let part = error.get(name).and_then(|part| part.as_str());
                part.unwrap_or_default().to_owned()
            };
            ensure!(
                text("code") == code && text("layer") == layer && found == status,
                "{method} {target}: {found} {answer}, not {status} {code} of {layer}"
            );
            ensure!(
                text("message").len() > code.len(),
                "no sentence for people: {answer}"
            );
            self.described
                .check_answer(method, target, found, &answer)?;
        }
        if !self.seen.contains(&code) {
            self.seen.push(code);
        }
        Ok(())
    }

    /// Asks until the answer is another.
    fn until_not(&self, (method, target, body): Ask, code: &str) -> Outcome {
        let began = Instant::now();
        loop {
            let (_, answer) = self.control.ask(method, target, body)?;
            if answer.pointer("/error/code").is_none_or(|now| now != code) {
                return Ok(());
            }
            ensure!(began.elapsed() < READY, "{target} stays {code}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn errors(context: &Context) -> Outcome {
    let control = Control::new(context);
    let socket = control.socket().display().to_string();
    let setup = context
        .setup()
        .args(&["--api-socket", &socket, "--ic", "none"])
        .args(&["--on-crash", "continue"]);
    let mut vm = setup.launch()?;
    let began = Instant::now();
    while control.status().is_err() {
        ensure!(began.elapsed() < READY, "no answer at {socket}");
        thread::sleep(Duration::from_millis(20));
    }
    let mut expect = Expect {
        control: &control,
        described: described()?,
        seen: Vec::new(),
    };
    expect.error(&ALL, "disabled", "host", 409)?;
    for name in ["heartbeat", "shutdown", "timesync", "kvp", "vss", "fcopy"] {
        control.ok(&["ic", "enable", name])?;
    }
    // Nobody in the guest has asked what there is. Some kernels do without a
    // module, as soon as they come up.
    expect.error(&ALL, "not-offered", "bus", 503)?;
    vm.wait_agent()?;
    crate::cases::vmbus::load(&mut vm)?;
    expect.until_not(SYNC, "not-offered")?;
    expect.until_not(COPY, "not-offered")?;
    expect.error(&ALL, "not-open", "channel", 503)?;
    if context.version() >= (6, 10) {
        not_negotiated(&mut vm, &mut expect)?;
    }
    vm.sh_ok("modprobe hv_utils")?;
    control.until_ready(&super::NAMES, READY)?;
    without_daemons(context, &mut expect)?;
    vm.sh_ok("hv_kvp_daemon; hv_vss_daemon")?;
    control.until_ready(&["kvp", "vss"], READY)?;
    refused(&mut vm, &mut expect)?;
    late(&mut vm, &mut expect)?;
    note(&expect.seen.join(", "));
    let wanted = if context.version() >= (6, 10) { 10 } else { 9 };
    ensure!(
        expect.seen.len() == wanted,
        "{} codes instead of {wanted}",
        expect.seen.len()
    );
    control.ok(&["kill"])?;
    vm.expect_exit(130)
}

/// A driver that opens the channels and says nothing: a program's, that has no
/// part in it. Older kernels let no program have such channels.
fn not_negotiated(vm: &mut Vm, expect: &mut Expect<'_>) -> Outcome {
    vm.sh_ok("modprobe uio_hv_generic")?;
    for (_, interface_type) in TAKEN {
        vm.sh_ok(&format!(
            "echo {interface_type} > /sys/bus/vmbus/drivers/uio_hv_generic/new_id"
        ))?;
    }
    vm.sh_ok("for uio in /dev/uio*; do sleep 10000 < $uio > /dev/null 2>&1 & done")?;
    // The driver knows file copy by itself.
    let mut asks = TAKEN.map(|(ask, _)| ask).to_vec();
    asks.push(COPY);
    for ask in &asks {
        expect.until_not(*ask, "not-open")?;
    }
    expect.error(&asks, "not-negotiated", "negotiation", 503)?;
    vm.sh_ok("killall sleep; until rmmod uio_hv_generic 2> /dev/null; do usleep 100000; done")
        .map(drop)
}

fn without_daemons(context: &Context, expect: &mut Expect<'_>) -> Outcome {
    let mut asks = vec![LIST, CHECK];
    if context.version() < (6, 10) {
        asks.push(COPY);
    } else {
        expect.error(&[COPY], "not-open", "channel", 503)?;
    }
    for ask in &asks {
        expect.until_not(*ask, "not-open")?;
        expect.until_not(*ask, "not-negotiated")?;
    }
    let began = Instant::now();
    expect.error(&asks, "no-daemon", "daemon", 503)?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(2), "it took {took:?}");
    Ok(())
}

/// What the guest says no to, and what host and guest cannot do.
fn refused(vm: &mut Vm, expect: &mut Expect<'_>) -> Outcome {
    let address = ("PUT", "/v1/ip/52:54:00:12:34:56", r#"{"dhcp":true}"#);
    expect.error(&[HIBERNATE, address], "guest-error", "guest", 502)?;
    // It claims to be of a device, and cannot be frozen.
    vm.sh_ok("mount -t tmpfs /dev/null /mnt")?;
    expect.error(&[FREEZE], "guest-error", "guest", 502)?;
    vm.sh_ok("umount /mnt")?;
    let own = ("PUT", "/v1/kvp/auto/OSName", r#"{"value":"mine"}"#);
    expect.error(&[own], "unsupported", "negotiation", 501)?;
    let endless = ("POST", "/v1/vss/freeze", r#"{"max_ms":0}"#);
    expect.error(&[endless], "bad-request", "api", 400)
}

/// A daemon that hangs, then a kernel that does.
fn late(vm: &mut Vm, expect: &mut Expect<'_>) -> Outcome {
    vm.sh_ok("killall -STOP hv_vss_daemon hv_kvp_daemon")?;
    let control = expect.control.clone();
    let first = thread::spawn(move || control.ask(LIST.0, LIST.1, LIST.2));
    thread::sleep(Duration::from_secs(1));
    expect.error(&[LIST], "busy", "host", 409)?;
    expect.error(&[FREEZE], "timeout", "guest", 504)?;
    vm.sh_ok("killall -CONT hv_vss_daemon hv_kvp_daemon")?;
    let first = first.join().map_err(|_| Failure("no first".into()))?;
    let (status, answer) = first?;
    ensure!(status == 200, "the first of two: {status} {answer}");
    expect.control.until_ready(&["kvp", "vss"], READY)?;
    let began = Instant::now();
    while expect.control.run(&["vss", "run", "--", "true"])?.code != 0 {
        ensure!(began.elapsed() < READY, "it does not freeze any more");
        thread::sleep(Duration::from_millis(200));
    }
    vm.sh_last("halt -f")?;
    expect.control.until_health("lost", READY)?;
    expect.error(&[SHUTDOWN, SYNC, FREEZE], "timeout", "guest", 504)
}
