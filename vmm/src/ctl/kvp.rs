// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl kvp` and `vmmctl ip`.
#![allow(clippy::indexing_slicing)] // Of JSON: what is not there is null.

use std::fmt::Write as _;
use std::io::{IsTerminal, stdout};
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::client::Client;
use super::commands::{parse, print};
use super::{CtlError, show};
use crate::api::data::{IpBody, IpEntry, ItemBody, ItemList, ValueKind, encoded};
use crate::escape;

/// A listing that was begun is not given up because somebody else's request is in work:
/// it waits so long for its next part.
const TURN: Duration = Duration::from_millis(100);
/// So many times: half a minute, the longest that a guest takes to answer.
const TRIES: u32 = 300;

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
        /// In this pool only [default: the first of external, guest, auto and auto-external that
        /// has it]
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
    /// What the host tells of itself and of the VM
    AutoExternal,
}

impl PoolName {
    const ALL: [Self; 4] = [Self::External, Self::Guest, Self::Auto, Self::AutoExternal];

    const fn name(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Guest => "guest",
            Self::Auto => "auto",
            Self::AutoExternal => "auto-external",
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
    if let Some(pool) = pool {
        let list = whole(|target| vm.get(target), pool)?;
        return print(json, &to_json(&list)?, || {
            let rows = list.items.iter();
            let rows = rows.map(|item| [item.key.clone(), item.value.clone()]);
            Ok(show::table(["KEY", "VALUE"], rows) + &remarks(&list))
        });
    }
    let mut lists = Vec::new();
    for pool in PoolName::ALL {
        lists.push((pool.name(), whole(|target| vm.get(target), pool)?));
    }
    if json {
        let all: Result<Map<String, Value>, CtlError> = lists
            .iter()
            .map(|(pool, list)| Ok(((*pool).to_owned(), to_json(list)?)))
            .collect();
        return print(json, &Value::Object(all?), || Ok(String::new()));
    }
    print(json, &Value::Null, || {
        let rows = lists.iter().flat_map(|(pool, list)| {
            let items = list.items.iter();
            items.map(|item| [(*pool).to_owned(), item.key.clone(), item.value.clone()])
        });
        let end: String = lists.iter().map(|(_, list)| remarks(list)).collect();
        Ok(show::table(["POOL", "KEY", "VALUE"], rows) + &end)
    })
}

fn to_json(list: &ItemList) -> Result<Value, CtlError> {
    serde_json::to_value(list).map_err(|error| CtlError::Protocol(error.to_string()))
}

/// All parts of a pool's listing, one after the other.
fn whole(
    mut get: impl FnMut(&str) -> Result<Value, CtlError>,
    pool: PoolName,
) -> Result<ItemList, CtlError> {
    let mut path = format!("/v1/kvp/{}", pool.name());
    let mut list: ItemList = parse(&get(&path)?)?;
    while let Some(from) = list.next {
        path = format!("/v1/kvp/{}?from={from}", pool.name());
        let part: ItemList = parse(&patiently(&mut get, &path)?)?;
        if part.next.is_some_and(|next| next <= from) {
            let message = format!("the listing of {} does not go on after {from}", pool.name());
            return Err(CtlError::Protocol(message));
        }
        list.items.extend(part.items);
        list.unreadable = list.unreadable.saturating_add(part.unreadable);
        (list.cut, list.next) = (part.cut, part.next);
    }
    Ok(list)
}

/// Between two parts of a listing others have their turn.
fn patiently(
    get: &mut impl FnMut(&str) -> Result<Value, CtlError>,
    path: &str,
) -> Result<Value, CtlError> {
    for _ in 0..TRIES {
        match get(path) {
            Err(CtlError::Api(error)) if error.code == "busy" => thread::sleep(TURN),
            other => return other,
        }
    }
    get(path)
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
        let _ = writeln!(
            text,
            "there are more items than the {} that are listed: vmmctl kvp get KEY finds any",
            list.items.len()
        );
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::ApiError;

    #[test]
    fn a_pool_is_read_part_by_part_and_waits_for_its_turn() {
        let mut asked = Vec::new();
        let list = whole(
            |target| {
                asked.push(target.to_owned());
                let item = |key: &str| json!([{"key": key, "value": "v"}]);
                Ok(match asked.len() {
                    1 => json!({"items": item("a"), "unreadable": 1, "cut": true, "next": 7}),
                    2 | 3 => return Err(ApiError::new(409, "busy", "host", "").into()),
                    4 => json!({"items": item("b"), "unreadable": 2, "cut": true, "next": 9}),
                    _ => json!({"items": item("c"), "unreadable": 0, "cut": false}),
                })
            },
            PoolName::Guest,
        );
        let list = list.unwrap();
        let part = |from: u32| format!("/v1/kvp/guest?from={from}");
        assert_eq!(
            asked,
            [
                "/v1/kvp/guest".to_owned(),
                part(7),
                part(7),
                part(7),
                part(9)
            ]
        );
        let keys: Vec<_> = list.items.iter().map(|item| item.key.as_str()).collect();
        assert_eq!(keys, ["a", "b", "c"]);
        assert_eq!((list.unreadable, list.cut, list.next), (3, false, None));
        assert_eq!(to_json(&list).unwrap()["next"], Value::Null);
    }

    #[test]
    fn a_listing_that_goes_in_circles_or_cannot_begin_ends() {
        let circle = json!({"items": [], "unreadable": 0, "cut": true, "next": 7});
        let error = whole(|_| Ok(circle.clone()), PoolName::Auto).unwrap_err();
        assert!(
            error.to_string().contains("does not go on after 7"),
            "{error}"
        );
        let mut asked = 0;
        let busy = whole(
            |_| {
                asked += 1;
                Err(ApiError::new(409, "busy", "host", "").into())
            },
            PoolName::Auto,
        );
        assert!(matches!(busy, Err(CtlError::Api(error)) if error.code == "busy"));
        assert_eq!(asked, 1, "who asks first is told at once");
    }

    #[test]
    fn what_is_not_listed_is_told_with_where_to_find_it() {
        let list = ItemList {
            cut: true,
            ..ItemList::default()
        };
        assert!(remarks(&list).contains("vmmctl kvp get KEY"));
        assert_eq!(remarks(&ItemList::default()), "");
    }
}
