// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl kvp` and `vmmctl ip`.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

use std::fmt::Write as _;
use std::io::{IsTerminal, stdout};
use std::net::IpAddr;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::client::Client;
use super::commands::{parse, print};
use super::{CtlError, show};
use crate::api::data::{IpBody, IpEntry, ItemBody, ItemList, ValueKind, encoded};
use crate::escape;

/// `vmmctl kvp`.
#[derive(Debug, Subcommand)]
pub enum Kvp {
    /// All items, or those of one pool
    List {
        /// Of this pool only
        #[arg(long, value_name = "POOL")]
        pool: Option<PoolName>,
    },
    /// One item's value
    Get {
        /// Its name
        key: String,
        /// In this pool only [default: the first of external, guest and auto that has it]
        #[arg(long, value_name = "POOL")]
        pool: Option<PoolName>,
    },
    /// Add an item to the host's pool, or change it
    Set {
        /// Its name
        key: String,
        /// Its value
        #[arg(allow_hyphen_values = true)]
        value: String,
        /// How it is sent
        #[arg(long = "type", value_name = "TYPE", default_value = "string")]
        kind: KindName,
        /// Into this pool instead
        #[arg(long, value_name = "POOL", default_value = "external")]
        pool: PoolName,
    },
    /// Remove an item of the host's pool
    Delete {
        /// Its name
        key: String,
        /// From this pool instead
        #[arg(long, value_name = "POOL", default_value = "external")]
        pool: PoolName,
    },
}

/// A pool on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PoolName {
    /// From the host to the guest
    External,
    /// What programs in the guest have made
    Guest,
    /// What the guest tells of itself
    Auto,
}

impl PoolName {
    const ALL: [Self; 3] = [Self::External, Self::Guest, Self::Auto];

    const fn name(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Guest => "guest",
            Self::Auto => "auto",
        }
    }
}

/// A type on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KindName {
    /// Text
    String,
    /// A number of 32 bits
    U32,
    /// A number of 64 bits
    U64,
}

/// `vmmctl ip`.
#[derive(Debug, Subcommand)]
pub enum Ip {
    /// An adapter's addresses
    Get {
        /// The adapter's MAC address
        #[arg(value_name = "MAC")]
        adapter: String,
    },
    /// Change an adapter's addresses, as far as the guest can
    Set(IpSet),
}

/// What an adapter is to be set to.
#[derive(Debug, Clone, ClapArgs)]
pub struct IpSet {
    /// The adapter: its MAC address, or the instance GUID of a Hyper-V NIC
    #[arg(value_name = "MAC|GUID")]
    adapter: String,
    /// Addresses
    #[arg(value_name = "ADDR/LEN")]
    addresses: Vec<String>,
    /// A gateway
    #[arg(long, value_name = "ADDR")]
    gateway: Vec<IpAddr>,
    /// A name server
    #[arg(long, value_name = "ADDR")]
    dns: Vec<IpAddr>,
    /// Ask a DHCP server
    #[arg(long)]
    dhcp: bool,
}

/// Runs `vmmctl kvp`.
pub fn kvp(vm: &Client, what: &Kvp, json: bool) -> Result<(), CtlError> {
    match what {
        Kvp::List { pool } => list(vm, *pool, json),
        Kvp::Get { key, pool } => {
            let value = get(vm, key, *pool)?;
            print(json, &value, || {
                let value = value["value"].as_str().unwrap_or_default();
                // A terminal would obey what a guest has written; a script wants it as it is.
                Ok(if stdout().is_terminal() {
                    format!("{}\n", escape::line(value))
                } else {
                    format!("{value}\n")
                })
            })
        }
        Kvp::Set {
            key,
            value,
            kind,
            pool,
        } => {
            let body = ItemBody {
                value: Value::String(value.clone()),
                kind: Some(match kind {
                    KindName::String => ValueKind::String,
                    KindName::U32 => ValueKind::U32,
                    KindName::U64 => ValueKind::U64,
                }),
            };
            let done = vm.send("PUT", &path(*pool, key), &body)?;
            print(json, &done, || Ok(String::new()))
        }
        Kvp::Delete { key, pool } => {
            let done = vm.send("DELETE", &path(*pool, key), &json!({}))?;
            print(json, &done, || Ok(String::new()))
        }
    }
}

fn path(pool: PoolName, key: &str) -> String {
    format!("/v1/kvp/{}/{}", pool.name(), encoded(key))
}

fn list(vm: &Client, pool: Option<PoolName>, json: bool) -> Result<(), CtlError> {
    let ask = |pool: PoolName| vm.get(&format!("/v1/kvp/{}", pool.name()));
    if let Some(pool) = pool {
        let answer = ask(pool)?;
        return print(json, &answer, || {
            let list: ItemList = parse(&answer)?;
            let rows = list.items.iter();
            let rows = rows.map(|item| [item.key.clone(), item.value.clone()]);
            Ok(show::table(["KEY", "VALUE"], rows) + &remarks(&list))
        });
    }
    let mut answers = Map::new();
    for pool in PoolName::ALL {
        answers.insert(pool.name().into(), ask(pool)?);
    }
    let all = Value::Object(answers);
    print(json, &all, || {
        let mut rows = Vec::new();
        let mut end = String::new();
        for pool in PoolName::ALL {
            let list: ItemList = parse(&all[pool.name()])?;
            end.push_str(&remarks(&list));
            for item in list.items {
                rows.push([pool.name().to_owned(), item.key, item.value]);
            }
        }
        Ok(show::table(["POOL", "KEY", "VALUE"], rows.into_iter()) + &end)
    })
}

fn remarks(list: &ItemList) -> String {
    let mut text = String::new();
    if list.unreadable > 0 {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{} items the guest cannot read itself",
            list.unreadable
        );
    }
    if list.cut {
        text += "there are more items\n";
    }
    text
}

fn get(vm: &Client, key: &str, pool: Option<PoolName>) -> Result<Value, CtlError> {
    if let Some(pool) = pool {
        return vm.get(&path(pool, key));
    }
    let mut last = None;
    for pool in PoolName::ALL {
        match vm.get(&path(pool, key)) {
            Err(CtlError::Api(error)) if error.code == "not-found" => last = Some(error),
            other => return other,
        }
    }
    Err(last.map_or_else(
        || CtlError::Some("there are no pools".into()),
        |mut error| {
            error.message = format!("no pool has an item '{key}'");
            error.into()
        },
    ))
}

/// Runs `vmmctl ip`.
pub fn ip(vm: &Client, what: &Ip, json: bool) -> Result<(), CtlError> {
    match what {
        Ip::Get { adapter } => {
            let answer = vm.get(&format!("/v1/ip/{}", encoded(adapter)))?;
            print(json, &answer, || {
                let ip: IpEntry = parse(&answer)?;
                let dhcp = if ip.dhcp { "yes" } else { "no" };
                let rows = [
                    ("addresses", ip.addresses.join(" ")),
                    ("gateways", ip.gateways.join(" ")),
                    ("DNS", ip.dns.join(" ")),
                    ("DHCP", dhcp.into()),
                ];
                let lines =
                    rows.map(|(name, value)| format!("{name:<10} {}\n", escape::line(value)));
                Ok(lines.concat())
            })
        }
        Ip::Set(set) => {
            let body = IpBody {
                addresses: set.addresses.clone(),
                gateways: set.gateway.clone(),
                dns: set.dns.clone(),
                dhcp: set.dhcp,
            };
            let done = vm.send("PUT", &format!("/v1/ip/{}", encoded(&set.adapter)), &body)?;
            print(json, &done, || Ok(String::new()))
        }
    }
}
