// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line of `vmmctl`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand};

use ics_devices::ServiceKind;

use super::cp::Cp;
use super::forward::Forward;
use super::hvsocket::Hvsocket;
use super::kvp::{Ip, Kvp};
use super::ssh::Ssh;
use super::vss::Vss;
use crate::cli::duration;
use crate::completions::{Offering, Program};

/// Values that completions offer.
const CONDITIONS: &[&str] = &[
    "ready",
    "heartbeat",
    "stopped",
    "service=heartbeat",
    "service=shutdown",
    "service=timesync",
    "service=kvp",
    "service=vss",
    "service=fcopy",
    "service=vsock",
];
const SERVICES: &[&str] = &[
    "heartbeat",
    "shutdown",
    "timesync",
    "kvp",
    "vss",
    "fcopy",
    "vsock",
];

/// Control a virtual machine started with vmm.
///
/// With one VM running neither --vm nor --socket is needed.
#[derive(Debug, Parser)]
#[command(
    name = "vmmctl",
    version,
    after_help = "\
Examples:
  vmmctl status
  vmmctl wait heartbeat --timeout 60s && vmmctl shutdown --then-kill
  vmmctl --vm web --json status
  vmmctl ic disable timesync
  vmmctl kvp list --pool auto
  vmmctl vss run --max 30s -- cp disk.img backup.img
  vmmctl cp motd guest:/etc/
  vmmctl ssh -- journalctl -b
  vmmctl cp guest:/var/log results/
  vmmctl forward 8080 80

Exit codes: 0 done, 1 failed, 2 usage, 3 what was waited for has not come."
)]
pub struct Args {
    /// The VM's name
    #[arg(long, value_name = "NAME", global = true, conflicts_with = "socket")]
    pub vm: Option<String>,

    /// The VM's control socket
    #[arg(long, value_name = "PATH", global = true)]
    pub socket: Option<PathBuf>,

    /// Print the API's answer
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What `vmmctl` does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Running VMs
    ///
    /// All are asked at once. One that has not answered after 2 s is shown as "no answer".
    List {
        /// Their names only, one a line, without asking them
        #[arg(long)]
        names: bool,
    },
    /// The VM, the bus, and each service
    Status,
    /// Block until something is so; exit 3 when it does not come
    ///
    /// The VM itself is waited for too, so this can follow `vmm … &` at once.
    Wait {
        /// ready: the bus is up, and each service ready or without its daemon;
        /// heartbeat: the guest's kernel answers; service=NAME: that one is ready;
        /// stopped: the VM has ended
        #[arg(
            value_name = "ready|heartbeat|service=NAME|stopped",
            hide_possible_values = true,
            value_parser = Offering(condition, CONDITIONS)
        )]
        condition: Condition,
        /// How long to wait
        #[arg(long, value_name = "DUR", default_value = "30s", value_parser = duration)]
        timeout: Duration,
    },
    /// Ask the guest to power off, and wait until it has
    Shutdown(Shutdown),
    /// End the VM without asking the guest
    Kill,
    /// Reset the machine without asking the guest
    Reset,
    /// Stop the vCPUs; the guest's clocks stand still too
    ///
    /// What needs the guest is refused as busy meanwhile. Timeouts run on.
    Pause,
    /// Let them go on
    Resume,
    /// Send a non-maskable interrupt to each vCPU, unless the VM is paused
    Nmi,
    /// The integration services
    #[command(subcommand)]
    Ic(Ic),
    /// The guest's clock, or set it now
    Time {
        /// What to do; without it the state is shown
        #[command(subcommand)]
        command: Option<Time>,
    },
    /// Standard input and output to a Hyper-V socket (AF_VSOCK) of the guest
    Connect {
        /// A port, such as 22, a service's GUID, or the name that it is registered by
        #[arg(value_name = "PORT|GUID|NAME")]
        service: String,
    },
    /// A TCP port of this host that leads to a Hyper-V socket of the guest
    Forward(Forward),
    /// Names of services on Hyper-V sockets
    #[command(subcommand)]
    Hvsocket(Hvsocket),
    /// Items exchanged with the guest
    #[command(subcommand)]
    Kvp(Kvp),
    /// The guest's network addresses
    #[command(subcommand)]
    Ip(Ip),
    /// Freeze the guest's file systems for a backup
    #[command(subcommand)]
    Vss(Vss),
    /// Copy files into the guest, or out of it
    Cp(Cp),
    /// A shell in the guest, or a command, without a network
    Ssh(Ssh),
    /// What happened to the VM
    Events {
        /// Go on with what happens next
        #[arg(long, short)]
        follow: bool,
    },
    /// What passes on the bus from now on, decoded: messages, packets, signals
    Trace {
        /// End after so many lines
        #[arg(long, short = 'n', value_name = "N", value_parser = lines)]
        lines: Option<u64>,
    },
    /// Print completions for a shell
    ///
    /// They know the commands and options, and where there are some to choose from, values: names
    /// of VMs, services, what can be waited for.
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
        /// Of which program
        #[arg(long = "for", value_name = "PROGRAM", default_value = "vmmctl")]
        program: Program,
    },
    /// Write manual pages of vmm and vmmctl
    ///
    /// The same program writes the same pages on any day. SOURCE_DATE_EPOCH sets the date in them.
    Man {
        /// Into this directory
        dir: PathBuf,
    },
}

/// How to shut down.
#[derive(Debug, Clone, ClapArgs)]
pub struct Shutdown {
    /// Reboot instead
    #[arg(long, conflicts_with = "hibernate")]
    pub reboot: bool,
    /// Hibernate instead
    #[arg(long)]
    pub hibernate: bool,
    /// Do not let programs in the guest object (Linux never does)
    #[arg(long)]
    pub force: bool,
    /// How long the guest may take, its answer included
    #[arg(long, value_name = "DUR", default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
    /// End the VM when the guest refuses or takes too long; `vmm` then exits as after a
    /// shutdown, or with 130 if --reboot or --hibernate was asked for
    #[arg(long)]
    pub then_kill: bool,
}

/// `vmmctl ic`.
#[derive(Debug, Subcommand)]
pub enum Ic {
    /// All services and their states
    List,
    /// Offer a service to the guest
    Enable {
        /// heartbeat, shutdown, timesync, kvp, vss, fcopy or vsock
        #[arg(hide_possible_values = true, value_parser = Offering(service, SERVICES))]
        name: String,
    },
    /// Take a service back
    Disable {
        /// heartbeat, shutdown, timesync, kvp, vss, fcopy or vsock
        #[arg(hide_possible_values = true, value_parser = Offering(service, SERVICES))]
        name: String,
    },
}

/// `vmmctl time`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Time {
    /// Step the guest's clock to the host's now
    Sync,
}

/// What `vmmctl wait` waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The guest is connected to the bus and every service that is on is ready,
    /// or lacks nothing but its daemon.
    Ready,
    /// The heartbeat says that the guest is well.
    Heartbeat,
    /// A service is ready.
    Service(String),
    /// The VM is gone.
    Stopped,
}

fn condition(text: &str) -> Result<Condition, String> {
    match (text, text.strip_prefix("service=")) {
        ("ready", _) => Ok(Condition::Ready),
        ("heartbeat", _) => Ok(Condition::Heartbeat),
        ("stopped", _) => Ok(Condition::Stopped),
        (_, Some(name)) => service(name).map(Condition::Service),
        _ => Err("expected ready, heartbeat, service=NAME or stopped".into()),
    }
}

fn lines(text: &str) -> Result<u64, String> {
    let lines = text.parse().ok().filter(|lines| *lines > 0);
    lines.ok_or_else(|| "expected a number of lines, 1 or more".into())
}

/// A service's name.
fn service(name: &str) -> Result<String, String> {
    let names: Vec<_> = ServiceKind::ALL.iter().map(|kind| kind.name()).collect();
    if names.contains(&name) {
        Ok(name.to_owned())
    } else {
        Err(format!(
            "there is no such service; there are {}",
            names.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_is_offered_is_taken_and_nothing_is_missing() {
        assert!(CONDITIONS.iter().all(|text| condition(text).is_ok()));
        let all: Vec<_> = ServiceKind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(SERVICES, all);
        assert_eq!(CONDITIONS.len(), 3 + SERVICES.len());
    }

    #[test]
    fn conditions_are_parsed() {
        assert_eq!(
            condition("service=kvp"),
            Ok(Condition::Service("kvp".into()))
        );
        assert_eq!(condition("stopped"), Ok(Condition::Stopped));
        assert!(condition("service=").is_err());
        assert!(condition("service=lunch").unwrap_err().contains("kvp"));
        assert!(condition("lunch").is_err());
    }
}
