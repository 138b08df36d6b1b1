// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Routes of data exchange, backup and file copy, and their bodies.

use std::net::IpAddr;
use std::time::Duration;

use ics_devices::fcopy::Target;
use ics_devices::kvp::{Adapter, IpConfig, Key, MAX_LISTED, Pool, Value};
use ics_devices::vss::MAX_FREEZE;
use ics_devices::{KvpRequest, VssRequest};
use serde::{Deserialize, Serialize};

use super::http::Request;
use super::pipe::Pipe;
use super::query::{Query, decoded};
use super::routes::{Op, split};
use super::types::{ApiError, some, whole, whole_number};

pub use super::query::encoded;

/// Addresses, and name servers, of an adapter: the longest texts of so many fit
/// into the guest's field of 1024 bytes.
const MAX_ADDRESSES: usize = 25;
/// Gateways of an adapter: their field is half as long.
const MAX_GATEWAYS: usize = 12;

/// `POST /v1/files`: a file for the guest, as its query says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileCopy {
    /// Where to.
    pub target: Target,
    /// A file that exists is overwritten.
    pub overwrite: bool,
    /// Directories that do not exist are made.
    pub mkdir: bool,
    /// The body.
    pub pipe: Pipe,
}

/// `PUT /v1/kvp/POOL/KEY`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemBody {
    /// The value: text, or a number.
    pub value: serde_json::Value,
    /// How it is sent. Text as text and numbers as `u64` unless said.
    #[serde(
        rename = "type",
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub kind: Option<ValueKind>,
}

/// How a value is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValueKind {
    /// As text.
    String,
    /// As a number of 32 bits.
    U32,
    /// As a number of 64 bits.
    U64,
}

/// An item of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemEntry {
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// `GET /v1/kvp/POOL`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemList {
    /// The items, in the guest's order.
    pub items: Vec<ItemEntry>,
    /// Items that the guest could not read itself.
    pub unreadable: u32,
    /// There are more.
    pub cut: bool,
    /// Where to go on: `?from=N` gives the rest. Nothing at the end, or where no more
    /// are listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u32>,
}

/// `GET /v1/ip/MAC`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpEntry {
    /// Addresses, with the length of their prefix where the guest tells it.
    pub addresses: Vec<String>,
    /// Gateways.
    pub gateways: Vec<String>,
    /// Name servers.
    pub dns: Vec<String>,
    /// Whether the guest asks a DHCP server.
    pub dhcp: bool,
    /// The adapter has IPv4.
    pub ipv4: bool,
    /// The adapter has IPv6.
    pub ipv6: bool,
}

/// `PUT /v1/ip/MAC`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpBody {
    /// Each as ADDRESS/LENGTH.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Gateways.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Name servers.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Ask a DHCP server.
    #[serde(default)]
    pub dhcp: bool,
}

/// `POST /v1/vss/freeze`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreezeBody {
    /// After this long the file systems thaw by themselves.
    #[serde(default = "default_freeze", deserialize_with = "whole")]
    pub max_ms: u64,
}

fn default_freeze() -> u64 {
    10_000
}

impl Default for FreezeBody {
    fn default() -> Self {
        Self {
            max_ms: default_freeze(),
        }
    }
}

/// Finds the operation of a request for one of these services; nothing if the
/// path is another's.
pub fn route(request: &Request, parts: &[&str], method: &str) -> Option<Result<Op, ApiError>> {
    Some(match (parts, method) {
        (["v1", "kvp", pool], "GET") => list(request, pool).map(Op::Kvp),
        (["v1", "kvp", pool, key], method @ ("GET" | "PUT" | "DELETE")) => {
            item(request, method, pool, key).map(Op::Kvp)
        }
        (["v1", "ip", adapter], "GET") => {
            parse_adapter(adapter).map(KvpRequest::GetIp).map(Op::Kvp)
        }
        (["v1", "ip", adapter], "PUT") => set_ip(request, adapter).map(Op::Kvp),
        (["v1", "vss"], "GET") => Ok(Op::VssState),
        (["v1", "vss", "check"], "POST") => Ok(Op::Vss(VssRequest::Check)),
        (["v1", "vss", "thaw"], "POST") => Ok(Op::Vss(VssRequest::Thaw)),
        (["v1", "vss", "freeze"], "POST") => freeze(request).map(Op::Vss),
        _ => return None,
    })
}

/// What a path of these services takes.
pub fn methods(parts: &[&str]) -> Option<&'static [&'static str]> {
    Some(match parts {
        ["v1", "kvp", _] | ["v1", "vss"] => &["GET"],
        ["v1", "kvp", _, _] => &["GET", "PUT", "DELETE"],
        ["v1", "ip", _] => &["GET", "PUT"],
        ["v1", "vss", "check" | "thaw" | "freeze"] | ["v1", "files"] => &["POST"],
        _ => return None,
    })
}

/// Whether a request's body is to be passed on while it comes.
pub fn is_upload(method: &str, target: &str) -> bool {
    method == "POST" && split(target).0.trim_matches('/') == "v1/files"
}

/// `POST /v1/files?path=…&overwrite=…&mkdir=…`.
pub fn upload(target: &str, pipe: Pipe) -> Result<FileCopy, ApiError> {
    let query = Query::parse(split(target).1, &["path", "overwrite", "mkdir"])?;
    let path = query
        .text("path")
        .ok_or_else(|| ApiError::bad_request("the query needs a path"))?;
    let target = Target::new(path)
        .map_err(|error| ApiError::new(400, "bad-name", "api", error.to_string()))?;
    Ok(FileCopy {
        target,
        overwrite: query.flag("overwrite", false)?,
        mkdir: query.flag("mkdir", false)?,
        pipe,
    })
}

fn list(request: &Request, pool: &str) -> Result<KvpRequest, ApiError> {
    let pool = parse_pool(pool)?;
    let query = Query::parse(split(&request.target).1, &["from"])?;
    Ok(KvpRequest::List(pool, query.index("from", MAX_LISTED)?))
}

fn item(request: &Request, method: &str, pool: &str, key: &str) -> Result<KvpRequest, ApiError> {
    let pool = parse_pool(pool)?;
    let key = Key::new(&decoded(key)?).map_err(bad)?;
    Ok(match method {
        "GET" => KvpRequest::Get(pool, key),
        "DELETE" => KvpRequest::Delete(pool, key),
        _ => KvpRequest::Set(pool, key, value(&super::routes::body(request)?)?),
    })
}

fn value(body: &ItemBody) -> Result<Value, ApiError> {
    let text = match &body.value {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Number(number) => whole_number(number).map(|number| number.to_string()),
        _ => None,
    };
    let text = text.ok_or_else(|| {
        ApiError::bad_request(format!(
            "the value is text, or a whole number from 0 to {}",
            u64::MAX
        ))
    })?;
    let kind = body.kind.unwrap_or(if body.value.is_number() {
        ValueKind::U64
    } else {
        ValueKind::String
    });
    typed(&text, kind).map_err(ApiError::bad_request)
}

/// A value of a kind, from text.
pub fn typed(text: &str, kind: ValueKind) -> Result<Value, String> {
    match kind {
        ValueKind::String => Value::text(text).map_err(|error| error.to_string()),
        ValueKind::U32 => match text.parse() {
            Ok(number) => Ok(Value::U32(number)),
            Err(_) => Err(format!("'{text}' is no number of 32 bits")),
        },
        ValueKind::U64 => match text.parse() {
            Ok(number) => Ok(Value::U64(number)),
            Err(_) => Err(format!("'{text}' is no number of 64 bits")),
        },
    }
}

fn set_ip(request: &Request, adapter: &str) -> Result<KvpRequest, ApiError> {
    let adapter = parse_adapter(adapter)?;
    let body: IpBody = super::routes::body(request)?;
    for (what, count, most) in [
        ("addresses", body.addresses.len(), MAX_ADDRESSES),
        ("gateways", body.gateways.len(), MAX_GATEWAYS),
        ("dns", body.dns.len(), MAX_ADDRESSES),
    ] {
        if count > most {
            return Err(ApiError::bad_request(format!(
                "{what} has {count} addresses, and {most} are the most"
            )));
        }
    }
    let addresses: Result<Vec<_>, ApiError> = body
        .addresses
        .iter()
        .map(|text| {
            let pair = text
                .split_once('/')
                .and_then(|(address, length)| Some((address.parse().ok()?, length.parse().ok()?)));
            pair.ok_or_else(|| {
                ApiError::bad_request(format!("'{text}' is not ADDRESS/LENGTH, as 10.0.0.2/24"))
            })
        })
        .collect();
    let config = IpConfig::new(addresses?, body.gateways, body.dns, body.dhcp).map_err(bad)?;
    Ok(KvpRequest::SetIp(adapter, config))
}

fn freeze(request: &Request) -> Result<VssRequest, ApiError> {
    let body: FreezeBody = if request.body.is_empty() {
        FreezeBody::default()
    } else {
        super::routes::body(request)?
    };
    let max = Duration::from_millis(body.max_ms);
    if max.is_zero() || max > MAX_FREEZE {
        return Err(ApiError::bad_request(format!(
            "max_ms is a number from 1 to {}, not {}",
            MAX_FREEZE.as_millis(),
            body.max_ms
        )));
    }
    Ok(VssRequest::Freeze { max })
}

fn parse_pool(name: &str) -> Result<Pool, ApiError> {
    decoded(name)?
        .parse::<Pool>()
        .map_err(|error| ApiError::new(404, "not-found", "api", error.to_string()))
}

fn parse_adapter(text: &str) -> Result<Adapter, ApiError> {
    Adapter::new(&decoded(text)?).map_err(bad)
}

// As a function to map errors with.
#[allow(clippy::needless_pass_by_value)]
fn bad(error: impl ToString) -> ApiError {
    ApiError::bad_request(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ics_devices::kvp::MAX_LISTED_BYTES;
    use vmm_sys_util::eventfd::EventFd;

    use super::super::server::MAX_ANSWER;
    use super::*;

    fn find(method: &str, target: &str, body: &str) -> Result<Op, ApiError> {
        let request = Request {
            method: method.into(),
            target: target.into(),
            body: body.into(),
            keep_alive: true,
        };
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        route(&request, &parts, method).expect("a path of these services")
    }

    #[test]
    fn items_are_named_by_pool_and_percent_encoded_key() {
        let key = Key::new("a/\u{e4} %").unwrap();
        let path = format!("/v1/kvp/external/{}", encoded(key.as_str()));
        let external = Pool::External;
        assert_eq!(
            find("GET", &path, ""),
            Ok(Op::Kvp(KvpRequest::Get(external, key.clone())))
        );
        assert_eq!(
            find("DELETE", &path, ""),
            Ok(Op::Kvp(KvpRequest::Delete(external, key.clone())))
        );
        let set = |body| find("PUT", &path, body);
        let value = |value| Ok(Op::Kvp(KvpRequest::Set(external, key.clone(), value)));
        assert_eq!(set(r#"{"value":"x"}"#), value(Value::text("x").unwrap()));
        assert_eq!(set(r#"{"value":7}"#), value(Value::U64(7)));
        assert_eq!(set(r#"{"value":7.0}"#), value(Value::U64(7)));
        assert_eq!(set(r#"{"value":"7","type":"u32"}"#), value(Value::U32(7)));
        for body in [
            "",
            "{}",
            r#"{"value":null}"#,
            r#"{"value":-1}"#,
            r#"{"value":7.5}"#,
            r#"{"value":"web","type":null}"#,
            r#"{"value":1.5,"type":"string"}"#,
            r#"{"value":-1,"type":"string"}"#,
            r#"{"value":4294967296,"type":"u32"}"#,
            r#"{"value":"x","type":"u64"}"#,
        ] {
            assert_eq!(set(body).unwrap_err().status, 400, "{body}");
        }
        let long = format!(r#"{{"value":"{}"}}"#, "v".repeat(1024));
        let error = set(&long).unwrap_err();
        assert!(error.message.contains("1023 are the most"), "{error}");
        assert_eq!(find("GET", "/v1/kvp/pond", "").unwrap_err().status, 404);
        assert_eq!(find("GET", "/v1/kvp/auto/%zz", "").unwrap_err().status, 400);
    }

    #[test]
    fn a_listing_begins_where_the_query_says() {
        let list = |pool, from| Ok(Op::Kvp(KvpRequest::List(pool, from)));
        let get = |target: &str| find("GET", target, "");
        assert_eq!(get("/v1/kvp/guest"), list(Pool::Guest, 0));
        assert_eq!(get("/v1/kvp/guest?from=52"), list(Pool::Guest, 52));
        let last = format!("/v1/kvp/auto-external?from={MAX_LISTED}");
        assert_eq!(get(&last), list(Pool::AutoExternal, MAX_LISTED));
        for query in ["from", "from=", "from=-1", "from=x", "from=4097", "to=7"] {
            let error = get(&format!("/v1/kvp/guest?{query}")).unwrap_err();
            assert_eq!(error.status, 400, "{query}");
        }
    }

    #[test]
    fn the_largest_listing_is_an_answer_that_waits_for_its_client() {
        let item = ItemEntry {
            key: "\u{1}".repeat(10),
            value: "\u{1}\n\u{7f}\u{80}\u{20ac}\"\\".repeat(9),
        };
        // As the service counts them.
        let counted = 32 + 10 * 6 + (4 * 6 + 3 + 2 + 2) * 9;
        let count = MAX_LISTED_BYTES / counted;
        let list = ItemList {
            items: vec![item; count],
            unreadable: 16,
            cut: true,
            next: Some(MAX_LISTED),
        };
        let written = serde_json::to_string(&list).unwrap();
        assert!(written.len() <= MAX_LISTED_BYTES + 100);
        const { assert!(MAX_LISTED_BYTES + 100 <= MAX_ANSWER) };
    }

    #[test]
    fn addresses_need_a_length() {
        let path = "/v1/ip/52:54:00:12:34:56";
        assert!(find("GET", path, "").is_ok());
        assert!(find("PUT", path, r#"{"addresses":["10.0.0.2/24"]}"#).is_ok());
        for body in [r#"{"addresses":["10.0.0.2"]}"#, "{}", r#"{"dns":["x"]}"#] {
            assert_eq!(find("PUT", path, body).unwrap_err().status, 400, "{body}");
        }
        assert_eq!(find("GET", "/v1/ip/eth0", "").unwrap_err().status, 400);
        let longest = r#""ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/128","#;
        for (count, taken) in [(25, true), (26, false)] {
            let list = longest.repeat(count);
            let body = format!(r#"{{"addresses":[{}]}}"#, list.trim_end_matches(','));
            assert_eq!(find("PUT", path, &body).is_ok(), taken, "{count}");
        }
    }

    #[test]
    fn a_freeze_has_a_limit_also_when_none_is_given() {
        let freeze = |body| find("POST", "/v1/vss/freeze", body);
        let max = |ms| {
            let max = Duration::from_millis(ms);
            Ok(Op::Vss(VssRequest::Freeze { max }))
        };
        assert_eq!(freeze(""), max(10_000));
        assert_eq!(freeze("{}"), max(10_000));
        assert_eq!(freeze(r#"{"max_ms":500}"#), max(500));
        assert_eq!(freeze(r#"{"max_ms":900000}"#), max(900_000));
        assert_eq!(freeze(r#"{"max_ms":5e2}"#), max(500));
        for body in [r#"{"max_ms":0}"#, r#"{"max_ms":900001}"#] {
            assert_eq!(freeze(body).unwrap_err().code, "bad-request", "{body}");
        }
    }

    #[test]
    fn an_upload_says_where_to() {
        let pipe = Pipe::new(0, Arc::new(EventFd::new(0).unwrap()));
        let file = upload("/v1/files?path=%2Fa%2Fb&mkdir=true", pipe.clone()).unwrap();
        assert_eq!(file.target.to_string(), "/a/b");
        assert_eq!((file.overwrite, file.mkdir), (false, true));
        for query in [
            "",
            "?path=b",
            "?path=/a/&mkdir",
            "?path=/a&x=1",
            "?path=/a&mkdir=7",
            "?path=/a&mkdir=1",
            "?path=/a&mkdir",
            "?path=/a&path=/b",
        ] {
            let error = upload(&format!("/v1/files{query}"), pipe.clone()).unwrap_err();
            assert_eq!(error.status, 400, "{query}");
        }
        assert!(is_upload("POST", "/v1/files?path=/a"));
        assert!(!is_upload("GET", "/v1/files") && !is_upload("POST", "/v1/filesystem"));
    }
}
