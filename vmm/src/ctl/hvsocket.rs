// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl hvsocket`: the services on Hyper-V sockets that have a name.

use clap::Subcommand;
use serde_json::json;
use vmbus::wire::Guid;

use super::client::Client;
use super::commands::{parse, print};
use super::{CtlError, show};
use crate::vsock::registry::{HvsocketBody, HvsocketEntry, NameError, ServiceName, parse_service};

/// `vmmctl hvsocket`.
#[derive(Debug, Subcommand)]
pub enum Hvsocket {
    /// The registered services, and whether a program of this host listens for the guest
    List,
    /// Give a service a name, which then stands for it in vmmctl connect and in a listener's path
    Register {
        /// The service: its GUID, or its vsock port
        #[arg(value_name = "GUID|PORT", value_parser = parse_service)]
        service: Guid,
        /// Its name; up to 64 letters, digits, spaces and . - _ + ( )
        #[arg(value_parser = name)]
        name: ServiceName,
    },
    /// Take a service's name away; its connections stay
    Unregister {
        /// The service: its GUID, or its vsock port
        #[arg(value_name = "GUID|PORT", value_parser = parse_service)]
        service: Guid,
    },
}

fn name(text: &str) -> Result<ServiceName, String> {
    text.parse().map_err(|error: NameError| error.to_string())
}

/// Runs `vmmctl hvsocket`.
pub fn run(vm: &Client, what: &Hvsocket, json: bool) -> Result<(), CtlError> {
    const LIST: &str = "/v1/hvsocket/services";
    match what {
        Hvsocket::List => {
            let answer = vm.get(LIST)?;
            print(json, &answer, || {
                let all: Vec<HvsocketEntry> = parse(&answer)?;
                Ok(table(&all))
            })
        }
        Hvsocket::Register { service, name } => {
            let body = HvsocketBody {
                name: name.to_string(),
            };
            let done = vm.send("PUT", &format!("{LIST}/{service}"), &body)?;
            print(json, &done, || Ok(format!("{service} is '{name}'\n")))
        }
        Hvsocket::Unregister { service } => {
            let done = vm.send("DELETE", &format!("{LIST}/{service}"), &json!({}))?;
            print(json, &done, || {
                Ok(format!("{service} has no name any more\n"))
            })
        }
    }
}

fn table(services: &[HvsocketEntry]) -> String {
    if services.is_empty() {
        return "no services are registered\n".into();
    }
    let rows = services.iter().map(|service| {
        let host = if service.listening { "listening" } else { "-" };
        [
            service.guid.clone(),
            service
                .port
                .map_or_else(|| "-".into(), |port| port.to_string()),
            service.name.clone(),
            host.into(),
            service.connections.to_string(),
        ]
    });
    show::table(["GUID", "PORT", "NAME", "HOST", "CONNECTIONS"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_who_listens() {
        let entry = |port, listening| HvsocketEntry {
            guid: "g".into(),
            port,
            name: "build agent".into(),
            listening,
            path: None,
            connections: 2,
        };
        assert_eq!(
            table(&[entry(Some(22), true), entry(None, false)]),
            "GUID  PORT  NAME         HOST       CONNECTIONS\n\
             g     22    build agent  listening  2\n\
             g     -     build agent  -          2\n"
        );
        assert_eq!(table(&[]), "no services are registered\n");
    }
}
